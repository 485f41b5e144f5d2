"""Symbolic traces: code printed from expressions, Jacobians, and corrections between conventions."""

import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from numba import njit

from solvers import SDE, InvalidInput, namespaces
from solvers.tangent import (
    SymbolicSDE,
    compiled_components,
    jacobian,
    lambdify_components,
    milstein_terms,
    slopes_of_noise,
    trace,
)

x, z, t = sp.symbols("x z t", real=True)
SYMBOLS = SymbolicSDE(t, (x, z), (), (), ())

EXPRESSIONS = [
    sp.sqrt(x), 1 / sp.sqrt(x), 1 / x, x**-2, x**3, x**sp.Rational(1, 3), x**sp.Rational(-3, 2),
    x**sp.Rational(5, 2), x**0.5, x**-0.5, x**1.7, x**z, 2**x, sp.Rational(2, 3) * x, sp.Float(0.1) * x,
    sp.Float(0.1 + 0.2) * x, sp.pi * x + sp.E, sp.exp(2 * x), sp.log(x) / sp.log(2), sp.tan(x) ** 2 + 1,
    sp.Abs(z), sp.sign(z), sp.sqrt(z**2), -(z**2), sp.Max(0, z, 2 * z), sp.Min(x, z, 1), sp.atan2(z, x),
    sp.asin(x / 4), sp.acos(x / 4), sp.atan(z), sp.sinh(z), sp.cosh(z), sp.tanh(z), sp.sin(z) * sp.cos(z),
    sp.Piecewise((z, z > 0), (2, z < -1), (3, True)),
    sp.Piecewise((z, sp.And(z > -0.5, z < 1)), (2, sp.Or(z < -1, z > 4)), (x, True)),
    sp.Piecewise((1, sp.Eq(x, 0)), (2, sp.Ne(x, 3)), (4, True)),
    sp.Piecewise((sp.Piecewise((z, z > 0), (x, True)), x > 1), (-z, True)),
]  # fmt: skip


def _value(e, a, b):
    """To 30 digits, at exactly the floats given."""
    return float(e.subs({x: sp.Float(a, 40), z: sp.Float(b, 40)}).evalf(30))


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), [(0.7, 1.3), (2.3, -0.4), (1.1, -2.6)])
def test_printed_code_gives_the_expressions(a, b):
    """Over arrays, Numba and JAX, to rounding: an exponent or a base a last digit off moves powers by a few."""
    function = lambdify_components(EXPRESSIONS, SYMBOLS)
    expected = np.array([_value(e, a, b) for e in EXPRESSIONS])
    compiled, scalar = njit(function), namespaces.scalar
    call = njit(lambda y: compiled(0.0, y, (), scalar))
    for values in (
        function(0.0, (np.float64(a), np.float64(b)), (), np),
        function(0.0, (jnp.float64(a), jnp.float64(b)), (), jnp),
        call((a, b)),
    ):
        assert np.allclose(np.array(values, dtype=float), expected, rtol=1e-14, atol=1e-15)


def test_printed_code_of_arrays_keeps_nesting_and_shape():
    function = lambdify_components([[x, x * z], [sp.sin(x), x * z]], SYMBOLS)
    a, b = np.linspace(0.1, 1, 5), np.linspace(-1, 1, 5)
    rows = function(0.0, (a, b), (), np)
    assert [len(row) for row in rows] == [2, 2]
    assert np.array_equal(rows[0][1], a * b)
    assert np.array_equal(rows[1][0], np.sin(a))


def test_square_roots_are_printed_as_such():
    """Not as powers: slower, a last digit off, and complex for a negative Python float."""
    import linecache

    function = lambdify_components([sp.sqrt(x), 1 / sp.sqrt(x + 1)], SYMBOLS)
    source = "".join(linecache.getlines(function.__code__.co_filename))
    assert source.count("xp.sqrt") == 2
    assert "**" not in source


def test_derivatives_of_kinks_and_jumps():
    """Almost everywhere: the derivative of |z| is sign z, of max a step, of sign zero."""
    expressions = [sp.diff(e, z) for e in (sp.Abs(z), sp.Max(z, 1), sp.Min(z, 1), sp.sign(z) * z)]
    function = lambdify_components(expressions, SYMBOLS)
    points = np.array([-2.0, 0.5, 3.0])
    values = function(0.0, (np.ones(3), points), (), np)
    assert np.array_equal(values[0], np.sign(points))
    assert np.array_equal(np.broadcast_to(values[1], 3), [0.0, 0.0, 1.0])
    assert np.array_equal(np.broadcast_to(values[2], 3), [1.0, 1.0, 0.0])
    assert np.array_equal(values[3], np.sign(points))


