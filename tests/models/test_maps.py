"""The discrete rules against their written-out formulas and known stationary laws."""

import numpy as np
import pytest

from eos_sde.models import maps
from solvers import InvalidInput, simulate

RNG = np.random.default_rng(7)
STATE = (RNG.normal(size=5), RNG.normal(size=5))
XI = (RNG.normal(size=5), RNG.normal(size=5))


def test_one_step_of_each_map_is_its_formula():
    eta, h, s = 0.3, 2.0, 0.5
    (x, y), (xi, _) = STATE, XI
    (got,) = maps.quadratic_map(eta, h, s).step((x,), (xi,))
    np.testing.assert_allclose(got, (1 - eta * h) * x + eta * s * xi, rtol=1e-13)
    (got,) = maps.line_map(eta, s, curvature=h, third=0.4, fourth=-0.6).step((x,), (xi,))
    np.testing.assert_allclose(got, x - eta * (h * x + 0.2 * x**2 - 0.1 * x**3) + eta * s * xi, rtol=1e-13)
    got = maps.self_stabilization_map(0.7, 1.1, eta, s).step((x, y), XI)
    np.testing.assert_allclose(got[0], -(1 + eta * y) * x + eta * s * xi, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got[1], y + eta * (0.7 - 0.55 * x**2), rtol=1e-13)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_curvature_noise_has_the_variance_of_both(noise):
    """A step from x by one deviation: eta sqrt(s^2 + c^2 x^2); at 0 a fixed point exactly where s = 0."""
    rule = maps.quadratic_map(0.1, 3.0, noise, spread=2.0)
    for x in (-1.5, 0.0, 0.4):
        (still,), (kicked,) = rule.step((x,), (0.0,)), rule.step((x,), (1.0,))
        assert still == pytest.approx(0.7 * x)
        assert abs(kicked - still) == pytest.approx(0.1 * np.hypot(noise, 2.0 * x))
    assert "noise" not in rule.sde.params._fields or noise > 0


@pytest.mark.parametrize("sharpness", [-3.0, 0.0, 1.0, 6.2, 6.4, 40.0])
def test_caeo_map_caps_the_rate(sharpness):
    base, delta, alpha, beta, s = 0.3, 0.1, 0.7, 1.1, 0.5
    rate = min(base, (2 - delta) / sharpness) if sharpness > 0 else base
    x, xi = 0.8, 0.3
    got = maps.caeo_map(base, delta=delta, alpha=alpha, beta=beta, noise=s).step((x, sharpness), (xi, 9.0))
    assert got[0] == pytest.approx((1 - rate * sharpness) * x + rate * s * xi, rel=1e-13)
    assert got[1] == pytest.approx(sharpness + rate * (alpha - beta * x**2 / 2), rel=1e-13)


def test_compiled_caeo_map_makes_the_same_steps():
    """The rule is a function of its own, which the compiled drift calls."""
    rule = maps.caeo_map(0.5, delta=0.1, alpha=1.0, beta=2.0)
    state = (np.array([0.1]), np.array([3.0]))  # uncapped at first, then capped
    for _ in range(40):
        state = rule.step(state, (0.0, 0.0))
    run = simulate(rule.as_sde(), (0.1, 3.0), t1=40, dt=1.0, paths=1, seed=0, save_at=[40.0])
    assert state[1] > 1.9 / 0.5
    np.testing.assert_allclose(run["mean"].values[-1], np.concatenate(state), rtol=1e-12, atol=1e-15)


def test_iterate_is_the_steps_and_reproducible():
    rule = maps.quadratic_map(0.3, 2.0, 0.5)
    run = rule.iterate((1.0,), steps=6, paths=3, seed=5, save_every=2)
    again = rule.iterate((1.0,), steps=6, paths=3, seed=5, save_every=2)
    np.testing.assert_array_equal(run.state, again.state)
    assert run.state.dims == ("path", "step", "component")
    assert run.step.values.tolist() == [0, 2, 4, 6]
    generator = np.random.Generator(np.random.Philox(key=5))
    state = (np.ones(3),)
    for _ in range(6):
        state = rule.step(state, generator.standard_normal((1, 3)))
    np.testing.assert_array_equal(run.state[:, -1, 0], state[0])
    other = rule.iterate((1.0,), steps=6, paths=3, seed=6)
    assert not np.array_equal(other.state[:, -1], run.state[:, -1])
    for variable in run.data_vars.values():
        assert {"units", "long_name"} <= set(variable.attrs)


@pytest.mark.parametrize("which", [0, 1])
def test_stationary_variance_of_the_quadratic_map(reference, which):
    item = reference["discrete_ou"]
    eta, s = item["parameters"]["eta"][which], item["parameters"]["s"]
    run = maps.quadratic_map(eta, 1.0, s).iterate((0.0,), steps=60, paths=20_000, seed=11, save_every=60)
    # 60 steps: 0.7^120 and 0.5^120 of the start are left. Variance of a Gaussian sample: relative sd
    # sqrt(2/n) = 1 %; at 4 sd the false-alarm rate is 6e-5. SME-1's variance, 15 % or more off, must fail.
    measured = float(run.state[:, -1, 0].var())
    truth = item["value"][3 + 4 * which]
    assert abs(measured / truth - 1) < 4 * np.sqrt(2 / 20_000)
    assert abs(measured / (eta * s**2 / 2) - 1) > 4 * np.sqrt(2 / 20_000)


