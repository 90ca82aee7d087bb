"""Levels coded with contexts: the compiled kernels against plain Python, and both against what must come out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import up_to
from gradwire.kernels import context_tables, contexts, contexts_reference

BACKENDS = (contexts_reference, contexts)


def shapes_of(*pairs):
    lengths, columns = zip(*pairs, strict=True)
    return np.array(lengths, np.int64), np.array(columns, np.int64)


def noise(d: int, density: float, largest: int, seed: int = 0) -> np.ndarray:
    """Levels in a few rows and columns mostly, the larger the rarer."""
    rng = np.random.default_rng(seed)
    rows = rng.random(-(-d // 32)).repeat(32)[:d] ** 3
    sizes = np.minimum(rng.geometric(0.4, d), largest) * (rng.random(d) < 4 * density * rows)
    return (sizes * rng.choice([-1, 1], d)).astype(np.int32)


CASES = {
    "nothing": (np.zeros(700, np.int32), shapes_of((700, 30)), 1),
    "one coordinate": (np.array([-3], np.int32), shapes_of((1, 1)), 3),
    "sparse": (noise(3000, 0.01, 3), shapes_of((1000, 50), (7, 7), (1993, 100)), 3),
    "dense": (noise(2000, 0.5, 9), shapes_of((2000, 48)), 9),
    "rows that do not end": (noise(1001, 0.1, 5), shapes_of((500, 17), (501, 64)), 5),
    "a column": (noise(300, 0.3, 2), shapes_of((300, 1)), 2),
    "signs": (noise(900, 0.3, 1), shapes_of((900, 30)), 1),
    "fifteen": (noise(900, 0.3, 15), shapes_of((900, 30)), 15),
    "far beyond fifteen": (noise(900, 0.3, 4) * np.int32(900), shapes_of((900, 30)), 32767),
    "all alike": (np.full(640, 2, np.int32), shapes_of((640, 64)), 2),
}


@pytest.mark.parametrize("name", CASES)
def test_both_write_and_read_the_same(name):
    levels, (lengths, columns), most = CASES[name]
    written = [backend.encode_levels(levels, lengths, columns, most).tobytes() for backend in BACKENDS]
    assert written[0] == written[1]
    for backend in BACKENDS:
        read = backend.decode_levels(np.frombuffer(written[0], np.uint8), lengths, columns, most)
        assert read.tolist() == levels.tolist()


@pytest.mark.parametrize("price", [0, 5, 33, 400])
@pytest.mark.parametrize("scale", [20.0, 120.0, 700.0, 9000.0])
def test_both_choose_the_same(scale, price):
    rng = np.random.default_rng(3)
    d = 1500
    amounts = (rng.standard_t(3, d) * scale * rng.random(30).repeat(50)).astype(np.int32)
    lengths, columns = shapes_of((700, 50), (800, 20))
    most = max(1, (int(np.abs(amounts).max()) + 128) >> 8)
    (a, first), (b, second) = (backend.choose_levels(amounts, lengths, columns, most, price) for backend in BACKENDS)
    assert a.tolist() == b.tolist()
    assert first.tobytes() == second.tobytes() == contexts.encode_levels(a, lengths, columns, most).tobytes()
    nearest = np.sign(amounts) * ((np.abs(amounts) + 128) >> 8)
    if price == 0:
        assert np.abs(a).sum() >= 0.98 * np.abs(nearest).sum(), "where bits cost nothing, what is nearest"
    assert (np.abs(a) <= np.abs(nearest)).all()
    assert (a * amounts >= 0).all()
    assert (np.square(256.0 * a - amounts) <= np.square(1.0 * amounts)).all(), "never worse than nothing"


def test_the_dearer_bits_are_the_fewer_are_taken():
    rng = np.random.default_rng(4)
    amounts = (rng.standard_t(3, 6000) * 150).astype(np.int32)
    lengths, columns = shapes_of((6000, 60))
    sizes = [contexts.choose_levels(amounts, lengths, columns, 50, price)[1].size for price in (0, 10, 40, 160, 640)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 4


def test_structure_is_found():
    """Quiet rows and columns, and rows of one sign, cost less than the same levels shuffled; shuffled, the entropy."""
    rng = np.random.default_rng(5)
    rows, columns_ = rng.random((64, 1)) ** 6, rng.random((1, 500)) ** 3
    there = rng.random((64, 500)) < rows * columns_
    levels = (there * np.where(rng.random((64, 1)) < 0.5, -1, 1)).astype(np.int32).reshape(-1)
    shapes = shapes_of((levels.size, 500))
    ordered = contexts.encode_levels(levels, *shapes, 1).size
    mixed = contexts.encode_levels(rng.permutation(levels), *shapes, 1).size
    counts = np.unique(levels, return_counts=True)[1]
    entropy = float(counts @ np.log2(levels.size / counts)) / 8
    assert ordered < 0.75 * entropy
    assert 0.95 * entropy < mixed < 1.15 * entropy + 40


@settings(max_examples=up_to(150), deadline=None)
@given(st.binary(max_size=60), st.integers(1, 40), st.integers(1, 300), st.sampled_from([1, 2, 15, 16, 400]))
def test_any_bytes_are_read_alike_or_refused(data, width, length, most):
    lengths, columns = shapes_of((length, width))
    found = [b.decode_levels(np.frombuffer(data, np.uint8), lengths, columns, most) for b in BACKENDS]
    assert (found[0] is None) == (found[1] is None)
    if found[0] is not None:
        assert found[0].tolist() == found[1].tolist()
        assert np.abs(found[0]).max() <= most
        assert contexts.encode_levels(found[0], lengths, columns, most).tobytes() == data


def test_bytes_cut_or_added_are_refused():
    levels, (lengths, columns), most = CASES["sparse"]
    written = contexts.encode_levels(levels, lengths, columns, most)
    assert contexts.decode_levels(np.append(written, np.uint8(0)), lengths, columns, most) is None
    assert contexts.decode_levels(np.append(written, np.uint8(7)), lengths, columns, most) is None
    cut = contexts.decode_levels(written[:-1], lengths, columns, most)
    assert cut is None or cut.tolist() != levels.tolist()


def test_room_for_levels_that_cost_much():
    """What is coded against all odds takes more than the first guess at room."""
    levels = np.zeros(4000, np.int32)
    levels[2000:] = np.random.default_rng(6).integers(-32767, 32768, 2000)
    shapes = shapes_of((4000, 100))
    written = contexts.encode_levels(levels, *shapes, 32767)
    assert written.size > 2000 * 2
    assert contexts.decode_levels(written, *shapes, 32767).tolist() == levels.tolist()


def test_no_library_rounds_a_table_otherwise():
    """Every entry is far enough from a half for any logarithm that is right to a part in 10^12."""
    z = context_tables.MOST_LOGIT
    values = [65536 / (1 + math.exp(-i / 256)) for i in range(-z, z + 1)]
    values += [256 * math.log((2 * i + 1) / (8191 - 2 * i)) for i in range(4096)]
    values += [-256 * math.log2(i / 4096) for i in range(1, 4096)]
    assert min(abs(v % 1 - 0.5) for v in values) > 1e-7
    assert context_tables.SQUASHED.tolist() == sorted(context_tables.SQUASHED.tolist())
    assert context_tables.SQUASHED[0] + context_tables.SQUASHED[-1] == 65536
