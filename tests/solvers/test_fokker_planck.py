"""Structure of the discrete operator: positivity, mass, detailed balance, conventions, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import (
    SDE,
    AccuracyWarning,
    FokkerPlanck,
    Grid,
    InvalidInput,
    from_potential,
    stationary_density,
)
from solvers.fluxes import bernoulli, hybrid, scharfetter_gummel
from tests.operators import (
    brownian_square,
    double_well,
    multiplicative,
    ornstein_uhlenbeck,
    rotating_ou,
    separable_wells,
    tilted_cosine,
)


def off_diagonal(matrix):
    dense = matrix.toarray()
    return dense - np.diag(np.diag(dense))


def test_bernoulli_function_is_accurate_everywhere():
    mpmath = pytest.importorskip("mpmath")
    points = [0.0, 1e-300, 1e-12, 1e-8, 1e-7, 1e-3, 0.7, 5.0, 40.0, 700.0]
    points += [-z for z in points]
    with mpmath.workdps(50):
        exact = [float(z / mpmath.expm1(z)) if z else 1.0 for z in map(mpmath.mpf, points)]
    np.testing.assert_allclose(bernoulli(np.array(points)), exact, rtol=4e-16)
    assert bernoulli(np.array(1e6)) == 0
    assert bernoulli(np.array(-1e6)) == 1e6


@given(st.floats(0, 1e3), st.floats(1e-3, 10), st.floats(-1e4, 1e4))
def test_fluxes_are_positive_and_consistent(diffusion, distance, lift):
    for flux in (scharfetter_gummel, hybrid):
        forward, backward = flux(np.array(diffusion), np.array(distance), np.array(lift))
        assert forward >= 0
        assert backward >= 0
        # F - G is the drift: a constant density is carried exactly. Both are rounded relative to F + G.
        assert abs(forward - backward - lift / distance) <= 4e-16 * (forward + backward) + 1e-300


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    st.floats(0.01, 2),
    st.floats(0, 1),
    st.sampled_from(["ito", "stratonovich", "klimontovich"]),
    st.lists(st.floats(0.02, 0.5), min_size=4, max_size=25),
    st.sampled_from(["reflecting", "absorbing"]),
)
def test_random_models_give_rate_matrices(c, noise, slope, convention, widths, wall):
    sde = SDE(
        lambda t, y, p, xp: (p[0] + p[1] * y[0] + p[2] * xp.sin(3 * y[0]) + p[3] * y[0] ** 3,),
        lambda t, y, p, xp: (p[4] * xp.sqrt(1 + p[5] * y[0] ** 2),),
        params=(*c, noise, slope),
        convention=convention,
    )
    grid = Grid(x=-1 + np.concatenate([[0], np.cumsum(widths)]))
    fp = FokkerPlanck(
        sde,
        grid,
        boundary=("reflecting" if wall == "reflecting" else {"x": (wall, wall)}),
        allow_wall_mass=True,
    )
    generator = fp.generator
    assert off_diagonal(generator).min() >= 0
    # a column sum adds 3 entries, each rounded relative to the diagonal
    scale = np.abs(generator.diagonal())
    sums = np.asarray(generator.sum(axis=0)).ravel()
    loss = np.zeros(grid.size)
    if wall == "absorbing":
        loss = fp.chain.loss
        assert (loss[[0, -1]] >= 0).all()
        assert (loss[1:-1] == 0).all()
    np.testing.assert_array_less(np.abs(sums + loss), 8e-16 * scale + 1e-300)
    if wall == "reflecting":
        assert fp.reversible
        masses = stationary_density(fp).values * grid.volumes
        np.testing.assert_allclose(masses.sum(), 1, rtol=1e-13)
        flow = generator.toarray() * masses[None, :]
        # detailed balance: log weights add up to 25 Peclet numbers below 1e4, each rounded
        np.testing.assert_allclose(flow, flow.T, rtol=1e-9, atol=1e-250)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.floats(-0.9, 0.9), st.integers(6, 14))
def test_random_two_dimensional_models_give_rate_matrices(c, correlation, n):
    sde = SDE(
        lambda t, y, p, xp: (p[0] - y[0] + p[1] * y[1], p[2] * y[0] * y[1] + p[3] - y[1]),
        lambda t, y, p, xp: ((1.0, 0.0), (p[4] * (1 + 0.1 * xp.sin(y[0])), xp.sqrt(1 - p[4] ** 2))),
        params=(*c, correlation),
        names=("x", "y"),
        convention="stratonovich",
        noise="general",
    )
    grid = Grid.uniform(x=(-2, 2, n), y=(-2, 2, n))
    d11, d22, d12 = 0.5, 0.5 * ((0.9 * correlation) ** 2 + 1 - correlation**2), 0.5 * 1.1 * abs(correlation)
    if d12 > min(d11, d22):
        return
    generator = FokkerPlanck(sde, grid, allow_wall_mass=True).generator
    assert off_diagonal(generator).min() >= 0
    sums = np.asarray(generator.sum(axis=0)).ravel()
    np.testing.assert_array_less(np.abs(sums), 2e-15 * np.abs(generator.diagonal()))


def test_boltzmann_weights_are_exact_for_a_potential():
    fp = FokkerPlanck(double_well(0.1, potential=True), Grid.uniform(x=(-2, 2, 37)))
    x = fp.grid.centers["x"]
    exact = np.exp(-(x**4 / 4 - x**2 / 2) / 0.1)
    density = stationary_density(fp).values
    # 37 partial sums of numbers up to 20
    np.testing.assert_allclose(density / density[18], exact / exact[18], rtol=1e-12)
    fp2 = FokkerPlanck(separable_wells(), Grid.uniform(x=(-2, 2, 20), y=(-2, 2, 16)))
    assert fp2.reversible
    x, y = fp2.grid.coords()
    exact = np.exp(-((x**2 - 1) ** 2 + y**2) / 0.2)
    density = stationary_density(fp2).values
    np.testing.assert_allclose(density, exact / (exact * fp2.grid.volumes).sum(), rtol=1e-11)


@pytest.mark.parametrize(
    ("convention", "key"),
    [("ito", "mult_stat_ito"), ("stratonovich", "mult_stat_strat"), ("klimontovich", "mult_stat_hk")],
)
def test_conventions_have_their_own_stationary_density(reference, convention, key):
    p0, second, mode = reference[key]["value"]
    grid = Grid.uniform(x=(-4, 4, 801))
    density = stationary_density(FokkerPlanck(multiplicative(convention), grid))
    x = density.x.values
    assert abs(density.values[400] / p0 - 1) < 1e-3  # second order: h^2 = 1e-4 times curvatures near 5
    assert abs((density * x**2 * grid.volumes).sum() / second - 1) < 1e-3
    assert abs(x[400 + np.argmax(density.values[400:])] - mode) <= 0.01  # one cell
    # negative control: the other two conventions are far outside these tolerances
    for other in {"mult_stat_ito", "mult_stat_strat", "mult_stat_hk"} - {key}:
        assert abs(density.values[400] / reference[other]["value"][0] - 1) > 0.2


def test_every_convention_equals_its_ito_form():
    grid = Grid.uniform(x=(-3, 3, 1500))
    for convention in ("stratonovich", "klimontovich"):
        sde = multiplicative(convention)
        direct = stationary_density(FokkerPlanck(sde, grid))
        converted = stationary_density(FokkerPlanck(sde.to("ito"), grid))
        # h = 0.004: differences of D against exact derivatives, h^2 times third derivatives
        assert float(abs(direct - converted).max()) < 1e-4


def test_weights_beside_a_wall_of_enormous_potential():
    """Sums of U / D from a corner where it is 1e25 would round all wells away; the reference has no such sum."""

    def wells(x, y, exp):
        return -2 * exp(-((x - 1) ** 2) - y**2) - exp(-(x**2) - (y - 1) ** 2) + 0.1 * exp(x**2 + x * y + y**2)

    D, edges = 0.1, np.linspace(-6, 6, 181)
    sde = from_potential(
        lambda t, y, p, xp: wells(y[0], y[1], xp.exp),
        lambda t, y, p, xp: (0.2**0.5, 0.2**0.5),
        names=("x", "y"),
        convention="ito",
    )
    grid = Grid(x=edges, y=edges)
    exact = wells(*grid.coords(), np.exp) / D
    exact = np.exp(np.minimum(exact.min() - exact, 0.0))
    exact /= (exact * grid.volumes).sum()
    density = stationary_density(FokkerPlanck(sde, grid)).values
    carried = exact > 1e-12 * exact.max()
    # on the way to such cells some 60 differences of potentials below 60, eps of the potential each: 8e-13
    assert np.abs(density[carried] / exact[carried] - 1).max() < 1e-12


def test_two_dimensional_density_of_correlated_noise(reference):
    # spacings with h1/h2 = sqrt(D11/D22) = 1.118; the error is second order
    errors = []
    for n in (50, 100):
        fp = FokkerPlanck(rotating_ou(), Grid.uniform(x=(-3.6, 3.6, n), y=(-3.8, 3.8, round(n * 1.18))))
        assert off_diagonal(fp.generator).min() >= 0 if n == 50 else True
        assert not fp.reversible
        density = stationary_density(fp)
        masses = density * fp.grid.volumes
        x, y = fp.grid.coords()
        moments = np.array([float((masses * f).sum()) for f in (x * x, x * y, y * y)])
        errors.append(np.abs(moments - reference["ou2d_nonrev_cov"]["value"]).max())
    assert errors[1] < 6e-3
    assert errors[0] / errors[1] > 3


def test_too_strong_correlation_is_reported_with_numbers():
    grid = Grid.uniform(x=(-4, 4, 20), y=(-4, 4, 60))
    with pytest.warns(AccuracyWarning, match=r"\|D12\| = 0.3 at .* exceeds"):
        fp = FokkerPlanck(rotating_ou(), grid)
    sums = np.asarray(fp.generator.sum(axis=0)).ravel()
    np.testing.assert_array_less(np.abs(sums), 4e-15 * np.abs(fp.generator.diagonal()))


def test_noise_that_vanishes_on_a_face_is_not_crossed():
    sde = SDE(
        lambda t, y, p, xp: (0.3 * y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (0.2**0.5 * y[0],),
        convention="stratonovich",
    )
    fp = FokkerPlanck(sde, Grid.uniform(x=(-3, 3, 300)))
    assert len(fp.chain.closed_classes) == 2
    with pytest.raises(InvalidInput, match="2 parts"):
        stationary_density(fp)
    half = FokkerPlanck(sde, Grid.uniform(x=(0, 3, 600)))
    x = half.grid.centers["x"]
    exact = x**2 * np.exp(-(x**2) / 0.2)
    exact /= (exact * half.grid.volumes).sum()
    np.testing.assert_allclose(stationary_density(half), exact, atol=2e-4)  # h = 0.005, maximum 1.9


def test_no_noise_on_an_axis_is_upwind():
    sde = SDE(
        lambda t, y, p, xp: (y[1], -0.8 * y[1] - 4 * y[0]),
        lambda t, y, p, xp: (0.0 * y[0], 0.8**0.5),
        names=("x", "v"),
        convention="ito",
    )
    fp = FokkerPlanck(sde, Grid.uniform(x=(-2, 2, 20), v=(-4, 4, 20)))
    assert off_diagonal(fp.generator).min() >= 0
    assert not fp.reversible
    with (
        pytest.warns(AccuracyWarning, match="cells along v are too coarse"),
        pytest.warns(AccuracyWarning, match="x has little or no noise"),
    ):
        density = stationary_density(fp)
    assert float(density.min()) >= 0


def test_periodic_drive_is_not_reversible_but_a_periodic_potential_is():
    circle = Grid.uniform(x=(0, 2 * np.pi, 50))
    assert not FokkerPlanck(tilted_cosine(), circle, boundary="periodic").reversible
    still = SDE(lambda t, y, p, xp: (-xp.sin(y[0]),), lambda t, y, p, xp: (1.0,), convention="ito")
    assert FokkerPlanck(still, circle, boundary="periodic").reversible


def test_mean_velocity_of_the_tilted_cosine(reference):
    grid = Grid.uniform(x=(0, 2 * np.pi, 800))
    density = stationary_density(FokkerPlanck(tilted_cosine(), grid, boundary="periodic"))
    velocity = float(((0.7 - np.sin(density.x)) * density * grid.volumes).sum())
    # second order: h^2 = 6e-5
    assert abs(velocity / reference["tilted_cos_vel_F0.7_D0.3"]["value"] - 1) < 1e-4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(z=(-1, 1, 10))), "same names"),
        (lambda: FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-1, 1, 9)), flux="magic"), "magic"),
        (
            lambda: FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-1, 1, 9)), boundary="x"),
            "unknown",
        ),
        (
            lambda: FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(3, 5, 50))),
            "misses the mass.*below",
        ),
        (lambda: FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-5, -3, 50))), "misses.*above"),
        (
            lambda: FokkerPlanck(tilted_cosine(), Grid.uniform(x=(0, 5, 50)), boundary="periodic"),
            "one period",
        ),
    ],
)
def test_unusable_input_is_refused(make, words):
    with pytest.raises(InvalidInput, match=words):
        make()


def test_time_dependence_and_nan_are_refused_with_the_place():
    grid = Grid.uniform(x=(-1, 1, 10))
    driven = SDE(lambda t, y, p, xp: (xp.sin(t) - y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    with pytest.raises(InvalidInput, match="depends on time"):
        FokkerPlanck(driven, grid)
    # in two cells of many: where a pulse sits
    pulse = SDE(
        lambda t, y, p, xp: (-y[0] + xp.where(xp.abs(y[0] - 0.50004) < 2e-5, xp.sin(t), 0.0),),
        lambda t, y, p, xp: (1.0,),
        convention="ito",
    )
    with pytest.raises(InvalidInput, match="drift depends on time"):
        FokkerPlanck(pulse, Grid.uniform(x=(-2, 2, 200_000)))
    rough = SDE(lambda t, y, p, xp: (xp.log(y[0]),), lambda t, y, p, xp: (1.0,), convention="ito")
    with pytest.raises(InvalidInput, match=r"drift of x is nan at x=-0.9"):
        FokkerPlanck(rough, grid)


def test_walls_that_are_part_of_the_model_are_accepted():
    FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-1, 1, 20)))
    FokkerPlanck(brownian_square(), Grid.uniform(x=(0, 1, 5), y=(0, 1, 5)))
    FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(3, 5, 20)), allow_wall_mass=True)
    FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(3, 5, 20)), boundary="absorbing")


def test_what_would_not_fit_in_memory_is_refused_before_it_is_allocated(monkeypatch):
    grid = Grid.uniform(x=(0, 1, 3000), y=(0, 1, 3000))
    monkeypatch.setattr("solvers.memory.available", lambda: 10**9)
    # 9e6 cells at about 480 bytes
    with pytest.raises(InvalidInput, match=r"operator on 9000000 cells needs 4\.\d+ GB, but 1 GB"):
        FokkerPlanck(brownian_square(), grid)
    with pytest.raises(InvalidInput, match=r"grid of 10000000000 cells needs 160 GB"):
        Grid.uniform(x=(0, 1, 100_000), y=(0, 1, 100_000))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FokkerPlanck(3, Grid.uniform(x=(-1, 1, 9))), "sde is a int"),
        (lambda: FokkerPlanck(ornstein_uhlenbeck(1, 0.5), 3), "grid is a int"),
    ],
)
def test_arguments_of_another_kind_are_refused(make, words):
    with pytest.raises(InvalidInput, match=words):
        make()


def test_warnings_point_at_the_line_that_called():
    with pytest.warns(AccuracyWarning, match=r"\|D12\|") as caught:
        FokkerPlanck(rotating_ou(), Grid.uniform(x=(-4, 4, 20), y=(-4, 4, 60)))
    assert caught[0].filename == __file__


def _flattening(noise_power, convention="klimontovich"):
    return SDE(
        lambda t, y, p, xp: (-y[0],),
        lambda t, y, p, xp: ((1.0 + y[0] ** 2) ** p.power,),
        params={"power": noise_power},
        convention=convention,
    )


def test_a_density_that_only_the_walls_make_normalisable_is_reported():
    grid = Grid.uniform(x=(-4, 4, 400))
    # Klimontovich, sigma = 1 + y^2: p = exp(1 / (1 + y^2)), constant far out
    with pytest.warns(AccuracyWarning, match=r"infinite mass.*depends on where the wall is") as caught:
        stationary_density(FokkerPlanck(_flattening(1.0), grid))
    assert caught[0].filename == __file__
    assert len(caught) == 2  # both walls
    stationary_density(FokkerPlanck(_flattening(1.0), grid, allow_wall_mass=True))
    # Ito, sigma = 1 + y^2: p = exp(1 / (1 + y^2)) / (1 + y^2)^2 is normalisable, and heavy at the wall all the same
    stationary_density(FokkerPlanck(_flattening(1.0, "ito"), grid))


@pytest.mark.parametrize("half", [0.1, 1.0, 2.0])
def test_a_box_inside_a_well_is_not_reported(half):
    stationary_density(FokkerPlanck(ornstein_uhlenbeck(1, 0.5), Grid.uniform(x=(-half, half, 100))))
    stationary_density(
        FokkerPlanck(
            SDE(lambda t, y, p, xp: (-1.0,), lambda t, y, p, xp: (1.0,), convention="ito"),
            Grid.uniform(x=(0, half, 100)),
            allow_wall_mass=True,
        )
    )
