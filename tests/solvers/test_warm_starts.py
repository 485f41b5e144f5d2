"""Eigen-solves that start from those of neighbours: what they save, counted, and that they find the same."""

import numpy as np
import pytest

from solvers import (
    SDE,
    FokkerPlanck,
    Grid,
    TransferOperator,
    continuation,
    eigenmodes,
    eigensolvers,
    eigenvalue_root,
    factorisation,
    from_potential,
    multigrid_modes,
    nonreversible,
    stochastic_modes,
)
from solvers.multifrontal import Factors
from solvers.spectral_problem import problem_of
from solvers.starts import Neighbours, Start
from tests.operators import separable_wells


class Counted:
    """SuperLU factors, or an operator, that count the vectors they are applied to."""

    def __init__(self, inner, work, what):
        self._inner, self._work, self._what = inner, work, what

    def solve(self, right, *args, **kwargs):
        self._work[self._what] += 1 if right.ndim == 1 else right.shape[1]
        return self._inner.solve(right, *args, **kwargs)

    def __matmul__(self, vector):
        self._work[self._what] += 1
        return self._inner @ vector


@pytest.fixture
def work(monkeypatch):
    """Factorisations, solves, products with transfer matrices, Davidson corrections."""
    counts = {"factorisations": 0, "solves": 0, "products": 0, "corrections": 0}
    plain_lu, make, solve = factorisation.spl.splu, Factors.__init__, Factors.solve_ordered
    davidson, arpack = multigrid_modes.davidson, nonreversible.arpack

    def splu(*args, **kwargs):
        counts["factorisations"] += 1
        return Counted(plain_lu(*args, **kwargs), counts, "solves")

    def init(self, *args, **kwargs):
        counts["factorisations"] += 1
        make(self, *args, **kwargs)

    def solve_ordered(self, block, *args, **kwargs):
        counts["solves"] += 1 if block.ndim == 1 else block.shape[1]
        return solve(self, block, *args, **kwargs)

    def corrected(*args, **kwargs):
        pairs = davidson(*args, **kwargs)
        if "known" in kwargs:  # on the finest lattice
            counts["corrections"] += pairs.corrections
        return pairs

    def applied(solver, operator, **settings):
        if not isinstance(operator, factorisation.spl.LinearOperator):
            counted = Counted(operator, counts, "products")
            operator = factorisation.spl.LinearOperator(
                operator.shape, matvec=counted.__matmul__, dtype=float
            )
        return arpack(solver, operator, **settings)

    # multigrid cycles in two dimensions begin from blocks of cells, whatever is known
    monkeypatch.setattr(eigensolvers, "suits_planes", lambda chain: False)
    monkeypatch.setattr(factorisation.spl, "splu", splu)
    monkeypatch.setattr(Factors, "__init__", init)
    monkeypatch.setattr(Factors, "solve_ordered", solve_ordered)
    monkeypatch.setattr(multigrid_modes, "davidson", corrected)
    monkeypatch.setattr(nonreversible, "arpack", applied)
    monkeypatch.setattr(stochastic_modes, "arpack", applied)
    return counts


def wells(D, n=60):
    return FokkerPlanck(separable_wells(D), Grid.uniform(x=(-2, 2, n), y=(-2, 2, n)))


def swirl(w, boundary="reflecting", high=2.2):
    """A double well with rotation: no detailed balance."""
    model = SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3 - p.w * y[1], p.w * y[0] - y[1]),
        lambda t, y, p, xp: (0.6, 0.6),
        params={"w": w},
        names=("x", "y"),
        convention="ito",
    )
    return FokkerPlanck(model, Grid.uniform(x=(-2.2, high, 70), y=(-2.2, 2.2, 70)), boundary=boundary)


def killed_swirl(w):
    return swirl(w, {"x": ("reflecting", "absorbing"), "y": "reflecting"}, 0.5)


def rotating_map(k):
    model = SDE(
        lambda t, y, p, xp: (
            0.5 * y[0] - p.k * y[0] - 0.3 * y[0] ** 3 - 0.4 * y[1],
            0.4 * y[0] - p.k * y[1],
        ),
        lambda t, y, p, xp: (0.4, 0.4),
        params={"k": k},
        names=("x", "y"),
        convention="ito",
    )
    return TransferOperator(model, Grid.uniform(x=(-2.5, 2.5, 40), y=(-2.5, 2.5, 40)), step=0.4)


