"""CAEO's stability: the averaged well against the map that it averages, simulated; onsets, errors and regimes."""

import math

import numpy as np
import pytest

from eos_sde import thresholds
from eos_sde.models.maps import caeo_map, catapult_map
from eos_sde.thresholds.caeo_regimes import REGIMES, share_left_below
from eos_sde.thresholds.capped_well import CappedWell
from solvers import InvalidInput, mean_first_passage_time, simulate

ETA, ALPHA, BETA = 0.1, 1.0, 100.0
GIVEN = {
    "alpha": ALPHA, "beta": BETA, "gradient_variance": 0.6, "sharpness": 18.0, "eta_base": ETA, "horizon": 1000,
}  # fmt: skip
WELL = CappedWell(0.3, 0.01, 0.1)  # the same in the map's own units


# ---- the well


def test_reduced_step_is_the_map():
    model = caeo_map(ETA, delta=0.1, alpha=ALPHA, beta=BETA, noise=math.sqrt(0.6))
    rng = np.random.default_rng(0)
    x, z, xi = rng.normal(size=100), rng.uniform(-1, 5, 100), rng.normal(size=100)
    unit = math.sqrt(2 * ALPHA / BETA)
    there = model.step((unit * x, z / ETA), (xi, 0 * xi))
    here = WELL.step(x, z, xi)
    np.testing.assert_allclose(here[0], there[0] / unit, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(here[1], there[1] * ETA, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("z", [1.75, 1.82, 1.88, 2.1, 3.0])
def test_quasi_potential_is_that_of_the_autoregression(z):
    """The tilted kernel exp(p r (1 - x'^2)) N(x'; a x, r^2 q) has the principal eigenvalue 1 at the well's p.

    On a grid of 401 points out to 12 deviations the trapezoidal rule for Gaussians is exact to rounding.
    """
    drift, diffusion = WELL._replace(speed=1e-9).rates(np.array([z]))
    p = float(-2 * drift[0] / diffusion[0]) * 1e-9
    r = min(1.0, (2 - WELL.delta) / z)
    a, s = 1 - r * z, r * math.sqrt(WELL.noise)
    x = np.linspace(-12, 12, 401)
    kernel = np.exp(-((x[None, :] - a * x[:, None]) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi))
    tilted = kernel * np.exp(p * r * (1 - x**2)) * (x[1] - x[0])
    assert abs(np.abs(np.linalg.eigvals(tilted)).max() - 1) < 1e-7  # the second order of averaging adds 1e-9
    assert (p > 0) == (WELL.plateau < z < WELL.separatrix)


def test_far_below_the_plateau_the_moment_ends():
    """exp(theta X^2) has a finite mean over many steps for theta < (1 - |a|)^2/(2 s^2) only (Gaussian integrals)."""
    for z in (1.2, 1.4, 1.6, 1.7):
        drift, diffusion = WELL._replace(speed=1e-9).rates(np.array([z]))
        most = (2 - z) ** 2 / (2 * WELL.noise)
        p = float(2 * drift[0] / diffusion[0]) * 1e-9
        assert p <= most * (1 + 1e-6)
        if z < 1.6:
            assert p == pytest.approx(most, rel=1e-6)


def test_diffusion_at_the_plateau_is_that_of_the_central_limit():
    """Sum of the autocovariances of X^2, 2 a^(2 k), simulated autoregressions aside: 2 (1 + a^2)/(1 - a^2)."""
    z = WELL.plateau
    a = 1 - z
    expected = WELL.speed**2 * 2 * (1 + 2 * sum(a ** (2 * k) for k in range(1, 400)))
    assert WELL.rates(np.array([z]))[1][0] == pytest.approx(expected, rel=1e-4)
    near = WELL.rates(np.array([z - 1e-3, z, z + 1e-3]))[1]  # no jump where the formula changes
    assert abs(near[0] - 2 * near[1] + near[2]) < 1e-4 * near[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "speed", "delta"),
    [(0.3, 0.0025, 0.12), (0.7, 0.01, 0.35), (0.96, 0.01, 0.5)],
)
def test_rate_is_that_of_the_fokker_planck_operator(noise, speed, delta):
    """The double integral against the solver's operator, whose error is that of one cell: 2 % at 1200 cells."""
    well = CappedWell(noise, speed, delta)
    times = mean_first_passage_time(well.averaged(well.wall()))
    at_plateau = float(np.interp(well.plateau, times["z"].values, times.values))
    assert well.escape_rate() * at_plateau == pytest.approx(1, rel=0.02)


def exit_times(well, *, steps, paths, seed):
    """First times at which the map itself is beyond the wall, by the compiled solver; from the plateau."""
    model = caeo_map(ETA, delta=well.delta, alpha=well.speed / ETA**2, beta=BETA,
                     noise=math.sqrt(2 * well.noise * well.speed / ETA**2 / BETA) / ETA)  # fmt: skip
    unit = math.sqrt(2 * well.speed / ETA**2 / BETA)
    x = unit * np.random.default_rng(seed).standard_normal(paths)
    wall = well.wall() / ETA
    run = simulate(
        model.as_sde(), np.column_stack([x, np.full(paths, well.plateau / ETA)]), t1=float(steps), dt=1.0,
        paths=paths, seed=seed, save_at=[float(steps)], stop=lambda t, y, p, xp: y[1] > wall,
    )  # fmt: skip
    return run["exit_time"].values, run["exited"].values


@pytest.mark.parametrize(
    "well", [CappedWell(0.3, 0.0025, 0.13), CappedWell(0.7, 0.01, 0.34), CappedWell(0.3, 0.01, 0.1)]
)
@pytest.mark.slow
def test_rate_against_the_simulated_map(well):
    """The averaged rate is within a factor of 2 of the map's, as `stderr` of the escape onset takes it to be.

    200 exits leave the rate of the map uncertain by 7 %: three of these are added to the factor. The control is the
    Gaussian diffusion of the central limit, which ignores that X^2 cannot fall below 0.
    """
    expected = well.escape_rate()
    steps = int(4 / expected)
    times, exited = exit_times(well, steps=steps, paths=200, seed=3)
    waited = np.where(exited, times, steps).sum()
    rate = exited.sum() / waited
    assert exited.sum() > 100
    assert abs(math.log(rate / expected)) < math.log(2) + 3 / math.sqrt(exited.sum())


@pytest.mark.slow
def test_gaussian_diffusion_is_refuted():
    """Deep in the well the central limit's diffusion has an exponent too small by more than 2: 50 exits and not 1.3."""
    well = CappedWell(0.3, 0.0025, 0.1)
    z = np.linspace(well.plateau, well.separatrix, 4000)
    drift, diffusion = well.rates(z)
    r = np.minimum(1.0, (2 - well.delta) / z)
    a2 = (1 - r * z) ** 2
    m = r**2 * well.noise / (1 - a2)
    gaussian = 2 * (well.speed * r * m) ** 2 * (1 + a2) / (1 - a2)
    exact, wrong = (float(np.sum(-2 * drift / d) * (z[1] - z[0])) for d in (diffusion, gaussian))
    assert exact - wrong > 2
    assert 1e-6 < well.escape_rate() < 2e-6
    # 0.9e6 steps; a factor of 2 in the rate gives 2.7, and more than 10 with probability 1e-4
    assert np.sum(exit_times(well, steps=3000, paths=300, seed=4)[1]) <= 10


@pytest.mark.slow
def test_transfer_operator_is_the_truth():
    """Its cells along z add h |v| per step to the spread: 10 % in the rate at 120 cells; 500 exits: 4.5 %."""
    well = CappedWell(0.3, 0.01, 0.12)
    rate = well.escape_rate(method="map")
    times, exited = exit_times(well, steps=int(6 / rate), paths=500, seed=5)
    assert np.mean(exited) > 0.99
    assert times.mean() * rate == pytest.approx(1, abs=0.1 + 3 * 0.045)


# ---- the onset


def test_well_and_separatrix_merge_at_the_onset():
    found = thresholds.caeo_stability(**GIVEN, delta=0.1)
    at = CappedWell(0.3, 0.01, float(found.onset))
    assert at.plateau == pytest.approx(at.separatrix, rel=1e-12)
    assert at.plateau == pytest.approx(2 - at.delta, rel=1e-12)
    assert found.plateau == pytest.approx(at.plateau / ETA)
    assert float(found.small_noise_onset) == pytest.approx(ETA**2 * BETA * 0.6 / (4 * ALPHA))
    assert float(found.small_noise_onset) < float(found.onset)


def test_small_noise_law_is_the_limit():
    """1 - sqrt(1 - q) = q/2 + q^2/8 + ...: the relative difference is q/4 to first order."""
    for variance in (1e-2, 1e-3):
        found = thresholds.caeo_stability(**{**GIVEN, "gradient_variance": variance}, delta=0.5)
        q = ETA**2 * BETA * variance / (2 * ALPHA)
        assert float(found.onset) / float(found.small_noise_onset) - 1 == pytest.approx(q / 4, rel=q)


def test_escape_onset_has_one_escape_per_horizon():
    found = thresholds.caeo_stability(**GIVEN, delta=0.1)
    well = CappedWell(0.3, 0.01, float(found.escape_onset))
    assert well.escape_rate() * GIVEN["horizon"] == pytest.approx(
        1, rel=0.02
    )  # the search stops at 1e-3 of delta
    longer = thresholds.caeo_stability(**{**GIVEN, "horizon": 100_000}, delta=0.1)
    assert float(longer.escape_onset) < float(found.escape_onset) < float(found.onset)


def test_boundary_against_the_simulated_map():
    """Two errors below the boundary most runs stay for the horizon, two above most have left.

    With the rate's factor 2 as one error the share that leaves is below 1 - exp(-1/2) or above 1 - exp(-2) from one
    error on, 0.39 and 0.86; 200 runs leave 0.035 of each, so 0.5 and 0.7 are three of these away.
    """
    found = thresholds.caeo_stability(**GIVEN, delta=0.1).escape_onset
    shares = [
        exit_times(WELL._replace(delta=found.value + sign * 2 * found.stderr), steps=1000, paths=200, seed=6)[
            1
        ].mean()
        for sign in (-1, 1)
    ]
    assert shares[0] < 0.5
    assert shares[1] > 0.7


@pytest.mark.parametrize("name", ["alpha", "beta", "gradient_variance"])
def test_errors_follow_the_inputs(name):
    """To first order: an input moved by its error of 1 % moves the onset by its stderr, to a few per cent of it."""
    error = 0.01 * GIVEN[name]
    found = thresholds.caeo_stability(**GIVEN, **{f"{name}_stderr": error}, delta=0.1)
    moved = thresholds.caeo_stability(**{**GIVEN, name: GIVEN[name] + error}, delta=0.1)
    assert found.onset.stderr == pytest.approx(abs(float(moved.onset) - float(found.onset)), rel=0.05)
    model = thresholds.caeo_stability(**GIVEN, delta=0.1).escape_onset.stderr
    assert model > 0.05 * float(found.escape_onset)  # the factor 2 of the rate
    of_input = math.sqrt(found.escape_onset.stderr**2 - model**2)
    # the root is known to 1e-3 of delta, against a shift of some 1 %
    assert of_input == pytest.approx(abs(float(moved.escape_onset) - float(found.escape_onset)), rel=0.3)


# ---- the regimes


@pytest.mark.parametrize(
    ("changes", "delta", "regime"),
    [
        ({}, 0.05, "stable"),
        ({}, 0.3, "runaway"),
        ({}, -0.1, "stable"),
        ({"gradient_variance": 0.0}, 0.05, "runaway"),
        ({"gradient_variance": 2.5}, 0.1, "outside"),
        ({"sharpness": 2.0}, 0.1, "stable"),
        ({"sharpness": 2.0, "horizon": 100}, 0.1, "uncapped"),
        ({"sharpness": 50.0}, -2.5, "diverging"),
        ({"sharpness": 50.0}, -1.5, "stable"),
        ({"sharpness": 50.0, "catapult": 12.0}, -2.5, "stable"),
        ({}, 0.0, "stable"),  # on the edge the separatrix is at infinity
        ({}, 1.99, "runaway"),
        # the cap is reached where top + eta^2 alpha T = 2 - delta: 0.2 + 0.01 T = 1.9 at T = 170
        ({"sharpness": 2.0, "horizon": 169}, 0.1, "uncapped"),
        ({"sharpness": 2.0, "horizon": 171}, 0.1, "stable"),
        ({"sharpness": 39.9}, -3.0, "stable"),  # the first step is below 4, whatever the cap
        ({"sharpness": 40.0}, -3.0, "diverging"),
        ({"sharpness": 40.0}, -2.0, "diverging"),
        ({"sharpness": 40.0}, -1.99, "stable"),
    ],
)
def test_regimes(changes, delta, regime):
    assert thresholds.caeo_stability(**{**GIVEN, **changes}, delta=delta).regime == regime


def test_diverging_is_that_of_the_catapult():
    """Two-layer linear network, whose first step has eta l = 2 - delta: it diverges beyond 4 and not below."""
    for delta, diverges in ((-2.2, True), (-1.8, False)):
        model = catapult_map((2 - delta) / 50.0, width=100.0)
        with np.errstate(over="ignore", invalid="ignore"):
            run = model.iterate((0.1, 50.0), steps=400, seed=0)
        assert bool(run["diverged"].values[0]) == diverges
        here = thresholds.caeo_stability(**{**GIVEN, "sharpness": 50.0}, delta=delta)
        assert (here.regime == "diverging") == diverges


def test_share_that_falls_is_that_of_the_map():
    """Without noise the map spirals out below the cap, with noise enough for a well it stays."""
    shares = share_left_below([CappedWell(0.0, 0.05, -0.5), CappedWell(0.3, 0.001, -0.5)], 1000)
    assert shares.tolist() == [1.0, 0.0]


def test_map_holds_what_the_points_say():
    table = thresholds.caeo_stability_map(
        alpha=ALPHA, beta=BETA, per_example_variance=6.0, examples=1000, sharpness=18.0, horizon=1000,
        delta=[0.02, 0.2], batch_size=[8, 64], eta_base=[0.05, 0.1], alpha_stderr=0.1,
    )  # fmt: skip
    assert dict(table.sizes) == {"delta": 2, "batch_size": 2, "eta_base": 2}
    for delta, batch, eta in ((0.02, 8, 0.1), (0.2, 64, 0.1), (0.2, 8, 0.05)):
        cell = table.sel(delta=delta, batch_size=batch, eta_base=eta)
        variance = 6.0 * (1000 - batch) / (batch * 999)
        given = {**GIVEN, "gradient_variance": variance, "eta_base": eta, "alpha_stderr": 0.1}
        point = thresholds.caeo_stability(**given, delta=delta)
        assert REGIMES[int(cell["regime"])] == point.regime
        assert float(cell["escape_rate"]) == pytest.approx(point.escape_rate, rel=1e-9)
        assert float(cell["delta_c"]) == pytest.approx(float(point.onset), rel=1e-12)
        assert float(cell["delta_escape_stderr"]) == pytest.approx(point.escape_onset.stderr, rel=1e-4)
    assert table["regime"].attrs["flag_meanings"].split() == list(REGIMES)
    # more noise, more margin
    assert np.all(np.diff(table["delta_c"].values, axis=0) < 0)
    assert np.all(np.diff(table["delta_c"].values, axis=1) > 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": -1.0}, "alpha=-1.0 is not positive"),
        ({"beta": 0.0}, "beta=0.0 is not positive"),
        ({"delta": 2.0}, "delta=2.0 makes the learning rate zero"),
        ({"horizon": 0}, "horizon=0 is out of range"),
        ({"gradient_variance": math.nan}, "gradient_variance=nan is not finite"),
    ],
)
def test_bad_input_is_refused(changes, words):
    with pytest.raises(InvalidInput, match=words):
        thresholds.caeo_stability(**{**GIVEN, "delta": 0.1, **changes})
