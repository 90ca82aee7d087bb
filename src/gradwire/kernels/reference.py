"""The op table in plain NumPy: readable first, the oracle for every other backend.

Bit streams are least significant bit first: bit i of a stream is bit ``i % 8`` of byte ``i // 8``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "accumulate_at",
    "bfloat16_bits",
    "gaps",
    "golomb_decode",
    "golomb_encode",
    "golomb_num_bits",
    "pack",
    "quantize_centred",
    "topk",
    "unpack",
]


def topk(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Select the k entries of largest magnitude.

    Args:
        values: (d,) float32, finite, not modified.
        k: how many, 0 <= k <= d.

    Returns:
        (m,) int64 increasing, m <= k: exact zeros are never selected, ties go to the lower index.
    """
    if k == 0 or values.size == 0:
        return np.empty(0, np.int64)
    magnitudes = np.abs(values)
    kth = np.partition(magnitudes, values.size - k)[values.size - k]
    if kth == 0:
        return np.flatnonzero(magnitudes)
    above = np.flatnonzero(magnitudes > kth)
    ties = np.flatnonzero(magnitudes == kth)[: k - above.size]
    return np.sort(np.concatenate([above, ties]))


def quantize_centred(
    values: NDArray[np.float32],
    scales: NDArray[np.float32],
    num_symbols: int,
    dither: NDArray[np.float32] | None,
) -> NDArray[np.uint16]:
    """Round values to the grid ``scale * (s - (n - 1) / 2)``, s = 0 .. n - 1.

    Args:
        values: (k,) float32.
        scales: (k,) or (1,) float32 > 0: the grid step of each value.
        num_symbols: n >= 2.
        dither: (k,) float32 in [0, 1) for stochastic rounding (floor after adding it), or None for the
            nearest grid point (ties to even where n is odd, upwards where it is even).

    Returns:
        (k,) uint16 symbols.
    """
    position = values / scales
    if num_symbols % 2:
        rounded = np.rint(position) if dither is None else np.floor(position + dither)
    else:
        rounded = np.floor(position) if dither is None else np.floor(position - np.float32(0.5) + dither)
    symbols: NDArray[np.uint16] = np.clip(rounded + np.float32(num_symbols // 2), 0, num_symbols - 1).astype(np.uint16)
    return symbols


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, to nearest even; what would overflow stays at the largest finite number.

    Args:
        values: (k,) float32, finite.

    Returns:
        (k,) uint16: the bits.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(rounded & 0x7F80 == 0x7F80, (rounded & 0x8000) | 0x7F7F, rounded).astype(np.uint16)


def accumulate_at(
    out: NDArray[np.float32], indices: NDArray[np.int64], numbers: NDArray[np.float32], weight: float
) -> None:
    """Add ``weight * numbers`` to ``out`` at distinct indices, in place, in float32.

    Args:
        out: (d,) float32, modified.
        indices: (k,) int64, distinct.
        numbers: (k,) float32.
        weight: the factor, rounded to float32.
    """
    out[indices] += numbers if weight == 1.0 else numbers * np.float32(weight)


def pack(symbols: NDArray[np.uint16], width: int) -> NDArray[np.uint8]:
    """Write symbols as fixed-width fields, one after the other.

    Args:
        symbols: (k,) unsigned integers below 2^width.
        width: bits to a field, 0 to 32.

    Returns:
        (ceil(k * width / 8),) uint8; unused bits of the last byte are 0.
    """
    return np.packbits(_field_bits(symbols, width), bitorder="little")


def unpack(data: NDArray[np.uint8], num_symbols: int, width: int) -> NDArray[np.int64]:
    """Read fixed-width fields back.

    Args:
        data: at least ceil(num_symbols * width / 8) bytes.
        num_symbols: how many fields.
        width: bits to a field, 0 to 32.

    Returns:
        (num_symbols,) int64.
    """
    bits = np.unpackbits(data, count=num_symbols * width, bitorder="little")
    return _fields(bits, num_symbols, width)


def gaps(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the skipped coordinates before each index.

    Args:
        indices: (k,) int64, strictly increasing, from 0 on.

    Returns:
        (k,) int64, each 0 or more: ``indices[i] - indices[i - 1] - 1`` with ``indices[-1] = -1``.
    """
    return np.diff(indices, prepend=-1) - 1


def golomb_num_bits(gaps: NDArray[np.int64], m: int) -> int:
    """Count the bits ``golomb_encode`` writes.

    Args:
        gaps: (k,) int64, 0 or more.
        m: the Golomb parameter, 1 or more.

    Returns:
        The number of bits.
    """
    width, short = _remainder_code(m)
    quotients, remainders = np.divmod(gaps, m)
    extra = int(np.count_nonzero(remainders >= short)) if m > 1 else 0
    return int(quotients.sum()) + gaps.size * (1 + width) + extra


def golomb_encode(gaps: NDArray[np.int64], m: int) -> NDArray[np.uint8]:
    """Write gaps in split Golomb code.

    Each gap is ``q * m + r``. With b = ceil(log2 m) and u = 2^b - m, the remainder r in truncated binary is a
    field of b - 1 bits, r if r < u else (r + u) >> 1, and in the second case one extra bit, (r + u) & 1. The
    stream holds all fields, then all extra bits, then each q as q zeros and a one. m = 1 has no remainders.

    Args:
        gaps: (k,) int64, 0 or more.
        m: the Golomb parameter, 1 or more.

    Returns:
        uint8; unused bits of the last byte are 0.

    Source: Golomb 1966, "Run-length encodings"; the split into three streams is ours.
    """
    width, short = _remainder_code(m)
    quotients, remainders = np.divmod(gaps, m)
    long = remainders >= short if m > 1 else np.zeros(gaps.size, bool)
    shifted = remainders + short
    heads = np.where(long, shifted >> 1, remainders)
    ends = np.cumsum(quotients + 1)
    unary = np.zeros(int(ends[-1]) if gaps.size else 0, np.uint8)
    unary[ends - 1] = 1
    extra = (shifted[long] & 1).astype(np.uint8)
    return np.packbits(np.concatenate([_field_bits(heads, width), extra, unary]), bitorder="little")


def golomb_decode(data: NDArray[np.uint8], num_gaps: int, m: int, limit: int) -> tuple[NDArray[np.int64], int] | None:
    """Read indices written by ``golomb_encode``.

    Args:
        data: bytes that start with the code and may hold more.
        num_gaps: how many gaps to read, 1 or more.
        m: the Golomb parameter, 1 or more.
        limit: indices must stay below this.

    Returns:
        The indices as (num_gaps,) int64 and the bytes read; None when the code does not fit in ``data``, an index
        reaches ``limit`` or an unused bit is set.
    """
    width, short = _remainder_code(m)
    if num_gaps * (width + 1) > 8 * data.size:
        return None
    bits = np.unpackbits(data, bitorder="little")
    heads = _fields(bits, num_gaps, width)
    cursor = num_gaps * width
    remainders = heads
    if m > 1:
        long = heads >= short
        extra = bits[cursor : cursor + int(np.count_nonzero(long))].astype(np.int64)
        cursor += int(np.count_nonzero(long))
        if cursor > bits.size:
            return None
        remainders = heads.copy()
        remainders[long] = 2 * heads[long] + extra - short
    ones = np.flatnonzero(bits[cursor:])[:num_gaps]
    if ones.size < num_gaps or (int(ones[-1]) + 1 - num_gaps) * m + num_gaps > limit:
        return None
    quotients = np.diff(ones, prepend=-1) - 1
    indices = np.cumsum(quotients * m + remainders + 1) - 1
    cursor += int(ones[-1]) + 1
    num_bytes = -(-cursor // 8)
    if indices[-1] >= limit or bits[cursor : 8 * num_bytes].any():
        return None
    return indices, num_bytes


def _remainder_code(m: int) -> tuple[int, int]:
    """Bits of a remainder's field, and the number of remainders that need no extra bit."""
    if m == 1:
        return 0, 0
    b = (m - 1).bit_length()
    return b - 1, (1 << b) - m


def _field_bits(fields: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    shifts = np.arange(width, dtype=np.uint32)
    return ((fields.astype(np.uint32)[:, None] >> shifts) & np.uint32(1)).astype(np.uint8).reshape(-1)


def _fields(bits: NDArray[np.uint8], num_fields: int, width: int) -> NDArray[np.int64]:
    weights = np.left_shift(np.int64(1), np.arange(width, dtype=np.int64))
    return bits[: num_fields * width].reshape(num_fields, width).astype(np.int64) @ weights
