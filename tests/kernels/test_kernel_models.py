"""Frequencies, code lengths and costs: valid, deterministic and close to the best there is."""

from __future__ import annotations

import heapq
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from examples import up_to
from gradwire.kernels import frequencies, models, ops, packages

counts_lists = st.lists(
    st.one_of(st.just(0), st.integers(1, 20), st.integers(1, 2**40)), min_size=1, max_size=300
).filter(any)


def cost(counts: NDArray[np.int64], frequencies: NDArray[np.uint32]) -> float:
    used = counts > 0
    return float((counts[used] * (12 - np.log2(frequencies[used]))).sum())


@settings(max_examples=up_to(200), deadline=None)
@given(counts_lists)
def test_frequencies_are_valid(values: list[int]) -> None:
    counts = np.array(values, np.int64)
    frequencies = ops.normalise_frequencies(counts)
    assert frequencies.dtype == np.uint32
    assert frequencies.sum() == 4096
    assert ((frequencies > 0) == (counts > 0)).all()
    assert (frequencies == ops.normalise_frequencies(counts.copy())).all()


def best_cost(counts: list[int]) -> float:
    """The least cost over all frequencies, by handing out 4096 slots one at a time to whom they help most."""
    heap = [(-c * math.log2(2), i) for i, c in enumerate(counts)]
    frequencies = [1] * len(counts)
    heapq.heapify(heap)
    for _ in range(4096 - len(counts)):
        _, i = heapq.heappop(heap)
        frequencies[i] += 1
        heapq.heappush(heap, (-counts[i] * math.log2((frequencies[i] + 1) / frequencies[i]), i))
    return sum(c * (12 - math.log2(f)) for c, f in zip(counts, frequencies, strict=True))


@settings(max_examples=up_to(60), deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=300))
def test_frequencies_cost_almost_the_least(values: list[int]) -> None:
    counts = np.array(values, np.int64)
    assert cost(counts, ops.normalise_frequencies(counts)) <= best_cost(values) * (1 + 1e-6) + 1e-3


def test_frequencies_at_the_ends() -> None:
    assert ops.normalise_frequencies(np.array([0, 7, 0])).tolist() == [0, 4096, 0]
    assert ops.normalise_frequencies(np.array([2**40, 1])).tolist() == [4095, 1]
    assert (ops.normalise_frequencies(np.arange(1, 4097) ** 3) == 1).all()
    assert ops.normalise_frequencies(np.array([10**9] + [1] * 4000)).tolist() == [96] + [1] * 4000
    with pytest.raises(ValueError, match="got 0"):
        ops.normalise_frequencies(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="got 4097"):
        ops.normalise_frequencies(np.ones(4097, np.int64))


def test_ans_bits() -> None:
    counts, frequencies = np.array([3, 0, 1]), np.array([2048, 0, 2048], np.uint32)
    assert ops.ans_bits(counts, frequencies) == 32 + 4
    assert ops.ans_bits(1024 * counts, frequencies) == 4 * 32 + 4096
    assert ops.ans_bits(np.array([1, 1]), np.array([4096, 0], np.uint32)) == math.inf
    assert ops.ans_bits(np.array([0, 0]), np.array([4096, 0], np.uint32)) == 0


def huffman_depths(counts: list[int]) -> list[int]:
    """Depths in an unlimited Huffman tree, the textbook way."""
    heap: list[tuple[int, int, list[int]]] = [(c, i, [i]) for i, c in enumerate(counts)]
    heapq.heapify(heap)
    ids = itertools.count(len(counts))
    depths = [0] * len(counts)
    while len(heap) > 1:
        a, b = heapq.heappop(heap), heapq.heappop(heap)
        for i in a[2] + b[2]:
            depths[i] += 1
        heapq.heappush(heap, (a[0] + b[0], next(ids), a[2] + b[2]))
    return depths


@settings(max_examples=up_to(200), deadline=None)
@given(counts_lists)
def test_huffman_lengths_are_valid(values: list[int]) -> None:
    counts = np.array(values, np.int64)
    lengths = ops.huffman_lengths(counts)
    assert lengths.dtype == np.uint8
    assert ((lengths > 0) == (counts > 0)).all()
    assert lengths.max() <= 12
    present = lengths[lengths > 0].tolist()
    assert present == [1] or sum(2.0**-n for n in present) == 1
    ordered = sorted(zip(values, lengths.tolist(), strict=True))
    assert all(a[1] >= b[1] for a, b in itertools.pairwise(x for x in ordered if x[0]) if a[0] < b[0])


