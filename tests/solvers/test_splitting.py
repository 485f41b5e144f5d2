"""Rare exits by splitting against closed forms, lattice walks and Fokker-Planck rates; bits, refusals, Ctrl-C."""

import threading
import time

import numpy as np
import pytest
from scipy import stats

from solvers import SDE, AccuracyWarning, FokkerPlanck, Grid, InvalidInput, escape_rate, from_potential
from solvers.splitting import rare_exit

LIMIT = 4.5  # z-scores with 40 or more repeats: a false alarm in about 20 000 (Student); seeds are fixed


def _score(result, name, truth, allowance=0.0):
    """z-score of an estimate beyond what is allowed for the step."""
    miss = abs(float(result[name]) - truth) - allowance * truth
    return max(miss, 0.0) / float(result[f"{name}_stderr"])


# ---- an exactly known lattice walk -----------------------------------------------------------------------

WALK = SDE(
    lambda t, y, p, xp: (-0.25 + 0.0 * y[0],),
    lambda t, y, p, xp: (1.0,),
    params={"top": 15.0, "smooth": 1.0},
    convention="ito",
)
WALKING = {  # cubes, so that they are not read as levels: the walk is what it is at the ends of its steps
    "source": lambda t, y, p, xp: y[0] ** 3 < 1e-3,
    "target": lambda t, y, p, xp: y[0] ** 3 > p.top**3 - 1e-3,
    "score": lambda t, y, p, xp: (
        p.smooth * y[0] + (1 - p.smooth) * (xp.where(y[0] > 5, 1.0, 0.0) + xp.where(y[0] > 10, 1.0, 0.0))
    ),
    "scheme": "weak-euler",
    "dt": 1.0,
}


def _walk_probability(top):
    """Two-point steps of +3 or -5 quarters from 4 quarters: reach 4 top before 0 or less, by a linear system."""
    states = round(4 * top) - 1
    matrix, right = np.eye(states), np.zeros(states)
    for i in range(1, states + 1):
        for j in (i + 3, i - 5):
            if j > states:
                right[i - 1] += 0.5
            elif j > 0:
                matrix[i - 1, j - 1] -= 0.5
    return np.linalg.solve(matrix, right)[3]


@pytest.mark.slow
@pytest.mark.parametrize("smooth", [1.0, 0.0], ids=["height", "two plateaus"])
def test_the_probability_of_a_lattice_walk_is_unbiased(smooth):
    """Every score ties with many others; scores that are constant but for two steps tie nearly all."""
    result = rare_exit(WALK.replace(smooth=smooth), 1.0, seed=3, particles=100, repeats=400, **WALKING)
    truth = _walk_probability(15.0)
    assert 2.5e-4 < truth < 3.5e-4
    assert _score(result, "probability", truth) < LIMIT
    # negative control: a target one unit higher (4 of the walk's quarters)
    assert _score(result, "probability", _walk_probability(16.0)) > LIMIT
    assert result.attrs["bridged"].startswith("none")


def test_rare_probabilities_of_the_walk():
    result = rare_exit(WALK.replace(top=35.0), 1.0, seed=4, particles=100, repeats=100, **WALKING)
    truth = _walk_probability(35.0)
    assert truth < 1e-8
    assert _score(result, "probability", truth) < LIMIT
    # No score does better than the ideal; height is close to it here. The variance of 100 log-normal
    # numbers with log-variance v = -log(p)/n = 0.19 is known to about 20 %.
    assert 0.7 < float(result.probability_stderr / result.ideal_stderr) < 1.7


# ---- Brownian motion: the bridge makes every step exact --------------------------------------------------

MOVING = SDE(
    lambda t, y, p, xp: (p.mu + 0.0 * y[0],),
    lambda t, y, p, xp: (1.0,),
    params={"mu": -2.0, "low": 0.0, "high": 4.0},
    convention="ito",
)
BETWEEN = {
    "source": lambda t, y, p, xp: y[0] < p.low,
    "target": lambda t, y, p, xp: y[0] > p.high,
    "score": lambda t, y, p, xp: y[0],
}


def _ruin(x, mu=-2.0, high=4.0):
    return np.expm1(-2 * mu * x) / np.expm1(-2 * mu * high)


