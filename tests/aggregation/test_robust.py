"""Median and trimmed mean: against NumPy and SciPy, against wrong clients, and what they refuse."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import gradwire as gw
import gradwire.aggregation.robust
from examples import up_to
from gradwire.aggregation.robust import Aggregation, Median, TrimmedMean, mean, median, trimmed_mean
from gradwire.payload import Every, Explicit, Floats, Known, Part, Payload
from gradwire.rng import Key

D = 40
LAYOUT = gw.Layout.flat(D)
MODEL = gw.Layout.from_arrays(
    {"w": np.zeros((6, 5), np.float32), "b": np.zeros(7, np.float32), "running_mean": np.zeros(5, np.float32)}
)
WHOLE = [
    "dense()",
    "fp16()",
    "qsgd(1)",
    "ternary()",
    "uniform(3)",
    "sign(scope=8)",
    "powersgd(1)",
    "randk(0.3, shared=True)",
    "randk(0.3, unbiased=True, shared=True) | uniform(4)",
    "cyclic(0.3)",
    "cyclic(0.3) | fixed(8, 4.0)",
    "ef(randk(0.3, shared=True))",
    "momentum_correction(cyclic(0.2))",
    "warmup(randk(0.3, shared=True), 1)",
    "by_tensor(uniform(4), others=fp16(), min_elements=1)",
]
NONE = [
    "topk(0.3)",
    "randk(0.3)",
    "threshold(0.5)",
    "ef(topk(0.1) | fp16())",
    "warmup(topk(0.3), 9)",
    "adaptopk(0.1, rounds=5)",
    "regtopk(0.1)",
    "by_tensor(topk(0.3))",
    "warmup(dense(), 1, first=randk(0.1))",
]
RULES = [median(), trimmed_mean(0.0), trimmed_mean(0.2), trimmed_mean(0.4)]


def oracle(rule: Aggregation, vectors: list[np.ndarray]) -> np.ndarray:
    stacked = np.stack(vectors).astype(np.float64)
    return np.median(stacked, axis=0) if rule == median() else stats.trim_mean(stacked, rule.share, axis=0)


def updates(count: int, d: int, seed: int = 0) -> list[np.ndarray]:
    """Small integers, so that there are zeros and ties."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(-2, 3, d) * rng.random()).astype(np.float32) for _ in range(count)]


def payloads_of(spec: str, layout: gw.Layout, count: int, seed: int = 0) -> list[Payload]:
    compressor = gw.parse(spec)
    return [
        gw.decode(gw.Client(compressor, layout, client_id=i).compress(u))
        for i, u in enumerate(updates(count, layout.d, seed))
    ]


def dense_payload(numbers: Any) -> Payload:
    vector = np.asarray(numbers, np.float32)
    return Payload(vector.size, (Part(Every(vector.size), Floats(vector)),))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and type(a[k]) is type(b[k]) for k in a)


# --- what is computed -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("spec", WHOLE)
def test_equals_numpy_and_scipy(spec, rule):
    for count in (1, 2, 5, 8):
        aggregator = rule.make(MODEL, compressor=gw.parse(spec))
        payloads = payloads_of(spec, MODEL, count, seed=count)
        for i, payload in enumerate(payloads):
            aggregator.add(payload, weight=i + 1.0)
        expected = oracle(rule, [gw.decompress(p) for p in payloads])
        result = aggregator.mean()
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)
        assert (aggregator.num_received, aggregator.sum_weights) == (count, count * (count + 1) / 2)
        np.testing.assert_array_equal(aggregator.mean(), result)
        aggregator.reset()
        assert not aggregator.mean().any()
        assert (aggregator.num_received, aggregator.sum_weights) == (0, 0.0)
        aggregator.add(payloads[0])
        np.testing.assert_array_equal(aggregator.mean(), gw.decompress(payloads[0]))


