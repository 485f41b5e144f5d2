"""CAEO as an optax transformation: exact rates, refusals, purity, dtypes, and life inside other wrappers.

The curvature is measured at every update, unless said otherwise; `test_refresh` is about the default.
"""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eos_sde.optimizers import CaeoState, curvature, scale_by_caeo, transformation
from eos_sde.optimizers.curvature import krylov, sampling
from solvers.errors import InvalidInput

caeo = functools.partial(transformation.caeo, refresh=1)

CURVATURES = jnp.array([0.5, 2.0, 10.0])


def quadratic(params):
    return 0.5 * jnp.sum(CURVATURES.astype(params.dtype) * params**2)


def make_step(optimizer, loss):
    """Return one compiled step ``(params, state, **batch) -> (params, state)``."""

    @jax.jit
    def step(params, state, **batch):
        grads = jax.grad(loss)(params, **batch)
        updates, state = optimizer.update(grads, state, params, value_fn=loss, **batch)
        return optax.apply_updates(params, updates), state

    return step


def train(optimizer, params, steps, loss=quadratic):
    """Return params and state after some steps, and the states on the way."""
    step, state, states = make_step(optimizer, loss), optimizer.init(params), []
    for _ in range(steps):
        params, state = step(params, state)
        states.append(state)
    return params, state, states


@pytest.mark.parametrize("delta", [0.5, 0.1, 0.0])
def test_is_gradient_descent_at_the_capped_rate(delta):
    start = jnp.array([1.0, -2.0, 0.7])
    params, state, _ = train(caeo(0.5, delta=delta), start, 12)
    rate = (2 - delta) / 10.0
    assert float(state.sharpness) == pytest.approx(10.0, rel=1e-12)
    assert float(state.learning_rate) == pytest.approx(rate, rel=1e-12)
    assert bool(state.capped)
    assert int(state.count) == 12
    assert float(state.residual) < 1e-10
    np.testing.assert_allclose(params, start * (1 - rate * CURVATURES) ** 12, rtol=1e-10)


def test_base_rate_where_it_is_stable():
    params, state, _ = train(caeo(0.15), jnp.ones(3), 5)
    assert float(state.learning_rate) == 0.15
    assert not state.capped
    np.testing.assert_allclose(params, (1 - 0.15 * CURVATURES) ** 5, rtol=1e-13)


def test_converges_where_gradient_descent_at_the_base_rate_diverges():
    params, _, _ = train(caeo(0.5, delta=0.1), jnp.ones(3), 200)
    assert float(quadratic(params)) < 1e-8
    sgd = optax.with_extra_args_support(optax.sgd(0.5))
    params, _, _ = train(sgd, jnp.ones(3), 40)
    assert float(quadratic(params)) > 1e20


def test_beyond_the_edge_is_allowed_and_grows():
    """At delta = -0.05 the factor along the top direction is 1 - 2.05."""
    params, _, _ = train(caeo(0.5, delta=-0.05), jnp.ones(3), 20)
    assert float(params[2]) == pytest.approx(1.05**20, rel=1e-9)


def test_negative_curvature_does_not_throttle():
    _, state, _ = train(caeo(0.3), jnp.array([1.0, 1.0]), 1, loss=lambda p: p[0] ** 2 - 25.0 * p[1] ** 2)
    assert float(state.sharpness) == pytest.approx(2.0, rel=1e-9)
    assert float(state.learning_rate) == 0.3


def test_rosenbrock():
    """The function of optax's common suite, from the origin to (1, 1), where the sharpness is 1002."""

    def rosenbrock(params):
        return (1.0 - params[0]) ** 2 + 100.0 * (params[1] - params[0] ** 2) ** 2

    optimizer = caeo(1.0)
    step = make_step(optimizer, rosenbrock)
    start = jnp.zeros(2)
    run = jax.jit(lambda c: jax.lax.scan(lambda c, _: (step(*c), None), c, length=10_000)[0])
    params, state = run((start, optimizer.init(start)))
    np.testing.assert_allclose(params, 1.0, rtol=3e-2)
    assert float(state.sharpness) == pytest.approx(1001.6, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"delta": 2.0}, "delta must be a finite number below 2"),
        ({"delta": float("nan")}, "delta must be a finite number below 2"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"refresh": 0}, r"refresh must be a positive whole number of updates, .*got 0\."),
        ({"refresh": 1.5}, r"refresh must be a positive whole number of updates, .*got 1.5\."),
        ({"curvature": "lanczos"}, "curvature must be an estimator such as curvature.lanczos"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, words):
    with pytest.raises(InvalidInput, match=words):
        caeo(**{"learning_rate": 0.1, **settings})


