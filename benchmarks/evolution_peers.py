"""Peers of `evolve`: one linear problem in one and two dimensions, solved to t = 1 by each package on its own grid.

dX = A X dt + dW with a narrow Gaussian start, so that cell averages are known exactly. A peer is a function of
(dimension, cells per axis) that prepares everything and returns a function of no arguments: the timed run, which
returns the density (cells per axis, ...). Compilation and assembly are left out for everybody.
"""

# ruff: noqa: ARG005 - model functions have one signature
from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import scipy.sparse as sps
import scipy.sparse.linalg as spl
from scipy.linalg import expm, solve_continuous_lyapunov

from solvers import SDE, FokkerPlanck, Grid, evolve

HALF_WIDTH, WIDTH, START = 4.5, 0.15, 1.0
"""Of the grid, of the start (its standard deviation), and the place of the start on the first axis."""
DRIFT = {1: np.array([[-1.0]]), 2: np.array([[-1.0, -2.0], [2.0, -1.0]])}


class Missing(Exception):
    """A peer that is not installed, or cannot do the problem; says why."""


def axis(cells: int) -> np.ndarray:
    """Centres of the cells of one axis."""
    return (np.arange(cells) + 0.5) * (2 * HALF_WIDTH / cells) - HALF_WIDTH


def gaussian(mean: np.ndarray, covariance: np.ndarray, cells: int) -> np.ndarray:
    """Cell averages of a Gaussian density, by three Gauss points per axis."""
    d, h = mean.size, 2 * HALF_WIDTH / cells
    nodes, weights = np.polynomial.legendre.leggauss(3)
    points = (axis(cells)[:, None] + 0.5 * h * nodes).ravel()
    x = np.stack(np.meshgrid(*[points] * d, indexing="ij"), axis=-1) - mean
    power = np.einsum("...i,ij,...j->...", x, np.linalg.inv(covariance), x)
    density = np.exp(-0.5 * power) / np.sqrt(np.linalg.det(2 * np.pi * covariance))
    for a in range(d):
        shape = (*density.shape[:a], cells, 3, *density.shape[a + 1 :])
        density = np.moveaxis(np.moveaxis(density.reshape(shape), a + 1, -1) @ (weights / 2), a, a)
    return density


def start(d: int, cells: int) -> np.ndarray:
    """The density at time 0, of unit mass on the grid."""
    first = gaussian(START * np.eye(d)[0], WIDTH**2 * np.eye(d), cells)
    return first / (first.sum() * (2 * HALF_WIDTH / cells) ** d)


def exact(d: int, cells: int, t: float = 1.0) -> np.ndarray:
    """Cell averages of the density at time t."""
    a = DRIFT[d]
    stationary = solve_continuous_lyapunov(a, -np.eye(d))
    flow = expm(a * t)
    covariance = stationary + flow @ (WIDTH**2 * np.eye(d) - stationary) @ flow.T
    return gaussian(flow @ (START * np.eye(d)[0]), covariance, cells)


@cache
def operator(d: int, cells: int) -> FokkerPlanck:
    """The problem on our grid."""
    a = DRIFT[d]
    if d == 1:
        sde = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
        return FokkerPlanck(sde, Grid.uniform(x=(-HALF_WIDTH, HALF_WIDTH, cells)))
    sde = SDE(
        lambda t, y, p, xp: (p.a * y[0] + p.b * y[1], p.c * y[0] + p.d * y[1]),
        lambda t, y, p, xp: (1.0, 1.0),
        params={"a": a[0, 0], "b": a[0, 1], "c": a[1, 0], "d": a[1, 1]},
        names=("x", "y"),
        convention="ito",
    )
    grid = Grid.uniform(x=(-HALF_WIDTH, HALF_WIDTH, cells), y=(-HALF_WIDTH, HALF_WIDTH, cells))
    fp = FokkerPlanck(sde, grid)
    _ = fp.generator
    return fp


def ours(tol: float) -> Callable[[int, int], Callable[[], np.ndarray]]:
    """`evolve` at a tolerance."""

    def prepare(d, cells):
        fp, first = operator(d, cells), start(d, cells)
        return lambda: evolve(fp, first, [1.0], tol=tol).values[-1]

    return prepare


def expm_multiply(d, cells):
    """SciPy's action of the exponential, on our generator."""
    generator, first = sps.csc_array(operator(d, cells).generator), start(d, cells)
    return lambda: spl.expm_multiply(generator, first.ravel()).reshape(first.shape)


def dense_expm(d, cells):
    """SciPy's exponential of the full matrix, of our generator."""
    if cells**d > 2000:
        raise Missing("full matrix")
    generator, first = operator(d, cells).generator.toarray(), start(d, cells)
    return lambda: (expm(generator) @ first.ravel()).reshape(first.shape)


