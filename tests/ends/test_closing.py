"""What a closed round comes to, against NumPy: sparse and dense sums, statistics, steps, lossy downlinks, mirrors."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

import cases
import gradwire as gw
from gradwire.aggregation.aggregator import Mirrors
from gradwire.compressors.compressor import Occupied
from gradwire.payload import Every, Explicit

DENSITIES = [0.0, 0.002, 0.05, 0.07, 0.5, 0.97, 1.0]
STEPS = {
    "none": None,
    "half": lambda update: update * np.float32(0.5),
    "negated": lambda update: np.where(np.arange(update.size) % 3, -update, np.float32(-0.0)),
}


def draw(rng: np.random.Generator, d: int, density: float) -> np.ndarray:
    """Numbers down to denormals, whose quotients vanish; the rest are zeros of either sign."""
    numbers = rng.standard_normal(d) * 10.0 ** rng.integers(-45, 3, d)
    return np.where(rng.random(d) < density, numbers, rng.choice([0.0, -0.0], d)).astype(np.float32)


def mean_of(updates: list[np.ndarray], weights: list[float], d: int) -> np.ndarray:
    """As the library defines it: one sum in float32, divided once."""
    total = np.zeros(d, np.float32)
    for update, weight in zip(updates, weights, strict=True):
        total += update if weight == 1.0 else update * np.float32(weight)
    return total / np.float32(sum(weights)) if updates else total


def pruned(vector: np.ndarray) -> bool:
    """Whether leaving out zeros is cheaper, by the entropy of where they are."""
    count, d = int(np.count_nonzero(vector)), vector.size
    if count == d or count == 0:
        return count == 0
    bits = count * math.log2(d / count) + (d - count) * math.log2(d / (d - count))
    return bits / 8 + 4 * count < 4 * d


@pytest.mark.parametrize("d", [500, 40_000])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("step", STEPS)
def test_sum_mean_and_lossless_downlink(d, density, step):
    layout, rng = cases.model_layout(d), np.random.default_rng(d)
    server = gw.Server(gw.dense(), layout, step=STEPS[step])
    kept = []
    for number in range(4):
        updates = [] if number == 2 else [draw(rng, d, density) for _ in range(2)]
        weights = [1.0, 3.7][: len(updates)]
        for client_id, (update, weight) in enumerate(zip(updates, weights, strict=True)):
            client = gw.Client(gw.dense(), layout, client_id=2 * number + client_id)
            server.receive(client.compress(update, weight, round=number), client.client_id, weight)
        expected = mean_of(updates, weights, d)
        applied = (STEPS[step] or np.copy)(expected).astype(np.float32)
        result = server.close_round()
        assert result.update.tobytes() == expected.tobytes()
        assert result.applied.tobytes() == (applied + np.float32(0.0)).tobytes()  # -0.0 arrives as 0.0
        payload = gw.decode(result.blob)
        assert gw.decompress(payload).tobytes() == result.applied.tobytes()
        for part, vector in zip(payload.parts, np.split(applied, [layout.num_parameters]), strict=True):
            assert isinstance(part.support, Explicit if pruned(vector) else Every)
            if pruned(vector):
                np.testing.assert_array_equal(part.support.indices, np.flatnonzero(vector))
        kept.append((result.update, expected, result.applied, applied + np.float32(0.0)))
    for update, expected, applied, sent in kept:  # no later round writes into them
        assert update.tobytes() == expected.tobytes()
        assert applied.tobytes() == sent.tobytes()


@pytest.mark.parametrize(
    "downlink", ["dense() | ans()", "ef(dense())", "topk(0.02)", "topk(1.0)", "randk(0.01)", "fp16()"]
)
def test_one_vector_only_where_it_is_the_same(downlink):
    layout = gw.Layout.flat(5000)
    server = gw.Server(gw.dense(), layout, downlink=gw.parse(downlink))
    for density in (0.01, 0.01, 0.5):
        update = draw(np.random.default_rng(0), 5000, density)
        client = gw.Client(gw.dense(), layout, client_id=server.round)
        server.receive(client.compress(update, round=server.round), client.client_id)
        result = server.close_round()
        sent = gw.decompress(gw.decode(result.blob))
        assert result.applied.tobytes() == sent.tobytes()
        assert result.update.tobytes() == (update + np.float32(0.0)).tobytes()
        if result.applied is not result.update:
            assert not np.shares_memory(result.applied, result.update)


def test_what_vanishes_in_the_mean_is_negative_there_and_not_sent():
    layout, least = gw.Layout.flat(40_000), np.float32(1e-45)
    server = gw.Server(gw.dense(), layout)
    for client_id in range(2):
        update = np.zeros(40_000, np.float32)
        update[[7, 8]] = -least if client_id else 0.0, 1.0
        server.receive(gw.Client(gw.dense(), layout, client_id=client_id).compress(update, 2.0), client_id, 2.0)
    result = server.close_round()
    assert np.signbit(result.update).tolist() == [i == 7 for i in range(40_000)]
    assert not np.signbit(result.applied).any()
    assert result.applied is not result.update
    assert gw.decode(result.blob).num_kept == 1


def test_a_step_keeps_its_own_vector():
    layout, held = gw.Layout.flat(1000), np.zeros(1000, np.float32)
    held[5] = 2.0
    server = gw.Server(gw.dense(), layout, step=lambda update: held)
    result = server.close_round()
    held[5] = 9.0
    assert result.applied[5] == 2.0
    assert not result.update.any()


@pytest.mark.parametrize("density", [0.01, 0.5])
def test_mirrors_stand_still(density):
    layout, compressor = gw.Layout.flat(40_000), gw.parse("ef21(topk(0.3))")
    client, server = gw.Client(compressor, layout), gw.Server(compressor, layout, num_clients=3)
    mirror = np.zeros(40_000, np.float32)
    for number in range(3):
        if number != 1:
            blob = client.compress(draw(np.random.default_rng(number), 40_000, density), round=number)
            mirror += gw.decompress(gw.decode(blob))
            server.receive(blob)
        result = server.close_round()
        assert result.update.tobytes() == (mirror / np.float32(3)).tobytes()
        client.end_round(result.blob)


@pytest.mark.parametrize("density", [0.01, 0.5])
def test_a_round_that_was_begun_survives_saving(density):
    layout, rng = gw.Layout.flat(3000), np.random.default_rng(1)
    updates = [draw(rng, 3000, density) for _ in range(3)]
    server = gw.Server(gw.dense(), layout)
    server.receive(gw.Client(gw.dense(), layout).compress(updates[0]))
    server.close_round()
    assert not server.state_dict()["sum"].any()
    for client_id in (1, 2):
        client = gw.Client(gw.dense(), layout, client_id=client_id)
        server.receive(client.compress(updates[client_id], round=1), client_id)
        other = gw.Server(gw.dense(), layout)
        other.load_state_dict(server.state_dict())
        server, other = other, server
    expected = mean_of(updates[1:], [1.0, 1.0], 3000)
    assert server.close_round().update.tobytes() == expected.tobytes()


@pytest.mark.parametrize("make", [gw.Aggregator, lambda layout: Mirrors(layout, 2)])
def test_a_mean_taken_in_between_changes_nothing(make):
    layout, rng = gw.Layout.flat(20_000), np.random.default_rng(2)
    one, two = make(layout), make(layout)
    for density in (0.01, 0.02, 0.5):
        payload = gw.decode(gw.Client(gw.dense(), layout).compress(draw(rng, 20_000, density)))
        for aggregator in (one, two):
            aggregator.add(payload, 2.0)
        one.mean()
        one.state_dict()
    assert one.mean().tobytes() == two.mean().tobytes()
    one.mean()
    for aggregator in (one, two):
        aggregator.reset()
        aggregator.add(payload, 2.0)
    assert one.mean().tobytes() == two.mean().tobytes()


def test_merging_after_a_reset():
    layout = gw.Layout.flat(20_000)
    region, whole = gw.Aggregator(layout), gw.Aggregator(layout)
    payload = gw.decode(gw.Client(gw.topk(0.01), layout).compress(draw(np.random.default_rng(3), 20_000, 1.0)))
    region.add(payload)
    region.mean()
    region.reset()
    whole.merge(region)
    assert not whole.mean().any()
    region.add(payload)
    whole.merge(region)
    assert whole.mean().tobytes() == gw.decompress(payload).tobytes()


def test_where_a_vector_is_not_zero_is_believed_of_that_vector_alone():
    layout = gw.Layout.flat(100)
    sparse, full = np.zeros(100, np.float32), np.ones(100, np.float32)
    sparse[3] = 1.0
    told = gw.Round(occupied=Occupied(sparse))
    for spec in ("dense()", "ef(dense())", "by_tensor(dense())", "momentum_correction(dense())"):
        compressor = gw.parse(spec)
        payload, _ = compressor.compress(full, compressor.init(layout), told)
        assert payload.num_kept == 100
    payload, _ = gw.dense().compress(sparse, gw.dense().init(layout), told)
    assert payload.parts[0].support.indices.tolist() == [3]


def test_memory_of_a_sparse_round():
    d = 2_000_000
    layout, update = gw.Layout.flat(d), np.random.default_rng(0).standard_normal(d).astype(np.float32)
    client, server = gw.Client(gw.topk(0.01), layout), gw.Server(gw.topk(0.01), layout)
    for number in range(2):
        server.receive(client.compress(update, round=number))
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        result = server.close_round()
        extra = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        assert extra < 1.25 * update.nbytes
        client.end_round(result.blob)
