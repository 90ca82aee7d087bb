"""Known dither: its step, its budget, its thresholds, and the roads that its payloads take."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import gradwire as gw
from gradwire.aggregation import parse_aggregation
from gradwire.aggregation.sharing import numbers_of
from gradwire.payload import Dithered, Explicit, Multiples

D = 20_000
NOISE = np.random.default_rng(0).laplace(size=D).astype(np.float32)


def payload_of(spec: str, update: np.ndarray = NOISE, **round: int) -> gw.Payload:
    client = gw.Client(gw.parse(spec), gw.Layout.flat(update.size), client_id=round.pop("client", 2), seed=9)
    return gw.decode(client.compress(update, round=round.get("round", 4)))


def test_a_step_is_kept_and_errors_are_below_it():
    payload = payload_of("dither(0.75)")
    (part,) = payload.parts
    assert isinstance(part.support, Dithered)
    assert isinstance(part.values, Multiples)
    assert part.values.step == np.float32(0.75)
    sent = gw.decompress(payload)
    assert np.abs(sent - NOISE).max() < 0.75
    assert not (sent / np.float32(0.75) % 1).any()


def test_density_is_what_fires_and_the_step_the_mean_over_it():
    payload = payload_of("dither(density=0.01)")
    step = float(payload.parts[0].values.step)
    assert step == pytest.approx(float(np.abs(NOISE).mean(dtype=np.float64)) / 0.01, rel=1e-6)
    assert abs(payload.num_kept - 200) < 5 * 200**0.5


@pytest.mark.parametrize("num_bytes", [30, 40, 64, 111, 200, 1000, 5000])
@pytest.mark.parametrize("golden", [False, True])
def test_a_budget_is_kept_and_nearly_used(num_bytes, golden):
    client = gw.Client(gw.dither(num_bytes=num_bytes, golden=golden), gw.Layout.flat(D))
    for round in range(3):
        size = len(client.compress(NOISE, round=round))
        assert size <= num_bytes
        assert size >= min(0.93 * num_bytes, num_bytes - 4) or num_bytes < 50
    assert len(gw.Client(gw.dither(), gw.Layout.flat(D)).compress(NOISE, num_bytes=num_bytes)) <= num_bytes
    assert len(gw.Client(gw.dither(density=1.0), gw.Layout.flat(D)).compress(NOISE, num_bytes=num_bytes)) <= num_bytes


def test_a_budget_that_holds_everything_loses_little():
    x = np.arange(1, 9, dtype=np.float32)
    sent = gw.decompress(gw.decode(gw.Client(gw.dither(num_bytes=500), gw.Layout.flat(8)).compress(x)))
    assert np.abs(sent - x).max() < 1e-5


def test_half_the_bytes_of_a_list_of_coordinates():
    """The support of the same numbers against the gaps between them in their cheapest code."""
    update = np.random.default_rng(1).laplace(size=200_000).astype(np.float32)
    blob = gw.encode(payload_of("dither(density=0.003)", update))
    payload = gw.decode(blob)
    part = payload.parts[0]
    listed = gw.Part(Explicit(part.length, part.support.indices), part.values)
    other = gw.encode(gw.Payload(payload.d, (listed,)))
    assert gw.inspect(blob)["support_bytes"] < 0.4 * gw.inspect(other)["support_bytes"]


def test_golden_thresholds_make_up_within_a_few_rounds():
    """The same update every round: with thresholds that move by the golden section sums are right to a step or two."""
    x = np.random.default_rng(2).random(500).astype(np.float32)
    errors = {}
    for golden in (False, True):
        client = gw.Client(gw.dither(4.0, golden=golden), gw.Layout.flat(500))
        total = sum(gw.decompress(gw.decode(client.compress(x, round=round))).astype(np.float64) for round in range(55))
        errors[golden] = np.abs(total - 55 * x)
    # the discrepancy of 55 points of the golden section is below 3: each sum is off by less than so many steps
    assert errors[True].max() < 3 * 4.0
    assert errors[True].std() < errors[False].std() / 4


def test_nothing_fires_in_zeros_and_empty_updates():
    for d in (0, 1, 100):
        for spec in ("dither(1.0)", "dither(density=0.5)", "dither(num_bytes=100)"):
            assert payload_of(spec, np.zeros(d, np.float32)).num_kept == 0


def test_large_numbers_raise_the_step():
    x = np.zeros(100, np.float32)
    x[3], x[50] = 1e30, -1e22
    payload = payload_of("dither(1e-3)", x)
    assert gw.decompress(payload)[3] == pytest.approx(1e30, rel=2.0**-22)
    with pytest.raises(gw.UpdateError, match="float32"):
        payload_of("dither(density=1e-3)", np.full(100, 3e38, np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 0.0}, "step must be in"),
        ({"step": -1.0}, "step must be in"),
        ({"step": float("nan")}, "step must be finite"),
        ({"step": 1.0, "density": 0.1}, "one of step, num_bytes and density"),
        ({"density": 0.0}, "density must be in"),
        ({"density": 1.5}, "density must be in"),
        ({"num_bytes": 0}, "num_bytes must be"),
        ({"golden": 1}, "golden must be True or False"),
    ],
)
def test_parameters_out_of_range(arguments, message):
    with pytest.raises(gw.ConfigError, match=message):
        gw.dither(**arguments)


def test_what_cannot_be_compressed_says_why():
    client = gw.Client(gw.dither(), gw.Layout.flat(D))
    with pytest.raises(gw.ConfigError, match="needs a step, a density or num_bytes"):
        client.compress(NOISE)
    with pytest.raises(gw.ConfigError, match="num_bytes must be at least"):
        client.compress(NOISE, num_bytes=10)
    assert client.sequence == 0
    with pytest.raises(gw.ConfigError, match="contractive"):
        gw.ef(gw.dither(density=0.01))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("d", [100, 70_000])
def test_what_is_not_finite_is_refused_by_name(bad, d):
    arrays = {"w": np.ones(d, np.float32), "bn.running_mean": np.ones(3, np.float32)}
    layout = gw.Layout.from_arrays(arrays)
    client = gw.Client(gw.dither(density=0.1), layout)
    for name in arrays:
        spoilt = {n: x.copy() for n, x in arrays.items()}
        spoilt[name][-1] = bad
        with pytest.raises(gw.UpdateError, match=f"must be finite.* in .*{name}"):
            client.compress(np.concatenate(list(spoilt.values())))
    assert client.sequence == 0


def test_the_same_bytes_in_another_process_with_either_backend():
    code = (
        "import numpy as np, gradwire as gw\n"
        "x = np.random.default_rng(0).laplace(size=20_000).astype(np.float32)\n"
        "for spec in ('dither(density=0.01)', 'dither(num_bytes=90, golden=True)', 'dither(0.25)'):\n"
        "    print(gw.Client(gw.parse(spec), gw.Layout.flat(20_000), 5, 2**63).compress(x, round=7).hex())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "GRADWIRE_KERNELS": backend, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for backend, threads in (("reference", "1"), ("cpu", "3"))
    }
    assert len(found) == 1
    assert found.pop().count("\n") == 3


def test_statistics_travel_whole():
    arrays = {"w": np.ones((50, 40), np.float32), "bn.running_mean": np.array([1.5, -2.5, 0.0], np.float32)}
    layout = gw.Layout.from_arrays(arrays)
    for spec in ("dither(density=0.01)", "dither(num_bytes=80)"):
        client = gw.Client(gw.parse(spec), layout)
        sent = gw.decompress(gw.decode(client.compress(layout.flatten(arrays))))
        assert sent[-3:].tolist() == [1.5, -2.5, 0.0]


def test_packets_stand_for_the_same_and_each_for_itself():
    layout = gw.Layout.flat(D)
    whole = gw.decompress(payload_of("dither(density=0.05)", round=0, client=0))
    client = gw.Client(gw.dither(density=0.05), layout, client_id=0, seed=9)
    packets = client.packets(NOISE, 200)
    assert len(packets) > 3
    assert all(len(packet) <= 200 for packet in packets)
    assert sum(gw.decompress(gw.decode(packet)) for packet in packets).tobytes() == (whole + 0.0).tobytes()
    server = gw.Server(gw.dither(density=0.05), layout, seed=9)
    for packet in packets:
        server.receive(packet)
    assert server.close_round().update.tobytes() == (whole + 0.0).tobytes()


def test_the_road_through_regions_and_late_rounds():
    """Known thresholds need nothing of the server: any end decodes any payload, of whatever round."""
    layout, spec = gw.Layout.flat(D), gw.dither(density=0.05)
    clients = [gw.Client(spec, layout, client_id=i, seed=3) for i in range(3)]
    region, server = gw.Region(spec, layout, seed=3), gw.Server(spec, layout, seed=3, max_staleness=2)
    expected = np.zeros(D, np.float64)
    for client in clients[:2]:
        blob = client.compress(NOISE * (1 + client.client_id))
        expected += gw.decompress(gw.decode(blob))
        region.receive(blob, client.client_id)
    up = region.forward()
    server.receive(up.blob, 0, up.weight)
    assert np.allclose(server.close_round().update, expected / 2, rtol=1e-6)
    late = clients[2].compress(NOISE)  # of round 0, which is over
    server.receive(late, 2)
    assert server.close_round().update.tobytes() == (gw.decompress(gw.decode(late)) + 0.0).tobytes()


def test_dither_on_the_way_down():
    server = gw.Server(gw.dense(), gw.Layout.flat(D), downlink=gw.dither(density=0.05))
    client = gw.Client(gw.dense(), gw.Layout.flat(D))
    server.receive(client.compress(NOISE))
    result = server.close_round()
    assert client.end_round(result.blob).tobytes() == result.applied.tobytes()
    assert 0 < np.count_nonzero(result.applied) < 0.1 * D


def test_clients_draw_thresholds_of_their_own_and_rounds_new_ones():
    def fired(**key: int) -> set[int]:
        return set(payload_of("dither(density=0.02)", **key).parts[0].support.indices.tolist())

    base = fired()
    for other in (fired(client=3), fired(round=5)):
        assert len(base & other) < len(base) / 2
    assert fired() == base


def test_sums_of_one_step_are_exact_integers():
    """Clients of one step: their sum, in steps, is a sum of integers, in whatever order they come."""
    layout = gw.Layout.flat(D)
    sums = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        aggregator = gw.Aggregator(layout)
        for i in order:
            client = gw.Client(gw.dither(0.75), layout, client_id=i)
            aggregator.add(gw.decode(client.compress(NOISE * (i - 1.5))))
        sums.append(aggregator.mean() * 4 / np.float32(0.75))
    assert sums[0].tobytes() == sums[1].tobytes()
    assert not (sums[0] % 1).any()


def test_what_fires_is_no_coordinate_that_clients_share():
    layout = gw.Layout.flat(D)
    with pytest.raises(gw.ConfigError, match="same coordinates"):
        parse_aggregation("median()").make(layout, compressor=gw.dither(density=0.05))
    payload = payload_of("dither(density=0.05)")
    (own,) = numbers_of(payload, layout)
    assert (own.num_shared, own.indices.size) == (0, payload.num_kept)
    (whole,) = numbers_of(payload, layout, zeros_are_values=True)
    assert whole.num_shared == D
    assert whole.numbers.tobytes() == (gw.decompress(payload) + 0.0).tobytes()


def test_clipping_scales_what_fired():
    server = gw.Server(gw.dither(1.0), gw.Layout.flat(D), max_norm=2.0)
    server.receive(gw.Client(gw.dither(1.0), gw.Layout.flat(D)).compress(NOISE))
    assert np.linalg.norm(server.close_round().update.astype(np.float64)) == pytest.approx(2.0, rel=1e-5)
