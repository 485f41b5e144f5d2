"""Meshes: where arrays are cut, and runs over them that give the numbers of one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from eos_sde.bridge import make_rule
from eos_sde.trials import Trial, devices, join_cluster, train
from solvers.errors import InvalidInput

MESH = AbstractMesh((4, 2), devices.AXES)
HERE = Path(__file__).parent
# An update sums at most a few hundred terms along any path (batch, width), in another order on a mesh: 1000 units of
# rounding, 1.1e-13. A difference grows by |1 - eta h| an update, at most 3 where eta h <= 4, the furthest from which
# training comes back: over 8 updates 8 * 1.1e-13 * 3^8 = 6e-9. Another seed or a lost example is off by 1e-2 and more.
CLOSE = 6e-9


@pytest.mark.parametrize(
    ("shape", "stacked", "cut"),
    [
        ((64, 256), False, PartitionSpec(None, "model")),  # the larger axis
        ((256, 64), False, PartitionSpec("model")),
        ((64, 64), False, PartitionSpec(None, "model")),  # the last of equals
        ((255, 64), False, PartitionSpec(None, "model")),  # two divide 64 and not 255
        ((255, 63), False, PartitionSpec()),
        ((31, 32), False, PartitionSpec()),  # small
        ((4096, 4, 300), True, PartitionSpec(None, None, "model")),  # layers of a scan are not cut
        ((), False, PartitionSpec()),
    ],
)
def test_the_largest_axis_that_can_be_is_cut(shape, stacked, cut):
    assert devices.partition(shape, MESH, stacked=stacked) == cut
    assert devices.partition(shape, AbstractMesh((8, 1), devices.AXES), stacked=stacked) == PartitionSpec()


@pytest.mark.parametrize("rule", ["sgdm", "adamw", "caeo", "caeo-ss", "cdat"])
def test_the_state_of_a_rule_follows_the_weights(rule):
    weights = {"a": jax.ShapeDtypeStruct((64, 128), np.float64), "b": jax.ShapeDtypeStruct((), np.float64)}
    of_weights = devices.weight_shardings(weights, MESH)
    options = {"refresh": "auto"} if rule.startswith("caeo") else {}
    made = make_rule(rule, eta=None if rule == "cdat" else 0.1, **options)
    state = jax.tree.leaves(jax.eval_shape(made.init, weights))
    shardings = jax.tree.leaves(devices.state_shardings(made, weights, of_weights, MESH))
    assert len(state) == len(shardings)
    for leaf, sharding in zip(state, shardings, strict=True):
        assert sharding.spec == (PartitionSpec(None, "model") if leaf.shape == (64, 128) else PartitionSpec())
    vectors = sum(leaf.shape == (64, 128) for leaf in state)
    assert vectors == {"sgdm": 1, "adamw": 2, "caeo": 2, "caeo-ss": 4, "cdat": 0}[rule]
    assert isinstance(made, optax.GradientTransformationExtraArgs)


@pytest.mark.parametrize(
    "spec", ["", "8", "data", "data=0", "data=2,data=2", "rows=2", "data=2;model=2", "data=-1"]
)
def test_a_mesh_that_is_none_is_refused(spec):
    with pytest.raises(InvalidInput, match="must be sizes of data and model"):
        devices.parse_mesh(spec)


def test_what_does_not_fit_a_mesh_is_refused(tiny):
    with pytest.raises(InvalidInput, match=r"needs 4096 devices .*xla_force_host_platform_device_count=4096"):
        train(tiny(), mesh="data=4096")
    with pytest.raises(InvalidInput, match="probe=10 must be a multiple of data=4 of the mesh"):
        devices.check_divisible({"batch_size": 8, "probe": 10}, MESH)
    with pytest.raises(InvalidInput, match="go together"):
        join_cluster("localhost:1", 2)
    with pytest.raises(InvalidInput, match="process=2 must lie from 0 to processes - 1 = 1"):
        join_cluster("localhost:1", 2, 2)
    with pytest.raises(InvalidInput, match="must be host:port"):
        join_cluster("localhost", 2, 0)


@pytest.mark.slow
def test_a_mesh_of_one_device_gives_the_same_run(tiny, tmp_path):
    """The arrays of the network in place of its flat vector: other sums, the same numbers."""
    trial = tiny("caeo", eta=8.0, options={"refresh": 2})
    alone, spread = train(trial), train(trial, mesh="data=1", folder=tmp_path)
    assert np.nanmin(alone["learning_rate"]) < 8.0  # the curvature decides
    for name in ("final_params", "train_loss", "learning_rate"):
        np.testing.assert_allclose(
            spread[name], alone[name], rtol=0, atol=CLOSE * float(abs(alone[name]).max())
        )
    assert spread.attrs["mesh"].startswith("data=1,model=1 of ")
    with pytest.raises(InvalidInput, match="another folder"):
        train(trial, folder=tmp_path)


def _environment(count):
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return kept | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_ENABLE_X64": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sgd", "adamw", "caeo", "caeo-ss"])
def test_eight_devices_give_the_numbers_of_one(rule):
    command = [sys.executable, str(HERE / "on_eight_devices.py"), rule]
    done = subprocess.run(command, env=_environment(8), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])[rule]
    assert max(found["data=8"], found["data=4,model=2"], found["resumed"]) <= CLOSE
    assert found["another seed"] > 1e-3
    assert bool(found["capped"]) == rule.startswith("caeo")


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """With the collectives of Gloo; both end with the same weights, which are those of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    commands = [
        [sys.executable, str(HERE / "as_one_of_two.py"), address, str(number), str(tmp_path)]
        for number in range(2)
    ]
    running = [
        subprocess.Popen(command, env=_environment(2), stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    said = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    assert all("data=2,model=2 of cpu devices in 2 processes" in one for one in said)
    one, two = (np.load(tmp_path / f"of-{number}.npy") for number in range(2))
    np.testing.assert_array_equal(one, two)
    task = {"loss": "cross-entropy", "examples": 50, "test_examples": 20, "hidden": (32,)}
    given = {"steps": 4, "batch_size": 8, "every": 2, "options": {"refresh": 2}, "task_settings": task}
    alone = train(Trial("digits-mlp", "caeo", eta=8.0, **given))["final_params"]
    np.testing.assert_allclose(one, alone, rtol=0, atol=CLOSE * float(abs(alone).max()))
