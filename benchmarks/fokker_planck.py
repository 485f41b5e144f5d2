"""Fokker-Planck spectra: `eigenmodes` beside SciPy called by hand on the same generator.

    python benchmarks/fokker_planck.py [--large] [--only NAME ...]
    python benchmarks/fokker_planck.py --growth [--only NAME ...]

The second form measures time and peak memory of the whole call, assembly included, in a fresh process for each size
and method, and how they grow with the number of cells; "off" is the largest relative difference of the decaying
eigenvalues' real parts from those of the first method that ran; without detailed balance `eigs` finds the nearest to
zero, not the slowest, so that another mode may stand in the last place. CHOLMOD (scikit-sparse), PRIMME and pyamg run
where installed.

CPU time of the call on one thread (assembly included for neither, compilation left out) and relative error of the
first decay rates against values computed independently; "wrong" counts eigenvalues off by more than 1 percent. Ours
returns right and left vectors with residuals; SciPy's eigsh and eigs the right ones only.
"""

# ruff: noqa: ARG005, E402 - model functions have one signature; threads are set before NumPy is imported
from __future__ import annotations

import os

for _name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
    os.environ.setdefault(f"{_name}_NUM_THREADS", "1")

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse as sps
import scipy.sparse.linalg as spl

from solvers import SDE, AccuracyWarning, FokkerPlanck, Grid, eigenmodes, from_potential

REFERENCE = json.loads((Path(__file__).parents[1] / "tests" / "reference_values.json").read_text())


def double_well(D):
    return SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (xp.sqrt(2 * p.D),),
        params={"D": D},
        convention="ito",
    )


def cases(large):
    exact = [0.0, *REFERENCE["dw1d_D0.1"]["value"]]
    for n in (400, 1500, 20000, *((200000,) if large else ())):
        yield f"double well, {n}", FokkerPlanck(double_well(0.1), Grid.uniform(x=(-3, 3, n))), exact
    circle = [complex(v["re"], v["im"]) for v in REFERENCE["tilted_cos_eig_F0.7_D0.3"]["value"]]
    tilted = SDE(lambda t, y, p, xp: (0.7 - xp.sin(y[0]),), lambda t, y, p, xp: (0.6**0.5,), convention="ito")
    fp = FokkerPlanck(tilted, Grid.uniform(x=(0, 2 * np.pi, 1500)), boundary="periodic")
    yield "tilted cosine, 1500", fp, [0.0, *(-v for pair in circle[:2] for v in (pair, np.conj(pair)))]
    wells = from_potential(
        lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 + y[1] ** 2,
        lambda t, y, p, xp: (0.4**0.5, 0.4**0.5),
        names=("x", "y"),
        convention="ito",
    )
    for n in (100, 200, *((500, 1000) if large else ())):
        grid = Grid.uniform(x=(-2.2, 2.2, n), y=(-2.5, 2.5, n))
        yield f"2-D wells, {n}x{n}", FokkerPlanck(wells, grid), REFERENCE["dw2d_sep_D0.2"]["value"][:6]
    ou = SDE(
        lambda t, y, p, xp: (-y[0] - 2 * y[1], 2 * y[0] - y[1]),
        lambda t, y, p, xp: ((1.0, 0.0), (0.6, 0.44**0.5)),
        names=("x", "y"),
        convention="ito",
        noise="general",
    )
    exact = [0.0, *(-complex(v["re"], v["im"]) for v in REFERENCE["ou2d_nonrev_eigs"]["value"])]
    for n in (100, *((300,) if large else ())):
        grid = Grid.uniform(x=(-3.6, 3.6, n), y=(-3.8, 3.8, round(1.18 * n)))
        yield f"2-D rotation, {n}x{round(1.18 * n)}", FokkerPlanck(ou, grid), exact


def ours(fp, k):
    return eigenmodes(fp, k).eigenvalue.values


def eigs_at_zero(fp, k):
    # sigma = 0 exactly: L is singular
    return spl.eigs(sps.csc_array(fp.generator), k, sigma=0.0, v0=np.ones(fp.grid.size))[0]


def eigs_shifted(fp, k):
    return spl.eigs(sps.csc_array(fp.generator), k, sigma=1e-3, v0=np.ones(fp.grid.size))[0]


def _symmetrised(fp):
    with np.errstate(all="ignore"):
        half = np.exp(0.5 * fp.chain.log_weights)
        matrix = sps.csc_array(sps.diags_array(1 / half) @ fp.generator @ sps.diags_array(half))
        return 0.5 * (matrix + matrix.T)


