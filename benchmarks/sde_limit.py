"""The least time that a path-step can take: instructions counted in our own machine code, over the clock.

The passes of a step are read as LLVM made them: their innermost vector loops, the instructions in each that
occupy an arithmetic unit (moves between memory and registers left out, since those go through other ports),
and how many path-steps one trip serves. With four vector units, as on Zen 3 and later, no loop can go faster
than a quarter of a cycle per instruction; what we need beyond that is waiting, loads, and the work between
loops. Only for Ornstein-Uhlenbeck at 32-bit resolution, where the loops are known: one for the words (of
4 calls of Threefry-2x64-13, each for 4 normals), one for radii, one for angles, one for the update, one for the
running sums.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sde_problems import DT, PROBLEMS, START

from solvers import ensemble, kernels, simulate

UNITS = 4


class Count(NamedTuple):
    """Vector instructions of one pass, per path and step."""

    name: str
    arithmetic: float
    all: float


class Loop(NamedTuple):
    """An innermost vector loop."""

    arithmetic: int
    all: int
    step: int
    """Of the index."""
    stored: int
    """64-bit words that one trip writes."""


def _loops(assembly: str) -> list[Loop]:
    """The innermost vector loops, in the order of the code."""
    lines = [line.strip() for line in assembly.splitlines()]
    places = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\.LBB\d+_\d+):", line))}
    found = []
    for end, line in enumerate(lines):
        jump = re.match(r"j\w+\s+(\.LBB\d+_\d+)", line)
        begin = places.get(jump[1], end) if jump else end
        body = [x for x in lines[begin + 1 : end + 1] if x and not x.startswith((".", "#"))]
        if begin >= end or any(x.startswith(".LBB") for x in lines[begin + 1 : end]):
            continue
        vector = [x for x in body if "%ymm" in x or "%zmm" in x]
        steps = [int(m[1]) for x in body if (m := re.match(r"addq\s+\$(\d+),", x))]
        if len(vector) > 3 and steps:
            stored = sum(
                8 if x.startswith("zmm") else 4
                for line in vector
                if (m := re.match(r"vmov\w+\s+%([yz]mm)\d+, [^%]*\(", line))
                for x in m.groups()
            )
            found.append(Loop(sum(not x.startswith("vmov") for x in vector), len(body), steps[-1], stored))
    return found


def counted() -> list[Count]:
    """Instructions per path-step of each pass, empty if the loops are not as expected."""
    runs = []

    class Watched(ensemble.Run):
        def __init__(self, request):
            super().__init__(request)
            runs.append(self)

    kept, ensemble.Run = ensemble.Run, Watched
    try:
        simulate(PROBLEMS[0].sde, START, t1=10 * DT, dt=DT, paths=1000, seed=1, threads=1)
    finally:
        ensemble.Run = kept
    fill = _loops(runs[0].source.fill._library.get_asm_str())
    advance = _loops(runs[0].advance._library.get_asm_str())
    record = _loops(next(iter(kernels.record.inspect_asm().values())))
    if len(fill) != 3 or len(advance) != 1 or not record:
        return []
    words, radii, angles = fill
    sums = min(record, key=lambda loop: (-loop.arithmetic % 24, loop.all))
    passes = [  # and the path-steps that a trip serves: a word is for two normals
        ("words", words, 2 * words.stored),
        ("radii", radii, 2 * radii.step),
        ("angles", angles, 2 * angles.step),
        ("update", advance[0], advance[0].step),
        ("sums", sums, sums.step),
    ]
    return [Count(name, loop.arithmetic / serves, loop.all / serves) for name, loop, serves in passes]


def report(counts: list[Count], gigahertz: float | None, measured: float) -> str:
    """The count as text, and how far the measured nanoseconds are from it."""
    if not counts:
        return "The loops of this machine's code are not those that were counted; no limit is stated."
    arithmetic, everything = sum(c.arithmetic for c in counts), sum(c.all for c in counts)
    parts = ", ".join(f"{c.name} {c.arithmetic:.2f}" for c in counts)
    text = (
        f"Counted in the machine code, per path-step of OU: {arithmetic:.1f} vector instructions that need an "
        f"arithmetic unit ({parts}), {everything:.1f} instructions in all.\nWith {UNITS} vector units: "
        f"{arithmetic / UNITS:.2f} cycles."
    )
    if gigahertz is None:
        return text
    limit = arithmetic / UNITS / gigahertz
    times = measured / limit
    return f"{text} At {gigahertz:.2f} GHz: {limit:.2f} ns; measured: {measured:.2f}, {times:.1f} times that."
