"""Densities in time: `evolve` beside its peers, from a narrow start to t = 1, against the exact density.

    pip install -r benchmarks/requirements.txt
    python benchmarks/evolution.py [--cells 500 300] [--repeats 3] [--only evolve FiPy] [--json FILE]

The same linear problem for all, in one dimension (cells[0]) and two (cells[1] per axis; a drift that turns), on
grids of the same cells (evolution_peers.py). CPU time of the run alone, best of the repeats; the error is the
1-norm of the difference to the exact cell averages, so that it contains the grid's own; the last column is the
smallest density found, relative to the largest: negative where a scheme is not positive.
"""

# ruff: noqa: E402 - threads are set before NumPy is imported
from __future__ import annotations

import os

for _name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
    os.environ.setdefault(f"{_name}_NUM_THREADS", "1")

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from evolution_peers import HALF_WIDTH, PEERS, Missing, exact, quiet

_ENOUGH = 20.0
"""Seconds after which a peer is not repeated."""


def measure(name: str, d: int, cells: int, repeats: int) -> dict:
    """CPU seconds, error and smallest density of one peer."""
    run = PEERS[name](d, cells)
    quiet(run)  # compilation
    best = math.inf
    for _ in range(repeats):
        begin = time.process_time()
        density = quiet(run)
        best = min(best, time.process_time() - begin)
        if best > _ENOUGH:
            break
    volume = (2 * HALF_WIDTH / cells) ** d
    error = float(np.abs(density - exact(d, cells)).sum() * volume)
    return {"seconds": best, "error": error, "least": float(density.min() / density.max())}


def main() -> None:
    """Print a table and, if asked, write it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, nargs=2, default=(500, 300))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="peers whose name begins so")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for d, cells in zip((1, 2), options.cells, strict=True):
        print(
            f"\n{d}-D, {cells} cells per axis\n{'':28s}{'CPU s':>10s}{'ratio':>9s}{'L1 error':>12s}{'least':>10s}"
        )
        first = None
        for name in PEERS:
            if options.only and not any(name.startswith(start) for start in options.only):
                continue
            try:
                row = measure(name, d, cells, options.repeats)
            except Missing as error:
                print(f"{name:28s}  {error}")
                continue
            first = first or row["seconds"]
            rows.append({"peer": name, "d": d, "cells": cells, **row})
            print(
                f"{name:28s}{row['seconds']:10.4f}{row['seconds'] / first:9.1f}{row['error']:12.1e}{row['least']:10.0e}"
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
