"""Parameters of the vector form: numbers and arrays under names, flat for the kernels, read there as views."""

from __future__ import annotations

import hashlib
import math
from collections import namedtuple
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from solvers.errors import InvalidInput
from solvers.reading import named_params

Shapes = tuple[tuple[int, ...], ...]
_SHOWN = 8
"""Arrays of more entries are shown by shape and digest."""


def as_array_params(params: Any) -> Any:
    """Parameters as a named tuple of finite floats and read-only float64 arrays; () for none.

    Raises
    ------
    InvalidInput
        For a name that cannot be read as p.name, or a value that is not made of finite real numbers.
    """
    if params is None:
        return ()
    if isinstance(params, tuple) and hasattr(params, "_asdict"):
        params = params._asdict()  # type: ignore[attr-defined]
    if not isinstance(params, Mapping):
        raise InvalidInput(
            f"params is a {type(params).__name__}; pass a mapping or a NamedTuple of numbers and arrays"
        )
    return named_params(params, _checked, _params_type)


def _checked(name: str, value: Any) -> Any:
    try:
        if np.iscomplexobj(value):
            raise TypeError("complex")
        numbers = np.array(value, dtype=float, order="C")  # a copy: nobody else can write it
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"parameter {name!r} is not made of real numbers ({error}); give some") from error
    if not np.isfinite(numbers).all():
        raise InvalidInput(f"parameter {name!r} contains nan or infinity; give finite numbers")
    if numbers.ndim == 0:
        return float(numbers)
    if numbers.size == 0:
        raise InvalidInput(f"parameter {name!r} has shape {numbers.shape}; give an array with entries")
    numbers.flags.writeable = False
    return numbers


@cache
def _params_type(fields: tuple[str, ...]) -> Any:
    # One type per set of names: Numba specialises on the type, so it must not be made anew each time.
    base = namedtuple("Params", fields)
    return type("Params", (base,), {"__slots__": (), "__repr__": _shown})


def _shown(params: Any) -> str:
    return f"Params({', '.join(f'{name}={_value(value)}' for name, value in params._asdict().items())})"


def _value(value: Any) -> str:
    if isinstance(value, float) or value.size <= _SHOWN:
        return repr(value if isinstance(value, float) else value.tolist())
    return f"<{'x'.join(map(str, value.shape))} sha256:{hashlib.sha256(value.tobytes()).hexdigest()[:16]}>"


def shapes_of(params: Any) -> Shapes:
    """The shape of each parameter, () for a number."""
    return tuple(np.shape(value) for value in params)


def flattened(params: Any) -> np.ndarray:
    """All numbers in one flat array, array by array, row by row."""
    return np.concatenate([np.empty(0), *(np.ravel(value) for value in params)])


def count(shapes: Shapes) -> int:
    """How many numbers parameters of these shapes have."""
    return sum(math.prod(shape) for shape in shapes)


def _view(readonly: bool) -> Any:
    def view(typingctx, array, start, shape):  # noqa: ARG001 - Numba's signature
        made = types.Array(array.dtype, len(shape), "C", readonly=readonly)
        size = array.dtype.bitwidth // 8

        def codegen(context, builder, signature, values):
            data = context.make_array(signature.args[0])(context, builder, values[0]).data
            sizes = cgutils.unpack_tuple(builder, values[2])
            strides, stride = [], context.get_constant(types.intp, size)
            for length in reversed(sizes):
                strides.insert(0, stride)
                stride = builder.mul(stride, length)
            result = context.make_array(made)(context, builder)
            populate_array(
                result,
                data=builder.gep(data, [values[1]]),
                shape=sizes,
                strides=strides,
                itemsize=context.get_constant(types.intp, size),
                meminfo=None,
            )
            return result._getvalue()

        return made(array, types.intp, types.UniTuple(types.intp, len(shape))), codegen

    return intrinsic(view)


window: Any = _view(False)
"""``window(array, start, shape)``: a contiguous part of a flat array, which must outlive it: no reference is kept,
since counting references costs more than a short loop."""
frozen: Any = _view(True)
"""The same, but code that writes into it does not compile."""


@cache
def unpacking(kind: Any, shapes: Shapes) -> Any:
    """Compiled code from the flat parameters to the named tuple that the model reads, arrays as frozen views."""
    entries, place = [], 0
    for shape in shapes:
        entries.append(f"frozen(values, {place}, {shape})" if shape else f"values[{place}]")
        place += math.prod(shape)
    made = f"kind({', '.join(entries)})" if shapes else "()"
    scope: dict[str, Any] = {"kind": kind, "frozen": frozen}
    exec(compile(f"def unpack(values):\n    return {made}\n", "<parameters>", "exec"), scope)
    return njit(scope["unpack"])