def test_many_coordinates_are_worked_on_in_pieces(monkeypatch):
    monkeypatch.setattr(gradwire.aggregation.robust, "_CELLS", 30)
    aggregator = Median(LAYOUT)
    vectors = updates(7, D)
    for vector in vectors:
        aggregator.add(dense_payload(vector))
    np.testing.assert_allclose(aggregator.mean(), oracle(median(), vectors), rtol=1e-6)


def test_known_supports_without_extra_coordinates():
    """Coordinates that the reference gives are shared; those of a client's own are not."""
    reference = np.arange(D, dtype=np.float32)
    aggregator = Median(LAYOUT)
    vectors = updates(3, 3)
    nothing = np.empty(0, np.int64)
    for vector in vectors:
        part = Part(Known(D, 3, nothing), Floats(vector))
        aggregator.add(Payload(D, (part,), reference_digest=b"\1" * 8), reference=reference)
    expected = np.zeros(D)
    expected[-3:] = oracle(median(), vectors)
    np.testing.assert_allclose(aggregator.mean(), expected, rtol=1e-6)
    before = aggregator.state_dict()
    extra = Payload(D, (Part(Known(D, 3, np.array([0])), Floats(np.ones(4, np.float32))),), reference_digest=b"\1" * 8)
    with pytest.raises(gw.ProtocolError, match="part 0 is over its client's own coordinates"):
        aggregator.add(extra, reference=reference)
    with pytest.raises(gw.StaleReference):
        aggregator.add(extra)
    assert same(aggregator.state_dict(), before)


@pytest.mark.parametrize("rule", [median(), trimmed_mean(0.0), trimmed_mean(0.25)], ids=str)
def test_largest_numbers_stay_finite(rule):
    largest = np.finfo(np.float32).max
    aggregator = rule.make(LAYOUT)
    for sign in (1, 1, -1, 1, 1, 1):
        aggregator.add(dense_payload(np.full(D, sign * largest)), 2.0**64)
    assert np.isfinite(aggregator.mean()).all()


@settings(max_examples=up_to(40), deadline=None)
@given(data=st.data(), rule=st.sampled_from(RULES), count=st.integers(1, 9))
def test_order_of_arrival_does_not_matter(data, rule, count):
    number = st.one_of(st.sampled_from([0.0, -0.0, 1.0]), st.floats(width=32, allow_nan=False, allow_infinity=False))
    vectors = [np.array(data.draw(st.lists(number, min_size=4, max_size=4)), np.float32) for _ in range(count)]
    results = []
    for order in (range(count), data.draw(st.permutations(range(count)))):
        aggregator = rule.make(gw.Layout.flat(4), compressor=gw.dense())
        for i in order:
            aggregator.add(dense_payload(vectors[i]))
        results.append(aggregator.mean().tobytes())
    assert results[0] == results[1]


@settings(max_examples=up_to(60), deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    honest=st.integers(2, 8),
    poison=st.sampled_from([1e30, -1e30]),
    share=st.floats(0.34, 0.49),
)
def test_one_wrong_client_moves_nothing_out_of_the_honest_range(seed, honest, poison, share):
    vectors = [np.random.default_rng([seed, i]).standard_normal(D).astype(np.float32) for i in range(honest)]
    low, high = np.min(vectors, axis=0), np.max(vectors, axis=0)
    for aggregator in (Median(LAYOUT), TrimmedMean(LAYOUT, share)):
        for vector in [*vectors[:1], np.full(D, poison, np.float32), *vectors[1:]]:
            aggregator.add(dense_payload(vector), 1.0)
        result = aggregator.mean()
        assert (low <= result).all()
        assert (result <= high).all()


# --- which supports -------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", WHOLE)
def test_whole_supports(spec):
    assert gw.parse(spec).shares == "whole"


