"""Predictions from a calibration: formulae, the barrier of the normal form, rates by quadrature, CAEO's path."""

import math

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose
from scipy.integrate import cumulative_simpson, simpson

from eos_sde.bridge import calibrate, forecast_plateau, load_task, predict
from eos_sde.bridge.prediction import caeo_path, phases, stationary_variances
from eos_sde.models import flip_rate_kramers
from solvers.errors import InvalidInput


def calibration(**changes):
    """A network near nothing in particular; the variables are those of `calibrate`."""
    values = {
        "eigenvalue": ("mode", [10.0, 3.0]), "eigenvalue_stderr": ("mode", [0.1, 0.1]),
        "eigenvalue_residual": ("mode", [1e-9, 1e-9]), "per_example_variance": 2.0,
        "per_example_variance_stderr": 0.2, "curvature": 10.0, "curvature_stderr": 0.1,
        "curvature_variance": 20.0, "third": 5.0, "third_stderr": 0.5, "fourth": 1.0, "fourth_stderr": 0.5,
        "alpha": 0.5, "alpha_stderr": 0.1, "beta": 100.0, "beta_stderr": 5.0,
    }  # fmt: skip
    return xr.Dataset(values | changes, attrs={"examples": 100, "task": "made up"})


N, BATCH = 100, 5
P = (N - BATCH) / (BATCH * (N - 1))


# ---- variances


