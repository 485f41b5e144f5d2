"""A store that is being written: one writer, a journal before the arrays, longer axes, nothing lost to a kill.

Beside ``NAME.zarr`` there are, while it is written, ``NAME.zarr.lock`` (one writer), ``NAME.zarr.journal`` (finished
points that are not in the arrays yet), ``NAME.zarr.part`` (a store that is not whole yet) and ``NAME.zarr.axes``
(longer axes that are not all there yet). The journal goes when the writer leaves in peace.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from eos_sde.store.arrays import Arrays, make
from eos_sde.store.errors import StoreFailure, told
from eos_sde.store.journal import Journal
from eos_sde.store.layout import DONE, FAILED, STATUS, TEXTS, Axis, Batch, Layout, joined
from eos_sde.store.origin import KIND, differences, identity
from solvers.errors import InvalidInput

_FLUSH_BYTES = 1 << 25
_FLUSH_SECONDS = 10.0


class DamagedChunk(UserWarning):
    """A chunk of a store could not be read; its points are computed again."""


class Place:
    """Where a sweep is kept, locked for one writer.

    Parameters
    ----------
    path : path
        Ending in .zarr.

    Raises
    ------
    InvalidInput
        If the name does not end so, or something else is there.
    StoreFailure
        If another process writes there, or it cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        check_name(self.path)
        self._lock = filelock.FileLock(self.beside("lock"), timeout=0)
        with told(self.path, "written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise StoreFailure(
                    f"store={self.path} is being written by another process; wait for it, or choose another name"
                ) from None

    def beside(self, ending: str) -> Path:
        """The name of a file beside the store."""
        return self.path.with_name(f"{self.path.name}.{ending}")

    @property
    def exists(self) -> bool:
        """Whether there is a store."""
        return self.path.exists()

    def attrs(self) -> dict[str, Any]:
        """Attributes of the store that is there."""
        return attributes(self.path)

    def release(self) -> None:
        """Let others write."""
        with suppress(OSError):  # a name that stays, as on a full or vanished disk, harms nobody
            self.beside("lock").unlink(missing_ok=True)
        self._lock.release()

    def create(self, layout: Layout, attrs: Mapping[str, Any]) -> None:
        """Make the store whole, then give it its name, in place of one that was there.

        Raises
        ------
        StoreFailure
            If it cannot be written.
        """
        part, old = self.beside("part"), self.beside("old")
        with told(self.path, "made"):
            for left in (part, old):
                shutil.rmtree(left, ignore_errors=True)
            try:
                make(part, layout, attrs)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            if self.exists:
                self.path.rename(old)
            for ending in ("journal", "axes"):
                self.beside(ending).unlink(missing_ok=True)
            part.rename(self.path)
            shutil.rmtree(old, ignore_errors=True)


def check_name(path: Path) -> None:
    """Refuse a name that is no store's, or is taken by something that is no sweep.

    Raises
    ------
    InvalidInput
        Saying which.
    """
    if path.suffix != ".zarr" or path.name == ".zarr":
        raise InvalidInput(f"store={path} must end in .zarr")
    with told(path, "looked at"):
        taken = path.exists()
    if taken and attributes(path).get("kind") != KIND:
        raise InvalidInput(f"store={path} exists and holds no sweep; choose another name")


def attributes(path: Path) -> dict[str, Any]:
    """Attributes of a Zarr group, from its own file; none where it has none."""
    group = path / "zarr.json"
    try:
        found = json.loads(group.read_text())
    except (OSError, ValueError):
        return {}
    attrs = found.get("attributes") if isinstance(found, dict) else None
    return attrs if isinstance(attrs, dict) else {}


