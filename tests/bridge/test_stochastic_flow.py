"""The stochastic central flow and the covariance it carries: enumeration of batches, simulation, orders, limits."""

from itertools import combinations
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from eos_sde.bridge import caeo_flow, load_task, record, stochastic_central_flow
from eos_sde.bridge.averaged_path import averaged
from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.covariance import covariance_recursion, per_example_modes, stationary_covariance
from eos_sde.bridge.spectrum import hessian_products, top_modes
from eos_sde.thresholds.mean_square import mean_square_growth
from solvers.errors import InvalidInput

MODES = 6


class Quadratic:
    """n examples with Gauss-Newton curvature J_i' J_i and gradients of mean zero, in the Hessian's eigenbasis."""

    def __init__(self, n=6, d=3, seed=0):
        rng = np.random.default_rng(seed)
        jacobian = rng.standard_normal((n, 2, d)) * [1.5, 1.0, 0.4][:d]
        hessian = np.einsum("nci,ncj->ij", jacobian, jacobian) / n
        self.values, basis = np.linalg.eigh(hessian)
        self.jacobian = jacobian @ basis
        self.curvatures = np.einsum("nci,ncj->nij", self.jacobian, self.jacobian)
        gradients = rng.standard_normal((n, d))
        self.gradients = gradients - gradients.mean(axis=0)
        self.n, self.d = n, d

    def recursion(self, eta, batch):
        p = (self.n - batch) / (batch * (self.n - 1))
        return covariance_recursion(
            jnp.asarray(self.values), jnp.asarray(self.gradients), jnp.asarray(self.curvatures), eta=eta, p=p
        )

    def enumerated(self, eta, batch):
        """The affine map of vec Sigma from the average over all batches: (matrix, vector)."""
        d = self.d
        matrix, vector = np.zeros((d * d, d * d)), np.zeros(d * d)
        for rows in combinations(range(self.n), batch):
            step = np.eye(d) - eta * self.curvatures[list(rows)].mean(axis=0)
            kick = eta * self.gradients[list(rows)].mean(axis=0)
            matrix += np.kron(step, step)
            vector += np.kron(kick, kick)
        count = comb(self.n, batch)
        return matrix / count, vector / count


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("eta", [0.05, 0.3])
def test_recursion_is_the_average_over_all_batches(eta, batch):
    problem = Quadratic()
    recursion = problem.recursion(eta, batch)
    matrix, vector = problem.enumerated(eta, batch)
    start = np.cov(np.random.default_rng(1).standard_normal((3, 9)))
    by_steps = start.ravel()
    for steps in range(1, 8):
        by_steps = matrix @ by_steps + vector
        assert_allclose(
            np.ravel(recursion.after(jnp.asarray(start), steps)), by_steps, rtol=1e-11, atol=1e-12
        )
    radius = np.max(np.abs(np.linalg.eigvals(matrix)))
    # the antisymmetric part of the Kronecker matrix decays faster: the leading matrix is semi-definite
    assert_allclose(float(recursion.radius), radius, rtol=1e-11)
    growth = mean_square_growth(problem.jacobian, eta, batch_size=batch)
    assert_allclose(float(recursion.radius), growth, rtol=1e-7)  # its own Lanczos tolerance
    if radius < 1:
        fixed = np.linalg.solve(np.eye(9) - matrix, vector)
        assert_allclose(np.ravel(stationary_covariance(recursion)), fixed, rtol=1e-9, atol=1e-12)
        late = recursion.after(jnp.zeros((3, 3)), 20_000)
        assert_allclose(np.ravel(late), fixed, rtol=1e-9, atol=1e-12)


def test_full_batches_leave_no_fluctuation():
    problem = Quadratic()
    recursion = problem.recursion(0.1, problem.n)
    assert_allclose(stationary_covariance(recursion), 0.0, atol=1e-16)
    assert_allclose(float(recursion.radius), (1 - 0.1 * problem.values[0]) ** 2, rtol=1e-12)


def test_a_flat_mode_diffuses():
    """Where a rate is 1 the covariance grows linearly: the series' removable singularity."""
    zero = jnp.zeros((4, 1, 1))
    gradients = jnp.asarray([[1.0], [-1.0], [2.0], [-2.0]])
    recursion = covariance_recursion(jnp.zeros(1), gradients, zero, eta=0.1, p=0.5)
    assert_allclose(float(recursion.after(jnp.zeros((1, 1)), 40)[0, 0]), 40 * 0.1**2 * 0.5 * 2.5, rtol=1e-12)


