"""Modes, escape and evolution in three dimensions without a factorisation, against closed forms and factorisations."""

import numpy as np
import pytest

from solvers import (
    SDE,
    FokkerPlanck,
    Grid,
    InvalidInput,
    eigenmodes,
    escape_rate,
    evolve,
    evolve_backward,
    from_potential,
    lattice_modes,
    lattice_operator,
)
from solvers.elimination import Elimination
from solvers.lattice_rates import rates_of
from solvers.lattice_weights import balancing_weights
from solvers.multigrid import coarser_lattices
from solvers.nonsymmetric_davidson import nonsymmetric_davidson
from solvers.regions import killed, region_cells
from tests.operators import stirred_wells

pytestmark = pytest.mark.filterwarnings("ignore:cells along")
NAMES = ("x", "y", "z")


@pytest.fixture
def small_lattices(monkeypatch):
    """Iterations on grids that a factorisation can still check."""
    monkeypatch.setattr(lattice_operator, "_LARGE", 500)
    monkeypatch.setattr(lattice_modes, "_START", 1000)


def noise(t, y, p, xp):
    return (xp.sqrt(2 * p.D),) * 3


def turning(cells, w=2.0, D=0.4):
    """A linear drift A X with A + A^T = -2: stationary N(0, D)."""
    sde = SDE(
        lambda t, y, p, xp: (-y[0] - p.w * y[1], -y[1] + p.w * y[0] - y[2], -y[2] + y[1]),
        noise,
        params={"D": D, "w": w},
        names=NAMES,
        convention="ito",
    )
    return FokkerPlanck(sde, Grid.uniform(**dict.fromkeys(NAMES, (-3, 3, cells))))


def ring_and_spring(axis=None):
    """A tilted ring in x, an OU process in y and a double well in z, independent; or one of them."""
    drifts = {
        None: lambda t, y, p, xp: (0.7 - xp.sin(y[0]), -y[1], y[2] - y[2] ** 3),
        "x": lambda t, y, p, xp: (0.7 - xp.sin(y[0]),),
        "y": lambda t, y, p, xp: (-y[0],),
        "z": lambda t, y, p, xp: (y[0] - y[0] ** 3,),
    }
    names = NAMES if axis is None else (axis,)
    noises = {1: lambda t, y, p, xp: (0.9,), 3: lambda t, y, p, xp: (0.9, 0.9, 0.9)}
    sde = SDE(drifts[axis], noises[len(names)], names=names, convention="ito")
    axes = {"x": (0, 2 * np.pi, 30), "y": (-3, 3, 29), "z": (-2.5, 2.5, 28)}
    walls = {"x": ("periodic", "periodic")} if "x" in names else "reflecting"
    return FokkerPlanck(sde, Grid.uniform(**{name: axes[name] for name in names}), boundary=walls)


def limit_cycle(cells):
    sde = SDE(
        lambda t, y, p, xp: (
            y[0] * (1 - y[0] ** 2 - y[1] ** 2) - 3 * y[1],
            y[1] * (1 - y[0] ** 2 - y[1] ** 2) + 3 * y[0],
            -y[2] + y[0],
        ),
        lambda t, y, p, xp: (0.5, 0.5, 0.5),
        names=NAMES,
        convention="ito",
    )
    return FokkerPlanck(sde, Grid.uniform(x=(-2, 2, cells), y=(-2, 2, cells), z=(-2.5, 2.5, cells)))


def spring_without_noise(cells):
    """Position, velocity and a force with memory: no noise in the position, one-way rates."""
    sde = SDE(
        lambda t, y, p, xp: (y[1], -y[0] - y[1] + y[2], -2 * y[2]),
        lambda t, y, p, xp: (0.0, 0.9, 0.9),
        names=NAMES,
        convention="ito",
    )
    grid = Grid.uniform(x=(-4, 4, cells), y=(-4, 4, cells), z=(-2.5, 2.5, cells))
    return FokkerPlanck(sde, grid, allow_wall_mass=True)


