"""A corrected sample of the examples, and single precision: against all examples and samples, and what it costs."""

import dataclasses
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from eos_sde.bridge import central_flow, flow_cost, load_task, stochastic_central_flow
from eos_sde.bridge.averaged_path import averaged
from eos_sde.bridge.covariance import covariance_recursion, curvature_noise, per_example_modes
from eos_sde.bridge.sampled_task import Sampler, all_examples, whole_products, whole_slope
from eos_sde.bridge.spectrum import curvature_gradients, hessian_products, top_modes
from solvers.errors import InvalidInput

MODES, EXAMPLES = 6, 20
SETTINGS = {"batch_size": 4, "eta": 0.1, "steps": 60, "modes": MODES, "save_every": 20}


@pytest.fixture(scope="module")
def modes(small_task, small_start):
    return top_modes(small_task, jnp.asarray(small_start), MODES)[1]


@pytest.fixture
def sampler(small_task):
    return Sampler(small_task, examples=EXAMPLES, precision="double", seed=3)


@pytest.mark.slow
def test_corrected_sample_agrees_with_all_examples(
    small_task, small_start, small_gradient, small_hessian, modes, sampler
):
    """To rounding, where it was corrected; the sample alone is off by more than 1e-3."""
    theta = jnp.asarray(small_start)
    loss, gradient, hessian = small_task.loss(theta), small_gradient(theta), small_hessian(theta)
    sampler.renew(theta, modes)
    corrected, alone = sampler.mean, dataclasses.replace(sampler.mean, correction=None)
    assert alone.n == EXAMPLES
    found = jax.jit(jax.value_and_grad(lambda task, w: task.loss(w), argnums=1))(corrected, theta)
    bent = jax.jit(jax.hessian(lambda task, w: task.loss(w), argnums=1))
    assert_allclose(found[0], loss, rtol=1e-13)
    assert_allclose(found[1], gradient, rtol=0, atol=1e-13)
    assert_allclose(bent(corrected, theta) @ modes, hessian @ modes, rtol=0, atol=1e-11)
    assert abs(float(alone.loss(theta) / loss) - 1) > 1e-3
    off = bent(alone, theta) @ modes - hessian @ modes
    assert np.linalg.norm(off) > 0.01 * np.linalg.norm(hessian @ modes)
    # beside the modes the curvature is the sample's own
    beside = jnp.eye(theta.size) - modes @ modes.T
    left = beside @ (bent(corrected, theta) - bent(alone, theta)) @ beside
    assert_allclose(left, 0, atol=1e-11)
    # some steps on, what is left is of the order of the move
    near = theta + 0.02 * modes[:, 0]
    errors = [
        np.linalg.norm(jax.jit(jax.grad(task.loss))(near) - small_gradient(near))
        for task in (corrected, alone)
    ]
    assert errors[0] < 0.02 * errors[1]


@pytest.mark.slow
def test_whole_in_parts(small_task, small_start, small_gradient, modes):
    """63 examples in parts of 20, the last not full."""
    theta, everything = jnp.asarray(small_start), all_examples(small_task)
    loss, gradient = whole_slope(everything, theta, 20)
    assert_allclose(loss, small_task.loss(theta), rtol=1e-14)
    assert_allclose(gradient, small_gradient(theta), rtol=0, atol=1e-14)
    products = hessian_products(small_task, theta, modes)
    assert_allclose(whole_products(everything, theta, modes, 20), products, rtol=0, atol=1e-13)


def test_samples_follow_a_shuffled_order(small_task):
    """63 // 20 = 3 samples of one order share no example; the next order is another; same seed, same samples."""

    def rows(sampler, number):
        drawn = np.asarray(sampler._drawn(sampler.noise_key, number).x)
        return [int(np.flatnonzero((np.asarray(small_task.x) == x).all(axis=1))[0]) for x in drawn]

    samplers = [Sampler(small_task, examples=EXAMPLES, precision="double", seed=seed) for seed in (3, 3, 4)]
    first, again, other = ([rows(s, i) for i in range(6)] for s in samplers)
    assert first == again
    assert first != other
    for order in (first[:3], first[3:]):
        assert len({row for sample in order for row in sample}) == 60
    assert first[:3] != first[3:]


