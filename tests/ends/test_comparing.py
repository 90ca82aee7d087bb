"""RegTop-k compares what it sent with the clients' mean: whatever makes the reference something else is refused."""

from __future__ import annotations

import numpy as np
import pytest

import gradwire as gw
from gradwire.aggregation.aggregator import Aggregator
from gradwire.aggregation.text import parse_aggregation
from gradwire.federated.experiment import Experiment
from gradwire.federated.runs import prepare

LAYOUT = gw.Layout.from_arrays({"w": np.empty((5, 4)), "b": np.empty(8)})
NEEDING = [
    "regtopk(0.1)",
    "regtopk(0.1) | uniform(4)",
    "ef(regtopk(0.1))",
    "ef(warmup(regtopk(0.1), 3))",
    "ef(warmup(topk(0.1), 3, first=regtopk(0.5)))",
    "momentum_correction(regtopk(0.1))",
    "momentum(regtopk(0.1), 0.8)",
]
NOT_NEEDING = ["dense()", "topk(0.1)", "ef(tcs(0.1, 0.1))", "ef21(topk(0.1))", "ef(warmup(cyclic(0.1), 2))"]
LOSSY = ["topk(0.5)", "fp16()", "ef(topk(0.5))", "uniform(8)", "ef(warmup(topk(0.1), 5))", "dense() | fp16()"]
LOSSLESS = ["dense()", "dense() | ans()", "topk(1.0)", "ef(dense())", "topk(1.0, scope='tensor')"]


class Renamed(Aggregator):
    """Might be anything."""


def test_it_is_declared():
    for spec in NEEDING:
        assert gw.parse(spec).needs_mean, spec
    for spec in NOT_NEEDING:
        assert not gw.parse(spec).needs_mean, spec


@pytest.mark.parametrize("spec", NEEDING)
def test_servers_that_change_the_mean_are_refused(spec):
    compressor = gw.parse(spec)
    with pytest.raises(gw.ConfigError, match=r"regtopk.*clients' mean.*no step"):
        gw.Server(compressor, LAYOUT, step=lambda update: update)
    for aggregator in (Renamed, lambda layout: parse_aggregation("over_the_air(20)").make(layout, seed=0)):
        with pytest.raises(gw.ConfigError, match=r"regtopk.*aggregator must be the mean"):
            gw.Server(compressor, LAYOUT, aggregator=aggregator)
        with pytest.raises(gw.ConfigError, match=r"regtopk.*aggregator must be the mean"):
            gw.Region(compressor, LAYOUT, aggregator=aggregator)
    for lossy in map(gw.parse, LOSSY):
        with pytest.raises(gw.ConfigError, match=r"regtopk.*downlink must lose nothing, got .*use dense\(\)"):
            gw.Server(compressor, LAYOUT, downlink=lossy)
        with pytest.raises(gw.ConfigError, match=r"regtopk.*forward must lose nothing, got .*use dense\(\)"):
            gw.Region(compressor, LAYOUT, forward=lossy)


@pytest.mark.parametrize("spec", NEEDING)
def test_servers_that_send_the_mean_are_not(spec):
    compressor = gw.parse(spec)
    for road in map(gw.parse, LOSSLESS):
        gw.Server(compressor, LAYOUT, downlink=road, aggregator=Aggregator, max_staleness=2, max_norm=3.0)
        gw.Region(compressor, LAYOUT, forward=road)
    gw.Server(compressor, LAYOUT)
    gw.Region(compressor, LAYOUT)


@pytest.mark.parametrize("spec", NOT_NEEDING)
def test_others_may_have_all_of_it(spec):
    compressor = gw.parse(spec)
    gw.Server(compressor, LAYOUT, step=lambda u: u, downlink=gw.topk(0.5), num_clients=2)
    if not compressor.mirrored:
        gw.Server(compressor, LAYOUT, aggregator=Renamed)
        gw.Region(compressor, LAYOUT, forward=gw.topk(0.5), aggregator=Renamed)


def test_mirrors_are_refused():
    with pytest.raises(gw.ConfigError, match=r"ef21 cannot wrap regtopk.*mean of what was sent: use ef"):
        gw.parse("ef21(regtopk(0.1))")


def test_the_reference_is_the_mean_where_it_is_accepted():
    """What the compressor is given is the weighted mean of what it and the others sent, bit for bit."""
    rng = np.random.default_rng(0)
    compressor = gw.parse("ef(regtopk(0.2))")
    server = gw.Server(compressor, LAYOUT, downlink=gw.parse("ef(dense())"))
    clients = [gw.Client(compressor, LAYOUT, client_id=i) for i in range(3)]
    for _ in range(3):
        mean, total = np.zeros(LAYOUT.d, np.float32), 0.0
        for weight, client in enumerate(clients, 1):
            blob = client.compress(rng.standard_normal(LAYOUT.d).astype(np.float32), float(weight))
            server.receive(blob, client.client_id, float(weight))
            mean += np.float32(weight) * gw.decompress(gw.decode(blob))
            total += weight
        result = server.close_round()
        np.testing.assert_array_equal(result.applied, mean / np.float32(total))
        for client in clients:
            client.end_round(result.blob)


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithms": ["fedadam(0.1)"]},
        {"algorithms": ["fedavg(server_learning_rate=0.5)"]},
        {"algorithms": ["fedasync()"]},
        {"downlink": "ef(topk(0.1))"},
        {"regions": 2, "forward": "ef(topk(0.1))"},
        {"regions": 2, "algorithms": ["fedavgm()"]},
        {"regions": 2, "downlink": "fp16()"},
    ],
)
def test_experiments_are_refused_before_they_run(settings):
    base = {"data": "digits", "methods": ["ef(regtopk(0.1))"], "clients": 4, "rounds": 2}
    with pytest.raises(gw.ConfigError, match=r"regtopk.*clients' mean"):
        prepare(Experiment.build(base | settings))
    prepare(Experiment.build(base | settings | {"methods": ["ef(topk(0.1))"]}))
