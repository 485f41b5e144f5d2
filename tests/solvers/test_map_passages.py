"""Passage times, committors, escape and invariant densities of noisy maps."""

import mpmath
import numpy as np
import pytest
import scipy.sparse as sps

from solvers import (
    SDE,
    ConvergenceFailure,
    FokkerPlanck,
    GaussianNoise,
    Grid,
    HistogramNoise,
    InvalidInput,
    SampleNoise,
    TransferOperator,
    committor,
    escape_rate,
    mean_first_passage_time,
    stationary_density,
)
from solvers import step_elimination as elimination
from solvers.killed_maps import killed_steps, region_share
from tests.operators import ornstein_uhlenbeck


def test_independent_draws_in_closed_form():
    # x -> uniform on [-1, 1], whatever x: the targets' edges cut cells anywhere and nothing is lost by it
    draws = TransferOperator.of_map(
        lambda x: 0.0 * x, HistogramNoise([-1, 1], [1.0]), Grid.uniform(x=(-1, 1, 37)), step=0.5
    )
    time = mean_first_passage_time(draws, lambda x: x > 0.6)
    # a share of 0.2 per step of 0.5; edges are bisected to 2e-15 of the axis
    np.testing.assert_allclose(time.where(time > 0, 2.5), 0.5 / 0.2, rtol=1e-12)
    q = committor(draws, lambda x: x < -0.9, lambda x: x > 0.6).values
    outside = (q > 0) & (q < 1)
    np.testing.assert_allclose(q[outside], 0.2 / 0.25, rtol=1e-12)
    assert outside.sum() >= 25
    assert float(escape_rate(draws, target=lambda x: x > 0.6).rate) == pytest.approx(
        -np.log(0.8) / 0.5, rel=1e-12
    )


def test_random_walk_on_a_line():
    n = 20
    walk = TransferOperator.of_map(
        lambda x: x, SampleNoise([-1.0, 1.0]), Grid.uniform(x=(-0.5, n + 0.5, n + 1)), boundary="absorbing"
    )
    at = np.arange(n + 1)
    # cells at 0 and n are the last inside: leaving takes (i + 1) (n + 1 - i) steps; cells land on cells to 1e-13
    np.testing.assert_allclose(mean_first_passage_time(walk), (at + 1) * (n + 1 - at), rtol=1e-11)
    q = committor(walk, lambda x: x < 0.5, lambda x: x > n - 0.5)
    np.testing.assert_allclose(q, at / n, atol=1e-12)
    # the mode sin(pi (i + 1) / (n + 2)) has the eigenvalue cos(pi / (n + 2))
    assert float(escape_rate(walk).rate) == pytest.approx(-np.log(np.cos(np.pi / (n + 2))), rel=1e-10)


@pytest.mark.filterwarnings("ignore:cells are:solvers.errors.AccuracyWarning")
def test_two_states_with_a_tiny_exchange():
    p, r = 1e-30, 3e-25
    states = TransferOperator.of_map(
        lambda x: np.where(x < 1, 0.5, 1.5),
        SampleNoise([0.0, 1.0, -1.0], [1 - p - r, p, r]),
        Grid.uniform(x=(0, 2, 2)),
        boundary="absorbing",
        step=0.1,
    )
    grid = states.grid
    # from the left: r leaves through the wall, p to the right; from the right the reverse
    np.testing.assert_allclose(states.loss, [r, p], rtol=1e-12)
    time = mean_first_passage_time(states, lambda x: x > 1).values
    assert time[0] == pytest.approx(0.1 / (p + r), rel=1e-12)
    assert float(escape_rate(states, target=lambda x: x > 1).rate) == pytest.approx((p + r) / 0.1, rel=1e-12)
    ring = TransferOperator.of_map(
        states.sde.map, SampleNoise([0.0, 1.0], [1 - p, p]), grid, boundary="periodic"
    )
    np.testing.assert_allclose(stationary_density(ring), 0.5, rtol=1e-12)


NODES, WEIGHTS = np.polynomial.legendre.leggauss(80)


def landing(y, x, slope, deviation):
    return np.exp(-0.5 * ((y - slope * x) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))


