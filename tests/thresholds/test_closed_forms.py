"""Closed forms against spectral radii, second-moment matrices and simulation."""

import math

import numpy as np
import pytest
import xarray as xr

from eos_sde import models, thresholds
from eos_sde.models import maps
from solvers import SDE, Grid, InvalidInput, TransferOperator


def radius(matrix):
    return np.max(np.abs(np.linalg.eigvals(np.asarray(matrix, dtype=float))))


def heavy_ball(eta, s, b):  # on (w, v): v+ = b v + s w, w+ = w - eta v+
    return [[1 - eta * s, -eta * b], [s, b]]


def nesterov(eta, s, b):  # v+ = b v + s (w - eta b v), w+ = w - eta v+
    slope = b - eta * b * s
    return [[1 - eta * s, -eta * slope], [s, slope]]


def averaged(eta, s, b):  # m+ = b m + (1 - b) s w, w+ = w - eta m+
    return [[1 - eta * (1 - b) * s, -eta * b], [(1 - b) * s, b]]


@pytest.mark.parametrize("b", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("s", [0.7, 30.0])
def test_deterministic_edges_are_where_the_linear_map_has_radius_one(b, s):
    cases = (
        (heavy_ball, thresholds.gradient_descent(s, momentum=b)),
        (nesterov, thresholds.gradient_descent(s, momentum=b, nesterov=True)),
        (averaged, thresholds.adam(s, b1=b)),
    )
    for matrix, threshold in cases:
        edge = float(threshold)
        assert radius(matrix(edge, s, b)) == pytest.approx(1.0, abs=1e-12)
        assert radius(matrix(edge * 0.999, s, b)) < 1
        assert radius(matrix(edge * 1.001, s, b)) > 1
        assert threshold.criterion == "deterministic"
        assert threshold.stderr == 0


def test_the_numbers_everyone_quotes():
    assert thresholds.gradient_descent(4.0) == 0.5
    assert float(thresholds.adam(1.0)) == pytest.approx(38.0)


@pytest.mark.parametrize(("batch", "value"), [(1, 0.304806), (2, 0.47340), (8, 0.79223)])
def test_gaussian_least_squares_fixtures(batch, value):
    threshold = thresholds.gaussian_least_squares((1.0, 2.0), batch_size=batch)
    assert float(threshold) == pytest.approx(value, abs=6e-6)  # half a unit of the last digit quoted


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_gaussian_least_squares_is_where_the_second_moments_stop_shrinking(batch):
    s = np.array([1.0, 2.0, 0.01, 5.0])
    eta = float(thresholds.gaussian_least_squares(s, batch_size=batch))
    # E v+_j = (1 - eta s_j)^2 v_j + (eta^2/B)(s_j^2 v_j + s_j sum_k s_k v_k), v = diagonal of the covariance
    matrix = np.diag((1 - eta * s) ** 2 + eta**2 / batch * s**2) + eta**2 / batch * np.outer(s, s)
    assert radius(matrix) == pytest.approx(1.0, abs=1e-12)
    shrunk = thresholds.gaussian_least_squares(np.append(7e3 * s, 0.0), batch_size=batch)
    assert float(shrunk) == pytest.approx(eta / 7e3, rel=1e-12)


@pytest.mark.parametrize("b", [0.0, 0.5, 0.9])
def test_momentum_sgd_second_moments(b):
    h, variance = 1.3, 0.6
    eta = float(thresholds.momentum_sgd_scalar(h, variance, momentum=b))

    def second_moments(rate):
        mean = np.array(heavy_ball(rate, h, b))
        slope = np.array([[-rate, 0.0], [1.0, 0.0]])  # derivative of the matrix with respect to h
        return np.kron(mean, mean) + variance * np.kron(slope, slope)

    assert radius(second_moments(eta)) == pytest.approx(1.0, abs=1e-7)  # near-defective at b = 0.9
    assert radius(second_moments(0.99 * eta)) < 1 < radius(second_moments(1.01 * eta))


def test_scalar_reference(reference):
    item = reference["sgd_gauss_s0.5"]
    assert float(thresholds.momentum_sgd_scalar(1.0, 0.25)) == pytest.approx(item["value"][1], rel=1e-14)


def test_one_dimensional_gaussian_regression():
    h, batch = 1.7, 4
    sizes = {
        m: float(thresholds.gaussian_regression_1d(h, batch_size=batch, model=m))
        for m in ("map", "sde", "decoupled")
    }
    assert sizes["map"] == pytest.approx(float(thresholds.gaussian_least_squares((h,), batch_size=batch)))
    # dw = -h w dt + sqrt(eta v) w dW: E w^2 grows at -2h + eta v, with v = 2 h^2/B exactly, h^2/B decoupled.
    assert -2 * h + sizes["sde"] * 2 * h**2 / batch == pytest.approx(0, abs=1e-12)
    assert -2 * h + sizes["decoupled"] * h**2 / batch == pytest.approx(0, abs=1e-12)
    assert thresholds.gaussian_regression_1d(h, batch_size=10**6, model="map") < 2 / h
    assert thresholds.gaussian_regression_1d(h, batch_size=10**6, model="sde") > 1e5


def test_pitchfork_reference(reference):
    item = reference["pitchfork_thresholds"]
    s = math.sqrt(item["parameters"]["s2"])
    values = [
        thresholds.pitchfork_d_bifurcation(s, convention="stratonovich"),
        thresholds.pitchfork_p_bifurcation(s, convention="stratonovich"),
        thresholds.pitchfork_moment(s, p=1, convention="stratonovich"),
        thresholds.pitchfork_moment(s, p=2, convention="stratonovich"),
    ]
    np.testing.assert_allclose([float(v) for v in values], item["value"], atol=1e-15)


@pytest.mark.parametrize("convention", ["ito", "klimontovich"])
def test_pitchfork_in_other_conventions_is_the_same_law(convention):
    s = 0.8
    for function in (thresholds.pitchfork_d_bifurcation, thresholds.pitchfork_p_bifurcation):
        a = float(function(s, convention=convention))
        sde = SDE(
            lambda t, y, p, xp: (p.a * y[0] - y[0] ** 3,),
            lambda t, y, p, xp: (p.s * y[0],),
            params={"a": a, "s": s},
            convention=convention,
        )
        x = 1e-4
        linear = float(sde.to("stratonovich").drift_at(0.0, (x,))[0]) / x
        assert linear == pytest.approx(float(function(s, convention="stratonovich")), abs=2e-8)  # x^2 = 1e-8


def calibration(alpha, beta, variance, n=1001, **errors):
    return xr.Dataset(
        {"alpha": alpha, "beta": beta, "per_example_variance": variance, **errors}, attrs={"examples": n}
    )


def test_plateau_against_the_reduced_map():
    # sigma^2 is the variance of the batch GRADIENT along u: the map kicks x by eta sigma.
    alpha, beta, eta, n, batch = 0.05, 0.05, 0.1, 1001, 10
    sigma2 = 100.0  # eta^2 beta sigma^2/(2 alpha) = 1/2: far from the small-noise limit
    per_example = sigma2 * batch * (n - 1) / (n - batch)
    law = thresholds.sharpness_plateau(calibration(alpha, beta, per_example, n), eta=eta, batch_size=batch)
    gap = 2 / eta - float(law)
    assert gap == pytest.approx((1 - math.sqrt(0.5)) / eta, rel=1e-12)

    rule = maps.self_stabilization_map(alpha, beta, eta, math.sqrt(sigma2))
    run = rule.iterate((0.0, -gap), steps=9000, paths=400, seed=3, save_every=25)
    late = run.state.sel(step=slice(3000, None))  # y relaxes in |y|/(eta alpha) = 600 steps
    x, y = late.sel(component="x"), late.sel(component="y")
    per_path = -y.mean("step")
    measured, stderr = float(per_path.mean()), float(per_path.std(ddof=1)) / math.sqrt(400)
    # The exact stationary identity, whose moments come from the same run.
    x2 = x**2
    identity = eta * beta / (4 * alpha) * (sigma2 + beta / 2 * float(x2.var()) + float((x2 * y**2).mean()))
    assert measured == pytest.approx(identity, abs=0.02 * gap)  # its 4th moments carry about half a per cent
    # The law leaves out Var x^2 and Var y, a relative 4 alpha^2/(beta sigma^2) and (sd y/gap)^2 of the gap.
    assert stderr < 0.005 * gap
    assert measured == pytest.approx(gap, abs=4 * stderr + 0.02 * gap)
    # Negative control: read as a variance of x itself (no eta^2), the law would put the gap near 0.025.
    assert measured > 50 * (1 - math.sqrt(1 - 0.5 * eta**2)) / eta


@pytest.mark.slow
def test_plateau_of_the_map_against_its_transfer_operator():
    """The stationary mean of y by powers of Ulam's matrix on 40 and 80 cells an axis, extrapolated in the cell size.

    The error of the extrapolation is below a third of its last correction, that of the runs is told. The law, which
    leaves out the fluctuations of the curvature, is far outside both.
    """
    fast, q = 0.008, 0.09  # eta^2 alpha, and the law's only parameter
    data = calibration(fast, 2 * fast, q, 2)  # two examples at batch 1: p = 1
    found = thresholds.sharpness_plateau(data, eta=1.0, batch_size=1, method="map")

    def gap(cells):
        grid = Grid.uniform(x=(-5.5, 5.5, cells), y=(-0.75, 0.4, cells))
        step = TransferOperator(
            models.self_stabilization(fast, 2 * fast, 1.0, q**0.5), grid, step=1.0, allow_wall_mass=True
        ).matrix
        mass = np.full(cells**2, 1.0 / cells**2)
        for _ in range(2000):  # memory: 50 steps
            mass = step @ mass
        return -float(mass.reshape(cells, cells).sum(axis=0) @ grid.centers["y"] / mass.sum())

    coarse, fine = gap(40), gap(80)
    correction = (coarse - fine) / 3
    assert abs(2.0 - float(found) - (fine - correction)) < 4 * found.stderr + correction / 3
    law = 2.0 - float(thresholds.sharpness_plateau(data, eta=1.0, batch_size=1))
    assert abs(law - (fine - correction)) > 8 * found.stderr + correction
    assert found.method.startswith("runs of the reduced map")


def test_plateau_small_noise_limit_and_delta_method():
    eta, alpha, beta, variance = 0.2, 1.0, 2.0, 0.01
    data = calibration(
        alpha, beta, variance, alpha_stderr=0.1, beta_stderr=0.1, per_example_variance_stderr=0.002
    )
    result = thresholds.sharpness_plateau(data, eta=eta, batch_size=1)
    first_order = eta * beta * variance / (4 * alpha)
    assert 2 / eta - float(result) == pytest.approx(first_order, rel=1e-3)
    # In this limit the gap is a product: relative errors add in squares.
    assert result.stderr == pytest.approx(first_order * math.sqrt(0.1**2 + 0.05**2 + 0.2**2), rel=1e-3)
    full = thresholds.sharpness_plateau(data, eta=eta, batch_size=1001)
    assert float(full) == pytest.approx(2 / eta)
    assert full.stderr == 0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: thresholds.gradient_descent(0.0), "sharpness=0.0"),
        (lambda: thresholds.gradient_descent(math.nan), "sharpness=nan"),
        (lambda: thresholds.gradient_descent(1.0, momentum=1.0), "momentum=1.0"),
        (lambda: thresholds.adam(1.0, b1=-0.1), "b1=-0.1"),
        (lambda: thresholds.gaussian_least_squares((), batch_size=1), "spectrum"),
        (lambda: thresholds.gaussian_least_squares((1.0, -1.0), batch_size=1), "spectrum"),
        (lambda: thresholds.gaussian_least_squares((1.0,), batch_size=0), "batch_size=0"),
        (lambda: thresholds.gaussian_least_squares((1.0,), batch_size=1.5), "batch_size=1.5"),
        (lambda: thresholds.momentum_sgd_scalar(1.0, -1.0), "variance=-1.0"),
        (lambda: thresholds.gaussian_regression_1d(1.0, batch_size=1, model="ode"), "model='ode'"),
        (lambda: thresholds.pitchfork_d_bifurcation(0.1, convention="strat"), "convention='strat'"),
        (lambda: thresholds.pitchfork_moment(0.1, p=0, convention="ito"), "p=0.0"),
        (
            lambda: thresholds.sharpness_plateau(calibration(-1.0, 1.0, 1.0), eta=0.1, batch_size=1),
            "alpha=-1.0",
        ),
        (
            lambda: thresholds.sharpness_plateau(calibration(0.01, 9.0, 9.0), eta=0.1, batch_size=1),
            "too large",
        ),
        (
            lambda: thresholds.sharpness_plateau(calibration(1.0, 1.0, 1.0), eta=0.1, batch_size=2000),
            "batch_size",
        ),
        (lambda: thresholds.sharpness_plateau(xr.Dataset({"alpha": 1.0}), eta=0.1, batch_size=1), "'beta'"),
        (
            lambda: thresholds.sharpness_plateau(
                calibration(1.0, 1.0, 1.0).drop_attrs(), eta=0.1, batch_size=1
            ),
            "attribute 'examples'",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        call()
