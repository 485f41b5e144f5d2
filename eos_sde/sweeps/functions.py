"""Functions of a sweep: what they are called, a digest of what they do, and whether they take the parameters."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
import types
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from solvers.errors import InvalidInput


def named(function: Callable[..., Any]) -> str:
    """Module and name of a function."""
    plain = _plain(function)
    return f"{plain.__module__}:{plain.__qualname__}"


def digest(function: Callable[..., Any]) -> str:
    """A digest of a function's own code, defaults and simple closed-over values; comments and layout do not count.

    What it calls is not part of it: a store says which versions and which commit it was made with.

    Raises
    ------
    InvalidInput
        If it is no plain function.
    """
    plain = _plain(function)
    bound = [_value(one) for one in _arguments(function)]
    cells = [_value(cell.cell_contents) for cell in plain.__closure__ or ()]
    defaults = [_value(one) for one in (*(plain.__defaults__ or ()), *(plain.__kwdefaults__ or {}).items())]
    text = "\n".join([_code(plain), *bound, *cells, *defaults])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_takes(function: Callable[..., Any], names: Iterable[str]) -> None:
    """Refuse a function that cannot be called with these parameters by name.

    Raises
    ------
    InvalidInput
        Naming the first that does not fit.
    """
    names = list(names)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of compiled functions that do not tell
        return
    parameters = signature.parameters.values()
    takes = ", ".join(map(str, parameters)) or "nothing"
    anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    known = {one.name for one in parameters if one.kind not in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL)}
    for name in names:
        if name not in known and not anything:
            raise InvalidInput(
                f"{named(function)} takes {takes}, and no {name!r}; rename the axis or the parameter"
            )
    for one in parameters:
        needed = one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        if needed and one.name not in names:
            raise InvalidInput(
                f"{named(function)} needs {one.name!r}; make it an axis, or give it in the settings"
            )


def imported(name: str) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    Raises
    ------
    InvalidInput
        If there is none.
    """
    module, _, path = name.partition(":")
    if not module or not path:
        raise InvalidInput(f"function={name!r}; give module:function, such as my_study:energy")
    try:
        found: Any = import_module(module)
    except Exception as error:  # whatever the module raises while it is imported
        why = f"{type(error).__name__}: {error}"
        raise InvalidInput(f"function={name!r}: {module} cannot be imported ({why})") from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InvalidInput(f"function={name!r}: {module} has no function {path!r}")
    return found


def _plain(function: Any) -> types.FunctionType:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(getattr(function, "py_func", function))
    if not isinstance(function, types.FunctionType):
        raise InvalidInput(
            f"function={function!r} is a {type(function).__name__}; give a function, or the name of an observable"
        )
    return function


def _arguments(function: Any) -> list[Any]:
    found: list[Any] = []
    while isinstance(function, functools.partial):
        found += [*function.args, *sorted(function.keywords.items())]
        function = function.func
    return found


def _code(function: types.FunctionType) -> str:
    try:
        return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, TypeError, SyntaxError):  # typed at a prompt, or a lambda within an expression
        return _bytecode(function.__code__)


def _bytecode(code: types.CodeType) -> str:
    constants = [_bytecode(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts]
    return repr((code.co_code.hex(), constants, code.co_names, code.co_varnames))


def _value(one: Any) -> str:
    if isinstance(one, bool | int | float | complex | str | bytes | type(None)):
        return repr(one)
    if isinstance(one, tuple | list):
        return repr([_value(part) for part in one])
    if callable(one) and not isinstance(one, type):
        return getattr(one, "__qualname__", type(one).__qualname__)
    return type(one).__qualname__
