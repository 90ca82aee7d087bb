"""The code of what fired beside a field of row and column levels: both backends, plain integers, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import up_to
from gradwire.fields import Field, num_levels
from gradwire.kernels import fielded, fielded_reference, fires_reference, ops
from gradwire.kernels.fielded_reference import FIELD_ONES
from gradwire.kernels.fires_reference import DEPTH, WEIGHT, Thresholds

REACH = 6
BACKENDS = [fielded_reference, fielded]
SHAPES = {
    "a vector": [(70, 70)],
    "one column": [(40, 1)],
    "a matrix": [(35 * 130, 130)],
    "a last row that is not whole": [(35 * 130 - 7, 130), (1, 1)],
    "tensors": [(8 * 9, 9), (8, 8), (16 * 72, 72), (16, 16), (40 * 200, 200), (40, 40), (400, 40), (10, 10)],
    "wide rows": [(3 * 3000, 3000), (64 * 64, 64)],
}


def drawn(seed: int, offset: int = 0) -> Thresholds:
    return Thresholds(np.random.default_rng(seed).integers(0, 2**64, 3, dtype=np.uint64), offset)


def field_of(shapes: list[tuple[int, int]], seed: int = 0, spread: float = 3.0) -> Field:
    rng = np.random.default_rng(seed)
    size = sum(num_levels(n, c) for n, c in shapes)
    levels = np.clip(np.rint(rng.normal(0, spread, size)), -31, 31).astype(np.int8)
    return Field(tuple(n for n, _ in shapes), tuple(c for _, c in shapes), levels)


def levels_of(field: Field) -> list[int]:
    """What a field says of each coordinate, by loops."""
    said: list[int] = []
    at = 0
    for n, c in zip(field.lengths, field.columns, strict=True):
        rows = math.ceil(n / c)
        levels = field.levels[at:].tolist()
        said += [levels[i // c] + (levels[rows + i % c] if rows > 1 else 0) for i in range(n)]
        at += rows + c if rows > 1 else 1
    return said


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("density", [0.002, 0.05, 1.0])
def test_round_trip_and_length_in_closed_form(name: str, density: float) -> None:
    field = field_of(SHAPES[name], len(name))
    n, which = field.length, drawn(len(name), 99)
    said = levels_of(field)
    assert field.at(np.arange(n)).tolist() == said
    values = (np.random.default_rng(n).laplace(size=n) * 2.0 ** (np.array(said) / 2)).astype(np.float32)
    indices, _ = fires_reference.round_known(values, 1 / density, which)
    thresholds = fires_reference.thresholds(which, 0, n)
    octaves = [fires_reference.half_octave(int(t)) for t in thresholds]
    for shift in (0, -9, 200, -200):
        level = min(max(fires_reference.half_octave(int(density * 2**32)) + shift, 0), 127)
        own = [min(max(level + x, 0), 127) for x in said]
        coded = [octave <= here + REACH for octave, here in zip(octaves, own, strict=True)]
        apart, same = (b.outside(indices, level, which, field) for b in BACKENDS)
        assert apart.tolist() == same.tolist() == [not coded[i] for i in indices.tolist()]
        inside = indices[~apart]
        data, compiled = (b.encode_fires(n, inside, level, which, field) for b in BACKENDS)
        assert data.tobytes() == compiled.tobytes()
        for backend in BACKENDS:
            found = backend.decode_fires(data, n, inside.size, level, which, field)
            assert found is not None
            assert found.tolist() == inside.tolist()
            for wrong in (inside.size + 1, inside.size - 1):
                assert wrong < 0 or backend.decode_fires(data, n, wrong, level, which, field) is None
        fired, bits = set(inside.tolist()), 0.0
        counts = np.zeros((DEPTH + REACH + 1, 2))
        for i in range(n):
            if coded[i]:
                counts[max(octaves[i] - own[i] + DEPTH, 0), int(i in fired)] += 1
        for ones, (zeros_seen, ones_seen) in zip(FIELD_ONES.tolist(), counts.tolist(), strict=True):
            a, b = ones / 1024, (WEIGHT - ones) / 1024
            bits -= _log2_beta(a + ones_seen, b + zeros_seen) - _log2_beta(a, b)
        assert bits - 24 <= 8 * data.size <= 1.01 * bits + 12


def _log2_beta(a: float, b: float) -> float:
    return (math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)) / math.log(2)


def test_what_a_field_is_worth() -> None:
    """Magnitudes that differ by rows and columns: told them, a fire costs as much as of a plain Laplacian again."""
    field = field_of([(400 * 500, 500)], 1, 4.0)
    which, n = drawn(7), field.length
    scales = 2.0 ** (field.at(np.arange(n)) / 2)
    values = (np.random.default_rng(0).laplace(size=n) * scales / scales.mean()).astype(np.float32)
    indices, _ = fires_reference.round_known(values, 200.0, which)
    level = fires_reference.half_octave(int(2**32 / 200 / scales.mean()))
    apart = fielded.outside(indices, level, which, field)
    bits = 8 * fielded.encode_fires(n, indices[~apart], level, which, field).size / indices.size
    assert apart.mean() < 0.01
    assert bits < 1.15 * math.pi**2 / 6 / math.log(2)
    plain = fires_reference.half_octave(2**32 // 200)
    inside = indices[~ops.outside(indices, plain, which)]
    assert bits < 0.8 * 8 * ops.encode_fires(n, inside, plain, which).size / indices.size


@settings(max_examples=up_to(40), deadline=None)
@given(st.binary(max_size=60), st.sampled_from(list(SHAPES)), st.integers(0, 127), st.integers(0, 30))
def test_any_bytes_are_read_or_refused(data: bytes, name: str, level: int, num_fires: int) -> None:
    which, field = drawn(level), field_of(SHAPES[name], level)
    args = np.frombuffer(data, np.uint8), field.length, num_fires, level, which, field
    found, same = (b.decode_fires(*args) for b in BACKENDS)
    assert (found is None) == (same is None)
    if found is not None and same is not None:
        assert found.tolist() == same.tolist()
        assert fielded.encode_fires(field.length, found, level, which, field).tobytes() == data


def test_coordinates_beyond_32_bits() -> None:
    field = Field((2**32 - 5, 2**33), (2**32 - 5, 2**33), np.array([3, -2], np.int8))
    which = drawn(8, 5)
    indices = np.array([3, 2**32 - 6, 2**32 - 5, 2**32, 2**33 + 17], np.int64)
    for level in (20, 40, 55):
        expected = [
            int(fires_reference.thresholds(which, i, i + 1)[0]) > fires_reference.last_candidate(level + said, REACH)
            for i, said in zip(indices.tolist(), field.at(indices).tolist(), strict=True)
        ]
        assert all(b.outside(indices, level, which, field).tolist() == expected for b in BACKENDS)


def test_ops_run_either() -> None:
    for name in ("one column", "tensors"):
        field, which = field_of(SHAPES[name]), drawn(1)
        indices = np.arange(0, field.length, 7)
        inside = indices[~ops.outside(indices, 60, which, field)]
        data = ops.encode_fires(field.length, inside, 60, which, field)
        assert ops.decode_fires(data, field.length, inside.size, 60, which, field).tolist() == inside.tolist()