def test_covariance_of_simulated_sgd():
    """4000 runs of SGD on the quadratic, batches of 2 of 6, curvature noise and all.

    Each of 3 variances within 4 standard errors of a sample of independent runs, false alarm 2e-4 in all (their
    kurtosis is taken from the sample). Negative control: batches with replacement, p = 1/B, are rejected.
    """
    problem, eta, batch, runs = Quadratic(), 0.25, 2, 4000
    words, state = stream(11), np.zeros((runs, 3))
    for _ in range(400):
        rows = draw_batches(words, runs, examples=problem.n, batch_size=batch)
        slopes = problem.gradients[rows].mean(axis=1)
        bends = problem.curvatures[rows].mean(axis=1)
        state = state - eta * (slopes + np.einsum("rij,rj->ri", bends, state))
    recursion = problem.recursion(eta, batch)
    assert float(recursion.radius) ** 400 < 1e-5  # stationary
    expected = np.diag(stationary_covariance(recursion))
    squares = state**2
    error = squares.std(axis=0) / np.sqrt(runs)
    assert np.all(np.abs(squares.mean(axis=0) - expected) < 4 * error)
    careless = covariance_recursion(
        jnp.asarray(problem.values),
        jnp.asarray(problem.gradients),
        jnp.asarray(problem.curvatures),
        eta=eta,
        p=1 / batch,
    )
    wrong = np.diag(stationary_covariance(careless))
    assert np.any(np.abs(squares.mean(axis=0) - wrong) > 4 * error)


# ---- on a network


@pytest.fixture(scope="module")
def task(small_task):
    return small_task


@pytest.fixture(scope="module")
def gradient(small_gradient):
    return small_gradient


@pytest.fixture(scope="module")
def start(small_start):
    return small_start


@pytest.fixture(scope="module")
def modes(task, start):
    return top_modes(task, jnp.asarray(start), MODES)[1]


@pytest.mark.parametrize("loss", ["half-squared-error", "cross-entropy"])
def test_gradients_and_gauss_newton_of_each_example(task, start, modes, loss):
    if loss != task.loss_name:
        task = load_task("digits-mlp", examples=63, hidden=(4,), pool=2, loss=loss)
    gradients, curvatures = jax.jit(per_example_modes, static_argnums=0)(task, jnp.asarray(start), modes)
    one = jax.jit(jax.vmap(jax.grad(lambda w, x, y: task.loss(w, x[None], y[None])), (None, 0, 0)))
    assert_allclose(gradients, one(start, task.x, task.y) @ modes, rtol=0, atol=1e-13)
    jacobian = jax.jit(jax.jacrev(lambda w: task.apply(w)))(jnp.asarray(start)) @ modes
    outputs = task.apply(jnp.asarray(start))
    if loss == "half-squared-error":
        bend = np.broadcast_to(np.eye(10), (63, 10, 10))
    else:
        q = np.asarray(jax.nn.softmax(outputs))
        bend = np.einsum("nc,cd->ncd", q, np.eye(10)) - q[:, :, None] * q[:, None, :]
    expected = np.einsum("nci,ncd,ndj->nij", jacobian, bend, jacobian)
    assert_allclose(curvatures, expected, rtol=0, atol=1e-12)


def test_averaged_gradient_is_half_the_gradient_of_the_trace(task, gradient, start, modes):
    """E grad L(w + delta) - grad L = (1/2) grad <Sigma, H> + O(Sigma^2): the remainder falls in proportion."""
    draw = np.random.default_rng(0).standard_normal((MODES, MODES))
    shape = jnp.asarray(draw @ draw.T)

    @jax.jit
    @jax.value_and_grad
    def half_trace(w):
        return 0.5 * jnp.trace(modes.T @ hessian_products(task, w, modes) @ shape)

    level, expected = (np.asarray(v) for v in half_trace(jnp.asarray(start)))
    errors = []
    for size in (1e-3, 1e-4):
        loss, mean_loss, mean = averaged(task, jnp.asarray(start), modes, size * shape)
        extra = (np.asarray(mean) - np.asarray(gradient(start))) / size
        errors.append((
            np.linalg.norm(extra - expected) / np.linalg.norm(expected),
            abs(float(mean_loss - loss) / size / level - 1),
        ))  # fmt: skip
    coarse, fine = np.array(errors)
    assert np.all(fine < 5e-3)
    assert np.all(np.abs(coarse / fine - 10) < 1)  # first order in Sigma


