"""The range coder on both backends: the same bytes, an exact round trip, near the entropy, and total on any bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from examples import up_to
from gradwire.kernels import ops, range_coder, range_reference
from gradwire.kernels.range_reference import COUNT, Decoder, Encoder, chance_of_one

BACKENDS = [range_reference, range_coder]
fast = settings(max_examples=up_to(150), deadline=None)
Bits = NDArray[np.uint8]


def encoded(bits: Bits, contexts: NDArray[np.uint32], counts: tuple[Any, Any]) -> Bits:
    """The bytes, the same from both backends."""
    ours, compiled = (b.encode_bits(bits, contexts, *counts) for b in BACKENDS)
    assert ours.dtype == compiled.dtype == np.uint8
    assert ours.tobytes() == compiled.tobytes()
    return ours


def decoded(data: Bits, contexts: NDArray[np.uint32], counts: tuple[Any, Any]) -> Bits | None:
    """What both backends read."""
    ours, compiled = (b.decode_bits(data, contexts, *counts) for b in BACKENDS)
    assert (ours is None) == (compiled is None)
    assert ours is None or ours.tobytes() == compiled.tobytes()
    return ours


def drawn(seed: int, n: int, num_contexts: int) -> tuple[Bits, NDArray[np.uint32], tuple[Any, Any]]:
    """Bits whose probabilities differ from context to context, some of them tiny, and counts to begin with."""
    rng = np.random.default_rng(seed)
    contexts = rng.integers(0, num_contexts, n).astype(np.uint32)
    chances = rng.random(num_contexts) ** rng.integers(1, 12, num_contexts)
    bits = (rng.random(n) < chances[contexts]).astype(np.uint8)
    counts = rng.integers(0, 20 * COUNT, (2, num_contexts)).astype(np.uint64)
    counts[1] += counts.sum(axis=0) == 0
    return bits, contexts, (counts[0], counts[1])


def written_exactly(bits: Iterable[int], chances: Iterable[int]) -> bytes:
    """An arithmetic coder with one integer of all digits, which knows neither carries nor bytes on their way."""
    low, span, digits = 0, 2**32 - 1, 32
    for bit, chance in zip(bits, chances, strict=True):
        bound = (span >> 16) * chance
        low, span = (low, bound) if bit else (low + bound, span - bound)
        while span < 2**24:
            low, span, digits = low << 8, span << 8, digits + 8
    ends = (-(-low // 2**w) * 2**w for w in range(digits, -1, -8))
    found = next(end for end in ends if end < low + span)
    return found.to_bytes(digits // 8, "big").rstrip(b"\0")


@fast
@given(st.integers(0, 2**32), st.sampled_from([0, 1, 2, 7, 100, 2000]), st.sampled_from([1, 2, 40]))
def test_round_trip_and_the_bytes_of_exact_arithmetic(seed: int, n: int, num_contexts: int) -> None:
    bits, contexts, counts = drawn(seed, n, num_contexts)
    before = counts[0].copy(), counts[1].copy()
    data = encoded(bits, contexts, counts)
    found = decoded(data, contexts, counts)
    assert found is not None
    assert found.tobytes() == bits.tobytes()
    assert all((a == b).all() for a, b in zip(counts, before, strict=True)), "counts are the caller's"
    ones, zeros = (c.astype(object) for c in before)
    chances = []
    for bit, context in zip(bits.tolist(), contexts.tolist(), strict=True):
        share = Fraction(ones[context], ones[context] + zeros[context])
        chances.append(min(max(math.floor(share * 65536), 1), 65535))
        (ones if bit else zeros)[context] += COUNT
    assert data.tobytes() == written_exactly(bits.tolist(), chances)


@pytest.mark.parametrize("chance", [1, 2, 300, 32768, 65000, 65535])
def test_length_is_what_the_probabilities_say(chance: int) -> None:
    n = 200_000
    bits = (np.random.default_rng(chance).random(n) < chance / 65536).astype(np.uint8)
    large = np.array([chance], np.uint64) << np.uint64(30), np.array([65536 - chance], np.uint64) << np.uint64(30)
    size = range_coder.encode_bits(bits, np.zeros(n, np.uint32), *large).size
    ones = int(bits.sum())
    ideal = -ones * math.log2(chance / 65536) - (n - ones) * math.log2(1 - chance / 65536)
    assert ideal - 24 <= 8 * size <= 1.001 * ideal + 16


def test_length_is_about_constrictions() -> None:
    rng = np.random.default_rng(0)
    chances = rng.integers(1, 65536, 50_000)
    bits = (rng.random(chances.size) < chances / 65536).astype(np.uint8)
    encoder = Encoder()
    for bit, chance in zip(bits.tolist(), chances.tolist(), strict=True):
        encoder.write(bit, chance)
    theirs = constriction.stream.queue.RangeEncoder()
    theirs.encode(bits.astype(np.int32), constriction.stream.model.Bernoulli(perfect=True), chances / 65536)
    assert len(encoder.finish()) <= 1.0005 * 4 * theirs.get_compressed().size + 8


def test_counts_that_learn_cost_little_more_than_the_entropy() -> None:
    rng = np.random.default_rng(1)
    n, chances = 100_000, np.array([0.5, 0.01, 0.0001, 0.99])
    contexts = rng.integers(0, 4, n).astype(np.uint32)
    bits = (rng.random(n) < chances[contexts]).astype(np.uint8)
    half = np.full(4, COUNT // 2, np.uint64)
    ideal = 0.0  # of Krichevsky and Trofimov: - log2 of Beta(ones + 1/2, zeros + 1/2) / Beta(1/2, 1/2)
    for context in range(4):
        ones, total = int(bits[contexts == context].sum()), int((contexts == context).sum())
        ideal -= math.lgamma(ones + 0.5) + math.lgamma(total - ones + 0.5) - math.lgamma(total + 1) - math.log(math.pi)
    ideal /= math.log(2)
    size = encoded(bits, contexts, (half, half)).size
    assert ideal - 8 <= 8 * size <= 1.002 * ideal + 16


def test_as_written_down() -> None:
    """By hand: a span of 2^32 - 1 in 2^16 shares of 65535; a one takes the lower ones."""
    encoder = Encoder()
    encoder.write(0, 1)  # from 0xffff on: 0x01000000 is the number above with the fewest digits
    assert encoder.finish() == b"\x01"
    encoder = Encoder()
    encoder.write(1, 1)  # below 0xffff, then 24 bits more
    encoder.write(1, 1 << 15)
    assert encoder.finish() == b""
    assert Encoder().finish() == b""
    assert Decoder(b"").ended()
    assert not Decoder(b"\0").ended()
    assert [chance_of_one(*c) for c in ((1, 1), (0, 5), (5, 0), (1, 2))] == [1 << 15, 1, 65535, 21845]


def test_carries_run_through_bytes_of_ones() -> None:
    """Bits that lead to the top of the interval again and again, then over it."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        n = int(rng.integers(20, 80))
        bits = np.zeros(n, np.uint8)
        bits[-1] = rng.integers(2)
        contexts = np.zeros(n, np.uint32)
        counts = np.array([int(rng.integers(1, 70)) << 40], np.uint64), np.array([1 << 30], np.uint64)
        assert (decoded(encoded(bits, contexts, counts), contexts, counts) == bits).all()