def test_missing_arguments_of_update_are_refused():
    optimizer, params = caeo(0.1), jnp.ones(3)
    state = optimizer.init(params)
    with pytest.raises(InvalidInput, match="caeo needs params in update"):
        optimizer.update(params, state, value_fn=quadratic)
    with pytest.raises(InvalidInput, match="caeo needs value_fn in update"):
        optimizer.update(params, state, params)


def test_refresh_staleness_batches_and_ignored_arguments():
    """The curvature of the batch grows by one each step; it is seen at steps 0, 3 and 6 only."""

    def loss(params, stretch):
        return 0.5 * stretch * jnp.sum(params**2)

    optimizer = caeo(1.0, delta=0.5, refresh=3)
    params = jnp.ones(3)
    state = optimizer.init(params)
    assert float(state.learning_rate) == 1.0
    assert np.isinf(state.residual)

    @jax.jit
    def step(params, state, stretch):
        grads = jax.grad(loss)(params, stretch)
        updates, state = optimizer.update(grads, state, params, value_fn=loss, stretch=stretch, unknown=1)
        return optax.apply_updates(params, updates), state

    seen = []
    for stretch in range(3, 10):
        params, state = step(params, state, float(stretch))
        seen.append((round(float(state.sharpness), 9), int(state.staleness)))
    assert seen == [(3, 0), (3, 1), (3, 2), (6, 0), (6, 1), (6, 2), (9, 0)]
    assert float(state.learning_rate) == pytest.approx(1.5 / 9, rel=1e-12)


def test_schedule_is_the_ceiling():
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    _, _, states = train(caeo(schedule, delta=0.0), jnp.ones(3), 4)
    np.testing.assert_allclose([s.learning_rate for s in states], [0.0, 0.1, 0.2, 0.2], rtol=1e-6)
    assert [bool(s.capped) for s in states] == [False, False, False, True]


@pytest.mark.slow
def test_error_bound_makes_the_rate_careful(mlp):
    estimator = curvature.lanczos(order=2, restarts=0)
    states = {}
    for careful in (False, True):
        optimizer = caeo(10.0, curvature=estimator, use_error_bound=careful)
        _, states[careful], _ = train(optimizer, mlp.params, 1, loss=mlp.loss)
    plain, careful = states[False], states[True]
    assert float(plain.residual) > 0.01
    assert float(plain.learning_rate) == pytest.approx(1.9 / plain.sharpness)
    assert float(careful.learning_rate) == pytest.approx(1.9 / (careful.sharpness + careful.residual))


@pytest.mark.slow
@pytest.mark.parametrize("name", curvature.ESTIMATORS)
def test_every_estimator_drives_a_network(name, mlp):
    optimizer = caeo(0.05, curvature=curvature.ESTIMATORS[name]())
    params, state, _ = train(optimizer, mlp.params, 20, loss=mlp.loss)
    assert float(mlp.loss(params)) < float(mlp.loss(mlp.params))
    assert np.isfinite(state.sharpness)
    if name in {"lanczos", "power"}:
        dense = jax.jit(jax.hessian(lambda f: mlp.loss(unravel(f))))
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        # the state's estimate was made one step earlier
        assert float(state.sharpness) == pytest.approx(
            np.linalg.eigvalsh(np.asarray(dense(flat)))[-1], rel=0.05
        )


