"""Models, maps and solvers agree: Fokker-Planck, transfer operator and simulation on the same model."""

import math

import numpy as np
import pytest

from eos_sde import models
from eos_sde.models import maps
from solvers import FokkerPlanck, Grid, TransferOperator, eigenmodes, stationary_density
from solvers.ensemble import simulate


def variance(operator):
    density = stationary_density(operator)
    (name,) = density.dims
    mass = density * operator.grid.volumes
    return float((mass * density[name] ** 2).sum() - (mass * density[name]).sum() ** 2)


@pytest.mark.parametrize("eta_h", [0.4, 1.6])
def test_stationary_variances_along_the_ladder(eta_h):
    eta, s = 0.2, 0.5
    h = eta_h / eta
    exact = {
        "gradient_flow": eta * s**2 / (2 * h),
        "sme2": eta * s**2 / (h * (2 + eta_h)),
        "matched_linear": eta * s**2 / (h * (2 - eta_h)),
    }
    for name, value in exact.items():
        builder = getattr(models, name)
        sde = (
            builder(h, eta=eta, noise=s)
            if name == "matched_linear"
            else builder(curvature=h, eta=eta, noise=s)
        )
        reach = 7 * math.sqrt(value)
        cells = 200
        fp = FokkerPlanck(sde, Grid.uniform(x=(-reach, reach, cells)))
        # Exact Boltzmann weights at the centres: what is left is the second moment of a cell, h^2/12 at most.
        assert variance(fp) == pytest.approx(value, rel=(2 * 7 / cells) ** 2 / 12 + 1e-10)
    rule = maps.quadratic_map(eta, h, s)
    reach = 7 * math.sqrt(exact["matched_linear"])
    operator = TransferOperator(rule.as_sde(), Grid.uniform(x=(-reach, reach, 200)), step=rule.dt)
    # Spreading over the source cell and rounding to centres add (1 + (1 - eta h)^2) cell^2/12 a step.
    added = (1 + (1 - eta_h) ** 2) * (2 * reach / 200) ** 2 / (12 * (eta * s) ** 2)
    assert variance(operator) == pytest.approx(exact["matched_linear"] * (1 + added), rel=0.05 * added)


@pytest.mark.parametrize("which", [0, 1])
def test_transfer_eigenvalues_of_the_quadratic_map(reference, which):
    item = reference["discrete_ou"]
    eta, s = item["parameters"]["eta"][which], item["parameters"]["s"]
    rule = maps.quadratic_map(eta, item["parameters"]["lam"], s)
    reach = 7 * math.sqrt(item["value"][3 + 4 * which])
    modes = eigenmodes(
        TransferOperator(rule.as_sde(), Grid.uniform(x=(-reach, reach, 160)), step=rule.dt), k=4
    )
    expected = item["value"][4 * which : 3 + 4 * which]
    np.testing.assert_allclose(np.real(modes.eigenvalue[1:]), expected, rtol=5e-3)  # (cell/noise)^2/12 = 2e-3
    # The matched SDE's factor over a step has the same modulus, and lacks the sign beyond eta h = 1.
    matched = models.matched_linear(1.0, eta=eta, noise=s)
    gap = float(eigenmodes(FokkerPlanck(matched, Grid.uniform(x=(-reach, reach, 160))), k=2).gap)
    assert math.exp(-gap * eta) == pytest.approx(abs(expected[0]), rel=1e-3)


def test_flip_gap_is_twice_kramers_rate_in_the_deep_wells():
    c = 1.0
    errors = []
    for mu, s in ((0.2, 0.08), (0.2, 0.0566)):
        barrier = mu**2 / (2 * c * s**2)
        fp = FokkerPlanck(models.flip_normal_form(mu, c, s), Grid.uniform(A=(-1.0, 1.0, 400)))
        gap = float(eigenmodes(fp, k=2).gap)
        errors.append(abs(gap / (2 * models.flip_rate_kramers(mu, c, s)) - 1) * barrier)
    # Asymptotic series in 1/barrier: the error times the barrier settles at its first coefficient.
    assert errors[1] < 1
    assert errors[0] == pytest.approx(errors[1], rel=0.5)


def test_simulation_with_the_maps_step_has_the_maps_law():
    rule = maps.quadratic_map(0.3, 5.0, 0.5)  # eta h = 1.5
    run = simulate(
        rule.as_sde(), 0.0, t1=60 * rule.dt, dt=rule.dt, paths=20_000, seed=4, save_at=[60 * rule.dt]
    )
    exact = 0.3 * 0.5**2 / (5.0 * 0.5)
    measured = float(np.ravel(run["variance"])[-1])
    assert abs(measured / exact - 1) < 4 * math.sqrt(2 / 20_000)  # 4 sd: false-alarm rate 6e-5
    sme1 = 0.3 * 0.5**2 / (2 * 5.0)
    assert abs(measured / sme1 - 1) > 4 * math.sqrt(2 / 20_000)


def test_phase_flips_of_the_map_on_a_line_by_its_own_kernel():
    # Near the edge the flip normal form must give the map's slow eigenvalue; the relative error is O(mu).
    mu, kick, f4 = 0.05, 0.02, -6.0
    _, c = models.flip_coefficients(2.0 + mu, 1.0, 0.0, f4)
    rule = maps.line_map(2.0 + mu, kick / (2.0 + mu), curvature=1.0, fourth=f4)
    reach = 3 * math.sqrt(mu / c)
    operator = TransferOperator(rule.as_sde(), Grid.uniform(x=(-reach, reach, 120)), step=rule.dt)
    values = np.real(eigenmodes(operator, k=4).eigenvalue.values)
    assert values[1] < 0  # the period-2 phase: eigenvalue near -1
    per_step = [-math.log(abs(values[i])) for i in (1, 2)]
    fp = FokkerPlanck(models.flip_normal_form(mu, c, kick), Grid.uniform(A=(-reach, reach, 400)))
    rates = -np.real(eigenmodes(fp, k=3).eigenvalue.values)[1:]
    np.testing.assert_allclose(sorted(per_step), rates, rtol=3 * mu)


@pytest.mark.filterwarnings("ignore:cells are:solvers.errors.AccuracyWarning")
@pytest.mark.parametrize(("delta", "alpha", "beta", "noise"), [(-0.3, 0.05, 0.5, 0.3), (-0.1, 0.1, 1.0, 0.5)])
def test_modes_of_a_map_without_noise_along_the_sharpness(delta, alpha, beta, noise):
    """Some cells leave with certainty: scaled by the slowest functions, which are 0 there, modes were rounding."""
    rule = maps.caeo_map(0.5, delta=delta, alpha=alpha, beta=beta, noise=noise).as_sde()
    grid = Grid.uniform(x=(-3, 3, 30), S=(3, 5, 30))
    operator = TransferOperator(rule, grid, step=1.0, boundary="absorbing")
    exact = np.linalg.eigvals(operator.matrix.toarray())
    exact = exact[np.argsort(-np.abs(exact))]
    found = eigenmodes(operator, 4)
    # simple eigenvalues; the dense solver's own rounding, at condition numbers up to 1e4
    np.testing.assert_allclose(np.abs(found.eigenvalue[:4]), np.abs(exact[:4]), rtol=1e-11)
    right = (found.right.values * grid.volumes).reshape(found.sizes["mode"], -1).T
    wrong = np.abs(operator.matrix @ right - right * found.eigenvalue.values).sum(axis=0)
    assert (wrong < 1e-9 * np.abs(right).sum(axis=0)).all()
