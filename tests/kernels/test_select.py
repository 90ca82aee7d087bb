"""The compiled top-k against NumPy's partition, on inputs that mislead its sample too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from examples import up_to
from gradwire.journal import Journal
from gradwire.kernels import dense, reference, select, threads
from gradwire.kernels.sampling import sample_plan

KINDS = {
    "normal": lambda rng, d: rng.standard_normal(d),
    "constant": lambda rng, d: np.ones(d),
    "zeros": lambda rng, d: np.zeros(d),
    "few values": lambda rng, d: rng.integers(-2, 3, d),
    "cauchy": lambda rng, d: np.clip(rng.standard_cauchy(d), -1e30, 1e30),
    "nearly all zero": lambda rng, d: np.where(rng.random(d) < 0.001, rng.standard_normal(d), 0),
    "all at the end": lambda rng, d: np.arange(d) * (np.arange(d) >= d - d // 50),
    "denormals": lambda rng, d: np.arange(d) * 1e-42,
    "wide": lambda rng, d: -np.exp(np.clip(rng.standard_normal(d) * 20, -80, 80)),
}


@pytest.mark.parametrize("d", [1, 2, 127, 128, 129, 5000, 50_890, 300_001])
@pytest.mark.parametrize("kind", KINDS)
def test_topk_is_exact(kind, d):
    values = KINDS[kind](np.random.default_rng(d), d).astype(np.float32)
    for k in sorted({0, 1, min(d, 3), max(1, d // 1000), max(1, d // 100), max(1, d // 3), d}):
        np.testing.assert_array_equal(select.topk(values, k), reference.topk(values, k))


@settings(max_examples=up_to(200), deadline=None)
@given(arrays(np.float32, st.integers(1, 700), elements=st.floats(-2, 2, width=16)), st.data())
def test_ties_go_to_the_lower_index(values, data):
    k = data.draw(st.integers(1, values.size))
    order = np.lexsort((np.arange(values.size), -np.abs(values)))[:k]
    expected = np.sort(order[values[order] != 0])
    np.testing.assert_array_equal(select.topk(values, k), expected)
    np.testing.assert_array_equal(select._by_counting(values.view(np.uint32), k), expected)


def test_slices_and_strided_views():
    values = np.random.default_rng(0).standard_normal(40_000).astype(np.float32)
    for view in (values[1:], values[::2], values[::-1]):
        np.testing.assert_array_equal(select.topk(view, 400), reference.topk(view, 400))


@pytest.mark.parametrize("d", [1, 63, 64, 65, 5000, 50_890, 700_001])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_adding_and_selecting_at_once(kind, d, decay):
    rng = np.random.default_rng(d)
    start, addend = rng.standard_normal(d).astype(np.float32), KINDS[kind](rng, d).astype(np.float32)
    for k in sorted({0, 1, max(1, d // 1000), max(1, d // 100), max(1, d // 3), d}):
        total = start.copy()
        found = select.add_topk(total, addend, decay, k, Journal())
        expected = start * np.float32(decay) + addend
        assert total.tobytes() == expected.tobytes()
        chosen = reference.topk(expected, k)
        other = start.copy()
        for indices, numbers in (found, reference.add_topk(other, addend, decay, k, Journal())):
            np.testing.assert_array_equal(indices, chosen)
            assert numbers.tobytes() == expected[chosen].tobytes()
        assert other.tobytes() == total.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [[1, 2, 69_000], [300_000, 300_000, 365_600], list(range(70_000, 700_000, 70_000))])
def test_an_addend_in_pieces(kind, cuts):
    rng = np.random.default_rng(len(cuts))
    start, addend = rng.standard_normal(700_001).astype(np.float32), KINDS[kind](rng, 700_001).astype(np.float32)
    expected = start * np.float32(0.9) + addend
    for k in (1, 700, 7000, 300_000):
        chosen = reference.topk(expected, k)
        for backend in (select, reference):
            total, journal = start.copy(), Journal()
            indices, numbers = backend.add_topk(total, np.split(addend, cuts), 0.9, k, journal)
            np.testing.assert_array_equal(indices, chosen)
            assert numbers.tobytes() == expected[chosen].tobytes()
            assert total.tobytes() == expected.tobytes()
            journal.undo()
            np.testing.assert_allclose(total, start, rtol=1e-6, atol=1e-6 * np.abs(addend).max())
    addend[650_000] = np.nan
    total = start.copy()
    assert select.add_topk(total, np.split(addend, cuts), 0.9, 700, Journal()) is None
    np.testing.assert_allclose(total, start, rtol=1e-6, atol=1e-6 * np.nanmax(np.abs(addend)))


@pytest.fixture
def short_ranges(monkeypatch):
    """More ranges than threads, as vectors of billions have."""
    monkeypatch.setattr(threads, "MOST", threads.ALIGNED)


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_that_end_before_the_thread_does(kind, short_ranges):
    d = 700_001
    assert len(threads.split(d)) == 11
    rng = np.random.default_rng(4)
    start, values = rng.standard_normal(d).astype(np.float32), KINDS[kind](rng, d).astype(np.float32)
    added = start + values
    for k in (3, 7000, d // 3, d):
        chosen = select.topk(values, k)
        np.testing.assert_array_equal(chosen, reference.topk(values, k))
        assert dense.gather(values, chosen).tobytes() == values[chosen].tobytes()
        total = start.copy()
        found, numbers = select.add_topk(total, values, 1.0, k, Journal())
        np.testing.assert_array_equal(found, reference.topk(added, k))
        assert numbers.tobytes() == added[found].tobytes()
        assert total.tobytes() == added.tobytes()
        np.testing.assert_array_equal(select._by_counting(values.view(np.uint32), k), reference.topk(values, k))


def test_a_range_may_start_beyond_32_bits():
    base, places = 2**40 + 5, np.array([0, 7, 2**32 - 1], np.uint32)
    bits = np.array([3.0, -1.0, 1.0], np.float32).view(np.uint32)
    chosen, numbers = np.empty(4, np.int64), np.empty(4, np.uint32)
    kth = np.array([1.0], np.float32).view(np.uint32)[0]
    assert select._pick(places, bits, kth, 2, base, 0, chosen, numbers) == (3, 0)
    assert chosen[:3].tolist() == [base, base + 7, base + 2**32 - 1]
    out = np.empty(2, np.int64)
    select._pick_all(bits, kth, 1, base, out)
    assert out.tolist() == [base, base + 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("at", [0, 63, 64, 300_000, 600_000, 700_000])
@pytest.mark.parametrize("k", [7, 7000, 500_000])
def test_nothing_is_lost_by_what_is_not_finite(bad, at, k):
    rng = np.random.default_rng(at)
    total, addend = rng.standard_normal((2, 700_001)).astype(np.float32)
    total[at], addend[at] = 3e38, bad
    before = total.copy()
    assert select.add_topk(total, addend, 1.0, k, Journal()) is None
    np.testing.assert_allclose(total, before, rtol=1e-6, atol=2e-6)
    block = slice(at // 64 * 64, at // 64 * 64 + 64)
    assert total[block].tobytes() == before[block].tobytes()


@pytest.mark.parametrize("d", [3, 60, 64, 130, 1000])
@pytest.mark.parametrize("k", [1, 0])
def test_what_comes_after_the_last_block_is_added_as_a_whole_or_not(d, k):
    total, addend = np.random.default_rng(d).standard_normal((2, d)).astype(np.float32)
    addend[-1] = np.inf
    before, last = total.copy(), slice((d - 1) // 64 * 64, d)
    assert select.add_topk(total, addend, 0.9, k, Journal()) is None
    assert total[last].tobytes() == before[last].tobytes()


def test_a_sample_that_misleads_by_design():
    d, k = 1_000_000, 10_000
    size, _ = sample_plan(d, k)
    seen = np.empty(size, np.uint32)
    select.take_sample(np.arange(d, dtype=np.uint32), seen)
    assert (np.diff(seen.astype(np.int64)) > 0).all()
    assert (seen.astype(np.int64) * size // d == np.arange(size)).mean() > 0.99  # one in each stretch
    rng = np.random.default_rng(0)
    for factor in (0.0, 1000.0):  # what is sampled is smaller, or larger, than all the rest
        values = rng.standard_normal(d).astype(np.float32)
        values[seen] *= np.float32(factor)
        np.testing.assert_array_equal(select.topk(values, k), reference.topk(values, k))
        total = values.copy()
        np.testing.assert_array_equal(
            select.add_topk(total, np.zeros(d, np.float32), 1.0, k, Journal())[0], reference.topk(values, k)
        )
