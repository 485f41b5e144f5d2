"""CAEO's descent on smooth losses: the theorems against losses of known constants, and the certificate's verdicts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eos_sde.optimizers import caeo, descent, rule
from eos_sde.optimizers.certificate import descent_certificate
from eos_sde.optimizers.curvature import lanczos
from solvers.errors import InvalidInput


@dataclasses.dataclass
class Waves:
    """sum_j c_j cos(a_j x + b_j) in d dimensions: not convex, bounded, with |D^3| <= sum_j |c_j| |a_j|^3."""

    amplitudes: np.ndarray  # (m,)
    vectors: np.ndarray  # (m, d)
    phases: np.ndarray  # (m,)

    @classmethod
    def random(cls, seed, waves=6, dimension=3):
        rng = np.random.default_rng(seed)
        return cls(rng.normal(size=waves), rng.normal(size=(waves, dimension)), rng.uniform(0, 6.3, waves))

    @property
    def lipschitz(self):
        return float(np.abs(self.amplitudes) @ np.linalg.norm(self.vectors, axis=1) ** 3)

    @property
    def lowest(self):
        return -float(np.abs(self.amplitudes).sum())

    def loss(self, x):
        return float(self.amplitudes @ np.cos(self.vectors @ x + self.phases))

    def gradient(self, x):
        return -(self.amplitudes * np.sin(self.vectors @ x + self.phases)) @ self.vectors

    def sharpness(self, x):
        weights = -self.amplitudes * np.cos(self.vectors @ x + self.phases)
        return float(np.linalg.eigvalsh(self.vectors.T @ (weights[:, None] * self.vectors))[-1])


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    delta=st.floats(0.05, 1.95),
    base=st.floats(0.01, 20.0),
    error=st.floats(0.0, 1.0),
    refresh=st.integers(1, 5),
)
def test_both_theorems_hold_on_waves(seed, delta, base, error, refresh):
    loss = Waves.random(seed)
    rng = np.random.default_rng(seed + 1)
    rho, steps = loss.lipschitz, 40
    for certified in (True, False):
        x = np.random.default_rng(seed + 2).normal(size=3)
        first, first_sharpness = loss.loss(x), loss.sharpness(x)
        total, least, travelled, estimate = 0.0, np.inf, 0.0, 0.0
        for t in range(steps):
            gradient = loss.gradient(x)
            norm = float(np.linalg.norm(gradient))
            if t % refresh == 0:
                true, travelled = loss.sharpness(x), 0.0
                estimate = (
                    true / (1 + error * rng.uniform()) if true > 0 else true
                )  # too low by up to `error`
            if certified:
                bound = error * max(estimate, 0.0)
                rate = descent.certified_learning_rate(
                    base,
                    estimate,
                    delta,
                    error_bound=bound,
                    gradient_norm=norm,
                    lipschitz=rho,
                    travelled=travelled,
                )
                promised = delta / 2
            else:
                rate = rule.learning_rate(base, estimate, delta)
                rise = descent.sharpness_rise(rate, norm, lipschitz=rho, travelled=travelled)
                promised = descent.guaranteed_decrease(delta, error=error, rise=rise)
            after = x - rate * gradient
            # two losses of |terms| up to -lowest, each summed with rounding of some units, and their difference
            rounding = 64 * np.finfo(float).eps * -loss.lowest
            assert loss.loss(after) <= loss.loss(x) - promised * rate * norm**2 + rounding
            total, least = total + rate, min(least, norm**2)
            travelled += rate * norm
            x = after
        if certified:
            known = {"decrease": first - loss.lowest, "delta": delta, "base": base, "error": error}
            known |= {"sharpness": first_sharpness, "lipschitz": rho}
            assert total >= descent.guaranteed_time(steps, **known) * (1 - 1e-9)
            assert least <= descent.guaranteed_gradient(steps, **known) * (1 + 1e-9)


@settings(deadline=None)
@given(
    base=st.floats(1e-3, 1e3),
    sharpness=st.floats(-1e3, 1e3),
    delta=st.floats(0.0, 1.9),
    norm=st.floats(0.0, 1e3),
    lipschitz=st.floats(0.0, 1e3),
    travelled=st.floats(0.0, 10.0),
)
def test_the_certified_rate_is_the_largest_allowed(base, sharpness, delta, norm, lipschitz, travelled):
    given_ = {"gradient_norm": norm, "lipschitz": lipschitz, "travelled": travelled}
    rate = descent.certified_learning_rate(base, sharpness, delta, **given_)

    def edge(eta):
        return eta * (sharpness + lipschitz * (travelled + eta * norm / 3))

    size = rate * (abs(sharpness) + lipschitz * (travelled + rate * norm / 3))
    assert 0 < rate <= base
    assert edge(rate) <= 2 - delta + 8 * np.finfo(float).eps * size
    if rate < base:  # otherwise a larger one would do
        assert edge(rate) >= 2 - delta - 8 * np.finfo(float).eps * size
    if lipschitz == 0:
        assert rate == pytest.approx(rule.learning_rate(base, sharpness, delta), rel=1e-14)


def test_the_certified_rate_is_the_same_in_jax():
    rng = np.random.default_rng(0)
    sharpness, norm, travelled = 10 * rng.normal(size=50), rng.exponential(size=50), rng.exponential(size=50)
    given_ = {"gradient_norm": norm, "lipschitz": 3.0, "travelled": travelled}
    expected = descent.certified_learning_rate(0.5, sharpness, 0.1, **given_)
    compiled = jax.jit(lambda s: descent.certified_learning_rate(0.5, s, 0.1, **given_, xp=jnp))
    assert 5 < np.sum(expected == 0.5) < 45
    np.testing.assert_allclose(compiled(sharpness), expected, rtol=32 * np.finfo(np.float32).eps)
    assert np.isnan(compiled(np.nan)).all()


def test_the_certain_margin_is_sharp_on_a_quadratic():
    error = 0.3  # the estimate is sharpness/1.3
    for delta, rises in [
        (descent.certain_delta(error=error) - 0.01, True),
        (descent.certain_delta(error=error) + 0.01, False),
    ]:
        rate = rule.learning_rate(10.0, 5.0 / (1 + error), delta)
        assert bool(abs(1 - rate * 5.0) > 1) is rises
        assert bool(descent.guaranteed_decrease(delta, error=error) < 0) is rises


def test_the_guaranteed_gradient_falls_as_said():
    given_ = {"base": 1e3, "sharpness": 1.0, "decrease": 2.0, "delta": 0.5}
    rests = [descent.guaranteed_gradient(T, **given_, lipschitz=0.0) for T in (10, 1000)]
    assert rests[0] / rests[1] == pytest.approx(100.0)  # 1/T
    rises = [descent.guaranteed_gradient(T, **given_, lipschitz=1.0) for T in (10**9, 10**12)]
    # T^(-2/3) where the first sharpness is small beside rho sqrt(2 Delta S/delta), here 1e3 and 1e4
    assert rises[0] / rises[1] == pytest.approx(100.0, rel=2e-3)


def wave(params):
    return jnp.sum(1 - jnp.cos(params["x"])) + 0.5 * jnp.sum(
        (params["x"] @ jnp.array([[2.0, 0.0], [1.0, 1.0]])) ** 2
    )


START = {"x": jnp.array([1.5, -2.0])}


def test_the_certificate_of_a_quadratic_knows_its_curvature():
    certificate = descent_certificate(
        lambda x: 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * x**2), jnp.array([0.0, 1.0]), caeo(2.0, delta=0.5), steps=6,
        delta=0.5, lower_bound=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(certificate["sharpness"], 4.0, rtol=1e-5)
    np.testing.assert_allclose(certificate["learning_rate"], 1.5 / 4, rtol=1e-5)
    # the losses have some units of rounding each, and their difference is about their own size
    np.testing.assert_allclose(certificate["step_sharpness"], 4.0, rtol=1e-4)
    # the loss falls by eta (1 - eta lambda/2)|g|^2: the theorem is an equality here
    np.testing.assert_allclose(certificate["decrease"], 0.25, rtol=1e-3)
    assert certificate["certain"].all()
    assert certificate["holds"].all()
    assert certificate.attrs["verdict"] == "descent was certain at 6 of 6 steps; the loss rose at 0."
    assert (certificate["best_gradient"] <= certificate["best_bound"]).all()


def test_the_inequality_holds_along_a_stale_run_and_the_staleness_is_blamed():
    certificate = descent_certificate(wave, START, caeo(1.0, delta=0.05, refresh=7), steps=40, delta=0.05)
    assert certificate["holds"].all()
    assert not (certificate["failure"] == "unexplained").any()
    assert certificate["staleness"].max() == 6
    unsure = certificate.where(~certificate["certain"], drop=True)
    assert set(np.unique(unsure["hindrance"].astype(str))) <= {"staleness", "step"}
    rose = certificate["loss_change"] > certificate["rounding"]
    assert not (rose & certificate["certain"]).any()


@dataclasses.dataclass(frozen=True)
class Half:
    """An estimator that tells half the sharpness."""

    inner: object = dataclasses.field(default_factory=lanczos)

    def init(self, params, key):
        return self.inner.init(params, key)

    def update(self, hvp, params, state):
        value, bound, state = self.inner.update(hvp, params, state)
        return value / 2, bound, state

    def cost(self, params):
        return self.inner.cost(params)


@pytest.mark.slow
def test_an_estimate_that_is_too_low_is_found():
    given_ = {"steps": 10, "delta": 0.5}
    optimizer = caeo(1.0, delta=0.5, curvature=Half(), refresh=1)
    measured = descent_certificate(wave, START, optimizer, **given_)
    assert measured.attrs["error"] == pytest.approx(1.0, abs=0.01)  # true = (1 + e) estimate
    assumed = descent_certificate(wave, START, optimizer, **given_, error=0.02)
    capped = assumed["learning_rate"] < 1.0
    assert capped.any()
    assert (assumed["failure"][capped.values] == "estimate too low").all()


def test_a_rise_beyond_the_assumed_constant_is_found():
    certificate = descent_certificate(
        lambda x: jnp.sum(1 - jnp.cos(x)),
        jnp.array([2.0, 1.0]),
        caeo(1.0, delta=0.5),
        steps=5,
        delta=0.5,
        lipschitz=1e-6,
    )
    assert (certificate["failure"] == "sharpness rose too fast").any()
    assert "assumptions failed: sharpness rose too fast" in certificate.attrs["verdict"]


@pytest.mark.slow
def test_steps_off_the_gradient_and_runs_that_leave_the_numbers_are_found():
    heavy = descent_certificate(wave, START, caeo(0.2, delta=0.5, momentum=0.9), steps=5, delta=0.5)
    assert (heavy["failure"][1:] == "not along the gradient").all()
    gone = descent_certificate(
        lambda x: jnp.sum(-jnp.exp(x)), jnp.array([80.0]), caeo(1.0), steps=3, delta=0.1
    )
    assert (gone["failure"] == "not finite").any()


def test_on_the_edge_nothing_is_certain():
    certificate = descent_certificate(wave, START, caeo(1.0, delta=-0.05), steps=10, delta=-0.05)
    assert not certificate["certain"].any()
    assert (certificate["hindrance"] == "margin").all()
    assert certificate["holds"].all()


@pytest.mark.slow
def test_the_optimizer_takes_the_certified_rate():
    """A base rate far above the edge and an old estimate; |D^3| of `wave` is at most 1, that of a cosine."""
    delta = 0.05
    optimizer = caeo(50.0, delta=delta, refresh=6, lipschitz=1.0)
    certificate = descent_certificate(wave, START, optimizer, steps=30, delta=delta, lipschitz=1.0)
    promised = 0.5 * delta * certificate["learning_rate"] * certificate["gradient_norm"] ** 2
    assert (certificate["loss_change"] <= -promised + certificate["rounding"]).all()
    assert certificate["staleness"].max() == 5
    greedy = descent_certificate(wave, START, caeo(50.0, delta=delta, refresh=6), steps=30, delta=delta)
    assert (greedy["loss_change"] > greedy["rounding"]).any()  # which the plain rule does not keep
    slower = certificate["learning_rate"] < 1.95 / certificate["estimate"]
    assert slower[certificate["travelled"].values > 1e-3].all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lipschitz": -1.0}, "lipschitz must be a finite number"),
        ({"refresh": "auto"}, "give refresh a number of updates"),
        ({"momentum": 0.9}, "leave momentum=0.9 out"),
    ],
)
def test_the_certified_optimizer_refuses(change, words):
    with pytest.raises(InvalidInput, match=words):
        caeo(0.1, **({"lipschitz": 1.0, "refresh": 1} | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps=0 must be a positive whole number"),
        ({"delta": 2.0}, "delta must be a finite number below 2"),
        ({"error": -0.1}, "error=-0.1 must be a finite number"),
        ({"lipschitz": np.nan}, "lipschitz=nan must be a finite number"),
        ({"optimizer": optax.with_extra_args_support(optax.sgd(0.1))}, "optimizer must be caeo"),
    ],
)
def test_the_certificate_refuses(change, words):
    given_ = {"optimizer": caeo(1.0), "steps": 3, "delta": 0.1} | change
    with pytest.raises(InvalidInput, match=words):
        descent_certificate(wave, START, **given_)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"delta": 0.0}, "delta=0.0 must be positive"),
        ({"steps": 1.5}, "steps=1.5 must be a positive whole number"),
        ({"decrease": -1.0}, "decrease=-1.0 must be"),
        ({"sharpness": np.inf}, "sharpness=inf must be a finite number"),
    ],
)
def test_the_guarantee_refuses(change, words):
    given_ = {
        "steps": 3,
        "base": 1.0,
        "sharpness": 1.0,
        "decrease": 1.0,
        "delta": 0.1,
        "lipschitz": 1.0,
    } | change
    with pytest.raises(InvalidInput, match=words):
        descent.guaranteed_gradient(**given_)
