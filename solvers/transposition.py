"""Copies of transposed pieces of arrays inside compiled code, four by four in vector registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_I32, _I64, _F64 = ir.IntType(32), ir.IntType(64), ir.DoubleType()
_SIDE = 4
_VECTOR = ir.VectorType(_F64, _SIDE)


def _four_by_four(typingctx, source, start, stride, target, place, step):  # noqa: ARG001 - Numba's signature
    """``target[place + c step + r] = source[start + r stride + c]`` for r, c < 4, on flat arrays."""

    def codegen(context, builder, signature, values):
        source, start, stride, target, place, step = values
        data = [
            context.make_array(t)(context, builder, v).data
            for t, v in ((signature.args[0], source), (signature.args[3], target))
        ]

        def at(base, first, jump, k):
            where = builder.gep(base, [builder.add(first, builder.mul(jump, _I64(k)))])
            return builder.bitcast(where, _VECTOR.as_pointer())

        def shuffled(a, b, *places):
            return builder.shuffle_vector(
                a, b, ir.Constant(ir.VectorType(_I32, _SIDE), [_I32(k) for k in places])
            )

        rows = [builder.load(at(data[0], start, stride, k), align=8) for k in range(_SIDE)]
        even = [shuffled(rows[k], rows[k + 1], 0, 4, 2, 6) for k in (0, 2)]
        odd = [shuffled(rows[k], rows[k + 1], 1, 5, 3, 7) for k in (0, 2)]
        columns = [shuffled(*pair, *half) for half in ((0, 1, 4, 5), (2, 3, 6, 7)) for pair in (even, odd)]
        for k, column in enumerate(columns):
            builder.store(column, at(data[1], place, step, k), align=8)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(source, i64, i64, target, i64, i64), codegen


_tile: Any = intrinsic(_four_by_four)


@njit(error_model="numpy")
def transpose(source, start, stride, rows, columns, target, place, step):
    """``target[place + c step + r] = source[start + r stride + c]`` for r < rows, c < columns, on flat arrays."""
    whole_rows, whole_columns = rows - rows % 4, columns - columns % 4
    for r in range(0, whole_rows, 4):
        for c in range(0, whole_columns, 4):
            _tile(source, start + r * stride + c, stride, target, place + c * step + r, step)
    for r in range(rows):
        for c in range(whole_columns if r < whole_rows else 0, columns):
            target[place + c * step + r] = source[start + r * stride + c]