@pytest.mark.slow
def test_levels_are_crossed_inside_steps():
    """Steps of 0.1 against a distance of 4: two levels in one step are e^-160 apart, so there is no bias at all."""
    result = rare_exit(MOVING, 0.5, dt=0.1, seed=1, repeats=100, **BETWEEN)
    assert _ruin(0.5) < 1e-6
    assert _score(result, "probability", _ruin(0.5)) < LIMIT
    assert result.attrs["bridged"] == "target, source"
    low, high = float(result.probability_low), float(result.probability_high)
    assert low < float(result.probability) < high


@pytest.mark.slow
def test_several_starts_give_their_average():
    truth = 0.5 * (_ruin(0.3) + _ruin(1.0))
    result = rare_exit(MOVING, [[0.3], [1.0]], dt=0.1, seed=2, repeats=100, **BETWEEN)
    assert _score(result, "probability", truth) < LIMIT
    starts = np.repeat([[0.3], [1.0]], 100, axis=0)  # one start per particle
    result = rare_exit(MOVING, starts, dt=0.1, seed=2, repeats=100, **BETWEEN)
    assert _score(result, "probability", truth) < LIMIT


def test_a_level_reached_by_a_given_time():
    """P(max over [0, 1] of W > 4) = 2 P(W_1 > 4) by reflection; the source is out of reach."""
    sde = MOVING.replace(mu=0.0, low=-50.0, high=4.0)
    result = rare_exit(sde, 0.0, dt=0.05, seed=5, t1=1.0, repeats=100, **BETWEEN)
    assert _score(result, "probability", 2 * stats.norm.sf(4.0)) < LIMIT


@pytest.mark.slow
def test_a_time_alone_ends_paths():
    """The committor, 2 P(N > (high - y) / sqrt(t1 - t)), orders states by time too: close to the ideal error."""
    result = rare_exit(
        MOVING.replace(mu=0.0, high=5.0), 0.0, dt=0.01, seed=5, t1=1.0, repeats=100, target=BETWEEN["target"],
        score=lambda t, y, p, xp: (y[0] - p.high) / xp.sqrt(1.0 + 1e-9 - t),
    )  # fmt: skip
    assert _score(result, "probability", 2 * stats.norm.sf(5.0)) < LIMIT
    assert float(result.probability_stderr) < 3 * float(result.ideal_stderr)
    assert result.attrs["t1"] == pytest.approx(1.0)


def test_the_same_seed_gives_the_same_bits():
    runs = [
        rare_exit(MOVING, 0.5, dt=0.1, seed=9, repeats=repeats, threads=threads, **BETWEEN)
        for repeats, threads in ((6, 1), (6, 2), (4, 3))
    ]
    assert runs[0].identical(runs[1])
    np.testing.assert_array_equal(runs[0]["log_weight"][:4], runs[2]["log_weight"])
    other = rare_exit(MOVING, 0.5, dt=0.1, seed=10, repeats=6, **BETWEEN)
    assert len({*runs[0]["log_weight"].values, *other["log_weight"].values}) == 12


@pytest.mark.slow
def test_a_score_with_a_wall_before_the_target_says_so():
    with pytest.warns(AccuracyWarning, match=r"no repeat reached the target \(best score"):
        result = rare_exit(
            MOVING, 0.5, dt=0.1, seed=1, particles=10, repeats=2, **BETWEEN
            | {"score": lambda t, y, p, xp: xp.where(y[0] > 3.9, 1.0, 0.0)},
        )  # fmt: skip
    assert float(result.probability) == 0
    assert (result["log_weight"] == -np.inf).all()


def test_an_interruption_is_prompt_and_leaves_no_thread():
    before = threading.active_count()

    def stop(_fraction):
        raise KeyboardInterrupt

    for threads in (1, 2):
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            # 1e4 repeats of 30 ms: minutes, if nothing stopped them
            rare_exit(
                MOVING, 0.5, dt=0.001, seed=1, repeats=10_000, threads=threads, progress=stop, **BETWEEN
            )
        assert time.perf_counter() - start < 10
        assert threading.active_count() == before


# ---- rates -------------------------------------------------------------------------------------------------

WELL = from_potential(
    lambda t, y, p, xp: y[0] ** 4 / 4 - y[0] ** 2 / 2,
    lambda t, y, p, xp: (xp.sqrt(2 * p.D),),
    params={"D": 0.1, "edge": -0.8},
    convention="ito",
)
CROSSING = {
    "source": lambda t, y, p, xp: y[0] < p.edge,
    "target": lambda t, y, p, xp: y[0] > 0.7,
    "score": lambda t, y, p, xp: y[0],
}


