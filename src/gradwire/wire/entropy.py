"""Symbol streams: small integers <-> bytes, in the cheapest of four codes or a named one.

docs/format.md, "Symbol streams", is the law for every byte written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import LimitExceeded, Malformed, Truncated, UnknownCodec
from gradwire.kernels import ops
from gradwire.wire.golomb import golomb_parameter, read_golomb
from gradwire.wire.limits import Limits
from gradwire.wire.reader import Reader, varint

__all__ = ["CODERS", "decode_symbols", "encode_symbols"]

PACKED, HUFFMAN, ANS, RLE = range(4)
CODERS = {"packed": PACKED, "huffman": HUFFMAN, "ans": ANS, "rle": RLE}
_FREQUENCY_SUM = 4096
_MAX_CODE_BITS = 12

Symbols = NDArray[np.uint16]
Counts = NDArray[np.int64]  # (num_symbols,): how often each symbol occurs


def symbol_bits(num_symbols: int) -> int:
    """Bits of a fixed-width field for one of ``num_symbols`` symbols."""
    return (num_symbols - 1).bit_length()


def encode_symbols(symbols: Symbols, num_symbols: int, coder: str) -> tuple[int, bytes]:
    """Write symbols.

    Args:
        symbols: (k,) uint16, k >= 1, each below ``num_symbols``.
        num_symbols: size of the alphabet, 2 to 65,536.
        coder: a name of ``CODERS``, or ``"auto"`` for the cheapest by exact cost.

    Returns:
        The coder's number and its bytes.
    """
    counts = ops.count_symbols(symbols, num_symbols)
    if np.count_nonzero(counts) > _FREQUENCY_SUM // 2:
        coder = "packed"  # a table of frequencies or code lengths would not fit in 12 bits
    if coder != "auto":
        number = CODERS[coder]
        return number, _ENCODERS[number](symbols, counts)
    best, size, written = PACKED, -(-symbols.size * symbol_bits(num_symbols) // 8), b""
    for number, least in sorted(_least_bytes(symbols, counts).items(), key=lambda item: item[1]):
        if least >= size:
            continue
        tried = _ENCODERS[number](symbols, counts) if number == ANS else b""
        num_bytes = len(tried) or (_huffman_bytes(counts) if number == HUFFMAN else _rle_bytes(symbols, counts))
        if num_bytes < size:
            best, size, written = number, num_bytes, tried
    return best, written or _ENCODERS[best](symbols, counts)


def _huffman_bytes(counts: Counts) -> int:
    """Bytes the Huffman coder would write, exactly."""
    low, present = _range(counts)
    lengths = ops.huffman_lengths(present)
    data = -(-int(present @ lengths.astype(np.int64)) // 8)
    return len(varint(low)) + len(varint(present.size)) + -(-present.size // 2) + data


def _rle_bytes(symbols: Symbols, counts: Counts) -> int:
    """Bytes the coder of runs would write, exactly."""
    starts = np.flatnonzero(symbols[1:] != symbols[:-1])
    num_bytes = len(varint(starts.size)) + -(-(starts.size + 1) * symbol_bits(counts.size) // 8)
    if not starts.size:
        return num_bytes
    m, num_bits = golomb_parameter(ops.gaps(starts))
    return num_bytes + len(varint(m)) + -(-num_bits // 8)


def _least_bytes(symbols: Symbols, counts: Counts) -> dict[int, float]:
    """Bytes each entropy coder would write, at least."""
    present = counts[counts > 0]
    used = np.flatnonzero(counts)
    table = int(used[-1] - used[0]) + 1
    total = int(symbols.size)
    entropy_bytes = float(present @ np.log2(total / present)) / 8
    num_runs = 1 + int(np.count_nonzero(symbols[1:] != symbols[:-1]))
    run_bits = math.log2(total / num_runs) + symbol_bits(counts.size)
    return {
        ANS: 2 + table + 2 + entropy_bytes,
        HUFFMAN: 2 + table / 2 + max(entropy_bytes, total / 8 if present.size > 1 else 0.0),
        RLE: 1 + num_runs * run_bits / 8,
    }


def decode_symbols(coder: int, count: int, num_symbols: int, reader: Reader, limits: Limits) -> Symbols:
    """Read symbols.

    Args:
        coder: the coder's number.
        count: how many, 1 or more.
        num_symbols: size of the alphabet.
        reader: where the bytes start; moved past them.
        limits: bounds how many symbols bytes may stand for.

    Returns:
        (count,) uint16, each below ``num_symbols``.

    Raises:
        DecodeError: on anything docs/format.md does not allow.
    """
    if coder not in _DECODERS:
        raise UnknownCodec(f"symbol coder must be one of {sorted(_DECODERS)}, got {coder}")
    if coder == PACKED:
        reader.need(-(-count * symbol_bits(num_symbols) // 8), "symbols")
    elif count > limits.max_expansion * reader.size:
        raise LimitExceeded(
            f"{count} symbols out of {reader.size} bytes: at most {limits.max_expansion} a byte allowed"
        )
    return _DECODERS[coder](count, num_symbols, reader)


# packed: fixed-width fields


def _encode_packed(symbols: Symbols, counts: Counts) -> bytes:
    return ops.pack(symbols, symbol_bits(counts.size)).tobytes()


def _decode_packed(count: int, num_symbols: int, reader: Reader) -> Symbols:
    width = symbol_bits(num_symbols)
    data = np.frombuffer(reader.take(-(-count * width // 8), "symbols"), np.uint8)
    symbols = ops.unpack(data, count, width)
    used = count * width % 8
    if int(symbols.max()) >= num_symbols or (used and data[-1] >> used):
        raise Malformed(f"packed symbols must be below {num_symbols} and unused bits 0")
    return symbols.astype(np.uint16, copy=False)


# huffman: code lengths of a range of symbols, then the codes


def _encode_huffman(symbols: Symbols, counts: Counts) -> bytes:
    low, present = _range(counts)
    lengths = ops.huffman_lengths(present)
    head = varint(low) + varint(present.size) + ops.pack(lengths.astype(np.uint16), 4).tobytes()
    return head + ops.huffman_encode(symbols - np.uint16(low), lengths).tobytes()


def _decode_huffman(count: int, num_symbols: int, reader: Reader) -> Symbols:
    low, size = _read_range(num_symbols, reader)
    data = np.frombuffer(reader.take(-(-size // 2), "code lengths"), np.uint8)
    lengths = ops.unpack(data, size, 4).astype(np.uint8)
    if int(lengths.max()) > _MAX_CODE_BITS or (size % 2 and data[-1] >> 4):
        raise Malformed(f"code lengths must be at most {_MAX_CODE_BITS} and unused bits 0")
    found = ops.huffman_decode(reader.rest(), count, lengths)
    if found is None:
        raise Malformed(f"Huffman stream of {count} symbols not found")
    reader.take(found[1], "Huffman stream")
    return found[0] + np.uint16(low)


# ans: frequencies of a range of symbols, then the interleaved rANS stream


def _encode_ans(symbols: Symbols, counts: Counts) -> bytes:
    low, present = _range(counts)
    frequencies = ops.normalise_frequencies(present)
    head = varint(low) + varint(present.size) + b"".join(varint(int(f)) for f in frequencies)
    return head + ops.ans_encode(symbols - np.uint16(low), frequencies).tobytes()


def _decode_ans(count: int, num_symbols: int, reader: Reader) -> Symbols:
    low, size = _read_range(num_symbols, reader)
    if size > _FREQUENCY_SUM:
        raise Malformed(f"at most {_FREQUENCY_SUM} frequencies, got {size}")
    frequencies = np.array([reader.varint("frequency", _FREQUENCY_SUM + 1) for _ in range(size)], np.uint32)
    if int(frequencies.sum()) != _FREQUENCY_SUM:
        raise Malformed(f"frequencies must add up to {_FREQUENCY_SUM}, got {int(frequencies.sum())}")
    found = ops.ans_decode(reader.rest(), count, frequencies)
    if found is None:
        raise Malformed(f"rANS stream of {count} symbols not found")
    reader.take(found[1], "rANS stream")
    return found[0] + np.uint16(low)


# rle: the symbols of the runs, then where runs start


def _encode_rle(symbols: Symbols, counts: Counts) -> bytes:
    starts = np.flatnonzero(symbols[1:] != symbols[:-1])
    heads = symbols[np.concatenate([np.zeros(1, np.int64), starts + 1])]
    out = varint(starts.size) + ops.pack(heads, symbol_bits(counts.size)).tobytes()
    if starts.size:
        gaps = ops.gaps(starts)
        m, _ = golomb_parameter(gaps)
        out += varint(m) + ops.golomb_encode(gaps, m).tobytes()
    return out


def _decode_rle(count: int, num_symbols: int, reader: Reader) -> Symbols:
    num_starts = reader.varint("number of runs", below=count)
    width = symbol_bits(num_symbols)
    if num_starts > 8 * reader.remaining:
        raise Truncated(f"{num_starts} runs, but only {reader.remaining} bytes follow")
    heads = _decode_packed(num_starts + 1, num_symbols, reader) if width else np.zeros(num_starts + 1, np.uint16)
    if num_starts == 0:
        return np.full(count, heads[0], np.uint16)
    if (heads[1:] == heads[:-1]).any():
        raise Malformed("runs next to each other must differ")
    starts = read_golomb(reader, num_starts, count - 1, "run starts")
    return np.repeat(heads, np.diff(starts, prepend=-1, append=count - 1)).astype(np.uint16, copy=False)


def _range(counts: Counts) -> tuple[int, Counts]:
    """The smallest symbol and how often each from it to the largest occurs."""
    used = np.flatnonzero(counts)
    return int(used[0]), counts[used[0] : used[-1] + 1]


def _read_range(num_symbols: int, reader: Reader) -> tuple[int, int]:
    low = reader.varint("smallest symbol", below=num_symbols)
    size = reader.varint("number of symbols present", below=num_symbols - low + 1)
    if size == 0:
        raise Malformed("number of symbols present must be 1 or more, got 0")
    reader.need(-(-size // 2), "symbol table")
    return low, size


_ENCODERS: dict[int, Callable[[Symbols, Counts], bytes]] = {
    PACKED: _encode_packed,
    HUFFMAN: _encode_huffman,
    ANS: _encode_ans,
    RLE: _encode_rle,
}
_DECODERS: dict[int, Callable[[int, int, Reader], Symbols]] = {
    PACKED: _decode_packed,
    HUFFMAN: _decode_huffman,
    ANS: _decode_ans,
    RLE: _decode_rle,
}
