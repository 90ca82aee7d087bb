"""Index coding: a support <-> bytes, the cheapest code chosen by exact cost.

docs/format.md, "Supports", is the law for every byte written here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import LimitExceeded, Malformed, UnknownCodec
from gradwire.kernels import ops
from gradwire.kernels.scratch import borrow
from gradwire.payload import SUPPORT_PURPOSE, Cyclic, Dithered, Every, Explicit, Fielded, Known, Seeded, Support
from gradwire.rng import Key
from gradwire.wire.dithering import decode_dithered, decode_fielded, encode_dithered, encode_fielded
from gradwire.wire.entropy import ANS, decode_symbols, encode_symbols
from gradwire.wire.golomb import golomb_parameter, least_bits, read_golomb
from gradwire.wire.limits import Limits
from gradwire.wire.reader import Reader, varint, varints
from gradwire.wire.segments import choose_segments

__all__ = ["CONTEXT", "NAMES", "decode_support", "encode_support"]

NONE, EVERY, GOLOMB, BITMAP, SEEDED, KNOWN, RUNS, ENTROPY, SEGMENTS, CYCLIC, DITHERED, CONTEXT, FIELDED = range(13)
NAMES = {
    NONE: "none",
    EVERY: "every",
    GOLOMB: "golomb",
    BITMAP: "bitmap",
    SEEDED: "seeded",
    KNOWN: "known",
    RUNS: "runs",
    ENTROPY: "entropy",
    SEGMENTS: "segments",
    CYCLIC: "cyclic",
    DITHERED: "dithered",
    CONTEXT: "context",
    FIELDED: "fielded",
}
_MAX_QUOTIENT = 255  # of the entropy code; larger ones are written apart
_RARE = 1 / 1500  # quotients rarer than this together are written apart, which costs less than their frequencies
_MAX_LOW_BITS = 32
_MIN_ENTROPY_COUNT = 512  # below this a frequency table cannot pay


def encode_support(support: Support) -> tuple[int, bytes]:
    """Write a support in its cheapest code.

    Args:
        support: the support.

    Returns:
        The codec's number and its bytes.
    """
    if isinstance(support, Every):
        return EVERY, b""
    if isinstance(support, Known):
        return KNOWN, varint(support.count) + _with_codec(*_encode_explicit(support.length, support.extra, ()))
    if support.num_kept == 0:
        return NONE, b""
    if isinstance(support, Seeded):
        client = 0 if support.key.client is None else support.key.client + 1
        return SEEDED, varint(support.count) + varint(support.key.seed) + varint(client)
    if isinstance(support, Cyclic):
        return CYCLIC, varint(support.count)
    if isinstance(support, Dithered):
        return DITHERED, encode_dithered(support)
    if isinstance(support, Fielded):
        return FIELDED, encode_fielded(support)
    cuts = support.cuts if isinstance(support, Explicit) else ()
    return _encode_explicit(support.length, support.indices, cuts)


def _with_codec(codec: int, data: bytes) -> bytes:
    return bytes([codec]) + data


def _encode_explicit(length: int, indices: NDArray[np.int64], cuts: tuple[int, ...]) -> tuple[int, bytes]:
    count = int(indices.size)
    if count == 0:
        return NONE, b""
    gaps = ops.gaps(indices, borrow("gaps", count, np.int64))
    segments = choose_segments(length, indices, gaps, cuts) if cuts else None
    if segments is not None and 8 * len(segments) <= least_bits(count, int(indices[-1]) + 1 - count):
        best, size, written = SEGMENTS, len(segments), segments
    else:
        m, num_bits = golomb_parameter(gaps)
        head = varint(count) + varint(m)
        best, size, written = GOLOMB, len(head) + -(-num_bits // 8), b""
        if segments is not None and len(segments) < size:
            best, size, written = SEGMENTS, len(segments), segments
    for codec, tried in _rivals(length, indices, gaps, size):
        if len(tried) < size:
            best, size, written = codec, len(tried), tried
    if best == GOLOMB:
        written = head + ops.golomb_encode(gaps, m).tobytes()
    return best, written


def _rivals(length: int, indices: NDArray[np.int64], gaps: NDArray[np.int64], size: int) -> Iterable[tuple[int, bytes]]:
    """The codes that could beat ``size`` bytes, written out."""
    count = indices.size
    if -(-length // 8) < size:
        bitmap = np.zeros(length, np.uint8)
        bitmap[indices] = 1
        yield BITMAP, np.packbits(bitmap, bitorder="little").tobytes()
    if (coded := _encode_entropy(gaps, size)) is not None:
        size = min(size, len(coded))
        yield ENTROPY, coded
    num_runs = 1 + int(np.count_nonzero(gaps[1:]))
    skipped = float(indices[-1]) + 1 - count
    if num_runs * (_least_golomb_bits(skipped / num_runs) + _least_golomb_bits(count / num_runs - 1)) < 8 * size:
        yield RUNS, _encode_runs(gaps, num_runs)


def _least_golomb_bits(mean: float) -> float:
    """Bits that a Golomb code of geometric numbers of this mean takes at least: their entropy, and the one."""
    return max(1.0, (mean + 1) * math.log2(mean + 1) - mean * math.log2(mean)) if mean > 0 else 1.0


def _encode_runs(gaps: NDArray[np.int64], num_runs: int) -> bytes:
    """Write where runs start and how long they are: each starts after a gap, the first one in any case."""
    firsts = np.empty(num_runs + 1, np.int64)
    firsts[0], firsts[-1] = 0, gaps.size
    firsts[1:-1] = gaps[1:].nonzero()[0] + 1
    skipped = gaps[firsts[:-1]]
    skipped[1:] -= 1  # runs that touch would be one run
    out = varint(num_runs)
    for lengths in (skipped, firsts[1:] - firsts[:-1] - 1):
        m, _ = golomb_parameter(lengths)
        out += varint(m) + ops.golomb_encode(lengths, m).tobytes()
    return out


def _decode_runs(length: int, reader: Reader, limits: Limits) -> NDArray[np.int64]:
    num_runs = reader.varint("number of runs", below=length + 1)
    if num_runs == 0:
        raise Malformed("run-length support needs a run or more, got 0")
    skipped = read_golomb(reader, num_runs, length + 1, "skipped runs")  # before each run, all in all
    lasts = read_golomb(reader, num_runs, length + 1, "kept runs")  # ranks of the last index of each run
    count = int(lasts[-1]) + 1
    if int(skipped[-1]) + count > length:
        raise Malformed(f"runs must end by {length}, got {int(skipped[-1]) + count}")
    _check_expansion(count, reader, limits)
    lasts[1:] -= lasts[:-1].copy()  # how many indices each run has
    lasts[0] += 1
    indices: NDArray[np.int64] = np.repeat(skipped, lasts)
    indices += np.arange(count)
    return indices


def _encode_entropy(gaps: NDArray[np.int64], below: int) -> bytes | None:
    """Quotients of the gaps by 2^b as an rANS stream, the b low bits of each packed, rare large quotients apart.

    None where that cannot take fewer than ``below`` bytes.
    """
    if gaps.size < _MIN_ENTROPY_COUNT:
        return None
    b = min(_MAX_LOW_BITS, max(0, int(gaps.mean() / 12).bit_length() - 1))
    symbols = ops.quotients(gaps, b, _MAX_QUOTIENT)
    counts = np.trim_zeros(ops.count_symbols(symbols, _MAX_QUOTIENT + 1), "b")
    rare = np.flatnonzero(np.cumsum(counts[::-1])[::-1] <= gaps.size * _RARE)
    cap = int(rare[0]) if rare.size else counts.size - 1
    cap = max(1, cap)
    counts = np.append(counts[:cap], counts[cap:].sum())
    counts = counts[counts > 0]
    entropy_bits = float(np.sum(counts * np.log2(gaps.size / counts)))
    if (entropy_bits + gaps.size * b) / 8 + cap + 20 >= below:
        return None
    large = gaps[np.flatnonzero(symbols >= cap)] >> b
    _, stream = encode_symbols(np.minimum(symbols, np.uint16(cap)), cap + 1, "ans")
    low_bits = ops.pack(gaps, b).tobytes()
    head = varint(gaps.size) + varint(b) + varint(cap)
    return head + stream + low_bits + varints(large - cap)


def _decode_entropy(length: int, reader: Reader, limits: Limits) -> NDArray[np.int64]:
    count = reader.varint("number of indices", below=length + 1)
    b = reader.varint("low bits", below=_MAX_LOW_BITS + 1)
    cap = reader.varint("quotient cap", below=_MAX_QUOTIENT + 1)
    if count == 0 or cap == 0:
        raise Malformed(f"entropy-coded support needs a count and a cap of 1 or more, got {count} and {cap}")
    reader.need(-(-count * b // 8), "low bits of gaps")
    quotients = decode_symbols(ANS, count, cap + 1, reader, limits)
    data = np.frombuffer(reader.take(-(-count * b // 8), "low bits of gaps"), np.uint8)
    used = count * b % 8
    if used and data[-1] >> used:
        raise Malformed("unused bits after the low bits of gaps must be 0")
    if int(quotients.max()) > cap:
        raise Malformed(f"quotients must be at most {cap}, got {int(quotients.max())}")
    num_large = int(np.count_nonzero(quotients == cap))
    reader.need(num_large, "large quotients")
    more = reader.varints(num_large, "large quotient", below=(length >> b) + 1)
    indices = ops.positions(quotients, more, cap, ops.unpack(data, count, b), b, length)
    if indices is None:
        raise Malformed(f"entropy-coded indices must be below {length}")
    return indices


def _decode_segments(length: int, reader: Reader, limits: Limits) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    num_segments = reader.varint("number of segments")
    if num_segments < 2:
        raise Malformed(f"number of segments must be 2 or more, got {num_segments}")
    if num_segments > limits.max_parts:
        raise LimitExceeded(f"segments must be at most {limits.max_parts}, got {num_segments}")
    # where an entry, with its value, takes three bytes or more, nothing is copied
    indices = np.empty(min(length, reader.remaining // 3), np.int64)
    cuts: list[int] = []
    start = found = 0
    for number in range(num_segments):
        last = number == num_segments - 1
        size = length - start if last else reader.varint("segment length", below=length - start)
        if size == 0:
            raise Malformed("a segment must not be empty")
        count = reader.varint("number of indices", below=size + 1)
        if count:
            reader.need(-(-count // 8), "segment")  # each index takes a bit or more
            if found + count > indices.size:
                indices = np.concatenate([indices[:found], np.empty(max(found, count), np.int64)])
            read_golomb(reader, count, size, "segment", start, indices[found : found + count])
            found += count
        start += size
        cuts.append(start)
    if not found:
        raise Malformed("a segmented support needs an index or more, got none")
    indices.resize(found, refcheck=False)
    return indices, tuple(cuts[:-1])


def decode_support(codec: int, length: int, round: int, reader: Reader, limits: Limits) -> Support:
    """Read a support.

    Args:
        codec: the codec's number.
        length: number of coordinates of the part.
        round: the payload's round, which seeded supports are drawn for and cyclic ones have moved to.
        reader: where its bytes start; moved past them.
        limits: what to refuse.

    Returns:
        The support.

    Raises:
        DecodeError: on anything docs/format.md does not allow.
    """
    if codec == EVERY:
        return Every(length)
    if codec == SEEDED:
        count = reader.varint("number of indices", below=length + 1)
        seed = reader.varint("seed")
        client = reader.varint("client")
        if count == 0:
            raise Malformed("seeded support needs a count of 1 or more, got 0")
        return Seeded(length, count, Key(seed, round, client - 1 if client else None, SUPPORT_PURPOSE))
    if codec == CYCLIC:
        count = reader.varint("number of indices", below=length + 1)
        if count == 0:
            raise Malformed("cyclic support needs a count of 1 or more, got 0")
        return Cyclic(length, count, round)
    if codec == DITHERED:
        return decode_dithered(length, round, reader, limits)
    if codec == FIELDED:
        return decode_fielded(length, round, reader, limits)
    if codec == KNOWN:
        count = reader.varint("number of known indices", below=length + 1)
        inner = reader.byte("codec of extra indices")
        if inner in (EVERY, SEEDED, KNOWN, CYCLIC, DITHERED, CONTEXT, FIELDED):
            raise Malformed(f"extra indices cannot be coded as {NAMES[inner]}")
        extra = _decode_explicit(inner, length, reader, limits)
        return Known(length, count, extra.chosen)
    return _decode_explicit(codec, length, reader, limits)


def _decode_explicit(codec: int, length: int, reader: Reader, limits: Limits) -> Explicit:
    if codec == NONE:
        return Explicit(length, np.empty(0, np.int64))
    if codec == GOLOMB:
        count = reader.varint("number of indices", below=length + 1)
        if count == 0:
            raise Malformed("Golomb support needs a count of 1 or more, got 0")
        return Explicit(length, read_golomb(reader, count, length, "support"))
    if codec == BITMAP:
        data = np.frombuffer(reader.take(-(-length // 8), "bitmap support"), np.uint8)
        bits = np.unpackbits(data, bitorder="little")
        if bits[length:].any() or not bits.any():
            raise Malformed("bitmap support: unused bits must be 0 and one coordinate or more be set")
        return Explicit(length, np.flatnonzero(bits))
    if codec == RUNS:
        return Explicit(length, _decode_runs(length, reader, limits))
    if codec == ENTROPY:
        return Explicit(length, _decode_entropy(length, reader, limits))
    if codec == SEGMENTS:
        chosen, cuts = _decode_segments(length, reader, limits)
        return Explicit(length, chosen, cuts)
    raise UnknownCodec(f"support codec must be one of {sorted(NAMES)}, got {codec}")


def _check_expansion(count: int, reader: Reader, limits: Limits) -> None:
    if count > limits.max_expansion * reader.size:
        raise LimitExceeded(
            f"{count} indices out of {reader.size} bytes: at most {limits.max_expansion} a byte allowed"
        )