def by_quadrature(slope, deviation, low, high, at):
    """Nystroem's method on the interval outside the targets: independent truth, to 1e-12.

    Mean number of steps and probability to end above, from `at`; the rate of decay per step.
    """
    from scipy.special import ndtr

    x, w = 0.5 * (low + high) + 0.5 * (high - low) * NODES, 0.5 * (high - low) * WEIGHTS
    kernel = landing(x[None, :], x[:, None], slope, deviation) * w[None, :]
    above = ndtr((slope * x - high) / deviation)
    steps, q = np.linalg.solve(np.eye(80) - kernel, np.column_stack([np.ones(80), above])).T
    onwards = landing(x, at, slope, deviation) * w
    return (
        1 + onwards @ steps,
        ndtr((slope * at - high) / deviation) + onwards @ q,
        -np.log(np.abs(np.linalg.eigvals(kernel)).max()),
    )


@pytest.mark.parametrize("slope", [0.8, -0.9])
def test_passages_of_an_autoregression_against_quadrature(slope):
    deviation, low, high, at = 0.3, -0.8, 0.9, 0.2
    exact = np.array(by_quadrature(slope, deviation, low, high, at))
    found = []
    for cells in (171, 684):
        # both edges a third into a cell, on both grids; 0.2 is a centre of neither
        width = 1.7 / 51 * 171 / cells
        start = low - (60 + 1 / 3) * 1.7 / 51
        grid = Grid.uniform(x=(start, start + width * cells, cells))
        operator = TransferOperator.of_map(lambda x: slope * x, deviation, grid, step=2.0)
        outside = lambda x: (x <= low) | (x >= high)  # noqa: E731
        time = mean_first_passage_time(operator, outside).interp(x=at, method="cubic") / 2.0
        q = committor(operator, lambda x: x <= low, lambda x: x >= high).interp(x=at, method="cubic")
        rate = escape_rate(operator, target=outside).rate * 2.0
        found.append([float(time), float(q), float(rate)])
    coarse, fine = np.array(found) - exact
    # second order: a sixteenth on cells of a quarter of the width, the next order is (h / deviation)^2 = 1e-2 of it
    np.testing.assert_allclose(coarse / fine, 16, rtol=0.1)
    # cells spread by (1 + slope^2) h^2 / 12, 1.2e-4 of the noise's variance; steps to leave change by a few times that
    np.testing.assert_allclose(fine / exact, 0, atol=6e-4)


def test_passages_of_the_plane():
    """Components on their own: a target in x is reached as on the line."""
    line = Grid.uniform(x=(-2, 2, 40))
    alone = TransferOperator.of_map(lambda x: 0.7 * x, 0.4, line)
    both = TransferOperator.of_map(
        lambda x, y: (0.7 * x, -0.5 * y), (0.4, 0.3), Grid.uniform(x=(-2, 2, 40), y=(-1.5, 1.5, 20))
    )
    # an edge that cuts cells
    time = mean_first_passage_time(both, lambda x, y: x > 0.77 + 0 * y)
    expected = mean_first_passage_time(alone, lambda x: x > 0.77)
    np.testing.assert_allclose(time, np.broadcast_to(expected.values[:, None], (40, 20)), rtol=1e-11)
    rates = [
        float(escape_rate(operator, target=target).rate)
        for operator, target in ((alone, lambda x: x > 0.77), (both, lambda x, y: x > 0.77 + 0 * y))
    ]
    assert rates[1] == pytest.approx(rates[0], rel=1e-9)


LINEAR = np.array([[0.85, 0.3], [-0.3, 0.8]])
SPREAD = np.array([[0.08, 0.036], [0.036, 0.06]])


def first_exits(paths, seed, scale=1.0):
    """Steps to leave the unit disc from (0.2, 0), and whether to the right, by direct simulation."""
    rng = np.random.default_rng(seed)
    factor = scale * np.linalg.cholesky(SPREAD)
    state = np.tile([[0.2], [0.0]], paths)
    steps, right = np.zeros(paths), np.zeros(paths, dtype=bool)
    alive = np.arange(paths)
    while alive.size:
        state = LINEAR @ state + factor @ rng.normal(size=(2, alive.size))
        steps[alive] += 1
        out = (state**2).sum(axis=0) > 1
        right[alive[out]] = state[0, out] > 0
        alive, state = alive[~out], state[:, ~out]
    return steps, right


