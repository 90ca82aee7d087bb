"""A small model, where what a call costs is overhead."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.bench.measure import seconds_of
from gradwire.compressors.spec import parse
from gradwire.ends.client import Client
from gradwire.layout import Layout

__all__ = ["mlp_layout", "small"]


def mlp_layout() -> Layout:
    """Return the layout of the digits task's perceptron: 64 inputs, 128 hidden, 10 classes."""
    shapes = {"1.weight": (128, 64), "1.bias": (128,), "3.weight": (10, 128), "3.bias": (10,)}
    return Layout.from_arrays({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})


def small(specs: Sequence[str], calls: int = 400, warm_up: int = 100) -> dict[str, Any]:
    """Time ``Client.compress`` on the digits perceptron.

    Args:
        specs: what is compressed with.
        calls: how many calls count, all specs in turn.
        warm_up: calls before these, which do not.

    Returns:
        ``d``, ``calls`` and for each spec the median in microseconds.
    """
    layout = mlp_layout()
    rng = np.random.default_rng(0)
    updates = [rng.standard_normal(layout.d, dtype=np.float32) for _ in range(3)]
    clients = {spec: Client(parse(spec), layout) for spec in specs}
    seconds: dict[str, list[float]] = {spec: [] for spec in specs}
    for number in range(warm_up + calls):
        for spec, client in clients.items():
            taken = seconds_of(partial(_compress, client, updates), number)
            if number >= warm_up:
                seconds[spec].append(taken)
    return {
        "d": layout.d,
        "calls": calls,
        "microseconds": {spec: 1e6 * statistics.median(found) for spec, found in seconds.items()},
    }


def _compress(client: Client, updates: Sequence[NDArray[np.float32]], number: int) -> bytes:
    return client.compress(updates[number % len(updates)])
