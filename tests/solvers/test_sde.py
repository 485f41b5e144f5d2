"""The SDE type: readings, parameters, conventions and what is refused before any work."""

import re
from typing import NamedTuple

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import SDE, ImpureFunction, InvalidInput, MissingConvention, from_potential
from solvers.tangent import ito_correction

POINTS = np.array([-1.7, -0.4, 0.3, 1.1, 2.6])
CONVENTIONS = ("ito", "stratonovich", "klimontovich")


class Pair(NamedTuple):
    """Parameters by name."""

    k: float
    s: float


def decay(t, y, p, xp):
    return (-p.k * y[0],)


def growing(t, y, p, xp):
    return (p.s * xp.sqrt(1 + y[0] * y[0]),)


def one(t, y, p, xp):
    return (1.0,)


def line(convention="ito", params=Pair(1.5, 0.8)):  # noqa: B008 - immutable
    return SDE(decay, growing, params=params, convention=convention)


def sentence(message, *parts):
    """One sentence that names what was given and what to do."""
    assert "\n" not in message
    assert not re.search(r"[.!?] [A-Z]", message), message
    assert len(message) < 500
    for part in parts:
        assert part in message, message


# ---- parameters and readings


@pytest.mark.parametrize("params", [Pair(1.5, 0.8), {"k": 1.5, "s": 0.8}, Pair(3 / 2, np.float32(0.8))])
def test_parameters_by_name(params):
    sde = line(params=params)
    assert sde.params._fields == ("k", "s")
    assert all(type(value) is float for value in sde.params)
    assert np.array_equal(sde.drift_at(0.0, (POINTS,))[0], -1.5 * POINTS)


def test_parameters_by_place_and_none():
    sde = SDE(
        lambda t, y, p, xp: (-p[0] * y[0],), lambda t, y, p, xp: (p[1],), params=(2, 3), convention="ito"
    )
    assert sde.params == (2.0, 3.0)
    assert float(sde.drift_at(0.0, (1.0,))[0]) == -2.0
    drift, diffusion, params = sde.compiled()
    assert drift(0.0, (1.0,), params) == (-2.0,)
    assert diffusion(0.0, (1.0,), params) == (3.0,)
    assert [str(symbol) for symbol in sde.symbolic().p] == ["p[0]", "p[1]"]
    assert SDE(one, one, convention="ito").params == ()
    assert SDE(one, one, params={}, convention="ito").params == ()


def test_shapes_of_the_array_reading():
    sde = SDE(
        lambda t, y, p, xp: (y[1], 0.0),
        lambda t, y, p, xp: ((1.0, y[0], 0.0), (0.0, 2.0, t)),
        names=("x", "z"),
        convention="ito",
        noise="general",
    )
    assert (sde.dimension, sde.noise_dimension) == (2, 3)
    a, b = np.linspace(0, 1, 3)[:, None], np.linspace(2, 5, 4)
    drift, diffusion = sde.drift_at(0.0, (a, b)), sde.diffusion_at(0.25, (a, b))
    assert all(v.shape == (3, 4) and v.dtype == float for v in (*drift, *diffusion[0], *diffusion[1]))
    assert np.array_equal(diffusion[0][1], np.broadcast_to(a, (3, 4)))
    assert np.all(diffusion[1][2] == 0.25)
    compiled = sde.compiled()
    assert compiled[1](0.25, (1.0, 2.0), ()) == ((1.0, 1.0, 0.0), (0.0, 2.0, 0.25))


def test_symbolic_reading_leaves_parameters_open():
    symbolic = line().symbolic()
    (x,), (k, s) = symbolic.y, symbolic.p
    assert symbolic.drift == (-k * x,)
    assert sp.simplify(symbolic.diffusion[0] - s * sp.sqrt(1 + x**2)) == 0


# ---- replace: nothing is compiled again


