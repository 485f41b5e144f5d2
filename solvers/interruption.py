"""SIGINT and SIGTERM as Ctrl-C, for as long as long work lasts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM, and at SIGINT even where it was ignored at the start.

    A shell without job control starts what it puts in the background with SIGINT ignored, and Python leaves it so:
    ``kill -INT`` would do nothing. Work that loses nothing when it is stopped obeys instead. Whatever fails once a
    signal has come was interrupted: some libraries, while they are imported, turn a KeyboardInterrupt into errors of
    theirs. A handler that somebody else has set for SIGINT stays. Outside the main thread, where signals do not arrive,
    nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []

    def interrupt(*_: Any) -> None:
        came.append(True)
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) in {signal.SIG_IGN, signal.default_int_handler}:
        numbers.append(signal.SIGINT)
    with _interrupted_once(came), _handled(numbers, interrupt):
        yield


@contextmanager
def signals_wait() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until a short step is whole, then raise KeyboardInterrupt if one came.

    For what cannot be left half done, such as the start of other processes. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    held = (signal.SIGINT, signal.SIGTERM)
    with _interrupted_once(came), _handled(held, lambda *_: came.append(True)):
        yield
    if came:
        raise KeyboardInterrupt


@contextmanager
def _handled(numbers: Iterable[signal.Signals], handler: Callable[..., Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier if earlier is not None else signal.SIG_DFL)


@contextmanager
def _interrupted_once(came: list[bool]) -> Iterator[None]:
    """What fails once a signal has come was interrupted; a terminal's Ctrl-C reaches the processes of a program too."""
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