@pytest.mark.slow
def test_without_noise_the_flow_is_gradient_descent(task, gradient, start):
    """Batches of n - 1: the flow differs from descent by its own step and the rule's, both first order in eta."""
    distances, moved = [], 0.0
    for eta, steps in ((0.04, 100), (0.02, 200)):
        flow = stochastic_central_flow(
            task, start, batch_size=62, eta=eta, steps=steps, modes=MODES, save_every=50
        )
        theta = jnp.asarray(start)
        for _ in range(steps):
            theta = theta - eta * gradient(theta)
        distances.append(np.linalg.norm(flow["final_params"] - theta))
        moved = np.linalg.norm(theta - start)
        assert flow.attrs["stopped"] == ""
        assert_allclose(flow["loss"][-1], task.loss(theta), rtol=2e-4)
        assert np.all(flow["mean_loss"] >= flow["loss"] - 1e-14)
    assert distances[0] < 0.01 * moved
    assert abs(distances[0] / distances[1] - 2) < 0.2


@pytest.mark.slow
def test_flow_is_repeatable_and_described(task, start):
    seen = []
    settings = {"batch_size": 4, "eta": 0.1, "steps": 42, "modes": MODES, "save_every": 10}
    first, second = (
        stochastic_central_flow(task, start, **settings, seed=s, progress=seen.append) for s in (3, 3)
    )
    assert first.identical(second)
    assert seen == [0, 10, 20, 30, 40] * 2
    assert first["step"].values.tolist() == [0, 10, 20, 30, 40]
    assert float(first["top_variance"][0]) == 0.0  # a checkpoint is one point
    assert np.all(first["top_variance"][1:] > 0)
    assert all(v.attrs["units"] and v.attrs["long_name"] for v in first.variables.values())
    other = stochastic_central_flow(task, start, **settings, seed=4)
    moved = np.linalg.norm(first["final_params"] - start)
    apart = np.linalg.norm(other["final_params"] - first["final_params"])
    assert 0 < apart < 0.05 * moved  # by the draws outside the carried modes alone:
    alone = [
        stochastic_central_flow(task, start, **settings, seed=s, without=["unresolved modes"]) for s in (3, 4)
    ]
    assert np.array_equal(alone[0]["final_params"], alone[1]["final_params"])
    assert not np.array_equal(other["iterate_sharpness"], first["iterate_sharpness"])


@pytest.mark.slow
def test_noise_lowers_the_path_and_raises_the_loss(task, start):
    """Smaller batches: larger fluctuation, larger mean loss, flatter averaged weights."""
    small, large = (
        stochastic_central_flow(task, start, batch_size=b, eta=0.1, steps=200, modes=MODES) for b in (2, 16)
    )
    assert float(small["top_variance"][-1]) > 5 * float(large["top_variance"][-1])
    assert float(small["mean_loss"][-1] - small["loss"][-1]) > float(
        large["mean_loss"][-1] - large["loss"][-1]
    )
    assert float(small["sharpness"][-1]) < float(large["sharpness"][-1])


@pytest.mark.slow
def test_mean_loss_of_replicas_and_what_each_ingredient_is_worth(task, start):
    """600 runs of SGD beside the flow of 4 modes, and flows that leave something out.

    The excess of the mean loss over that of the averaged weights is a quarter of it, the flow of second order in the
    fluctuation: it may miss as much as the square, 6 %, beside three standard errors of the runs.
    """
    settings = {"batch_size": 4, "eta": 0.12, "steps": 120}
    runs = record(task, "sgd", seed=5, start=start, every=20, replicas=600, curvature=False, **settings)
    runs = runs.isel(step=runs.step >= 60)
    middle = runs["final_params"].mean("replica").values
    spread = float(np.mean((runs["final_params"].values - middle) ** 2) / 600) ** 0.5 * task.size**0.5
    measured_loss = runs["loss"].mean("replica").values
    error = (runs["loss"].std("replica") / 600**0.5).values

    def forecast(*without):
        flow = stochastic_central_flow(task, start, modes=4, save_every=20, without=without, **settings)
        flow = flow.isel(step=flow.step >= 60)
        excess = (flow["mean_loss"] - flow["loss"]).values
        off = (flow["mean_loss"].values - measured_loss) / excess
        return np.abs(off).max(), np.linalg.norm(flow["final_params"].values - middle), excess

    off, distance, excess = forecast()
    moved = np.linalg.norm(middle - start)
    assert off < 0.06 + 3 * (error / excess).max()
    assert distance < 4 * spread + 0.01 * moved
    assert forecast("unresolved modes")[0] > 0.3
    assert forecast("feedback")[1] > 0.1 * moved


