"""Provenance attributes for datasets: what made them, with which versions and which seed."""

import platform
import shutil
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import xarray as xr

_PACKAGES = ("numpy", "scipy", "numba", "xarray")


def provenance(**details: Any) -> dict[str, Any]:
    """Attributes that every result carries.

    Parameters
    ----------
    **details
        Further attributes, for example ``convention="ito"`` or ``seed=1``; ``None`` values are left out
        and booleans stored as 0 or 1, since NetCDF knows neither; integers beyond 64 signed bits, as a seed
        may be, are stored as text.

    Returns
    -------
    dict
        ``creator``, ``versions`` and the details, in types that NetCDF and Zarr can hold.
    """
    stored = {key: _storable(value) for key, value in details.items() if value is not None}
    return {**_versions(), **stored}


def _storable(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return str(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value


@cache
def _versions() -> dict[str, str]:
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return {
        "creator": f"eos-sde {metadata.version('eos-sde')}",
        "versions": f"python {platform.python_version()}, {packages}",
    }


@cache
def git_commit() -> str | None:
    """The commit of this package's checkout, with -dirty if it has changes; None where it is installed."""
    git, here = shutil.which("git"), Path(__file__).parent
    if git is None:
        return None
    for command in (
        ["ls-files", "--error-unmatch", Path(__file__).name],
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
