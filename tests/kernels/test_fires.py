"""Rounding with known thresholds, and the code of what fires: both backends, plain integers, closed forms."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import up_to
from gradwire.kernels import fires, fires_reference, ops
from gradwire.kernels.fires_reference import DEPTH, ONES, REACH, WEIGHT, Thresholds

BACKENDS = [fires_reference, fires]
fast = settings(max_examples=up_to(60), deadline=None)
SIZES = [0, 1, 63, 64, 65, 1000, 70_001]


def drawn(seed: int, offset: int = 0) -> Thresholds:
    return Thresholds(np.random.default_rng(seed).integers(0, 2**64, 3, dtype=np.uint64), offset)


def threshold_of(i: int, which: Thresholds) -> int:
    """As docs/format.md says it, with integers."""
    word, mask = int(which.words[i >> 32]), 2**32 - 1
    x = ((i & mask) * 0x9E3779B1 + (word & mask)) & mask
    x ^= x >> 16
    x = x * 0x7FEB352D & mask
    x ^= word >> 32
    x ^= x >> 15
    x = x * 0x846CA68B & mask
    x ^= x >> 16
    return (x + which.offset) & mask


@pytest.mark.parametrize("start", [0, 5, 2**32 - 40, 2**33])
def test_thresholds_are_as_written_down(start: int) -> None:
    which = drawn(start, 0x9E3779B9)
    stop = min(start + 40, (start | 0xFFFFFFFF) + 1)
    found = fires_reference.thresholds(which, start, stop)
    assert found.tolist() == [threshold_of(i, which) for i in range(start, stop)]


def test_thresholds_are_uniform_and_do_not_follow_one_another() -> None:
    n = 1 << 20
    a, b = (fires_reference.thresholds(drawn(seed), 0, n).astype(np.float64) / 2**32 for seed in (1, 2))
    for x in (a, b, (a + b) % 1, (a[1:] - a[:-1]) % 1, (a[64:] - a[:-64]) % 1, (a[::2] + b[1::2]) % 1):
        counts = np.bincount((x * 256).astype(np.int64), minlength=256)
        chi = float(((counts - x.size / 256) ** 2).sum() / (x.size / 256))
        assert abs(chi - 255) < 6 * math.sqrt(2 * 255)


@given(st.integers(0, 2**32 - 1))
def test_half_octaves(value: int) -> None:
    octave = fires_reference.half_octave(value)
    assert fires_reference.first_of(octave) <= value
    assert octave == 65 or value < fires_reference.first_of(octave + 1) or octave == 0
    if value:
        assert octave == math.floor(2 * math.log2(value) + 1e-12) + 2 or value in (0xB504F333, 0xB504F334)
    context = fires_reference.context_of(np.array([value], np.uint32), 30)
    assert context[0] == max(octave - 30 + DEPTH, 0)


def test_levels_beyond_32_bits() -> None:
    assert [fires_reference.half_octave(2**n) for n in (0, 31, 32, 40)] == [2, 64, 66, 82]
    assert fires_reference.half_octave(3 * 2**39) == 83


@fast
@given(st.integers(0, 2**32), st.sampled_from(SIZES), st.sampled_from([1e-3, 0.3, 50.0]))
def test_rounding_is_exact_and_the_same(seed: int, n: int, mean: float) -> None:
    rng, which = np.random.default_rng(seed), drawn(seed, seed % 2**32)
    step = float(np.float32(10.0 ** rng.uniform(-30, 30)))
    values = (rng.laplace(size=n) * mean * step).astype(np.float32)
    values[rng.random(n) < 0.1] = 0.0
    (places, counts), (p, c) = (b.round_known(values, step, which) for b in BACKENDS)
    assert places.tobytes() == p.tobytes()
    assert counts.tobytes() == c.tobytes()
    assert (places.dtype, counts.dtype) == (np.int64, np.int32)
    found = dict(zip(places.tolist(), counts.tolist(), strict=True))
    for i in rng.integers(0, n, min(n, 60)).tolist() + places[:60].tolist():
        scaled = Fraction(float(np.abs(values[i]).astype(np.float64) / step))
        rest = math.floor((scaled - math.floor(scaled)) * 2**32)
        magnitude = math.floor(scaled) + (threshold_of(i, which) < rest)
        assert found.get(i, 0) == (-magnitude if values[i] < 0 else magnitude)


@pytest.mark.parametrize("step", [2.0**-149, 1e-40, 1e-20, 1.0, 1e30, 3e38])
def test_rounding_at_the_ends_of_float32(step: float) -> None:
    step = float(np.float32(step))
    n = 20_000
    with np.errstate(over="ignore"):
        values = (np.random.default_rng(1).laplace(size=n) * step).astype(np.float32)
    values = np.nan_to_num(values, posinf=3e38, neginf=-3e38)
    (places, counts), (p, c) = (b.round_known(values, step, drawn(1)) for b in BACKENDS)
    assert places.tobytes() == p.tobytes()
    assert counts.tobytes() == c.tobytes()


def test_too_many_steps_are_refused() -> None:
    for value in (2.0**24, -(2.0**24), 3e38):
        values = np.zeros(100, np.float32)
        values[7] = value
        assert [b.round_known(values, 1.0, drawn(0)) for b in BACKENDS] == [None, None]
        values[7] = 2**24 - 1
        assert all(b.round_known(values, 1.0, drawn(0))[1].tolist() == [2**24 - 1] for b in BACKENDS)


def log2_beta(ones: float, zeros: float) -> float:
    return (math.lgamma(ones) + math.lgamma(zeros) - math.lgamma(ones + zeros)) / math.log(2)


@pytest.mark.parametrize(
    ("n", "density"),
    [
        pytest.param(n, density, marks=pytest.mark.slow if n * density > 20_000 else [])
        for n in SIZES
        for density in (0.001, 0.02, 0.5, 1.0)
    ],
)
def test_code_round_trip_and_length_in_closed_form(n: int, density: float) -> None:
    values = np.random.default_rng(n).laplace(size=n).astype(np.float32)
    which, step = drawn(n, 77), 1 / density
    indices, _ = fires_reference.round_known(values, step, which)
    for shift in (0, -4, 9, -100):
        level = min(max(fires_reference.half_octave(int(density * 2**32)) + shift, 0), 127)
        apart, same = (b.outside(indices, level, which) for b in BACKENDS)
        assert apart.tolist() == same.tolist()
        last = fires_reference.last_candidate(level)
        assert apart.tolist() == [threshold_of(i, which) > last for i in indices.tolist()]
        inside = indices[~apart]
        data, compiled = (b.encode_fires(n, inside, level, which) for b in BACKENDS)
        assert data.tobytes() == compiled.tobytes()
        for backend in BACKENDS:
            found = backend.decode_fires(data, n, inside.size, level, which)
            assert found is not None
            assert found.tolist() == inside.tolist()
            for wrong in (inside.size + 1, inside.size - 1):
                assert wrong < 0 or backend.decode_fires(data, n, wrong, level, which) is None
        coded = [i for i in range(n) if threshold_of(i, which) <= last] if n <= 1000 else None
        if coded is None:
            continue
        # bits do not depend on their order in a context: - log2 of Beta(a + ones, b + zeros) / Beta(a, b)
        contexts = fires_reference.context_of(np.array([threshold_of(i, which) for i in coded], np.uint32), level)
        fired, bits = set(inside.tolist()), 0.0
        for context in range(DEPTH + REACH + 1):
            here = [i in fired for i, c in zip(coded, contexts.tolist(), strict=True) if c == context]
            a = ONES[context] / 1024
            b = WEIGHT / 1024 - a
            bits -= log2_beta(a + sum(here), b + len(here) - sum(here)) - log2_beta(a, b)
        assert bits - 24 <= 8 * data.size <= 1.01 * bits + 12


def test_bits_a_fire_of_a_laplacian_are_those_of_theory() -> None:
    """With known thresholds pi^2 / 6 nats, 2.373 bits, whatever the density: Laplace magnitudes, ten times fewer."""
    n = 1 << 20
    values = np.random.default_rng(0).laplace(size=n).astype(np.float32)
    for density in (0.003, 0.01):
        which = drawn(5)
        indices, _ = fires.round_known(values, 1 / density, which)
        level = fires_reference.half_octave(int(density * 2**32))
        apart = fires.outside(indices, level, which)
        assert apart.mean() < 0.001
        size = fires.encode_fires(n, indices[~apart], level, which).size
        assert math.pi**2 / 6 / math.log(2) < 8 * size / indices.size < 1.04 * math.pi**2 / 6 / math.log(2)


@fast
@given(st.binary(max_size=60), st.sampled_from([0, 1, 100, 5000]), st.integers(0, 127), st.integers(0, 30))
def test_any_bytes_are_read_or_refused(data: bytes, n: int, level: int, num_fires: int) -> None:
    which = drawn(level)
    found, same = (b.decode_fires(np.frombuffer(data, np.uint8), n, num_fires, level, which) for b in BACKENDS)
    assert (found is None) == (same is None)
    if found is not None and same is not None:
        assert found.tolist() == same.tolist()
        assert found.size == num_fires
        assert fires.encode_fires(n, found, level, which).tobytes() == data


def test_coordinates_beyond_32_bits() -> None:
    which = drawn(8, 5)
    indices = np.array([3, 2**32 - 1, 2**32, 2**33 + 17], np.int64)
    for level in (20, 40, 55):
        expected = [threshold_of(i, which) > fires_reference.last_candidate(level) for i in indices.tolist()]
        assert all(b.outside(indices, level, which).tolist() == expected for b in BACKENDS)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).laplace(size=1_500_000).astype(np.float32)
    found = []
    for number in (1, 3):
        monkeypatch.setattr("gradwire.kernels.threads.num_threads", lambda number=number: number)
        found.append(fires.round_known(values, 30.0, drawn(1)))
    assert found[0][0].tobytes() == found[1][0].tobytes()
    assert found[0][1].tobytes() == found[1][1].tobytes()


def test_ops_run_either() -> None:
    for n in (100, 50_000):
        values, which = np.random.default_rng(n).laplace(size=n).astype(np.float32), drawn(n)
        places, counts = ops.round_known(values, 20.0, which)
        level = fires_reference.half_octave(2**32 // 20)
        inside = places[~ops.outside(places, level, which)]
        data = ops.encode_fires(n, inside, level, which)
        assert ops.decode_fires(data, n, inside.size, level, which).tolist() == inside.tolist()
        assert counts.size == places.size


@pytest.mark.parametrize("n", [*SIZES, 2**16 + 31, 3 * 2**16 + 32])
def test_sums_of_magnitudes(n: int) -> None:
    values = (np.random.default_rng(n).standard_cauchy(n) * 1e30).clip(-3e38, 3e38).astype(np.float32)
    found, same = (b.sum_magnitudes(values) for b in BACKENDS)
    assert found == same
    exact = math.fsum(abs(x) for x in values.tolist())
    assert found[0] == pytest.approx(exact, rel=1e-12)
    assert found[1] == (max(abs(x) for x in values.tolist()) if n else 0.0)
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        for at in {0, n // 2, n - 1} if n else ():
            spoilt = values.copy()
            spoilt[at] = bad
            assert not any(math.isfinite(b.sum_magnitudes(spoilt)[1]) for b in BACKENDS)
