"""What can go wrong with a store, in one sentence each."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEANING = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "permission is denied; make it writable, or choose another place",
    errno.EPERM: "permission is denied; make it writable, or choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOTDIR: "a part of its path is no folder; choose another place",
}


class StoreFailure(RuntimeError):
    """A store could not be read or written; what it held before is unharmed."""


@contextmanager
def told(store: Path, doing: str) -> Iterator[None]:
    """Turn errors of the file system into one sentence.

    Raises
    ------
    StoreFailure
        Where the block raises OSError.
    """
    try:
        yield
    except OSError as error:
        why = _MEANING.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)
        raise StoreFailure(
            f"store={store} cannot be {doing}: {why}, then run the same again: finished points are kept"
        ) from error