@pytest.mark.parametrize("spec", NONE)
def test_supports_of_clients_own(spec):
    assert gw.parse(spec).shares == "none"
    for rule in (median(), trimmed_mean(0.1)):
        with pytest.raises(gw.ConfigError) as error:
            rule.make(LAYOUT, compressor=gw.parse(spec))
        assert str(gw.parse(spec)) in str(error.value)
        assert "randk(density, shared=True)" in str(error.value)


@pytest.mark.parametrize("spec", ["tcs(0.1, 0.01)", "ef(tcs(0.1, 0.01) | fp16())", "warmup(tcs(0.1, 0.01), 2)"])
def test_supports_shared_in_part(spec):
    assert gw.parse(spec).shares == "partly"
    with pytest.raises(gw.ConfigError, match="all send the same coordinates"):
        median().make(LAYOUT, compressor=gw.parse(spec))


def test_an_unknown_compressor_shares_nothing():
    class Own(gw.Compressor):
        init = compress = guarantee = None  # type: ignore[assignment]

    assert Own().shares == "none"


def test_mirrors_are_refused():
    with pytest.raises(gw.ConfigError, match="steps of a mirror"):
        median().make(LAYOUT, compressor=gw.parse("ef21(dense())"))


def test_every_row_of_the_table_is_told_right():
    """A compressor said to share its support sends all clients' numbers at the same coordinates."""
    from cases import COMPRESSORS

    for row in COMPRESSORS:
        compressor = row.build()
        if compressor.shares != "whole" or compressor.mirrored:
            continue
        aggregator = median().make(MODEL, compressor=compressor)
        payloads = payloads_of(row.spec, MODEL, 3)
        for payload in payloads:
            aggregator.add(payload)
        expected = oracle(median(), [gw.decompress(p) for p in payloads])
        np.testing.assert_allclose(aggregator.mean(), expected, rtol=1e-6, atol=1e-7)


def test_what_is_shared_is_said():
    """A compressor whose clients send the same coordinates, whatever their updates, says so."""
    from cases import COMPRESSORS

    silent = []
    for row in COMPRESSORS:
        supports = [
            np.concatenate([[-1], *[part.support.indices for part in payload.parts]]).tolist()
            for payload in payloads_of(row.spec, LAYOUT, 3)
        ]
        if row.build().shares == "none" and supports[0] == supports[1] == supports[2] and row.density != 1.0:
            silent.append(row.spec)
    assert silent == []


def test_zeros_left_out_are_values_only_where_said():
    update = np.zeros(D, np.float32)
    update[3] = 5
    payload = gw.decode(gw.Client(gw.dense(), LAYOUT).compress(update))
    assert isinstance(payload.parts[0].support, Explicit)
    with pytest.raises(gw.ProtocolError, match="own coordinates"):
        Median(LAYOUT).add(payload)
    aggregator = Median(LAYOUT, zeros_are_values=True)
    for other in (payload, dense_payload(np.full(D, 7)), payload):
        aggregator.add(other)
    np.testing.assert_array_equal(aggregator.mean(), update)


def test_the_first_to_come_can_be_kept_from_choosing_the_coordinates():
    compressor = gw.parse("randk(0.3, shared=True)")
    wrong = gw.decode(gw.Client(compressor, LAYOUT, seed=9).compress(np.ones(D, np.float32)))
    right = gw.decode(gw.Client(compressor, LAYOUT, seed=0).compress(np.ones(D, np.float32)))
    aggregator = median().make(LAYOUT, compressor=compressor)
    round = gw.Round(key=Key(0))
    template, _ = compressor.compress(np.zeros(D, np.float32), compressor.init(LAYOUT), round)
    aggregator.agree(template)
    resumed = median().make(LAYOUT, compressor=compressor)
    resumed.load_state_dict(aggregator.state_dict())
    for one in (aggregator, resumed):
        assert not one.mean().any()
        before = one.state_dict()
        with pytest.raises(gw.ProtocolError, match="the round's 12 coordinates"):
            one.add(wrong)
        assert same(one.state_dict(), before)
        one.add(right)
        np.testing.assert_array_equal(one.mean(), gw.decompress(right))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("filled", [False, True])
