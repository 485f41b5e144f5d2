"""The experiments of the replay: each predicts, measures, and returns rows and paths."""
