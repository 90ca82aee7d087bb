"""Thresholds against brute force: given ones, and those estimated from a sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gradwire as gw
from examples import up_to
from gradwire.compressors.sparsify import threshold

LARGEST = float(np.finfo(np.float32).max)
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-45, LARGEST, -LARGEST]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
VECTORS = st.lists(NUMBERS, max_size=60).map(lambda x: np.array(x, np.float32))
DENSITIES = st.one_of(st.floats(min_value=1e-6, max_value=1.0), st.sampled_from([5e-324, 1e-300, 1.0]))


def f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def compress(compressor: gw.Compressor, x: np.ndarray, seed: int = 0, layout: gw.Layout | None = None) -> gw.Payload:
    before = x.copy()
    layout = gw.Layout.flat(x.size) if layout is None else layout
    payload, _ = compressor.compress(x, compressor.init(layout), gw.Round(key=gw.Key(seed, 0, 1)))
    assert x.tobytes() == before.tobytes()
    assert gw.decode(gw.encode(payload)) == payload
    return payload


def kept(payload: gw.Payload) -> list[int]:
    (part,) = payload.parts
    return part.support.indices.tolist()


def largest(x: np.ndarray, k: int) -> list[int]:
    """The k largest, ties to the lower index, never a zero."""
    numbers = x.tolist()
    order = sorted((i for i in range(x.size) if numbers[i]), key=lambda i: (-abs(numbers[i]), i))
    return sorted(order[:k])


def rule(density: float, d: int) -> int:
    return min(d, max(1, round(density * d)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"threshold needs either a value above 0 or a density in \(0, 1\], got neither"),
        ({"value": 1.0, "density": 0.1}, "got both"),
        ({"value": 0.0}, r"value must be in \(0, .*\], got 0.0"),
        ({"value": -1}, r"value must be in \(0, .*\], got -1.0"),
        ({"value": 1e39}, r"value must be in \(0, .*\], got 1e\+39"),
        ({"value": math.nan}, "value must be finite, got nan"),
        ({"value": "1"}, "value must be a number, got '1'"),
        ({"value": True}, "value must be a number, got True"),
        ({"density": 0}, r"density must be in \(0, 1\], got 0"),
        ({"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
    ],
)
def test_parameters_are_checked(arguments, message):
    with pytest.raises(gw.ConfigError, match=message):
        threshold(**arguments)


def test_text():
    assert str(threshold(0.5)) == "threshold(0.5)" == str(gw.parse("threshold(value=0.5)"))
    assert str(threshold(density=0.01)) == "threshold(density=0.01)"
    assert gw.parse("threshold(density=0.01) | uniform(8)").stages[0] == threshold(density=0.01)
    assert threshold.summary
    assert threshold.citation


# --- a given threshold ------------------------------------------------------------------------------------------------


@settings(max_examples=up_to(200), deadline=None)
@given(x=VECTORS, value=st.floats(min_value=1e-50, max_value=LARGEST))
@example(x=f32(1, -1, 0.5), value=1.0)
@example(x=f32(0.7, -0.7), value=0.7)
@example(x=f32(0, -0.0, 1e-45), value=1e-300)
@example(x=f32(LARGEST, 1), value=LARGEST)
@example(x=f32(), value=1.0)
def test_given_value(x, value):
    compressor = threshold(value)
    payload = compress(compressor, x)
    least = float(np.float32(value))
    assert kept(payload) == [i for i, v in enumerate(x.tolist()) if abs(v) >= least and v]
    arrived = gw.decompress(payload)
    assert (arrived[kept(payload)] == x[kept(payload)]).all()
    assert compressor.guarantee(x.size) == gw.Absolute(value)
    assert np.abs(arrived.astype(np.float64) - x).max(initial=0) <= value


def test_given_value_with_error_feedback_bounds_the_residual():
    compressor = gw.ef(threshold(1.0))
    rng = np.random.default_rng(0)
    state = compressor.init(gw.Layout.flat(100))
    for index in range(50):
        _, state = compressor.compress(rng.normal(0, 0.3, 100).astype(np.float32), state, gw.Round(index=index))
        assert np.abs(state.memory["residual"]).max() < 1.0


def test_a_budget_of_bytes_is_refused_where_it_does_not_fit():
    x, compressor = np.ones(1000, np.float32), threshold(0.5)
    with pytest.raises(gw.ConfigError, match="num_bytes must be at least"):
        compressor.compress(x, compressor.init(gw.Layout.flat(1000)), gw.Round(num_bytes=30))


# --- a sampled one ----------------------------------------------------------------------------------------------------


@settings(max_examples=up_to(200), deadline=None)
@given(x=VECTORS, density=DENSITIES)
@example(x=f32(), density=0.5)
@example(x=f32(0, 0, 0), density=0.5)
@example(x=f32(0, 0, -3), density=1.0)
@example(x=f32(*[1.0] * 60), density=0.3)
def test_small_updates_are_selected_from_exactly(x, density):
    payload = compress(threshold(density=density), x)
    assert kept(payload) == (largest(x, rule(density, x.size)) if x.size else [])
    kept_at_best = 1.0 if not x.size else rule(density, x.size) / x.size
    assert threshold(density=density).guarantee(x.size) == gw.Contractive(kept_at_best)


MAKE = {
    "normal": lambda rng, d: rng.standard_normal(d),
    "cauchy": lambda rng, d: rng.standard_cauchy(d),
    "few": lambda rng, d: rng.standard_normal(d) * (rng.random(d) < 0.002),
    "spike": lambda rng, d: np.eye(1, d, d // 3)[0],
    "equal": lambda rng, d: np.ones(d),
    "levels": lambda rng, d: rng.integers(-3, 4, d),
    "zeros": lambda rng, d: np.zeros(d),
    "denormal": lambda rng, d: rng.integers(-50, 50, d) * 2.0**-149,
    "huge": lambda rng, d: rng.uniform(-1, 1, d) * LARGEST,
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sampled(name, density, seed):
    d = 40_000
    x = MAKE[name](np.random.default_rng(7), d).astype(np.float32)
    compressor = threshold(density=density)
    payload = compress(compressor, x, seed)
    chosen, k = np.array(kept(payload), np.int64), rule(density, d)
    nonzero = np.count_nonzero(x)
    # whatever the sample was, the largest are sent: down to some magnitude, or exactly k of them
    assert chosen.size <= 1.5 * k
    assert chosen.size >= min(1, nonzero)
    assert sorted(chosen.tolist()) == largest(x, chosen.size)
    # the guarantee, on every draw
    delta = compressor.guarantee(d).delta
    error = x.astype(np.float64) - gw.decompress(payload)
    assert (error**2).sum() <= (1 - delta) * (x.astype(np.float64) ** 2).sum() * (1 + 1e-12)
    assert delta >= 1 / d
    assert chosen.size >= min(nonzero, delta * d * (1 - 1e-12))
    # the density comes out as asked
    if name in ("normal", "cauchy", "huge"):
        assert 0.6 * k <= chosen.size
    if name in ("equal", "levels") and density <= 0.1:
        assert chosen.size == k, "ties: exactly k of those that reach the threshold"


def test_the_sample_is_a_hundredth_and_right_to_a_tenth():
    d, density = 1_000_000, 0.01
    x = np.random.default_rng(0).standard_normal(d).astype(np.float32)
    compressor = threshold(density=density)
    assert compressor.guarantee(d) == gw.Contractive(100 / d), "the top hundredth of a sample of ten thousand"
    counts = [len(kept(compress(compressor, x, seed))) for seed in range(20)]
    assert len(set(counts)) > 10, "another key, another sample"
    assert counts[3] == len(kept(compress(compressor, x, 3)))
    assert np.mean(counts) == pytest.approx(density * d, rel=0.1)
    assert np.std(counts) == pytest.approx(math.sqrt(100) / 100 * density * d, rel=0.5)


def test_layout_cuts_and_running_statistics():
    arrays = {"a": np.zeros(50), "bn.running_mean": np.zeros(3), "b": np.zeros((4, 5))}
    layout = gw.Layout.from_arrays(arrays)
    x = np.linspace(-1, 1, 73).astype(np.float32)
    payload = compress(threshold(0.5), x, layout=layout)
    assert payload.parts[0].support.cuts == layout.cuts
    arrived = gw.decompress(payload)
    assert np.array_equal(arrived, np.where((np.abs(x) >= 0.5) | (np.arange(73) >= 70), x, 0))


def test_zeros_reach_no_threshold():
    """Not even one that float32 rounds to zero: a mean after it is of what was selected."""
    x = f32(0, 4, -2, 0, -0.0)
    for compressor in (threshold(1e-300), threshold(density=1.0)):
        assert gw.decompress(compress(compressor | gw.uniform(1), x)).tolist() == [0, 3, -3, 0, 0]
