"""Fluxes, transport without noise, correlated noise in three dimensions, and invariants under every wall."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from solvers import (
    SDE,
    AccuracyWarning,
    FokkerPlanck,
    Grid,
    InvalidInput,
    eigenmodes,
    evolve,
    from_potential,
    resolution,
    stationary_density,
)
from tests.operators import double_well, multiplicative, rotating_ou
from tests.orders import assert_order

FLUXES = ("scharfetter-gummel", "chang-cooper")
CONVENTIONS = ("ito", "stratonovich", "klimontovich")


def off_diagonal(matrix):
    rest = matrix.copy()
    rest.setdiag(0)
    return rest


def langevin():
    """Dx = v dt, dv = (-0.8 v - 4 x) dt + noise: variances 1/8 and 1/2, eigenvalue -0.4 + i (4 - 0.16)^1/2."""
    return SDE(
        lambda t, y, p, xp: (y[1], -0.8 * y[1] - 4 * y[0]),
        lambda t, y, p, xp: (0.0 * y[0], 0.8**0.5),
        names=("x", "v"),
        convention="ito",
    )


# ---- fluxes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flux", FLUXES)
@pytest.mark.parametrize(
    ("convention", "key"),
    [("ito", "mult_stat_ito"), ("stratonovich", "mult_stat_strat"), ("klimontovich", "mult_stat_hk")],
)
def test_both_fluxes_are_second_order_in_every_convention(reference, flux, convention, key):
    exact = reference[key]["value"][0]
    errors = []
    for n in (101, 201, 401):
        fp = FokkerPlanck(multiplicative(convention), Grid.uniform(x=(-4, 4, n)), flux=flux)
        errors.append(abs(float(stationary_density(fp).values[n // 2]) / exact - 1))
    assert_order(errors, [101, 201, 401], 2)


def test_chang_cooper_reads_the_face_and_scharfetter_gummel_the_difference():
    grid = Grid.uniform(x=(-2, 2, 31))  # no face at a zero of the drift
    potential, drift = double_well(0.1, potential=True), double_well(0.1)
    pairs = {
        f: [FokkerPlanck(m, grid, flux=f).generator.toarray() for m in (potential, drift)] for f in FLUXES
    }
    np.testing.assert_allclose(*pairs["chang-cooper"], rtol=1e-12)
    assert np.abs(pairs["scharfetter-gummel"][0] - pairs["scharfetter-gummel"][1]).max() > 1e-3
    # Chang and Cooper's own form: weight d = 1/w - 1/(e^w - 1) of the low cell, w = -a h / D
    h = grid.widths["x"][0]
    face = grid.edges["x"][1:-1]
    a = face - face**3
    w = -a * h / 0.1
    weight = 1 / w - 1 / np.expm1(w)
    forward, backward = a * weight + 0.1 / h, -a * (1 - weight) + 0.1 / h
    generator = pairs["chang-cooper"][1]
    np.testing.assert_allclose(np.diag(generator, -1), forward / h, rtol=1e-9)
    np.testing.assert_allclose(np.diag(generator, 1), backward / h, rtol=1e-9)


# ---- no noise along an axis ------------------------------------------------------------------------------


@pytest.mark.slow
def test_second_order_transport_without_noise():
    errors = {"upwind": [], "second-order": []}
    eigenvalue = -0.4 + 1j * np.sqrt(4 - 0.16)
    sizes = (32, 64, 128)
    for n in sizes:
        for advection, found in errors.items():
            fp = FokkerPlanck(
                langevin(), Grid.uniform(x=(-2.2, 2.2, n), v=(-4.4, 4.4, n)), advection=advection
            )
            sums = np.asarray(fp.generator.sum(axis=0)).ravel()
            # a column adds 9 entries
            np.testing.assert_array_less(np.abs(sums), 4e-15 * np.abs(fp.generator.diagonal()).max())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AccuracyWarning)
                masses = stationary_density(fp).values * fp.grid.volumes
                values = eigenmodes(fp, 4).eigenvalue.values[1:]
            x, v = fp.grid.coords()
            found.append(
                [
                    abs((masses * x * x).sum() * 8 - 1),
                    abs((masses * v * v).sum() * 2 - 1),
                    np.abs(values - eigenvalue).min(),
                ]
            )
    # the fluxes along v are second order too
    assert_order(errors["second-order"], sizes, 2)
    # upwind diffusion is of first order in both variances: nearer to 1 than to 2
    upwind = np.array(errors["upwind"])[:, :2]
    assert np.all(np.log2(upwind[1] / upwind[2]) < 1.5)


def test_second_order_transport_on_uneven_and_periodic_axes():
    """A rotor: dphi = w dt, dw = -w dt + noise; <w^2> = 1/2, uniform in phi, slowest mode e^{i phi} known."""
    sde = SDE(
        lambda t, y, p, xp: (y[1], -y[1]),
        lambda t, y, p, xp: (0.0 * y[0], 1.0),
        names=("phi", "w"),
        convention="ito",
    )
    errors = []
    sizes = (20, 40, 80)
    for n in sizes:
        steps = np.arange(n + 1) / n
        phi = 2 * np.pi * (steps + 0.05 * np.sin(2 * np.pi * steps))
        grid = Grid(phi=phi, w=np.linspace(-3.6, 3.6, 2 * n + 1))
        fp = FokkerPlanck(sde, grid, boundary={"phi": "periodic"}, advection="second-order")
        # e^{i k phi} decays at k^2 D, with D the diffusion of the angle in the long run, sigma^2 / 2 = 1/2
        values = eigenmodes(fp, 3).eigenvalue.values
        errors.append(np.abs(values[1:3] + 0.5).min())
    assert_order(errors, sizes, 2)


def test_what_upwind_fluxes_add_is_reported_with_the_number():
    shares = []
    for n in (48, 96):
        fp = FokkerPlanck(langevin(), Grid.uniform(x=(-2.2, 2.2, n), v=(-4.4, 4.4, n)))
        report = resolution(fp).sel(axis="x")
        shares.append(float(report.upwind_share))
        h = 4.4 / n
        # mean of |v| h / 2 for a normal v, whose variance 1/2 + 5 e grows with the diffusion e in x that this is
        added, variance = 0.0, 0.5
        for _ in range(50):
            added, variance = 0.5 * h * np.sqrt(2 / np.pi * variance), 0.5 + 5 * added
        # normal up to the square of what is added, relative to the variance
        square = (variance / 0.5 - 1) ** 2
        assert float(report.numerical_diffusion) == pytest.approx(added, rel=square)
        spread = np.sqrt(0.25 * (variance + 0.8 * added) * variance)
        assert shares[-1] == pytest.approx(added / spread, rel=square)
        assert float(report.peclet) == 0
    with pytest.warns(AccuracyWarning, match=r"upwind fluxes add a diffusion of 0\.0\d+ there, \d+ %"):
        stationary_density(FokkerPlanck(langevin(), Grid.uniform(x=(-2.2, 2.2, 48), v=(-4.4, 4.4, 96))))
    quiet = FokkerPlanck(
        langevin(), Grid.uniform(x=(-2.2, 2.2, 48), v=(-4.4, 4.4, 96)), advection="second-order"
    )
    stationary_density(quiet)
    assert float(resolution(quiet).numerical_diffusion.max()) == 0


def test_upwind_diffusion_that_outweighs_weak_noise_is_reported():
    """Hardly damped: dx = 0.1 y x dt + 0.5 dW, dy = 0.1 (1 - x^2/2) dt; of y^2/2 and x^2/2 follows <y> = -0.625."""
    model = SDE(
        lambda t, y, p, xp: (0.1 * y[0] * y[1], 0.1 * (1 - 0.5 * y[0] ** 2)),
        lambda t, y, p, xp: (0.5, 0.0),
        names=("x", "y"),
        convention="ito",
    )
    grid = Grid.uniform(x=(-8.5, 8.5, 210), y=(-7, 5.5, 112))
    with pytest.warns(
        AccuracyWarning, match=r"spreads the density 0\.\d+ times as fast as the model's own noise"
    ):
        upwind = stationary_density(FokkerPlanck(model, grid))
    second = stationary_density(FokkerPlanck(model, grid, advection="second-order"))  # without a warning
    y = grid.coords()[1]
    off = [abs(float((density.values * grid.volumes * y).sum()) + 0.625) for density in (upwind, second)]
    # what is warned of is there, beyond 5 percent; the other scheme is of second order
    assert off[0] > 0.05 * 0.625 > 5 * off[1]


def test_the_report_of_a_resolved_grid_agrees_with_the_closed_form():
    ou = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    fp = FokkerPlanck(ou, Grid.uniform(x=(-4, 4, 200)))
    report = resolution(fp)
    # P = x h / D, D = 1/2, <x^2> = 1/2: P_rms = h 2^1/2, excess P^2 / 12 up to P^4 / 720
    assert float(report.peclet[0]) == pytest.approx(0.04 * 2**0.5, rel=1e-3)
    assert float(report.excess_diffusion[0]) == pytest.approx(0.04**2 * 2 / 12, rel=1e-3)
    assert float(report.wall_mass.max()) < 1e-5
    cut = FokkerPlanck(ou, Grid.uniform(x=(-4, 0.5, 100)))
    assert float(resolution(cut).wall_mass.sel(axis="x", side="high")) > 1
    same = resolution(fp, stationary_density(fp))
    np.testing.assert_allclose(same.excess_diffusion, report.excess_diffusion, rtol=1e-12)
    for bad in (np.ones(3), "dense", np.zeros(200)):
        with pytest.raises(InvalidInput, match="density"):
            resolution(fp, bad)
    with pytest.raises(InvalidInput, match="fp is a int"):
        resolution(3)
    with pytest.raises(InvalidInput, match="advection='central'"):
        FokkerPlanck(ou, Grid.uniform(x=(-4, 4, 20)), advection="central")


# ---- correlated noise ------------------------------------------------------------------------------------


def correlated(r12, r13, r23):
    """Linear in three dimensions, unit noise with given correlations; and its stationary covariance."""
    a = np.array([[1.0, 0.8, 0.0], [-0.8, 1.0, 0.3], [0.0, -0.3, 1.5]])
    noise = np.array([[1, r12, r13], [r12, 1, r23], [r13, r23, 1]])
    root = np.linalg.cholesky(noise)
    sde = SDE(
        lambda t, y, p, xp: (
            -y[0] - 0.8 * y[1],
            0.8 * y[0] - y[1] - 0.3 * y[2],
            0.3 * y[1] - 1.5 * y[2],
        ),
        lambda t, y, p, xp: ((p[0], 0.0, 0.0), (p[1], p[2], 0.0), (p[3], p[4], p[5])),
        params=tuple(root[np.tril_indices(3)]),
        names=("x", "y", "z"),
        convention="ito",
        noise="general",
    )
    return sde, linalg.solve_continuous_lyapunov(a, noise)


def covariance(density, grid):
    masses = density.values * grid.volumes
    c = grid.coords()
    return np.array([[(masses * c[i] * c[j]).sum() for j in range(3)] for i in range(3)])


@pytest.mark.parametrize(("correlations", "positive"), [((0.4, 0.2, -0.3), True), ((0.6, 0.5, 0.5), False)])
@pytest.mark.filterwarnings("ignore:cells along")
def test_correlated_noise_in_three_dimensions(correlations, positive):
    sde, exact = correlated(*correlations)
    errors = []
    for n in (12, 18):
        grid = Grid.uniform(x=(-3.3, 3.3, n), y=(-3.3, 3.3, n), z=(-3.3, 3.3, n))
        if positive:
            fp = FokkerPlanck(sde, grid)
            assert off_diagonal(fp.generator).min() >= 0
        else:
            with pytest.warns(AccuracyWarning, match=r"sum to 1\.1 > 1") as caught:
                fp = FokkerPlanck(sde, grid)
            assert caught[0].filename == __file__
        scale = np.abs(fp.generator.diagonal()).max()
        # a column adds up to 19 entries
        assert np.abs(np.asarray(fp.generator.sum(axis=0))).max() < 1e-14 * scale
        errors.append(np.abs(covariance(stationary_density(fp), grid) - exact).max())
    # second order rather than first; the hybrid flux loses its upwind part as cells shrink, which falls faster still
    assert np.log(errors[0] / errors[1]) / np.log(1.5) > 1.5


def test_spacings_that_suit_the_noise_are_advised_in_three_dimensions():
    sde, _ = correlated(0.5, 0.3, 0.0)
    with pytest.warns(AccuracyWarning, match=r"for i = [xyz], .* in the ratio 1 : 1 : 1 suit this noise"):
        FokkerPlanck(sde, Grid.uniform(x=(-3, 3, 8), y=(-3, 3, 24), z=(-3, 3, 8)))
    FokkerPlanck(sde, Grid.uniform(x=(-3, 3, 8), y=(-3, 3, 8), z=(-3, 3, 8)))


def test_three_dimensions_contain_two():
    """Noise correlated in x and y alone: the z-marginal of the operator is the two-dimensional one."""
    flat = Grid.uniform(x=(-3, 3, 9), y=(-3, 3, 9))
    deep = Grid.uniform(x=(-3, 3, 9), y=(-3, 3, 9), z=(-1, 1, 4))
    sde = SDE(
        lambda t, y, p, xp: (-y[0] - 2 * y[1], 2 * y[0] - y[1], -y[2]),
        lambda t, y, p, xp: ((1.0, 0.0, 0.0), (0.6, 0.44**0.5, 0.0), (0.0, 0.0, 1.0)),
        names=("x", "y", "z"),
        convention="ito",
        noise="general",
    )
    two, three = FokkerPlanck(rotating_ou(), flat).generator, FokkerPlanck(sde, deep).generator
    spread = np.kron(np.eye(81), np.ones((4, 1)) / 4)
    gather = np.kron(np.eye(81), np.ones((1, 4)))
    np.testing.assert_allclose(gather @ (three @ spread), two.toarray(), atol=1e-12)


# ---- invariants under every wall -------------------------------------------------------------------------

kinds = st.sampled_from(["reflecting", "absorbing", "periodic"])


def _pair(kind, other):
    return ("periodic", "periodic") if "periodic" in (kind, other) else (kind, other)


pairs = st.builds(_pair, kinds, kinds)


def _waves(d, gradient, convention, noise):
    """A model that closes on [0, 2 pi]^d, with or without a gradient drift."""
    names = ("x", "y", "z")[:d]

    def sigma(t, y, p, xp):
        return tuple(p.noise * (1 + 0.3 * xp.sin(y[i])) for i in range(d))

    params = {"noise": noise}
    if gradient:

        def potential(t, y, p, xp):
            u = xp.cos(y[0]) + 0.0
            for i in range(1, d):
                u = u + 0.7 * xp.sin(y[i]) + 0.4 * xp.cos(y[i] - y[i - 1])
            return u

        return from_potential(
            potential, lambda t, y, p, xp: (p.noise,) * d, params=params, names=names, convention=convention
        )
    return SDE(
        lambda t, y, p, xp: tuple(0.5 + xp.sin(y[(i + 1) % d]) - 0.5 * xp.cos(y[i]) for i in range(d)),
        sigma,
        params=params,
        names=names,
        convention=convention,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(pairs, min_size=3, max_size=3),
    st.sampled_from(CONVENTIONS),
    st.sampled_from(FLUXES),
    st.booleans(),
    st.floats(0.05, 3),
    st.lists(st.floats(0.5, 2), min_size=15, max_size=15),
)
def test_walls_conventions_and_fluxes_in_every_dimension(
    d, boundary, convention, flux, gradient, noise, widths
):
    sde = _waves(d, gradient, convention, noise)
    edges = {}
    for k, name in enumerate(sde.names):
        part = np.cumsum([0.0, *widths[5 * k : 5 * k + 5]])
        edges[name] = 2 * np.pi * part / part[-1]
    grid = Grid(**edges)
    boundary = dict(zip(sde.names, boundary, strict=False))
    fp = FokkerPlanck(sde, grid, boundary=boundary, flux=flux, allow_wall_mass=True)
    generator = fp.generator
    # rates, and no column but those at absorbing walls loses anything: sums of at most 7 entries
    assert off_diagonal(generator).min() >= 0
    sums = np.asarray(generator.sum(axis=0)).ravel()
    loss = fp.chain.loss
    np.testing.assert_array_less(np.abs(sums + loss), 3e-15 * np.abs(generator.diagonal()) + 1e-300)
    touching = np.zeros(grid.shape, dtype=bool)
    for k, name in enumerate(sde.names):
        for side, kind in zip((0, -1), boundary[name], strict=True):
            if kind == "absorbing":
                touching[(slice(None),) * k + (side,)] = True
    assert np.all(loss[~touching.ravel()] == 0)
    assert np.all(loss[touching.ravel()] >= 0)
    if gradient and flux == "scharfetter-gummel":
        # detailed balance with exp(-U / D), whatever walls and spacing; U / D up to 2000 is rounded
        assert fp.reversible
        weights = np.exp(fp.chain.log_weights)
        inside = off_diagonal(generator).toarray() * weights[None, :]
        np.testing.assert_allclose(inside, inside.T, rtol=1e-9, atol=1e-200)
        u = sde.potential(0.0, grid.coords(), sde.params, np) / (0.5 * noise**2)
        exact = -u + np.log(grid.volumes)
        np.testing.assert_allclose(
            fp.chain.log_weights, (exact - exact.max()).ravel(), atol=1e-11 * (1 + np.ptp(u))
        )


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("flux", FLUXES)
def test_mass_and_positivity_from_one_cell(d, flux):
    sde = _waves(d, False, "stratonovich", 0.3)
    walls = dict(zip(sde.names, (("reflecting", "reflecting"), "periodic", "reflecting"), strict=False))
    grid = Grid.uniform(**dict.fromkeys(sde.names, (0, 2 * np.pi, 8)))
    fp = FokkerPlanck(sde, grid, boundary=walls, flux=flux, allow_wall_mass=True)
    start = np.zeros(grid.shape)
    start[(3,) * d] = 1 / grid.volumes.flat[0]
    later = evolve(fp, start, [0.1, 20.0], tol=1e-5)
    masses = (later * grid.volumes).sum(sde.names)
    np.testing.assert_allclose(masses, 1.0, rtol=1e-13)
    assert float(later.min()) >= 0