def test_replace_compiles_nothing():
    sde = line()
    drift, diffusion, params = sde.compiled()
    drift(0.0, (1.0,), params)
    diffusion(0.0, (1.0,), params)
    compiled = len(drift.signatures), len(diffusion.signatures)
    assert compiled == (1, 1)
    for k in (2, 2.5, np.float32(3), np.int64(4)):
        again = sde.replace(k=k).compiled()
        assert again[0] is drift
        assert again[1] is diffusion
        assert again[0](0.0, (1.0,), again[2]) == (-float(k),)
    fresh = SDE(decay, growing, params=Pair(7, 1), convention="stratonovich").compiled()
    assert fresh[0] is drift
    assert (len(drift.signatures), len(diffusion.signatures)) == compiled


def test_replace_after_a_change_of_convention_compiles_once():
    first = line().to("stratonovich").compiled()
    second = line().replace(s=0.1).to("stratonovich").compiled()
    assert first[0] is second[0]
    assert first[0](0.0, (1.0,), first[2]) != second[0](0.0, (1.0,), second[2])


def test_equal_code_in_different_functions_is_compiled_once_and_different_code_is_not():
    def make(sign):
        return SDE(lambda t, y, p, xp: (sign * y[0],), one, convention="ito")

    assert make(1.0).compiled()[0] is make(1.0).compiled()[0]
    assert make(1.0).compiled()[0] is not make(-1.0).compiled()[0]
    assert make(0.0).compiled()[0] is not make(-0.0).compiled()[0]


# ---- conventions

x, z, s = sp.symbols("x z s", real=True)


def _correction(convention, sigma, y):
    class Given(NamedTuple):
        """What `ito_correction` reads."""

        sigma: tuple
        y: tuple

    return ito_correction(Given(sigma, y), convention)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("sigma", "stratonovich", "klimontovich"),
    [
        (((s,),), (0,), (0,)),
        (((s * x,),), (s**2 * x / 2,), (s**2 * x,)),
        # rotation, divergence-free: both readings agree
        (((-z,), (x,)), (-x / 2, -z / 2), (-x / 2, -z / 2)),
        # dilation: the kinetic correction is three times the Stratonovich one in two dimensions, not twice
        (((x,), (z,)), (x / 2, z / 2), (3 * x / 2, 3 * z / 2)),
        # each component shaken by the other's square, two noises
        (((z**2, 0), (0, x)), (0, 0), (0, 0)),
        (((x, z), (0, 1)), ((x + 1) / 2, 0), (x + sp.Rational(1, 2), 0)),
    ],
)
def test_corrections_by_hand(sigma, stratonovich, klimontovich):
    """(1/2) sum_jk sigma_jk d_j sigma_ik and sum_j d_j D_ij, D = sigma sigma'/2, worked out on paper."""
    y = (x,) if len(sigma) == 1 else (x, z)
    for convention, by_hand in (("stratonovich", stratonovich), ("klimontovich", klimontovich)):
        found = _correction(convention, sigma, y)
        assert all(sp.simplify(a - b) == 0 for a, b in zip(found, by_hand, strict=True)), convention
    assert _correction("ito", sigma, y) == (0,) * len(y)


def sheared(convention):
    """Two components, three noises, time and parameters in every place."""

    def drift(t, y, p, xp):
        return (-p.a * y[0] + y[1], xp.sin(y[0]) - t * y[1])

    def diffusion(t, y, p, xp):
        a, b = y
        return (
            (xp.cos(b), p.a * a * b, 0.3 + t),
            (xp.exp(-0.3 * a), 0.2, xp.tanh(a + b)),
        )

    return SDE(
        drift, diffusion, params={"a": 0.7}, names=("x", "z"), convention=convention, noise="general"
    )  # fmt: skip


def _by_differences(sde, convention, t, point):
    """The correction to Ito from central differences of sigma and D; error below 1e-9."""
    h = 1e-5

    def sigma(y):
        return np.array(sde.diffusion_at(t, tuple(y)), dtype=float)

    d = len(point)
    shifts = h * np.eye(d)
    point = np.array(point)
    if convention == "stratonovich":
        slope = np.array([(sigma(point + e) - sigma(point - e)) / (2 * h) for e in shifts])  # (j, i, k)
        return 0.5 * np.einsum("jk,jik->i", sigma(point), slope)

    def spread(y):
        return sigma(y) @ sigma(y).T / 2

    return sum((spread(point + e) - spread(point - e))[:, j] / (2 * h) for j, e in enumerate(shifts))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(a=st.floats(-1.5, 1.5), b=st.floats(-1.5, 1.5), t=st.floats(0, 1))
