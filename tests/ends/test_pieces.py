"""Coordinates that packets cover: a set, in memory of the size of what came, looked up in few places."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradwire as gw
from gradwire.ends.pieces import Coverage, Pieces

sets = st.lists(st.sets(st.integers(0, 400), max_size=60), max_size=12)


def coverage_of(numbers):
    return Coverage.of(np.array(sorted(numbers), np.int64))


def members(coverage):
    places, words = coverage.state()
    return [int(64 * p + b) for p, w in zip(places, words, strict=True) for b in range(64) if int(w) >> b & 1]


@given(sets)
def test_it_is_a_set(packets):
    coverage, found = Coverage(), set()
    for numbers in packets:
        assert coverage.overlaps(coverage_of(numbers)) == bool(found & numbers)
        coverage = coverage.joined(coverage_of(numbers - found))
        found |= numbers
        assert members(coverage) == sorted(found)
        again = Coverage.from_state(coverage.state(), 401)
        assert members(again) == sorted(found)


@given(st.lists(st.integers(1, 3000), max_size=60))
def test_a_packet_is_looked_up_in_few_places(sizes):
    """Whatever sizes packets have, each set is at most half as large as the one before."""
    coverage, start = Coverage(), 0
    for size in sizes:
        coverage = coverage.joined(Coverage.of(np.arange(start, start + size)))
        start += size
    held = [level.places.size for level in coverage.levels]
    assert all(2 * b <= a for a, b in pairwise(held))
    assert len(held) <= math.log2(max(2, start)) + 1


@pytest.mark.parametrize(("density", "most"), [(0.001, 16), (0.1, 16), (1.0, 0.5)])
def test_memory_is_that_of_what_came(density, most):
    """16 bytes an entry, and never more than half a byte a coordinate."""
    d, rng = 200_000, np.random.default_rng(0)
    chosen = rng.permutation(d)[: int(density * d)]
    coverage = Coverage()
    for piece in np.array_split(chosen, 50):
        coverage = coverage.joined(coverage_of(piece.tolist()))
    num_bytes = sum(level.places.nbytes + level.words.nbytes for level in coverage.levels)
    assert num_bytes <= most * chosen.size
    assert num_bytes <= 0.5 * d


def test_damaged_states():
    places, words = Coverage.of(np.array([3, 200])).state()
    for bad in (
        (places,),
        (places, words[:1]),
        (places, words.astype(np.int64)),
        (places[::-1], words),
        (places - 1, words),
        (places + 7, words),
        (places.astype(np.float64), words),
    ):
        with pytest.raises((gw.StateError, ValueError)):
            Coverage.from_state(bad, 300)
    state = Pieces(3, 4, 0b101, Coverage.of(np.array([3, 200])), 1.5).state()
    assert members(Pieces.from_state(state, 300).coverage) == [3, 200]
    for at, bad in ((0, -1), (1, 0), (1, 2), (2, [1]), (2, None), (5, -1.0), (5, math.nan)):
        with pytest.raises((gw.StateError, gw.ConfigError)):
            Pieces.from_state([*state[:at], bad, *state[at + 1 :]], 300)