def _well_rate(D):
    """Fokker-Planck; second order in cells of 2.5e-3, so exact to 1e-4 here (see test_observables)."""
    fp = FokkerPlanck(WELL.replace(D=D), Grid.uniform(x=(-2.5, 2.5, 2000)))
    return float(escape_rate(fp, target=lambda x: x > 0.7).rate)


# Euler-Maruyama is, to first order, exact for the drift b - dt (b b' + D b'')/2 and the diffusion
# D (1 - dt b'). Laplace's method on 1/rate = integral m integral s then gives a rate larger by the factor
# 1 + dt (U''(well) - |U''(saddle)|) / 4 = 1 + dt / 4, whatever D. Twice that is allowed for anharmonic terms.
STEP = 0.02
BIAS = 2 * STEP / 4


@pytest.mark.slow
@pytest.mark.parametrize(("D", "magnitude"), [(0.025, 1e-5), (0.015, 1e-8), (0.0135, 2e-9)])
def test_escape_rates_of_the_double_well(D, magnitude):
    truth = _well_rate(D)
    assert 0.9 < truth / magnitude < 1.4
    result = rare_exit(WELL.replace(D=D), -1.0, dt=STEP, seed=7, duration=300.0, repeats=40, **CROSSING)
    assert _score(result, "rate", truth, BIAS) < LIMIT
    assert float(result.rate_stderr / result.rate) < 0.1
    # negative control: twice the rate, as D larger by log(2) D / 0.25 or so would give
    assert _score(result, "rate", 2 * truth, BIAS) > LIMIT
    kramers = np.sqrt(2) / (2 * np.pi) * np.exp(-0.25 / D)
    assert abs(truth / kramers - 1) < 3 * D  # its own error is of order D


@pytest.mark.slow
def test_the_rate_does_not_depend_on_the_source():
    """Flux and probability change by factors; their product is the same number."""
    near, far = (
        rare_exit(
            WELL.replace(D=0.025, edge=edge), -1.0, dt=STEP, seed=8, duration=300.0, repeats=60, **CROSSING
        )
        for edge in (-0.9, -0.7)
    )
    assert float(near.flux) > 1.5 * float(far.flux)
    assert float(near.probability) < float(far.probability) / 1.5
    spread = np.hypot(float(near.rate_stderr), float(far.rate_stderr))
    assert abs(float(near.rate - far.rate)) < LIMIT * spread


def test_what_is_returned():
    result = rare_exit(
        WELL.replace(D=0.025), -1.0, dt=STEP, seed=8, duration=50.0, repeats=4, particles=20, **CROSSING
    )
    for name, variable in result.data_vars.items():
        assert variable.attrs["units"] == ("1/time" if "rate" in name or "flux" in name else "1")
        assert variable.attrs["long_name"]
    np.testing.assert_allclose(
        result["rate"], (result["repeat_flux"] * np.exp(result["log_weight"])).mean(), rtol=1e-12
    )
    np.testing.assert_allclose(result["flux"], result["exits"].mean() / result.attrs["duration"], rtol=1e-12)
    assert (result["levels"] >= 20).all()
    # the path of the flux, 2500 steps and the tenth before them, comes on top of the populations
    assert (result["path_steps"] > 2750).all()
    assert result.attrs["seed"] == 8
    assert result.attrs["convention"] == "ito"


def test_a_target_that_is_not_rare_is_named():
    with pytest.warns(AccuracyWarning, match="it is not rare"):
        rare_exit(WELL.replace(D=0.5), -1.0, dt=STEP, seed=8, duration=200.0, repeats=10, **CROSSING)


