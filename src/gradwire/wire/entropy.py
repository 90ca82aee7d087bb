"""Symbol streams: small integers <-> bytes, in the cheapest of four codes or a named one.

docs/format.md, "Symbol streams", is the law for every byte written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import LimitExceeded, Malformed, Truncated, UnknownCodec
from gradwire.kernels import ops
from gradwire.wire.golomb import golomb_parameter, read_golomb
from gradwire.wire.limits import Limits
from gradwire.wire.reader import Reader, varint, varints

__all__ = ["CODERS", "decode_symbols", "encode_symbols"]

PACKED, HUFFMAN, ANS, RLE = range(4)
CODERS = {"packed": PACKED, "huffman": HUFFMAN, "ans": ANS, "rle": RLE}
_FREQUENCY_SUM = 4096
_MAX_CODE_BITS = 12

Symbols = NDArray[np.uint16]
Counts = NDArray[np.int64]  # how often each symbol occurs


class _Stream(NamedTuple):
    """Symbols to write.

    Attributes:
        symbols: (k,) uint16, k >= 1.
        width: bits of a fixed-width field for one of them.
        low: the smallest one.
        counts: how often each symbol from it to the largest occurs.
    """

    symbols: Symbols
    width: int
    low: int
    counts: Counts


Written = tuple[int, Callable[[], bytes]]  # how many bytes a code takes, and what makes them


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
    used = counts.nonzero()[0]
    low = int(used[0])
    stream = _Stream(symbols, symbol_bits(num_symbols), low, counts[low : int(used[-1]) + 1])
    if used.size > _FREQUENCY_SUM // 2:
        coder = "packed"  # a table of frequencies or code lengths would not fit in 12 bits
    if coder != "auto":
        number = CODERS[coder]
        return number, _ENCODERS[number](stream)[1]()
    best, (size, write) = PACKED, _encode_packed(stream)
    for number, least in _rivals(stream, counts[used], size):
        if least < size:
            num_bytes, written = _ENCODERS[number](stream)
            if num_bytes < size:
                best, size, write = number, num_bytes, written
    return best, write()


def _rivals(stream: _Stream, present: Counts, size: int) -> list[tuple[int, float]]:
    """The entropy coders that may beat ``size`` bytes, and how many they would write at least, fewest first.

    ``present`` are the counts that are not 0.
    """
    symbols, table = stream.symbols, stream.counts.size
    total = symbols.size
    entropy_bytes = float(present @ np.log2(total / present)) / 8
    num_runs = 1 + int(np.count_nonzero(symbols[1:] != symbols[:-1]))
    run_bits = math.log2(total / num_runs) + stream.width
    least = [
        (ANS, 2 + table + 2 + entropy_bytes),
        (HUFFMAN, 2 + table / 2 + max(entropy_bytes, total / 8 if present.size > 1 else 0.0)),
    ]
    if 1 + num_runs * (stream.width + 1) / 8 < size:  # each start of a run but the first takes a bit and more
        least.append((RLE, 1 + num_runs * run_bits / 8))
    least.sort(key=itemgetter(1))
    return least


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


def _encode_packed(stream: _Stream) -> Written:
    return -(-stream.symbols.size * stream.width // 8), lambda: ops.pack(stream.symbols, stream.width).tobytes()


def _decode_packed(count: int, num_symbols: int, reader: Reader) -> Symbols:
    width = symbol_bits(num_symbols)
    data = np.frombuffer(reader.take(-(-count * width // 8), "symbols"), np.uint8)
    symbols = ops.unpack(data, count, width)
    used = count * width % 8
    if int(symbols.max()) >= num_symbols or (used and data[-1] >> used):
        raise Malformed(f"packed symbols must be below {num_symbols} and unused bits 0")
    return symbols.astype(np.uint16, copy=False)


# huffman: code lengths of a range of symbols, then the codes


def _encode_huffman(stream: _Stream) -> Written:
    lengths = ops.huffman_lengths(stream.counts)
    head = varint(stream.low) + varint(lengths.size)
    num_bits = int(stream.counts @ lengths.astype(np.int64))

    def write() -> bytes:
        table = ops.pack(lengths.astype(np.uint16), 4).tobytes()
        return head + table + ops.huffman_encode(stream.symbols - np.uint16(stream.low), lengths).tobytes()

    return len(head) + -(-lengths.size // 2) + -(-num_bits // 8), write


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


def _encode_ans(stream: _Stream) -> Written:
    frequencies = ops.normalise_frequencies(stream.counts)
    head = varint(stream.low) + varint(frequencies.size) + varints(frequencies.astype(np.int64))
    written = head + ops.ans_encode(stream.symbols - np.uint16(stream.low), frequencies).tobytes()
    return len(written), lambda: written


def _decode_ans(count: int, num_symbols: int, reader: Reader) -> Symbols:
    low, size = _read_range(num_symbols, reader)
    if size > _FREQUENCY_SUM:
        raise Malformed(f"at most {_FREQUENCY_SUM} frequencies, got {size}")
    frequencies = reader.varints(size, "frequency", _FREQUENCY_SUM + 1).astype(np.uint32)
    if int(frequencies.sum()) != _FREQUENCY_SUM:
        raise Malformed(f"frequencies must add up to {_FREQUENCY_SUM}, got {int(frequencies.sum())}")
    found = ops.ans_decode(reader.rest(), count, frequencies)
    if found is None:
        raise Malformed(f"rANS stream of {count} symbols not found")
    reader.take(found[1], "rANS stream")
    return found[0] + np.uint16(low)


# rle: the symbols of the runs, then where runs start


def _encode_rle(stream: _Stream) -> Written:
    symbols = stream.symbols
    starts = (symbols[1:] != symbols[:-1]).nonzero()[0]
    head = varint(starts.size)
    num_bytes = len(head) + -(-(starts.size + 1) * stream.width // 8)
    if not starts.size:
        return num_bytes, lambda: head + ops.pack(symbols[:1], stream.width).tobytes()
    gaps = ops.gaps(starts)
    m, num_bits = golomb_parameter(gaps)
    parameter = varint(m)

    def write() -> bytes:
        heads = symbols[np.concatenate([np.zeros(1, np.int64), starts + 1])]
        return head + ops.pack(heads, stream.width).tobytes() + parameter + ops.golomb_encode(gaps, m).tobytes()

    return num_bytes + len(parameter) + -(-num_bits // 8), write


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


def _read_range(num_symbols: int, reader: Reader) -> tuple[int, int]:
    low = reader.varint("smallest symbol", below=num_symbols)
    size = reader.varint("number of symbols present", below=num_symbols - low + 1)
    if size == 0:
        raise Malformed("number of symbols present must be 1 or more, got 0")
    reader.need(-(-size // 2), "symbol table")
    return low, size


_ENCODERS: dict[int, Callable[[_Stream], Written]] = {
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
