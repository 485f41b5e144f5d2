"""Where results come from: versions, the git commit, and what must agree before a sweep goes on."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from solvers.provenance import git_commit, provenance

FORMAT = 1
"""Of the store; raised when its arrays change their meaning."""
KIND = "sweep"
DECISIVE = ("format", "creator", "versions", "function", "code", "settings", "dimensions", "line")
"""Attributes that decide the bits of a result: a store in which one of them differs is not resumed."""


def origin(**details: Any) -> dict[str, Any]:
    """Attributes of a store.

    Parameters
    ----------
    **details
        Further ones; mappings and sequences are kept as JSON.

    Returns
    -------
    dict
        Free of the names of machines, users and folders.
    """
    plain = {
        key: value if isinstance(value, str | int | float) or value is None else as_json(value)
        for key, value in details.items()
    }
    return provenance(kind=KIND, format=FORMAT, git_commit=git_commit(), **plain)


def as_json(value: Any) -> str:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_listed, allow_nan=False)


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be kept as JSON")


def identity(attrs: Mapping[str, Any]) -> str:
    """A digest of what decides the bits, 64 hexadecimal digits."""
    return hashlib.sha256(as_json({key: attrs.get(key) for key in DECISIVE}).encode()).hexdigest()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What decides the bits and is not the same, in words."""
    return [
        f"{key} is {_short(found.get(key), wanted.get(key))} there and "
        f"{_short(wanted.get(key), found.get(key))} here"
        for key in DECISIVE
        if found.get(key) != wanted.get(key)
    ]


def _short(value: Any, other: Any) -> str:
    """A value, or of long ones the part in which it differs from the other."""
    text, against = str(value), str(other)
    if len(text) <= 80:
        return text
    start = next((k for k, (a, b) in enumerate(zip(text, against, strict=False)) if a != b), 0)
    start = max(0, start - 30)
    return f"{'...' if start else ''}{text[start : start + 80]}{'...' if start + 80 < len(text) else ''}"
