"""The journal of a sweep: finished points are appended here, and durable, before they count as done.

A record is its length, a CRC-32 and the bytes of a `Batch`. A process that is killed while it appends leaves a torn
record at the end, which is cut off when the journal is next opened; whole records are replayed into the arrays.
Replaying twice writes the same bytes twice, so a kill between writing the arrays and emptying the journal is harmless.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eos_sde.store.layout import Batch, Template
from solvers.errors import InvalidInput

_MAGIC = b"eos-sde journal 1\n"
_RECORD = struct.Struct("<QI")
_PARTS = struct.Struct("<I")


class Journal:
    """An append-only file of finished points.

    Parameters
    ----------
    path : Path
        Made if it does not exist.
    identity : str
        Of the store that it belongs to, 64 hexadecimal digits.
    template : Template
        Gives the shapes of what is read back.

    Raises
    ------
    InvalidInput
        If the file belongs to another store.
    """

    def __init__(self, path: Path, identity: str, template: Template) -> None:
        self._path, self._template = path, template
        self._head = _MAGIC + identity.encode() + b"\n"
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        try:
            self._begin()
        except BaseException:
            self._file.close()
            raise

    def _begin(self) -> None:
        found = self._file.read(len(self._head))
        if found == self._head:
            self._end = len(self._head)
            return
        if not self._head.startswith(found):  # no torn beginning of ours
            raise InvalidInput(f"{self._path} is not the journal of this sweep; move it elsewhere")
        self._file.seek(0)
        self._file.truncate(0)
        _write_all(self._file.fileno(), self._head)
        os.fsync(self._file.fileno())
        self._end = len(self._head)

    @property
    def bytes(self) -> int:
        """Length of the records."""
        return self._end - len(self._head)

    def replay(self) -> Iterator[Batch]:
        """Batches that were appended, oldest first; a torn one at the end is cut off.

        Yields
        ------
        Batch
        """
        position, length = len(self._head), os.fstat(self._file.fileno()).st_size
        while True:
            self._file.seek(position)
            head = self._file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                break
            size, check = _RECORD.unpack(head)
            if size > length - position - _RECORD.size:
                break
            content = _read_all(self._file, size)
            if len(content) < size or zlib.crc32(content) != check:
                break
            position += _RECORD.size + size
            yield self._decoded(content)
        self._file.truncate(position)
        self._end = position

    def append(self, batch: Batch) -> None:
        """Make a batch durable; all of it or nothing.

        Raises
        ------
        OSError
            If it cannot be written; the journal is then as before.
        """
        content = _encoded(batch, self._template)
        record = _RECORD.pack(len(content), zlib.crc32(content)) + content
        self._file.seek(self._end)
        try:
            _write_all(self._file.fileno(), record)
            os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(self._end)
            raise
        self._end += len(record)

    def clear(self) -> None:
        """Forget all records: they are in the arrays."""
        self._file.truncate(len(self._head))
        os.fsync(self._file.fileno())
        self._end = len(self._head)

    def close(self, *, remove: bool = False) -> None:
        """Close the file, and remove it where it holds nothing that the arrays lack."""
        self._file.close()
        if remove:
            self._path.unlink(missing_ok=True)

    def _decoded(self, content: bytes) -> Batch:
        (size,) = _PARTS.unpack_from(content)
        head = json.loads(content[_PARTS.size : _PARTS.size + size])
        n, position = head["points"], _PARTS.size + size

        def taken(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
            nonlocal position
            count = n * math.prod(shape)
            values = np.frombuffer(content, dtype, count, position).reshape(n, *shape)
            position += count * dtype.itemsize
            return values

        points, status = taken(np.dtype("<i8"), ()), taken(np.dtype("u1"), ())
        columns = {name: taken(one.dtype, one.shape) for name, one in self._template.variables.items()}
        errors, warnings = (
            [head[kind].get(str(k), "") for k in range(n)] if head[kind] else [""] * n
            for kind in ("errors", "warnings")
        )
        return Batch(points, status, errors, warnings, columns)


def _encoded(batch: Batch, template: Template) -> bytes:
    head = json.dumps(
        {
            "points": len(batch.points),
            "errors": {k: text for k, text in enumerate(batch.errors) if text},
            "warnings": {k: text for k, text in enumerate(batch.warnings) if text},
        }
    ).encode()
    columns = (
        np.ascontiguousarray(batch.columns[name], one.dtype) for name, one in template.variables.items()
    )
    parts = (
        _PARTS.pack(len(head)), head,
        batch.points.astype("<i8").tobytes(), batch.status.astype("u1").tobytes(),
        *(column.tobytes() for column in columns),
    )  # fmt: skip
    return b"".join(parts)


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def _read_all(file, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        part = file.read(missing)
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
