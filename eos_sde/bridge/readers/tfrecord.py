"""TFRecord files without TensorFlow: an index of their records, and records whose checksums are looked at.

A file is a sequence of records: the length (8 bytes, little-endian), its checksum (4), the content, its checksum (4).
A checksum is the CRC-32C of the bytes, rotated right by 15 bits, plus 0xa282ead8.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from solvers.errors import InvalidInput

_HEAD, _TAIL = 12, 4
_MASK = 0xA282EAD8


def masked_checksum(content: bytes) -> int:
    """Checksum of a record as TFRecord files have it.

    Parameters
    ----------
    content : bytes
        Any.

    Returns
    -------
    int
        From 0 to below 2^32.
    """
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class RecordFile:
    """A TFRecord file and where its records are.

    Attributes
    ----------
    path : Path
        The file.
    starts : ndarray
        Of the contents, in bytes from the start of the file, int64.
    lengths : ndarray
        Of the contents, in bytes.
    """

    path: Path
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def where(self, number: int) -> str:
        """A record for people."""
        return f"{self.path}, record {number} at byte {self.starts[number] - _HEAD}"

    def content(self, number: int) -> bytes:
        """A record.

        Parameters
        ----------
        number : int
            From 0.

        Returns
        -------
        bytes
            Its content.

        Raises
        ------
        InvalidInput
            If it does not fit its checksum, or the file has become shorter.
        """
        length = int(self.lengths[number])
        with self.path.open("rb") as file:
            file.seek(int(self.starts[number]))
            read = file.read(length + _TAIL)
        if len(read) < length + _TAIL:
            raise InvalidInput(f"{self.where(number)} is cut short: get the file anew")
        content, (told,) = read[:length], struct.unpack("<I", read[length:])
        if masked_checksum(content) != told:
            raise InvalidInput(f"{self.where(number)} does not fit its checksum: get the file anew")
        return content


def record_file(path: Path) -> RecordFile:
    """Find the records of a TFRecord file; reads their lengths alone.

    Parameters
    ----------
    path : Path
        Not compressed.

    Returns
    -------
    RecordFile
        With their places.

    Raises
    ------
    InvalidInput
        If a length does not fit its checksum, or the last record is cut short.
    """
    starts, lengths = [], []
    size, at = path.stat().st_size, 0
    with path.open("rb", buffering=_HEAD) as file:
        while at < size:
            file.seek(at)
            head = file.read(_HEAD)
            here = f"{path}, record {len(starts)} at byte {at}"
            if len(head) < _HEAD:
                raise InvalidInput(f"{here} is cut short: get the file anew")
            length, told = struct.unpack("<QI", head)
            if masked_checksum(head[:8]) != told:
                raise InvalidInput(
                    f"{here} has a length that does not fit its checksum: "
                    + ("get the file anew" if starts else "is this a TFRecord file, not compressed?")
                )
            if at + _HEAD + length + _TAIL > size:
                raise InvalidInput(f"{here} should have {length} bytes and the file ends before: get it anew")
            starts.append(at + _HEAD)
            lengths.append(length)
            at += _HEAD + length + _TAIL
    return RecordFile(path, np.array(starts, np.int64), np.array(lengths, np.int64))
