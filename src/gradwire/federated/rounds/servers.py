"""The servers of a federation, as its experiment wants them: one, or one above regions."""

from __future__ import annotations

from functools import partial

from gradwire.aggregation.text import parse_aggregation
from gradwire.compressors.compressor import Compressor
from gradwire.compressors.spec import parse
from gradwire.ends.comparing import check_mean
from gradwire.ends.region import Region
from gradwire.ends.server import Server
from gradwire.federated.algorithms import Step
from gradwire.federated.experiment import Experiment
from gradwire.layout import Layout

__all__ = ["make_servers"]

_ASYNCHRONOUS_STALENESS = 100


def make_servers(
    e: Experiment, compressor: Compressor, layout: Layout, seed: int, step: Step | None
) -> tuple[Server, list[Region]]:
    """Make the server, and its regions where there are any.

    Args:
        e: the settings.
        compressor: what clients compress with.
        layout: the model's layout.
        seed: of the run.
        step: the algorithm's, or None.

    Returns:
        The server; regions by number.
    """
    rule = parse_aggregation(e.aggregation)
    aggregator = None if str(rule) == "mean()" else partial(rule.make, seed=seed, compressor=compressor)
    staleness = e.max_staleness
    if staleness is None:
        staleness = _ASYNCHRONOUS_STALENESS if e.algorithm.asynchronous else 0
    if not e.regions:
        server = Server(
            compressor,
            layout,
            seed,
            downlink=parse(e.downlink),
            step=step,
            num_clients=e.clients,
            max_staleness=staleness,
            aggregator=aggregator,
            max_norm=e.max_norm,
            num_rounds=e.rounds,
            payloads_per_round=None if e.algorithm.asynchronous else 1,
        )
        return server, []
    forward = parse(e.forward)
    check_mean(compressor, layout.num_parameters, step=step, downlink=parse(e.downlink))
    server = Server(forward, layout, seed, downlink=parse(e.downlink), step=step, num_rounds=e.rounds)
    regions = [
        Region(
            compressor,
            layout,
            region_id=number,
            seed=seed,
            forward=forward,
            num_rounds=e.rounds,
            max_staleness=staleness,
            aggregator=aggregator,
            max_norm=e.max_norm,
        )
        for number in range(e.regions)
    ]
    return server, regions
