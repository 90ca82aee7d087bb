"""The op table in plain NumPy: readable first, the oracle for every other backend.

Bit streams are least significant bit first: bit i of a stream is bit ``i % 8`` of byte ``i // 8``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.journal import Journal
from gradwire.kernels.models import (
    ANS_LOW,
    HUFFMAN_BITS,
    INVALID,
    MODEL_BITS,
    ans_num_lanes,
    frequencies_sum_up,
    huffman_codes,
    huffman_table,
)

__all__ = [
    "accumulate_at",
    "add_finite",
    "add_topk",
    "ans_decode",
    "ans_encode",
    "bfloat16_bits",
    "count_symbols",
    "find",
    "find_intervals",
    "gaps",
    "gather",
    "golomb_bits",
    "golomb_decode",
    "golomb_encode",
    "golomb_encode_stretches",
    "huffman_decode",
    "huffman_encode",
    "join_float32",
    "merge",
    "occupied",
    "pack",
    "positions",
    "quantize_grid",
    "quotients",
    "signed_symbols",
    "split_float32",
    "subtract",
    "topk",
    "topk_blocks",
    "unpack",
]

SUMMED = 1 << 16
"""How many numbers are summed before their sum is added to those of others: fixed, however many threads there are."""
LANES = 4
"""How many sums of them are kept side by side."""


def add_lanes(sums: NDArray[Any]) -> NDArray[np.float64]:
    """Add the sums kept side by side, in order: (n * LANES,) -> (n,)."""
    total = np.zeros(sums.size // LANES)
    for lane in range(LANES):
        total += sums[lane::LANES]
    return total


MAX_GOLOMB = 1 << 48
"""Largest Golomb parameter; limits are at most 2^8 times this, so that no sum of a decoder leaves int64."""


def add_finite(total: NDArray[np.float32], addend: NDArray[np.float32], decay: float, journal: Journal) -> bool:
    """Set ``total`` to ``decay * total + addend``, in place, where all of that is finite.

    Args:
        total: (d,) float32, finite, C-contiguous, modified in place; left as it was, to float32 rounding, on False.
        addend: (d,) float32, not modified.
        decay: above 0, rounded to float32.
        journal: is told how to take it back, to float32 rounding; ``addend`` is needed for that.

    Returns:
        Whether all sums are finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        added = total + addend if decay == 1.0 else total * np.float32(decay) + addend
        square = np.dot(added, added)
    if not np.isfinite(square) and not np.isfinite(added).all():
        return False
    journal.note(partial(np.copyto, total, total.copy()))
    total[:] = added
    return True


def subtract(total: NDArray[np.float32], numbers: NDArray[np.float32], journal: Journal) -> None:
    """Set ``total`` to ``total - numbers``, in place.

    Args:
        total: (d,) float32, C-contiguous, modified in place.
        numbers: (d,) float32, not modified.
        journal: is told how to take it back, to float32 rounding; ``numbers`` is needed for that.
    """
    journal.note(partial(np.copyto, total, total.copy()))
    total -= numbers


def pieces_of(addend: NDArray[np.float32] | Sequence[NDArray[np.float32]]) -> Sequence[NDArray[np.float32]]:
    """The pieces of an addend: itself where it is one vector."""
    return [addend] if isinstance(addend, np.ndarray) else addend


def add_topk(
    total: NDArray[np.float32],
    addend: NDArray[np.float32] | Sequence[NDArray[np.float32]],
    decay: float,
    k: int,
    journal: Journal,
) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """Add like ``add_finite``, and select the k largest of what comes out like ``topk``.

    Args:
        total: as for ``add_finite``.
        addend: as for ``add_finite``; or several vectors that are it, one after the other.
        decay: as for ``add_finite``.
        k: as for ``topk``.
        journal: as for ``add_finite``.

    Returns:
        What ``topk`` returns, (m,) int64, and the numbers there, (m,) float32; or None where a sum is not finite.
    """
    if not add_finite(total, np.concatenate(pieces_of(addend)), decay, journal):
        return None
    chosen = topk(total, k)
    return chosen, total[chosen]