def test_general_noise_against_differences(a, b, t):
    ito = sheared("ito")
    start = np.array(ito.drift_at(t, (a, b)))
    for convention in ("stratonovich", "klimontovich"):
        correction = _by_differences(ito, convention, t, (a, b))
        # the same functions read in `convention` have the Ito drift a + correction
        found = np.array(_converted(convention, "ito").drift_at(t, (a, b)))
        assert np.allclose(found, start + correction, rtol=0, atol=1e-8)
        other = np.array(_converted("ito", convention).drift_at(t, (a, b)))
        assert np.allclose(other, start - correction, rtol=0, atol=1e-8)


_CACHE = {}


def _converted(source, target):
    if (source, target) not in _CACHE:
        _CACHE[source, target] = sheared(source).to(target)
    return _CACHE[source, target]


@pytest.mark.parametrize("source", CONVENTIONS)
@pytest.mark.parametrize("target", CONVENTIONS)
def test_round_trip_is_the_identity(source, target):
    """To rounding of a handful of terms of order one; and every target by way of any other is the same."""
    start = sheared(source)
    back = start.to(target).to(source)
    y = (POINTS, POINTS[::-1])
    assert back.convention == source
    assert back.names == start.names
    assert np.allclose(back.drift_at(0.4, y), start.drift_at(0.4, y), rtol=1e-13, atol=1e-13)
    assert back.diffusion is start.diffusion
    for between in CONVENTIONS:
        indirect = start.to(between).to(target)
        assert np.allclose(
            indirect.drift_at(0.4, y), start.to(target).drift_at(0.4, y), rtol=1e-13, atol=1e-13
        )


def test_a_wrong_correction_would_be_seen():
    """Negative control: Stratonovich and Klimontovich drifts of this model differ by far more than rounding."""
    y = (POINTS, POINTS[::-1])
    one_way, other = (np.array(_converted(c, "ito").drift_at(0.4, y)) for c in CONVENTIONS[1:])
    assert np.max(np.abs(one_way - other)) > 0.1


def test_one_dimension_by_hand():
    """For sigma = s sqrt(1 + x^2), sigma sigma' = s^2 x."""
    for convention, factor in (("stratonovich", 0.5), ("klimontovich", 1.0)):
        ito = line(convention).to("ito")
        assert np.allclose(ito.drift_at(0.0, (POINTS,))[0], (-1.5 + factor * 0.64) * POINTS, rtol=1e-14)
        ito_drift = ito.compiled()[0]
        assert np.isclose(ito_drift(0.0, (2.0,), ito.params)[0], 2 * (-1.5 + factor * 0.64), rtol=1e-14)


def test_constant_noise_is_the_same_model_in_every_convention():
    sde = from_potential(
        lambda t, y, p, xp: y[0] ** 4, lambda t, y, p, xp: (p.s,), params={"s": 1}, convention="ito"
    )
    for convention in CONVENTIONS:
        other = sde.to(convention)
        assert other.drift is sde.drift
        assert other.potential is sde.potential
        assert other.convention == convention
    assert sde.to("ito") is sde


def test_a_change_of_drift_forgets_the_potential():
    """Negative control of the above: the corrected drift is no longer minus its gradient."""
    sde = from_potential(lambda t, y, p, xp: y[0] ** 4, growing, params={"s": 1}, convention="ito")
    assert sde.to("klimontovich").potential is None


# ---- from_potential


