"""Value coding: the numbers at a support <-> bytes.

docs/format.md, "Values", is the law for every byte written here.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import LARGEST
from gradwire.errors import ConfigError, LimitExceeded, Malformed, UnknownCodec
from gradwire.kernels import ops
from gradwire.kernels.fires_reference import LARGEST_COUNT
from gradwire.payload import (
    Every,
    Factors,
    Fielded,
    Floats,
    Grouped,
    Known,
    Levels,
    Multiples,
    Support,
    Symbols,
    Values,
    block_ranks,
)
from gradwire.wire.entropy import CODERS, PACKED, decode_symbols, encode_symbols
from gradwire.wire.limits import Limits
from gradwire.wire.reader import Reader, varint

__all__ = ["decode_values", "encode_values", "name_of", "read_levels", "read_scale"]

FLOAT32, FLOAT16, BFLOAT16, CENTRED, LEVELS, LOW_RANK, AFFINE, GROUPED, MULTIPLES = range(9)
_KINDS = {
    FLOAT32: "float32",
    FLOAT16: "float16",
    BFLOAT16: "bfloat16",
    CENTRED: "centred",
    LEVELS: "levels",
    LOW_RANK: "low_rank",
    AFFINE: "affine",
    GROUPED: "grouped",
    MULTIPLES: "multiples",
}
_FLOAT_KINDS = {_KINDS[number]: number for number in (FLOAT32, FLOAT16, BFLOAT16)}
CONTEXT = 4  # a coder of a support and its symbols together: contexts.py
_CODER_NAMES = {number: name for name, number in CODERS.items()}
_DTYPES: dict[int, np.dtype[Any]] = {FLOAT32: np.dtype("<u4"), FLOAT16: np.dtype("<u2"), BFLOAT16: np.dtype("<u2")}
_MANTISSA_BITS = {FLOAT32: 23, FLOAT16: 10, BFLOAT16: 7}
_EXPONENT_BITS = {FLOAT32: 8, FLOAT16: 5, BFLOAT16: 8}


def name_of(codec: int) -> str:
    """Name a value codec for people, such as ``float32`` or ``centred+ans``."""
    kind, coder = codec & 15, codec >> 4
    return _KINDS[kind] + (f"+{(_CODER_NAMES | {CONTEXT: 'context'})[coder]}" if coder != PACKED else "")


def encode_values(values: Values, coder: str) -> tuple[int, bytes]:
    """Write values.

    Args:
        values: the values, at least one.
        coder: how symbols (of floats: exponents) are coded: ``"auto"`` or a name of ``CODERS``.

    Returns:
        The codec (kind, and coder << 4) and its bytes.
    """
    if isinstance(values, Floats):
        return _encode_floats(values, coder)
    if isinstance(values, Symbols):
        head = varint(values.num_symbols) + varint(values.block) + values.scales.astype("<f4").tobytes()
        number, stream = encode_symbols(values.symbols, values.num_symbols, coder)
        if values.zero_points is None:
            return CENTRED | number << 4, head + stream
        zeros = encode_symbols(values.zero_points, values.num_symbols, "packed")[1]
        return AFFINE | number << 4, head + zeros + stream
    if isinstance(values, Levels):
        head = varint(values.levels.size) + values.levels.astype("<f4").tobytes()
        number, stream = encode_symbols(values.symbols, 2 * values.levels.size, coder)
        return LEVELS | number << 4, head + stream
    if isinstance(values, Factors):
        codec, stream = _encode_floats(Floats(np.concatenate([values.p.reshape(-1), values.q.reshape(-1)])), coder)
        return LOW_RANK | codec & 0xF0, varint(values.p.shape[0]) + varint(values.p.shape[1]) + stream
    if isinstance(values, Multiples):
        return MULTIPLES, _encode_multiples(values)
    if isinstance(values, Grouped):
        return GROUPED, _encode_groups(values.members, coder)
    raise ConfigError(f"values of type {type(values).__name__} have no coding")


def decode_values(codec: int, support: Support, reader: Reader, limits: Limits) -> Values:
    """Read the values at a support.

    Args:
        codec: kind, and coder << 4.
        support: the part's support, with at least one coordinate.
        reader: where the bytes start; moved past them.
        limits: what to refuse.

    Returns:
        The values, all finite.

    Raises:
        DecodeError: on anything docs/format.md does not allow.
    """
    kind, coder = codec & 15, codec >> 4
    if kind not in _KINDS or coder not in _CODER_NAMES:
        raise UnknownCodec(
            f"value kind must be one of {sorted(_KINDS)}, coder of {sorted(_CODER_NAMES)}; got {codec:#04x}"
        )
    if kind in (GROUPED, MULTIPLES) and coder != PACKED:
        raise UnknownCodec(f"{_KINDS[kind]} values have coders of their own, got {codec:#04x}")
    if kind == LOW_RANK:
        return _decode_factors(coder, support, reader, limits)
    if support.num_kept > limits.max_expansion * reader.size:
        raise LimitExceeded(
            f"{support.num_kept} entries out of {reader.size} bytes: at most {limits.max_expansion} a byte"
        )
    if kind in (CENTRED, AFFINE):
        return _decode_grid(kind, coder, support, reader, limits)
    if kind == LEVELS:
        return _decode_levels(coder, support, reader, limits)
    if kind == MULTIPLES:
        return _decode_multiples(support.num_kept, reader)
    if kind == GROUPED:
        return _decode_groups(support, reader, limits)
    return _decode_floats(kind, coder, support.num_kept, reader, limits)


# floats: whole, or exponents as a symbol stream and the rest packed


def _encode_floats(values: Floats, coder: str) -> tuple[int, bytes]:
    kind = _FLOAT_KINDS[values.coding]
    bits = np.ascontiguousarray(values.data).view(_DTYPES[kind].newbyteorder("="))
    whole = bits.astype(_DTYPES[kind], copy=False).tobytes()
    if coder == "packed":
        return kind | PACKED << 4, whole
    exponents, rest = _split(kind, bits)
    number, stream = encode_symbols(exponents, 1 << _EXPONENT_BITS[kind], coder)
    if number == PACKED:
        return kind | PACKED << 4, whole
    coded = stream + rest.tobytes()
    return (kind | number << 4, coded) if len(coded) < len(whole) or coder != "auto" else (kind | PACKED << 4, whole)


def _decode_floats(kind: int, coder: int, count: int, reader: Reader, limits: Limits) -> Floats:
    dtype, full = _DTYPES[kind], (1 << _EXPONENT_BITS[kind]) - 1
    if coder == PACKED:
        data = np.frombuffer(reader.take(count * dtype.itemsize, _KINDS[kind]), dtype)
        bits = data.astype(dtype.newbyteorder("="), copy=False)
        mask = dtype.type(full << _MANTISSA_BITS[kind])
        finite = not count or (bits & mask).max() < mask
    else:
        num_bits = count * (_MANTISSA_BITS[kind] + 1)
        reader.need(-(-num_bits // 8), _KINDS[kind])
        exponents = decode_symbols(coder, count, full + 1, reader, limits)
        finite = exponents.max() < full
        rest = np.frombuffer(reader.take(-(-num_bits // 8), "signs and mantissas"), np.uint8)
        if num_bits % 8 and rest[-1] >> num_bits % 8:
            raise Malformed("unused bits after signs and mantissas must be 0")
        bits = _join(kind, exponents, rest)
    if not finite:
        raise Malformed(f"{_KINDS[kind]} values must be finite")
    return Floats(bits.view({FLOAT32: np.float32, FLOAT16: np.float16, BFLOAT16: np.uint16}[kind]), _KINDS[kind])


def _split(kind: int, bits: NDArray[Any]) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Exponents, and fixed-width fields of sign and mantissa."""
    if kind == FLOAT32:
        exponents, rest = ops.split_float32(bits)
        return exponents.astype(np.uint16), rest
    mantissa, width = _MANTISSA_BITS[kind], _EXPONENT_BITS[kind]
    fields = (bits >> (mantissa + width)) << mantissa | bits & ((1 << mantissa) - 1)
    high = (bits >> mantissa) & ((1 << width) - 1)
    return high.astype(np.uint16, copy=False), ops.pack(fields.astype(np.uint16, copy=False), mantissa + 1)


