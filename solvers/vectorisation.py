"""Why the loop over the paths of a block was not turned into vector instructions, and what to write instead.

Read from LLVM's optimised code of the compiled pass, the only place where the answer is certain: the loops that
store states, what they call, and whether LLVM's vectoriser made them (it names their first block
``vector.body``, and keeps one plain copy of each for arrays that overlap, which never run here).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

_NAME = r'"[^"]+"|[-\w.$]+'
_BLOCK = re.compile(rf"^({_NAME}):", re.M)
_LABEL = re.compile(rf"label %({_NAME})")
_CALL = re.compile(rf" call [^@\n]*@({_NAME})\(")
_STORE = re.compile(r" store (?:<\d+ x )?(?:double|i64)\b")  # a double may be stored as its bits

_XP_NAMES = {
    "sin": "sin", "cos": "cos", "tan": "tan", "asin": "arcsin", "acos": "arccos", "atan": "arctan",
    "atan2": "arctan2", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "exp": "exp", "expm1": "expm1",
    "log": "log", "log1p": "log1p", "hypot": "hypot",
}  # fmt: skip
_POWER = (
    "write a power with a fractional or variable exponent as xp.exp(a * xp.log(x)), x**1.5 as x * xp.sqrt(x), and "
    "whole powers as numbers, x**3"
)
_ALTERNATIVES = {
    "pow": _POWER,
    "powi": _POWER,
    "exp2": "write 2**x as xp.exp(x * xp.log(2))",
    "exp10": "write 10**x as xp.exp(x * xp.log(10))",
    "log2": "write it as xp.log(x) / xp.log(2)",
    "log10": "write it as xp.log(x) / xp.log(10)",
    "fmod": "x % m and x // m have no vector form; a phase needs none before xp.sin and xp.cos",
} | {c: f"call xp.{ours}" for c, ours in _XP_NAMES.items()}
_INTRINSICS = (set(_ALTERNATIVES) - {"fmod"}) | {"ldexp", "frexp", "sincos", "modf"}
"""LLVM intrinsics that become calls into the C library; other ``llvm.*`` are instructions or nothing."""


class _Loop(NamedTuple):
    """A loop of one compiled function that stores doubles."""

    vectorised: bool
    calls: frozenset[str]
    repeats: bool  # contains a loop
    raises: bool  # can be left by an exception


def explain(compiled: Any) -> str | None:
    """Why the loop over paths of a compiled pass runs one path at a time.

    Parameters
    ----------
    compiled : Numba cfunc
        A pass that moves a block by one step, from `solvers.kernels.advancing`. Passes that look for exits
        branch by design and are not meant.

    Returns
    -------
    str or None
        One sentence with the cause and the remedy; None if the loop was vectorised and calls nothing.
    """
    loops = _storing_loops(_main_function(compiled.inspect_llvm(), compiled.native_name))
    fast = [loop for loop in loops if loop.vectorised]
    plain = [loop for loop in loops if not loop.vectorised]
    # Each vector loop has at most one plain copy; what is left over is a variant that could not be vectorised.
    complete = fast and len(plain) <= len(fast)
    judged = fast if complete else plain
    calls = sorted(set().union(*(loop.calls for loop in judged)))
    start = (
        "the loop over paths runs one path at a time, several times slower than it could, because the model"
    )
    if calls:
        advice = "; ".join(
            dict.fromkeys(
                _ALTERNATIVES.get(name, f"{name} has no vector form; use the functions of xp")
                for name in calls
            )
        )
        return f"{start} calls {', '.join(calls)} of the C library: {advice}"
    if complete:
        return None
    if any(loop.raises for loop in judged):
        return (
            f"{start} may raise an exception: write a negative power x**-2 as 1 / x**2, and index tuples by "
            "constant numbers"
        )
    if any(loop.repeats for loop in judged):
        return (
            f"{start} contains a loop of variable length: write sums out, and whole powers with the exponent as "
            "a number, x**3"
        )
    return f"{start} branches or is too long for LLVM to vectorise: use xp.where instead of if, and, or"


def _main_function(ir: str, native_name: str) -> dict[str, str]:
    """The basic blocks, by label, of the compiled function; LLVM may have put it into its C wrapper."""
    blocks: dict[str, str] = {}
    for name in (native_name, native_name.removeprefix("cfunc.")):
        start = re.search(rf'^define [^@\n]*@"?{re.escape(name)}"?\(', ir, re.M)
        if start is None:
            continue
        body = ir[ir.index("{\n", start.end()) + 2 : ir.index("\n}", start.end())]
        marks = list(_BLOCK.finditer(body))
        ends = [mark.start() for mark in marks[1:]] + [len(body)]
        for mark, end in zip(marks, ends, strict=True):
            blocks[f"{name}/{mark[1]}"] = body[mark.end() : end]
    return blocks


def _targets(block: str, prefix: str) -> list[str]:
    """The labels that the last instruction of a block names."""
    start = max(block.rfind("\n  br "), block.rfind("\n  switch "))
    return [prefix + label for label in _LABEL.findall(block[start:])] if start >= 0 else []


def _storing_loops(blocks: dict[str, str]) -> list[_Loop]:
    after = {label: _targets(text, label[: label.index("/") + 1]) for label, text in blocks.items()}
    before: dict[str, list[str]] = {label: [] for label in blocks}
    for label, targets in after.items():
        for target in targets:
            before[target].append(label)
    loops: dict[frozenset[str], _Loop] = {}
    for label, text in blocks.items():
        if _STORE.search(text) and not any(label in members for members in loops):
            members = frozenset(_reached(label, after) & _reached(label, before))
            if members:
                loops[members] = _describe(members, blocks, after, before)
    return list(loops.values())


def _reached(start: str, steps: dict[str, list[str]]) -> set[str]:
    """The blocks that can be reached from one by at least one step."""
    found: set[str] = set()
    waiting = list(steps[start])
    while waiting:
        label = waiting.pop()
        if label not in found:
            found.add(label)
            waiting.extend(steps[label])
    return found


def _describe(
    members: frozenset[str],
    blocks: dict[str, str],
    after: dict[str, list[str]],
    before: dict[str, list[str]],
) -> _Loop:
    texts = [blocks[label] for label in members]
    entries = {label for label in members if any(source not in members for source in before[label])}
    inside = members - entries
    exits = {target for label in members for target in after[label] if target not in members}
    return _Loop(
        vectorised=any(label.split("/")[-1].startswith("vector.body") for label in members),
        calls=frozenset(_library_calls(texts)),
        repeats=any(
            label in _reached(label, {k: [t for t in after[k] if t in inside] for k in inside})
            for label in inside
        ),
        # Numba leaves a raising function with a pointer to the pickled exception.
        raises=any("picklebuf" in blocks[target] for target in exits),
    )


def _library_calls(texts: Iterable[str]) -> set[str]:
    names = set()
    for text in texts:
        for called in _CALL.findall(text):
            name = called.strip('"')
            if not name.startswith("llvm."):
                names.add(name)
            elif name.split(".")[1] in _INTRINSICS:
                names.add(name.split(".")[1])
        if " = frem " in text:
            names.add("fmod")
    return names
