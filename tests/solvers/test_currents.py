"""Probability currents and entropy production."""

import warnings

import numpy as np
import pytest
from scipy import special

from solvers import (
    SDE,
    AccuracyWarning,
    FokkerPlanck,
    Grid,
    InvalidInput,
    TransferOperator,
    eigenmodes,
    entropy_production,
    escape_rate,
    evolve,
    probability_current,
    stationary_density,
)
from tests.operators import double_well, ornstein_uhlenbeck, rotating_ou, tilted_cosine
from tests.orders import assert_order

CIRCLE = 2 * np.pi


def correlated(sign=1.0):
    """Correlation that varies over the plane, and a rotation."""
    return SDE(
        lambda t, y, p, xp: (-y[0] - y[1], y[0] - y[1]),
        lambda t, y, p, xp: ((1.0, 0.0), (p.sign * 0.5 * xp.cos(y[0]), 0.9)),
        params={"sign": sign},
        names=("x", "y"),
        convention="ito",
        noise="general",
    )


def rotation(w, k=1.0):
    return SDE(
        lambda t, y, p, xp: (-p.k * y[0] - p.w * y[1], p.w * y[0] - p.k * y[1]),
        lambda t, y, p, xp: (1.0, 1.0),
        params={"w": w, "k": k},
        names=("x", "y"),
        convention="ito",
    )


def outflow(result, grid):
    """Net flow out of every cell, from the face currents."""
    total = np.zeros(grid.shape)
    for axis, name in enumerate(grid.names):
        width = grid.widths[name].reshape((1,) * axis + (-1,) + (1,) * (grid.d - axis - 1))
        total += np.diff(result[f"face_current_{name}"].values, axis=axis) * grid.volumes / width
    return total.ravel()


def _torus():
    return SDE(
        lambda t, y, p, xp: (xp.sin(y[0]) + 0.5, xp.cos(y[0] + y[1])),
        lambda t, y, p, xp: ((1.0, 0.0), (0.3 * xp.sin(y[1]), 0.8)),
        names=("x", "y"),
        convention="ito",
        noise="general",
    )


@pytest.mark.parametrize(
    ("sde", "grid", "boundary"),
    [
        (double_well(0.2), Grid.uniform(x=(-2, 2, 30)), "absorbing"),
        (tilted_cosine(), Grid.uniform(x=(0, CIRCLE, 30)), "periodic"),
        (double_well(0.2), Grid(x=np.sinh(np.linspace(-2, 2, 20))), {"x": ("reflecting", "absorbing")}),
        (rotation(2.0), Grid.uniform(x=(-2, 2, 11), y=(-2, 2, 9)), "absorbing"),
        (correlated(), Grid.uniform(x=(-2, 2, 12), y=(-2, 2, 11)), "absorbing"),
        (correlated(), Grid.uniform(x=(-2, 2, 12), y=(-2, 2, 11)), {"x": "absorbing", "y": "reflecting"}),
        (correlated(-1.0), Grid.uniform(x=(-2, 2, 30), y=(-2, 2, 5)), "reflecting"),
        (_torus(), Grid.uniform(x=(0, CIRCLE, 9), y=(0, CIRCLE, 9)), "periodic"),
        (_torus(), Grid.uniform(x=(0, CIRCLE, 30), y=(0, CIRCLE, 8)), "periodic"),
    ],
    ids=["line", "ring", "stretched", "plane", "corners", "mixed", "central", "torus", "central-torus"],
)
def test_the_face_currents_carry_exactly_what_the_generator_moves(sde, grid, boundary):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)  # central cross terms say so
        fp = FokkerPlanck(sde, grid, boundary=boundary, allow_wall_mass=True)
    density = np.random.default_rng(3).random(grid.shape)
    result = probability_current(fp, density)
    change = fp.generator @ (density * grid.volumes).ravel()
    np.testing.assert_allclose(-outflow(result, grid), change, atol=1e-12 * abs(fp.generator).max())
    for name, (low, _) in fp.boundary.items():
        axis = grid.names.index(name)
        ends = np.take(result[f"face_current_{name}"].values, [0, -1], axis=axis)
        if low == "periodic":
            np.testing.assert_array_equal(*np.split(ends, 2, axis=axis))
        elif low == "reflecting" and fp.boundary[name][1] == "reflecting":
            assert not ends.any()