def _join(kind: int, exponents: NDArray[np.uint16], rest: NDArray[np.uint8]) -> NDArray[Any]:
    """Put together what ``_split`` took apart."""
    if kind == FLOAT32:
        return ops.join_float32(exponents.astype(np.uint8), rest)
    mantissa, width = _MANTISSA_BITS[kind], _EXPONENT_BITS[kind]
    fields = ops.unpack(rest, exponents.size, mantissa + 1)
    signs = (fields >> mantissa) << (mantissa + width)
    return (signs | exponents.astype(np.int64) << mantissa | fields & ((1 << mantissa) - 1)).astype(np.uint16)


# two factors of a matrix: floats


def _decode_factors(coder: int, support: Support, reader: Reader, limits: Limits) -> Factors:
    """Read factors, whose bytes pay for them alone: the matrix may be any number of times larger."""
    if not isinstance(support, Every):
        raise Malformed("factors stand for every coordinate of a part, got another support")
    rows = reader.varint("rows", below=support.length + 1)
    if rows == 0 or support.length % rows:
        raise Malformed(f"rows must divide the part's {support.length} coordinates, got {rows}")
    columns = support.length // rows
    rank = reader.varint("approximation rank", below=min(rows, columns) + 1)
    if rank == 0:
        raise Malformed("approximation rank must be 1 or more, got 0")
    data = _decode_floats(FLOAT32, coder, rank * (rows + columns), reader, limits).data
    factors = Factors(data[: rank * rows].reshape(rows, rank), data[rank * rows :].reshape(columns, rank))
    if factors.bound > LARGEST:
        raise Malformed(f"factors must keep every number within float32, they may reach {factors.bound:g}")
    return factors


