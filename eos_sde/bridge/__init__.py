"""Real networks against the continuous theory: tasks, records, calibration, prediction, replay."""