def test_the_stationary_current_is_divergence_free_and_that_of_the_model(reference):
    exact = reference["tilted_cos_vel_F0.7_D0.3"]["value"]
    errors = []
    for n in (25, 50, 100):
        ring = FokkerPlanck(tilted_cosine(), Grid.uniform(x=(0, CIRCLE, n)), boundary="periodic")
        velocity = CIRCLE * probability_current(ring).current.values[0]
        # rounding of the solve: eps times the exchange D / h times a condition of a few tens
        assert np.ptp(velocity) < 1e-12
        errors.append(abs(velocity.mean() / exact - 1))
    # of second order in general; for a force that is one sine these terms cancel in the velocity, whatever F and D
    assert_order(errors, (25, 50, 100), 4)
    errors = []
    for n in (40, 80, 160):
        fp = FokkerPlanck(rotation(2.0), Grid.uniform(x=(-4, 4, n), y=(-4, 4, n)))
        result = probability_current(fp)
        exchange = float(
            (fp.chain.outflow * stationary_density(fp).values.ravel()).max() * fp.grid.volumes.max()
        )
        assert np.abs(outflow(result, fp.grid)).max() < 1e-12 * exchange
        x, y = fp.grid.coords()
        p = np.exp(-(x**2) - y**2) / np.pi
        errors.append(np.abs(result.current.values - np.array([-2 * y * p, 2 * x * p])).max())
    assert_order(errors, (40, 80, 160), 2)
    assert result.current.attrs["units"] == "1/time"
    assert list(result.component.values) == ["x", "y"]


def test_a_reversible_operator_has_no_stationary_current_and_a_relaxing_one_has():
    fp = FokkerPlanck(double_well(0.1), Grid.uniform(x=(-2, 2, 100)))
    assert not probability_current(fp).current.values.any()
    assert float(entropy_production(fp).rate) == 0
    start = np.zeros(100)
    start[30] = 1.0
    later = evolve(fp, start, [0.3])
    assert float(np.abs(probability_current(fp, later.isel(time=0, drop=True)).current).max()) > 0.01


def test_the_current_of_the_quasi_stationary_density_leaves_at_its_rate():
    fp = FokkerPlanck(
        double_well(0.1), Grid.uniform(x=(-2, 0.5, 80)), boundary={"x": ("reflecting", "absorbing")}
    )
    escape = escape_rate(fp)
    current = probability_current(fp, escape.quasi_stationary)
    np.testing.assert_allclose(float(current.face_current_x[-1]), float(escape.rate), rtol=1e-9)


def test_entropy_production_of_a_tilted_ring_is_work_over_temperature(reference):
    # force times mean velocity over D, whatever the potential
    exact = 0.7 * reference["tilted_cos_vel_F0.7_D0.3"]["value"] / 0.3
    errors = []
    for n in (25, 50, 100):
        fp = FokkerPlanck(tilted_cosine(), Grid.uniform(x=(0, CIRCLE, n)), boundary="periodic")
        found = entropy_production(fp)
        errors.append(abs(float(found.rate) / exact - 1))
        np.testing.assert_allclose(
            float((found.local * fp.grid.volumes).sum()), float(found.rate), rtol=1e-12
        )
        # in the chain too: the affinity of the loop times the flow around it
        loop = float(np.log(fp.chain.forward / fp.chain.backward).sum())
        flow = float(probability_current(fp).current.mean())
        np.testing.assert_allclose(float(found.rate), loop * flow, rtol=1e-9)
    assert_order(errors, (25, 50, 100), 4)  # that of the velocity: the affinity of the loop is exact


def test_entropy_production_of_rotating_ornstein_uhlenbeck_processes():
    # 2 w^2 / k for isotropic noise; else tr(F^T D^-1 F C) with J = F x p
    # the box ends at z = 6.3 deviations: of r^2 it leaves out 2 z^2 Q(z) = 1e-8
    errors = []
    for n in (50, 100, 200):
        fp = FokkerPlanck(rotation(1.5, 0.8), Grid.uniform(x=(-5, 5, n), y=(-5, 5, n)))
        errors.append(float(entropy_production(fp).rate) / (2 * 1.5**2 / 0.8) - 1)
    assert_order(errors, (50, 100, 200), 2)
    a, d = np.array([[1, 2], [-2, 1]]), np.array([[0.5, 0.3], [0.3, 0.4]])
    covariance = np.array([[0.34, 0.08], [0.08, 0.56]])
    f = -a + d @ np.linalg.inv(covariance)
    exact = np.trace(f.T @ np.linalg.inv(d) @ f @ covariance)
    # Cells in proportion to the noise: on coarser ones, or others, the hybrid flux is upwind somewhere, of lower order,
    # and the error changes its sign at 60 cells. z = 5.7 along y: 4e-7 outside.
    errors = []
    for n in (80, 160, 320):
        fp = FokkerPlanck(
            rotating_ou(), Grid.uniform(x=(-4.8, 4.8, n), y=(-4.8 * 0.8**0.5, 4.8 * 0.8**0.5, n))
        )
        errors.append(abs(float(entropy_production(fp).rate) / exact - 1))
    assert_order(errors, (80, 160, 320), 2)


