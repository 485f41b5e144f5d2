"""The edge of stability of stochastic training."""
