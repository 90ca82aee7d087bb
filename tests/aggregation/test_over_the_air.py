"""Over-the-air computation: noise and outage against their closed forms, what goes digitally, what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradwire as gw
from examples import up_to
from gradwire.aggregation.over_the_air import OverTheAir, gaussians, over_the_air
from gradwire.aggregation.robust import Aggregation
from gradwire.payload import Every, Floats, Part, Payload
from gradwire.rng import Key

D = 50
LAYOUT = gw.Layout.flat(D)
MODEL = gw.Layout.from_arrays(
    {"w": np.zeros((6, 5), np.float32), "b": np.zeros(7, np.float32), "running_mean": np.zeros(5, np.float32)}
)


def vector(seed: int, d: int = D) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(d).astype(np.float32)


def dense_payload(numbers: Any) -> Payload:
    x = np.asarray(numbers, np.float32)
    return Payload(x.size, (Part(Every(x.size), Floats(x)),))


def payload_of(spec: str, update: np.ndarray, layout: gw.Layout = LAYOUT, client: int = 0, round: int = 0) -> Payload:
    return gw.decode(gw.Client(gw.parse(spec), layout, client_id=client).compress(update, round=round))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and type(a[k]) is type(b[k]) for k in a)


def gain_of(seed: int, round: int, arrival: int) -> float:
    """|h|^2 as the docstring says."""
    return -math.log(1 - float(Key(seed, round, arrival, "fading").uniform(1)[0]))


# --- without noise --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "dense()",
        "randk(0.3, shared=True)",
        "randk(0.2, shared=True) | uniform(4)",
        "cyclic(0.2)",
        "sign()",
        "qsgd(1)",
        "powersgd(1)",
        "ef(randk(0.3, shared=True) | fp16())",
    ],
)
def test_without_noise_it_is_the_mean(spec):
    air = over_the_air(snr_db=math.inf).make(MODEL, compressor=gw.parse(spec))
    plain = gw.Aggregator(MODEL)
    for i in range(5):
        payload = payload_of(spec, vector(i, MODEL.d), MODEL, i)
        air.add(payload, i + 0.5)
        plain.add(payload, i + 0.5)
    np.testing.assert_allclose(air.mean(), plain.mean(), rtol=1e-6, atol=1e-7)
    assert (air.sum_weights, air.num_received, air.silent) == (12.5, 5, 0)


def test_nothing_received_gives_zeros():
    aggregator = OverTheAir(LAYOUT, snr_db=0.0)
    assert not aggregator.mean().any()
    assert (aggregator.channel_uses, aggregator.sum_weights) == (0, 0.0)


def test_zeros_come_through_without_noise():
    aggregator = OverTheAir(LAYOUT, snr_db=0.0)
    aggregator.add(dense_payload(np.zeros(D)))
    assert not aggregator.mean().any()


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 20.0, 60.0])
@pytest.mark.parametrize("weights", [(1.0,), (1.0, 3.0, 0.5)])
def test_variance_of_the_noise(snr_db, weights):
    d = 40_000
    layout = gw.Layout.flat(d)
    aggregator, exact = OverTheAir(layout, snr_db, seed=1), np.zeros(d)
    powers = []
    for i, weight in enumerate(weights):
        update = vector(i, d) * np.float32(i + 1)
        aggregator.add(dense_payload(update), weight)
        exact += weight * update.astype(np.float64) / sum(weights)
        powers.append(weight**2 * np.mean(update.astype(np.float64) ** 2))
    noise = (aggregator.mean() - exact) / (math.sqrt(max(powers)) / sum(weights))
    expected = 10 ** (-snr_db / 10)
    rounding = 1e-6 * np.abs(exact).max() / (math.sqrt(max(powers)) / sum(weights))
    assert abs(noise.var() - expected) < 5 * expected * math.sqrt(2 / d) + rounding**2
    assert abs(noise.mean()) < 5 * math.sqrt(expected / d) + rounding


def test_noise_is_new_each_round_and_the_same_within_one():
    def noises(seed: int) -> list[bytes]:
        aggregator, found = OverTheAir(LAYOUT, snr_db=0.0, seed=seed), []
        for _ in range(3):
            aggregator.add(dense_payload(np.ones(D)))
            assert aggregator.mean().tobytes() == aggregator.mean().tobytes()
            found.append(aggregator.mean().tobytes())
            aggregator.reset()
        return found

    assert noises(0) == noises(0)
    assert len({*noises(0), *noises(1)}) == 6


def test_the_global_generator_is_left_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    aggregator = OverTheAir(LAYOUT, fading="rayleigh")
    aggregator.add(dense_payload(np.ones(D)))
    aggregator.mean()
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40_001])
def test_gaussians(count):
    draws = gaussians(Key(3, purpose="x"), count)
    assert draws.shape == (count,)
    assert np.isfinite(draws).all()
    if count > 1000:
        from scipy import stats

        assert stats.kstest(draws, "norm").pvalue > 1e-4
        half = draws.size // 2
        assert abs(np.corrcoef(draws[:half], draws[half + 1 :])[0, 1]) < 5 / math.sqrt(half)


def test_gaussians_reach_no_further_than_said(monkeypatch):
    monkeypatch.setattr(Key, "uniform", lambda key, n: np.repeat(np.float32([1 - 2.0**-24, 0]), n // 2))
    assert 5.76 < gaussians(Key(0), 2)[0] < 5.77


# --- fading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.05, 0.5, 2.0])
def test_outage_is_that_of_rayleigh_fading(threshold):
    n = 3000
    aggregator = OverTheAir(gw.Layout.flat(1), math.inf, "rayleigh", threshold, seed=5)
    for _ in range(n):
        aggregator.add(dense_payload([1.0]))
    outage = 1 - math.exp(-threshold)
    assert aggregator.silent + aggregator.num_received == n
    assert abs(aggregator.silent / n - outage) < 5 * math.sqrt(outage * (1 - outage) / n)


def test_silent_clients_count_neither_numbers_nor_weight():
    aggregator = OverTheAir(LAYOUT, math.inf, "rayleigh", threshold=0.7, seed=2)
    for round in range(3):
        heard = [gain_of(2, round, i) >= 0.7 for i in range(8)]
        assert any(heard)
        assert not all(heard)
        total, weights = np.zeros(D), 0.0
        for i in range(8):
            before = aggregator.silent
            aggregator.add(dense_payload(vector(i)), i + 1.0)
            assert aggregator.silent == before + (not heard[i])
            total += heard[i] * (i + 1.0) * vector(i).astype(np.float64)
            weights += heard[i] * (i + 1.0)
        np.testing.assert_allclose(aggregator.mean(), total / weights, rtol=1e-5, atol=1e-6)
        assert (aggregator.sum_weights, aggregator.num_received) == (weights, sum(heard))
        assert aggregator.silent == 8 - sum(heard)
        assert aggregator.channel_uses == (round + 1) * D
        aggregator.reset()
        assert aggregator.silent == 0


def test_inverting_a_bad_channel_costs_power():
    d, threshold = 40_000, 0.3
    layout = gw.Layout.flat(d)
    aggregator = OverTheAir(layout, 10.0, "rayleigh", threshold, seed=4)
    gains = [gain_of(4, 0, i) for i in range(6)]
    heard = [i for i in range(6) if gains[i] >= threshold]
    for i in range(6):
        aggregator.add(dense_payload(np.full(d, i + 1.0)), 2.0)
    exact = sum(i + 1.0 for i in heard) / len(heard)
    loudest = max(2.0 * (i + 1.0) / math.sqrt(gains[i]) for i in heard)
    expected = 0.1 * (loudest / (2.0 * len(heard))) ** 2
    assert abs((aggregator.mean() - exact).astype(np.float64).var() - expected) < 5 * expected * math.sqrt(2 / d)


def test_threshold_does_not_matter_without_fading():
    aggregator = OverTheAir(LAYOUT, threshold=50.0)
    aggregator.add(dense_payload(np.ones(D)))
    assert (aggregator.silent, aggregator.num_received) == (0, 1)


# --- what goes which way --------------------------------------------------------------------------


def test_tcs_sends_known_coordinates_through_the_air_and_its_own_digitally():
    spec = "tcs(0.2, 0.1)"
    clients = [gw.Client(gw.parse(spec), MODEL, client_id=i) for i in range(3)]
    server = gw.Server(gw.parse(spec), MODEL)
    air = over_the_air(0.0).make(MODEL, compressor=gw.parse(spec))
    plain = gw.Aggregator(MODEL)
    for i, client in enumerate(clients):
        blob = client.compress(vector(i, MODEL.d))
        server.receive(blob, i)
        air.add(gw.decode(blob))
        plain.add(gw.decode(blob))
    np.testing.assert_array_equal(air.mean(), plain.mean())  # nobody has a reference: all is listed
    assert air.channel_uses == 0
    result = server.close_round()
    reference = gw.Reference.of(gw.decode(result.blob))
    air.reset()
    plain.reset()
    late = payload_of(spec, vector(9, MODEL.d), MODEL, 3, round=1)  # one without the reference
    payloads = []
    for i, client in enumerate(clients):
        client.end_round(result.blob)
        payloads.append(gw.decode(client.compress(vector(i + 10, MODEL.d))))
    for payload in [payloads[0], late, *payloads[1:]]:
        air.add(payload, 2.0, reference)
        plain.add(payload, 2.0, reference)
    known = reference.largest(0, MODEL.num_parameters, 7)
    np.testing.assert_array_equal(np.flatnonzero(air.mean() != plain.mean()), known)
    assert (air.channel_uses, air.num_received) == (known.size, 4)


def test_running_statistics_go_digitally():
    air = over_the_air(0.0).make(MODEL, compressor=gw.dense())
    plain = gw.Aggregator(MODEL)
    for i in range(3):
        update = vector(i, MODEL.d)
        update[-5:] = [0, 0, 0, 0, 100 * i]
        for one in (air, plain):
            one.add(payload_of("dense()", update, MODEL))
    assert air.channel_uses == MODEL.num_parameters
    different = np.flatnonzero(air.mean() != plain.mean())
    np.testing.assert_array_equal(different, np.arange(MODEL.num_parameters))


def test_listed_payloads_go_digitally_where_zeros_are_not_values():
    sparse = np.zeros(D, np.float32)
    sparse[3] = 5
    strict, told = OverTheAir(LAYOUT, 0.0), OverTheAir(LAYOUT, 0.0, zeros_are_values=True)
    for one in (strict, told):
        one.add(payload_of("dense()", sparse))
        one.add(dense_payload(np.ones(D)))
        assert one.channel_uses == D
        one.reset()
    strict.add(payload_of("dense()", sparse))
    told.add(payload_of("dense()", sparse))
    np.testing.assert_array_equal(strict.mean(), sparse)
    assert (told.mean() != sparse).all()


def test_channel_uses_do_not_depend_on_the_number_of_clients():
    spec = "randk(0.3, shared=True)"
    for count in (1, 6):
        aggregator = over_the_air().make(LAYOUT, compressor=gw.parse(spec))
        for round in range(4):
            for i in range(count):
                aggregator.add(payload_of(spec, vector(i), client=i, round=round))
            aggregator.reset()
        assert aggregator.channel_uses == 4 * 15


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("filled", [False, True])
def test_refused_payloads_change_nothing(filled):
    aggregator = OverTheAir(LAYOUT, 0.0, "rayleigh", threshold=1e-6)
    good = payload_of("randk(0.3, shared=True)", vector(0))
    if filled:
        aggregator.add(good, 2.0)
    before = aggregator.state_dict()
    packet = gw.decode(gw.Client(gw.dense(), LAYOUT).packets(vector(0), 100)[0])
    refused = [
        (packet, {}, gw.ProtocolError, "packet"),
        (good, {"count": False}, gw.ProtocolError, "whole"),
        (dense_payload(np.ones(D + 1)), {}, gw.ProtocolError, "d = 50, got 51"),
        (dense_payload(np.full(D, np.inf)), {}, gw.ProtocolError, "finite"),
        (good, {"weight": -1.0}, gw.ConfigError, "weight"),
    ]
    if filled:
        refused.append((dense_payload(np.ones(D)), {}, gw.ProtocolError, "round's 15 shared coordinates, got 50"))
    for payload, options, kind, match in refused:
        with pytest.raises(kind, match=match):
            aggregator.add(payload, **options)
        assert same(aggregator.state_dict(), before)


@settings(max_examples=up_to(60), deadline=None)
@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6),
    weights=st.lists(st.floats(2.0**-64, 2.0**64), min_size=6, max_size=6),
    snr_db=st.sampled_from([-100.0, -20.0, 20.0, math.inf]),
    fading=st.sampled_from(["none", "rayleigh"]),
)
def test_mean_is_finite_whatever_is_sent(numbers, weights, snr_db, fading):
    aggregator = OverTheAir(gw.Layout.flat(3), snr_db, fading, 0.01)
    for number, weight in zip(numbers, weights, strict=False):
        before = aggregator.state_dict()
        try:
            aggregator.add(dense_payload(np.full(3, number)), weight)
        except gw.ProtocolError:
            assert same(aggregator.state_dict(), before)
        assert np.isfinite(aggregator.mean()).all()


def test_merging_is_refused():
    with pytest.raises(gw.ConfigError, match="noise"):
        OverTheAir(LAYOUT).merge(OverTheAir(LAYOUT))


def test_compressors_without_shared_coordinates_are_refused():
    for spec in ("topk(0.1)", "ef(randk(0.1))"):
        with pytest.raises(gw.ConfigError, match=r"shared=True"):
            over_the_air().make(LAYOUT, compressor=gw.parse(spec))
    with pytest.raises(gw.ConfigError, match="mirror"):
        over_the_air().make(LAYOUT, compressor=gw.parse("ef21(dense())"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"snr_db": math.nan}, "snr_db"),
        ({"snr_db": -math.inf}, "snr_db"),
        ({"snr_db": -101}, "snr_db must be of"),
        ({"snr_db": "20"}, "snr_db"),
        ({"snr_db": True}, "snr_db"),
        ({"fading": "raleigh"}, "did you mean 'rayleigh'"),
        ({"fading": None}, "fading"),
        ({"threshold": 0}, "threshold must be above 0"),
        ({"threshold": math.inf}, "threshold"),
    ],
)
def test_parameters_are_checked(options, match):
    for build in (over_the_air, lambda **o: OverTheAir(LAYOUT, **o)):
        with pytest.raises(gw.ConfigError, match=match):
            build(**options)


def test_seed_is_checked():
    with pytest.raises(gw.ConfigError, match="seed"):
        OverTheAir(LAYOUT, seed=-1)


# --- state and text -------------------------------------------------------------------------------


def test_state_goes_on_in_the_middle_of_a_round():
    def run(stop: tuple[int, int] | None) -> list[Any]:
        aggregator, found = OverTheAir(LAYOUT, 5.0, "rayleigh", 0.5, seed=3), []
        for round in range(3):
            for i in range(5):
                if stop == (round, i):
                    state = aggregator.state_dict()
                    aggregator = OverTheAir(LAYOUT, 5.0, "rayleigh", 0.5, seed=8)
                    aggregator.load_state_dict(state | {"seed": 8, "round": 99})
                aggregator.add(payload_of("cyclic(0.3)", vector(i), round=round), i + 1.0)
            found += [aggregator.mean().tobytes(), aggregator.silent, aggregator.channel_uses]
            aggregator.reset()
        return found

    whole = run(None)
    assert all(run((round, i)) == whole for round in range(3) for i in (0, 2, 4))


@pytest.mark.parametrize(
    "change",
    [
        {"aggregation": "over_the_air()"},
        {"air_seed": -1},
        {"air_round": -1},
        {"air_round": 1.0},
        {"air_indices": [0]},
        {"air_indices": np.array([1, 0])},
        {"air_indices": np.array([D])},
        {"air_indices": None},
        {"loudest": -1.0},
        {"loudest": np.nan},
        {"silent": -1},
        {"channel_uses": "1"},
        {"num_received": 0, "sum_weights": 0.0},
        {"sum": np.zeros(D - 1, np.float32)},
        {"sum_weights": 0.0},
    ],
    ids=str,
)
def test_wrong_states_change_nothing(change):
    aggregator = OverTheAir(LAYOUT, 5.0)
    aggregator.add(dense_payload(vector(0)))
    before = aggregator.state_dict()
    with pytest.raises(gw.StateError):
        aggregator.load_state_dict(before | change)
    assert same(aggregator.state_dict(), before)
    for name in before:
        with pytest.raises(gw.StateError):
            aggregator.load_state_dict({k: v for k, v in before.items() if k != name})
    assert same(aggregator.state_dict(), before)


def test_text():
    rules = [over_the_air(), over_the_air(snr_db=math.inf), over_the_air(10, "rayleigh", 0.2)]
    assert [str(rule) for rule in rules] == [
        "over_the_air()",
        "over_the_air(snr_db=1e309)",
        "over_the_air(snr_db=10.0, fading='rayleigh', threshold=0.2)",
    ]
    for rule in rules:
        assert eval(str(rule), dict(Aggregation.registry)) == rule
    assert rules[0].summary
    assert rules[0].citation