def velocity_of_steps(force, noise, step, waves=60):
    """Mean velocity under x -> x + step (F - sin x) + noise, by Fourier modes: e^(iz sin x) is a sum of Bessel's J."""
    k = np.arange(-waves, waves + 1)
    kernel = np.exp(-(k[:, None] ** 2) * noise * step - 1j * k[:, None] * step * force)
    with np.errstate(under="ignore"):
        values, vectors = np.linalg.eig(kernel * special.jv(k[:, None] - k, k[:, None] * step))
    density = vectors[:, np.argmin(np.abs(values - 1))]
    return force - np.imag(np.conj(density[waves + 1] / density[waves]))


def test_a_transfer_operator_carries_its_steps_through_faces():
    exact = velocity_of_steps(0.7, 0.3, 0.05)
    errors = []
    for n in (60, 120, 240):
        step = TransferOperator(
            tilted_cosine(), Grid.uniform(x=(0, CIRCLE, n)), step=0.05, boundary="periodic"
        )
        result = probability_current(step)
        assert np.ptp(result.current.values) < 1e-12
        errors.append(float(result.current.mean()) * CIRCLE / exact - 1)
    assert_order(errors, (60, 120, 240), 2)  # the grid's own spreading
    grid = Grid.uniform(x=(-4, 4, 32), y=(-4, 4, 30))
    step = TransferOperator(rotation(2.0), grid, step=0.1)
    density = np.random.default_rng(4).random(grid.shape)
    masses = (density * grid.volumes).ravel()
    result = probability_current(step, density)
    np.testing.assert_allclose(-outflow(result, grid), (step.matrix @ masses - masses) / 0.1, atol=1e-13)
    stationary = probability_current(step).current
    assert float(stationary.sel(component="y").sel(x=1, y=0, method="nearest")) > 0.05  # anticlockwise


def test_unusable_input_is_refused():
    line = Grid.uniform(x=(-2, 2, 20))
    fp = FokkerPlanck(double_well(0.2), line)
    walled = FokkerPlanck(double_well(0.2), line, boundary="absorbing")
    step = TransferOperator(ornstein_uhlenbeck(1, 0.5), line, step=0.2, boundary="absorbing")
    still = SDE(
        lambda t, y, p, xp: (-y[0] + 0.5 * y[1], -y[1] - y[0]),
        lambda t, y, p, xp: (1.0, 0.0 * y[1]),
        names=("x", "y"),
        convention="ito",
    )
    one_way = FokkerPlanck(still, Grid.uniform(x=(-3, 3, 40), y=(-3, 3, 40)))
    one_noise = SDE(
        lambda t, y, p, xp: (-y[0] + y[1], -y[1] - y[0]),
        lambda t, y, p, xp: ((1.0,), (1.0,)),
        names=("x", "y"),
        convention="ito",
        noise="general",
    )
    singular = FokkerPlanck(one_noise, Grid.uniform(x=(-3, 3, 40), y=(-3, 3, 40)))
    for call, words in [
        (lambda: probability_current(fp.generator), "csr_array"),
        (lambda: probability_current(walled), "absorbing wall"),
        (lambda: probability_current(step), "through which wall"),
        (lambda: probability_current(fp, np.ones(3)), r"shape \(3,\)"),
        (lambda: probability_current(fp, -np.ones(20)), "contains -1"),
        (lambda: probability_current(fp, np.full(20, np.nan)), "contains nan"),
        (lambda: probability_current(fp, np.zeros(20)), "zero everywhere"),
        (lambda: probability_current(fp, "a"), "no array of numbers"),
        (lambda: probability_current(fp, eigenmodes(fp, 1).right), "dimensions"),
        (
            lambda: probability_current(fp, stationary_density(fp).assign_coords(x=np.arange(20))),
            "other cells",
        ),
        (lambda: entropy_production(step), "TransferOperator"),
        (lambda: entropy_production(one_way), "infinite"),
        (lambda: entropy_production(singular), "singular"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()
