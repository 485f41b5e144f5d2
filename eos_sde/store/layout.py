"""How a sweep lies in arrays: its axes, the shape of one point's result, and the chunks that cut both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

PENDING, DONE, FAILED = 0, 1, 2
STATUS = "status"
TEXTS = ("error", "warning")
RESERVED = (STATUS, *TEXTS)
"""Variables of every sweep, over its axes alone."""

_CHUNK_BYTES = 1 << 23
_CHUNK_POINTS = 1 << 16


@dataclass(frozen=True)
class Axis:
    """One dimension of a sweep.

    Attributes
    ----------
    dim : str
        Its name.
    values : mapping of str to ndarray
        The parameters that it sets, each with one value per place; several parameters go together ("zip").
    """

    dim: str
    values: Mapping[str, NDArray]

    @property
    def size(self) -> int:
        """Places along it."""
        return len(next(iter(self.values.values())))

    def rows(self) -> list[tuple]:
        """The values at each place."""
        return list(zip(*(column.tolist() for column in self.values.values()), strict=True))


@dataclass(frozen=True)
class Variable:
    """One array that every point adds to.

    Attributes
    ----------
    dims : tuple of str
        Of one point's result.
    shape : tuple of int
    dtype : dtype
        float64 or complex128.
    attrs : mapping
        Units, long name and so on.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    attrs: Mapping[str, Any]


@dataclass(frozen=True)
class Template:
    """What the result of every point looks like.

    Attributes
    ----------
    variables : mapping of str to Variable
    coords : mapping of str to (dims, values, attrs)
        Of dimensions that the results bring along, the same at every point.
    attrs : mapping
        Of the whole.
    """

    variables: Mapping[str, Variable]
    coords: Mapping[str, tuple[tuple[str, ...], NDArray, Mapping[str, Any]]] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def point_bytes(self) -> int:
        """Bytes of one point."""
        return sum(math.prod(one.shape) * one.dtype.itemsize for one in self.variables.values())


@dataclass
class Batch:
    """Finished points, in columns.

    Attributes
    ----------
    points : ndarray of int64
        Their numbers: places in the product of the axes, the last axis fastest.
    status : ndarray of uint8
        `DONE` or `FAILED`.
    errors, warnings : list of str
        A text per point, mostly empty.
    columns : dict of str to ndarray
        Shape (points, *shape of the variable); NaN where a point failed.
    """

    points: NDArray[np.int64]
    status: NDArray[np.uint8]
    errors: list[str]
    warnings: list[str]
    columns: dict[str, NDArray]


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches one after the other, as one."""
    if len(batches) == 1:
        return batches[0]
    return Batch(
        np.concatenate([one.points for one in batches]),
        np.concatenate([one.status for one in batches]),
        [text for one in batches for text in one.errors],
        [text for one in batches for text in one.warnings],
        {name: np.concatenate([one.columns[name] for one in batches]) for name in batches[0].columns},
    )


@dataclass(frozen=True)
class Layout:
    """The arrays of a sweep.

    Attributes
    ----------
    axes : tuple of Axis
    template : Template
    chunks : tuple of int
        Places per chunk along each axis; a chunk holds the results of its points whole.
    """

    axes: tuple[Axis, ...]
    template: Template
    chunks: tuple[int, ...]

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(axis.dim for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Places along each axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def size(self) -> int:
        """All points."""
        return math.prod(self.shape)

    def chunk_numbers(self) -> Iterator[tuple[int, ...]]:
        """All chunks, in order."""
        return np.ndindex(*(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True)))

    def region(self, chunk: tuple[int, ...]) -> tuple[slice, ...]:
        """Where a chunk lies along the axes."""
        return tuple(
            slice(k * c, min((k + 1) * c, n)) for k, c, n in zip(chunk, self.chunks, self.shape, strict=True)
        )

    def points_in(self, chunk: tuple[int, ...]) -> NDArray[np.int64]:
        """Numbers of the points of a chunk, in the shape of its region."""
        places = np.ix_(*(np.arange(part.start, part.stop) for part in self.region(chunk)))
        return np.asarray(np.ravel_multi_index(places, self.shape), dtype=np.int64)

    def by_chunk(
        self, points: NDArray[np.int64]
    ) -> Iterator[tuple[tuple[int, ...], NDArray[np.intp], tuple[NDArray[np.intp], ...]]]:
        """Each chunk that holds some of the points, which of them, and their places within its region."""
        places = np.stack(np.unravel_index(points, self.shape), axis=1)
        size = np.array(self.chunks)
        keys, owner = np.unique(places // size, axis=0, return_inverse=True)
        owner = owner.ravel()
        for number, key in enumerate(keys):
            mine = np.flatnonzero(owner == number)
            yield tuple(key.tolist()), mine, tuple((places[mine] - key * size).T)

    def parameters(self, points: NDArray[np.int64]) -> dict[str, list]:
        """The parameters of some points, in columns of plain Python values."""
        places = np.unravel_index(points, self.shape)
        return {
            name: column[place].tolist()
            for axis, place in zip(self.axes, places, strict=True)
            for name, column in axis.values.items()
        }

    def extended(self, axes: tuple[Axis, ...]) -> Layout:
        """The same with longer axes; chunks stay."""
        return replace(self, axes=axes)


def chunks_for(axes: tuple[Axis, ...], template: Template, line: str | None = None) -> tuple[int, ...]:
    """Chunk sizes along the axes: last axes whole, up to 8 MiB of the largest variable and 65 536 points.

    Parameters
    ----------
    axes : tuple of Axis
    template : Template
    line : str, optional
        An axis that no chunk cuts.

    Returns
    -------
    tuple of int
    """
    largest = max(
        (math.prod(one.shape) * one.dtype.itemsize for one in template.variables.values()), default=1
    )
    room = max(1, min(_CHUNK_BYTES // max(1, largest), _CHUNK_POINTS))
    sizes = [1] * len(axes)
    for k, axis in enumerate(axes):
        if axis.dim == line:
            sizes[k] = axis.size
            room = max(1, room // axis.size)
    for k in reversed(range(len(axes))):
        if axes[k].dim == line:
            continue
        sizes[k] = min(axes[k].size, room)
        room //= sizes[k]
        if sizes[k] < axes[k].size or room < 2:
            break
    return tuple(sizes)
