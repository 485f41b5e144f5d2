"""SDE ensembles and Fokker-Planck operators."""
