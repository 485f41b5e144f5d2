"""CAEO at its default refresh, with momentum, AdamW, decay, groups, accumulation, checkpoints, low precision."""

import doctest
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from eos_sde.optimizers import adam, caeo, caeo_adamw, curvature, groups, scale_by_caeo
from solvers.errors import InvalidInput

CURVATURES = jnp.array([0.5, 2.0, 10.0])


def quadratic(params):
    return 0.5 * jnp.sum(CURVATURES.astype(params.dtype) * params**2)


def make_step(optimizer, loss):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    return step


def run(optimizer, params, steps, loss=quadratic):
    step, state = make_step(optimizer, loss), optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize(
    ("nesterov", "factor"),
    [(False, 1.9), pytest.param(True, 1.9 / 2.8, marks=pytest.mark.slow)],
    ids=["heavy-ball", "nesterov"],
)
def test_the_edge_of_momentum(nesterov, factor):
    """The cap is the edge of T1 times 1 - delta/2; just within it the quadratic converges, beyond it diverges."""
    for delta, converges in ((0.05, True), (-0.05, False)):
        optimizer = caeo(5.0, delta=delta, momentum=0.9, nesterov=nesterov, momentum_edge=True)
        params, state = run(optimizer, jnp.ones(3), 600)
        assert float(state[-1].learning_rate) == pytest.approx(factor * (2 - delta) / 10.0, rel=1e-9)
        assert (float(jnp.abs(params[2])) < 1e-3) == converges
        assert (float(jnp.abs(params[2])) > 1e3) != converges


def test_without_the_option_the_cap_stays():
    _, state = run(caeo(5.0, momentum=0.9), jnp.ones(3), 1)
    assert float(state[-1].learning_rate) == pytest.approx(0.19, rel=1e-9)


@pytest.mark.slow
def test_adamw_measures_the_preconditioned_sharpness(mlp):
    """Against the dense eigenvalues of P^-1 H; the updates are optax's at the capped rate, with weight decay."""
    optimizer = caeo_adamw(
        1e3, b1=0.8, b2=0.9, weight_decay=0.01, refresh=1, curvature=curvature.lanczos(tol=1e-6, restarts=30)
    )
    params, state = mlp.params, optimizer.init(mlp.params)
    update = jax.jit(lambda s, p: optimizer.update(jax.grad(mlp.loss)(p), s, p, value_fn=mlp.loss))
    moments = optax.scale_by_adam(0.8, 0.9)
    memory = moments.init(params)
    dense = jax.jit(jax.hessian(lambda f: mlp.loss(ravel_pytree(mlp.params)[1](f))))
    for _ in range(3):
        updates, state = update(state, params)
        direction, memory = moments.update(jax.grad(mlp.loss)(params), memory)
        second = ravel_pytree(memory.nu)[0] / (1 - 0.9 ** float(memory.count))
        root = 1 / np.sqrt(np.sqrt(second) + 1e-8)
        flat = ravel_pytree(params)[0]
        spectrum = np.linalg.eigvalsh(root[:, None] * np.asarray(dense(flat)) * root)
        assert float(state.caeo.sharpness) == pytest.approx(spectrum[-1], rel=1e-8)
        rate = 9.0 * 1.9 / spectrum[-1]
        expected = -rate * (ravel_pytree(direction)[0] + 0.01 * flat)
        np.testing.assert_allclose(ravel_pytree(updates)[0], expected, rtol=1e-7)
        params = optax.apply_updates(params, jax.tree.map(lambda u: 0.01 * u, updates))


@pytest.mark.slow
def test_the_edge_of_adam_is_where_it_diverges():
    """With P held at 1 by a long past of unit gradients and b1 = 0.5 the edge is at 6.

    Within it, at 5.7, the modulus of the two-step factor is 0.5^(1/2); beyond, at 6.3, the factor is -1.25 (both from
    z^2 - (1 + b1 - (1 - b1) eta lambda) z + b1 = 0): 1e-6 and 7e3 after 40 steps.
    """
    found = {}
    for delta in (0.1, -0.1):
        optimizer = caeo_adamw(1e9, b1=0.5, b2=0.999999, delta=delta)
        params = jnp.ones(3)
        state = optimizer.init(params)
        past = state.adam._replace(count=jnp.int32(10**8), nu=jnp.ones(3))
        state = state._replace(adam=past)
        step = make_step(optimizer, lambda p: 1e-6 * quadratic(p))
        for _ in range(40):
            params, state = step(params, state)
        assert float(state.caeo.sharpness) == pytest.approx(1e-5, rel=1e-3)
        assert float(state.caeo.learning_rate) == pytest.approx(3.0 * (2 - delta) / 1e-5, rel=1e-3)
        found[delta] = abs(float(params[2]))
    assert found[0.1] < 1e-4
    assert found[-0.1] > 1e3


def test_weight_decay_is_part_of_the_loss_or_of_the_chain():
    """Decoupled, in a chain: the cap is that of the loss. The update is minus the rate times (gradient + decay)."""
    optimizer = optax.chain(optax.add_decayed_weights(0.1), scale_by_caeo(0.5))
    params, _ = run(optimizer, jnp.ones(3), 1)
    np.testing.assert_allclose(params, 1 - 0.19 * (CURVATURES + 0.1), rtol=1e-9)