# symbols on a grid or in a table


def _read_num_symbols(reader: Reader) -> int:
    num_symbols = reader.varint("number of symbols", below=2**16 + 1)
    if num_symbols < 2:
        raise Malformed(f"number of symbols must be 2 or more, got {num_symbols}")
    return num_symbols


def read_scale(reader: Reader) -> tuple[int, NDArray[np.float32]]:
    """Read the number of symbols of a centred grid, and its one scale."""
    num_symbols = _read_num_symbols(reader)
    scales = np.frombuffer(reader.take(4, "scale"), "<f4").astype(np.float32)
    _check_scales(scales, np.float32((num_symbols - 1) / 2), num_symbols)
    return num_symbols, scales


def _check_scales(scales: NDArray[np.float32], zeros: np.float32 | NDArray[np.float32], num_symbols: int) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        largest = scales * np.maximum(zeros, np.float32(num_symbols - 1) - zeros)
    if not (np.isfinite(largest).all() and (scales > 0).all()):
        raise Malformed("scales must be positive and finite over the whole grid")


def _decode_grid(kind: int, coder: int, support: Support, reader: Reader, limits: Limits) -> Symbols:
    num_symbols = _read_num_symbols(reader)
    block = reader.varint("scale block", below=2**48)
    num_scales = 1
    if block and isinstance(support, (Fielded, Known)):
        raise Malformed("block scales cannot stand on a known or fielded support")
    if block:
        reader.need(4, "scales")
        num_scales = int(block_ranks(support, block)[-1]) + 1
    scales = np.frombuffer(reader.take(4 * num_scales, "scales"), "<f4").astype(np.float32)
    zero_points = decode_symbols(PACKED, num_scales, num_symbols, reader, limits) if kind == AFFINE else None
    zeros = np.float32((num_symbols - 1) / 2) if zero_points is None else zero_points.astype(np.float32)
    _check_scales(scales, zeros, num_symbols)
    symbols = decode_symbols(coder, support.num_kept, num_symbols, reader, limits)
    if int(symbols.max()) >= num_symbols:
        raise Malformed(f"symbols must be below {num_symbols}, got {int(symbols.max())}")
    return Symbols(symbols, num_symbols, scales, block, zero_points)


