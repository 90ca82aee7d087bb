"""The op table as callers see it: each op picks its backend by the size of its input.

The first small inputs run the plain NumPy and Python of ``reference.py``, at once. From the first large one on, or once
many small ones have been worked through, ops run their compiled twins in ``cpu.py``, ``select.py`` and others, which
import Numba at the first use and give the same bits. What each op computes is said in ``reference.py``,
``range_reference.py`` and ``models.py``.
The environment variable ``GRADWIRE_KERNELS``, read when this is imported, forces one backend: ``reference`` or ``cpu``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import ConfigError
from gradwire.fields import Field
from gradwire.journal import Journal
from gradwire.kernels import contexts_reference, fielded_reference, fires_reference, models, range_reference, reference
from gradwire.kernels.fires_reference import Thresholds

__all__ = [
    "accumulate_at",
    "add_finite",
    "add_topk",
    "ans_bits",
    "ans_decode",
    "ans_encode",
    "bfloat16_bits",
    "choose_levels",
    "count_symbols",
    "decode_bits",
    "decode_fires",
    "decode_levels",
    "decode_numbers",
    "encode_bits",
    "encode_fires",
    "encode_levels",
    "encode_numbers",
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
    "huffman_lengths",
    "join_float32",
    "merge",
    "normalise_frequencies",
    "occupied",
    "outside",
    "pack",
    "positions",
    "quantize_grid",
    "quotients",
    "round_known",
    "signed_symbols",
    "split_float32",
    "subtract",
    "sum_magnitudes",
    "topk",
    "topk_blocks",
    "unpack",
]

LOOP_FROM = 4096
"""Elements from which a compiled kernel is worth loading (half a second) where the reference is a Python loop."""
VECTOR_FROM = 16384
"""The same where the reference is NumPy."""
BUDGET = 16.0
"""How often small inputs may add up to these numbers before compiled kernels are loaded for them too."""

BACKEND = os.environ.get("GRADWIRE_KERNELS", "")

_worked = 0.0
_loaded = False


def _compiled(num_elements: int, threshold: int) -> bool:
    """Whether to run a compiled kernel: always, once they are loaded."""
    global _worked, _loaded
    if BACKEND:
        if BACKEND not in ("reference", "cpu"):
            raise ConfigError(f"GRADWIRE_KERNELS must be 'reference' or 'cpu', got {BACKEND!r}")
        return BACKEND == "cpu"
    if not _loaded:
        _worked += num_elements / threshold
        _loaded = num_elements >= threshold or _worked > BUDGET
    return _loaded


def accumulate_at(
    out: NDArray[np.float32], indices: NDArray[np.int64], numbers: NDArray[np.float32], weight: float
) -> None:
    """Add ``weight * numbers`` to ``out`` at distinct indices, in place, in float32."""
    if _compiled(indices.size, VECTOR_FROM):
        import gradwire.kernels.dense as dense

        dense.accumulate_at(out, indices, numbers, weight)
    else:
        reference.accumulate_at(out, indices, numbers, weight)


def add_finite(total: NDArray[np.float32], addend: NDArray[np.float32], decay: float, journal: Journal) -> bool:
    """Set ``total`` to ``decay * total + addend``, in place, where all of that is finite; the journal can undo it."""
    if _compiled(total.size, VECTOR_FROM):
        import gradwire.kernels.dense as dense

        return dense.add_finite(total, addend, decay, journal)
    return reference.add_finite(total, addend, decay, journal)


def add_topk(
    total: NDArray[np.float32],
    addend: NDArray[np.float32] | Sequence[NDArray[np.float32]],
    decay: float,
    k: int,
    journal: Journal,
) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """Add like ``add_finite``, and select the k largest of what comes out; None where a sum is not finite."""
    if _compiled(total.size, VECTOR_FROM):
        import gradwire.kernels.select as select

        return select.add_topk(total, addend, decay, k, journal)
    return reference.add_topk(total, addend, decay, k, journal)


def ans_bits(counts: NDArray[np.int64], frequencies: NDArray[np.uint32]) -> float:
    """Estimate the bits ``ans_encode`` writes, closely enough to choose by."""
    return models.ans_bits(counts, frequencies)


def ans_decode(
    data: NDArray[np.uint8], num_symbols: int, frequencies: NDArray[np.uint32]
) -> tuple[NDArray[np.uint16], int] | None:
    """Read symbols written by ``ans_encode``."""
    if _compiled(num_symbols, LOOP_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.ans_decode(data, num_symbols, frequencies)
    return reference.ans_decode(data, num_symbols, frequencies)


def ans_encode(symbols: NDArray[np.uint16], frequencies: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Write symbols in interleaved range asymmetric numeral system (rANS) code."""
    if _compiled(symbols.size, LOOP_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.ans_encode(symbols, frequencies)
    return reference.ans_encode(symbols, frequencies)


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, to nearest even; what would overflow stays at the largest finite number."""
    return reference.bfloat16_bits(values)


def choose_levels(
    amounts: NDArray[np.int32], lengths: NDArray[np.int64], columns: NDArray[np.int64], most: int, price: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Choose levels for numbers in steps times 256, by squared error and cost, and write them."""
    if _compiled(amounts.size, LOOP_FROM):
        import gradwire.kernels.contexts as contexts

        return contexts.choose_levels(amounts, lengths, columns, most, price)
    return contexts_reference.choose_levels(amounts, lengths, columns, most, price)


def count_symbols(symbols: NDArray[np.uint16], num_symbols: int) -> NDArray[np.int64]:
    """Count how often each symbol occurs."""
    if _compiled(symbols.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.count_symbols(symbols, num_symbols)
    return reference.count_symbols(symbols, num_symbols)


def decode_bits(
    data: NDArray[np.uint8], contexts: NDArray[np.uint32], ones: NDArray[np.uint64], zeros: NDArray[np.uint64]
) -> NDArray[np.uint8] | None:
    """Read bits written by ``encode_bits``, as many as there are contexts."""
    if _compiled(contexts.size, LOOP_FROM):
        import gradwire.kernels.range_coder as range_coder

        return range_coder.decode_bits(data, contexts, ones, zeros)
    return range_reference.decode_bits(data, contexts, ones, zeros)


def encode_bits(
    bits: NDArray[np.uint8], contexts: NDArray[np.uint32], ones: NDArray[np.uint64], zeros: NDArray[np.uint64]
) -> NDArray[np.uint8]:
    """Write bits in range code, each in a context that learns from the bits written in it before."""
    if _compiled(bits.size, LOOP_FROM):
        import gradwire.kernels.range_coder as range_coder

        return range_coder.encode_bits(bits, contexts, ones, zeros)
    return range_reference.encode_bits(bits, contexts, ones, zeros)


def decode_fires(
    data: NDArray[np.uint8],
    length: int,
    num_fires: int,
    level: int,
    which: Thresholds,
    field: Field | None = None,
) -> NDArray[np.int64] | None:
    """Read what ``encode_fires`` wrote."""
    args = data, length, num_fires, level, which
    if _compiled(length, LOOP_FROM):
        import gradwire.kernels.fielded as fielded
        import gradwire.kernels.fires as fires

        return fires.decode_fires(*args) if field is None else fielded.decode_fires(*args, field)
    return fires_reference.decode_fires(*args) if field is None else fielded_reference.decode_fires(*args, field)


def decode_levels(
    data: NDArray[np.uint8], lengths: NDArray[np.int64], columns: NDArray[np.int64], most: int
) -> NDArray[np.int32] | None:
    """Read levels written by ``encode_levels``."""
    if _compiled(int(lengths.sum()), LOOP_FROM):
        import gradwire.kernels.contexts as contexts

        return contexts.decode_levels(data, lengths, columns, most)
    return contexts_reference.decode_levels(data, lengths, columns, most)


def encode_levels(
    levels: NDArray[np.int32], lengths: NDArray[np.int64], columns: NDArray[np.int64], most: int
) -> NDArray[np.uint8]:
    """Write levels of a grid by contexts of their rows, columns and neighbours."""
    if _compiled(levels.size, LOOP_FROM):
        import gradwire.kernels.contexts as contexts

        return contexts.encode_levels(levels, lengths, columns, most)
    return contexts_reference.encode_levels(levels, lengths, columns, most)


def encode_fires(
    length: int, indices: NDArray[np.int64], level: int, which: Thresholds, field: Field | None = None
) -> NDArray[np.uint8]:
    """Write which of the coordinates whose thresholds are small enough fire, beside a field where one is given."""
    args = length, indices, level, which
    if _compiled(length, LOOP_FROM):
        import gradwire.kernels.fielded as fielded
        import gradwire.kernels.fires as fires

        return fires.encode_fires(*args) if field is None else fielded.encode_fires(*args, field)
    return fires_reference.encode_fires(*args) if field is None else fielded_reference.encode_fires(*args, field)


def decode_numbers(data: NDArray[np.uint8], num_numbers: int, largest: int) -> NDArray[np.uint32] | None:
    """Read integers written by ``encode_numbers``."""
    if _compiled(num_numbers, LOOP_FROM):
        import gradwire.kernels.range_coder as range_coder

        return range_coder.decode_numbers(data, num_numbers, largest)
    return range_reference.decode_numbers(data, num_numbers, largest)


def encode_numbers(numbers: NDArray[np.uint32], largest: int) -> NDArray[np.uint8]:
    """Write integers above 0, most of which are 1, in range code."""
    if _compiled(numbers.size, LOOP_FROM):
        import gradwire.kernels.range_coder as range_coder

        return range_coder.encode_numbers(numbers, largest)
    return range_reference.encode_numbers(numbers, largest)


def find(haystack: NDArray[np.int64], needles: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find where each of some increasing integers is among others."""
    if _compiled(haystack.size + needles.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.find(haystack, needles)
    return reference.find(haystack, needles)


def find_intervals(
    magnitudes: NDArray[np.float32], edges: NDArray[np.float64], zero: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.float64]]:
    """Find which interval each magnitude lies in, and add up what is in each."""
    if _compiled(magnitudes.size, VECTOR_FROM):
        import gradwire.kernels.dense as dense

        return dense.find_intervals(magnitudes, edges, zero)
    return reference.find_intervals(magnitudes, edges, zero)


def gaps(indices: NDArray[np.int64], out: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Count the skipped coordinates before each index."""
    if _compiled(indices.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.gaps(indices, out)
    return reference.gaps(indices, out)


def gather(values: NDArray[np.float32], indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read the numbers at some indices."""
    if _compiled(indices.size, VECTOR_FROM):
        import gradwire.kernels.dense as dense

        return dense.gather(values, indices)
    return reference.gather(values, indices)


def golomb_bits(gaps: NDArray[np.int64], stops: NDArray[np.int64], parameters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the bits ``golomb_encode`` writes of each stretch of gaps with each of its parameters."""
    if _compiled(gaps.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.golomb_bits(gaps, stops, parameters)
    return reference.golomb_bits(gaps, stops, parameters)


def golomb_decode(
    data: NDArray[np.uint8],
    num_gaps: int,
    m: int,
    limit: int,
    start: int = 0,
    out: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], int] | None:
    """Read indices written by ``golomb_encode``."""
    if _compiled(num_gaps, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.golomb_decode(data, num_gaps, m, limit, start, out)
    return reference.golomb_decode(data, num_gaps, m, limit, start, out)


def golomb_encode(gaps: NDArray[np.int64], m: int) -> NDArray[np.uint8]:
    """Write gaps in split Golomb code."""
    if _compiled(gaps.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.golomb_encode(gaps, m)
    return reference.golomb_encode(gaps, m)


def golomb_encode_stretches(
    gaps: NDArray[np.int64], stops: NDArray[np.int64], parameters: NDArray[np.int64]
) -> list[NDArray[np.uint8]]:
    """Write each stretch of gaps in split Golomb code with its own parameter."""
    if _compiled(gaps.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.golomb_encode_stretches(gaps, stops, parameters)
    return reference.golomb_encode_stretches(gaps, stops, parameters)


def huffman_decode(
    data: NDArray[np.uint8], num_symbols: int, lengths: NDArray[np.uint8]
) -> tuple[NDArray[np.uint16], int] | None:
    """Read symbols written by ``huffman_encode``."""
    if _compiled(num_symbols, LOOP_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.huffman_decode(data, num_symbols, lengths)
    return reference.huffman_decode(data, num_symbols, lengths)


def huffman_encode(symbols: NDArray[np.uint16], lengths: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write symbols in canonical Huffman code."""
    if _compiled(symbols.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.huffman_encode(symbols, lengths)
    return reference.huffman_encode(symbols, lengths)


def huffman_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Find the code lengths of least total cost, none above 12 bits."""
    if _compiled(counts.size, LOOP_FROM):
        import gradwire.kernels.packages as packages

        return packages.huffman_lengths(counts)
    return models.huffman_lengths(counts)


def join_float32(exponents: NDArray[np.uint8], rest: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Put together what ``split_float32`` took apart."""
    if _compiled(exponents.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.join_float32(exponents, rest)
    return reference.join_float32(exponents, rest)


def merge(
    indices: NDArray[np.int64], numbers: NDArray[np.float32], others: NDArray[np.int64], addends: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Add two vectors of which only the coordinates that may differ from zero are listed."""
    if _compiled(indices.size + others.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.merge(indices, numbers, others, addends)
    return reference.merge(indices, numbers, others, addends)


def normalise_frequencies(counts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Scale counts to frequencies that sum to 4096, of nearly the least coding cost there is."""
    if _compiled(counts.size, LOOP_FROM) and int(counts.sum()) < models.SCALED_BELOW:
        import gradwire.kernels.frequencies as frequencies

        return frequencies.normalise_frequencies(counts)
    return models.normalise_frequencies(counts)


def occupied(values: NDArray[np.float32], most: int) -> NDArray[np.int64] | None:
    """Find where numbers are anything but 0.0; None where that is more than ``most`` places."""
    if _compiled(values.size, VECTOR_FROM):
        import gradwire.kernels.occupied as occupied

        return occupied.occupied(values, most)
    return reference.occupied(values, most)


def outside(indices: NDArray[np.int64], level: int, which: Thresholds, field: Field | None = None) -> NDArray[np.bool_]:
    """Tell which coordinates have thresholds above what ``encode_fires`` codes."""
    if _compiled(indices.size, LOOP_FROM):
        import gradwire.kernels.fielded as fielded
        import gradwire.kernels.fires as fires

        return fires.outside(indices, level, which) if field is None else fielded.outside(indices, level, which, field)
    if field is not None:
        return fielded_reference.outside(indices, level, which, field)
    return fires_reference.outside(indices, level, which)


def pack(symbols: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    """Write the lower bits of symbols as fixed-width fields, one after the other."""
    if _compiled(symbols.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.pack(symbols, width)
    return reference.pack(symbols, width)


def positions(
    quotients: NDArray[np.uint16], more: NDArray[np.int64], cap: int, low: NDArray[np.int64], shift: int, limit: int
) -> NDArray[np.int64] | None:
    """Add up gaps, of which upper and lower bits are given apart."""
    if _compiled(quotients.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.positions(quotients, more, cap, low, shift, limit)
    return reference.positions(quotients, more, cap, low, shift, limit)


def quantize_grid(
    values: NDArray[np.float32],
    scales: NDArray[np.float32],
    num_symbols: int,
    dither: NDArray[np.float32] | None,
    zero_points: NDArray[np.uint16] | None = None,
) -> NDArray[np.uint16]:
    """Round values to the grid ``scale * (s - zero)``, s = 0 .. n - 1, zero a zero point or (n - 1) / 2."""
    return reference.quantize_grid(values, scales, num_symbols, dither, zero_points)


def quotients(gaps: NDArray[np.int64], shift: int, largest: int) -> NDArray[np.uint16]:
    """Divide by a power of two, with all that is larger than ``largest`` cut to it."""
    if _compiled(gaps.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.quotients(gaps, shift, largest)
    return reference.quotients(gaps, shift, largest)


def round_known(
    values: NDArray[np.float32], step: float, which: Thresholds
) -> tuple[NDArray[np.int64], NDArray[np.int32]] | None:
    """Round numbers to multiples of a step, up where their thresholds are below what would be lost."""
    if _compiled(values.size, VECTOR_FROM):
        import gradwire.kernels.fires as fires

        return fires.round_known(values, step, which)
    return fires_reference.round_known(values, step, which)


def signed_symbols(
    found: NDArray[np.uint16], ranks: NDArray[np.uint16], numbers: NDArray[np.float32]
) -> NDArray[np.uint16]:
    """Make symbols of magnitudes and signs."""
    if _compiled(found.size, VECTOR_FROM):
        import gradwire.kernels.dense as dense

        return dense.signed_symbols(found, ranks, numbers)
    return reference.signed_symbols(found, ranks, numbers)


def split_float32(bits: NDArray[np.uint32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Take float32 numbers apart: exponents, which entropy coding shrinks, and all other bits, which it cannot."""
    if _compiled(bits.size, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.split_float32(bits)
    return reference.split_float32(bits)


def subtract(total: NDArray[np.float32], numbers: NDArray[np.float32], journal: Journal) -> None:
    """Set ``total`` to ``total - numbers``, in place; the journal can undo it."""
    if _compiled(total.size, VECTOR_FROM):
        import gradwire.kernels.dense as dense

        dense.subtract(total, numbers, journal)
    else:
        reference.subtract(total, numbers, journal)


def sum_magnitudes(values: NDArray[np.float32]) -> tuple[float, float]:
    """Add up magnitudes, in an order of its own, and find the largest."""
    if _compiled(values.size, VECTOR_FROM):
        import gradwire.kernels.fires as fires

        return fires.sum_magnitudes(values)
    return fires_reference.sum_magnitudes(values)


def topk(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Select the k entries of largest magnitude."""
    if _compiled(values.size, VECTOR_FROM):
        import gradwire.kernels.select as select

        return select.topk(values, k)
    return reference.topk(values, k)


def topk_blocks(values: NDArray[np.float32], block: int, k: int, last: int) -> NDArray[np.int64]:
    """Select the entries of largest magnitude in each block of a vector."""
    if _compiled(values.size, LOOP_FROM):
        import gradwire.kernels.select_blocks as select_blocks

        return select_blocks.topk_blocks(values, block, k, last)
    return reference.topk_blocks(values, block, k, last)


def unpack(data: NDArray[np.uint8], num_symbols: int, width: int) -> NDArray[np.int64]:
    """Read fixed-width fields back."""
    if _compiled(num_symbols, VECTOR_FROM):
        import gradwire.kernels.cpu as cpu

        return cpu.unpack(data, num_symbols, width)
    return reference.unpack(data, num_symbols, width)