def test_a_function_without_a_name_is_refused():
    with pytest.raises(InvalidInput, match="contains erf, which no namespace offers"):
        lambdify_components([sp.erf(x)], SYMBOLS)


def test_trace_refuses_control_flow():
    with pytest.raises(InvalidInput, match="drift cannot be differentiated symbolically"):
        trace(lambda t, y, p, xp: (y[0] if y[0] > 0 else 0,), (t, (x,), ()), "drift")


def test_jacobian_against_central_differences():
    def drift(t, y, p, xp):
        a, b, c = y
        return (
            -p.k * xp.tanh(a) + b * c,
            xp.where(a > 0, a * a * b, 0.5 * xp.sin(b)) + t,
            xp.maximum(c, a) * xp.sqrt(1 + b * b) + xp.abs(c) * xp.arctan2(a, b),
        )

    sde = SDE(
        drift,
        lambda t, y, p, xp: (1.0, 1.0, 1.0),
        params={"k": 1.7},
        names=("a", "b", "c"),
        convention="ito",
    )
    derivative = jacobian(sde)
    h = 1e-5
    for point in ((0.4, -1.2, 0.9), (-0.7, 0.3, -0.2)):
        columns = []
        for j in range(3):
            up, down = (tuple(v + s * (i == j) for i, v in enumerate(point)) for s in (h, -h))
            columns.append((np.array(sde.drift_at(0.5, up)) - np.array(sde.drift_at(0.5, down))) / (2 * h))
        # truncation h^2 f'''/6 with f''' below 10: 2e-10; rounding 1e-16/h: 1e-11
        assert np.allclose(derivative(0.5, point), np.array(columns).T, rtol=0, atol=1e-9)


def test_jacobian_follows_the_parameters():
    sde = SDE(
        lambda t, y, p, xp: (-p.k * y[0],),
        lambda t, y, p, xp: (1.0,),
        params={"k": 1.5},
        convention="ito",
    )
    assert jacobian(sde)(0.0, (3.0,)).tolist() == [[-1.5]]
    assert jacobian(sde.replace(k=2))(0.0, (3.0,)).tolist() == [[-2.0]]


def _noisy(sigma):
    return SymbolicSDE(t, (x, z), (), (0, 0), sigma)


def test_milstein_terms_of_diagonal_noise():
    """Half of b b' of each component; a root that vanishes leaves no singularity."""
    terms = milstein_terms(_noisy((sp.sqrt(sp.Abs(x)), x * sp.sin(z))))
    assert set(terms) == {(0, 0, 0), (1, 1, 1)}
    assert sp.simplify(terms[0, 0, 0] - sp.sign(x) / 4) == 0
    assert sp.simplify(terms[1, 1, 1] - x**2 * sp.sin(z) * sp.cos(z) / 2) == 0


def test_milstein_terms_of_commuting_noise():
    """For b_i^k = s_ik y_i: s_ij s_ik y_i, halved for j = k."""
    s = ((2, 3), (5, 7))
    terms = milstein_terms(_noisy(((2 * x, 3 * x), (5 * z, 7 * z))))
    assert len(terms) == 6
    for i, component in enumerate((x, z)):
        for j in range(2):
            for k in range(j, 2):
                factor = sp.Rational(1, 2) if j == k else 1
                assert sp.simplify(terms[i, j, k] - factor * s[i][j] * s[i][k] * component) == 0


def test_slopes_of_noise_are_those_that_are_not_zero():
    slopes = slopes_of_noise(_noisy(((x, 1), (sp.sin(z), (x + z) ** 2 - x**2 - 2 * x * z))))
    assert set(slopes) == {(0, 0, 0), (1, 0, 1), (1, 1, 1)}
    assert sp.expand(slopes[1, 1, 1]) == 2 * z


def test_equal_expressions_are_compiled_once():
    first = compiled_components([x * z, sp.sin(x)], SYMBOLS)
    assert compiled_components([x * z, sp.sin(x)], SYMBOLS) is first
    assert compiled_components([x * z, sp.cos(x)], SYMBOLS) is not first
    assert first(0.0, (2.0, 3.0), ()) == pytest.approx((6.0, np.sin(2.0)), rel=1e-15)
