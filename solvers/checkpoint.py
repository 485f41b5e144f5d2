"""Checkpoints of an ensemble: the finished paths and everything merged so far, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import time
import types
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from solvers.errors import InvalidInput
from solvers.purity import purity_key

if TYPE_CHECKING:
    from solvers.running import Run

_INTERVAL = 30.0
"""Seconds between writes."""


class Checkpoint:
    """The file of one run: read when it is made, written now and then and at the end.

    Parameters
    ----------
    path : Path
    run : Run
        Gets the paths that the file holds.

    Raises
    ------
    InvalidInput
        If the file is no checkpoint or belongs to another run.
    """

    def __init__(self, path: Path, run: Run):
        self.path, self.run = path, run
        self._key = _fingerprint(run)
        self._written = time.monotonic()
        if not path.parent.is_dir():
            raise InvalidInput(
                f"checkpoint={str(path)!r}: there is no folder {str(path.parent)!r}; make it first"
            )
        if path.exists():
            self._read()

    def _read(self) -> None:
        run = self.run
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                held = {name: stored[name] for name in stored.files}
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise InvalidInput(
                f"checkpoint={str(self.path)!r} cannot be read ({error}); remove it"
            ) from error
        if str(held.get("key")) != self._key:
            raise InvalidInput(
                f"checkpoint={str(self.path)!r} belongs to a run with another model or other arguments; give "
                "another file or remove this one"
            )
        done = run.done = int(held["done"])
        run.final[:done], run.diverged[:done] = held["final"], held["diverged"]
        if run.exits is not None:
            run.exits[:done] = held["exits"]
        if run.request.save_paths:
            run.states[:done] = held["states"]
        run.moments.restore(_under("moments/", held))
        for k, observer in enumerate(run.observers):
            observer.restore(_under(f"observer{k}/", held))

    def taken(self, run: Run) -> None:  # noqa: ARG002 - the signature of `running.execute`
        """Write if the last time is long ago."""
        if time.monotonic() - self._written > _INTERVAL:
            self.write()

    def write(self) -> None:
        """Write to a file beside it, then put that in its place."""
        run, done = self.run, self.run.done
        arrays: dict[str, Any] = {
            "key": np.array(self._key),
            "done": np.array(done),
            "final": run.final[:done],
            "diverged": run.diverged[:done],
        }
        if run.exits is not None:
            arrays["exits"] = run.exits[:done]
        if run.request.save_paths:
            arrays["states"] = run.states[:done]
        arrays |= {f"moments/{name}": value for name, value in run.moments.state().items()}
        for k, observer in enumerate(run.observers):
            arrays |= {f"observer{k}/{name}": value for name, value in observer.state().items()}
        beside = self.path.with_name(self.path.name + ".part")
        with beside.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        self._written = time.monotonic()


def _under(prefix: str, held: dict[str, Any]) -> dict[str, Any]:
    return {name[len(prefix) :]: value for name, value in held.items() if name.startswith(prefix)}


def _fingerprint(run: Run) -> str:
    """A digest of everything that the bits of a result depend on; the same in any process."""
    request = run.request
    sde = request.sde
    digest = hashlib.sha256()
    told = (
        request.scheme.name, request.resolution, run.source.name, run.source.about, run.width,
        request.t0, request.dt, request.first_step,
        request.last_step, request.paths, request.seed, request.statistics, request.save_paths, sde.names,
        sde.convention, sde.noise, tuple(sde.params),
    )  # fmt: skip
    digest.update(repr(told).encode())
    arrays = (request.start, request.saves, run.parameters, run.source.table)
    for array in (*arrays, *(o.settings for o in run.observers)):
        digest.update(np.ascontiguousarray(array).tobytes())
    functions = [sde.drift, sde.diffusion] + ([] if request.stop is None else [request.stop.function])
    for function in functions:
        _digest(purity_key(function, "model"), digest)
    return digest.hexdigest()


def _digest(key: Any, digest: Any) -> None:
    """Feed a purity key; of code what it does, not where it stands in a file."""
    if isinstance(key, types.CodeType):
        digest.update(key.co_code)
        _digest((key.co_names, key.co_varnames, key.co_consts), digest)
    elif isinstance(key, (tuple, frozenset)):
        digest.update(f"({len(key)}".encode())
        for item in sorted(key, key=repr) if isinstance(key, frozenset) else key:
            _digest(item, digest)
    else:
        digest.update(repr(key).encode())
