"""Densities at T = 1 from a narrow start: `evolve` beside SciPy's expm_multiply and TR-BDF2 by hand.

Run: python benchmarks/evolution.py [--cells 500] [--side 300]. CPU time, best of several, all in one process;
operators are assembled beforehand. Errors are L1 distances to a converged solution of the same matrix.
"""

import argparse
import time
import warnings

import numpy as np
import scipy.sparse as sps
import scipy.sparse.linalg as spl

from solvers import FokkerPlanck, Grid, evolve, from_potential
from solvers.factorisation import factor


def _quartic(t, y, p, xp):  # noqa: ARG001
    return y[0] ** 4 / 4 - y[0] ** 2 / 2 if len(y) == 1 else (y[0] ** 2 - 1) ** 2 + y[1] ** 2


def _noise(t, y, p, xp):  # noqa: ARG001
    return (0.4**0.5,) * len(y)


def tr_bdf2(generator, masses, steps):
    """Fixed steps of TR-BDF2 (Bank et al. 1985), one factorisation."""
    a, step = 2 - 2**0.5, 1 / steps
    system = sps.csc_array(sps.eye_array(len(masses)) - (a / 2 * step) * generator)
    solve = factor(system, symmetric=False).solve
    for _ in range(steps):
        middle = solve(masses + (a / 2 * step) * (generator @ masses))
        masses = solve((middle - (1 - a) ** 2 * masses) / (a * (2 - a)))
    return masses


def best(function, repeats):
    """Best CPU time in ms, and the result."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        result = function()
        times.append(time.process_time() - begin)
    return 1e3 * min(times), result


def compare(grid, repeats, counts):
    fp = FokkerPlanck(from_potential(_quartic, _noise, names=grid.names, convention="ito"), grid)
    generator = fp.generator
    squares = sum((c - m) ** 2 for c, m in zip(grid.coords(), (0.5, -0.3), strict=False))
    narrow = np.exp(-squares / (2 * 0.1**2))
    cell = np.zeros(grid.shape)
    cell[tuple(n * 2 // 3 for n in grid.shape)] = 1.0
    for name, density in (("narrow", narrow), ("one cell", cell)):
        density = density / (density * grid.volumes).sum()
        masses = (density * grid.volumes).ravel()
        truth = (evolve(fp, density, [1.0], tol=1e-12).values[0] * grid.volumes).ravel()

        def report(method, took, found, truth=truth, name=name):
            error, dip = np.abs(found - truth).sum(), found.min() / found.max()
            place = f"{grid.size:7d} cells  {name:9s} {method:34s}"
            print(f"{place} {took:9.2f} ms  L1 error {error:.1e}  dip {min(dip, 0):.0e}")

        for method in ("auto", "implicit", "uniformization"):
            for tol in (1e-3, 1e-5, 1e-7) if method == "auto" else (1e-5,):
                took, found = best(
                    lambda d=density, tol=tol, m=method: evolve(fp, d, [1.0], tol=tol, method=m), repeats
                )
                report(
                    f"evolve {found.attrs['method']} tol={tol:g}",
                    took,
                    (found.values[0] * grid.volumes).ravel(),
                )
        for steps in counts:
            took, found = best(lambda m=masses, s=steps: tr_bdf2(generator, m, s), repeats)
            report(f"TR-BDF2, {steps} steps", took, found)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            took, found = best(lambda m=masses: spl.expm_multiply(generator, m, traceA=generator.trace()), 1)
        report("scipy expm_multiply", took, found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--side", type=int, default=300)
    asked = parser.parse_args()
    compare(Grid.uniform(x=(-3, 3, asked.cells)), 9, (20, 50, 200, 800))
    if asked.side:
        compare(Grid.uniform(x=(-2, 2, asked.side), y=(-2, 2, asked.side)), 2, (25, 100))
