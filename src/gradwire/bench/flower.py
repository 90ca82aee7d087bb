"""Flower's dense aggregation: its own functions where it is installed, else the same formulas."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.bench.measure import Operation
from gradwire.layout import Layout

__all__ = ["FLOWER", "FLOWER_RECORDS", "flower_operations"]

FLOWER = "Flower aggregate, a client"
FLOWER_RECORDS = "Flower aggregate_arrayrecords, a client"
_NUM_CLIENTS = 4

Vector = NDArray[np.float32]
Run = Callable[[int], object]


def flower_operations(updates: Sequence[Vector], layout: Layout) -> list[Operation]:
    """Make the operations of a Flower server.

    Args:
        updates: (d,) float32 each, used in turn.
        layout: theirs.

    Returns:
        Aggregation of arrays that are in memory, and of what arrives at the server, from its bytes.
    """
    try:
        module = importlib.import_module("flwr.server.strategy.aggregate")
        arrays, origin = module.aggregate, "flwr.server.strategy.aggregate itself, from arrays in memory"
    except ImportError:
        arrays = weighted_mean
        origin = "flwr.server's, from arrays in memory: times examples, summed; written out in NumPy, without flwr"
    try:
        run, from_bytes = messages(updates, layout), "flwr.serverapp's itself, from the bytes of its messages"
    except ImportError:
        run = serialized(updates, layout)
        from_bytes = (
            "flwr.serverapp's, from bytes: np.load of each array, times its weight, added; written out in NumPy"
        )
    return [
        Operation("peer", FLOWER, _from_arrays(updates, layout, arrays), origin, _NUM_CLIENTS),
        Operation("peer", FLOWER_RECORDS, run, from_bytes, _NUM_CLIENTS),
    ]


def weighted_mean(results: list[tuple[list[Vector], int]]) -> list[Vector]:
    """Average arrays by the number of examples, as ``flwr.server.strategy.aggregate.aggregate`` does."""
    total = sum(num_examples for _, num_examples in results)
    weighted = [[layer * num_examples for layer in weights] for weights, num_examples in results]
    return [reduce(np.add, layers) / total for layers in zip(*weighted, strict=True)]


def _from_arrays(updates: Sequence[Vector], layout: Layout, aggregate: Callable[[Any], Any]) -> Run:
    models = [list(layout.unflatten(update).values()) for update in updates]
    clients = [(models[i % len(models)], 10 + i) for i in range(_NUM_CLIENTS)]
    return lambda number: aggregate(clients)


def messages(updates: Sequence[Vector], layout: Layout) -> Callable[[int], Any]:
    """Aggregate as ``flwr.serverapp``'s strategies do: the content of each message read, then the weighted mean.

    Raises:
        ImportError: where flwr, or what this needs of it, is not there.
    """
    app = importlib.import_module("flwr.app")
    serde = importlib.import_module("flwr.common.serde")
    proto = importlib.import_module("flwr.proto.recorddict_pb2")
    strategy = importlib.import_module("flwr.serverapp.strategy.strategy_utils")
    contents = []
    for update in updates:
        arrays = app.ArrayRecord({name: app.Array(array) for name, array in layout.unflatten(update).items()})
        content = app.RecordDict({"arrays": arrays, "metrics": app.MetricRecord({"num-examples": 10.0})})
        contents.append(serde.recorddict_to_proto(content).SerializeToString())

    def run(number: int) -> Any:
        arrived = (contents[i % len(contents)] for i in range(_NUM_CLIENTS))
        records = [serde.recorddict_from_proto(proto.RecordDict.FromString(content)) for content in arrived]
        return strategy.aggregate_arrayrecords(records, "num-examples")

    return run


def serialized(updates: Sequence[Vector], layout: Layout) -> Callable[[int], dict[str, Vector]]:
    """Average serialized arrays by the formulas of ``flwr.serverapp``'s strategies."""
    records = [{name: _npy(array) for name, array in layout.unflatten(update).items()} for update in updates]
    weight = 1 / _NUM_CLIENTS

    def run(number: int) -> dict[str, Vector]:
        total: dict[str, Vector] = {}
        for client in range(_NUM_CLIENTS):
            for name, data in records[client % len(records)].items():
                weighted = np.load(io.BytesIO(data), allow_pickle=False) * weight
                if name in total:
                    total[name] += weighted
                else:
                    total[name] = weighted
        return total

    return run


def _npy(array: Vector) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