@pytest.mark.parametrize("eta", [0.03, 0.12, 0.17])
def test_stationary_variances(eta):
    """By the recursion's fixed point, iterated; SME-1 and SME-2 from their Ornstein-Uhlenbeck rates."""
    found = stationary_variances(calibration(), eta=eta, batch_size=BATCH)
    h, s2, bends = 10.0, P * 2.0, P * 20.0
    plain = shaken = 0.0
    for _ in range(5000):
        plain = (1 - eta * h) ** 2 * plain + eta**2 * s2
        shaken = ((1 - eta * h) ** 2 + eta**2 * bends) * shaken + eta**2 * s2
    expected = {
        "map": plain, "map + curvature noise": shaken, "matched": plain, "SME-1": eta * s2 / (2 * h),
        "SME-2": eta * s2 / (2 * (h + eta * h**2 / 2)),
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for model, (value, error) in found.items():
        assert math.isclose(value, expected[model], rel_tol=1e-10), model
        assert math.isclose(error, 0.1 * value, rel_tol=1e-12), model  # 10 % of the gradient variance


def test_variances_without_a_stationary_state():
    assert (
        stationary_variances(calibration(), eta=0.195, batch_size=1)["map + curvature noise"][0] == math.inf
    )
    assert stationary_variances(calibration(), eta=0.15, batch_size=N)["map"] == (0.0, 0.0)
    still = calibration(per_example_variance=0.0)
    assert stationary_variances(still, eta=0.15, batch_size=5)["matched"] == (0.0, 0.0)


@pytest.mark.parametrize(
    ("eta", "batch", "message"),
    [
        (0.2, 5, r"eta=0.2 gives eta \* sharpness = 2, not in \(0, 2\)"),
        (0.3, 5, r"eta \* sharpness = 3"),
        (0.1, 5, r"eta \* curvature = 1.0 gives an infinite rate"),
        (0.15, 0, "batch_size=0 must be from 1 to 100"),
        (0.15, 101, "batch_size=101 must be from 1 to 100"),
    ],
)
def test_variances_refuse(eta, batch, message):
    with pytest.raises(InvalidInput, match=message):
        stationary_variances(calibration(), eta=eta, batch_size=batch)


# ---- phases


LINES = [(1.0, 0.0, "phase flip"), (0.7, -1.0, "phase flip"), (0.3, 1.0, "escape"), (0.0, 2.0, "escape")]


@pytest.mark.parametrize(("third", "fourth", "kind"), LINES)
@pytest.mark.parametrize("barrier", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("variance", [1e-12, 1e-5, 1e-3])
def test_the_barrier_is_met(third, fourth, kind, barrier, variance):
    """On the stable-oscillation side (C > 0, beyond the edge) and on the escape side (C < 0, before it)."""
    h = 4.0
    form = phases(curvature=h, third=third, fourth=fourth, gradient_variance=variance, barrier=barrier)
    assert form.kind == kind
    assert form.mu == form.eta * h - 2
    assert math.isclose(form.C, form.eta**2 * third**2 / 4 - form.eta * fourth / 6, rel_tol=1e-12)
    assert math.isclose(form.s, form.eta * math.sqrt(variance), rel_tol=1e-12)
    # mu is a difference from 2, known to 1e-15 / mu
    tolerance = 1e-9 + 1e-14 / abs(form.mu)
    assert math.isclose(form.mu**2 / (2 * abs(form.C) * form.s**2), barrier, rel_tol=tolerance)
    assert (form.mu > 0) == (form.C > 0) == (kind == "phase flip")
    assert math.isclose(form.edge, math.sqrt(form.mu / form.C), rel_tol=1e-12)


def passage_time(form, start, end):
    """Mean time of dA = (mu A - C A^3) dk + s dW from start to end, by quadrature of the closed form.

    From a reflecting point (0 in the basin by symmetry, far out beyond a phase) to an absorbing one: the
    integral of exp(U/D)/D times that of exp(-U/D) from the reflecting side, D = s^2/2.
    """
    d = form.s**2 / 2
    way = np.linspace(0.0, abs(end - start), 40_001)
    a = start + way * np.sign(end - start)
    u = (-form.mu * a**2 / 2 + form.C * a**4 / 4) / d
    u = u - u.min()
    inside = cumulative_simpson(np.exp(-u), x=way, initial=0.0)
    return simpson(np.exp(u) * inside, x=way) / d


@pytest.mark.parametrize(("third", "fourth", "kind"), LINES)
def test_rates_are_inverse_passage_times(third, fourth, kind):
    """Rate times mean passage time is 1 up to the ratio of the fast rates to it, of order exp(-barrier).

    Escape: the passage from the middle of the basin to its edge. Flip: from far out over a phase to 0, where
    the slowest mode vanishes by symmetry. The second-order error of 600 cells is a fifteenth of what 150 show.
    """
    barrier = 9.0
    form = phases(curvature=4.0, third=third, fourth=fourth, gradient_variance=1e-5, barrier=barrier)
    if kind == "escape":
        time = passage_time(form, 0.0, form.edge)
    else:
        time = passage_time(form, form.grid().edges["A"][-1], 0.0)
    rate = form.rate(discrete=False)
    grid_error = abs(form.rate(discrete=False, cells=150) - rate) / 15
    assert grid_error < 2e-4 * rate
    assert abs(rate * time - 1) < 4 * math.exp(-barrier) + grid_error / rate


@pytest.mark.parametrize(("third", "fourth", "kind"), LINES)
def test_rate_of_the_map_tends_to_that_of_the_diffusion(third, fourth, kind):
    """Their difference is O(mu), and O(sqrt(mu)) at an absorbing edge, which the map crosses between its steps."""
    for variance in (1e-2, 1e-3):
        form = phases(curvature=4.0, third=third, fourth=fourth, gradient_variance=variance, barrier=3.0)
        off = form.rate(discrete=True) / form.rate(discrete=False) - 1
        assert abs(off) < (3 * abs(form.mu) if kind == "phase flip" else math.sqrt(abs(form.mu))), form


def test_large_barriers_follow_kramers():
    """The gap is twice Kramers' rate; escape to an absorbing edge on both sides four times.

    Corrections: of order 1/barrier from the quartic well, and 1/sqrt(barrier) from the slope of the curvature
    at an absorbing edge.
    """
    for third, fourth, kind in LINES:
        previous = math.inf
        for barrier in (6.0, 10.0, 14.0):
            form = phases(curvature=4.0, third=third, fourth=fourth, gradient_variance=1e-5, barrier=barrier)
            kramers = flip_rate_kramers(abs(form.mu), abs(form.C), form.s)
            ratio = form.rate(discrete=False) / kramers / (2 if kind == "phase flip" else 4)
            off = abs(ratio - 1)
            assert off < (1 / barrier if kind == "phase flip" else 0.5 / math.sqrt(barrier))
            assert off < previous
            previous = off


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curvature": -1.0}, "curvature=-1, .* must be positive; calibrate at a minimum"),
        ({"curvature": math.nan}, "curvature=nan"),
        ({"gradient_variance": 0.0}, "gradient_variance=0 .* batch smaller than the training set"),
        ({"barrier": 0.0}, "barrier=0 must be positive"),
        ({"third": math.nan}, "third=nan is not finite"),
        ({"third": 0.0}, "third=0 and fourth=0 give no cubic term at the edge, hence no barrier; choose"),
        ({"gradient_variance": 1e4}, "noise is too large for a barrier of 3: raise the batch size"),
    ],
)
def test_phases_refuse(changes, message):
    given = {"curvature": 4.0, "third": 1.0, "fourth": 0.0, "gradient_variance": 1e-4} | changes
    with pytest.raises(InvalidInput, match=message):
        phases(**given)


# ---- CAEO