def tr_bdf2(steps: int) -> Callable[[int, int], Callable[[], np.ndarray]]:
    """TR-BDF2 by hand with SuperLU, fixed steps, on our generator; neither positive nor adaptive."""
    g = 2 - 2**0.5

    def prepare(d, cells):
        generator, first = sps.csc_array(operator(d, cells).generator), start(d, cells)
        h = 1.0 / steps
        identity = sps.eye_array(generator.shape[0])

        def run():
            lu = spl.splu(
                sps.csc_matrix(identity - 0.5 * g * h * generator),
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True},
            )
            m = first.ravel().copy()
            for _ in range(steps):
                middle = lu.solve(m + 0.5 * g * h * (generator @ m))
                m = lu.solve((middle - (1 - g) ** 2 * m) / (g * (2 - g)))
            return m.reshape(first.shape)

        return run

    return prepare


def fplanck(d, cells):
    """Propagation by fplanck 0.2, which needs a name that NumPy 2 has dropped."""
    try:
        import fplanck as package
        from scipy import constants
    except ImportError as error:
        raise Missing("not installed") from error
    if cells**d > 10_000:
        raise Missing("its assembly is a Python loop over cells")
    if not hasattr(np, "product"):
        setattr(np, "product", np.prod)  # noqa: B010
    temperature, h = 300.0, 2 * HALF_WIDTH / cells
    drag = 2 * constants.k * temperature  # diffusion 1/2
    a = DRIFT[d]

    def force(*x):
        return np.stack([drag * sum(a[i, j] * x[j] for j in range(d)) for i in range(d)])

    # the extent is rounded up to whole cells: a shade less, or there is one too many
    extent = [2 * HALF_WIDTH - 0.5 * h] * d
    problem = package.fokker_planck(
        temperature=temperature, drag=drag, extent=extent, resolution=h, force=force
    )
    first = start(d, cells)
    shape = tuple(problem.Ngrid)
    if shape != first.shape:
        raise Missing(f"its grid came out as {shape}")

    def initial(*_):
        return first

    return lambda: problem.propagate(initial, 1.0, normalize=False)


def py_pde(d, cells):
    """py-pde: finite differences, explicit adaptive Runge-Kutta."""
    try:
        import pde
    except ImportError as error:
        raise Missing("not installed") from error
    if cells**d > 10_000:
        raise Missing("explicit steps as small as the cells' squares: hours")
    grid = pde.CartesianGrid([(-HALF_WIDTH, HALF_WIDTH)] * d, cells)
    flux = "d_dx(x * p)" if d == 1 else "d_dx((x + 2 * y) * p) + d_dy((y - 2 * x) * p)"
    equation = pde.PDE({"p": f"0.5 * laplace(p) + {flux}"}, bc={"value": 0})
    field = pde.ScalarField(grid, start(d, cells))
    return lambda: equation.solve(field, t_range=1.0, dt=1e-5, adaptive=True, tracker=None).data


def fipy(d, cells):
    """FiPy: finite volumes with exponential fitting, implicit Euler in 100 steps."""
    try:
        import fipy as package
    except ImportError as error:
        raise Missing("not installed") from error
    h = 2 * HALF_WIDTH / cells
    if d == 1:
        mesh = package.Grid1D(nx=cells, dx=h) + (-HALF_WIDTH,)  # noqa: RUF005 - a shift
        velocity = package.FaceVariable(mesh=mesh, rank=1, value=-mesh.faceCenters)
    else:
        mesh = package.Grid2D(nx=cells, ny=cells, dx=h, dy=h) + ((-HALF_WIDTH,), (-HALF_WIDTH,))  # noqa: RUF005
        x, y = mesh.faceCenters
        velocity = package.FaceVariable(mesh=mesh, rank=1, value=np.array([-x - 2 * y, 2 * x - y]))
    velocity.setValue(0.0, where=mesh.exteriorFaces)
    first = start(d, cells)
    steps = 100

    def run():
        density = package.CellVariable(mesh=mesh, value=first.T.ravel())
        equation = package.TransientTerm() == package.DiffusionTerm(0.5) - package.ExponentialConvectionTerm(
            velocity
        )
        for _ in range(steps):
            equation.solve(var=density, dt=1.0 / steps)
        return density.value.reshape(first.shape).T

    return run


PEERS: dict[str, Any] = {
    "evolve, tol 1e-5": ours(1e-5),
    "evolve, tol 1e-7": ours(1e-7),
    "evolve, tol 1e-3": ours(1e-3),
    "scipy expm_multiply": expm_multiply,
    "scipy expm, dense": dense_expm,
    "TR-BDF2 by hand, 64 steps": tr_bdf2(64),
    "fplanck": fplanck,
    "py-pde": py_pde,
    "FiPy, 100 steps": fipy,
}


def quiet(function: Callable[[], np.ndarray]) -> np.ndarray:
    """Run a peer without the warnings it makes about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()
