"""Passes over whole vectors against plain NumPy."""

import math

import numpy as np
import pytest

from gradwire.journal import Journal
from gradwire.kernels import dense, reference

BACKENDS = [dense.add_finite, reference.add_finite]


@pytest.mark.parametrize("add", BACKENDS)
@pytest.mark.parametrize("d", [0, 1, 63, 64, 65, 2047, 100_000])
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_sums_are_numpys(add, d, decay):
    rng = np.random.default_rng(d)
    total, addend = rng.standard_normal((2, d)).astype(np.float32)
    expected = total * np.float32(decay) + addend
    assert add(total, addend, decay, Journal())
    np.testing.assert_array_equal(total, expected)


@pytest.mark.parametrize("add", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("at", [0, 2047, 5000, 9999])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_nothing_is_lost_by_what_is_not_finite(add, bad, at, decay):
    rng = np.random.default_rng(at)
    total, addend = rng.standard_normal((2, 10_000)).astype(np.float32)
    total[at], addend[at] = 3e38, bad
    before = total.copy()
    assert not add(total, addend, decay, Journal()) or (bad == 3e38 and decay == 0.5 and np.isfinite(1.5e38 + 3e38))
    if bad != 3e38 or decay == 1.0:
        np.testing.assert_allclose(total, before, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("add", BACKENDS)
def test_the_largest_numbers_are_finite(add):
    total = np.full(5000, 3.4e38, np.float32)
    assert add(total, np.zeros(5000, np.float32), 1.0, Journal())
    assert (total == np.float32(3.4e38)).all()


@pytest.mark.parametrize("num_edges", [0, 1, 15, 64, 65, 300])
@pytest.mark.parametrize("zero", ["last", "beyond"])
def test_intervals_are_those_of_a_search(num_edges, zero):
    rng = np.random.default_rng(num_edges)
    edges = np.unique(rng.lognormal(0, 2, num_edges).astype(np.float32)).astype(np.float64)
    magnitudes = np.concatenate([rng.lognormal(0, 2, 5000), edges, [0, 0]]).astype(np.float32)
    zero = edges.size if zero == "last" else edges.size + 1
    expected = [int(np.count_nonzero(edges >= x)) if x else zero for x in magnitudes]
    for find in (dense.find_intervals, reference.find_intervals):
        found, counts, sums = find(magnitudes, edges, zero)
        assert found.dtype == np.uint16
        assert found.tolist() == expected
        np.testing.assert_array_equal(counts, np.bincount(expected))
        np.testing.assert_array_equal(sums, np.bincount(expected, weights=magnitudes))


def test_sums_of_intervals_are_the_same_at_both_and_close_to_exact():
    rng = np.random.default_rng(0)
    edges, magnitudes = np.arange(1.0, 9.0), rng.lognormal(0, 1, 300_000).astype(np.float32)
    one, two = (find(magnitudes, edges, 8) for find in (dense.find_intervals, reference.find_intervals))
    for a, b in zip(one, two, strict=True):
        assert a.tobytes() == b.tobytes()
    exact = [math.fsum(magnitudes[one[0] == i].tolist()) for i in range(9)]
    np.testing.assert_allclose(one[2], exact, rtol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 1000, 32_768, 200_000])
@pytest.mark.parametrize("weight", [1.0, 0.3, -2.5])
def test_scattered_numbers(n, weight):
    rng = np.random.default_rng(n)
    indices = np.sort(rng.permutation(3 * n)[:n])
    numbers, start = rng.normal(size=n).astype(np.float32), rng.normal(size=3 * n).astype(np.float32)
    expected = start.copy()
    for i, x in zip(indices, numbers, strict=True):
        expected[i] += np.float32(weight) * x
    for ops in (dense, reference):
        out = start.copy()
        ops.accumulate_at(out, indices, numbers, weight)
        assert out.tobytes() == expected.tobytes()
        assert ops.gather(start, indices).tobytes() == start[indices].tobytes()
    wide = np.zeros((3 * n, 2), np.float32)
    dense.accumulate_at(wide[:, 0], indices, numbers, 1.0)
    assert (wide[indices, 0] == numbers).all()
    assert (dense.gather(wide[:, 0], indices) == numbers).all()


@pytest.mark.parametrize("ops", [dense, reference])
@pytest.mark.parametrize("at", [5, -6])
def test_coordinates_out_of_range(ops, at):
    out = np.zeros(5, np.float32)
    with pytest.raises(IndexError):
        ops.accumulate_at(out, np.array([1, at]), np.ones(2, np.float32), 1.0)
    with pytest.raises(IndexError):
        ops.gather(out, np.array([1, at]))
    assert not out.any()


@pytest.mark.parametrize("n", [0, 1, 5000])
def test_signed_symbols(n):
    rng = np.random.default_rng(n)
    numbers = rng.integers(-1, 2, n).astype(np.float32)
    found, ranks = rng.integers(0, 300, n).astype(np.uint16), rng.integers(0, 32_768, 300).astype(np.uint16)
    expected = [2 * int(ranks[f]) + (x < 0) for f, x in zip(found, numbers, strict=True)]
    for ops in (dense, reference):
        symbols = ops.signed_symbols(found, ranks, numbers)
        assert symbols.dtype == np.uint16
        assert symbols.tolist() == expected


# --- what can be undone ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [dense, reference])
@pytest.mark.parametrize("d", [0, 1, 511, 512, 100_000])
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_an_addition_is_undone(backend, d, decay):
    rng = np.random.default_rng(d)
    total, addend = rng.standard_normal((2, d)).astype(np.float32)
    before, journal = total.copy(), Journal()
    assert backend.add_finite(total, addend, decay, journal)
    journal.undo()
    np.testing.assert_allclose(total, before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", [dense, reference])
@pytest.mark.parametrize("d", [0, 1, 511, 512, 100_000])
def test_a_subtraction_is_numpys_and_is_undone(backend, d):
    rng = np.random.default_rng(d)
    total, numbers = rng.standard_normal((2, d)).astype(np.float32)
    before, journal = total.copy(), Journal()
    backend.subtract(total, numbers, journal)
    np.testing.assert_array_equal(total, before - numbers)
    journal.undo()
    np.testing.assert_allclose(total, before, rtol=1e-6, atol=1e-6)


def test_what_was_added_in_part_is_taken_out_in_part():
    """As where a thread was still at work: the kernels say how far they came."""
    total, addend = np.zeros(2000, np.float32), np.ones(2000, np.float32)
    added = dense.Added(total, addend, np.float32(1))
    total[:1024] += 1
    added.done[0][0] = 1024
    assert not added.complete
    added.take_out()
    added.take_out()  # an undo that was interrupted is run again
    assert not total.any()
