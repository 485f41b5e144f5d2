"""apply_matrix(): matrix times the states of one or many paths, inside compiled models, without a BLAS.

A BLAS would start threads of its own inside the threads of an ensemble, and its bits may depend on how many
there are. Here every entry is summed in one fixed order with fused multiply-adds, written as 8-wide vector
instructions: the same bits on processors with 4 and with 8 doubles per register.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

_I32, _I64, _F64 = ir.IntType(32), ir.IntType(64), ir.DoubleType()
_LANES = 8
_VECTOR = ir.VectorType(_F64, _LANES)
_ROWS = 6
"""Rows at a time: 12 sums, 2 loads and a factor fill the 16 registers of AVX2."""


def apply_matrix(matrix: Any, y: Any, out: Any) -> None:
    """Write ``matrix @ y`` into `out`, in plain Python and in functions compiled by Numba.

    Parameters
    ----------
    matrix : float64 array (r, c), contiguous by rows
    y : float64 array (c,) or (c, n), contiguous by rows
        One state, or one per column.
    out : float64 array (r,) or (r, n), contiguous by rows
        Must not overlap the others.
    """
    np.matmul(matrix, y, out=out)


def _sums(builder: Any, count: Any, step: int, rows: int, body: Any) -> list[Any]:
    """Emit ``for j in range(0, count, step)`` with `rows` vector sums; body(builder, j, sums) -> new sums."""
    before = builder.block
    test, loop, done = (builder.append_basic_block(f"product.{part}") for part in ("test", "loop", "done"))
    builder.branch(test)
    builder.position_at_end(test)
    index = builder.phi(_I64)
    index.add_incoming(_I64(0), before)
    sums = [builder.phi(_VECTOR) for _ in range(rows)]
    for row in sums:
        row.add_incoming(ir.Constant(_VECTOR, [_F64(0.0)] * _LANES), before)
    builder.cbranch(builder.icmp_signed("<", index, count), loop, done)
    builder.position_at_end(loop)
    for row, value in zip(sums, body(builder, index, sums), strict=True):
        row.add_incoming(value, loop)
    index.add_incoming(builder.add(index, _I64(step)), loop)
    builder.branch(test)
    builder.position_at_end(done)
    return sums


def _load(builder: Any, data: Any, place: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(data, [place]), _VECTOR.as_pointer()), align=8)


def _fma(builder: Any, *values: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(
        cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{_LANES}f64"), values
    )


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    single = builder.insert_element(undefined, value, _I32(0))
    return builder.shuffle_vector(
        single, undefined, ir.Constant(ir.VectorType(_I32, _LANES), [_I32(0)] * _LANES)
    )


def _datas(context: Any, builder: Any, signature: Any, values: Any) -> list[Any]:
    pairs = zip(signature.args, values, strict=True)
    return [
        context.make_array(t)(context, builder, v).data if isinstance(t, types.Array) else v for t, v in pairs
    ]


@cache
def _panel(rows: int) -> Any:
    """``(a, at, panel, length, out, place, stride)``: that many rows of a product with 8 columns.

    a is flat with rows of `length` from index `at`; panel flat (length * 8); row r goes to out[place + r stride].
    """

    def product(typingctx, a, at, panel, length, out, place, stride):  # noqa: ARG001 - Numba's signature
        def codegen(context, builder, signature, values):
            a, at, panel, length, out, place, stride = _datas(context, builder, signature, values)
            starts = [builder.add(at, builder.mul(length, _I64(r))) for r in range(rows)]

            def body(builder, j, sums):
                column = _load(builder, panel, builder.mul(j, _I64(_LANES)))
                factors = [builder.load(builder.gep(a, [builder.add(s, j)])) for s in starts]
                return [
                    _fma(builder, _splat(builder, f), column, s) for f, s in zip(factors, sums, strict=True)
                ]

            for r, total in enumerate(_sums(builder, length, 1, rows, body)):
                there = builder.gep(out, [builder.add(place, builder.mul(stride, _I64(r)))])
                builder.store(total, builder.bitcast(there, _VECTOR.as_pointer()), align=8)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(a, i64, panel, i64, out, i64, i64), codegen

    return intrinsic(product)


@cache
def _dots(rows: int) -> Any:
    """``(a, at, length, y, out, place)``: sums over the whole eights of `length` for that many rows of a."""

    def product(typingctx, a, at, length, y, out, place):  # noqa: ARG001 - Numba's signature
        def codegen(context, builder, signature, values):
            a, at, length, y, out, place = _datas(context, builder, signature, values)
            starts = [builder.add(at, builder.mul(length, _I64(r))) for r in range(rows)]
            whole = builder.and_(length, _I64(-_LANES))

            def body(builder, j, sums):
                part = _load(builder, y, j)
                loads = [_load(builder, a, builder.add(s, j)) for s in starts]
                return [_fma(builder, one, part, s) for one, s in zip(loads, sums, strict=True)]

            for r, total in enumerate(_sums(builder, whole, _LANES, rows, body)):
                entries = [builder.extract_element(total, _I32(k)) for k in range(_LANES)]
                while len(entries) > 1:
                    half = len(entries) // 2
                    entries = [builder.fadd(entries[k], entries[half + k]) for k in range(half)]
                builder.store(entries[0], builder.gep(out, [builder.add(place, _I64(r))]))
            return context.get_dummy_value()

        return types.void(a, types.int64, types.int64, y, out, types.int64), codegen

    return intrinsic(product)


_six_rows, _one_row = _panel(_ROWS), _panel(1)
_four_dots, _one_dot = _dots(4), _dots(1)


@njit(error_model="numpy", fastmath={"contract"})
def _matrix_vector(a, y, out):
    rows, length = out.size, y.size
    i = 0
    while i + 4 <= rows:
        _four_dots(a, i * length, length, y, out, i)
        i += 4
    while i < rows:
        _one_dot(a, i * length, length, y, out, i)
        i += 1
    for j in range(length - length % _LANES, length):
        for i in range(rows):
            out[i] += a[i * length + j] * y[j]


@njit(error_model="numpy")
def _matrix_matrix(a, y, out, length, n):
    """On flat arrays. Columns by eights, packed so that they stay in the first-level cache."""
    rows = out.size // n
    panel, rest = np.zeros(length * _LANES), np.empty(rows * _LANES)
    for first in range(0, n, _LANES):
        count = min(_LANES, n - first)
        for j in range(length):
            for k in range(count):
                panel[j * _LANES + k] = y[j * n + first + k]
        whole = count == _LANES
        target, place, stride = (out, first, n) if whole else (rest, 0, _LANES)
        i = 0
        while i + _ROWS <= rows:
            _six_rows(a, i * length, panel, length, target, place + i * stride, stride)
            i += _ROWS
        while i < rows:
            _one_row(a, i * length, panel, length, target, place + i * stride, stride)
            i += 1
        if not whole:
            for i in range(rows):
                for k in range(count):
                    out[i * n + first + k] = rest[i * _LANES + k]


@overload(apply_matrix)
def _apply_matrix(matrix, y, out):
    for name, kind in (("matrix", matrix), ("y", y), ("out", out)):
        if not (isinstance(kind, types.Array) and kind.dtype == types.float64 and kind.layout == "C"):
            raise TypingError(f"apply_matrix takes contiguous float64 arrays, but {name} is {kind}")
    if matrix.ndim != 2 or y.ndim not in {1, 2} or out.ndim != y.ndim:
        raise TypingError("apply_matrix takes a matrix and two arrays (d,) or (d, n)")
    if y.ndim == 1:

        def product(matrix, y, out):
            _matrix_vector(matrix.reshape(-1), y, out)
    else:

        def product(matrix, y, out):
            _matrix_matrix(matrix.reshape(-1), y.reshape(-1), out.reshape(-1), y.shape[0], y.shape[1])

    return product
