"""Peak memory, in passes of their own: measuring it slows what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.bench.measure import peak_bytes
from gradwire.bench.ours import Payloads, aggregation
from gradwire.compressors.spec import parse
from gradwire.ends.client import Client
from gradwire.layout import Layout

__all__ = ["memory"]

Vector = NDArray[np.float32]


def memory(
    specs: Sequence[str], updates: Sequence[Vector], layout: Layout, blobs: Sequence[bytes], num_clients: int
) -> dict[str, Any]:
    """Measure the peak of compression, over update and residual, of aggregation and of closing a round.

    Args:
        specs: what is compressed with; the first is also what ``blobs`` were made with.
        updates: (d,) float32 each, used in turn.
        layout: theirs.
        blobs: what the clients send, in turn.
        num_clients: how many are aggregated.

    Returns:
        Per cent of the update's bytes for each spec (``compress``: the lossy half, ``client``: to bytes), and dense
        vectors for the aggregation, its sum included, and for closing a round of one client, over that sum.
    """
    dense_bytes = 4 * layout.d
    return {
        "compress_extra_percent": {
            spec: {
                "compress": 100 * _compress(spec, updates, layout) / dense_bytes,
                "client": 100 * _client(spec, updates, layout) / dense_bytes,
            }
            for spec in specs
        },
        "aggregate_clients": num_clients,
        "aggregate_peak_vectors": peak_bytes(lambda: aggregation(specs[0], blobs, layout, num_clients)) / dense_bytes,
        "close_round_extra_vectors": peak_bytes(aggregation(specs[0], blobs, layout, 1).close_round) / dense_bytes,
    }


def _compress(spec: str, updates: Sequence[Vector], layout: Layout) -> int:
    payloads = Payloads(spec, updates, layout)
    payloads.run(0)
    payloads.payload = None
    return peak_bytes(lambda: payloads.run(1))


def _client(spec: str, updates: Sequence[Vector], layout: Layout) -> int:
    client = Client(parse(spec), layout)
    client.compress(updates[0])
    return peak_bytes(lambda: client.compress(updates[1 % len(updates)]))