@fast
@given(st.binary(max_size=60), st.sampled_from([0, 1, 9, 300]), st.integers(0, 1000))
def test_any_bytes_are_read_or_refused(data: bytes, n: int, seed: int) -> None:
    _, contexts, counts = drawn(seed, n, 5)
    found = decoded(np.frombuffer(data, np.uint8), contexts, counts)
    if found is not None:
        assert found.size == n
        assert encoded(found, contexts, counts).tobytes() == data, "one way to write each"


def test_bytes_cut_or_added_are_refused_or_stand_for_other_bits() -> None:
    bits, contexts, counts = drawn(11, 500, 3)
    data = encoded(bits, contexts, counts)
    for wrong in (data[:-1], np.append(data, np.uint8(0)), np.append(data, np.uint8(7)), data[1:]):
        found = decoded(wrong, contexts, counts)
        assert found is None or not (found == bits).all()


def test_ops_run_either() -> None:
    for n in (10, 10_000):
        bits, contexts, counts = drawn(n, n, 4)
        data = ops.encode_bits(bits, contexts, *counts)
        assert data.tobytes() == range_reference.encode_bits(bits, contexts, *counts).tobytes()
        found = ops.decode_bits(data, contexts, *counts)
        assert found is not None
        assert (found == bits).all()


@fast
@given(
    st.integers(0, 2**32), st.sampled_from([1, 2, 30, 1000]), st.sampled_from([1, 2, 3, 7, 8, 300, 2**24, 2**32 - 1])
)
def test_numbers_round_trip(seed: int, n: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = np.minimum(rng.geometric(rng.random() * 0.9 + 0.05, n) ** rng.integers(1, 4), largest).astype(np.uint32)
    numbers[rng.random(n) < 0.05] = largest
    data, same = (b.encode_numbers(numbers, largest) for b in BACKENDS)
    assert data.tobytes() == same.tobytes()
    for backend in BACKENDS:
        found = backend.decode_numbers(data, n, largest)
        assert found is not None
        assert found.tobytes() == numbers.tobytes()


def test_numbers_cost_what_their_distribution_says() -> None:
    for share in (0.99, 0.9, 0.5):
        numbers = np.random.default_rng(0).geometric(share, 100_000).astype(np.uint32)
        entropy = -(math.log2(share) + (1 - share) / share * math.log2(1 - share))
        size = range_coder.encode_numbers(numbers, int(numbers.max())).size
        assert entropy * 12_500 - 100 < size < 1.03 * entropy * 12_500 + 20


@fast
@given(st.binary(max_size=40), st.sampled_from([0, 1, 9, 300]), st.sampled_from([1, 2, 3, 9, 2**24]))
def test_any_bytes_are_numbers_or_refused(data: bytes, n: int, largest: int) -> None:
    found, same = (b.decode_numbers(np.frombuffer(data, np.uint8), n, largest) for b in BACKENDS)
    assert (found is None) == (same is None)
    if found is not None and same is not None:
        assert found.tobytes() == same.tobytes()
        assert range_coder.encode_numbers(found, largest).tobytes() == data
        assert n == 0 or 1 <= found.min() <= found.max() <= largest
