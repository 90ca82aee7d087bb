"""Value coding: the numbers at a support <-> bytes.

docs/format.md, "Values", is the law for every byte written here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradwire.errors import Malformed, UnknownCodec
from gradwire.kernels import ops
from gradwire.payload import Floats, Support, Symbols, Values, block_ranks
from gradwire.wire.reader import Reader, varint

__all__ = ["NAMES", "decode_values", "encode_values"]

FLOAT32, FLOAT16, BFLOAT16, PACKED = range(4)
NAMES = {FLOAT32: "float32", FLOAT16: "float16", BFLOAT16: "bfloat16", PACKED: "packed"}
_FLOAT_CODECS = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}
_FLOAT_DTYPES: dict[int, np.dtype[Any]] = {
    FLOAT32: np.dtype("<f4"),
    FLOAT16: np.dtype("<f2"),
    BFLOAT16: np.dtype("<u2"),
}


def encode_values(values: Values) -> tuple[int, bytes]:
    """Write values.

    Args:
        values: the values.

    Returns:
        The codec's number and its bytes.
    """
    if isinstance(values, Floats):
        codec = _FLOAT_CODECS[values.coding]
        return codec, values.data.astype(_FLOAT_DTYPES[codec], copy=False).tobytes()
    if not isinstance(values, Symbols):
        raise TypeError(f"values of type {type(values).__name__} have no coding")
    head = varint(values.num_symbols) + varint(values.block) + values.scales.astype("<f4").tobytes()
    return PACKED, head + ops.pack(values.symbols, symbol_bits(values.num_symbols)).tobytes()


def symbol_bits(num_symbols: int) -> int:
    """Bits of a fixed-width field for one of ``num_symbols`` symbols."""
    return (num_symbols - 1).bit_length()


def decode_values(codec: int, support: Support, reader: Reader) -> Values:
    """Read the values at a support.

    Args:
        codec: the codec's number.
        support: the part's support, with at least one coordinate.
        reader: where the bytes start; moved past them.

    Returns:
        The values, all finite.

    Raises:
        DecodeError: on anything docs/format.md does not allow.
    """
    if codec in _FLOAT_DTYPES:
        dtype = _FLOAT_DTYPES[codec]
        data = np.frombuffer(reader.take(support.num_kept * dtype.itemsize, NAMES[codec]), dtype)
        values = Floats(data.astype(dtype.newbyteorder("="), copy=False), NAMES[codec])
        if not np.isfinite(values.numbers(support)).all():
            raise Malformed(f"{NAMES[codec]} values must be finite")
        return values
    if codec == PACKED:
        return _decode_packed(support, reader)
    raise UnknownCodec(f"value codec must be one of {sorted(NAMES)}, got {codec}")


def _decode_packed(support: Support, reader: Reader) -> Symbols:
    num_symbols = reader.varint("number of symbols", below=2**16 + 1)
    if num_symbols < 2:
        raise Malformed(f"number of symbols must be 2 or more, got {num_symbols}")
    block = reader.varint("scale block", below=support.length + 1)
    width = symbol_bits(num_symbols)
    num_bytes = -(-support.num_kept * width // 8)
    if num_bytes > reader.remaining:
        reader.take(num_bytes, "symbols")
    num_scales = int(block_ranks(support, block)[-1]) + 1 if block else 1
    scales = np.frombuffer(reader.take(4 * num_scales, "scales"), "<f4").astype(np.float32)
    largest = scales * np.float32((num_symbols - 1) / 2)
    if not (np.isfinite(largest).all() and (scales > 0).all()):
        raise Malformed("scales must be positive and finite over the whole grid")
    data = np.frombuffer(reader.take(num_bytes, "symbols"), np.uint8)
    symbols = ops.unpack(data, support.num_kept, width)
    used = support.num_kept * width % 8
    if (symbols >= num_symbols).any() or (used and data[-1] >> used):
        raise Malformed(f"symbols must be below {num_symbols} and unused bits 0")
    return Symbols(symbols.astype(np.uint16), num_symbols, scales, block)
