"""Ensembles of SDE paths with mean and variance at every step: `simulate` beside its peers, same work, one core.

    pip install -r benchmarks/requirements.txt        # the peers; those that are missing are listed
    python benchmarks/sde.py [--paths 100000] [--steps 1000] [--repeats 5] [--only numpy C,]
                             [--plot FILE] [--json FILE] [--memory]

Every peer gets the same equations (sde_problems.py), start and step, and must end with moments within 6
standard errors of the right ones. Compilation is left out. Times are CPU time on one core, to which the process
is bound; peers take turns, and the best of the repeats counts, because other work on a machine only ever adds.
Slow peers do fewer paths. Numbers are nanoseconds per path, step and component; trust the ratios more.
"""
# ruff: noqa: E402 - threads and cores are set before NumPy and the peers are imported

from __future__ import annotations

import os

for _name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
    os.environ.setdefault(f"{_name}_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import argparse
import json
import math
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path

import sde_c
import sde_limit
from sde_peers import PEERS, Peer, ours
from sde_problems import DT, PROBLEMS, START, Problem

from solvers import Grid

OURS = "eos_sde simulate f64, 32-bit normals"
FOUR = ("OU", "double well", "multiplicative", "d = 10")
VARIANTS = (
    Peer(OURS, ours()),
    Peer("  53-bit normals", ours(resolution=53)),
    Peer("  two-point increments", ours(scheme="weak-euler")),
    Peer("  Milstein", ours(scheme="milstein"), problems=("multiplicative",)),
    Peer("  with moments to the 4th", ours(statistics=("mean", "variance", "skewness", "kurtosis"))),
    Peer("  with covariance", ours(statistics=("mean", "variance", "covariance")), problems=("d = 10",)),
    Peer("  with extremes at steps", ours(statistics=("mean", "variance", "step_maximum"))),
    Peer("  with a histogram", ours(histogram=Grid.uniform(x=(-5, 5, 100))), problems=FOUR[:3]),
)


def exact(problem: Problem, steps: int) -> tuple[float, float] | None:
    """Mean and variance of Euler-Maruyama at the end, for a linear drift."""
    if problem.drift(2.0) != 2.0 * problem.drift(1.0) or problem.additive is None:
        return None
    mean, variance = START, 0.0
    for _ in range(steps):
        mean, variance = mean * (1 - DT), variance * (1 - DT) ** 2 + problem.additive**2 * DT
    return mean, variance


def deviation(result: tuple, paths: int, right: tuple[float, float], right_paths: float) -> float:
    """Standard errors between the end moments, averaged over components, and the right ones."""
    means, variances = result[0][-1], result[1][-1]
    share = 1 / (paths * len(means)) + 1 / right_paths
    return max(
        abs(means.mean() - right[0]) / math.sqrt(right[1] * share),
        abs(variances.mean() - right[1]) / (right[1] * math.sqrt(2 * share)),
    )


def measure(problem: Problem, peers: list[Peer], paths: int, steps: int, repeats: int, missing: dict) -> dict:
    """Nanoseconds per path-step-component of each peer, taking turns."""
    runs, best = {}, {}
    right = exact(problem, steps)
    right_paths = math.inf
    for peer in peers:
        count = int(min(paths // problem.d, peer.most // (steps * problem.d)))
        try:
            run = peer.build(problem, max(1, count), steps)
            result = run()  # compiles
        except (Exception, SystemExit) as error:  # a peer that fails is a result
            missing[peer.name] = f"{problem.name}: {type(error).__name__}: {str(error)[:80]}"
            continue
        if right is None:
            if peer.name != OURS:
                raise SystemExit(f"the moments of {problem.name} are not known; do not leave out {OURS}")
            right, right_paths = (float(result[0][-1].mean()), float(result[1][-1].mean())), count
        if (off := deviation(result, count, right, right_paths)) > 6:
            raise SystemExit(
                f"{peer.name} computes something else for {problem.name}: off by {off:.1f} errors"
            )
        runs[peer.name], best[peer.name] = (run, count), math.inf
    for _ in range(repeats):
        for name, (run, count) in runs.items():
            begin = time.process_time()
            run()
            seconds = time.process_time() - begin
            best[name] = min(best[name], seconds / (count * steps * problem.d) * 1e9)
    return best


def table(results: dict[str, dict[str, float]], names: list[str]) -> str:
    """One row per peer: nanoseconds and how many times ours."""
    lines = [f"{'':40}" + "".join(f"{problem:>22}" for problem in results)]
    for name in names:
        cells = []
        for costs in results.values():
            cost, own = costs.get(name), costs.get(OURS)
            ratio = f"{cost / own:9.2f} x" if cost and own else " " * 11
            cells.append(f"{cost:11.2f}{ratio}" if cost else " " * 22)
        lines.append(f"{name:40}" + "".join(cells))
    return "\n".join(lines)


def plot(results: dict[str, dict[str, float]], names: list[str], file: str) -> None:
    """Costs on a logarithmic axis, one row per peer, one mark per problem."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 0.27 * len(names) + 1.0), layout="constrained")
    for (problem, costs), mark in zip(results.items(), "os^D", strict=False):
        shown = [(costs[name], k) for k, name in enumerate(names) if name in costs]
        axes.plot([c for c, _ in shown], [k for _, k in shown], mark, ms=4.5, alpha=0.8, label=problem)
    axes.set(xscale="log", xlabel="ns per path, step and component, one core (less is better)")
    axes.set_yticks(range(len(names)), [name.strip() for name in names], fontsize=7)
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.legend(fontsize=7)
    figure.savefig(file, dpi=110)


def memory(paths: int, steps: int) -> float | None:
    """MiB that a run of many paths takes at its peak, in a process that has compiled everything; Linux only."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    code = (
        f"import re, sys; from pathlib import Path; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "from sde_peers import ours; from sde_problems import PROBLEMS;"
        "read = lambda name: int(re.search(name + r':\\s+(\\d+)', Path('/proc/self/status').read_text())[1]);"
        f"ours()(PROBLEMS[0], 1000, {steps})();"
        "Path('/proc/self/clear_refs').write_text('5'); before = read('VmRSS');"
        f"ours()(PROBLEMS[0], {paths}, {steps})(); print(read('VmHWM') - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout) / 1024


def processor() -> str:
    """The name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--paths", type=int, default=100_000, help="paths, a tenth of it at d = 10")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=None, metavar="WORD", help="peers that contain a word")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--memory", action="store_true", help="also the memory of 1e7 paths, 100 steps")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # peers warn of their own affairs
    peers = [
        peer
        for peer in (*VARIANTS, *PEERS)
        if peer in VARIANTS or arguments.only is None or any(word in peer.name for word in arguments.only)
    ]
    missing = {peer.name: reason for peer in peers if (reason := peer.missing())}
    present = [peer for peer in peers if peer.name not in missing]
    print(
        f"{processor()}, one core; {arguments.paths} paths, {arguments.steps} steps, mean and variance at each"
    )
    results: dict[str, dict[str, float]] = {}
    for problem in PROBLEMS:
        chosen = [peer for peer in present if not peer.problems or problem.name in peer.problems]
        results[problem.name] = measure(
            problem, chosen, arguments.paths, arguments.steps, arguments.repeats, missing
        )
    names = [peer.name for peer in present if any(peer.name in costs for costs in results.values())]
    print("\nns per path-step-component, and times ours\n" + table(results, names))
    for name, reason in missing.items():
        print(f"{name.strip():40} missing: {reason}")
    gigahertz = sde_c.clock(PROBLEMS[0]) if sde_c.compiler() else None
    print("\n" + sde_limit.report(sde_limit.counted(), gigahertz, results["OU"][OURS]))
    used = memory(10**7, 100) if arguments.memory else None
    if used is not None:
        print(f"1e7 paths of 100 steps take {used:.0f} MiB, of which 76 are the final states.")
    if arguments.plot:
        plot(results, names, arguments.plot)
    if arguments.json:
        record = {
            "processor": processor(),
            "gigahertz": gigahertz,
            "paths": arguments.paths,
            "steps": arguments.steps,
            "ns_per_path_step_component": results,
            "missing": missing,
            "mebibytes_of_1e7_paths": used,
        }
        Path(arguments.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
