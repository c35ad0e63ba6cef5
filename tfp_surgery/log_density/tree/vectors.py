"""Vectors of 16 numbers inside numba-compiled functions, lowered to LLVM vector instructions.

LLVM's own vectoriser gives up on loops with early exits, or guards their 16 iterations with checks
that cost more than the loop. Values of the type made here stay in registers. LLVM cuts the
operations to what the machine has (two instructions each on AVX2, four on SSE or NEON for float32).
Importing this module needs numba; only the modules that numba compiles do so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

WIDTH = 16

_MASK = ir.IntType(WIDTH)


class _Vector(types.Type):
    """The numba type of 16 floats of the given width in bits."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__(name=f"vector{WIDTH}xfloat{bits}")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: _Vector) -> None:
        super().__init__(manager, vector, _llvm_vector(vector.bits))


_FLOAT32, _FLOAT64 = _Vector(32), _Vector(64)
_OF_SCALAR = {types.float32: _FLOAT32, types.float64: _FLOAT64}
_SCALAR_OF: dict[Any, Any] = {_FLOAT32: types.float32, _FLOAT64: types.float64}


def _llvm_float(bits: int) -> ir.Type:
    return ir.FloatType() if bits == 32 else ir.DoubleType()


def _llvm_vector(bits: int) -> ir.VectorType:
    return ir.VectorType(_llvm_float(bits), WIDTH)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Calls an LLVM intrinsic, whose name ends in the type of the vectors it takes."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, signature, name)
    return builder.call(function, arguments)


def _suffix(vector: ir.VectorType) -> str:
    return f"v{WIDTH}f{32 if isinstance(vector.element, ir.FloatType) else 64}"


def _splat(builder: ir.IRBuilder, scalar: ir.Value, vector: ir.VectorType) -> ir.Value:
    first = builder.insert_element(
        ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
    )
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), lanes)


def _constant(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * WIDTH)


@intrinsic
def pointer(typing_context: Any, array: Any) -> Any:
    """The address of a contiguous array's data, which the caller keeps alive.

    An array inside a loop costs reference counts, whose calls spill every vector.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(array)(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), codegen  # type: ignore[attr-defined]


@intrinsic
def element(typing_context: Any, data: Any, at: Any) -> Any:
    """data[at]."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.gep(arguments[0], [arguments[1]]))

    return data.dtype(data, types.intp), codegen


@intrinsic
def put(typing_context: Any, data: Any, at: Any, value: Any) -> Any:
    """data[at] = value."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]]))
        return context.get_dummy_value()

    return types.void(data, types.intp, data.dtype), codegen


def _vector_at(builder: ir.IRBuilder, data: ir.Value, at: ir.Value, vector: Any) -> ir.Value:
    return builder.bitcast(builder.gep(data, [at]), _llvm_vector(vector.bits).as_pointer())


@intrinsic
def load(typing_context: Any, data: Any, at: Any) -> Any:
    """data[at : at + 16]."""
    vector = _OF_SCALAR[data.dtype]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(
            _vector_at(builder, arguments[0], arguments[1], vector), align=vector.bits // 8
        )

    return vector(data, types.intp), codegen


@intrinsic
def store(typing_context: Any, data: Any, at: Any, vector: Any) -> Any:
    """data[at : at + 16] = vector."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(
            arguments[2],
            _vector_at(builder, arguments[0], arguments[1], vector),
            align=vector.bits // 8,
        )
        return context.get_dummy_value()

    return types.void(data, types.intp, vector), codegen


@intrinsic
def splat(typing_context: Any, scalar: Any) -> Any:
    """The vector of 16 copies of a scalar."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0], _llvm_vector(signature.return_type.bits))

    return _OF_SCALAR[scalar](scalar), codegen


@intrinsic
def zeros(typing_context: Any, data: Any) -> Any:
    """The vector of zeros of the dtype that a pointer points to."""
    vector = _OF_SCALAR[data.dtype]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _constant(_llvm_vector(vector.bits), 0.0)

    return vector(data), codegen


def _binary(emit: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]) -> Any:
    def typed(typing_context: Any, first: Any, second: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit(builder, *arguments)

        return first(first, second), codegen

    return intrinsic(typed)


add = _binary(lambda builder, first, second: builder.fadd(first, second))
subtract = _binary(lambda builder, first, second: builder.fsub(first, second))
multiply = _binary(lambda builder, first, second: builder.fmul(first, second))
# No NaN reaches these: the comparison is one instruction where maxnum is three.
maximum = _binary(
    lambda builder, first, second: builder.select(
        builder.fcmp_ordered(">", first, second), first, second
    )
)
minimum = _binary(
    lambda builder, first, second: builder.select(
        builder.fcmp_ordered("<", first, second), first, second
    )
)


def _fused(builder: ir.IRBuilder, first: ir.Value, second: ir.Value, third: ir.Value) -> ir.Value:
    """first * second + third, fused where the machine can."""
    of = first.type
    return _call(builder, f"llvm.fmuladd.{_suffix(of)}", of, first, second, third)


@intrinsic
def multiply_add(typing_context: Any, first: Any, second: Any, third: Any) -> Any:
    """first * second + third."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fused(builder, *arguments)

    return first(first, second, third), codegen


