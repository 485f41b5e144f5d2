"""Purity: what a model function may read, how it is refused, and when code counts as the same."""

import math
import types

import numpy as np
import pytest

from solvers import SDE, ImpureFunction, InvalidInput
from solvers.purity import plain_function, purity_key

FACTORS = [1.0, 2.0]
TABLE = np.arange(3.0)
SETTINGS = {"k": 1.0}
CHOSEN = {1.0}
RATE = 1.5
POINT = (1.0, (2.0, "three"))
HOLDER = types.SimpleNamespace(k=1.0)
MODULE = types.ModuleType("MODULE")
MODULE.k = 1.0  # pyright: ignore
MODULE.table = [1.0]  # pyright: ignore
k = [1.0]  # shares its name with a parameter


def one(t, y, p, xp):
    return (1.0,)


def helper(x):
    return RATE * x


def reads_list(x):
    return FACTORS[0] * x


def even(n, x):
    return x if n < 1 else odd(n - 1, x)


def odd(n, x):
    return -x if n < 1 else even(n - 1, x)


def refusal(function, role="drift"):
    with pytest.raises(ImpureFunction) as info:
        purity_key(function, role)
    message = str(info.value)
    assert "\n" not in message
    assert message.startswith(f"{role} ")
    return message


@pytest.mark.parametrize(
    ("function", "name", "kind"),
    [
        (lambda t, y, p, xp: (FACTORS[0] * y[0],), "FACTORS", "list"),
        (lambda t, y, p, xp: (TABLE[0] * y[0],), "TABLE", "ndarray"),
        (lambda t, y, p, xp: (SETTINGS["k"] * y[0],), "SETTINGS", "dict"),
        (lambda t, y, p, xp: (len(CHOSEN) * y[0],), "CHOSEN", "set"),
        (lambda t, y, p, xp: (HOLDER.k * y[0],), "HOLDER", "SimpleNamespace"),
        (lambda t, y, p, xp: (MODULE.table[0] * y[0],), "MODULE.table", "list"),
        (lambda t, y, p, xp: (reads_list(y[0]),), "FACTORS", "list"),
        (lambda t, y, p, xp: tuple((lambda v: v * FACTORS[1])(v) for v in y), "FACTORS", "list"),
        (lambda t, y, p, xp, table=FACTORS: (table[0] * y[0],), "default 0", "list"),
        (lambda t, y, p, xp, *, table=TABLE: (table[0] * y[0],), "table", "ndarray"),
    ],
)
def test_mutable_references_are_refused(function, name, kind):
    message = refusal(function)
    assert f"reads {name!r}" in message
    assert f"a {kind}," in message
    assert "pass numbers through params" in message


@pytest.mark.parametrize("value", [[1.0], np.ones(2), {"k": 1.0}, {1.0}, (1.0, [2.0]), SDE])
def test_mutable_closures_are_refused(value):
    assert "'value'" in refusal(lambda t, y, p, xp: (value,), "diffusion")
    assert "'value'" in refusal(lambda t, y, p, xp: tuple((lambda v: (v, value))(v) for v in y))


def test_writing_a_global_is_refused():
    def counts(t, y, p, xp):
        global RATE
        RATE = 2.0
        return y

    assert "writes the global 'RATE'" in refusal(counts)


def test_undefined_names_are_refused():
    with pytest.raises(InvalidInput, match="drift uses the undefined name 'missing'; define it or pass"):
        purity_key(lambda t, y, p, xp: (missing * y[0],), "drift")  # noqa: F821 # pyright: ignore

    def early():
        def drift(t, y, p, xp):
            return (later,)

        key = purity_key(drift, "drift")
        later = 1.0
        return key, later

    with pytest.raises(InvalidInput, match="uses 'later' before it is defined"):
        early()


