"""Signals that interrupt long work, and short steps that they cannot leave half done."""

import os
import signal
import threading

import pytest

from solvers.interruption import signals_interrupt, signals_wait

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["handled", "ignored"])
def interrupt(request):
    """How SIGINT is dealt with outside: ignored by what a shell without job control runs in the background."""
    before = signal.signal(signal.SIGINT, request.param)
    yield request.param
    signal.signal(signal.SIGINT, before)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_and_what_was_set_before_comes_back(number, interrupt):
    before = handlers()
    with pytest.raises(KeyboardInterrupt), signals_interrupt():  # noqa: PT012
        os.kill(os.getpid(), number)
        pytest.fail("the signal was not obeyed")
    assert handlers() == before
    assert before[0] is interrupt


def test_a_handler_of_somebody_else_stays():
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(1))
    try:
        with signals_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [1]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_short_step_is_whole_before_a_signal_interrupts(number, interrupt):
    before, steps = handlers(), []
    with pytest.raises(KeyboardInterrupt), signals_wait():  # noqa: PT012
        os.kill(os.getpid(), number)
        steps.append("whole")
    assert steps == ["whole"]
    assert handlers() == before
    assert before[0] is interrupt


@pytest.mark.parametrize("context", [signals_interrupt, signals_wait])
def test_what_fails_when_a_signal_came_was_interrupted_and_else_failed(context):
    with pytest.raises(KeyboardInterrupt), context():  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            raise RuntimeError("what a library makes of it")
    with pytest.raises(RuntimeError, match="of its own"), context():
        raise RuntimeError("of its own")


def test_other_threads_change_nothing():
    before, seen = handlers(), []

    def look():
        with signals_interrupt(), signals_wait():
            seen.append(handlers())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]