@pytest.mark.slow
def test_curvature_noise_weakens_stability(task, start):
    settings = {"batch_size": 4, "eta": 0.2, "steps": 5, "modes": 4, "save_every": 5}
    whole = stochastic_central_flow(task, start, **settings)
    bare = stochastic_central_flow(task, start, without=["curvature noise"], **settings)
    contraction = np.max((1 - 0.2 * np.asarray(top_modes(task, jnp.asarray(start), 4)[0])) ** 2)
    assert_allclose(bare["radius"][0], contraction, rtol=1e-6)
    assert np.all(whole["radius"] > bare["radius"] + 1e-3)


@pytest.mark.slow
def test_flow_says_where_it_ceases_to_apply(task):
    flow = stochastic_central_flow(
        task, task.init(0), batch_size=1, eta=0.8, steps=400, modes=MODES, save_every=10
    )
    reason = flow.attrs["stopped"]
    assert reason.startswith("step ")
    assert "the fluctuations outgrow the quadratic model" in reason
    assert "\n" not in reason
    assert float(flow["radius"].max()) > 1
    assert np.all(np.isfinite(flow["mean_loss"]))
    assert int(flow["step"][-1]) < 400


def test_capped_flow_keeps_its_margin(task, start):
    flow = caeo_flow(task, start, eta=1.0, delta=0.3, steps=60, modes=MODES, stride=5)
    allowed = np.minimum(1.0, 1.7 / flow["sharpness"])
    assert_allclose(flow["learning_rate"], allowed, rtol=1e-12)
    assert float(flow["learning_rate"].min()) < 1.0  # the cap binds
    assert flow["step"].values.tolist() == list(range(0, 61, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 64}, "batch_size=64 must be from 1 to 63, the number of examples"),
        ({"batch_size": 0}, "batch_size=0 must be from 1 to 63"),
        ({"eta": 0.0}, "eta=0.0 must be a positive learning rate"),
        ({"eta": np.nan}, "eta=nan must be a positive learning rate"),
        ({"steps": 0}, "steps=0 and stride=5 must be positive"),
        ({"save_every": 7}, "save_every=7 a multiple of stride"),
        (
            {"without": ["drift"]},
            "without names 'drift': give a collection of 'unresolved modes', 'curvature noise'",
        ),
        ({"without": "feedback"}, "without names 'feedback': give a collection"),
        ({"without": ["feedback"], "rule": "adam"}, "for rule='adam' give only 'unresolved modes'"),
        (
            {"without": ["feedback"], "batch_size": 63},
            "is for batches of fewer than all examples: leave it out",
        ),
        ({"modes": 30}, "k=30 modes of 118 weights; choose from 1 to 23"),
        ({"start": np.zeros(3)}, r"start must be 118 finite weights of digits-mlp, got shape \(3,\)"),
        ({"start": np.full(118, np.nan)}, "start must be 118 finite weights"),
    ],
)
def test_refusals(task, start, change, message):
    given = {"start": start, "batch_size": 4, "eta": 0.1, "steps": 10, "modes": MODES} | change
    with pytest.raises(InvalidInput, match=message):
        stochastic_central_flow(task, given.pop("start"), **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 0.0}, "delta=0.0 must lie between 0 and 2"),
        ({"delta": 2.0}, "delta=2.0 must lie between 0 and 2"),
        ({"steps": 7}, "steps=7 must be a positive multiple of stride=5"),
        ({"eta": -1.0}, "eta=-1.0 must be a positive learning rate"),
        ({"start": np.zeros(3)}, "start must be 118 finite weights"),
    ],
)
def test_capped_flow_refuses(task, start, change, message):
    given = {"start": start, "eta": 0.1, "delta": 0.1, "steps": 10, "modes": MODES} | change
    with pytest.raises(InvalidInput, match=message):
        caeo_flow(task, given.pop("start"), **given)