@pytest.mark.slow
def test_covariances_are_those_of_all_examples_in_the_mean(small_task, small_start, modes):
    """Over all 35 samples of 3 of 7 examples, exactly; without the factor the mean is 2/3 * 7/6 of it."""
    few = dataclasses.replace(small_task, x=small_task.x[:7], y=small_task.y[:7])
    factor = Sampler(few, examples=3, precision="double", seed=0).factor
    gradients, curvatures = jax.jit(per_example_modes)(few, jnp.asarray(small_start), modes[:, :2])

    def seen(rows):
        recursion = covariance_recursion(jnp.ones(2), gradients[rows], curvatures[rows], eta=1.0, p=1.0)
        source = (recursion.basis @ recursion.source).reshape(2, 2)
        return np.asarray(source), np.asarray(curvature_noise(curvatures[rows]))

    whole = seen(np.arange(7))
    found = [seen(np.array(rows)) for rows in combinations(range(7), 3)]
    for i, exact in enumerate(whole):
        mean = np.mean([each[i] for each in found], axis=0)
        assert_allclose(factor * mean, exact, rtol=1e-10, atol=1e-12 * np.abs(exact).max())
        assert_allclose(mean, exact * (2 / 3) * (7 / 6), rtol=1e-10, atol=1e-12 * np.abs(exact).max())


def test_a_new_sample_compiles_nothing(small_task, small_start, modes, sampler):
    theta = jnp.asarray(small_start)
    grown = jnp.eye(MODES) * 1e-4
    losses = []
    for _ in range(2):
        sampler.renewals = 0 if not losses else 10  # the next one
        sampler.renew(theta, modes)
        losses.append(float(averaged(sampler.mean, theta, modes, grown)[1]))
        if len(losses) == 1:
            compiled = averaged._cache_size()
    assert averaged._cache_size() == compiled
    assert losses[0] != losses[1]


@pytest.fixture(scope="module")
def of_all(small_task, small_start):
    return stochastic_central_flow(small_task, small_start, without=["unresolved modes"], **SETTINGS)


@pytest.mark.slow
def test_flows_of_samples_scatter_about_that_of_all(small_task, small_start, of_all):
    """Eight flows of 20 of 63 examples: the mean of each quantity is that of the flow of all.

    Within 5 standard errors of the eight (7 degrees of freedom: false alarm 1.6e-3 each, 5e-3 in all) and the square
    of their relative scatter, the size of what a nonlinear function of noisy means is off by. The scatter itself is
    not nothing, and small: for 20 examples of 63 less than 5 %.
    """
    flows = [
        stochastic_central_flow(
            small_task,
            small_start,
            without=["unresolved modes"],
            examples=EXAMPLES,
            seed=1000 * i,
            **SETTINGS,
        )
        for i in range(8)
    ]
    again = stochastic_central_flow(
        small_task, small_start, without=["unresolved modes"], examples=EXAMPLES, seed=0, **SETTINGS
    )
    assert again.identical(flows[0])
    for name in ("sharpness", "loss", "mean_loss"):
        found = np.array([float(flow[name][-1]) for flow in flows])
        exact, scatter = float(of_all[name][-1]), found.std(ddof=1)
        assert 0 < scatter < 0.05 * exact
        assert abs(found.mean() - exact) < 5 * scatter / 8**0.5 + scatter**2 / exact
    assert flows[0].attrs["examples"] == EXAMPLES
    enough = stochastic_central_flow(
        small_task, small_start, without=["unresolved modes"], examples=64, **SETTINGS
    )
    assert np.array_equal(enough["final_params"], of_all["final_params"])
    assert enough.attrs["examples"] == small_task.n


@pytest.mark.slow
def test_single_precision_agrees_to_its_rounding():
    """A gradient goes through 16 + 3 + 10 terms forward and as many back, a Hessian product twice that: 120 roundings.

    At 2^-24 each and all of one sign, 7e-6 of what is summed; the path of 60 steps adds no more, since it contracts.
    What is summed may be a few times its sum: 3e-5. And it is not double precision: the paths differ by more than 1e-9.
    With 91 weights the first block is that of the whole Hessian: an iteration would magnify the rounding in its last
    modes, which it does not resolve.
    """
    task = load_task("digits-mlp", examples=63, hidden=(3,), pool=2)
    start = np.asarray(task.init(1))
    double, single = (
        stochastic_central_flow(task, start, without=["unresolved modes"], precision=precision, **SETTINGS)
        for precision in ("double", "single")
    )
    moved = np.linalg.norm(double["final_params"] - start)
    apart = np.linalg.norm(single["final_params"] - double["final_params"])
    assert 1e-9 * moved < apart < 3e-5 * moved
    for name in ("sharpness", "loss", "mean_loss", "top_variance", "radius"):
        assert_allclose(single[name], double[name], rtol=3e-5)
    assert single["final_params"].dtype == np.float64


