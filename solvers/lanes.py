"""Machine-level building blocks that Numba's types cannot say: 32-bit integer steps, sums in fixed lanes.

Numba widens ``uint32 op uint32`` to 64 bits, which halves the width of vector loops; the operations here stay
at 32 bits. The sums add in 32 fixed lanes and then along a fixed tree, written as 8-wide vector instructions,
so that their bits are the same on processors with 4 and with 8 doubles per register.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I32, _I64, _F32, _F64 = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
_WIDTH, _CHAINS = 8, 4
LANES = _WIDTH * _CHAINS
"""Lanes of the sums: arrays to be summed have a multiple of this many entries."""

u32, f32 = types.uint32, types.float32


def _operation(emit: Any, result: Any, *arguments: Any) -> Any:
    """A scalar intrinsic from a function (builder, *values) -> value."""

    def codegen(context, builder, signature, values):  # noqa: ARG001 - Numba's signature
        return emit(builder, *values)

    if len(arguments) == 1:

        def one(typingctx, a):  # noqa: ARG001
            return result(*arguments), codegen

        return intrinsic(one)

    def two(typingctx, a, b):  # noqa: ARG001
        return result(*arguments), codegen

    return intrinsic(two)


def _square_root(builder: Any, value: Any) -> Any:
    return builder.call(builder.module.declare_intrinsic("llvm.sqrt", [_F32]), [value])


add_u32 = _operation(lambda b, x, y: b.add(x, y), u32, u32, u32)
and_u32 = _operation(lambda b, x, y: b.and_(x, y), u32, u32, u32)
xor_u32 = _operation(lambda b, x, y: b.xor(x, y), u32, u32, u32)
left_u32 = _operation(lambda b, x, y: b.shl(x, y), u32, u32, u32)
signed_right_u32 = _operation(lambda b, x, y: b.ashr(x, y), u32, u32, u32)
bits_of_f32 = _operation(lambda b, x: b.bitcast(x, _I32), u32, f32)
f32_of_bits = _operation(lambda b, x: b.bitcast(x, _F32), f32, u32)
f32_of_signed = _operation(lambda b, x: b.sitofp(x, _F32), f32, u32)
"""The word read as a signed integer, rounded to single precision."""
sqrt_f32 = _operation(_square_root, f32, f32)
"""Correctly rounded root."""


def _vector_loop(context: Any, builder: Any, signature: Any, arguments: Any, accumulators: int, body: Any):
    """Emit a loop over arrays in 4 chains of 8 lanes; the scalar totals of each accumulator.

    ``body(builder, loads, sums)`` maps one vector from each array and the running sums to the new sums.
    """
    vector = ir.VectorType(_F64, _WIDTH)
    arrays = [context.make_array(t)(context, builder, v) for t, v in zip(signature, arguments, strict=True)]
    size = builder.extract_value(arrays[0].shape, 0)
    before = builder.block
    loop, done = (
        builder.append_basic_block("lanes"),
        builder.append_basic_block("lanes.done"),
    )
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(_I64)
    index.add_incoming(_I64(0), before)
    zero = ir.Constant(vector, [_F64(0.0)] * _WIDTH)
    sums = [[builder.phi(vector) for _ in range(_CHAINS)] for _ in range(accumulators)]
    for phi in (phi for row in sums for phi in row):
        phi.add_incoming(zero, before)
    news: list[list[Any]] = [[] for _ in range(accumulators)]
    for chain in range(_CHAINS):
        place = builder.add(index, _I64(chain * _WIDTH))
        loads = [
            builder.load(builder.bitcast(builder.gep(a.data, [place]), vector.as_pointer()), align=8)
            for a in arrays
        ]
        for row, value in enumerate(body(builder, loads, [sums[r][chain] for r in range(accumulators)])):
            news[row].append(value)
            sums[row][chain].add_incoming(value, loop)
    following = builder.add(index, _I64(LANES))
    index.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, size), loop, done)
    builder.position_at_end(done)
    return [_total(builder, row) for row in news]


def _total(builder: Any, chains: list[Any]) -> Any:
    vector = builder.fadd(builder.fadd(chains[0], chains[1]), builder.fadd(chains[2], chains[3]))
    entries = [builder.extract_element(vector, _I32(k)) for k in range(_WIDTH)]
    while len(entries) > 1:
        half = len(entries) // 2
        entries = [builder.fadd(entries[k], entries[half + k]) for k in range(half)]
    return entries[0]


def _splat(builder: Any, value: Any) -> Any:
    vector = ir.VectorType(_F64, _WIDTH)
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, value, _I32(0))
    return builder.shuffle_vector(
        single, undefined, ir.Constant(ir.VectorType(_I32, _WIDTH), [_I32(0)] * _WIDTH)
    )


def _fma(builder: Any) -> Any:
    vector = ir.VectorType(_F64, _WIDTH)
    kind = ir.FunctionType(vector, [vector, vector, vector])
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{_WIDTH}f64")


def _shifted_sums(typingctx, x, shift):  # noqa: ARG001
    """Sums of x - shift and (x - shift)^2 over a contiguous array of a multiple of `LANES` entries."""

    def codegen(context, builder, signature, arguments):
        shifts, fma = _splat(builder, arguments[1]), _fma(builder)

        def body(builder, loads, sums):
            gap = builder.fsub(loads[0], shifts)
            return builder.fadd(sums[0], gap), builder.call(fma, [gap, gap, sums[1]])

        totals = _vector_loop(context, builder, signature.args[:1], arguments[:1], 2, body)
        return context.make_tuple(builder, signature.return_type, totals)

    return types.UniTuple(types.float64, 2)(x, types.float64), codegen


def _shifted_product(typingctx, x, x_shift, y, y_shift):  # noqa: ARG001
    """Sum of (x - x_shift) (y - y_shift) over contiguous arrays of a multiple of `LANES` entries."""

    def codegen(context, builder, signature, arguments):
        left, right, fma = _splat(builder, arguments[1]), _splat(builder, arguments[3]), _fma(builder)

        def body(builder, loads, sums):
            gaps = builder.fsub(loads[0], left), builder.fsub(loads[1], right)
            return (builder.call(fma, [*gaps, sums[0]]),)

        kinds, values = (signature.args[0], signature.args[2]), (arguments[0], arguments[2])
        return _vector_loop(context, builder, kinds, values, 1, body)[0]

    return types.float64(x, types.float64, y, types.float64), codegen


def _central_powers(typingctx, x, mean):  # noqa: ARG001
    """Sums of (x - mean)^3 and (x - mean)^4 over a contiguous array of a multiple of `LANES` entries."""

    def codegen(context, builder, signature, arguments):
        means, fma = _splat(builder, arguments[1]), _fma(builder)

        def body(builder, loads, sums):
            gap = builder.fsub(loads[0], means)
            square = builder.fmul(gap, gap)
            return builder.call(fma, [square, gap, sums[0]]), builder.call(fma, [square, square, sums[1]])

        totals = _vector_loop(context, builder, signature.args[:1], arguments[:1], 2, body)
        return context.make_tuple(builder, signature.return_type, totals)

    return types.UniTuple(types.float64, 2)(x, types.float64), codegen


def _not_finite_probe(typingctx, x):  # noqa: ARG001
    """0 if all entries of a contiguous array of a multiple of `LANES` entries are finite, else nan."""

    def codegen(context, builder, signature, arguments):
        zero = ir.Constant(ir.VectorType(_F64, _WIDTH), [_F64(0.0)] * _WIDTH)

        def body(builder, loads, sums):
            return (builder.fadd(sums[0], builder.fmul(loads[0], zero)),)

        return _vector_loop(context, builder, signature.args, arguments, 1, body)[0]

    return types.float64(x), codegen


def _prefer_wide_vectors(typingctx):  # noqa: ARG001
    """Have the loops of the calling function made into vectors of 512 bits where the processor has them.

    LLVM stays at 256 on most such processors, since the widest units may lower their clock; the loops of this
    package are long and pure arithmetic, and gain almost a factor of two. It changes no bit.
    """

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        # llvmlite checks names against a list of its own that has no attributes in quotes
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), codegen


prefer_wide_vectors: Any = intrinsic(_prefer_wide_vectors)
shifted_sums: Any = intrinsic(_shifted_sums)
shifted_product: Any = intrinsic(_shifted_product)
central_powers: Any = intrinsic(_central_powers)
not_finite_probe: Any = intrinsic(_not_finite_probe)