def read_levels(reader: Reader) -> NDArray[np.float32]:
    """Read a table of magnitudes."""
    num_levels = reader.varint("number of levels", below=2**15 + 1)
    if num_levels == 0:
        raise Malformed("number of levels must be 1 or more, got 0")
    levels = np.frombuffer(reader.take(4 * num_levels, "levels"), "<f4").astype(np.float32)
    if not (np.isfinite(levels).all() and (levels >= 0).all()):
        raise Malformed("levels must be finite and 0 or more")
    return levels


def _decode_levels(coder: int, support: Support, reader: Reader, limits: Limits) -> Levels:
    levels = read_levels(reader)
    symbols = decode_symbols(coder, support.num_kept, 2 * levels.size, reader, limits)
    if int(symbols.max()) >= 2 * levels.size:
        raise Malformed(f"symbols must be below {2 * levels.size}, got {int(symbols.max())}")
    return Levels(symbols, levels)


# integers times a step: signs, and magnitudes where not all are 1


def _encode_multiples(values: Multiples) -> bytes:
    magnitudes = np.abs(values.counts).astype(np.uint32)
    largest = int(magnitudes.max())
    out = (
        struct.pack("<f", values.step) + varint(largest) + ops.pack((values.counts < 0).astype(np.uint16), 1).tobytes()
    )
    if largest == 1:
        return out
    code = ops.encode_numbers(magnitudes, largest)
    return out + varint(code.size) + code.tobytes()


def _decode_multiples(count: int, reader: Reader) -> Multiples:
    step = np.frombuffer(reader.take(4, "step"), "<f4").astype(np.float32)[0]
    largest = reader.varint("largest magnitude", below=LARGEST_COUNT + 1)
    if largest == 0:
        raise Malformed("largest magnitude must be 1 or more, got 0")
    with np.errstate(over="ignore", invalid="ignore"):
        if not (step > 0 and np.isfinite(step * np.float32(largest))):
            raise Malformed(f"step must be positive, and finite times {largest}, got {step}")
    data = np.frombuffer(reader.take(-(-count // 8), "signs"), np.uint8)
    if count % 8 and data[-1] >> count % 8:
        raise Malformed("unused bits after signs must be 0")
    magnitudes = np.ones(count, np.int32)
    if largest > 1:
        code = np.frombuffer(reader.take(reader.varint("size of the magnitudes"), "magnitudes"), np.uint8)
        found = ops.decode_numbers(code, count, largest)
        if found is None or int(found.max()) < largest:
            raise Malformed(f"range code of {count} magnitudes, the largest of them {largest}, not found")
        magnitudes = found.astype(np.int32)
    return Multiples(np.where(ops.unpack(data, count, 1) == 1, -magnitudes, magnitudes), step)


# values in groups, each of a kind of its own


def _encode_groups(members: tuple[Values, ...], coder: str) -> bytes:
    out = bytearray(varint(len(members)))
    for number, member in enumerate(members, 1):
        if number < len(members):
            out += varint(member.num_values)
        codec, data = encode_values(member, coder)
        out.append(codec)
        out += data
    return bytes(out)


def _decode_groups(support: Support, reader: Reader, limits: Limits) -> Grouped:
    if isinstance(support, Known):
        raise Malformed("groups cannot stand on a known support")
    num_groups = reader.varint("number of groups", below=support.num_kept + 1)
    if num_groups < 2:
        raise Malformed(f"number of groups must be 2 or more, got {num_groups}")
    if num_groups > limits.max_parts:
        raise LimitExceeded(f"groups must be at most {limits.max_parts}, got {num_groups}")
    members: list[Values] = []
    left = support.num_kept
    for number in range(1, num_groups + 1):
        count = left if number == num_groups else reader.varint("values of a group", below=left)
        if count == 0:
            raise Malformed("a group must not be empty")
        codec = reader.byte("value codec of a group")
        if codec & 15 in (LOW_RANK, GROUPED):
            raise Malformed(f"a group cannot be of the kind {_KINDS[codec & 15]}")
        member = decode_values(codec, Every(count), reader, limits)
        if isinstance(member, Symbols) and member.block:
            raise Malformed("a group has one scale, got block scales")
        members.append(member)
        left -= count
    return Grouped(tuple(members))
