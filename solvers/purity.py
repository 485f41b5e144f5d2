"""Purity of model functions: what a function references, whether that can change, and a key for caches.

A model is compiled once and then reused, so a function that reads a list, an array or an attribute that
somebody may change later would silently compute with stale values. Such functions are refused.
"""

import builtins
import dis
import types
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from solvers.errors import ImpureFunction, InvalidInput

_IMMUTABLE = (bool, int, float, complex, str, bytes, type(None), np.generic, types.CodeType)
_STATEFUL = ("random", "time", "datetime", "secrets", "uuid", "os")
FROZEN = "frozen_key"
"""Attribute of a function whose data can never change, such as a table: its key, in place of its references."""
_OPCODES = ("LOAD_GLOBAL", "LOAD_NAME")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")


def plain_function(function: Any, role: str) -> Callable[..., Any]:
    """The plain Python function behind `function`, or a refusal that says what was given.

    Raises
    ------
    InvalidInput
        If `function` is neither a Python function nor a Numba dispatcher.
    """
    function = getattr(function, "py_func", function)
    if not isinstance(function, types.FunctionType):
        raise InvalidInput(
            f"{role} must be a plain Python function of (t, y, p, xp), got {type(function).__name__!r}; "
            "wrap it in a def and pass its data through params"
        )
    return function


def purity_key(function: Callable[..., Any], role: str) -> Hashable:
    """A hashable key that is equal exactly for functions with the same code and the same references.

    Raises
    ------
    ImpureFunction
        If the function, or a function it calls, references a mutable object or writes a global.
    """
    return _key(plain_function(function, role), role, ())


def _key(function: types.FunctionType, role: str, seen: tuple[types.FunctionType, ...]) -> Hashable:
    if function in seen:
        return ("recursive", function.__code__)
    if hasattr(function, FROZEN):
        return getattr(function, FROZEN)
    seen = (*seen, function)
    closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    references: list[tuple[str, Any]] = []
    for name, cell in closure.items():
        try:
            references.append((name, cell.cell_contents))
        except ValueError as error:  # an empty cell
            raise InvalidInput(
                f"{role} uses {name!r} before it is defined; make the model after {name!r}"
            ) from error
    for code in _codes(function.__code__):
        instructions = list(dis.get_instructions(code))
        for place, instruction in enumerate(instructions):
            name = instruction.argval
            if instruction.opname in {"STORE_GLOBAL", "DELETE_GLOBAL"}:
                raise ImpureFunction(f"{role} writes the global {name!r}; a model function may only return")
            if instruction.opname == "LOAD_DEREF" and name in closure:
                held = closure[name].cell_contents
                references.append(_attribute(name, held, instructions[place + 1 :], role))
            if instruction.opname in _OPCODES:
                if name in function.__globals__:
                    there = function.__globals__[name]
                    references.append(_attribute(name, there, instructions[place + 1 :], role))
                elif not hasattr(builtins, name):
                    raise InvalidInput(
                        f"{role} uses the undefined name {name!r}; define it or pass it in params"
                    )
    for position, value in enumerate(function.__defaults__ or ()):
        references.append((f"default {position}", value))
    for name, value in (function.__kwdefaults__ or {}).items():
        references.append((name, value))
    frozen = tuple((name, _freeze(name, value, role, seen)) for name, value in dict(references).items())
    return (function.__code__, frozen)


def _attribute(name: str, value: Any, following: list[dis.Instruction], role: str) -> tuple[str, Any]:
    """What is read: the value, or of a module (or of a package's module) the attribute named next."""
    module = value
    for instruction in following:
        if not isinstance(value, types.ModuleType) or instruction.opname not in _ATTRIBUTES:
            break
        if not hasattr(value, instruction.argval):
            break
        name, value = f"{name}.{instruction.argval}", getattr(value, instruction.argval)
    if value is not module and callable(value):  # a library's function: its own references are its business
        _refuse_stateful(name, value, role)
        return name, (name, getattr(value, "__code__", None))
    return name, value


def _refuse_stateful(name: str, value: Any, role: str) -> None:
    """Refuse methods of objects, such as generators of random numbers, and functions of the clock."""
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        stateful = True
    else:
        stateful = (getattr(value, "__module__", None) or "").partition(".")[0] in _STATEFUL
    if stateful:
        raise ImpureFunction(
            f"{role} calls {name!r}, which answers differently each time; noise belongs in the diffusion, whose "
            "random numbers follow from the seed, and other data in params"
        )


def _codes(code: types.CodeType) -> list[types.CodeType]:
    nested = [
        c for constant in code.co_consts if isinstance(constant, types.CodeType) for c in _codes(constant)
    ]
    return [code, *nested]


def _freeze(name: str, value: Any, role: str, seen: tuple[types.FunctionType, ...]) -> Hashable:
    if isinstance(value, _IMMUTABLE):
        # repr of a number: -0.0 is not 0.0, and NaN is itself
        return (type(value).__name__, value if isinstance(value, types.CodeType) else repr(value))
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", None)
        return (fields, tuple(_freeze(name, item, role, seen) for item in value))
    if isinstance(value, (types.ModuleType, types.BuiltinFunctionType, np.ufunc)):
        _refuse_stateful(name, value, role)
        return ("named", value.__name__)
    value = getattr(value, "py_func", value)
    if isinstance(value, types.FunctionType):
        return _key(value, role, seen)
    raise ImpureFunction(
        f"{role} reads {name!r}, a {type(value).__name__}, which could change after the model was compiled; "
        "pass numbers through params (read as p.name)"
    )
