"""What each client sent and received in a round, and what of it came to nothing, as metrics.jsonl has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import ConfigError
from gradwire.report.values import show

__all__ = ["KINDS", "ClientCounts", "add_up", "is_number", "read_clients"]

KINDS = ("uplink", "downlink", "other", "late", "lost", "idle")


@dataclass(frozen=True, slots=True)
class ClientCounts:
    """Counts of some clients.

    Attributes:
        names: of n clients, in order.
        counts: (n, 6) int64: bytes up, bytes down, other bytes, payloads late, payloads lost, turns not begun; as
            ``KINDS``.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]


def read_clients(record: Mapping[str, Any], where: str) -> ClientCounts | None:
    """Read the optional ``clients`` of a round: name -> kind -> count, kinds that are 0 left out.

    Args:
        record: a line of metrics.jsonl.
        where: what error messages call it.

    Returns:
        The counts; None where there are none.

    Raises:
        ConfigError: it is of another shape, or a count is not an integer >= 0.
    """
    clients = record.get("clients")
    if clients is None:
        return None
    if not isinstance(clients, Mapping):
        raise ConfigError(f"{where}: clients must be a JSON object, got {show(clients)}")
    for entry in clients.values():
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{where}: each of clients must be a JSON object, got {show(entry)}")
    rows = [[entry.get(kind, 0) for kind in KINDS] for entry in clients.values()]
    counts = list(chain.from_iterable(rows))
    if set(map(type, counts)) - {int} or (counts and not 0 <= min(counts) <= max(counts) < 2**53):
        odd = next(count for count in counts if type(count) is not int or not 0 <= count < 2**53)
        raise ConfigError(f"{where}: counts of clients must be integers in [0, 2^53), got {show(odd)}")
    return ClientCounts(tuple(clients), np.array(counts, np.int64).reshape(-1, len(KINDS)))


def is_number(name: str) -> bool:
    """Tell whether a client's name is a number that JavaScript and a chart's axis hold exactly."""
    return name.isascii() and name.isdecimal() and len(name) <= 15


def add_up(rounds: Iterable[ClientCounts]) -> ClientCounts:
    """Add up the counts of rounds, client by client.

    Args:
        rounds: each round's.

    Returns:
        The sums; clients by number where all are numbered, else in the order they first appear in.
    """
    places: dict[str, int] = {}
    sums = np.zeros((0, len(KINDS)), np.int64)
    at: dict[tuple[str, ...], NDArray[np.int64]] = {}
    for one in rounds:
        if one.names not in at:
            at[one.names] = np.array([places.setdefault(name, len(places)) for name in one.names], np.int64)
            sums = np.vstack([sums, np.zeros((len(places) - len(sums), len(KINDS)), np.int64)])
        sums[at[one.names]] += one.counts
    names = list(places)
    if all(map(is_number, names)):
        names.sort(key=int)
    order = [places[name] for name in names]
    return ClientCounts(tuple(names), sums[order])
