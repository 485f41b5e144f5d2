"""Where results come from: versions, the git commit, and what must agree before a sweep goes on."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import xarray as xr

from solvers.provenance import provenance

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


@cache
def git_commit() -> str | None:
    """The commit of this package's checkout, with -dirty if it has changes; None where it is installed."""
    git, here = shutil.which("git"), Path(__file__).parent
    if git is None:
        return None
    for command in (
        ["ls-files", "--error-unmatch", "origin.py"],
        ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    ):
        done = subprocess.run([git, *command], cwd=here, capture_output=True, text=True, check=False)
        if done.returncode:
            return None
    return done.stdout.strip() or None


def with_commit(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with the attribute ``git_commit`` where this package runs from a checkout; as it is elsewhere."""
    commit = git_commit()
    return dataset if commit is None else dataset.assign_attrs(git_commit=commit)
