"""Top-k in blocks, and sums of lists, against NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import gradwire as gw
from examples import up_to
from gradwire.kernels import cpu, ops, reference, select_blocks, threads

KINDS = {
    "normal": lambda rng, d: rng.standard_normal(d),
    "constant": lambda rng, d: np.ones(d),
    "zeros": lambda rng, d: np.zeros(d),
    "few values": lambda rng, d: rng.integers(-2, 3, d),
    "nearly all zero": lambda rng, d: np.where(rng.random(d) < 0.001, rng.standard_normal(d), 0),
    "growing": lambda rng, d: np.arange(d) * 1e-42,
    "falling": lambda rng, d: -np.exp(-np.arange(d) / 200),
    "uneven": lambda rng, d: rng.standard_normal(d) * np.exp(10 * np.sin(np.arange(d) / 3000)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 63, 4096, 20_890])
@pytest.mark.parametrize("block", [1, 7, 64, 4096])
def test_blocks_are_exact(kind, d, block):
    values = KINDS[kind](np.random.default_rng(d), d).astype(np.float32)
    block = min(block, d)
    for k in sorted({0, 1, max(1, block // 100), max(1, block // 3), block}):
        last = min(d % block, k)
        found = select_blocks.topk_blocks(values, block, k, last)
        np.testing.assert_array_equal(found, reference.topk_blocks(values, block, k, last))


@settings(max_examples=up_to(200), deadline=None)
@given(arrays(np.float32, st.integers(1, 300), elements=st.floats(-2, 2, width=16)), st.data())
def test_ties_go_to_the_lower_index(values, data):
    block = data.draw(st.integers(1, values.size))
    k, last = data.draw(st.integers(0, block)), data.draw(st.integers(0, values.size % block))
    expected = []
    for start in range(0, values.size, block):
        inside = values[start : start + block]
        order = np.lexsort((np.arange(inside.size), -np.abs(inside)))[: k if inside.size == block else last]
        expected += sorted(start + order[inside[order] != 0])
    assert select_blocks.topk_blocks(values, block, k, last).tolist() == expected


def test_blocks_on_several_threads(monkeypatch):
    monkeypatch.setattr(threads, "num_threads", lambda: 4)
    values = np.random.default_rng(5).standard_normal(1_200_003).astype(np.float32)
    expected = reference.topk_blocks(values, 4096, 41, 30)
    np.testing.assert_array_equal(select_blocks.topk_blocks(values, 4096, 41, 30), expected)


@pytest.mark.parametrize("d", [0, 5, 4096, 10_000])
def test_what_topk_sends_of_blocks(d):
    """Each block's k by the density, the last one's by its own length."""
    values = np.random.default_rng(d).standard_normal(d).astype(np.float32)
    compressor = gw.topk(0.01, scope=1000)
    payload, _ = compressor.compress(values, compressor.init(gw.Layout.flat(d)))
    expected = np.zeros(d, np.float32)
    for start in range(0, d, 1000):
        inside = values[start : start + 1000]
        largest = np.argsort(-np.abs(inside), kind="stable")[: max(1, round(inside.size / 100))]
        expected[start + largest] = inside[largest]
    assert gw.decompress(payload).tobytes() == expected.tobytes()


sets = st.sets(st.integers(0, 60))


@settings(max_examples=up_to(200), deadline=None)
@given(sets, sets, st.integers(0, 2**32 - 1))
def test_sums_of_lists(first, second, seed):
    rng = np.random.default_rng(seed)
    lists = [np.array(sorted(s), np.int64) for s in (first, second)]
    numbers = [rng.choice([-1.5, -0.0, 1.5, 3e38, 1e-45], s.size).astype(np.float32) for s in lists]
    vector = np.zeros(61, np.float32)
    with np.errstate(over="ignore"):
        for indices, x in zip(lists, numbers, strict=True):
            vector[indices] += x
    for merge in (cpu.merge, reference.merge):
        indices, total = merge(lists[0], numbers[0], lists[1], numbers[1])
        assert indices.tolist() == sorted(first | second)
        assert total.tobytes() == (vector[indices] + np.float32(0)).tobytes() or (total == vector[indices]).all()


def test_lists_of_many():
    rng = np.random.default_rng(0)
    lists = [np.flatnonzero(rng.random(200_000) < 0.3) for _ in range(2)]
    numbers = [rng.standard_normal(s.size).astype(np.float32) for s in lists]
    for indices, total in [ops.merge(lists[0], numbers[0], lists[1], numbers[1])]:
        expected = reference.merge(lists[0], numbers[0], lists[1], numbers[1])
        np.testing.assert_array_equal(indices, expected[0])
        assert total.tobytes() == expected[1].tobytes()
