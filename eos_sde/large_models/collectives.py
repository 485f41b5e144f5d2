"""What a compiled program sends between devices: collectives by kind, with loops counted as often as they run."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4,
           "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")


class Sent(NamedTuple):
    """Collectives of one kind in a run of a program.

    Attributes
    ----------
    number : float
        How many.
    bytes : float
        Of their results on one device; of a reduce-scatter, of what goes in.
    largest : float
        Bytes of the largest.
    """

    number: float
    bytes: float
    largest: float


@dataclass
class _Computation:
    collectives: list[tuple[str, float]] = field(default_factory=list)
    calls: list[tuple[str, float, bool]] = field(default_factory=list)  # name, times, whether as data tells


def collectives(text: str) -> dict[tuple[str, bool], Sent]:
    """Collectives of a compiled program.

    Parameters
    ----------
    text : str
        ``compiled.as_text()`` of a program that JAX compiled for many devices.

    Returns
    -------
    dict
        (kind, whether inside a loop whose length depends on data) to what is sent. Loops of known length count as
        often as they run; the bodies of others once: of a training step under CAEO, one measurement of one pass.
    """
    computations, entry = _read(text)
    found: dict[tuple[str, bool], list[tuple[float, float]]] = defaultdict(list)

    def visit(name: str, times: float, data: bool) -> None:
        for kind, size in computations[name].collectives:
            found[kind, data].append((times, size))
        for called, often, unknown in computations[name].calls:
            visit(called, times * often, data or unknown)

    if entry is not None:
        visit(entry, 1.0, False)
    return {
        key: Sent(
            sum(times for times, _ in each),
            sum(times * size for times, size in each),
            max(size for _, size in each),
        )
        for key, each in found.items()
    }


def _read(text: str) -> tuple[dict[str, _Computation], str | None]:
    computations: dict[str, _Computation] = {}
    entry, current = None, _Computation()
    for raw in text.splitlines():
        line = raw.strip()
        header = _COMPUTATION.match(line)
        if header:
            current = computations.setdefault(header[2], _Computation())
            entry = header[2] if header[1] else entry
            continue
        collective = _COLLECTIVE.search(line)
        if collective:
            result, kind, started = collective.groups()
            sizes = _sizes(result)
            size = (
                max(sizes, default=0.0) if started else sum(sizes)
            )  # of a start: what goes in, and what comes out
            if kind == "reduce-scatter":
                size = sum(_sizes(line.split("(", 1)[1])) or size
            current.collectives.append((kind, size))
            continue  # its to_apply is one sum
        looped = " while(" in line
        trips = _TRIPS.search(line) if looped else None
        for name in _CALLED.findall(line):
            current.calls.append((name, float(trips[1]) if trips else 1.0, looped and trips is None))
        for branches in _BRANCHES.findall(line):
            for name in branches.split(","):
                current.calls.append((name.strip().lstrip("%"), 1.0, False))
    for computation in computations.values():
        computation.calls = [call for call in computation.calls if call[0] in computations]
    return computations, entry


def _sizes(types: str) -> list[float]:
    sizes = []
    for dtype, shape in _ARRAY.findall(types):
        if dtype in _WIDTHS:
            count = 1
            for length in filter(None, shape.split(",")):
                count *= int(length)
            sizes.append(count * _WIDTHS[dtype])
    return sizes