@pytest.mark.slow
def test_exit_from_a_disc_against_direct_simulation():
    def predicted(cells):
        grid = Grid.uniform(x=(-2, 2, cells), y=(-2, 2, cells))
        operator = TransferOperator.of_map(
            lambda x, y: (LINEAR[0, 0] * x + LINEAR[0, 1] * y, LINEAR[1, 0] * x + LINEAR[1, 1] * y),
            GaussianNoise(SPREAD), grid, allow_wall_mass=True,
        )  # fmt: skip
        time = mean_first_passage_time(operator, lambda x, y: x**2 + y**2 > 1)
        q = committor(
            operator, lambda x, y: (x**2 + y**2 > 1) & (x <= 0), lambda x, y: (x**2 + y**2 > 1) & (x > 0)
        )
        return np.array([float(f.interp(x=0.2, y=0.0, method="cubic")) for f in (time, q)])

    coarse, fine = predicted(40), predicted(56)
    steps, right = first_exits(100_000, 7)
    means = np.array([steps.mean(), right.mean()])
    stderr = np.array([steps.std(), right.std()]) / np.sqrt(steps.size)
    # 4.5 standard errors, two means: false alarm 1.4e-5; cells: of second order, so
    # (40/56)^2 / (1 - (40/56)^2) = 1.04 of the last change remains
    reach = 4.5 * stderr + 1.04 * np.abs(fine - coarse)
    assert (np.abs(means - fine) < reach).all()
    # negative control: ten percent more noise
    assert abs(first_exits(100_000, 8, 1.1)[0].mean() - fine[0]) > reach[0]


def test_small_steps_meet_the_diffusion_half_an_order_late():
    """An Ornstein-Uhlenbeck process seen every step: its target seems further by 0.5826 deviations of a step."""
    sde, start = ornstein_uhlenbeck(1.0, 0.5), 0.05
    beta = 0.5825971579390106  # -zeta(1/2) / sqrt(2 pi)

    def settled(times):
        coarse, fine = (float(t.interp(x=start, method="cubic")) for t in times)
        return (4 * fine - coarse) / 3

    def diffusion(edge):
        return settled(
            mean_first_passage_time(FokkerPlanck(sde, Grid.uniform(x=(-4, 2.5, n))), lambda x: x >= edge)
            for n in (650, 1300)
        )

    steps = np.array([0.04, 0.02, 0.01])
    late, rest, control = [], [], []
    for step in steps:
        # the edge on the edge of a cell
        maps = [TransferOperator(sde, Grid.uniform(x=(-4, 2.5, n)), step=step) for n in (260, 520)]
        seen = settled([mean_first_passage_time(m, lambda x: x >= 1.0) for m in maps])
        late.append(seen - diffusion(1.0))
        rest.append(seen - diffusion(1.0 + beta * np.sqrt(step)))
        control.append(seen - diffusion(1.0 + 0.5 * np.sqrt(step)))  # another shift is not of order one
    late, rest, control = np.array(late), np.array(rest), np.array(control)
    # half an order against the diffusion itself, next term sqrt(step) of it; one order against the shifted target
    np.testing.assert_allclose(np.log2(late[:-1] / late[1:]), 0.5, atol=0.1)
    np.testing.assert_allclose(np.log2(np.abs(rest[:-1] / rest[1:])), 1.0, atol=0.25)
    assert (np.abs(np.log2(np.abs(control[:-1] / control[1:])) - 1.0) > 0.25).any()


def exactly(matrix, absorbed, right, transposed):
    """The same equations in 80 digits, where what stays is 1 minus what leaves."""
    n = len(absorbed)
    with mpmath.workdps(80):
        system = mpmath.matrix(n, n)
        for j in range(n):
            leaving = mpmath.mpf(float(absorbed[j]))
            for i in range(n):
                if i != j and matrix[i, j] > 0:
                    leaving += mpmath.mpf(float(matrix[i, j]))
                    system[(i, j) if transposed else (j, i)] = -mpmath.mpf(float(matrix[i, j]))
            system[j, j] = leaving
        return np.array([float(v) for v in mpmath.lu_solve(system, mpmath.matrix([float(b) for b in right]))])