def test_groups_of_multi_transform():
    """Each group keeps from the edge of its own block, also where it is a whole subtree."""

    def loss(params):
        return 4.0 * params["in"]["w"] ** 2 + 0.5 * params["in"]["b"] ** 2 + 15.0 * params["out"] ** 2

    optimizer = optax.multi_transform({"a": caeo(1.0), "b": caeo(1.0, delta=1.0)}, {"in": "a", "out": "b"})
    params = {"in": {"w": jnp.ones(()), "b": jnp.ones(())}, "out": jnp.ones(())}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        partial = groups.of_group(loss, params)
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=partial)
        return optax.apply_updates(params, updates), state

    _, state = step(params, state)
    inner = {name: state.inner_states[name].inner_state for name in "ab"}
    assert float(inner["a"].sharpness) == pytest.approx(8.0, rel=1e-9)
    assert float(inner["b"].sharpness) == pytest.approx(30.0, rel=1e-9)
    assert float(inner["b"].learning_rate) == pytest.approx(1.0 / 30.0, rel=1e-9)


def test_accumulation_and_clipping():
    optimizer = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), caeo(0.5)), every_k_schedule=2)
    params, _ = run(optimizer, jnp.ones(3), 2)
    expected = 1 - 0.19 * CURVATURES / jnp.linalg.norm(CURVATURES)
    np.testing.assert_allclose(params, expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_precision_is_kept_and_nothing_compiles_twice(dtype):
    """State in single precision; the estimate is right to the rounding of the products."""
    optimizer, traces = caeo(0.5), []
    params = jnp.array([1.0, -1.0, 0.5], dtype)

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params, value_fn=quadratic)
        assert updates.dtype == dtype
        return optax.apply_updates(params, updates), state

    state = first = optimizer.init(params)
    for _ in range(12):
        params, state = step(params, state)
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, first)
    assert len(traces) == 1
    assert float(state.sharpness) == pytest.approx(10.0, rel=float(jnp.finfo(dtype).eps) * 10)


@pytest.mark.slow
def test_orbax_restores_every_bit(mlp, tmp_path):
    """Half the run, through a checkpoint on disk, the other half: the bits of the uninterrupted run."""
    checkpoint = pytest.importorskip("orbax.checkpoint")
    optimizer = caeo(0.5, seed=3)
    step = make_step(optimizer, mlp.loss)
    straight = [(mlp.params, optimizer.init(mlp.params))]
    for _ in range(12):
        straight.append(step(*straight[-1]))
    with checkpoint.StandardCheckpointer() as keeper:
        keeper.save(tmp_path / "at", straight[6])
        keeper.wait_until_finished()
        resumed = keeper.restore(tmp_path / "at", jax.tree.map(jnp.zeros_like, straight[6]))
    for _ in range(6):
        resumed = step(*resumed)
    jax.tree.map(np.testing.assert_array_equal, resumed, straight[-1])


@pytest.mark.slow
def test_the_gauss_newton_matrix_in_place_of_the_hessian(mlp):
    """Against the dense product of Jacobians; of the Hessian it differs by the curvature of the model."""

    def model(params):
        hidden = jnp.tanh(jnp.arange(8.0).reshape(2, 4) @ params["hidden"]["w"] / 8 + params["hidden"]["b"])
        return hidden @ params["out"]["w"] + params["out"]["b"]

    def loss(outputs):
        return jnp.sum(jnp.cosh(outputs))

    flat, unravel = ravel_pytree(mlp.params)
    jacobian = jax.jit(jax.jacobian(lambda f: model(unravel(f)).ravel()))(flat)
    matrix = jacobian.T @ (jnp.cosh(model(mlp.params)).ravel()[:, None] * jacobian)
    value_fn = curvature.gauss_newton(model, loss)
    vector = jax.random.normal(jax.random.key(0), flat.shape)
    product = ravel_pytree(value_fn.product(mlp.params)(unravel(vector)))[0]
    np.testing.assert_allclose(product, matrix @ vector, rtol=1e-9, atol=1e-9)
    optimizer = caeo(1e-3, curvature=curvature.lanczos(tol=1e-6, restarts=30))
    update = jax.jit(lambda s, p: optimizer.update(p, s, p, value_fn=value_fn)[1])
    state = update(optimizer.init(mlp.params), mlp.params)
    top = np.linalg.eigvalsh(np.asarray(matrix))[-1]
    assert float(state.sharpness) == pytest.approx(top, rel=1e-8)
    hessian = jax.jit(jax.hessian(lambda f: value_fn(unravel(f))))(flat)
    assert abs(np.linalg.eigvalsh(np.asarray(hessian))[-1] / top - 1) > 1e-3  # negative control


def test_strong_negative_curvature_does_not_throttle():
    """Largest algebraic eigenvalue 2 beside -250 and -120: neither at the first measurement nor later."""
    steep = jnp.array([1.0, -125.0, -60.0])
    loss = lambda p: jnp.sum(steep * p**2)  # noqa: E731
    _, state = run(caeo(0.3), jnp.array([1.0, 1e-9, 1e-9]), 4, loss=loss)
    assert float(state.sharpness) == pytest.approx(2.0, rel=1e-6)
    assert float(state.learning_rate) == 0.3


def test_refusals():
    with pytest.raises(InvalidInput, match=r"b1 must lie in \[0, 1\)"):
        caeo_adamw(0.1, b1=1.0)
    with pytest.raises(InvalidInput, match="model must be a function"):
        curvature.gauss_newton(3, jnp.sum)


MODULES = [adam, groups, sys.modules[curvature.GaussNewton.__module__]]


@pytest.mark.parametrize("module", MODULES, ids=["adam", "groups", "gauss_newton"])
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