@pytest.mark.slow
def test_eigenvalues_are_sums_of_those_of_the_drift():
    # A has -1 and -1 +- i sqrt(5)
    exact = np.array([-1, -1 + 5**0.5 * 1j, -1 - 5**0.5 * 1j])
    errors = []
    for cells in (30, 44):
        modes = eigenmodes(turning(cells), 4)
        assert modes.attrs["method"] == "davidson"
        errors.append(np.abs(modes.eigenvalue.values[1:] - exact))
        # the scheme adds (a h / D)^2 / 12 to the diffusion, in the mean at most 6 h^2 / (12 D), as <a^2> <= 6 D
        assert np.all(errors[-1] < np.abs(exact) * 0.5 * (6 / cells) ** 2 / 0.4)
    np.testing.assert_allclose(np.log(errors[0] / errors[1]) / np.log(44 / 30), 2.0, atol=0.15)


@pytest.mark.slow
def test_independent_axes_add_their_eigenvalues():
    # the discrete generator is a Kronecker sum, so this holds to the tolerance of the iterations
    modes = eigenmodes(ring_and_spring(), 7)
    assert modes.attrs["method"] == "davidson"
    lines = [
        eigenmodes(ring_and_spring(name), 12, method="dense").eigenvalue.values.astype(complex)
        for name in NAMES
    ]
    sums = (lines[0][:, None, None] + lines[1][:, None] + lines[2]).ravel()
    values = modes.eigenvalue.values
    assert np.abs(values[:, None] - sums).min(axis=1).max() < 1e-9
    # none is missing, and none comes twice
    slowest = np.sort(sums.real)[::-1][: len(values)]
    np.testing.assert_allclose(np.sort(values.real)[::-1], slowest, atol=1e-9)
    left, right = (modes[v].values.reshape(len(values), -1) for v in ("left", "right"))
    volume = float(modes.x[1] - modes.x[0]) * float(modes.y[1] - modes.y[0]) * float(modes.z[1] - modes.z[0])
    np.testing.assert_allclose(left @ right.T * volume, np.eye(len(values)), atol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:x has little")
@pytest.mark.parametrize(
    ("build", "k"),
    [
        (lambda: turning(15, 5.0), 5),
        (lambda: stirred_wells(15, 0.2), 5),
        (lambda: limit_cycle(13), 2),
        (lambda: spring_without_noise(15), 5),
    ],
    ids=["turning", "wells", "limit cycle", "no noise in x"],
)
def test_modes_agree_with_a_factorisation(build, k, small_lattices):
    fp = build()
    by_cycles, factored = eigenmodes(fp, k), eigenmodes(fp, k, method="shift-invert")
    assert (by_cycles.attrs["method"], factored.attrs["method"]) == ("davidson", "shift-invert")
    # the eigenvalue of a bi-orthonormal pair is wrong by the product of residuals of 1e-10
    np.testing.assert_allclose(by_cycles.eigenvalue, factored.eigenvalue, atol=1e-11)
    L, volumes = fp.generator, fp.grid.volumes.ravel()
    for value, right, left in zip(
        by_cycles.eigenvalue.values,
        by_cycles.right.values.reshape(len(factored.mode), -1),
        by_cycles.left.values.reshape(len(factored.mode), -1),
        strict=True,
    ):
        masses = right * volumes
        assert np.abs(L @ masses - value * masses).sum() < 1e-8 * np.abs(masses).sum()
        # in the tails functions solve their equation to 1e-6 of the rates at worst
        change = np.abs(L.T @ left - value * left) / fp.chain.outflow
        assert change.max() < 1e-6 * np.abs(left).max()


@pytest.mark.parametrize("D", [0.1, 0.03])
def test_slow_rates_keep_relative_accuracy(D, small_lattices):
    """Down to 1e-12 beside rates of 1e2, against elimination without a subtraction, iterated."""
    fp = stirred_wells(16, D)
    target = lambda x, y, z: x > 0.5  # noqa: E731
    inside = region_cells(fp.grid, target, "target")
    elimination = Elimination(killed(fp, [target], [inside])[0])
    masses = np.ones(int((~inside).sum()))
    for _ in range(30):  # the next mode is 1e4 times faster
        masses = elimination.solve_transposed(masses / masses.sum())
    found = escape_rate(fp, target=target)
    assert found.attrs["method"] == "davidson"
    # quotients err by the square of the residuals, of 1e-14 of the norm beside gaps of 1e-2 of it
    assert float(found.rate) == pytest.approx(1.0 / masses.sum(), rel=1e-10)
    assert float(found.quasi_stationary.min()) >= 0.0


def test_weights_for_balance_follow_the_stationary_ones():
    sde = from_potential(
        lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 + y[1] ** 2 + y[2] ** 2,
        noise,
        params={"D": 0.3},
        names=NAMES,
        convention="ito",
    )
    fp = FokkerPlanck(sde, Grid.uniform(x=(-2, 2, 24), y=(-2, 2, 23), z=(-2, 2, 22)))
    exact = fp.chain.log_weights.reshape(fp.grid.shape)
    weights = balancing_weights(*coarser_lattices(rates_of(fp.chain), "forward"))
    # over a range of 48, neighbours differ by what they should to less than what a factor of e would add
    for axis in range(3):
        assert np.abs(np.diff(weights, axis=axis) - np.diff(exact, axis=axis)).max() < 1.0
    assert np.ptp(exact) > 48


def test_davidson_finds_complex_pairs():
    rng = np.random.default_rng(3)
    skew = rng.standard_normal((80, 80))
    matrix = np.diag(np.arange(1.0, 81.0)) + 0.5 * (skew - skew.T)
    exact = np.linalg.eigvals(matrix)
    exact = exact[np.argsort(exact.real)]
    diagonal = np.diag(matrix)
    found = nonsymmetric_davidson(
        lambda x: matrix @ x, lambda x: matrix.T @ x, lambda x: x / diagonal, rng.standard_normal((8, 80)),
        wanted=4, tol=1e-9, norm=100.0,
    )  # fmt: skip
    for value, vector in zip(found.values, found.vectors, strict=True):
        np.testing.assert_allclose(matrix @ vector, value * vector, atol=1e-6 * np.abs(vector).max())
    np.testing.assert_allclose(found.values.real, exact[: len(found.values)].real, rtol=1e-8)


@pytest.mark.parametrize("method", ["krylov", "implicit"])
def test_evolution_by_cycles_agrees_with_averaged_jumps(method, small_lattices):
    fp = turning(14)
    start = np.zeros(fp.grid.shape)
    start[4, 7, 7] = 1.0 / float(fp.grid.volumes.flat[0])
    times = [0.1, 0.5]
    found, jumps = (evolve(fp, start, times, method=m, tol=1e-6) for m in (method, "uniformization"))
    assert found.attrs["cycles"] > 0
    masses = found.values * fp.grid.volumes
    np.testing.assert_allclose(masses.sum(axis=(1, 2, 3)), 1.0, rtol=1e-14)
    assert masses.min() >= 0.0
    # local errors of tol, a step or an interval at a time, do not grow afterwards
    steps = found.attrs.get("steps", 1)
    assert np.abs(masses - jumps.values * fp.grid.volumes).sum(axis=(1, 2, 3)).max() < 1e-6 * (steps + 1)


def test_expectations_by_cycles(small_lattices):
    # E[x(t)] = e^(tA) x; the discrete drift of a linear function is off by second order
    fp = turning(16)
    mean = evolve_backward(fp, lambda x, y, z: x, [0.2], method="krylov")[0]
    other = evolve_backward(fp, lambda x, y, z: x, [0.2], method="uniformization")[0]
    assert mean.attrs["cycles"] > 0
    assert float(np.abs(mean - other).max()) < 1e-6 * 6


def test_memory_is_asked_for_before_it_is_taken(monkeypatch):
    from solvers import memory

    fp = turning(30)
    monkeypatch.setattr(memory, "available", lambda: 10**7)
    with pytest.raises(InvalidInput, match=r"4 slowest modes of 27000 cells .* needs 0\.03\d+ GB"):
        eigenmodes(fp, 4)
    start = np.ones(fp.grid.shape)
    with pytest.raises(InvalidInput, match="implicit steps on 27000 cells"):
        evolve(fp, start, [1.0], method="krylov")