def test_refused_payloads_change_nothing(filled):
    compressor = gw.parse("randk(0.3, shared=True)")
    good = gw.decode(gw.Client(compressor, LAYOUT).compress(np.ones(D, np.float32)))
    packets = gw.Client(gw.dense(), LAYOUT).packets(np.ones(D, np.float32), 100)
    aggregator = Median(LAYOUT)
    if filled:
        aggregator.add(good, 2.0)
    before = aggregator.state_dict()
    refused = [
        (payloads_of("topk(0.3)", LAYOUT, 1)[0], {}, gw.ProtocolError, "own coordinates"),
        (payloads_of("randk(0.3)", LAYOUT, 1)[0], {}, gw.ProtocolError, "own coordinates"),
        (gw.decode(packets[0]), {}, gw.ProtocolError, r"whole here, got packet \(0, \d\)"),
        (good, {"count": False}, gw.ProtocolError, "whole here"),
        (dense_payload(np.ones(D + 1)), {}, gw.ProtocolError, "d = 40, got 41"),
        (dense_payload(np.full(D, np.nan)), {}, gw.ProtocolError, "finite, part 0"),
        (good, {"weight": 0}, gw.ConfigError, "weight"),
        (good, {"weight": np.nan}, gw.ConfigError, "weight"),
    ]
    if filled:
        other = gw.decode(gw.Client(compressor, LAYOUT).compress(np.ones(D, np.float32), round=1))
        refused.append((other, {}, gw.ProtocolError, "the round's 12 coordinates, got 12 others"))
        refused.append((dense_payload(np.ones(D)), {}, gw.ProtocolError, "got 40 others"))
    for payload, options, kind, match in refused:
        with pytest.raises(kind, match=match):
            aggregator.add(payload, **options)
        assert same(aggregator.state_dict(), before)
    aggregator.add(good)
    assert aggregator.num_received == 1 + filled


def test_kept_numbers_are_copies():
    vector = np.ones(D, np.float32)
    aggregator = Median(LAYOUT)
    aggregator.add(dense_payload(vector))
    vector[:] = 9
    assert aggregator.mean().tolist() == [1.0] * D


# --- merging and state ----------------------------------------------------------------------------


def test_merging_equals_one_aggregator():
    vectors = updates(7, D)
    a, b, whole = TrimmedMean(LAYOUT, 0.2), TrimmedMean(LAYOUT, 0.2), TrimmedMean(LAYOUT, 0.2)
    for i, vector in enumerate(vectors):
        (a if i % 2 else b).add(dense_payload(vector), i + 1)
        whole.add(dense_payload(vector), i + 1)
    before = b.state_dict()
    a.merge(TrimmedMean(LAYOUT, 0.2))
    a.merge(b)
    assert same(b.state_dict(), before)
    np.testing.assert_array_equal(a.mean(), whole.mean())
    assert (a.num_received, a.sum_weights) == (7, 28.0)
    empty = TrimmedMean(LAYOUT, 0.2)
    empty.merge(a)
    np.testing.assert_array_equal(empty.mean(), whole.mean())
    before = a.state_dict()
    for other in (TrimmedMean(LAYOUT, 0.3), Median(LAYOUT), gw.Aggregator(LAYOUT)):
        with pytest.raises(gw.ConfigError, match=r"trimmed_mean\(0.2\)"):
            a.merge(other)
    with pytest.raises(gw.ConfigError, match="layout"):
        a.merge(TrimmedMean(gw.Layout.flat(3), 0.2))
    other = TrimmedMean(LAYOUT, 0.2)
    other.add(payloads_of("cyclic(0.5)", LAYOUT, 1)[0])
    with pytest.raises(gw.ProtocolError, match="coordinates"):
        a.merge(other)
    assert same(a.state_dict(), before)