@pytest.mark.parametrize("delta", [0.1, 0.5, 1.5])
def test_capped_path_grows_like_the_square_root(delta):
    """S+ = S + (2 - delta) alpha/S: S^2 = S0^2 + 2 (2 - delta) alpha k, plus the sum of ((2 - delta) alpha/S)^2."""
    path = caeo_path(calibration(), eta=1.0, delta=delta, steps=400)
    step, sharpness = path["step"].values, path["sharpness"].values
    leading = 100.0 + 2 * (2 - delta) * 0.5 * step
    assert np.all(sharpness**2 >= leading * (1 - 1e-14))
    assert np.all(sharpness**2 - leading <= step * ((2 - delta) * 0.5 / 10) ** 2 + 1e-12)
    assert_allclose(path["learning_rate"], (2 - delta) / sharpness, rtol=1e-12)
    slope = (sharpness[-1] - sharpness[-2]) * sharpness[-2]
    assert math.isclose(slope, (2 - delta) * 0.5, rel_tol=1e-9)
    # d S^2 / d alpha = 2 (2 - delta) k
    assert math.isclose(path["sharpness_stderr"][-1], 0.1 * (2 - delta) * 400 / sharpness[-1], rel_tol=0.02)


def test_uncapped_path_is_straight_until_the_cap_binds():
    path = caeo_path(calibration(), eta=0.15, delta=0.1, steps=60)
    sharpness, rate = path["sharpness"].values, path["learning_rate"].values
    free = sharpness < 1.9 / 0.15
    assert free[0]
    assert not free[-1]
    count = int(free.sum())
    assert_allclose(sharpness[: count + 1], 10 + 0.15 * 0.5 * np.arange(count + 1), rtol=1e-12)
    assert np.all(rate[free] == 0.15)
    assert np.all(rate[~free] < 0.15)


def test_path_without_progressive_sharpening():
    path = caeo_path(calibration(alpha=-0.5), eta=0.1, delta=0.1, steps=4)
    assert_allclose(path["sharpness"], 10 - 0.05 * np.arange(5), rtol=1e-12)
    both = caeo_path(calibration(alpha=0.05, alpha_stderr=0.1), eta=0.1, delta=0.1, steps=4)
    assert_allclose(both["sharpness_stderr"], 0.1 * 0.1 * np.arange(5), rtol=1e-9, atol=1e-15)
    assert caeo_path(calibration(), eta=0.1, delta=0.1, steps=0)["sharpness"].values.tolist() == [10.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": 2.0}, "delta must be a finite number below 2, got 2.0"),
        ({"delta": math.nan}, "delta must be a finite number below 2"),
        ({"eta": 0.0}, "learning_rate must be positive"),
        ({"steps": -1}, "steps=-1 must be an integer of at least 0"),
    ],
)
def test_path_refuses(changes, message):
    for alpha in (0.5, -0.5):
        with pytest.raises(InvalidInput, match=message):
            caeo_path(calibration(alpha=alpha), **{"eta": 0.1, "delta": 0.1, "steps": 5} | changes)


# ---- predict


def test_predictions_of_each_rule():
    edge = predict(calibration(), rule="gd", eta=0.15, batch_size=N)
    assert edge["quantity"].values.tolist() == ["edge"]
    assert math.isclose(edge["predicted"][0], 0.2)
    assert math.isclose(edge["predicted_stderr"][0], 2 * 0.1 / 100)
    noisy = predict(calibration(), rule="sgd", eta=0.15, batch_size=BATCH)
    assert noisy.sizes["quantity"] == 9
    lost = ~np.isfinite(noisy["predicted"].values)  # the reduced map alone, whose swings are too large here
    assert noisy["quantity"].values[lost].tolist() == ["sharpness plateau (reduced map)"]
    assert "does not come to rest" in str(noisy["model"].values[lost][0])
    assert np.all(noisy["predicted_stderr"][~lost] > 0)
    names = [str(name) for name in noisy["quantity"].values]
    plateau = float(noisy["predicted"][[name.startswith("sharpness plateau") for name in names].index(True)])
    assert 0 < plateau < 2 / 0.15
    rate = float(noisy["predicted"][[name.startswith("metastability") for name in names].index(True)])
    form = phases(curvature=10.0, third=5.0, fourth=1.0, gradient_variance=P * 2.0)
    assert rate == form.rate(discrete=False)
    assert {str(u) for u in noisy["units"].values} == {"time", "weight^2", "1/time", "1/step"}
    assert predict(calibration(), rule="caeo", eta=0.15, batch_size=N).sizes["quantity"] == 1  # no noise