@pytest.mark.parametrize(
    "function",
    [
        lambda t, y, p, xp: (RATE * y[0],),
        lambda t, y, p, xp: (POINT[0] * y[0],),
        lambda t, y, p, xp: (helper(y[0]),),
        lambda t, y, p, xp: (even(3, y[0]),),  # recursion through each other
        lambda t, y, p, xp: (math.pi * y[0] + math.sin(1.0),),
        lambda t, y, p, xp: (MODULE.k * y[0],),
        lambda t, y, p, xp: (np.tanh(y[0]) + len(y) + abs(t),),
        lambda t, y, p, xp: (p.k * y[0],),  # an attribute, although `k` is a list here
        lambda t, y, p, xp: (p.FACTORS * y[0],),
        lambda t, y, p, xp, rate=2.0: (rate * y[0],),
        lambda t, y, p, xp: tuple((lambda v: (lambda w: RATE * w)(v))(v) for v in y),
    ],
)
def test_pure_functions_are_accepted(function):
    assert hash(purity_key(function, "drift")) == hash(purity_key(function, "drift"))


def test_recursion_of_a_closure():
    def power(n, v):
        return 1.0 if n == 0 else v * power(n - 1, v)

    assert purity_key(power, "drift") == purity_key(power, "drift")


def _made(rate, default=1.0):
    return lambda t, y, p, xp, d=default: (rate * d * y[0],)


def test_keys_tell_what_matters_apart():
    base = purity_key(_made(1.0), "drift")
    assert base == purity_key(_made(1.0), "drift")
    for other in (
        _made(2.0),
        _made(1),
        _made(True),
        _made(1.0, 2.0),
        _made((1.0,)),
        _made("1.0"),
        _made(-1.0),
    ):
        assert purity_key(other, "drift") != base
    assert purity_key(_made(0.0), "drift") != purity_key(_made(-0.0), "drift")
    assert purity_key(_made(math.nan), "drift") == purity_key(_made(math.nan), "drift")
    assert purity_key(_made(helper), "drift") != purity_key(_made(even), "drift")


def test_a_global_number_that_is_changed_compiles_anew(monkeypatch):
    """In every reading, of an old model and of a new one; and the first value finds its code again."""
    drift = types.FunctionType((lambda t, y, p, xp: (RATE * y[0],)).__code__, globals())
    sde = SDE(drift, one, convention="ito")

    def readings(model):
        compiled, _, params = model.compiled()
        symbolic = model.symbolic()
        return [
            compiled(0.0, (2.0,), params)[0],
            float(model.drift_at(0.0, (2.0,))[0]),
            float(symbolic.drift[0].subs(symbolic.y[0], 2)),
        ]

    before = sde.compiled()[0]
    assert readings(sde) == [3.0] * 3
    monkeypatch.setitem(globals(), "RATE", 10.0)
    assert readings(sde) == [20.0] * 3
    assert readings(SDE(drift, one, convention="ito")) == [20.0] * 3
    assert sde.compiled()[0] is not before
    monkeypatch.undo()
    assert readings(sde) == [3.0] * 3
    assert sde.compiled()[0] is before


def test_a_number_of_a_module_that_is_changed_compiles_anew(monkeypatch):
    sde = SDE(lambda t, y, p, xp: (MODULE.k * y[0],), one, convention="ito")
    before = purity_key(sde.drift, "drift")
    monkeypatch.setattr(MODULE, "k", 2.0)
    assert purity_key(sde.drift, "drift") != before


def test_only_plain_functions():
    class Callable:
        def __call__(self, *_):
            return None

    for given, kind in ((Callable(), "Callable"), (3.0, "float"), (np.sin, "ufunc"), (None, "NoneType")):
        with pytest.raises(
            InvalidInput, match=rf"drift must be a plain Python function .*got '{kind}'; wrap"
        ):
            plain_function(given, "drift")
    assert plain_function(types.SimpleNamespace(py_func=one), "drift") is one  # a Numba dispatcher


def test_functions_of_chance_and_of_the_clock_are_refused():
    import random
    import time
    from random import random as chance

    def one(t, y, p, xp):
        return (1.0,)

    drifts = (
        lambda t, y, p, xp: (-random.random() * y[0],),
        lambda t, y, p, xp: (-np.random.rand() * y[0],),  # noqa: NPY002 - what is refused
        lambda t, y, p, xp: (-chance() * y[0],),
        lambda t, y, p, xp: (-time.time() * y[0],),
    )
    for drift in drifts:
        with pytest.raises(ImpureFunction, match="answers differently each time"):
            SDE(drift, one, convention="ito")