class SweepStore:
    """The store of a running sweep.

    Parameters
    ----------
    place : Place
        Locked; the store exists.
    axes : tuple of Axis
        Those of the store, or longer.
    attrs : mapping
        What the store must have been made with, as far as it decides the bits.

    Raises
    ------
    InvalidInput
        If it was made with something else, or has values that `axes` lack.
    StoreFailure
        If it cannot be read or written.
    """

    def __init__(self, place: Place, axes: tuple[Axis, ...], attrs: Mapping[str, Any]) -> None:
        self.path, self._place = place.path, place
        unlike = differences(place.attrs(), attrs)
        if unlike:
            raise InvalidInput(
                f"store={self.path} was made otherwise: {'; '.join(unlike)}; choose another name, or do not resume"
            )
        with told(self.path, "opened"):
            try:
                self._arrays = Arrays(self.path)
                self._finish_lengthening()
                self.layout = self._arrays.layout()
            except OSError:
                raise
            except Exception as error:  # of broken metadata zarr raises whatever it stumbles over
                raise StoreFailure(
                    f"store={self.path} lacks some of its arrays, or their metadata are broken ({error}); restore it, "
                    "or do not resume"
                ) from error
            longer = longer_axes(self.path, self.layout, axes, attrs.get("line"))
            self.layout = self.layout.extended(_held_once(self.layout.axes, axes))
            self._arrays.tidy()
            self._journal = Journal(place.beside("journal"), identity(place.attrs()), self.layout.template)
            self._held: list[Batch] = []
            self._since = time.monotonic()
            try:
                self._recover()
                if longer is not None:
                    self._lengthen(longer)
            except BaseException:
                self._journal.close()
                raise

    def _recover(self) -> None:
        """Drop what is damaged, then replay the journal."""
        for chunk in self.layout.chunk_numbers():
            name = self._arrays.damaged(self.layout, chunk)
            if name is not None:
                self._arrays.forget(self.layout, chunk)
                place = "/".join(map(str, chunk))
                warnings.warn(
                    DamagedChunk(
                        f"store={self.path}: chunk {place} of {name!r} is missing or damaged; its points are "
                        "computed again"
                    ),
                    stacklevel=4,
                )
        for batch in self._journal.replay():
            self._held.append(batch)
            if sum(map(_bytes, self._held)) > _FLUSH_BYTES:
                self._fold()
        self._fold()
        self._journal.clear()

    def _lengthen(self, axes: tuple[Axis, ...]) -> None:
        intent, part = self._place.beside("axes"), self._place.beside("axes.part")
        part.write_text(
            json.dumps(
                {axis.dim: {name: column.tolist() for name, column in axis.values.items()} for axis in axes}
            )
        )
        part.replace(intent)
        self._finish_lengthening()
        self.layout = self._arrays.layout()

    def _finish_lengthening(self) -> None:
        intent = self._place.beside("axes")
        if not intent.exists():
            return
        wanted = json.loads(intent.read_text())
        axes = tuple(
            Axis(dim, {name: _column(values) for name, values in columns.items()})
            for dim, columns in wanted.items()
        )
        layout = self._arrays.layout().extended(axes)
        self._arrays.lengthen(layout)
        intent.unlink()

    def pending(self) -> Iterator[NDArray[np.int64]]:
        """Numbers of the points that are not done, chunk by chunk; those that failed are among them."""
        for chunk in self.layout.chunk_numbers():
            todo = self._arrays.status(self.layout, chunk) != DONE
            if todo.any():
                yield self.layout.points_in(chunk)[todo]

    def counts(self) -> tuple[int, int]:
        """How many points are done, and how many failed."""
        done = failed = 0
        for chunk in self.layout.chunk_numbers():
            status = self._arrays.status(self.layout, chunk)
            done += int((status == DONE).sum())
            failed += int((status == FAILED).sum())
        return done, failed

    def record(self, batch: Batch) -> None:
        """Keep finished points: durable when this returns.

        Raises
        ------
        StoreFailure
            If they cannot be written.
        """
        with told(self.path, "written"):
            self._journal.append(batch)
        self._held.append(batch)
        if self._journal.bytes > _FLUSH_BYTES or time.monotonic() - self._since > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Move the points of the journal into the arrays.

        Raises
        ------
        StoreFailure
            If the arrays cannot be written; the journal keeps the points.
        """
        with told(self.path, "written"):
            self._fold()
            self._journal.clear()
        self._since = time.monotonic()

    def _fold(self) -> None:
        if not self._held:
            return
        all_of = _latest(self._held)
        for chunk, mine, places in self.layout.by_chunk(all_of.points):
            fill = {name: (places, all_of.columns[name][mine]) for name in self.layout.template.variables}
            for name, texts in zip(TEXTS, (all_of.errors, all_of.warnings), strict=True):
                fill[name] = (places, np.array([texts[k] for k in mine], dtype=object))
            fill[STATUS] = (places, all_of.status[mine])
            self._arrays.write(self.layout, chunk, fill)
        self._held = []

    def close(self) -> None:
        """Leave in peace: everything in the arrays, and no journal.

        Raises
        ------
        StoreFailure
            If the arrays cannot be written; the journal stays and keeps the points.
        """
        folded = False
        try:
            self.flush()
            folded = True
        finally:
            self._journal.close(remove=folded)


def _bytes(batch: Batch) -> int:
    return sum(column.nbytes for column in batch.columns.values()) + 16 * len(batch.points)


def _latest(batches: list[Batch]) -> Batch:
    """All batches in one; of a point that is in several, the last."""
    every = joined(batches)
    _, last = np.unique(every.points[::-1], return_index=True)
    keep = len(every.points) - 1 - last
    return Batch(
        every.points[keep],
        every.status[keep],
        [every.errors[k] for k in keep],
        [every.warnings[k] for k in keep],
        {name: column[keep] for name, column in every.columns.items()},
    )


def _column(values: list) -> NDArray:
    return np.array(values, dtype=object) if isinstance(values[0], str) else np.array(values)


def _held_once(held: tuple[Axis, ...], wanted: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Axes of a store, with the columns of the caller where they are the same: they may have millions of values."""

    def one_of(mine: NDArray, theirs: NDArray) -> NDArray:
        return theirs if mine.dtype == theirs.dtype and np.array_equal(mine, theirs) else mine

    return tuple(
        Axis(mine.dim, {name: one_of(column, theirs.values[name]) for name, column in mine.values.items()})
        for mine, theirs in zip(held, wanted, strict=True)
    )


