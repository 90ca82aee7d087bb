"""Sixty-four values at once, kept in vector registers: what is asked of them is one bit each of a word."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["BLOCK", "INFINITE", "SIGNLESS", "occupied", "reaching", "sum_reaching", "write_sum"]

BLOCK = 64
"""How many values."""
SIGNLESS, INFINITE = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
"""The bits of a float32 but its sign, and those of the least magnitude that is not finite."""

_WORD, _REAL, _MASK = ir.IntType(32), ir.FloatType(), ir.IntType(64)
_WORDS, _REALS = ir.VectorType(_WORD, BLOCK), ir.VectorType(_REAL, BLOCK)


def _all(builder: Any, value: Any, vector: Any) -> Any:
    """A vector of one value."""
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_WORDS, [0] * BLOCK))


def _address(context: Any, builder: Any, kind: Any, values: Any, start: Any, vector: Any) -> Any:
    data = context.make_array(kind)(context, builder, values).data
    return builder.bitcast(builder.gep(data, [start]), vector.as_pointer())


def _emit_mask(builder: Any, bits: Any, threshold: Any) -> Any:
    """Compare as signed integers, which processors have an instruction for: neither side's sign is set."""
    magnitudes = builder.and_(bits, ir.Constant(_WORDS, [int(SIGNLESS)] * BLOCK))
    below = _all(builder, builder.sub(threshold, ir.Constant(_WORD, 1)), _WORDS)
    return builder.bitcast(builder.icmp_signed(">", magnitudes, below), _MASK)


def _emit_reaching(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    address = _address(context, builder, signature.args[0], args[0], args[1], _WORDS)
    return _emit_mask(builder, builder.load(address, align=4), args[2])


def _type_reaching(context: Any, bits: Any, start: Any, threshold: Any) -> Any:
    """Compare the magnitudes of the 64 values from ``start`` on: bit j is set where value j reaches the threshold.

    The threshold is 1 to ``INFINITE``.
    """
    return types.uint64(bits, types.int64, types.uint32), _emit_reaching


reaching: Any = intrinsic(_type_reaching)


def _emit_occupied(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    address = _address(context, builder, signature.args[0], args[0], args[1], _WORDS)
    bits = builder.load(address, align=4)
    return builder.bitcast(builder.icmp_unsigned("!=", bits, ir.Constant(_WORDS, [0] * BLOCK)), _MASK)


def _type_occupied(context: Any, bits: Any, start: Any) -> Any:
    """Tell which of the 64 values from ``start`` on are anything but 0.0, bit by bit."""
    return types.uint64(bits, types.int64), _emit_occupied


occupied: Any = intrinsic(_type_occupied)


def _emit_sum(context: Any, builder: Any, signature: Any, args: Any) -> tuple[Any, Any]:
    """64 sums, and the address of the first operand."""
    addresses = [_address(context, builder, signature.args[i], args[i], args[2], _REALS) for i in (0, 1)]
    total, addend = (builder.load(address, align=4) for address in addresses)
    return builder.fadd(builder.fmul(total, _all(builder, args[3], _REALS)), addend), addresses[0]


def _emit_sum_reaching(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    added, _ = _emit_sum(context, builder, signature, args)
    return _emit_mask(builder, builder.bitcast(added, _WORDS), args[4])


def _type_sum_reaching(context: Any, total: Any, addend: Any, start: Any, decay: Any, threshold: Any) -> Any:
    """The same of ``decay * total + addend``, which is not written."""
    return types.uint64(total, addend, types.int64, types.float32, types.uint32), _emit_sum_reaching


sum_reaching: Any = intrinsic(_type_sum_reaching)


def _emit_write_sum(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    added, address = _emit_sum(context, builder, signature, args)
    builder.store(added, address, align=4)
    return context.get_dummy_value()


def _type_write_sum(context: Any, total: Any, addend: Any, start: Any, decay: Any) -> Any:
    """Write ``decay * total + addend`` to ``total``, 64 values from ``start`` on; after the above nothing is new."""
    return types.void(total, addend, types.int64, types.float32), _emit_write_sum


write_sum: Any = intrinsic(_type_write_sum)