@settings(max_examples=up_to(200), deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=200))
def test_huffman_lengths_are_optimal(values: list[int]) -> None:
    depths = huffman_depths(values)
    best = sum(c * n for c, n in zip(values, depths, strict=True))
    got = int((np.array(values) * ops.huffman_lengths(np.array(values))).sum())
    assert got == best if max(depths) <= 12 else got > best


@settings(max_examples=up_to(200), deadline=None)
@given(st.lists(st.one_of(st.integers(1, 9), st.integers(1, 1 << 40)), min_size=2, max_size=300).map(sorted))
def test_packages_merge_compiled_as_in_the_reference(values: list[int]) -> None:
    leaves = np.array(values)
    assert packages.package_merge(leaves).tolist() == models.package_merge(leaves).tolist()


def test_packages_merge_compiled_up_to_the_largest_alphabet() -> None:
    leaves = np.sort(np.random.default_rng(0).geometric(0.001, 4096))
    assert packages.package_merge(leaves).tolist() == models.package_merge(leaves).tolist()


@settings(max_examples=up_to(300), deadline=None)
@given(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 300), st.integers(0, 1 << 25)), min_size=1, max_size=300))
def test_frequencies_compiled_as_in_the_reference(values: list[int]) -> None:
    counts = np.array(values)
    if not counts.any():
        with pytest.raises(ValueError, match="got 0"):
            frequencies.normalise_frequencies(counts)
        return
    assert frequencies.normalise_frequencies(counts).tolist() == models.normalise_frequencies(counts).tolist()


def test_frequencies_compiled_at_the_limits() -> None:
    rng = np.random.default_rng(0)
    near = models.SCALED_BELOW - 1
    for counts in (np.array([near - 1, 1]), np.array([near // 2, near // 2]), np.ones(4096, np.int64)):
        assert frequencies.normalise_frequencies(counts).tolist() == models.normalise_frequencies(counts).tolist()
    counts = rng.geometric(0.001, 4096)
    assert frequencies.normalise_frequencies(counts).tolist() == models.normalise_frequencies(counts).tolist()
    for size in (4097, 5000):
        with pytest.raises(ValueError, match=f"got {size}"):
            frequencies.normalise_frequencies(np.ones(size, np.int64))


def test_huffman_lengths_limited() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = ops.huffman_lengths(np.array(fibonacci))
    assert lengths.max() == 12
    assert (2.0 ** -lengths.astype(float)).sum() == 1
    assert (ops.huffman_lengths(np.ones(4096, np.int64)) == 12).all()
    assert ops.huffman_lengths(np.zeros(5, np.int64)).tolist() == [0] * 5
    with pytest.raises(ValueError, match="got 4097"):
        ops.huffman_lengths(np.ones(4097, np.int64))


def brute_force(values: list[int], limit: int) -> int:
    best = 10**9
    for lengths in itertools.product(range(1, limit + 1), repeat=len(values)):
        if sum(2.0**-n for n in lengths) <= 1:
            best = min(best, sum(c * n for c, n in zip(values, lengths, strict=True)))
    return best


@pytest.mark.parametrize("values", [[1, 1, 2, 4, 8], [1, 2, 4, 8, 16], [1, 1, 1, 1, 50], [3, 1, 4, 1, 5]])
def test_huffman_lengths_limited_are_optimal(values: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "HUFFMAN_BITS", 3)
    got = int((np.array(values) * models.huffman_lengths(np.array(values))).sum())
    assert got == brute_force(values, 3)


def test_canonical_codes() -> None:
    # Lengths 2 1 3 3 give the codes 10, 0, 110, 111; each is stored with its first bit lowest.
    assert models.huffman_codes(np.array([2, 1, 3, 3], np.uint8)).tolist() == [0b01, 0b0, 0b011, 0b111]


@pytest.mark.parametrize("lengths", [[], [0], [2], [1, 2], [1, 1, 1], [1, 2, 3, 13], [13] * 4096, [255, 255], [0, 12]])
def test_invalid_lengths(lengths: list[int]) -> None:
    assert models.huffman_table(np.array(lengths, np.uint8)) is None
