"""Calls between compiled passes through plain addresses, arrays handed over as bare pointers.

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
