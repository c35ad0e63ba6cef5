"""Vectors of 16 floats inside numba-compiled functions, lowered to LLVM vector instructions.

LLVM does not vectorise loops with early exits by itself. Values of the type defined here stay in
registers, and LLVM splits each operation into the instructions that the machine has (for float32
two on AVX2, four on SSE or NEON). Needs numba.
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
    """Calls an LLVM intrinsic by its full name, which ends in the type of its vectors."""
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
    """Returns the address of a contiguous array's data. The caller keeps the array alive.

    Arrays used inside a loop are reference counted, and those calls spill every vector register.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(array)(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), codegen  # type: ignore[attr-defined]


@intrinsic
def element(typing_context: Any, data: Any, at: Any) -> Any:
    """Returns data[at]."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.gep(arguments[0], [arguments[1]]))

    return data.dtype(data, types.intp), codegen


@intrinsic
def put(typing_context: Any, data: Any, at: Any, value: Any) -> Any:
    """Sets data[at] to a value."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]]))
        return context.get_dummy_value()

    return types.void(data, types.intp, data.dtype), codegen


def _vector_at(builder: ir.IRBuilder, data: ir.Value, at: ir.Value, vector: Any) -> ir.Value:
    return builder.bitcast(builder.gep(data, [at]), _llvm_vector(vector.bits).as_pointer())


@intrinsic
def load(typing_context: Any, data: Any, at: Any) -> Any:
    """Returns data[at : at + 16]."""
    vector = _OF_SCALAR[data.dtype]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(
            _vector_at(builder, arguments[0], arguments[1], vector), align=vector.bits // 8
        )

    return vector(data, types.intp), codegen


@intrinsic
def store(typing_context: Any, data: Any, at: Any, vector: Any) -> Any:
    """Sets data[at : at + 16] to a vector."""

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
    """Returns the vector of 16 copies of a scalar."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0], _llvm_vector(signature.return_type.bits))

    return _OF_SCALAR[scalar](scalar), codegen


@intrinsic
def zeros(typing_context: Any, data: Any) -> Any:
    """Returns the vector of zeros of the dtype that `data` points to."""
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
# A comparison is one instruction, maxnum three; no argument is NaN.
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
    """Emits first * second + third, fused where the machine can."""
    of = first.type
    return _call(builder, f"llvm.fmuladd.{_suffix(of)}", of, first, second, third)


@intrinsic
def multiply_add(typing_context: Any, first: Any, second: Any, third: Any) -> Any:
    """Returns first * second + third, fused where the machine can."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fused(builder, *arguments)

    return first(first, second, third), codegen


@intrinsic
def less(typing_context: Any, first: Any, second: Any) -> Any:
    """Returns an integer whose bit j says whether first[j] < second[j] (not so if one is NaN)."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(builder.fcmp_ordered("<", *arguments), _MASK)
        return builder.zext(bits, ir.IntType(64))

    return types.int64(first, second), codegen


@intrinsic
def any_less(typing_context: Any, first: Any, second: Any) -> Any:
    """Returns 1 if first[j] < second[j] for some j, else 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(builder.fcmp_ordered("<", *arguments), _MASK)
        found = builder.icmp_unsigned("!=", bits, ir.Constant(_MASK, 0))
        return builder.zext(found, ir.IntType(64))

    return types.int64(first, second), codegen


@intrinsic
def lowest_bit(typing_context: Any, mask: Any) -> Any:
    """Returns the position of the lowest bit set in a mask that is not zero."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), codegen


@intrinsic
def widen(typing_context: Any, vector: Any) -> Any:
    """Returns the vector in float64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0] == _FLOAT64:
            return arguments[0]
        return builder.fpext(arguments[0], _llvm_vector(64))

    return _FLOAT64(vector), codegen


@intrinsic
def narrow(typing_context: Any, vector: Any, like: Any) -> Any:
    """Returns a float64 vector in the dtype that `like` points to."""
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
            function = f"llvm.vector.reduce.{name}.{_suffix(of)}"
            result = _call(builder, function, of.element, *start, arguments[0])
            # Allows LLVM to add in pairs.
            result.fastmath.add("reassoc")
            return result

        return _SCALAR_OF[vector](vector), codegen

    return intrinsic(typed)


largest = _reduction("fmax", None)
total = _reduction("fadd", -0.0)


_MANTISSA = {32: 23, 64: 52}
# The smallest x whose 2^x is a normal number; for smaller x, `exp2` returns zero.
_LOWEST = {32: -125.0, 64: -1021.0}
LOWEST = min(_LOWEST.values())


def _polynomial(bits: int) -> list[float]:
    """Returns coefficients of 2^r for |r| <= 1/2, lowest order first.

    For float32 they interpolate at Chebyshev points, with an error of at most 1.1e-7. For float64
    they are the Taylor series, whose remainder is below (log(2) / 2)^14 / 14!.
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
    """Returns 2^x for x up to 100; zero below -125 (float32) or -1021 (float64).

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
        # Sums pairs of terms, then pairs of pairs: a shorter chain than that of Horner's rule.
        terms = [_constant(of, c) for c in _POLYNOMIAL[bits]]
        power = r
        while len(terms) > 1:
            pairs = zip(terms[1::2], terms[::2], strict=False)
            alone = terms[-1:] if len(terms) % 2 else []
            terms = [_fused(builder, odd, power, even) for odd, even in pairs] + alone
            power = builder.fmul(power, power)
        integers = _integers(bits)
        # The polynomial is between 0.7 and 1.5, so that k can be added to its exponent.
        shift = ir.Constant(integers, [_MANTISSA[bits]] * WIDTH)
        exponent = builder.shl(builder.fptosi(k, integers), shift)
        power = builder.bitcast(builder.add(builder.bitcast(terms[0], integers), exponent), of)
        return builder.select(inside, power, _constant(of, 0.0))

    return vector(vector), codegen


@intrinsic
def without_lane(typing_context: Any, vector: Any, lane: Any) -> Any:
    """Returns the vector with -inf in one lane."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of = arguments[0].type
        integers = _integers(32)
        lane = _splat(builder, builder.trunc(arguments[1], integers.element), integers)
        here = builder.icmp_signed("==", lane, ir.Constant(integers, list(range(WIDTH))))
        return builder.select(here, _constant(of, -math.inf), arguments[0])

    return vector(vector, types.int64), codegen