def _solver(matrix, shift):
    """(shift - matrix)^-1 by SuperLU with the ordering that suits symmetric patterns."""
    n = matrix.shape[0]
    lu = spl.splu(
        sps.csc_matrix(shift * sps.eye_array(n) - matrix),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    return spl.LinearOperator((n, n), matvec=lambda x: -lu.solve(x), dtype=float)


def eigsh_symmetrised(fp, k):
    if not fp.reversible:
        return None
    return spl.eigsh(_symmetrised(fp), k, sigma=1e-3, v0=np.ones(fp.grid.size))[0]


def by_minimum_degree(fp, k):
    start = np.ones(fp.grid.size)
    if fp.reversible:
        matrix = _symmetrised(fp)
        return spl.eigsh(matrix, k, sigma=1e-3, v0=start, OPinv=_solver(matrix, 1e-3), tol=1e-10)[0]
    matrix = sps.csc_array(fp.generator)
    return spl.eigs(matrix, k, sigma=1e-3, v0=start, OPinv=_solver(matrix, 1e-3), tol=1e-10)[0]


METHODS = {
    "eigenmodes": ours,
    "eigs, sigma=0": eigs_at_zero,
    "eigs, sigma=1e-3": eigs_shifted,
    "eigsh by hand": eigsh_symmetrised,
    "MMD_AT_PLUS_A by hand": by_minimum_degree,
}


def judge(values, exact):
    """Largest relative error of the nonzero exact values and the number that no computed value is near."""
    near = [np.min(np.abs(-np.asarray(values) - e)) / abs(e) for e in exact[1:]]
    return max(near), sum(v > 0.01 for v in near)


# ---- growth: time and memory of the whole call -----------------------------------------------------------


def _line(cells):
    return FokkerPlanck(double_well(0.1), Grid.uniform(x=(-3, 3, cells)))


def _wells(cells):
    side = round(cells**0.5)
    model = from_potential(
        lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 + y[1] ** 2,
        lambda t, y, p, xp: (0.4**0.5, 0.4**0.5),
        names=("x", "y"),
        convention="ito",
    )
    return FokkerPlanck(model, Grid.uniform(x=(-2.2, 2.2, side), y=(-2.5, 2.5, side)))


def _square(drift, sigmas, half_x, half_y):
    """Operators of a model without detailed balance on as many cells per axis."""

    def build(cells):
        side = round(cells**0.5)
        model = SDE(drift, lambda t, y, p, xp: sigmas, names=("x", "y"), convention="ito")
        return FokkerPlanck(model, Grid.uniform(x=(-half_x, half_x, side), y=(-half_y, half_y, side)))

    return build


_turning_wells = _square(
    lambda t, y, p, xp: (-4 * y[0] * (y[0] ** 2 - 1) - 1.5 * y[1], -2 * y[1] + 1.5 * y[0]),
    (0.4**0.5, 0.4**0.5),
    2.2,
    2.5,
)
_spiral = _square(lambda t, y, p, xp: (-y[0] - 5 * y[1], 5 * y[0] - y[1]), (1.0, 1.0), 3.6, 3.8)
_limit_cycle = _square(
    lambda t, y, p, xp: (y[1], (1 - y[0] ** 2) * y[1] - y[0]), (0.2**0.5, 0.2**0.5), 4.0, 5.0
)
_spring = _square(lambda t, y, p, xp: (y[1], y[0] - y[0] ** 3 - y[1]), (0.0, 0.6**0.5), 2.8, 3.5)


def _wells_in_space(cells):
    side = round(cells ** (1 / 3))
    model = from_potential(
        lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 + y[1] ** 2 + 1.5 * y[2] ** 2,
        lambda t, y, p, xp: (0.4**0.5,) * 3,
        names=("x", "y", "z"),
        convention="ito",
    )
    return FokkerPlanck(model, Grid.uniform(x=(-2.2, 2.2, side), y=(-2.5, 2.5, side), z=(-2.2, 2.2, side)))


# name: build, number of modes, cells, methods
GROWTH = {
    "1-D": (_line, 6, (100_000, 1_000_000), ("eigenmodes", "MMD_AT_PLUS_A by hand")),
    "2-D": (
        _wells,
        6,
        (100_000, 1_000_000),
        ("eigenmodes", "MMD_AT_PLUS_A by hand", "CHOLMOD by hand", "PRIMME and pyamg"),
    ),
    "2-D, turning": (_turning_wells, 6, (100_000, 1_000_000), ("eigenmodes", "MMD_AT_PLUS_A by hand")),
    "2-D, spiral": (_spiral, 6, (100_000, 1_000_000), ("eigenmodes",)),
    "2-D, limit cycle": (_limit_cycle, 6, (100_000, 1_000_000), ("eigenmodes",)),
    "2-D, spring": (_spring, 6, (100_000, 1_000_000), ("eigenmodes",)),
    "3-D": (_wells_in_space, 4, (64**3, 128**3), ("eigenmodes", "PRIMME and pyamg")),
}


def by_primme(fp, k):
    """Generalised Davidson with a Ruge-Stuben cycle, where both packages are installed."""
    import primme
    import pyamg

    if not fp.reversible:
        return None
    matrix = sps.csr_array(-_symmetrised(fp))
    cycle = pyamg.ruge_stuben_solver(sps.csr_matrix(matrix), max_coarse=500).aspreconditioner()
    start = np.exp(0.5 * fp.chain.log_weights)[:, None]
    return -primme.eigsh(matrix, k, which="SA", OPinv=cycle, tol=1e-10, v0=start)[0]


def by_cholmod(fp, k):
    """Shift-invert with a sparse Cholesky factorisation, where scikit-sparse is installed."""
    from sksparse.cholmod import cholesky

    shift, matrix = 1e-3, _symmetrised(fp)
    factor = cholesky(sps.csc_matrix(shift * sps.eye_array(fp.grid.size) - matrix))
    inverse = spl.LinearOperator(matrix.shape, matvec=lambda x: -factor(x), dtype=float)
    start = np.ones(fp.grid.size)
    return spl.eigsh(matrix, k, sigma=shift, v0=start, OPinv=inverse, tol=1e-10)[0]


def one(case, cells, method):
    """The whole call once, after a small one has compiled; prints seconds, gigabytes and the real parts found."""
    build, k, _, _ = GROWTH[case]
    solve = {**METHODS, "PRIMME and pyamg": by_primme, "CHOLMOD by hand": by_cholmod}[method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        solve(build({"1-D": 20_000, "3-D": 30_000}.get(case, 40_000)), k)
        start = time.process_time()
        values = solve(build(cells), k)
    seconds = time.process_time() - start
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps([seconds, gigabytes, np.sort(np.real(values))[::-1].tolist()]))


def growth(only):
    print(f"{'case':16s}{'method':24s}{'cells':>10s}{'CPU s':>9s}{'GB':>7s}{'off':>10s}{'exponent':>10s}")
    for case, (_, count, sizes, methods) in GROWTH.items():
        ours_found = {}
        for method in methods:
            if only and not any(method.startswith(chosen) for chosen in only):
                continue
            before = None
            for cells in sizes:
                command = [sys.executable, __file__, "--one", case, str(cells), method]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                    print(f"{case:16s}{method:24s}{cells:10d}  {reason[:60]}")
                    break
                seconds, gigabytes, values = json.loads(done.stdout.splitlines()[-1])
                values = np.array(values[1:count])
                expected = ours_found.setdefault(cells, values)
                off = float(np.abs(values / expected - 1).max())
                power = (
                    "" if before is None else f"{np.log(seconds / before) / np.log(cells / sizes[0]):10.2f}"
                )
                print(
                    f"{case:16s}{method:24s}{cells:10d}{seconds:9.2f}{gigabytes:7.2f}{off:10.1e}{power}",
                    flush=True,
                )
                before = seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="also 2e5 cells in 1-D and 1e6 in 2-D")
    parser.add_argument("--only", nargs="*", help="methods whose name begins so")
    parser.add_argument(
        "--growth", action="store_true", help="time and memory from 1e5 to 1e6 cells, 64^3 to 128^3"
    )
    parser.add_argument("--one", nargs=3, metavar=("CASE", "CELLS", "METHOD"), help="one row of --growth")
    options = parser.parse_args()
    if options.one:
        one(options.one[0], int(options.one[1]), options.one[2])
    elif options.growth:
        growth(options.only)
    else:
        compare(options)


def compare(options):
    """Accuracy and time of every method on every case."""
    print(f"{'case':24s}{'method':24s}{'CPU s':>9s}{'error':>11s}{'wrong':>7s}")
    compiled = set()
    for name, fp, exact in cases(options.large):
        _ = fp.generator
        kind = (fp.grid.d, fp.reversible, fp.grid.size > 8000, fp.grid.size > 20_000)
        if kind not in compiled:
            compiled.add(kind)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AccuracyWarning)
                ours(fp, len(exact))
        for method, solve in METHODS.items():
            if options.only and not any(method.startswith(chosen) for chosen in options.only):
                continue
            start = time.process_time()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", AccuracyWarning)
                    values = solve(fp, len(exact))
            except (RuntimeError, ValueError, FloatingPointError) as error:
                print(f"{name:24s}{method:24s}{time.process_time() - start:9.2f}  {str(error)[:50]}")
                continue
            if values is None:
                continue
            seconds = time.process_time() - start
            error, wrong = judge(values, exact)
            print(f"{name:24s}{method:24s}{seconds:9.2f}{error:11.1e}{wrong:7d}")


if __name__ == "__main__":
    main()