def test_uncompiled_compiled_scanned_and_vmapped_agree():
    def quartic(params):
        return quadratic(params) + jnp.sum(params**4)

    optimizer = caeo(0.5, refresh=2)

    def step(carry, _=None):
        params, state = carry
        updates, state = optimizer.update(jax.grad(quartic)(params), state, params, value_fn=quartic)
        return (optax.apply_updates(params, updates), state), state.learning_rate

    start, half = jnp.ones(3), 0.5 * jnp.ones(3)
    first = (start, optimizer.init(start))
    once, rate = step(first)
    compiled = jax.jit(step)
    carry, rates = first, []
    for _ in range(4):
        carry, last = compiled(carry)
        rates.append(float(last))
    assert float(rate) == pytest.approx(rates[0], rel=1e-9)
    assert rates[0] < rates[-1] < 0.5
    assert jax.tree.structure(once) == jax.tree.structure(first)
    final, scanned = jax.jit(lambda c: jax.lax.scan(step, c, length=4))(first)
    np.testing.assert_allclose(scanned, rates, rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), final, carry)

    pair = jnp.stack([start, half])
    (_, states), batched = jax.jit(jax.vmap(step))((pair, jax.vmap(optimizer.init)(pair)))
    assert states.sharpness.shape == (2,)
    np.testing.assert_allclose(batched, [rates[0], float(compiled((half, first[1]))[1])], rtol=1e-9)


def test_same_seed_same_bits_through_a_checkpoint(mlp):
    """Half the run, the state as NumPy arrays, the other half: the bits of the uninterrupted run."""
    optimizer = caeo(0.5, seed=3)
    step = make_step(optimizer, mlp.loss)
    straight = [(mlp.params, optimizer.init(mlp.params))]
    for _ in range(6):
        straight.append(step(*straight[-1]))
    leaves, structure = jax.tree.flatten(straight[3])
    resumed = jax.tree.unflatten(structure, [jnp.asarray(np.array(leaf)) for leaf in leaves])
    for _ in range(3):
        resumed = step(*resumed)
    jax.tree.map(np.testing.assert_array_equal, resumed, straight[-1])
    other = caeo(0.5, seed=4).init(mlp.params).curvature.vector["out"]["b"]
    assert not np.array_equal(other, straight[0][1].curvature.vector["out"]["b"])


@pytest.mark.parametrize("refresh", [1, "auto"])
def test_buffers_can_be_donated(refresh):
    optimizer = caeo(0.5, refresh=refresh)

    def step(params, state):
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params, value_fn=quadratic)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    params = jnp.ones(3)
    state = optimizer.init(params)
    for _ in range(3):
        params, state = donating(params, state)
    assert float(state.learning_rate) == pytest.approx(0.19)


@pytest.mark.parametrize(
    "dtype",
    [
        jnp.bfloat16,
        jnp.float32,
        pytest.param(jnp.float16, marks=pytest.mark.slow),
        pytest.param(jnp.float64, marks=pytest.mark.slow),
    ],
)
def test_dtypes_are_kept_and_nothing_compiles_twice(dtype):
    optimizer = caeo(0.5)
    params = jnp.array([1.0, -1.0, 0.5], dtype)
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params, value_fn=quadratic)
        assert updates.dtype == dtype
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    working = jnp.float64 if dtype == jnp.float64 else jnp.float32
    for _ in range(3):
        new_params, new_state = step(params, state)
        assert new_params.dtype == dtype
        assert jax.tree.map(jnp.result_type, new_state) == jax.tree.map(jnp.result_type, state)
        params, state = new_params, new_state
    assert len(traces) == 1
    assert state.sharpness.dtype == state.learning_rate.dtype == working
    assert float(state.sharpness) == pytest.approx(10.0, rel=float(jnp.finfo(dtype).eps) * 10)


def test_zero_gradients_give_zero_updates():
    optimizer, params = caeo(0.5), jnp.ones(3)
    updates, state = optimizer.update(jnp.zeros(3), optimizer.init(params), params, value_fn=quadratic)
    np.testing.assert_array_equal(updates, 0.0)
    assert float(state.sharpness) == pytest.approx(10.0)