def find(haystack: NDArray[np.int64], needles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find where each of some increasing integers is among others.

    Args:
        haystack: (n,) int64, strictly increasing.
        needles: (k,) int64, increasing.

    Returns:
        (k,) int64: the place in ``haystack``, -1 where it is not there.
    """
    if not haystack.size:
        return np.full(needles.size, -1, np.int64)
    places = np.minimum(np.searchsorted(haystack, needles), haystack.size - 1)
    return np.where(haystack[places] == needles, places, -1)


def merge(
    indices: NDArray[np.int64], numbers: NDArray[np.float32], others: NDArray[np.int64], addends: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Add two vectors of which only the coordinates that may differ from zero are listed.

    Args:
        indices: (n,) int64, strictly increasing: where the first one has numbers.
        numbers: (n,) float32.
        others: (m,) int64, strictly increasing: where the second one has.
        addends: (m,) float32.

    Returns:
        The same of their sum, in float32; where both list a coordinate, it is numbers + addends. -0.0 becomes 0.0
        where only one does.
    """
    union = np.union1d(indices, others)
    total = np.zeros(union.size, np.float32)
    with np.errstate(over="ignore"):
        total[np.searchsorted(union, indices)] += numbers
        total[np.searchsorted(union, others)] += addends
    return union, total


def find_intervals(
    magnitudes: NDArray[np.float32], edges: NDArray[np.float64], zero: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.float64]]:
    """Find which interval each magnitude lies in, and add up what is in each.

    Args:
        magnitudes: (k,) float32, 0 or more, k >= 1.
        edges: (e,) float64 increasing, e below 32,768.
        zero: the interval of exact zeros.

    Returns:
        (k,) uint16, the number of edges that are not below the magnitude; and of each interval up to the last one used
        the count, int64, and the sum in float64: in each stretch of ``SUMMED`` every ``LANES``-th number is added up in
        order, these sums are, and then those of the stretches.
    """
    found = edges.size - np.searchsorted(edges, magnitudes)
    found[magnitudes == 0] = zero
    counts = np.bincount(found)
    sums = np.zeros(counts.size)
    for start in range(0, found.size, SUMMED):
        here = found[start : start + SUMMED]
        cells = here * LANES + np.arange(here.size) % LANES
        apart = np.bincount(cells, weights=magnitudes[start : start + SUMMED], minlength=counts.size * LANES)
        sums += add_lanes(apart)
    return found.astype(np.uint16), counts.astype(np.int64), sums


def occupied(values: NDArray[np.float32], most: int) -> NDArray[np.int64] | None:
    """Find where numbers are anything but 0.0.

    Args:
        values: (d,) float32, not modified.
        most: how many places are of use, 0 or more.

    Returns:
        (m,) int64 increasing, places of -0.0 among them; None where there are more than ``most``.
    """
    found = np.flatnonzero(np.ascontiguousarray(values).view(np.uint32))
    return found if found.size <= most else None


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


def topk_blocks(values: NDArray[np.float32], block: int, k: int, last: int) -> NDArray[np.int64]:
    """Select the entries of largest magnitude in each block of a vector.

    Args:
        values: (d,) float32, finite, not modified.
        block: coordinates to a block, 1 or more.
        k: how many in each whole block, 0 <= k <= block.
        last: how many in what is left over at the end, no more than that is long.

    Returns:
        (m,) int64 increasing: in each block what ``topk`` selects.
    """
    chosen = [np.empty(0, np.int64)]
    for start in range(0, values.size, block):
        inside = values[start : start + block]
        chosen.append(start + topk(inside, k if inside.size == block else last))
    return np.concatenate(chosen)