@intrinsic
def less(typing_context: Any, first: Any, second: Any) -> Any:
    """Bit j of the answer says whether first[j] < second[j]; false where one is NaN."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(builder.fcmp_ordered("<", *arguments), _MASK)
        return builder.zext(bits, ir.IntType(64))

    return types.int64(first, second), codegen


@intrinsic
def any_less(typing_context: Any, first: Any, second: Any) -> Any:
    """1 where first[j] < second[j] for some j, else 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(builder.fcmp_ordered("<", *arguments), _MASK)
        found = builder.icmp_unsigned("!=", bits, ir.Constant(_MASK, 0))
        return builder.zext(found, ir.IntType(64))

    return types.int64(first, second), codegen


@intrinsic
def where_less(typing_context: Any, first: Any, second: Any, chosen: Any, other: Any) -> Any:
    """chosen[j] where first[j] < second[j], else other[j]."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, chosen, other = arguments
        return builder.select(builder.fcmp_ordered("<", first, second), chosen, other)

    return chosen(first, second, chosen, other), codegen


@intrinsic
def lowest_bit(typing_context: Any, mask: Any) -> Any:
    """The position of the lowest bit set in a mask that is not zero."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), codegen


@intrinsic
def widen(typing_context: Any, vector: Any) -> Any:
    """The vector in float64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0] == _FLOAT64:
            return arguments[0]
        return builder.fpext(arguments[0], _llvm_vector(64))

    return _FLOAT64(vector), codegen


@intrinsic
def narrow(typing_context: Any, vector: Any, like: Any) -> Any:
    """A float64 vector in the dtype that `like` points to."""
    result = _OF_SCALAR[like.dtype]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if result == _FLOAT64:
            return arguments[0]
        return builder.fptrunc(arguments[0], _llvm_vector(result.bits))

    return result(vector, like), codegen


def _reduction(name: str, initial: float | None) -> Any:
    def typed(typing_context: Any, vector: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            of = arguments[0].type
            start = [] if initial is None else [ir.Constant(of.element, initial)]
            # The vector last: _call takes the result's type from it.
            function = f"llvm.vector.reduce.{name}.{_suffix(of)}"
            result = _call(builder, function, of.element, *start, arguments[0])
            # Lets LLVM add in pairs.
            result.fastmath.add("reassoc")
            return result

        return _SCALAR_OF[vector](vector), codegen

    return intrinsic(typed)


largest = _reduction("fmax", None)
total = _reduction("fadd", -0.0)


_MANTISSA = {32: 23, 64: 52}
# The smallest x of a 2^x that is not taken for zero: the power of two is a normal number.
_LOWEST = {32: -125.0, 64: -1021.0}
LOWEST = min(_LOWEST.values())


def _polynomial(bits: int) -> list[float]:
    """Coefficients of 2^r for |r| <= 1/2, lowest order first.

    Interpolation at Chebyshev points: off by 1.1e-7 at most for float32. For float64 the Taylor
    series, whose remainder is below (log(2) / 2)^14 / 14!.
    """
    if bits == 64:
        return [math.log(2) ** n / math.factorial(n) for n in range(14)]
    chebyshev = np.polynomial.Chebyshev.interpolate(np.exp2, 5, domain=[-0.5, 0.5])
    return [float(c) for c in chebyshev.convert(kind=np.polynomial.Polynomial).coef]


_POLYNOMIAL = {bits: _polynomial(bits) for bits in (32, 64)}


def _integers(bits: int) -> ir.VectorType:
    return ir.VectorType(ir.IntType(bits), WIDTH)


@intrinsic
def exp2(typing_context: Any, vector: Any) -> Any:
    """2^x for x up to 100; zero below -125 (float32) or -1021 (float64).

    The relative error is at most 2^-21 for float32, 2^-50 for float64.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        of, bits = x.type, vector.bits
        lowest = _constant(of, _LOWEST[bits])
        inside = builder.fcmp_ordered(">", x, lowest)
        x = builder.select(inside, x, lowest)
        k = _call(builder, f"llvm.rint.{_suffix(of)}", of, x)
        r = builder.fsub(x, k)
        # Pairs, pairs of pairs and so on: fewer steps wait for one another than by Horner's rule.
        terms = [_constant(of, c) for c in _POLYNOMIAL[bits]]
        power = r
        while len(terms) > 1:
            pairs = zip(terms[1::2], terms[::2], strict=False)
            alone = terms[-1:] if len(terms) % 2 else []
            terms = [_fused(builder, odd, power, even) for odd, even in pairs] + alone
            power = builder.fmul(power, power)
        integers = _integers(bits)
        # The polynomial is between 0.7 and 1.5: k is added to its exponent.
        shift = ir.Constant(integers, [_MANTISSA[bits]] * WIDTH)
        exponent = builder.shl(builder.fptosi(k, integers), shift)
        power = builder.bitcast(builder.add(builder.bitcast(terms[0], integers), exponent), of)
        return builder.select(inside, power, _constant(of, 0.0))

    return vector(vector), codegen


@intrinsic
def without_lane(typing_context: Any, vector: Any, lane: Any) -> Any:
    """The vector with -inf in one lane."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of = arguments[0].type
        integers = _integers(32)
        lane = _splat(builder, builder.trunc(arguments[1], integers.element), integers)
        here = builder.icmp_signed("==", lane, ir.Constant(integers, list(range(WIDTH))))
        return builder.select(here, _constant(of, -math.inf), arguments[0])

    return vector(vector, types.int64), codegen