def test_momentum_is_optax_trace_before_the_rate():
    params, state, _ = train(caeo(0.5, momentum=0.9, nesterov=True), jnp.ones(3), 5)
    by_hand = optax.chain(optax.trace(0.9, nesterov=True), scale_by_caeo(0.5, refresh=1))
    expected, _, _ = train(by_hand, jnp.ones(3), 5)
    sgd = optax.with_extra_args_support(optax.sgd(0.19, momentum=0.9, nesterov=True))
    plain, _, _ = train(sgd, jnp.ones(3), 5)
    np.testing.assert_array_equal(params, expected)
    np.testing.assert_allclose(params, plain, rtol=1e-9)
    assert isinstance(state[-1], CaeoState)
    assert float(optax.tree.get(state, "sharpness")) == pytest.approx(10.0)


def test_inside_a_chain_with_clipping():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), caeo(0.5))
    params, _, _ = train(optimizer, jnp.ones(3), 1)
    grads = CURVATURES
    np.testing.assert_allclose(params, 1 - 0.19 * grads / jnp.linalg.norm(grads), rtol=1e-10)


def test_inside_gradient_accumulation():
    optimizer = optax.MultiSteps(caeo(0.5), every_k_schedule=2)
    params, state, states = train(optimizer, jnp.ones(3), 2)
    np.testing.assert_allclose(params, 1 - 0.19 * CURVATURES, rtol=1e-10)
    assert int(states[0].inner_opt_state.count) == 0
    assert int(state.inner_opt_state.count) == 1


def test_a_failed_measurement_is_seen_and_can_be_skipped():
    """Finite gradients, NaN Hessian: the updates are NaN, and the next measurement is sound again."""

    def broken(params, poison):
        return quadratic(params) * poison

    params, optimizer = jnp.ones(3), caeo(0.5)
    skipping = optax.chain(optimizer, optax.zero_nans())
    update = jax.jit(lambda s, p: optimizer.update(CURVATURES, s, params, value_fn=broken, poison=p))
    skip = jax.jit(lambda s, p: skipping.update(CURVATURES, s, params, value_fn=broken, poison=p))
    for apply, state, first in (
        (update, optimizer.init(params), jnp.nan),
        (skip, skipping.init(params), 0.0),
    ):
        updates, state = apply(state, jnp.nan)
        np.testing.assert_array_equal(updates, jnp.full(3, first))
        updates, _ = apply(state, 1.0)
        np.testing.assert_allclose(updates, -0.19 * CURVATURES, rtol=1e-10)


def test_inside_apply_if_finite():
    optimizer, params = optax.apply_if_finite(caeo(0.5), 5), jnp.ones(3)
    update = jax.jit(lambda grads, state: optimizer.update(grads, state, params, value_fn=quadratic))
    updates, state = update(CURVATURES * jnp.nan, optimizer.init(params))
    np.testing.assert_array_equal(updates, 0.0)
    assert int(state.inner_state.count) == 0
    updates, state = update(CURVATURES, state)
    np.testing.assert_allclose(updates, -0.19 * CURVATURES, rtol=1e-10)


def test_hyperparameters_can_be_injected_and_changed():
    optimizer = optax.inject_hyperparams(caeo)(learning_rate=0.5, delta=0.1)
    step, params = make_step(optimizer, quadratic), jnp.ones(3)
    state = optimizer.init(params)
    assert set(state.hyperparams) >= {"learning_rate", "delta"}
    plain, expected = train(caeo(0.5, delta=0.1), params, 1)[:2]
    moved, state = step(params, state)
    np.testing.assert_allclose(moved, plain, rtol=1e-12)
    assert float(state.inner_state.learning_rate) == pytest.approx(float(expected.learning_rate))
    state.hyperparams["delta"] = jnp.asarray(1.0)
    _, state = step(moved, state)
    assert float(state.inner_state.learning_rate) == pytest.approx(0.1)


def test_tree_map_params_finds_the_warm_start(mlp):
    optimizer = caeo(0.5)
    state = optimizer.init(mlp.params)
    doubled = optax.tree.map_params(optimizer, lambda leaf: 2 * leaf, state)
    np.testing.assert_array_equal(
        doubled.curvature.vector["out"]["w"], 2 * state.curvature.vector["out"]["w"]
    )
    assert float(doubled.learning_rate) == 0.5


@pytest.mark.parametrize(
    "module", [transformation, krylov, sampling], ids=lambda m: m.__name__.split(".")[-1]
)
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