def longer_axes(
    path: Path, layout: Layout, axes: tuple[Axis, ...], line: str | None
) -> tuple[Axis, ...] | None:
    """The axes of a store with the values that are new at their ends; None if there are none.

    Raises
    ------
    InvalidInput
        If the store has values that are not wanted, or the axis of a line would become longer.
    """
    longer, changed = [], False
    for held, wanted in zip(layout.axes, axes, strict=True):
        if all(np.array_equal(held.values[name], column) for name, column in wanted.values.items()):
            longer.append(held)
            continue
        rows, asked = held.rows(), wanted.rows()
        known, needed = set(rows), set(asked)
        missing = [row for row in rows if row not in needed]
        new = [k for k, row in enumerate(asked) if row not in known]
        if missing:
            raise InvalidInput(
                f"store={path} has {held.dim}={_shown(missing[0])}, which the axes here lack; add it, or choose "
                "another name"
            )
        if new and held.dim == line:
            raise InvalidInput(
                f"axis {held.dim!r} is followed from value to value and cannot become longer; choose another name"
            )
        changed |= bool(new)
        columns = {
            name: np.concatenate(
                [held.values[name], _as_held(path, name, column[new], held.values[name].dtype)]
            )
            for name, column in wanted.values.items()
        }
        longer.append(Axis(held.dim, columns))
    return tuple(longer) if changed else None


def _as_held(path: Path, name: str, column: NDArray, dtype: np.dtype) -> NDArray:
    if not len(column) or column.dtype == dtype:
        return column.astype(dtype)
    if "O" in (column.dtype.kind, dtype.kind) or (column.astype(dtype) != column).any():
        kind = {"i": "integers", "f": "numbers", "O": "texts", "b": "truth values"}.get(
            dtype.kind, str(dtype)
        )
        raise InvalidInput(
            f"store={path} holds {kind} along {name!r}, not {column[0]!r}; choose another name"
        )
    return column.astype(dtype)


def _shown(row: tuple) -> str:
    return repr(row[0]) if len(row) == 1 else repr(row)