def boxes(D, n=28):
    model = from_potential(
        lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 + y[1] ** 2 + 1.3 * y[2] ** 2 + 0.4 * y[0] * y[1],
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),) * 3,
        params={"D": D},
        names=("x", "y", "z"),
        convention="ito",
    )
    return FokkerPlanck(model, Grid.uniform(x=(-2, 2, n), y=(-2, 2, n), z=(-2, 2, n)))


# what is counted, and at most how much of it is left, 5 % and 0.05 % of the parameter further
CASES = {
    "symmetric, Lanczos": (wells, 0.2, 6, {"solves": (0.75, 0.7)}),
    "symmetric, blocks": (
        lambda D: wells(D, 150),
        0.2,
        6,
        {"solves": (0.6, 0.5), "factorisations": (0.5, 0.5)},
    ),
    "symmetric, Davidson": (boxes, 0.4, 4, {"corrections": (1.0, 0.75)}),
    "rotating, Arnoldi": (swirl, 0.5, 4, {"solves": (0.55, 0.5), "factorisations": (0.9, 0.9)}),
    "rotating and absorbing": (killed_swirl, 0.5, 3, {"solves": (0.5, 0.45), "factorisations": (0.9, 0.9)}),
    "transfer": (rotating_map, 0.8, 4, {"products": (0.75, 0.7)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_neighbours_save_work(name, work):
    build, value, k, limits = CASES[name]
    start = problem_of(build(value)).modes(k).near()
    for number, share in enumerate((0.05, 0.0005)):
        problem = problem_of(build(value * (1 + share)))
        spent = []
        for begin in (None, start):
            work.update(dict.fromkeys(work, 0))
            modes = problem.modes(k, start=begin)
            spent.append(dict(work))
            if begin is None:
                cold = modes
        np.testing.assert_allclose(modes.values, cold.values, rtol=1e-9, atol=1e-12)
        assert len(modes.values) == len(cold.values)
        for what, most in limits.items():
            assert 0 < spent[1][what] <= most[number] * spent[0][what], (what, spent)


def test_continuation_saves_work_and_changes_nothing(work):
    values = np.linspace(0.3, 0.36, 4)
    followed = continuation(swirl, values, k=3, name="w")
    assert followed.attrs["eigen_solves"] == len(values)
    together = work["solves"]
    work["solves"] = 0
    single = [eigenmodes(swirl(value), 7).eigenvalue.values for value in values]
    # The functions in the tails take as many solves, with their refinements, wherever the iteration begins.
    assert together < 0.65 * work["solves"]
    for row, each in zip(followed.eigenvalue.values, single, strict=True):
        np.testing.assert_allclose(np.min(np.abs(row[:, None] - each), axis=1), 0, atol=1e-9)


def test_roots_save_work(work):
    found = eigenvalue_root(wells, (0.15, 0.3), target=0.02)
    together = work["solves"]
    work["solves"] = 0
    for value in found.value.values:
        problem_of(wells(float(value))).modes(3)
    assert together < 0.8 * work["solves"]
    assert float(eigenmodes(wells(float(found.root)), 2).gap) == pytest.approx(0.02, rel=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        wells,
        swirl,
        rotating_map,
        *(pytest.param(b, marks=pytest.mark.slow) for b in (boxes, lambda D: wells(D, 150))),
    ],
)
def test_what_a_start_lacks_is_found(build):
    """A start without the slowest decaying mode, exact in all others: iterations alone would never see it."""
    value = {rotating_map: 0.8, swirl: 0.5, boxes: 0.4}.get(build, 0.2)
    problem = problem_of(build(value))
    whole = problem.modes(7)
    kept = np.arange(len(whole.values)) != 1
    if np.iscomplexobj(whole.values) and whole.values[1].imag:
        kept[2] = False
    start = Start(whole.values[kept], whole.right[:, kept], whole.left[:, kept])
    found = problem.modes(3, start=start)
    np.testing.assert_allclose(found.values[:3], whole.values[:3], rtol=1e-8, atol=1e-12)


def test_neighbours_are_continued_linearly():
    """Functions of p in a basis that turns: their change is found whatever the basis."""
    x = np.linspace(-1, 1, 50)

    def start(p, turn):
        functions = np.column_stack([np.ones(50), np.sin(3 * x + p * x**2), np.cos(5 * x + p * x**3)])
        return Start(np.array([0.0, -1.0, -2.0]), functions @ turn / 50, functions @ turn)

    turn = np.array([[1.0, 0, 0], [0, 0.6, 0.8], [0, -0.8, 0.6]])
    neighbours = Neighbours()
    assert neighbours.start(0.1, 50) is None
    neighbours.add(0.1, start(0.1, np.eye(3)))
    assert neighbours.start(0.12, 50) is neighbours.start(5.0, 50)
    neighbours.add(0.11, start(0.11, turn))
    assert neighbours.start(0.12, 49) is None
    exact = start(0.12, np.eye(3)).left

    def missing(basis):
        return np.linalg.norm(exact - basis @ np.linalg.lstsq(basis, exact, rcond=None)[0])

    plain, continued = missing(start(0.11, turn).left), missing(neighbours.start(0.12, 50).left)
    assert continued < 0.05 * plain  # h^2 beside h
    # too far to go on along the line
    assert np.array_equal(neighbours.start(0.5, 50).left, start(0.11, turn).left)


def rotors(axes, cells, force, noise, waves, step=None):
    """Equal rotors driven along as many circles, or their map after a step: an operator, and that of one circle."""

    def on(names):
        model = SDE(
            lambda t, y, p, xp: tuple(p.force - xp.sin(waves * angle) for angle in y),
            lambda t, y, p, xp: (xp.sqrt(2 * p.noise),) * len(names),
            params={"force": force, "noise": noise},
            names=names,
            convention="ito",
        )
        grid = Grid.uniform(**dict.fromkeys(names, (0, 2 * np.pi, cells)))
        if step is None:
            return FokkerPlanck(model, grid, boundary="periodic")
        return TransferOperator(model, grid, step=step, boundary="periodic")

    return on(tuple("xyz"[:axes])), on(("x",))


@pytest.mark.parametrize(
    ("axes", "cells", "force", "noise", "waves", "step", "k", "tol"),
    [
        (3, 10, 0.7, 0.1, 4, None, 14, 1e-5),
        (3, 10, 0.7, 0.3, 1, None, 6, 9e-3),
        (2, 24, 0.2, 0.05, 2, None, 9, 9e-3),
        (2, 12, 0.7, 0.3, 1, 0.5, 4, 9e-3),
        (2, 20, 0.5, 0.1, 1, 1.0, 3, 9e-3),
    ],
)
@pytest.mark.filterwarnings("ignore:cells along:solvers.AccuracyWarning")  # the truth has the same cells
def test_equal_modes_are_all_found(axes, cells, force, noise, waves, step, k, tol):
    """A sum of modes sees one of each eigenspace, on both sides: the sums of one circle's eigenvalues say how many."""
    whole, _ = rotors(axes, cells, force, noise, waves, step)
    start = problem_of(whole).modes(k, tol).near()
    whole, one = rotors(axes, cells, 1.01 * force, noise, waves, step)
    found = problem_of(whole).modes(k, tol, start).values
    matrix = (one.matrix if step else one.generator).toarray()
    line = np.linalg.eigvals(matrix)
    join = np.multiply if step else np.add
    exact = line
    for _ in range(axes - 1):
        exact = join.outer(exact, line).ravel()
    slowness = (lambda values: -np.abs(values)) if step else (lambda values: -values.real)
    exact = np.sort(slowness(exact))[: len(found)]
    # the operators are products of those of one circle: apart from rounding, only the tolerance is between them
    np.testing.assert_allclose(np.sort(slowness(found)), exact, rtol=10 * tol, atol=1e-6)


def test_a_pair_split_by_rounding_adds_no_direction():
    """Equal real eigenvalues that rounding splits into a pair may leave vectors whose imaginary part is zero."""
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((6, 3)).astype(complex)
    vectors[:, 1] += 1e-18j * rng.standard_normal(6)
    values = np.array([0.0, -1 + 1e-17j, -1 - 1e-17j])
    vectors[:, 2] = vectors[:, 1].conj()
    exact = vectors.copy()
    exact.imag = 0.0
    for split in (vectors, exact):
        start = Start(values, split, split)
        assert start.functions(1).shape == (6, 1)
        right, left, count = start.scaled(1, np.ones(6))
        direction = vectors[:, 1].real / np.linalg.norm(vectors[:, 1].real)
        assert count == 2
        assert right @ direction == pytest.approx(1.0, abs=2e-3)
        assert np.array_equal(right, left)