@pytest.mark.slow
def test_a_planar_system_without_potential():
    """Maier and Stein 1993 (Phys. Rev. E 48, 931), alpha = 4: the drift is no gradient.

    The grid is second order: 80 against 160 cells differ by 0.3 %. As in one dimension the step counts as
    dt times curvatures over 4; the largest curvature on the way, 2, gives 1 %, and twice that is allowed.
    """
    sde = SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3 - 4.0 * y[0] * y[1] ** 2, -(1 + y[0] ** 2) * y[1]),
        lambda t, y, p, xp: (0.2, 0.2),
        names=("x", "z"),
        convention="ito",
    )
    truth = float(
        escape_rate(
            FokkerPlanck(sde, Grid.uniform(x=(-1.9, 1.5, 100), z=(-1, 1, 100))), target=lambda x, z: x > 0.5
        ).rate
    )
    assert truth < 1e-5
    result = rare_exit(
        sde,
        [-1.0, 0.0],
        source=lambda t, y, p, xp: (y[0] + 1) ** 2 + y[1] ** 2 < 0.04,
        target=lambda t, y, p, xp: y[0] > 0.5,
        score=lambda t, y, p, xp: y[0],
        dt=STEP,
        seed=6,
        duration=300.0,
        repeats=60,
    )
    assert _score(result, "rate", truth, 0.02) < LIMIT
    assert float(result.rate_stderr / result.rate) < 0.1


# ---- refusals ----------------------------------------------------------------------------------------------

CALLS = {
    "particles": ({"particles": 5}, "particles=5 is too few"),
    "repeats": ({"repeats": 1}, "repeats=1 is too few"),
    "level": ({"level": 1.0}, "level=1.0"),
    "threads": ({"threads": 0}, "threads=0"),
    "seed": ({"seed": -1}, "seed=-1"),
    "dt": ({"dt": 0.0}, "dt=0.0 must be positive"),
    "dt word": ({"dt": "1"}, "dt='1' is not a finite time"),
    "scheme": ({"scheme": "eulr"}, "scheme='eulr'"),
    "no source": ({"source": None}, "source is missing"),
    "in target": ({"y0": 5.0}, "lies in the target already"),
    "in source": ({"y0": -1.0}, "lies in the source: give duration"),
    "duration": ({"duration": 10.0}, "must be one point inside the source"),
    "short": ({"y0": -1.0, "duration": 0.1}, "at least ten steps"),
    "both": ({"y0": -1.0, "duration": 10.0, "t1": 1.0}, "exclude each other"),
    "reversed": ({"score": lambda t, y, p, xp: -y[0]}, "does not rise towards the target"),
    "constant": ({"score": lambda t, y, p, xp: 1.0}, "score is 1 everywhere"),
    "tuple": ({"score": lambda t, y, p, xp: y}, "score must return one number"),
    "condition": ({"score": lambda t, y, p, xp: y[0] > 0}, "score returns bool"),
    "branch": ({"score": lambda t, y, p, xp: 1.0 if y[0] > 0 else 0.0}, "score branches"),
    "arity": ({"score": lambda y: y[0]}, r"score does not take \(t, y, p, xp\)"),
    "log": ({"score": lambda t, y, p, xp: xp.log(y[0] - 0.5)}, "score is not finite at y0"),
    "target": ({"target": lambda t, y, p, xp: y[0]}, "target returns float64"),
    "overlap": ({"source": lambda t, y, p, xp: (y[0] < 0) | (y[0] > 5)}, "source and target overlap"),
}


@pytest.mark.parametrize(("change", "words"), CALLS.values(), ids=CALLS)
def test_bad_input_is_refused(change, words):
    arguments = {"y0": 0.5, "dt": 0.1, "seed": 1, **BETWEEN, **change}
    with pytest.raises(InvalidInput, match=words):
        rare_exit(MOVING, arguments.pop("y0"), **arguments)


def test_paths_without_end_are_refused():
    with pytest.raises(InvalidInput, match=r"neither source nor target in max_steps=1000 steps"):
        rare_exit(MOVING.replace(mu=0.0, low=-1e3), 0.5, dt=0.1, seed=1, max_steps=1000, **BETWEEN)


def test_a_source_that_is_never_left_is_refused():
    with pytest.raises(InvalidInput, match="no path left the source in duration=1"):
        rare_exit(WELL.replace(D=1e-4, edge=-0.2), -1.0, dt=STEP, seed=1, duration=1.0, **CROSSING)


def test_a_rate_of_a_model_that_changes_is_refused():
    sde = SDE(lambda t, y, p, xp: (xp.sin(t) - y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    with pytest.raises(InvalidInput, match="depends on time"):
        rare_exit(
            sde, 0.0, dt=0.1, seed=1, duration=100.0,
            source=lambda t, y, p, xp: y[0] < 1.0, target=lambda t, y, p, xp: y[0] > 5.0, score=BETWEEN["score"],
        )  # fmt: skip
