"""The Zarr v3 arrays of a sweep: made empty, written chunk by chunk, checked, lengthened; readable by xarray alone.

Zarr writes a chunk to a temporary file beside it and renames that, so that a chunk is old or new and never torn; what a
killed process leaves are temporary files, which are removed at the next opening. Every chunk carries a checksum.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from eos_sde.store.layout import (
    DONE,
    FAILED,
    PENDING,
    RESERVED,
    STATUS,
    TEXTS,
    Axis,
    Layout,
    Template,
    Variable,
)

_ABOUT = {
    STATUS: {
        "long_name": "what became of the point",
        "flag_values": [PENDING, DONE, FAILED],
        "flag_meanings": "pending done failed",
    },
    "error": {"long_name": "why the point failed"},
    "warning": {"long_name": "what the point warned of, a line each"},
}
_FILLS = {"f": np.nan, "c": complex(np.nan, np.nan), "u": 0, "i": 0, "b": False}


def make(path: Path, layout: Layout, attrs: Mapping[str, Any]) -> None:
    """Make the store with all coordinates, and nothing in its variables yet.

    Parameters
    ----------
    path : Path
        Does not exist.
    layout : Layout
    attrs : mapping
        Of the group.
    """
    group = zarr.create_group(path, zarr_format=3)
    for name, one in layout.template.variables.items():
        shape, chunks = (*layout.shape, *one.shape), (*layout.chunks, *one.shape)
        _array(group, name, shape, one.dtype, (*layout.dims, *one.dims), one.attrs, chunks)
    for name in RESERVED:
        dtype = np.dtype("u1") if name == STATUS else str
        _array(group, name, layout.shape, dtype, layout.dims, _ABOUT[name], layout.chunks)
    for name, (dims, values, about) in layout.template.coords.items():
        _coordinate(group, name, dims, values, about)
    _axis_coordinates(group, layout.axes)
    beside = [name for axis in layout.axes for name in axis.values if name != axis.dim]
    beside += [name for name, (dims, _, _) in layout.template.coords.items() if dims != (name,)]
    attrs = {**attrs, "arrays": json.dumps(sorted([*layout.template.variables, *layout.template.coords]))}
    group.attrs.update(attrs | ({"coordinates": " ".join(beside)} if beside else {}))
    _consolidate(path)


def _axis_coordinates(group: zarr.Group, axes: Iterable[Axis]) -> None:
    for axis in axes:
        for name, column in axis.values.items():
            _coordinate(group, name, (axis.dim,), column, {"units": "1", "long_name": f"parameter {name}"})


def _coordinate(group: zarr.Group, name: str, dims: tuple[str, ...], values: NDArray, attrs: Mapping) -> None:
    texts = values.dtype.kind in "UOT"
    array = _array(group, name, values.shape, str if texts else values.dtype, dims, attrs, values.shape)
    array[...] = values.astype(object) if texts else values


def _array(group, name, shape, dtype, dims, attrs, chunks):
    fill = "" if dtype is str else _FILLS[np.dtype(dtype).kind]
    return group.create_array(
        name, shape=shape, chunks=tuple(max(1, n) for n in chunks), dtype=dtype, fill_value=fill, overwrite=True,
        dimension_names=dims, attributes=dict(attrs), compressors=(ZstdCodec(level=3, checksum=True),),
        config={"write_empty_chunks": True},
    )  # fmt: skip


def _consolidate(path: Path) -> None:
    with (
        warnings.catch_warnings()
    ):  # version 3 has no word on it yet; xarray looks for it first, and is quicker so
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(path, zarr_format=3)


class Arrays:
    """The open arrays of a store.

    Parameters
    ----------
    path : Path
    mode : {"r", "r+"}
    """

    def __init__(self, path: Path, mode: Literal["r", "r+"] = "r+") -> None:
        self.path = path
        self._group = zarr.open_group(path, mode=mode, zarr_format=3, use_consolidated=False)
        self._open: dict[str, Any] = {}

    @property
    def attrs(self) -> dict[str, Any]:
        """Of the group."""
        return dict(self._group.attrs)

    def layout(self) -> Layout:
        """The layout, as the arrays tell it."""
        axes = tuple(
            Axis(dim, {name: self._values(name) for name in names})
            for dim, names in json.loads(self.attrs["dimensions"])
        )
        dims, status = tuple(axis.dim for axis in axes), self._array(STATUS)
        parameters = {name for axis in axes for name in axis.values}
        variables, coords = {}, {}
        names = json.loads(self.attrs["arrays"])
        for name in names:
            array = self._array(name)
            of = tuple(array.metadata.dimension_names)
            if name in RESERVED or name in parameters:
                continue
            if of[: len(dims)] == dims:
                own = of[len(dims) :]
                variables[name] = Variable(own, array.shape[len(dims) :], array.dtype, dict(array.attrs))
            else:
                coords[name] = (of, self._values(name), dict(array.attrs))
        return Layout(axes, Template(variables, coords), status.chunks)

    def _array(self, name: str):
        if name not in self._open:
            self._open[name] = self._group[name].with_config({"write_empty_chunks": True})
        return self._open[name]

    def _values(self, name: str) -> NDArray:
        values = np.asarray(self._array(name)[...])
        return values.astype(object) if values.dtype.kind == "T" else values

    def _file(self, name: str, chunk: tuple[int, ...]) -> Path:
        array = self._array(name)
        key = array.metadata.encode_chunk_key((*chunk, *(0,) * (array.ndim - len(chunk))))
        return self.path / name / key

    def status(self, layout: Layout, chunk: tuple[int, ...]) -> NDArray[np.uint8]:
        """What became of the points of a chunk, in the shape of its region."""
        return np.asarray(self._array(STATUS)[layout.region(chunk)])

    def write(self, layout: Layout, chunk: tuple[int, ...], fill: Mapping[str, tuple[Any, NDArray]]) -> None:
        """Set values within a chunk, the status last; durable when it returns.

        Parameters
        ----------
        layout : Layout
        chunk : tuple of int
        fill : mapping of str to (places, values)
            For every variable, places within the region and what belongs there.
        """
        region, names = layout.region(chunk), [*layout.template.variables, *TEXTS, STATUS]
        for name in names:
            array = self._array(name)
            places, values = fill[name]
            if self._file(name, chunk).exists():
                held = np.array(array[region])
                if held.dtype.kind == "T":
                    held = held.astype(object)
            else:
                shape = (*(part.stop - part.start for part in region), *array.shape[len(region) :])
                held = np.full(shape, array.fill_value, object if name in TEXTS else array.dtype)
            held[places] = values
            array[region] = held
            _durable(self._file(name, chunk))

    def missing(self, layout: Layout, chunk: tuple[int, ...]) -> str | None:
        """The first array that lacks a chunk although points of it are marked, or None."""
        if not self._file(STATUS, chunk).exists():
            return None
        return next((name for name in self._every(layout) if not self._file(name, chunk).exists()), None)

    @staticmethod
    def _every(layout: Layout) -> tuple[str, ...]:
        return (STATUS, *TEXTS, *layout.template.variables)

    def damaged(self, layout: Layout, chunk: tuple[int, ...]) -> str | None:
        """The first array whose chunk cannot be read although points of it are marked, or None."""
        gap, region = self.missing(layout, chunk), layout.region(chunk)
        if gap is not None or not self._file(STATUS, chunk).exists():
            return gap
        for name in self._every(layout):
            try:
                held = self._array(name)[region]
            except OSError:
                raise
            except Exception:  # a decoder's own: whatever it raises, the bytes are not what was written
                return name
            if name == STATUS and not held.any():
                return None
        return None

    def forget(self, layout: Layout, chunk: tuple[int, ...]) -> None:
        """Drop a chunk of every array, the status first: its points are pending again."""
        for name in self._every(layout):
            self._file(name, chunk).unlink(missing_ok=True)

    def lengthen(self, layout: Layout) -> None:
        """Make the arrays as long as the layout says; may be repeated if it was killed."""
        for name in (*layout.template.variables, *RESERVED):
            array = self._array(name)
            array.resize((*layout.shape, *array.shape[len(layout.shape) :]))
        for axis in layout.axes:
            for name, column in axis.values.items():
                array = self._array(name)
                array.resize(column.shape)
                array[...] = column
        self._open.clear()
        _consolidate(self.path)

    def tidy(self) -> None:
        """Remove what killed processes left: temporary files of chunks and of metadata."""
        for left in self.path.rglob("*.partial"):
            left.unlink(missing_ok=True)


def _durable(path: Path) -> None:
    """Have a file, and its name in its folder, on the disk."""
    for place in (path, path.parent):
        file = os.open(place, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