@pytest.mark.parametrize("count", [0, 3])
def test_state_goes_on_in_the_middle_of_a_round(count):
    payloads = payloads_of("cyclic(0.3)", LAYOUT, 5)
    aggregator, resumed = Median(LAYOUT), Median(LAYOUT)
    for payload in payloads[:count]:
        aggregator.add(payload, 2.0)
    state = aggregator.state_dict()
    kept = copy.deepcopy(state)
    resumed.load_state_dict(state | {"another": 1})
    for one in (aggregator, resumed):
        for payload in payloads[count:]:
            one.add(payload, 2.0)
    assert same(state, kept)
    assert same(aggregator.state_dict(), resumed.state_dict())
    np.testing.assert_array_equal(aggregator.mean(), resumed.mean())


@pytest.mark.parametrize(
    "change",
    [
        {"aggregation": "mean()"},
        {"indices": None},
        {"indices": [0, 1]},
        {"indices": np.arange(3.0)},
        {"indices": np.array([0, 2, 1])},
        {"indices": np.array([0, 1, D])},
        {"indices": np.array([-1, 0, 1])},
        {"rows": np.zeros((2, 4), np.float32)},
        {"rows": np.zeros((1, 3), np.float32)},
        {"rows": np.zeros((2, 3))},
        {"rows": np.full((2, 3), np.nan, np.float32)},
        {"rows": None},
        {"weights": np.ones(1)},
        {"weights": np.ones(2, np.float32)},
        {"weights": np.array([1.0, -1.0])},
        {"weights": [1.0, 1.0]},
        {"sum_weights": 0.0},
        {"sum_weights": -2.0},
        {"sum_weights": np.inf},
        {"num_received": 3},
        {"num_received": -1},
        {"num_received": 0, "rows": np.empty((0, 0), np.float32)},
        {"num_received": None},
    ],
    ids=str,
)
def test_wrong_states_change_nothing(change):
    aggregator = Median(LAYOUT)
    for vector in updates(2, 3):
        payload = Payload(D, (Part(Known(D, 3, np.empty(0, np.int64), np.arange(3)), Floats(vector)),))
        aggregator.add(payload)
    before = aggregator.state_dict()
    aggregator.load_state_dict(before)
    with pytest.raises(gw.StateError):
        aggregator.load_state_dict(before | change)
    assert same(aggregator.state_dict(), before)
    for name in before:
        with pytest.raises(gw.StateError):
            aggregator.load_state_dict({k: v for k, v in before.items() if k != name})
    assert same(aggregator.state_dict(), before)


# --- rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [-0.1, 0.5, 1, np.nan, "0.1", None, True])
def test_share_is_checked(share):
    for build in (trimmed_mean, lambda s: TrimmedMean(LAYOUT, s)):
        with pytest.raises(gw.ConfigError, match="share"):
            build(share)


def test_text_of_rules():
    assert [str(r) for r in (mean(), median(), trimmed_mean(0), trimmed_mean(0.25))] == [
        "mean()",
        "median()",
        "trimmed_mean(0.0)",
        "trimmed_mean(0.25)",
    ]
    for rule in (mean(), median(), trimmed_mean(0.25)):
        assert eval(str(rule), dict(Aggregation.registry)) == rule
        assert hash(rule) == hash(replace(rule))
        assert rule.summary
        assert rule.citation


def test_mean_makes_the_plain_aggregator():
    assert type(mean().make(LAYOUT, compressor=gw.topk(0.1))) is gw.Aggregator


def test_a_share_next_to_half_leaves_one():
    share = float(np.nextafter(0.5, 0))
    for count in range(1, 30):
        aggregator = TrimmedMean(gw.Layout.flat(1), share)
        for i in range(count):
            aggregator.add(dense_payload([float(i)]))
        assert aggregator.mean()[0] == (count - 1) / 2
