"""The recorder against numpy by hand, dense eigenvalues and enumeration; bits under chunking."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.recorder import record
from eos_sde.bridge.rules import make_rule
from eos_sde.bridge.task_library import load_task
from solvers.errors import AccuracyWarning, InvalidInput


@pytest.fixture(scope="module")
def task():
    return load_task("digits-mlp", examples=12, hidden=(4,))


def test_batches_are_uniform_over_subsets():
    """Chi-square over all 15 pairs of 6 examples; negative control: drawing with replacement."""
    draws = 30000
    batches = draw_batches(stream(1), draws, examples=6, batch_size=2)
    pairs = list(itertools.combinations(range(6), 2))
    counts = np.array([np.sum((np.sort(batches, axis=1) == pair).all(axis=1)) for pair in pairs])
    assert counts.sum() == draws  # no repeats inside a batch
    chi_square = np.sum((counts - draws / 15) ** 2) / (draws / 15)
    assert chi_square < 42.6  # 14 degrees of freedom: false alarm 1e-4
    careless = np.random.default_rng(0).integers(0, 6, (draws, 2))
    counts = np.array([np.sum((np.sort(careless, axis=1) == pair).all(axis=1)) for pair in pairs])
    assert np.sum((counts - draws / 15) ** 2) / (draws / 15) > 42.6


@pytest.mark.parametrize(("examples", "size"), [(6, 1), (7, 5), (9, 9)])
def test_batches_have_distinct_members(examples, size):
    batches = draw_batches(stream(2), 200, examples=examples, batch_size=size)
    assert batches.shape == (200, size)
    assert all(len(set(row)) == size for row in batches.tolist())
    assert batches.min() == 0
    assert batches.max() == examples - 1


def test_batches_do_not_depend_on_grouping():
    whole, parts = stream(3), stream(3)
    together = draw_batches(whole, 10, examples=50, batch_size=4)
    apart = [draw_batches(parts, k, examples=50, batch_size=4) for k in (3, 7)]
    assert np.array_equal(together, np.concatenate(apart))


@pytest.mark.slow
def test_sgd_by_hand(task):
    data = record(task, "sgd", steps=7, seed=5, batch_size=3, every=3)
    batches = draw_batches(stream(5, 0, 0), 7, examples=12, batch_size=3)
    theta = np.asarray(task.init(5))
    for k, batch in enumerate(batches):
        loss, gradient = jax.value_and_grad(task.loss)(theta, task.x[batch], task.y[batch])
        assert np.isclose(data.batch_loss[0, k], loss, rtol=1e-12)
        theta = theta - task.eta * np.asarray(gradient)
    # 7 steps of rounding
    assert np.allclose(data.final_params[0], theta, rtol=0, atol=1e-13)
    assert data.step.values.tolist() == [0, 3, 6, 7]
    assert np.isclose(data.loss[0, -1], task.loss(theta), rtol=1e-12)
    assert np.allclose(data.learning_rate, task.eta)


@pytest.mark.slow
def test_sharpness_against_dense_eigenvalues(task):
    data = record(task, "sgd", steps=40, seed=0, batch_size=4, every=10)
    for step, theta in ((0, task.init(0)), (-1, data.final_params[0].values)):
        top = np.linalg.eigvalsh(jax.hessian(task.loss)(jnp.asarray(theta)))[-1]
        sharpness, residual = float(data.sharpness[0, step]), float(data.sharpness_residual[0, step])
        # a Ritz value lies below the top eigenvalue and an eigenvalue lies within its residual
        assert top - residual <= sharpness <= top * (1 + 1e-10)
        assert np.isclose(sharpness, top, rtol=1e-3)


@pytest.mark.slow
def test_full_batch_sharpness_along_the_gradient(task):
    data = record(task, "gd", steps=1, seed=0)
    theta = task.init(0)
    gradient, hessian = jax.grad(task.loss)(theta), jax.hessian(task.loss)(theta)
    expected = gradient @ hessian @ gradient / (gradient @ gradient)
    assert np.isclose(data.batch_sharpness[0, 0], expected, rtol=1e-10)
    assert np.isclose(data.gradient_norm[0, 0], jnp.linalg.norm(gradient), rtol=1e-12)


@pytest.mark.slow
def test_batch_sharpness_against_enumeration(task):
    """Batches of one: the mean over examples, met within its sampling error."""
    theta = task.init(0)

    def along(i):
        slope = jax.grad(lambda w: task.loss(w, task.x[i : i + 1], task.y[i : i + 1]))
        gradient = slope(theta)
        return gradient @ jax.jvp(slope, (theta,), (gradient,))[1] / (gradient @ gradient)

    values = np.array([along(i) for i in range(task.n)])
    data = record(task, "sgd", steps=1, seed=1, batch_size=1, start=theta, batches_measured=4000)
    # mean of 4000 independent draws: 4 standard errors, false alarm 6e-5
    assert abs(float(data.batch_sharpness[0, 0]) - values.mean()) < 4 * values.std() / np.sqrt(4000)


def test_chunking_changes_no_bit(task):
    runs = [record(task, "sgd", steps=12, seed=2, batch_size=3, every=k) for k in (1, 5, 12)]
    for other in runs[1:]:
        assert np.array_equal(runs[0].final_params, other.final_params)
        assert np.array_equal(runs[0].batch_loss, other.batch_loss)


@pytest.mark.slow
def test_replicas_have_batches_of_their_own_and_share_with_single_runs(task):
    several = record(task, "sgd", steps=10, seed=4, batch_size=2, replicas=3)
    single = record(task, "sgd", steps=10, seed=4, batch_size=2)
    # the same batches; batched products may round differently
    assert np.allclose(several.final_params[0], single.final_params[0], rtol=0, atol=1e-12)
    assert not np.allclose(several.final_params[0], several.final_params[1], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_mean_of_the_last_weights(task, replicas):
    """Against runs that end at each of those steps; whatever `every` is."""
    given = {"seed": 1, "batch_size": 5, "replicas": replicas, "curvature": False}
    run = record(task, "sgdm", steps=13, average=4, every=5, **given)
    ends = [record(task, "sgdm", steps=steps, **given)["final_params"] for steps in (10, 11, 12, 13)]
    assert np.allclose(run["mean_params"], np.mean(ends, axis=0), rtol=1e-12, atol=0)
    assert np.array_equal(run["final_params"], ends[-1])
    assert "mean_params" not in record(task, "sgdm", steps=2, **given)


def test_projections_are_of_the_displacement(task):
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((task.size, 2)))[0]
    start = np.asarray(task.init(9))
    data = record(task, "gd", steps=3, seed=0, start=start, project=directions)
    assert np.array_equal(data.projection[0, 0], np.zeros(2))
    first = -task.eta * directions.T @ np.asarray(jax.grad(task.loss)(jnp.asarray(start)))
    assert np.allclose(data.projection[0, 1], first, rtol=1e-10)


def test_divergence_is_marked_and_warned_about(task):
    with pytest.warns(AccuracyWarning, match="2 of 2 runs diverged, the first by step 10: lower eta=50"):
        data = record(task, "gd", steps=40, seed=0, eta=50.0, replicas=2, every=10)
    assert data.diverged.values.all()
    assert data.diverged_at.values.tolist() == [10, 10]
    assert np.isfinite(data.loss[:, 0]).all()
    assert np.isnan(data.loss[:, 1:]).all()
    assert data.attrs["complete"] == 0


def test_caeo_records_its_rate(task):
    data = record(task, "caeo", steps=6, seed=0, eta=10.0, delta=0.5, every=1)
    # its own estimate of the sharpness is within 1 % of ours, so the capped rate is too
    expected = np.minimum(10.0, 1.5 / data.sharpness[0, :-1].values)
    assert np.allclose(data.rate[0], expected, rtol=0.02)
    assert (data.rate < 10.0).any()
    assert np.array_equal(data.learning_rate[0, 1:], data.rate[0])
    assert np.array_equal(
        data.runaway[0], np.zeros(6)
    )  # the monitor needs W log 2 = 22 updates under the cap


def test_a_runaway_is_recorded(task):
    """A rule whose state tells of it from the third update on."""
    own = optax.GradientTransformationExtraArgs(
        lambda _: {"runaway": jnp.asarray(False), "count": jnp.asarray(0)},
        lambda updates, state, _, **__: (
            jax.tree.map(lambda g: -0.01 * g, updates),
            {"runaway": state["count"] >= 2, "count": state["count"] + 1},
        ),
    )
    data = record(task, own, steps=4, seed=0, batch_size=4)
    assert data.runaway[0].values.tolist() == [0, 0, 1, 1]
    assert not record(task, "sgd", steps=2, seed=0, batch_size=4).runaway.any()


@pytest.mark.parametrize("name", ["gd", "sgd", "sgdm", "nesterov", "adam", "adamw", "caeo", "caeo-ss"])
def test_every_rule_descends(task, name):
    eta = 0.01 if name.startswith("adam") else 0.05
    data = record(task, name, steps=30, seed=0, eta=eta, batch_size=12, every=30)
    assert data.loss[0, -1] < data.loss[0, 0]


def test_heavy_ball_is_the_stated_one():
    rule = make_rule("sgdm", eta=0.1)
    state = rule.init(jnp.zeros(1))
    total = 0.0
    for expected in (-0.1, -0.19):  # v = 1, then 0.9 + 1
        update, state = rule.update(jnp.ones(1), state, jnp.zeros(1))
        assert np.isclose(update[0], expected)
        total += expected


def test_a_transformation_of_ones_own(task):
    own = record(task, optax.sgd(task.eta), steps=5, seed=0, batch_size=4)
    named = record(task, "sgd", steps=5, seed=0, batch_size=4)
    assert np.array_equal(own.final_params, named.final_params)


def test_a_rule_that_makes_its_own_rate_is_not_bounded(task):
    """By name without eta; the rate recorded is that of CDAT at the start."""
    run = record(task, "cdat", steps=1, seed=0, batch_size=task.n, curvature=False)
    slope, theta = jax.grad(task.loss), task.init(0)
    gradient, image = jax.jit(lambda w: jax.jvp(slope, (w,), (slope(w),)))(theta)
    np.testing.assert_allclose(run["rate"][0, 0], 2 * gradient @ gradient / abs(gradient @ image), rtol=1e-9)
    assert "eta" not in run.attrs


def test_every_variable_has_units_and_a_name(task):
    data = record(task, "gd", steps=1, seed=0, project=np.eye(task.size)[:, :1])
    for variable in data.variables.values():
        assert variable.attrs["units"]
        assert variable.attrs["long_name"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "sgdd"}, "rule='sgdd' is not known"),
        ({"rule": "l4", "eta": -1.0}, "eta=-1.0"),
        ({"rule": "sgd", "eta": -1.0}, "eta=-1.0"),
        ({"rule": "sgd", "batch_size": 13}, "batch_size=13 must be an integer from 1 to 12"),
        ({"rule": "gd", "batch_size": 4}, "not full batch"),
        ({"rule": "sgd", "steps": 0}, "steps=0 must be a positive integer"),
        ({"rule": "sgd", "start": np.zeros(3)}, "start has shape"),
        ({"rule": "sgd", "project": np.zeros(3)}, "project has shape"),
        ({"rule": "adam", "options": {"b7": 1}}, "does not take one of the options b7"),
        ({"rule": "caeo", "delta": 2.0}, "delta"),
        ({"rule": "sgd", "average": 3}, "average=3 must be an integer from 0 to steps=2"),
        ({"rule": "sgd", "average": -1}, "average=-1"),
    ],
)
def test_bad_input_is_refused(task, settings, message):
    with pytest.raises(InvalidInput, match=message):
        record(task, **{"steps": 2, "seed": 0, **settings})


def test_a_start_that_is_not_finite_is_refused(task):
    with pytest.raises(InvalidInput, match="not finite"):
        record(task, "gd", steps=1, seed=0, start=np.full(task.size, np.nan))
