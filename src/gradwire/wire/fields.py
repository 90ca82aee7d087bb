"""Fields of row and column levels <-> bytes.

docs/format.md, "Field", is the law for every byte written here.
"""

from __future__ import annotations

import numpy as np

from gradwire.errors import LimitExceeded, Malformed
from gradwire.fields import MOST, Field, num_levels
from gradwire.wire.entropy import decode_symbols, encode_symbols
from gradwire.wire.limits import Limits
from gradwire.wire.reader import Reader, varint

__all__ = ["decode_field", "encode_field"]

_NUM_SYMBOLS = 2 * MOST + 1


def encode_field(field: Field) -> bytes:
    """Write a field: its stretches, and a stream of its levels in the cheapest code."""
    out = varint(field.num_stretches)
    for length, columns in zip(field.lengths, field.columns, strict=True):
        out += varint(length) + varint(columns)
    coder, stream = encode_symbols((field.levels.astype(np.int16) + MOST).astype(np.uint16), _NUM_SYMBOLS, "auto")
    return out + bytes([coder]) + stream


def decode_field(reader: Reader, d: int, coded: int, limits: Limits) -> Field:
    """Read a field.

    Args:
        reader: where its bytes start; moved past them.
        d: most coordinates it may have.
        coded: entries that the container has beside its levels.
        limits: what to refuse.

    Returns:
        The field.

    Raises:
        DecodeError: on anything docs/format.md does not allow.
    """
    count = reader.varint("number of stretches")
    if count == 0:
        raise Malformed("a field needs a stretch or more, got none")
    if count > limits.max_parts:
        raise LimitExceeded(f"stretches must be at most {limits.max_parts}, got {count}")
    reader.need(2 * count, "stretches")
    lengths, columns, left, needed = [], [], d, 0
    for _ in range(count):
        length = reader.varint("length of a stretch", below=left + 1)
        width = reader.varint("columns", below=length + 1)
        if width == 0:
            raise Malformed("stretches and their columns must be 1 or more, got 0")
        lengths.append(length)
        columns.append(width)
        left -= length
        needed += num_levels(length, width)
    if coded + needed > limits.max_expansion * reader.size:
        raise LimitExceeded(
            f"{coded} entries and {needed} levels out of {reader.size} bytes: at most {limits.max_expansion} a byte"
        )
    symbols = decode_symbols(reader.byte("coder of levels"), needed, _NUM_SYMBOLS, reader, limits)
    return Field(tuple(lengths), tuple(columns), (symbols.astype(np.int16) - MOST).astype(np.int8))