def test_drift_of_a_potential_against_differences():
    def potential(t, y, p, xp):
        a, b = y
        return p.c * xp.cosh(a) * xp.sqrt(1 + b * b) + xp.where(a > 0, a**3, 0.0) + xp.log1p(b * b) * t

    sde = from_potential(
        potential,
        lambda t, y, p, xp: (1.0, 0.0),
        params={"c": 0.6},
        names=("a", "b"),
        convention="klimontovich",
    )
    h = 1e-5
    for a, b in ((0.7, -1.2), (-0.9, 0.4), (1.6, 2.0)):
        slope = [
            (potential(0.3, up, sde.params, np) - potential(0.3, down, sde.params, np)) / (2 * h)
            for up, down in (((a + h, b), (a - h, b)), ((a, b + h), (a, b - h)))
        ]
        # truncation h^2 U'''/6 with U''' below 20: 4e-10
        assert np.allclose(sde.drift_at(0.3, (a, b)), [-v for v in slope], rtol=0, atol=2e-9)
    assert sde.potential is potential
    assert sde.replace(c=2.0).potential is potential
    assert sde.convention == "klimontovich"


@pytest.mark.parametrize(
    ("potential", "part"),
    [
        (lambda t, y, p, xp: (y[0],), "one number"),
        (lambda t, y, p, xp: None, "one number"),
        (lambda t, y, p, xp: y[0] if y[0] > 0 else 0.0, "xp.where"),
        (lambda t, y, p, xp: np.sin(y[0]), "xp"),
        (lambda t, y, p, xp: undefined * y[0], "undefined"),  # noqa: F821 # pyright: ignore
        (3.0, "plain Python function"),
    ],
)
def test_unusable_potentials(potential, part):
    with pytest.raises(InvalidInput) as refusal:
        from_potential(potential, one, convention="ito")
    sentence(str(refusal.value), "potential", part)


# ---- refusals


def test_missing_convention_is_a_missing_argument_and_a_bad_value():
    for make in (lambda: SDE(decay, one), lambda: from_potential(lambda t, y, p, xp: y[0], one)):
        for kind in (TypeError, ValueError, MissingConvention, InvalidInput):
            with pytest.raises(kind) as refusal:
                make()
        sentence(str(refusal.value), "convention", "'ito', 'stratonovich' or 'klimontovich'")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"convention": "Ito"}, ["convention='Ito'", "choose 'ito'"]),
        ({"noise": "full"}, ["noise='full'", "'diagonal' or 'general'"]),
        ({"names": ("x", "x")}, ["names=('x', 'x')", "distinct"]),
        ({"names": ()}, ["names=()", "at least one"]),
        ({"names": ("time",)}, ["'time'", "identifier"]),
        ({"names": ("lambda",)}, ["'lambda'", "identifier"]),
        ({"names": 3}, ["names=3", "tuple"]),
        ({"names": ("x", "z")}, ["length 1", "names gives 2"]),
        ({"params": 3.0}, ["params", "float", "NamedTuple"]),
        ({"params": {"k": np.nan}}, ["'k'", "nan", "finite"]),
        ({"params": {"k": np.ones(2)}}, ["'k'", "one real number"]),
        ({"params": {"k": 1j}}, ["'k'", "1j", "real"]),
        ({"params": {"lambda": 1.0}}, ["'lambda'", "identifier"]),
        ({"params": {"_k": 1.0}}, ["'_k'", "underscore"]),
        ({"params": {1: 1.0}}, ["name 1", "identifier"]),
        ({"drift": 3.0}, ["drift", "'float'", "def"]),
        ({"drift": lambda x: -x}, ["drift", "(t, y, p, xp)"]),
        ({"drift": lambda t, y, p, xp: -y[0]}, ["drift", "ndarray", "(value,)"]),
        ({"drift": lambda t, y, p, xp: None}, ["drift", "NoneType", "tuple"]),
        ({"drift": lambda t, y, p, xp: ("a",)}, ["drift", "'a'", "real number"]),
        ({"drift": lambda t, y, p, xp: (1j * y[0],)}, ["drift", "real number"]),
        ({"drift": lambda t, y, p, xp: (np.inf,)}, ["drift", "inf", "finite"]),
        ({"drift": lambda t, y, p, xp: (-p.gamma * y[0],)}, ["drift", "gamma", "parameters are"]),
        ({"drift": lambda t, y, p, xp: (-p[9] * y[0],)}, ["drift", "out of range"]),
        ({"drift": lambda t, y, p, xp: (max(y[0], 0.0),)}, ["drift", "xp.where"]),
        ({"drift": lambda t, y, p, xp: (xp.sinc(y[0]),)}, ["drift", "'sinc'", "a model may use"]),
        ({"diffusion": lambda t, y, p, xp: (-0.5,)}, ["diffusion", "'x'", "-0.5", ">= 0"]),
        ({"diffusion": lambda t, y, p, xp: (-p.s,), "params": {"s": 2}}, ["diffusion", "-2", ">= 0"]),
        ({"diffusion": lambda t, y, p, xp: (0.0 * y[0] - 1,)}, ["diffusion", "-1", ">= 0"]),
        ({"diffusion": lambda t, y, p, xp: (np.nan,)}, ["diffusion", "nan", "finite"]),
        ({"diffusion": lambda t, y, p, xp: ((1.0, 2.0),)}, ["diffusion", "noise='general'"]),
        ({"noise": "general"}, ["noise='general'", "tuple of m entries"]),
    ],
)
def test_refusals_are_one_sentence(arguments, parts):
    given = {"drift": lambda t, y, p, xp: (-y[0],), "diffusion": one, "convention": "ito"} | arguments
    drift, diffusion = given.pop("drift"), given.pop("diffusion")
    with pytest.raises(InvalidInput) as refusal:
        SDE(drift, diffusion, **given)
    sentence(str(refusal.value), *parts)