def wells(cells, noise=0.1):
    sde = SDE(lambda t, y, p, xp: (y[0] - y[0] ** 3,), lambda t, y, p, xp: (noise,), convention="ito")
    return TransferOperator(sde, Grid.uniform(x=(-1.45, 1.55, cells)), step=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
def test_tiny_exchanges_keep_every_digit(sparse, monkeypatch):
    if sparse:
        monkeypatch.setattr(elimination, "_DENSE", 0)
        monkeypatch.setattr(elimination, "_BAND", 2.0)
    operator = wells(110)
    killed = killed_steps(operator, [lambda x: x > 0.9])
    matrix, n = killed.matrix.toarray(), killed.states.size
    times = mean_first_passage_time(operator, lambda x: x > 0.9).values[killed.states] / operator.step
    exact = exactly(matrix, killed.absorbed, np.ones(n), False)
    exact[operator.grid.centers["x"][killed.states] > 0.9] = 0
    assert exact.max() > 1e20
    # every operation is a sum, product or quotient of positive numbers: some n^2 roundings at worst, sqrt(n^2) likely
    np.testing.assert_allclose(times, exact, rtol=n**2 * 1e-16)
    found = escape_rate(operator, target=lambda x: x > 0.9)
    # the mean time from the quasi-stationary state is exactly 1 / (1 - survival)
    left = (found.quasi_stationary.values * operator.grid.volumes)[killed.states]
    assert float(found.rate) * operator.step == pytest.approx(1 / (left @ exactly(
        matrix, killed.absorbed, np.ones(n), False)), rel=1e-10)  # fmt: skip


def test_the_invariant_density_beside_a_tiny_gap():
    """Weights of two wells between which nothing passes in 1e20 steps: what Arnoldi's method cannot see."""
    operator = wells(110)
    masses = (stationary_density(operator) * operator.grid.volumes).values
    matrix = operator.matrix.toarray()
    pin = int(np.argmax(masses))
    others = np.delete(np.arange(110), pin)
    exact = np.ones(110)
    exact[others] = exactly(
        matrix[np.ix_(others, others)], matrix[pin, others], matrix[others, pin], transposed=True
    )
    np.testing.assert_allclose(masses, exact / exact.sum(), rtol=110**2 * 1e-16)


def test_random_chains_agree_with_dense_solves():
    rng = np.random.default_rng(2)
    for n in (1, 2, 95, 96, 97, 250):
        steps = rng.random((n, n)) * (rng.random((n, n)) < 0.4)
        steps /= np.maximum(steps.sum(axis=0), 1e-3) * 1.05
        absorbed, right = 1 - steps.sum(axis=0), rng.random(n)
        solver = elimination.StepElimination(sps.csr_array(steps), absorbed)
        # condition 40, n roundings
        np.testing.assert_allclose(
            solver.solve(right), np.linalg.solve(np.eye(n) - steps.T, right), rtol=1e-11
        )
        np.testing.assert_allclose(
            solver.solve_transposed(right), np.linalg.solve(np.eye(n) - steps, right), rtol=1e-11, atol=1e-14
        )


def test_shares_of_cells():
    line = Grid(x=np.array([0.0, 0.1, 0.35, 1.0]))
    np.testing.assert_allclose(region_share(line, lambda x: x > 0.2), [0, 0.6, 1], atol=1e-8)
    np.testing.assert_allclose(
        region_share(line, lambda x: (x > 0.4) & (x < 0.7)), [0, 0, 0.3 / 0.65], atol=1e-8
    )
    plane = Grid.uniform(x=(-1.1, 1.1, 21), y=(-1.1, 1.1, 22))
    share = region_share(plane, lambda x, y: x**2 + y**2 < 1)
    # 16 lines in a cell: a kink where the circle leaves through a side costs 1/16^2 / 4 of it at most, in some 60 of
    # 462 cells; signs vary
    assert share @ plane.volumes.ravel() == pytest.approx(np.pi, abs=60 * 0.01 / 1024)


def test_unusable_input_is_refused():
    still = TransferOperator.of_map(lambda x: x, SampleNoise([0.0]), Grid.uniform(x=(0, 1, 10)))
    both = TransferOperator.of_map(lambda x: 0.5 * x, 0.3, Grid.uniform(x=(-1, 1, 20)), boundary="absorbing")
    for call, words in [
        (lambda: mean_first_passage_time(still, lambda x: x > 0.5), "never reaches"),
        (lambda: committor(still, lambda x: x < 0.25, lambda x: x > 0.75), "never reaches"),
        (lambda: escape_rate(still, target=lambda x: x > 0.5), "never reaches"),
        (lambda: stationary_density(still), "undetermined"),
        (lambda: mean_first_passage_time(still), "nothing is ever reached"),
        (lambda: mean_first_passage_time(both, lambda x: x > 5), "no cell centre"),
        (lambda: committor(both, lambda x: x < 0.5, lambda x: x > 0.1), "overlap"),
        (lambda: mean_first_passage_time(both.matrix, lambda x: x > 0), "csr_array"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            call()
    deep = wells(500, noise=0.025)
    with pytest.raises(ConvergenceFailure, match="largest float"):
        mean_first_passage_time(deep, lambda x: x > 0.9)
