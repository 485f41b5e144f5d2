"""Run by `test_devices.py` in a process with eight virtual devices: runs of one device and of meshes, as JSON."""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from eos_sde.trials import Trial, train
from eos_sde.trials.devices import make_mesh

jax.config.update("jax_disable_most_optimizations", True)
TASK = {
    "loss": "cross-entropy",
    "examples": 90,
    "test_examples": 20,
    "hidden": (32,),
}  # 72 for training, 18 held out
KNOBS = {"sgd": 0.5, "adamw": 0.01, "caeo": 8.0, "caeo-ss": 8.0}
ROWS = ("train_loss", "validation_loss", "learning_rate", "sharpness")


def trial(rule: str, seed: int = 1) -> Trial:
    options = {"refresh": 2} if rule.startswith("caeo") else {}
    given = {"steps": 8, "batch_size": 24, "every": 4, "curvature_every": 1, "options": options}
    return Trial("digits-mlp", rule, eta=KNOBS[rule], seed=seed, task_settings=TASK, **given)


def off(one, two) -> float:
    parts = [one.final_params.values - two.final_params.values]
    found = float(np.linalg.norm(parts[0]) / np.linalg.norm(one.final_params.values))
    for name in ROWS:
        a, b = one[name].values, two[name].values
        there = np.isfinite(a) & (a != 0)
        found = max(found, float(np.max(np.abs(a - b)[there] / np.abs(a)[there])))
    return found


def resumed_elsewhere(rule: str, folder: Path):
    """Stopped at the fourth update on one mesh and gone on with on another."""

    def stop(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        train(trial(rule), folder=folder, checkpoint_every=4, mesh="data=8", progress=stop)
    seen: list[int] = []
    found = train(trial(rule), folder=folder, checkpoint_every=4, mesh="data=4,model=2", progress=seen.append)
    assert seen == [4, 8], seen
    return found


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    for rule in sys.argv[1:]:
        alone = train(trial(rule))
        found[rule] = {
            mesh: off(alone, train(trial(rule), mesh=mesh)) for mesh in ("data=8", "data=4,model=2")
        }
        found[rule]["another seed"] = off(alone, train(trial(rule, seed=2), mesh="data=8"))
        found[rule]["capped"] = float(np.min(alone.learning_rate.values[1:]) < KNOBS[rule])
        with tempfile.TemporaryDirectory() as folder:
            found[rule]["resumed"] = off(alone, resumed_elsewhere(rule, Path(folder)))
    assert make_mesh("data=4,model=2").devices.shape == (4, 2)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