def test_noise_of_either_sign_is_accepted_where_it_depends_on_the_state():
    SDE(one, lambda t, y, p, xp: (-y[0] * y[0],), convention="ito")
    SDE(one, lambda t, y, p, xp: (xp.sin(y[0]),), convention="ito")
    SDE(one, lambda t, y, p, xp: ((-1.0, 0.5),), convention="ito", noise="general")
    SDE(one, lambda t, y, p, xp: (0.0,), convention="ito")


def test_a_domain_that_the_probes_miss_is_no_reason_to_refuse():
    sde = SDE(one, lambda t, y, p, xp: (xp.sqrt(y[0] - 5),), convention="ito")
    assert float(sde.diffusion_at(0.0, (9.0,))[0]) == 2.0


def test_ragged_noise_and_replace():
    with pytest.raises(InvalidInput, match="all of one length"):
        SDE(
            lambda t, y, p, xp: y,
            lambda t, y, p, xp: ((1.0,), (1.0, 2.0)),
            names=("x", "z"),
            convention="ito",
            noise="general",
        )
    for sde, message in (
        (line(), "parameter 'q' does not exist; the model's parameters are k, s"),
        (SDE(one, one, params=(1.0,), convention="ito"), "params is not a mapping or NamedTuple"),
    ):
        with pytest.raises(InvalidInput, match=message):
            sde.replace(q=1.0)
    with pytest.raises(InvalidInput, match="nan; give a finite"):
        line().replace(k=np.nan)
    with pytest.raises(InvalidInput, match="negative constant"):
        SDE(one, lambda t, y, p, xp: (p.s,), params={"s": 1}, convention="ito").replace(s=-1)
    with pytest.raises(InvalidInput, match="convention='x' is unknown"):
        line().to("x")


@pytest.mark.parametrize("y", [1.0, (1.0, 2.0), ()])
def test_points_of_the_wrong_dimension(y):
    with pytest.raises(InvalidInput) as refusal:
        line().drift_at(0.0, y)
    sentence(str(refusal.value), "y=", "tuple of 1 components")


def test_impure_models_are_refused():
    table = [1.0]
    with pytest.raises(ImpureFunction) as refusal:
        SDE(lambda t, y, p, xp: (table[0] * y[0],), one, convention="ito")
    sentence(str(refusal.value), "drift", "'table'", "list", "params")
