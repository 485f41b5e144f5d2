"""The four readings of one model agree: floats in Numba, arrays, symbols, JAX; on every name a model may use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from solvers import SDE, namespaces
from solvers.tangent import lambdify_components

TERMS = {
    "abs": lambda x, z, xp: xp.abs(x),
    "arccos": lambda x, z, xp: xp.arccos(x / 4),
    "arcsin": lambda x, z, xp: xp.arcsin(x / 4),
    "arctan": lambda x, z, xp: xp.arctan(x),
    "arctan2": lambda x, z, xp: xp.arctan2(x, z),
    "clip": lambda x, z, xp: xp.clip(x, -1.0, 0.5),
    "cos": lambda x, z, xp: xp.cos(x),
    "cosh": lambda x, z, xp: xp.cosh(x),
    "e": lambda x, z, xp: xp.e * x,
    "exp": lambda x, z, xp: xp.exp(x),
    "expm1": lambda x, z, xp: xp.expm1(x),
    "hypot": lambda x, z, xp: xp.hypot(x, z),
    "log": lambda x, z, xp: xp.log(4 + x),
    "log1p": lambda x, z, xp: xp.log1p(x / 4),
    "logical_and": lambda x, z, xp: xp.where(xp.logical_and(x > 0, z > 0), x, z),
    "logical_not": lambda x, z, xp: xp.where(xp.logical_not(x > z), x, z),
    "logical_or": lambda x, z, xp: xp.where(xp.logical_or(x > 1, z > 0), x, z),
    "maximum": lambda x, z, xp: xp.maximum(x, z),
    "minimum": lambda x, z, xp: xp.minimum(x, z),
    "pi": lambda x, z, xp: xp.pi * x,
    "sign": lambda x, z, xp: xp.sign(x),
    "sin": lambda x, z, xp: xp.sin(x),
    "sinh": lambda x, z, xp: xp.sinh(x),
    "sqrt": lambda x, z, xp: xp.sqrt(4 + x),
    "square": lambda x, z, xp: xp.square(x),
    "tan": lambda x, z, xp: xp.tan(x / 4),
    "tanh": lambda x, z, xp: xp.tanh(x),
    "where": lambda x, z, xp: xp.where(x > z, x, 2 * z),
}
EXACT = {  # correctly rounded by IEEE 754, hence the same bits in Numba, NumPy and JAX
    "abs", "clip", "e", "logical_and", "logical_not", "logical_or", "maximum", "minimum", "pi", "sign", "sqrt",
    "square", "where",
}  # fmt: skip
NAMES = tuple(f"c_{name}" for name in TERMS)

coordinate = st.floats(-3, 3, allow_subnormal=False) | st.sampled_from([-1.0, 0.0, 0.5, 1.0])


def _drift_source():
    """One flat function with a component per name: Numba compiles no table of lambdas."""
    import inspect

    lines = [inspect.getsource(term).split("xp: ", 1)[1].rstrip().rstrip(",") for term in TERMS.values()]
    return "def drift(t, y, p, xp):\n    x, z = y[0], y[1]\n    return (" + ", ".join(lines) + ",)\n"


@pytest.fixture(scope="module")
def everything():
    scope = {}
    exec(compile(_drift_source(), "<every name>", "exec"), scope)
    rest = tuple(range(len(NAMES)))
    return SDE(
        scope["drift"],
        lambda t, y, p, xp: tuple(0.0 * c for c in y),
        names=tuple(f"y{i}" for i in rest),
        convention="ito",
    )


@pytest.fixture(scope="module")
def readings(everything):
    drift, _, params = everything.compiled()
    symbolic = everything.symbolic()
    traced = lambdify_components(symbolic.drift, symbolic)
    of_jax = jax.jit(lambda y: jnp.stack(jnp.broadcast_arrays(*everything.drift(0.0, y, (), jnp))))

    def all_four(x, z):
        y = (x, z, *[0.0] * (len(NAMES) - 2))
        return {
            "numba": np.array(drift(0.0, y, params)),
            "arrays": np.array(everything.drift_at(0.0, y)),
            "symbols": np.array(traced(0.0, tuple(map(np.float64, y)), params, np), dtype=float),
            "jax": np.asarray(of_jax(y)),
        }

    return all_four


def test_the_table_covers_every_name():
    assert sorted(TERMS) == sorted(namespaces.NAMES)
    assert all(hasattr(space, name) for name in namespaces.NAMES for space in (np, jnp, namespaces.scalar))
    assert all(hasattr(namespaces.symbolic, name) for name in namespaces.NAMES)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(x=coordinate, z=coordinate)
def test_four_readings_agree(readings, x, z):
    """Floats in Numba within 5 ulps of arrays; symbols and JAX within 45 ulps of the larger of value and 1.

    5 ulps: each docstring of `solvers.vmath` states at most 3.5 (tests/solvers/test_vmath.py), NumPy's functions
    err by less than 1.5, and the arguments (4 + x, x / 4, ...) are the same doubles. By symbols e^x - 1 errs by
    a few ulps of the larger term.
    """
    values = readings(x, z)
    difference = np.abs(values["numba"] - values["arrays"]) / np.spacing(np.abs(values["arrays"]))
    assert difference.max() <= 5, (NAMES[difference.argmax()], x, z)
    for name, value in values.items():
        error = np.abs(value - values["arrays"]) / np.maximum(1.0, np.abs(values["arrays"]))
        assert error.max() < 1e-14, (name, NAMES[error.argmax()], x, z)
    exact = [name in EXACT for name in TERMS]
    assert np.array_equal(values["numba"][exact], values["arrays"][exact])
    assert np.array_equal(values["jax"][exact], values["arrays"][exact])


def test_readings_tell_a_different_function_apart(readings):
    """Negative control: components off by 1e-12 are seen at both tolerances above."""
    values = readings(0.3, -0.7)
    wrong = values["numba"] * (1 + 1e-12)
    error = np.abs(wrong - values["arrays"]) / np.maximum(1.0, np.abs(values["arrays"]))
    assert error.max() > 1e-14
    assert (np.abs(wrong - values["arrays"]) / np.spacing(np.abs(values["arrays"]))).max() > 5


def test_not_a_number_and_signed_zero_as_in_numpy():
    scalar = namespaces.scalar

    @njit(error_model="numpy")
    def read(a, b):
        return (
            scalar.sign(a), scalar.maximum(a, b), scalar.maximum(b, a), scalar.minimum(a, b),
            scalar.minimum(b, a), scalar.clip(a, -1.0, 1.0), scalar.abs(a), scalar.sqrt(a), scalar.log(a),
        )  # fmt: skip

    for a, b in ((np.nan, 1.0), (-0.0, 1.0), (-2.0, 1.0), (np.inf, 1.0)):
        with np.errstate(all="ignore"):
            expected = (
                np.sign(a), np.maximum(a, b), np.maximum(b, a), np.minimum(a, b), np.minimum(b, a),
                np.clip(a, -1.0, 1.0), np.abs(a), np.sqrt(a), np.log(a),
            )  # fmt: skip
        assert np.array_equal(read(a, b), expected, equal_nan=True), (a, b)


def test_unknown_names_are_refused_by_symbols_and_probes():
    for space in (namespaces.symbolic, namespaces.common):
        with pytest.raises(AttributeError, match="xp has no 'sinc'; a model may use: abs, "):
            space.sinc(1.0)


def test_symbolic_where_on_decided_conditions():
    where = namespaces.symbolic.where
    assert where(True, 1, 2) == 1
    assert where(False, 1, 2) == 2


def test_floats_and_integers_are_read_alike():
    """A model may write xp.exp(1), xp.where(c, 1, x) or xp.maximum(x, 0): integers are promoted as in NumPy."""

    def drift(t, y, p, xp):
        x = y[0]
        return (
            xp.exp(1) + xp.sin(2) + xp.tanh(3) + xp.log(4) + xp.sqrt(9) + xp.hypot(3, 4) + xp.arctan2(1, 2),
            xp.where(x > 0, 1, x) + xp.maximum(x, 0) + xp.sign(2) + xp.abs(-3) + xp.square(2),
            xp.clip(x, -1, 1) + xp.where(xp.logical_and(x > 0, True), 2, 0) + x * xp.logical_not(x > 1),
        )

    sde = SDE(drift, lambda t, y, p, xp: (1, 1, 1), names=("a", "b", "c"), convention="ito")
    compiled, _, params = sde.compiled()
    for x in (-2.5, 0.5, 1.5):
        np.testing.assert_allclose(
            compiled(0.0, (x, 0.0, 0.0), params), sde.drift_at(0.0, (x, 0.0, 0.0)), rtol=1e-14
        )


def test_circular_functions_of_a_phase_that_is_not_resolved_are_not_a_number():
    """Beyond 2^40 the spacing of doubles exceeds 1e-4: floats in Numba give NaN, so that the path is reported."""
    scalar = namespaces.scalar
    for function, of_numpy in ((scalar.sin, np.sin), (scalar.cos, np.cos), (scalar.tan, np.tan)):
        assert abs(function(2.0**40) - of_numpy(2.0**40)) <= 5 * np.spacing(abs(of_numpy(2.0**40)))
        assert np.isnan(function(np.nextafter(2.0**40, np.inf)))
