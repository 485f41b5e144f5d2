"""Calls between compiled passes through plain addresses, arrays as bare pointers or without their counters.

A call through Numba's own function type with arrays as arguments costs some 90 ns, which is a quarter of the
work on a block; this one costs a few. The address must come from a compiled pass of the same signature that
is kept alive.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def calling(signature: Any) -> Any:
    """A function ``call(address, *arguments)`` for Numba code.

    Parameters
    ----------
    signature : numba signature
        Of the pass at the address: scalars and `CPointer` types, no result. Where it takes a pointer, a
        contiguous array or an address is given; sizes are known to both sides.
    """
    kinds = signature.args

    def typed(typingctx, address, *given):  # noqa: ARG001 - Numba's signature
        for kind, value in zip(kinds, given, strict=True):
            pointed = isinstance(kind, types.CPointer)
            array = isinstance(value, types.Array)
            if (array and not (pointed and kind.dtype == value.dtype)) or (
                pointed and not array and not isinstance(value, types.Integer)
            ):
                raise TypeError(f"a pass takes {kind} and was given {value}")

        def codegen(context, builder, made, values):
            arguments = []
            for kind, there, value in zip(kinds, made.args[1:], values[1:], strict=True):
                if isinstance(there, types.Array):
                    arguments.append(context.make_array(there)(context, builder, value).data)
                elif isinstance(kind, types.CPointer):
                    arguments.append(builder.inttoptr(value, context.get_value_type(kind)))
                else:
                    arguments.append(value)
            function = ir.FunctionType(ir.VoidType(), [context.get_value_type(kind) for kind in kinds])
            builder.call(builder.inttoptr(values[0], ir.PointerType(function)), arguments)
            return context.get_dummy_value()

        takes = [g if isinstance(k, types.CPointer) else k for k, g in zip(kinds, given, strict=True)]
        return types.void(types.intp, *takes), codegen

    names = ", ".join(f"a{n}" for n in range(len(kinds)))
    scope: dict[str, Any] = {"typed": typed}
    source = f"def call(typingctx, address, {names}):\n    return typed(typingctx, address, {names})\n"
    exec(compile(source, "<call>", "exec"), scope)
    return intrinsic(scope["call"])


def _borrowed(typingctx, array):  # noqa: ARG001 - Numba's signature
    """The same array without a share in its memory, for loops in which each count would cost 20 cycles.

    Numba counts references by atomic operations wherever an array is sliced or kept in a second name. The
    caller must hold the array itself for as long as the result is used; an argument of the calling function
    is held by its caller.
    """

    def codegen(context, builder, signature, arguments):
        made = context.make_array(signature.return_type)(context, builder, arguments[0])
        for name in ("meminfo", "parent"):
            setattr(made, name, getattr(made, name).type(None))
        return made._getvalue()

    return array(array), codegen


borrowed: Any = intrinsic(_borrowed)
