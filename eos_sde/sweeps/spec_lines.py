"""Where each key of a TOML file stands, and every statement of it that is broken: tomllib tells one, and no places."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import Any

_AT = re.compile(r"\s*\(at (?:line (\d+), column \d+|end of document)\)$")
_LONGEST_BROKEN = 60
"""Lines that a statement of a broken file may have; those of one that can be read have no limit."""


@dataclass
class Located:
    """A TOML file with places.

    Attributes
    ----------
    data : dict
        What could be read.
    lines : dict
        Path of a key to its line, from 1; tables and their keys, with numbers in arrays of tables.
    broken : list of (line, text)
        What could not be read.
    """

    data: dict[str, Any]
    lines: dict[tuple, int] = field(default_factory=dict)
    broken: list[tuple[int, str]] = field(default_factory=list)

    def line(self, path: tuple) -> int:
        """The line of a key, or of the nearest thing around it; 1 for the whole."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def located(text: str) -> Located:
    """Read a TOML text with the places of its keys.

    Parameters
    ----------
    text : str

    Returns
    -------
    Located
        If statements are broken, ``data`` is what the others say.
    """
    try:
        return _scanned(text, Located(tomllib.loads(text)))
    except tomllib.TOMLDecodeError as error:
        whole = error
    except RecursionError:
        return Located({}, {}, [(1, "values are nested too deeply")])
    found = _scanned(text, Located({}))
    left = text.split("\n")
    for line, _ in found.broken:
        left[line - 1] = ""
    try:
        found.data = tomllib.loads("\n".join(left))
    except (tomllib.TOMLDecodeError, RecursionError):
        found.data = {}
    if not found.data or not found.broken:  # such as a key that is given twice
        place = _AT.search(str(whole))
        line = int(place[1]) if place and place[1] else text.count("\n") + 1
        if line not in {known for known, _ in found.broken}:
            found.broken.append((line, _bare(whole)))
    return found


def _bare(error: BaseException) -> str:
    return _AT.sub("", str(error))


def _scanned(text: str, found: Located) -> Located:
    """Note the line of every statement; those that cannot be read alone are broken."""
    lines, limit = text.split("\n"), None if found.data else _LONGEST_BROKEN
    table: tuple = ()
    counts: dict[tuple, int] = {}
    k = 0
    while k < len(lines):
        stripped = lines[k].strip()
        if not stripped or stripped.startswith("#"):
            k += 1
            continue
        length, read, why = _statement(lines, k, limit)
        if read is None:
            found.broken.append((k + 1, why))
        elif stripped.startswith("["):
            table = _header(read)
            if stripped.startswith("[["):
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            for depth in range(1, len(table) + 1):
                found.lines.setdefault(table[:depth], k + 1)
        else:
            for path in _paths(read):
                found.lines.setdefault((*table, *path), k + 1)
        k += length
    return found


def _statement(lines: list[str], start: int, limit: int | None) -> tuple[int, dict[str, Any] | None, str]:
    """How many lines a statement has, what it says, or why it cannot be read."""
    why, end = "", len(lines) if limit is None else min(len(lines), start + limit)
    for stop in range(start + 1, end + 1):
        try:
            return stop - start, tomllib.loads("\n".join(lines[start:stop])), ""
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            why = why or _bare(error)
    return 1, None, why


def _header(read: dict[str, Any]) -> tuple:
    path: list[str] = []
    inside: Any = read
    while isinstance(inside, dict) and inside:
        name, inside = next(iter(inside.items()))
        path.append(name)
        if isinstance(inside, list):
            break
    return tuple(path)


def _paths(read: dict[str, Any]) -> list[tuple]:
    """Every key within a statement, inline tables and dotted keys too."""
    found: list[tuple] = []
    stack: list[tuple[tuple, Any]] = [((name,), value) for name, value in read.items()]
    while stack:
        path, value = stack.pop()
        found.append(path)
        if isinstance(value, dict):
            stack += [((*path, name), inner) for name, inner in value.items()]
    return found
