"""What can go wrong with a store, in one sentence each."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from solvers.whole_files import meaning


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
        raise StoreFailure(
            f"store={store} cannot be {doing}: {meaning(error)}, then run the same again: finished points are kept"
        ) from error
