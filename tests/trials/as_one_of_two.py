"""Run by `test_devices.py` as one of two processes with two virtual devices each, that train together."""

import sys
from pathlib import Path

import numpy as np

from eos_sde.trials import Trial, join_cluster, train

coordinator, number, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
join_cluster(coordinator, 2, number)
TASK = {"loss": "cross-entropy", "examples": 50, "test_examples": 20, "hidden": (32,)}
trial = Trial(
    "digits-mlp", "caeo", steps=4, batch_size=8, every=2, eta=8.0, options={"refresh": 2}, task_settings=TASK
)
found = train(trial, folder=folder, checkpoint_every=2, mesh="data=2,model=2")
np.save(folder / f"of-{number}.npy", found.final_params.values)
sys.stdout.write(found.attrs["mesh"] + "\n")