@pytest.mark.parametrize(
    ("rule", "batch"),
    [
        pytest.param("gd", 63, marks=pytest.mark.slow),
        pytest.param("adam", 8, marks=pytest.mark.slow),
        pytest.param("sgdm", 63, marks=pytest.mark.slow),
    ],
)
def test_single_precision_of_other_flows(small_task, small_start, rule, batch):
    settings = {"eta": 0.002 if rule == "adam" else 0.05, "steps": 20, "modes": 4, "save_every": 20}
    flows = [
        stochastic_central_flow(
            small_task, small_start, rule=rule, batch_size=batch, precision=precision, **settings
        )
        for precision in ("double", "single")
    ]
    moved = np.linalg.norm(flows[0]["final_params"] - small_start)
    apart = np.linalg.norm(flows[1]["final_params"] - flows[0]["final_params"])
    # under Adam draws decide a part of the path, and their signs are those of eigenvectors: as apart as two seeds
    assert 0 < apart < (0.05 if rule == "adam" else 3e-5) * moved
    assert flows[1].attrs["precision"] == "single"


def test_outputs_are_single_and_slopes_double(small_task, small_start):
    single = all_examples(small_task, precision="single")
    assert single.x.dtype == jnp.float32
    theta = jnp.asarray(small_start)
    error = np.abs(single.apply(theta) - small_task.apply(theta)).max()
    assert 1e-9 < error < 1e-6
    assert jax.grad(single.loss)(theta).dtype == jnp.float64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"examples": 1}, "examples=1 must be an integer of at least 2"),
        ({"examples": 2.5}, "examples=2.5 must be an integer"),
        ({"precision": "half"}, "precision='half' is not known: choose 'double' or 'single'"),
        ({"examples": 20, "rule": "adam"}, "examples=20 is for plain SGD with batches of fewer than all"),
        ({"examples": 20, "batch_size": 63}, "examples=20 is for plain SGD"),
        ({"precision": "half", "batch_size": 63}, "precision='half' is not known"),
    ],
)
def test_refusals(small_task, small_start, given, message):
    with pytest.raises(InvalidInput, match=message):
        stochastic_central_flow(small_task, small_start, **(SETTINGS | given))
    if "batch_size" in given and "precision" in given:
        with pytest.raises(InvalidInput, match=message):
            central_flow(small_task, small_start, steps=10, precision="half")


# ---- what it costs


@pytest.fixture(scope="module")
def wide():
    """Wide enough that products of matrices are all the work: three layers of like size and a narrow one."""
    return load_task("digits-mlp", examples=64, test_examples=10, hidden=(64, 64, 64))


def operations(function, *given):
    return jax.jit(function).lower(*given).compile().cost_analysis()["flops"]


@pytest.mark.slow
def test_costs_are_those_that_the_compiler_counts(wide):
    """In gradients, within 25 %: the first layer has no gradient in its inputs, the last is narrow."""
    theta = wide.init(0)
    k = 4
    block = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (wide.size, k)))[0]
    one = operations(jax.grad(wide.loss), theta)
    counted = {
        "settled": (
            flow_cost.settled(k),
            operations(lambda w, u: hessian_products(wide, w, u), theta, block),
        ),
        "noise": (flow_cost.noise(k), operations(lambda w, u: per_example_modes(wide, w, u), theta, block)),
        "averaged": (
            flow_cost.averaged(k),
            operations(lambda w, u: averaged(wide, w, u, jnp.eye(k)), theta, block),
        ),
        "turning": (
            k * (k + 1) / 2 * flow_cost.TURNING,
            operations(lambda w, u: curvature_gradients(wide, w, u), theta, block),
        ),
    }
    for name, (expected, found) in counted.items():
        assert abs(found / one / expected - 1) < 0.25, (name, expected, found / one)


@pytest.mark.slow
def test_gradients_per_step_are_reported(small_task, small_start, of_all):
    """By hand: 60 steps in strides of 5, thirteen settled points, twelve moves, rows at 0, 20, 40 and 60."""
    k, n = MODES, small_task.n
    read = flow_cost.noise(k) + flow_cost.reading(k, small_task.size, 4)
    whole = 13 * (flow_cost.settled(k) + flow_cost.noise(k)) + 16 * flow_cost.averaged(k) + 3 * read
    assert_allclose(of_all.attrs["gradients_per_step"], n * whole / 60, rtol=1e-12)
    sampled = stochastic_central_flow(
        small_task, small_start, without=["unresolved modes"], examples=EXAMPLES, **SETTINGS
    )
    corrected = 2 * (n + EXAMPLES) * (1 + 2 * k) + 13 * (n + EXAMPLES)
    assert_allclose(sampled.attrs["gradients_per_step"], (EXAMPLES * whole + corrected) / 60, rtol=1e-12)