def test_a_law_without_an_answer_says_why():
    found = predict(calibration(alpha=-1.0), rule="sgd", eta=0.25, batch_size=BATCH)
    columns = (found[name].values for name in ("quantity", "predicted", "model"))
    table = {str(q): (float(v), str(m)) for q, v, m in zip(*columns, strict=True)}
    assert math.isnan(table["top variance"][0])
    assert "not in (0, 2)" in table["top variance"][1]
    for model in ("refined small-noise law", "reduced map"):
        assert math.isnan(table[f"sharpness plateau ({model})"][0])
        assert "alpha=-1.0 is not positive" in table[f"sharpness plateau ({model})"][1]
    assert found.attrs["trusted_plateau"] == ""
    assert found.attrs["trust"] == "no model has an answer"


@pytest.mark.slow
def test_each_plateau_says_what_speaks_against_it():
    """Every reason alone, in a calibration where nothing else does."""
    fast = 0.0005 / 0.15**2  # eta^2 alpha = 5e-4: swings of 2e-3, and a gap of 0.05
    q = 1 - (1 - 0.05) ** 2
    beta = 2 * fast * q / (0.15**2 * P * 2.0)
    calm = {"alpha": fast, "beta": beta, "curvature_variance": 1.0}
    calm["eigenvalue"] = ("mode", [(2 - 0.05) / 0.15, 3.0])

    def told(**changes):
        found = predict(calibration(**(calm | changes)), rule="sgd", eta=0.15, batch_size=BATCH)
        rows = {
            "law" if "law" in str(name) else "map": str(caution)
            for name, caution in zip(found["quantity"].values, found["caution"].values, strict=True)
            if str(name).startswith("sharpness plateau")
        }
        return rows, found.attrs

    rows, attrs = told()
    assert rows == {"law": "", "map": ""}
    assert "reduced map" in attrs["trusted_plateau"]
    rows, attrs = told(eigenvalue=("mode", [13.0, 12.0]))
    assert all("it knows one mode, and the second is at 92 %" in caution for caution in rows.values())
    assert "it knows most of them" in attrs["trust"]
    rows, _ = told(curvature_variance=40.0)
    assert all("curvature noise" in caution for caution in rows.values())
    rows, attrs = told(alpha=20 * fast, beta=20 * beta)
    assert "swings of the curvature" in rows["law"]
    assert "swings" not in rows["map"]
    rows, _ = told(beta=8 * beta)
    assert "no small noise" in rows["law"]
    rows, _ = told(eigenvalue=("mode", [6.0, 3.0]))
    assert all("whether training gets there" in caution for caution in rows.values())


@pytest.mark.slow
def test_the_flow_starts_from_the_calibration(small_task, small_start):
    """Its rows are those of a forecast from the same weights, and it refuses another problem."""
    known = calibrate(small_task, small_start, batch_size=8, k=2)
    given = {"rule": "sgd", "eta": 0.1, "batch_size": 8}
    flow = {"steps": 40, "repeats": 1, "seed": 3, "modes": 4}
    found = predict(known, **given, task=small_task, **flow)
    expected = forecast_plateau(small_task, small_start, **given, **flow)
    names = [f"{what} (stochastic central flow)" for what in ("sharpness plateau", "mean loss")]
    rows = found.sel(quantity=names)
    np.testing.assert_array_equal(rows["predicted"], expected["predicted"])
    np.testing.assert_array_equal(rows["predicted_stderr"], expected["predicted_stderr"])
    other = load_task("digits-mlp", examples=60, hidden=(4,), pool=2)
    for changes, message in (
        ({"task": other}, "is not the problem that was calibrated"),
        ({"calibration": known.drop_vars("params")}, "calibration holds no weights 'params'"),
        ({"task": None}, "task and steps belong together"),
    ):
        asked = {"calibration": known, "task": small_task} | given | flow | changes
        with pytest.raises(InvalidInput, match=message):
            predict(asked.pop("calibration"), **asked)
    with pytest.raises(InvalidInput, match="'seed' is for the flow"):
        predict(known, **given, seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "adam"}, "rule='adam' has no reduced model here: choose one of gd, sgd, caeo"),
        ({"eta": 0.0}, "eta=0.0 must be a positive learning rate"),
        ({"eta": math.nan}, "eta=nan must be"),
        ({"batch_size": 0}, "batch_size=0 must be from 1 to 100"),
        ({"batch_size": 101}, "batch_size=101 must be from 1 to 100"),
        ({"calibration": xr.Dataset()}, "calibration is not a dataset from bridge.calibrate"),
    ],
)
def test_predict_refuses(changes, message):
    given = {"calibration": calibration(), "rule": "sgd", "eta": 0.15, "batch_size": 5} | changes
    with pytest.raises(InvalidInput, match=message):
        predict(given.pop("calibration"), **given)
