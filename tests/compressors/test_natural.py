"""Natural compression against its definition in exact fractions, and its variance in closed form."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gradwire as gw
from examples import up_to
from gradwire.payload import Every, Floats, Levels, Part

LARGEST = float(np.finfo(np.float32).max)
TOP = 2.0**127
VECTORS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40)
KEY = gw.Key(5, round=2, client=1)


def sent(x: np.ndarray, key: gw.Key = KEY) -> np.ndarray:
    """What arrives, after a check that the bytes carry it."""
    compressor = gw.natural()
    payload, _ = compressor.compress(x, compressor.init(gw.Layout.flat(x.size)), gw.Round(index=key.round, key=key))
    assert gw.decode(gw.encode(payload)) == payload
    return gw.decompress(payload)


def oracle(x: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Up where the draw is below (|x| - low) / (high - low), in exact arithmetic."""
    largest = Fraction(float(np.abs(x).max()))
    out = []
    for number, draw in zip(x.tolist(), draws.tolist(), strict=True):
        magnitude = Fraction(abs(number))
        if magnitude == 0:
            out.append(0.0)
            continue
        low = Fraction(2) ** (math.frexp(abs(number))[1] - 1)
        assert low <= magnitude < 2 * low
        high = 2 * low if low < TOP else max(largest, low)
        chance = (magnitude - low) / (high - low) if high > low else 0
        out.append(math.copysign(float(high if Fraction(draw) < chance else low), number))
    return np.array(out, np.float32)


def uniform(key: gw.Key, count: int) -> np.ndarray:
    """The stream named "dither" as docs/format.md has it: the top 24 bits of each word."""
    words = gw.Key(key.seed, key.round, key.client, "dither").words(count)
    return (words >> np.uint64(40)).astype(np.float64) * 2.0**-24


@settings(max_examples=up_to(300), deadline=None)
@given(numbers=VECTORS)
@example(numbers=[0.0, -0.0, 0.0])
@example(numbers=[2.0**-149, -3 * 2.0**-149, 5 * 2.0**-149, 2.0**-126, 1.5 * 2.0**-127])
@example(numbers=[TOP, -TOP, TOP])
@example(numbers=[LARGEST, -LARGEST, 1.25 * TOP, 1.0])
def test_definition(numbers):
    x = np.array(numbers, np.float32)
    expected = oracle(x, uniform(KEY, x.size)) + np.float32(0)
    close = np.abs(x) > TOP  # the chance of these is rounded to float32
    got = sent(x)
    assert np.array_equal(got[~close], expected[~close])
    assert np.isin(np.abs(got[close]), [np.float32(TOP), np.abs(x).max()]).all()


def test_powers_of_two_and_zeros_arrive_exactly():
    powers = np.ldexp(np.float32(1), np.arange(-149, 128)).astype(np.float32)
    x = np.concatenate([powers, -powers, [0, -0.0]]).astype(np.float32)
    assert np.array_equal(sent(x), x)
    assert not np.signbit(sent(x)[-1]), "-0.0 arrives as 0.0"


@pytest.mark.parametrize("scale", [1.0, 2.0**-149, 2.0**100, -(2.0**-30)])
@pytest.mark.parametrize("number", [4 / 3, 5 / 4, 3 / 2, 7 / 4, 1.01])
def test_variance_in_closed_form(number, scale):
    """(1 + m) 2^a has mean itself and variance m (1 - m) 4^a, at most 1/8 of its square, at m = 1/3."""
    number = 3 if scale == 2.0**-149 else number  # the smallest number between two powers
    x = np.full(100_000, number * scale, np.float32)
    low = 2.0 ** math.floor(math.log2(abs(float(x[0]))))
    m = abs(float(x[0])) / low - 1
    got = np.abs(sent(x).astype(np.float64)) / low
    assert set(got.tolist()) <= {1.0, 2.0}
    ups = (got == 2).mean()
    assert ups == pytest.approx(m, abs=5 * math.sqrt(m * (1 - m) / x.size))
    promised = gw.natural().guarantee(x.size).omega * (1 + m) ** 2
    assert m * (1 - m) <= promised * (1 + 1e-12)
    assert got.var() == pytest.approx(m * (1 - m), rel=0.05)


def test_the_worst_number_needs_all_that_is_promised():
    third = Fraction(1, 3)
    assert third * (1 - third) / (1 + third) ** 2 == Fraction(1, 8)
    assert gw.natural().guarantee(10**9) == gw.Unbiased(0.125)


def test_above_the_last_power_of_two_the_mean_is_right_and_nothing_overflows():
    x = np.full(100_000, 1.25 * TOP, np.float32)
    x[0] = 1.75 * TOP
    got = sent(x).astype(np.float64)
    assert set(got.tolist()) <= {TOP, 1.75 * TOP}, "no number is above the largest there is"
    assert got[1:].mean() / TOP == pytest.approx(1.25, abs=5 * math.sqrt(1 / 3 * 2 / 3 * 0.75**2 / x.size))


def test_only_levels_that_occur_travel():
    x = np.float32([1, 1, 4, -4, 0])
    [part] = gw.natural().quantize([Part(Every(5), Floats(x))], KEY)
    assert isinstance(part.values, Levels)
    assert sorted(part.values.levels.tolist()) == [0.0, 1.0, 4.0]


def test_how_the_model_is_cut_changes_nothing():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    arrays = {"a": x[:300], "b": x[300:]}
    cut = gw.Layout.from_arrays(arrays)
    client = gw.Client(gw.natural(), cut, seed=5, client_id=1)
    assert np.array_equal(gw.decompress(gw.decode(client.compress(x, round=2))), sent(x))


def test_error_feedback_takes_it():
    """Unbiased with omega = 1/8 at any length is contractive with delta = 7/8."""
    assert str(gw.ef(gw.natural())) == "ef(natural())"
    assert (gw.topk(0.5) | gw.natural()).guarantee(100) == gw.Contractive(0.5 * 0.875)
    with pytest.raises(gw.ConfigError, match="contractive"):
        # its omega grows with the length: it is looked at again at the model's
        gw.Client(gw.ef(gw.uniform(8, stochastic=True)), gw.Layout.flat(10**6))


def test_bits():
    """Normal numbers take about the entropy of their exponents and a sign: less than a quarter of bfloat16."""
    x = np.random.default_rng(1).standard_normal(100_000).astype(np.float32)
    values, counts = np.unique(sent(x), return_counts=True)
    shares = counts / x.size
    entropy = -(shares * np.log2(shares)).sum()
    blob = gw.Client(gw.natural(), gw.Layout.flat(x.size)).compress(x)
    assert 8 * len(blob) / x.size < 1.01 * entropy + 8 * 4 * values.size / x.size
    assert 8 * len(blob) / x.size < 4