def test_noiseless_self_stabilization_spirals_outward():
    # Near x^2 = 2 alpha/beta (sign alternating) the map's multipliers have modulus sqrt(1 + 2 alpha eta^2).
    alpha, beta, eta = 0.8, 2.0, 0.05
    centre = np.sqrt(2 * alpha / beta)
    run = maps.self_stabilization_map(alpha, beta, eta).iterate((centre * (1 + 1e-6), 0.0), steps=400, seed=0)
    x = np.abs(run.state.values[0, :, 0]) / centre - 1
    y = run.state.values[0, :, 1] / np.sqrt(2 * alpha)
    radius = np.hypot(x, y)
    # The ripple of the radius within each of the 4 turns moves the fit by about a per cent.
    growth = np.polyfit(np.arange(401), np.log(radius), 1)[0]
    assert growth == pytest.approx(
        0.5 * np.log(1 + 2 * alpha * eta**2), rel=0.03
    )  # ripple: 4 turns in 400 steps


def test_divergence_is_reported_per_path_and_never_raised():
    start = np.array([0.1, 50.0])
    run = maps.line_map(1.0, 0.0, curvature=1.0, fourth=6.0).iterate((start,), steps=40, paths=2, seed=0)
    assert run.diverged.values.tolist() == [False, True]


def test_caeo_with_delta_runs_away():
    # Undershoot runaway: S^2 grows by 2 (2 - delta) alpha per step of unit time, far above the edge.
    alpha, delta = 1.0, 0.5
    run = maps.caeo_map(0.5, delta=delta, alpha=alpha, beta=1.0).iterate((0.1, 4.0), steps=1000, seed=0)
    expected = np.sqrt(4.0**2 + 2 * (2 - delta) * alpha * 1000)
    # dS = (2 - delta) alpha/S per step with steps of at most 0.4: discretisation below 1 %.
    assert float(run.state[0, -1, 1]) == pytest.approx(expected, rel=0.01)


def test_catapult_map_is_the_two_layer_network():
    """Gradient descent on u and v themselves, whose output and kernel the map follows without remainder."""
    rng, n, eta = np.random.default_rng(0), 6, 0.7
    u, v = rng.standard_normal((2, n))
    kernel = (u @ u + v @ v) / n
    run = maps.catapult_map(eta, n).iterate((u @ v / np.sqrt(n), kernel), steps=8, seed=0)
    for state in run.state.values[0]:
        f = u @ v / np.sqrt(n)
        np.testing.assert_allclose(state, (f, (u @ u + v @ v) / n), rtol=1e-11)
        u, v = u - eta * f * v / np.sqrt(n), v - eta * f * u / np.sqrt(n)


@pytest.mark.parametrize(("edge", "left", "diverged"), [(1.9, 0, 0), (2.1, 1, 0), (3.9, 1, 0), (4.1, 1, 1)])
def test_catapult_edges(edge, left, diverged):
    """From f = 1e-3: within 2/l it never grows; up to 4/l it leaves and lands where eta l < 2; then it diverges."""
    run = maps.catapult_map(edge, 100).iterate((1e-3, 1.0), steps=4000, seed=0)
    f, kernel = run.state.values[0].T
    assert bool(run.diverged[0]) == diverged
    with np.errstate(invalid="ignore"):
        assert (np.nanmax(np.abs(f)) > 0.1) == left
    if not diverged:
        assert abs(f[-1]) < 1e-6
        assert edge * kernel[-1] < 2


def test_catapult_never_diverges_below_four_whatever_the_start():
    """Every state of the network, kernel >= 2 |f|/sqrt(n), up to the largest f: the bound of the docstring."""
    kernel, share = np.meshgrid(np.linspace(0.1, 3.99, 40), np.linspace(0.01, 1.0, 40))
    start = (share.ravel() * kernel.ravel() / 2 * 10, kernel.ravel())
    run = maps.catapult_map(1.0, 100).iterate(start, steps=500, paths=1600, seed=0)
    assert not run.diverged.values.any()


def test_the_map_is_an_euler_step_of_its_sde():
    rule = maps.self_stabilization_map(0.7, 1.1, 0.3, 0.5)
    sde = rule.as_sde()
    assert sde.convention == "ito"
    drift, diffusion, p = sde.compiled()
    y, xi = (0.4, -0.2), (1.3, 0.0)
    a, s = drift(0.0, y, p), diffusion(0.0, y, p)
    expected = [y[i] + a[i] * rule.dt + s[i] * np.sqrt(rule.dt) * xi[i] for i in range(2)]
    np.testing.assert_allclose(rule.step(y, xi), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: maps.caeo_map(0.1, delta=2.0, alpha=1.0, beta=1.0), "delta=2.0"),
        (lambda: maps.caeo_map(0.0, alpha=1.0, beta=1.0), "eta_base=0.0"),
        (lambda: maps.self_stabilization_map(1.0, 1.0, -0.1), "eta=-0.1"),
        (lambda: maps.quadratic_map(0.1, 1.0, -1.0), "noise=-1.0"),
        (lambda: maps.quadratic_map(0.1, 1.0, 1.0, spread=-1.0), "spread=-1.0"),
        (lambda: maps.quadratic_map(0.1, 1.0, 1.0).iterate((np.nan,), steps=1, seed=0), "state of 'x'"),
        (lambda: maps.quadratic_map(0.1, 1.0, 1.0).iterate((1.0, 2.0), steps=1, seed=0), "2 components"),
        (lambda: maps.quadratic_map(0.1, 1.0, 1.0).iterate((1.0,), steps=-1, seed=0), "steps=-1"),
        (lambda: maps.quadratic_map(0.1, 1.0, 1.0).iterate((1.0,), steps=1, paths=0, seed=0), "paths=0"),
        (lambda: maps.quadratic_map(0.1, 1.0, 1.0).iterate((1.0,), steps=1, seed=-1), "seed=-1"),
        (
            lambda: maps.quadratic_map(0.1, 1.0, 1.0).iterate((1.0,), steps=2**40, paths=2**20, seed=0),
            "saved states each needs",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        call()