def quantize_grid(
    values: NDArray[np.float32],
    scales: NDArray[np.float32],
    num_symbols: int,
    dither: NDArray[np.float32] | None,
    zero_points: NDArray[np.uint16] | None = None,
) -> NDArray[np.uint16]:
    """Round values to the grid ``scale * (s - zero)``, s = 0 .. n - 1.

    Args:
        values: (k,) float32.
        scales: (k,) or (1,) float32 > 0: the grid step of each value.
        num_symbols: n >= 2.
        dither: (k,) float32 in [0, 1) for stochastic rounding (floor after adding it), or None for the
            nearest grid point (ties to even where zero is a point of the grid, upwards where it is not).
        zero_points: (k,) or (1,) uint16: the symbol of zero; None: zero is in the middle, (n - 1) / 2.

    Returns:
        (k,) uint16 symbols.
    """
    position = values / scales
    if num_symbols % 2 or zero_points is not None:
        rounded = np.rint(position) if dither is None else np.floor(position + dither)
    else:
        rounded = np.floor(position) if dither is None else np.floor(position - np.float32(0.5) + dither)
    zero = np.float32(num_symbols // 2) if zero_points is None else zero_points
    symbols: NDArray[np.uint16] = np.clip(rounded + zero, 0, num_symbols - 1).astype(np.uint16)
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


def signed_symbols(
    found: NDArray[np.uint16], ranks: NDArray[np.uint16], numbers: NDArray[np.float32]
) -> NDArray[np.uint16]:
    """Make symbols of magnitudes and signs.

    Args:
        found: (k,) uint16, each below n.
        ranks: (n,) uint16, each below 32,768.
        numbers: (k,) float32.

    Returns:
        (k,) uint16: ``2 * ranks[found]``, and 1 more where the number is below 0.
    """
    symbols = (2 * ranks)[found]
    symbols += numbers < 0
    return symbols


def pack(symbols: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    """Write the lower bits of symbols as fixed-width fields, one after the other.

    Args:
        symbols: (k,) integers, 0 or more; their bits from 2^width on are left out.
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


def gather(values: NDArray[np.float32], indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read the numbers at some indices.

    Args:
        values: (d,) float32, not modified.
        indices: (k,) int64.

    Returns:
        (k,) float32, newly made.
    """
    return values[indices]


def gaps(indices: NDArray[np.int64], out: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Count the skipped coordinates before each index.

    Args:
        indices: (k,) int64, strictly increasing, from 0 on.
        out: (k,) int64 to write to, or None.

    Returns:
        (k,) int64, each 0 or more: ``indices[i] - indices[i - 1] - 1`` with ``indices[-1] = -1``.
    """
    return np.subtract(np.diff(indices, prepend=-1), 1, out=out)


def _golomb_num_bits(gaps: NDArray[np.int64], m: int) -> int:
    width, short = remainder_code(m)
    quotients, remainders = np.divmod(gaps, m)
    extra = int(np.count_nonzero(remainders >= short)) if m > 1 else 0
    return int(quotients.sum()) + gaps.size * (1 + width) + extra


def golomb_bits(gaps: NDArray[np.int64], stops: NDArray[np.int64], parameters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the bits ``golomb_encode`` writes of each stretch of gaps with each of its parameters.

    Args:
        gaps: (k,) int64, 0 or more.
        stops: (s,) int64 increasing: where stretches end; the last one is k.
        parameters: (s, c) int64: Golomb parameters to try on each, 1 to 2^48.

    Returns:
        (s, c) int64: the numbers of bits.
    """
    stretches = np.split(gaps, stops[:-1])
    return np.array([[_golomb_num_bits(x, int(m)) for m in ms] for x, ms in zip(stretches, parameters, strict=True)])


def golomb_encode(gaps: NDArray[np.int64], m: int) -> NDArray[np.uint8]:
    """Write gaps in split Golomb code.

    Each gap is ``q * m + r``. With b = ceil(log2 m) and u = 2^b - m, the remainder r in truncated binary is a
    field of b - 1 bits, r if r < u else (r + u) >> 1, and in the second case one extra bit, (r + u) & 1. The
    stream holds all fields, then all extra bits, then each q as q zeros and a one. m = 1 has no remainders.

    Args:
        gaps: (k,) int64, 0 or more.
        m: the Golomb parameter, 1 to 2^48.

    Returns:
        uint8; unused bits of the last byte are 0.

    Source: Golomb 1966, "Run-length encodings"; the split into three streams is ours.
    """
    width, short = remainder_code(m)
    quotients, remainders = np.divmod(gaps, m)
    long = remainders >= short if m > 1 else np.zeros(gaps.size, bool)
    shifted = remainders + short
    heads = np.where(long, shifted >> 1, remainders)
    ends = np.cumsum(quotients + 1)
    unary = np.zeros(int(ends[-1]) if gaps.size else 0, np.uint8)
    unary[ends - 1] = 1
    extra = (shifted[long] & 1).astype(np.uint8)
    return np.packbits(np.concatenate([_field_bits(heads, width), extra, unary]), bitorder="little")


def golomb_encode_stretches(
    gaps: NDArray[np.int64], stops: NDArray[np.int64], parameters: NDArray[np.int64]
) -> list[NDArray[np.uint8]]:
    """Write each stretch of gaps in split Golomb code with its own parameter.

    Args:
        gaps: (k,) int64, 0 or more.
        stops: (s,) int64 increasing: where stretches end; the last one is k.
        parameters: (s,) int64, 1 to 2^48.

    Returns:
        What ``golomb_encode`` gives for each.
    """
    stretches = np.split(gaps, stops[:-1])
    return [golomb_encode(stretch, m) for stretch, m in zip(stretches, parameters.tolist(), strict=True)]


def count_symbols(symbols: NDArray[np.uint16], num_symbols: int) -> NDArray[np.int64]:
    """Count how often each symbol occurs.

    Args:
        symbols: (k,) uint16, each below ``num_symbols``.
        num_symbols: size of the alphabet.

    Returns:
        (num_symbols,) int64.
    """
    return np.bincount(symbols, minlength=num_symbols).astype(np.int64)


def quotients(gaps: NDArray[np.int64], shift: int, largest: int) -> NDArray[np.uint16]:
    """Divide by a power of two, with all that is larger than ``largest`` cut to it.

    Args:
        gaps: (k,) int64, 0 or more.
        shift: the power.
        largest: below 65,536.

    Returns:
        (k,) uint16: min(floor(gap / 2^shift), largest).
    """
    cut: NDArray[np.uint16] = np.minimum(gaps >> shift, largest).astype(np.uint16)
    return cut


def positions(
    quotients: NDArray[np.uint16], more: NDArray[np.int64], cap: int, low: NDArray[np.int64], shift: int, limit: int
) -> NDArray[np.int64] | None:
    """Add up gaps, of which upper and lower bits are given apart.

    Args:
        quotients: (k,) uint16, at most ``cap``: the upper bits of each gap.
        more: (l,) int64, 0 to ``limit``: what is to be added to those that equal ``cap``, in order.
        cap: see above.
        low: (k,) int64, below 2^shift: the lower bits.
        shift: how many lower bits there are, at most 32.
        limit: indices must stay below this, at most 2^56 and, shifted down, more than every number in ``more``.

    Returns:
        (k,) int64, strictly increasing: the indices with these gaps; None where one reaches ``limit``.
    """
    whole = quotients.astype(np.int64)
    whole[quotients == cap] += more
    steps = (whole << shift) + low + 1
    if float(steps.sum(dtype=np.float64)) > 2.0 * limit + 1:
        return None
    indices: NDArray[np.int64] = np.cumsum(steps) - 1
    return indices if not indices.size or indices[-1] < limit else None


def golomb_decode(
    data: NDArray[np.uint8],
    num_gaps: int,
    m: int,
    limit: int,
    start: int = 0,
    out: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], int] | None:
    """Read indices written by ``golomb_encode``.

    Args:
        data: bytes that start with the code and may hold more.
        num_gaps: how many gaps to read.
        m: the Golomb parameter.
        limit: indices must stay below this, at most 2^56.
        start: what is added to each index then, at most 2^56.
        out: (num_gaps,) int64, C-contiguous, to write to, or None; holds anything where nothing is read.

    Returns:
        The indices as (num_gaps,) int64 and the bytes read; None when the code does not fit in ``data``, an index
        reaches ``limit``, an unused bit is set, or m is not in 1 to 2^48 or limit above 2^56.
    """
    if num_gaps == 0:
        return np.empty(0, np.int64), 0
    window = golomb_window(data, num_gaps, m, limit)
    if window is None:
        return None
    width, short = remainder_code(m)
    bits = np.unpackbits(window[: -(-num_gaps * (width + 3) // 8)], bitorder="little")
    while np.count_nonzero(bits[num_gaps * (width + (m > 1)) :]) < num_gaps and bits.size < 8 * window.size:
        bits = np.unpackbits(window[: bits.size // 2], bitorder="little")  # four times as far
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
    if remainders.sum(dtype=np.float64) >= 2.0 * limit:  # roughly, so that the exact sum below stays in int64
        return None
    quotients = np.diff(ones, prepend=-1) - 1
    indices = np.cumsum(quotients * m + remainders + 1) - 1
    cursor += int(ones[-1]) + 1
    num_bytes = -(-cursor // 8)
    if indices[-1] >= limit or bits[cursor : 8 * num_bytes].any():
        return None
    return np.add(indices, start, out=out), num_bytes


def golomb_window(data: NDArray[np.uint8], num_gaps: int, m: int, limit: int) -> NDArray[np.uint8] | None:
    """Cut data to what a Golomb code of indices below ``limit`` can fill; None when there can be none.

    Each gap has a field, at most one extra bit and a one; all quotients together are at most
    ``(limit - num_gaps) // m`` zeros.
    """
    if not (1 <= m <= MAX_GOLOMB and num_gaps <= limit <= MAX_GOLOMB << 8):
        return None
    width, _ = remainder_code(m)
    if num_gaps * (width + 1) > 8 * data.size:
        return None
    most = num_gaps * (width + 2) + (limit - num_gaps) // m
    return data[: -(-most // 8)]


def remainder_code(m: int) -> tuple[int, int]:
    """Bits of a remainder's field, and the number of remainders that need no extra bit."""
    if m == 1:
        return 0, 0
    b = (m - 1).bit_length()
    return b - 1, (1 << b) - m


def ans_encode(symbols: NDArray[np.uint16], frequencies: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Write symbols in interleaved range asymmetric numeral system (rANS) code.

    There are 4 lanes when n >= 1024, else 1; symbol i belongs to lane i mod lanes. A lane's state x is 32 bits, in
    [2^16, 2^32), and starts at 2^16. With f the symbol's frequency and c the sum of the frequencies of all lower
    symbols, symbols n - 1 down to 0 are written so: if x >= f * 2^20, write the low 16 bits of x as a word and
    drop them; then x = (x // f) * 4096 + x mod f + c. The code is the final states, lane 0 first, each 4 bytes,
    then the words, last written first, each 2 bytes, all little-endian. No symbols are no bytes.

    Args:
        symbols: (n,) uint16.
        frequencies: (s,) uint32 that sum to 4096; s <= 2^16.

    Returns:
        uint8.

    Raises:
        ValueError: when a symbol has no frequency, or frequencies do not sum to 4096.

    Source: Duda 2013 (arXiv 1311.2540); Giesen 2014 (arXiv 1402.3392) for the interleaving.
    """
    if symbols.size == 0:
        return np.empty(0, np.uint8)
    check_symbols(symbols, frequencies)
    freqs: list[int] = frequencies.tolist()
    starts: list[int] = (np.cumsum(frequencies) - frequencies).tolist()
    lanes = ans_num_lanes(symbols.size)
    states = [ANS_LOW] * lanes
    words: list[int] = []
    lane = (symbols.size - 1) % lanes
    for symbol in reversed(symbols.tolist()):
        x, f = states[lane], freqs[symbol]
        if x >= f << 20:
            words.append(x & 0xFFFF)
            x >>= 16
        states[lane] = (x // f << MODEL_BITS) + x % f + starts[symbol]
        lane = (lane or lanes) - 1
    code = np.array(states, "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes()
    return np.frombuffer(code, np.uint8).copy()


def ans_decode(
    data: NDArray[np.uint8], num_symbols: int, frequencies: NDArray[np.uint32]
) -> tuple[NDArray[np.uint16], int] | None:
    """Read symbols written by ``ans_encode``.

    For i = 0 .. n - 1, on the state x of symbol i's lane: slot = x mod 4096; the symbol is the one with
    c <= slot < c + f; x = f * (x // 4096) + slot - c; if x < 2^16, x = x * 2^16 + the next word.

    Args:
        data: bytes that start with the code and may hold more.
        num_symbols: n.
        frequencies: (s,) uint32, s <= 2^16.

    Returns:
        The symbols as (n,) uint16 and the bytes read; None when words are missing, a state read is below 2^16, a lane
        does not end at 2^16 exactly, or frequencies do not sum to 4096.
    """
    if num_symbols == 0:
        return np.empty(0, np.uint16), 0
    states = ans_states(data, num_symbols)
    if states is None or not frequencies_sum_up(frequencies):
        return None
    lanes = states.size
    window = data[4 * lanes : 4 * lanes + 2 * num_symbols]  # a symbol takes one word or none
    words = iter(window[: window.size // 2 * 2].view("<u2").tolist())
    slots = np.repeat(np.arange(frequencies.size), frequencies).tolist()
    freqs: list[int] = frequencies.tolist()
    starts: list[int] = (np.cumsum(frequencies) - frequencies).tolist()
    x: list[int] = states.tolist()
    symbols = np.empty(num_symbols, np.uint16)
    num_words = 0
    for i in range(num_symbols):
        lane = i % lanes
        slot = x[lane] & 0xFFF
        symbol = slots[slot]
        state = freqs[symbol] * (x[lane] >> MODEL_BITS) + slot - starts[symbol]
        if state < ANS_LOW:
            word = next(words, None)
            if word is None:
                return None
            state = state << 16 | word
            num_words += 1
        x[lane] = state
        symbols[i] = symbol
    if any(state != ANS_LOW for state in x):
        return None
    return symbols, 4 * lanes + 2 * num_words


def ans_states(data: NDArray[np.uint8], num_symbols: int) -> NDArray[np.uint32] | None:
    """Read the states that an ANS code starts with; None when they are cut or below 2^16."""
    lanes = ans_num_lanes(num_symbols)
    if data.size < 4 * lanes:
        return None
    states = np.frombuffer(data[: 4 * lanes].tobytes(), "<u4").astype(np.uint32)
    return states if (states >= ANS_LOW).all() else None


def check_symbols(symbols: NDArray[np.uint16], frequencies: NDArray[np.uint32]) -> None:
    """Raise ValueError unless frequencies sum to 4096 and give each symbol 1 or more."""
    if not frequencies_sum_up(frequencies):
        raise ValueError(f"frequencies must sum to 4096, got {int(frequencies.sum(dtype=np.uint64))}")
    if int(symbols.max()) >= frequencies.size or not frequencies[symbols].all():
        raise ValueError("every symbol must have a frequency of 1 or more")


def huffman_encode(symbols: NDArray[np.uint16], lengths: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write symbols in canonical Huffman code.

    Codes are given out in order of length, then symbol: the first is all zeros, each next one is the one before
    plus one, with zeros added to reach its length. A code's first (most significant) bit is written first. One symbol
    alone has the code 0.

    Args:
        symbols: (n,) uint16.
        lengths: (s,) uint8, 12 or less, 0 for symbols that do not occur; a complete code, or 1 for one symbol alone.

    Returns:
        uint8; unused bits of the last byte are 0.

    Raises:
        ValueError: when a symbol has no code, or lengths are not valid.
    """
    if symbols.size == 0:
        return np.empty(0, np.uint8)
    codes = check_codes(symbols, lengths)[symbols]
    sizes = lengths[symbols].astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    bits = np.zeros(int(sizes.sum()), np.uint8)
    for bit in range(HUFFMAN_BITS):
        has = sizes > bit
        bits[starts[has] + bit] = codes[has] >> bit & 1
    return np.packbits(bits, bitorder="little")


def huffman_decode(
    data: NDArray[np.uint8], num_symbols: int, lengths: NDArray[np.uint8]
) -> tuple[NDArray[np.uint16], int] | None:
    """Read symbols written by ``huffman_encode``.

    Args:
        data: bytes that start with the code and may hold more.
        num_symbols: n.
        lengths: (s,) uint8, s <= 2^16.

    Returns:
        The symbols as (n,) uint16 and the bytes read; None when the code does not fit in ``data``, an unused bit is
        set, or lengths are neither a complete code of at most 12 bits nor 1 for one symbol alone.
    """
    if num_symbols == 0:
        return np.empty(0, np.uint16), 0
    found = huffman_table(lengths)
    if found is None or num_symbols > 8 * data.size:
        return None
    table: list[int] = found.tolist()
    window = data[: -(-num_symbols * HUFFMAN_BITS // 8)]
    padded = window.tobytes() + bytes(3)
    symbols = np.empty(num_symbols, np.uint16)
    position = 0
    for i in range(num_symbols):
        byte = position >> 3
        entry = table[int.from_bytes(padded[byte : byte + 3], "little") >> (position & 7) & 0xFFF]
        position += entry & 0xF
        if entry & INVALID or position > 8 * window.size:
            return None
        symbols[i] = entry >> 8
    num_bytes = -(-position // 8)
    if position % 8 and window[num_bytes - 1] >> position % 8:
        return None
    return symbols, num_bytes


def check_codes(symbols: NDArray[np.uint16], lengths: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Make the canonical codes; raise ValueError unless each symbol has one."""
    codes = huffman_codes(lengths)
    if int(symbols.max()) >= lengths.size or not lengths[symbols].all():
        raise ValueError("every symbol must have a code length of 1 or more")
    return codes


def split_float32(bits: NDArray[np.uint32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Take float32 numbers apart: exponents, which entropy coding shrinks, and all other bits, which it cannot.

    Args:
        bits: (n,) uint32, the numbers' bits.

    Returns:
        The exponents as (n,) uint8, and (3 n,) uint8: for each number ``sign << 23 | mantissa`` as 3 little-endian
        bytes.
    """
    exponents = (bits >> np.uint32(23)).astype(np.uint8)
    rest = (bits >> np.uint32(8)) & np.uint32(0x800000) | bits & np.uint32(0x7FFFFF)
    return exponents, np.ascontiguousarray(rest.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3]).reshape(-1)


def join_float32(exponents: NDArray[np.uint8], rest: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Put together what ``split_float32`` took apart.

    Args:
        exponents: (n,) uint8.
        rest: (3 n,) uint8.

    Returns:
        (n,) uint32.
    """
    wide = np.zeros((exponents.size, 4), np.uint8)
    wide[:, :3] = rest.reshape(-1, 3)
    low = wide.reshape(-1).view("<u4").astype(np.uint32)
    high = exponents.astype(np.uint32) << np.uint32(23)
    bits: NDArray[np.uint32] = (low & np.uint32(0x800000)) << np.uint32(8) | high | low & np.uint32(0x7FFFFF)
    return bits


def _field_bits(fields: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    shifts = np.arange(width, dtype=np.uint64)
    return ((fields.astype(np.uint64)[:, None] >> shifts) & np.uint64(1)).astype(np.uint8).reshape(-1)


def _fields(bits: NDArray[np.uint8], num_fields: int, width: int) -> NDArray[np.int64]:
    weights = np.left_shift(np.int64(1), np.arange(width, dtype=np.int64))
    return bits[: num_fields * width].reshape(num_fields, width).astype(np.int64) @ weights
