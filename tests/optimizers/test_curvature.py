"""Curvature estimators against dense spectra: accuracy, bounds, sign, warm starts, dtypes, bookkeeping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from eos_sde.optimizers import curvature, rule
from solvers.errors import InvalidInput

# the estimators that find the largest eigenvalue, with settings that let them converge on d = 40
FINDERS = {"lanczos": curvature.lanczos(order=10, tol=1e-4), "power": curvature.power(iterations=400)}


def run(estimator, loss_or_matrix, params, *, updates=1):
    """Return (estimate, error bound, state) after some updates at one point."""

    def product(params):
        if callable(loss_or_matrix):
            return curvature.hessian_product(loss_or_matrix, params)
        return lambda v: (loss_or_matrix @ v).astype(v.dtype)

    @jax.jit
    def update(params, state):
        return estimator.update(product(params), params, state)

    state = estimator.init(params, jax.random.key(0))
    for _ in range(updates):
        value, bound, state = update(params, state)
    return value, bound, state


@pytest.mark.parametrize("name", FINDERS)
def test_finds_the_top_of_a_network_within_its_own_bound(name, mlp):
    value, bound, state = run(FINDERS[name], mlp.loss, mlp.params)
    assert abs(float(value) - mlp.spectrum[-1]) <= float(bound)
    assert float(bound) <= 1e-3 * mlp.spectrum[-1]
    assert float(value) <= mlp.spectrum[-1] * (1 + 1e-12)  # Rayleigh-Ritz is from below
    assert value.dtype == bound.dtype == jnp.float64
    assert jax.tree.structure(state.vector) == jax.tree.structure(mlp.params)


@pytest.mark.slow
@pytest.mark.parametrize("name", FINDERS)
def test_single_precision_stays_within_its_bound(name, mlp):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mlp.params)
    value, bound, state = run(FINDERS[name], mlp.loss, params)
    assert value.dtype == bound.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.vector))
    # the parameters themselves moved by a rounding: 1e-7 relative, far inside the bound
    assert abs(float(value) - mlp.spectrum[-1]) <= float(bound) + 1e-6 * mlp.spectrum[-1]


def test_half_precision_parameters_keep_a_single_precision_estimate(mlp):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mlp.params)
    value, bound, state = run(curvature.lanczos(), mlp.loss, params)
    assert value.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.vector))
    # bfloat16 rounds at 2^-8 = 0.4 %; a handful of roundings per product
    assert abs(float(value) - mlp.spectrum[-1]) <= 0.05 * mlp.spectrum[-1]
    assert float(bound) >= 0.004 * float(value)


@pytest.mark.slow
def test_strong_negative_curvature_is_not_sharpness(rotated):
    matrix = rotated([-50.0, 3.0, *np.linspace(-1.0, 2.0, 38)])
    for name, estimator in FINDERS.items():
        value, bound, _ = run(estimator, matrix, jnp.zeros(40))
        assert abs(float(value) - 3.0) <= max(float(bound), 1e-9), name
        assert float(bound) < 0.1, name
    value, _, _ = run(curvature.random_rayleigh(samples=64), matrix, jnp.zeros(40))
    assert float(value) <= 3.0
    # control: without the shift, power iteration takes the negative end for the top
    vector = np.ones(40)
    for _ in range(400):
        vector = matrix @ vector
        vector /= np.linalg.norm(vector)
    assert vector @ matrix @ vector == pytest.approx(-50.0, rel=1e-6)


def test_short_warm_updates_are_not_throttled_by_negative_curvature_either(rotated):
    matrix = rotated([-50.0, 3.0, *np.linspace(-1.0, 2.0, 38)])
    for name, estimator in {"lanczos": curvature.lanczos(), "power": curvature.power()}.items():
        value, _, _ = run(estimator, matrix, jnp.zeros(40), updates=60)
        assert float(value) == pytest.approx(3.0, rel=0.05), name


@pytest.mark.parametrize("name", [*FINDERS, "random_rayleigh"])
def test_negative_definite_curvature_does_not_throttle(name, rotated):
    estimator = FINDERS.get(name, curvature.random_rayleigh())
    value, bound, _ = run(estimator, rotated(np.linspace(-50.0, -2.0, 20)), jnp.zeros(20))
    assert float(value) < 0
    assert rule.learning_rate(0.7, float(value), 0.1) == 0.7
    if name != "random_rayleigh":
        assert abs(float(value) + 2.0) <= float(bound)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", ["lanczos", "power"])
def test_invariant_spaces_and_tiny_operators(name, dtype):
    """Krylov spaces that end at once, zero operators, more steps than parameters, entries of 1e-8."""
    estimator = {"lanczos": curvature.lanczos(order=8), "power": curvature.power(iterations=400)}[name]
    spectra = [
        [2.0] * 5,
        [0.0] * 5,
        [-2.0] * 5,
        [7.0, 0, 0, 0, 0],
        [3.0, -3.0, 0, 0, 0],
        [1e-8, 0, 0, 2e-8, 0],
    ]
    spectra = jnp.asarray(spectra, dtype)

    @jax.jit
    @jax.vmap
    def thrice(diagonal):
        state = estimator.init(diagonal, jax.random.key(0))
        for _ in range(3):
            value, bound, state = estimator.update(lambda v: diagonal * v, diagonal, state)
        return value, bound, jnp.linalg.norm(state.vector)

    values, bounds, lengths = thrice(spectra)
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-9
    np.testing.assert_allclose(values, spectra.max(axis=1), rtol=tolerance, atol=1e-30)
    assert np.isfinite(bounds).all()
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["lanczos", "power"])
def test_one_parameter(name):
    value, bound, _ = run(curvature.ESTIMATORS[name](), lambda x: 2.0 * x**2, jnp.asarray(1.0))
    assert float(value) == pytest.approx(4.0, rel=1e-14)
    assert float(bound) < 1e-13


def test_nan_curvature_is_reported_as_nan():
    for estimator in (curvature.lanczos(order=2), curvature.power(iterations=2)):
        value, _, _ = run(estimator, jnp.full((9, 9), jnp.nan), jnp.zeros(9))
        assert np.isnan(value)


def test_warm_start_reduces_the_error(rotated):
    """On a Hessian that turns slowly, at three products an update, over 20 random cold starts."""
    estimator = curvature.lanczos(order=3, restarts=0)
    generator = np.random.default_rng(5).standard_normal((60, 60))
    turn = jax.scipy.linalg.expm(jnp.asarray(0.002 * (generator - generator.T)))
    start = rotated([10.0, 8.0, *np.linspace(-2.0, 6.0, 58)], seed=1)

    def follow(key):
        def step(carry, _):
            matrix, state = carry
            value, _, state = estimator.update(lambda v: matrix @ v, jnp.zeros(60), state)
            return (turn @ matrix @ turn.T, state), 10.0 - value

        return jax.lax.scan(step, (start, estimator.init(jnp.zeros(60), key)), length=15)[1]

    errors = np.asarray(jax.jit(jax.vmap(follow))(jax.random.split(jax.random.key(0), 20)))
    assert errors.min() > -1e-12
    cold, warm = errors[:, 0].mean(), errors[:, 10:].mean()
    assert cold > 1.0  # measured: 4.0 cold, 0.02 warm
    assert warm < cold / 50


def test_a_warm_start_sees_an_eigenvalue_that_overtakes_it_uncoupled():
    """The old eigenvector stays exactly one, in a subspace that the product never leaves."""
    estimator = curvature.lanczos()
    state = estimator.init(jnp.zeros(50), jax.random.key(0))
    update = jax.jit(lambda diagonal, state: estimator.update(lambda v: diagonal * v, diagonal, state))
    diagonal = jnp.ones(50).at[0].set(5.0)
    for _ in range(5):
        value, _, state = update(diagonal, state)
    assert float(value) == pytest.approx(5.0, rel=1e-4)
    value, _, state = update(diagonal.at[7].set(8.0), state)
    assert float(value) == pytest.approx(8.0, rel=1e-3)


def test_random_rayleigh_follows_the_beta_law_and_is_poor():
    """Spike 1000 on a floor of 1 in d = 1000: v'Hv = 1 + 999 v_1^2, v_1^2 ~ Beta(1/2, 999/2).

    The largest of n = 8 has distribution function F^8. Kolmogorov-Smirnov on 300 seeds, false-alarm rate
    1e-3; the control, the law for d = 500, must be rejected at 1e-3.
    """
    d, samples, spike = 1000, 8, 1000.0
    diagonal = jnp.ones(d).at[0].set(spike)
    estimator = curvature.random_rayleigh(samples=samples)

    def once(key):
        return estimator.update(lambda v: diagonal * v, diagonal, estimator.init(diagonal, key))[0]

    values = np.asarray(jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(7), 300)))
    squares = (values - 1.0) / (spike - 1.0)
    law = stats.beta(0.5, (d - 1) / 2)
    assert stats.kstest(squares, lambda q: law.cdf(q) ** samples).pvalue > 1e-3
    wrong = stats.beta(0.5, (d // 2 - 1) / 2)
    assert stats.kstest(squares, lambda q: wrong.cdf(q) ** samples).pvalue < 1e-3
    # How poor: with probability 0.999 an update sees less than 1.6 % of the top eigenvalue, so that a rate of
    # 2 / estimate is more than 60 times beyond the edge.
    ceiling = 1.0 + (spike - 1.0) * law.ppf(0.999 ** (1 / samples))
    assert ceiling < 0.016 * spike
    # over 300 updates at most 5 exceed it (binomial tail 2e-5 at rate 1e-3)
    assert np.sum(values > ceiling) <= 5
    trace_over_d = 2.0 - 1.0 / d
    assert trace_over_d < np.median(values) < 8 * trace_over_d


@pytest.mark.parametrize("spectrum", [[7.0] + [0.0] * 19, np.linspace(0, 5, 20), [-50.0, 3.0] + [0.5] * 18])
def test_hutchinson_interval_holds_the_top(spectrum):
    """Random signs are exact for a diagonal matrix: the Wolkowicz-Styan interval without sampling error."""
    value, bound, state = run(curvature.hutchinson(), jnp.diag(jnp.asarray(spectrum)), jnp.zeros(20))
    top, trace = max(spectrum), sum(spectrum)
    assert float(value - bound) - 1e-9 <= top <= float(value) + 1e-9
    if min(spectrum) >= 0:
        assert float(value) <= trace + 1e-9
    if trace == 7.0:
        assert float(value) == pytest.approx(7.0)
    assert int(state.products) == 8


def test_hutchinson_sampling_error_covers(rotated):
    """On a rotated matrix its moments are sampled: with 256 signs the interval must still hold the top."""
    spectrum = np.linspace(-1.0, 5.0, 30)
    value, bound, _ = run(curvature.hutchinson(samples=256), rotated(spectrum), jnp.zeros(30))
    exact = spectrum.mean() + spectrum.std() * np.sqrt(29)
    assert float(value) == pytest.approx(exact, rel=0.1)
    assert float(value - bound) <= 5.0 <= float(value)


def test_hutchinson_trace_and_its_error(rotated):
    """200 estimates from 32 samples each: unbiased, and of the variance that the entries off the diagonal give."""
    matrix = rotated(np.linspace(-1.0, 5.0, 30))
    off = np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)

    @jax.jit
    @jax.vmap
    def estimate(key):
        return curvature.hutchinson_trace(lambda v: matrix @ v, jnp.zeros(30), key, samples=32)

    traces, errors = map(np.asarray, estimate(jax.random.split(jax.random.key(2), 200)))
    deviation = np.sqrt(2 * off / 32)
    assert abs(traces.mean() - 60.0) < 4 * deviation / np.sqrt(200)  # false alarm 6e-5
    # a variance from 200 values has an error of 10 %: 4 of them; the mean of as many errors squared is known better
    assert traces.var(ddof=1) == pytest.approx(deviation**2, rel=0.4)
    assert np.mean(errors**2) == pytest.approx(deviation**2, rel=0.4)


@pytest.mark.parametrize("name", curvature.ESTIMATORS)
def test_products_are_counted_as_they_are_made(name, rotated):
    estimator = curvature.ESTIMATORS[name]()
    matrix = rotated(np.linspace(0.0, 1.0, 12))
    calls = []

    def product(v):
        jax.debug.callback(lambda _: calls.append(1), v)  # once per vector, under vmap too
        return matrix @ v

    params = jnp.zeros(12)
    state = estimator.init(params, jax.random.key(0))
    assert int(state.products) == 0
    _, _, state = jax.jit(lambda state: estimator.update(product, params, state))(state)
    jax.effects_barrier()
    assert int(state.products) == len(calls) > 0
    assert curvature.PRODUCT_COST * int(state.products) <= estimator.cost(params)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lanczos", "power", "random_rayleigh", "hutchinson"])
def test_pure_scannable_vmappable_deterministic(name, rotated):
    estimator = curvature.ESTIMATORS[name]()
    matrices = jnp.stack([rotated(np.linspace(-1.0, top, 10), seed=top) for top in (1, 2, 3)])
    params = {"a": jnp.zeros((2, 3)), "b": [jnp.zeros(4)]}

    def product(matrix):
        def apply(v):
            image = matrix @ jnp.concatenate([v["a"].ravel(), v["b"][0]])
            return {"a": image[:6].reshape(2, 3), "b": [image[6:]]}

        return apply

    def step(state, matrix):
        value, bound, state = estimator.update(product(matrix), params, state)
        return state, (value, bound)

    state = first = estimator.init(params, jax.random.PRNGKey(4))
    compiled = jax.jit(step)
    loop = []
    for matrix in matrices:
        previous, (state, result) = state, compiled(state, matrix)
        loop.append(result)
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, previous)
        assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, previous)
    scan = jax.jit(lambda state: jax.lax.scan(step, state, matrices))
    final, scanned = scan(first)
    np.testing.assert_allclose(np.asarray(loop).T, np.asarray(scanned), rtol=1e-9, atol=1e-11)
    again, repeated = scan(first)
    np.testing.assert_array_equal(np.asarray(repeated), np.asarray(scanned))
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, again, final)))
    _, batched = jax.jit(jax.vmap(step, in_axes=(None, 0)))(first, matrices)
    single = [compiled(first, matrix)[1] for matrix in matrices]
    np.testing.assert_allclose(np.asarray(batched).T, np.asarray(single), rtol=1e-9, atol=1e-11)


def test_hessian_product_matches_the_dense_hessian(mlp):
    flat, unravel = jax.flatten_util.ravel_pytree(mlp.params)
    dense = jax.jit(jax.hessian(lambda f: mlp.loss(unravel(f))))(flat)
    product = curvature.hessian_product(mlp.loss, mlp.params)
    column = jax.jit(jax.vmap(lambda e: jax.flatten_util.ravel_pytree(product(unravel(e)))[0]))
    columns = column(jnp.eye(flat.size))
    np.testing.assert_allclose(columns, dense, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: curvature.lanczos(order=0), "order must be a positive whole number, got 0"),
        (lambda: curvature.lanczos(order=2.5), "order must be a positive whole number, got 2.5"),
        (lambda: curvature.lanczos(tol=0.0), "tol must lie between 0 and 1"),
        (lambda: curvature.lanczos(restarts=-1), "restarts must be a whole number"),
        (lambda: curvature.lanczos(mix=1.5), "mix must lie between 0 and 1"),
        (lambda: curvature.power(iterations=0), "iterations must be a positive whole number"),
        (lambda: curvature.power(shift_order=True), "shift_order must be a positive whole number"),
        (lambda: curvature.random_rayleigh(samples=-3), "samples must be a positive whole number"),
        (lambda: curvature.hutchinson(samples=0), "samples must be a positive whole number"),
        (
            lambda: curvature.lanczos().init({"w": jnp.zeros(2, complex)}, jax.random.key(0)),
            "params['w'] has dtype complex128",
        ),
        (lambda: curvature.power().init([jnp.zeros(2, int)], jax.random.key(0)), "params[0] has dtype int"),
        (lambda: run(curvature.lanczos(), lambda p: 0.0, {}), "params holds no numbers"),
    ],
)
def test_refuses_with_one_sentence(make, words):
    with pytest.raises(InvalidInput) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
