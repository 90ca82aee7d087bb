"""Packets over a lossy link, the most important first: what is sent, what is lost and what arrives when."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradwire.checks import check_integer, check_number
from gradwire.errors import ConfigError
from gradwire.federated.network.traces import Connection
from gradwire.rng import Key

__all__ = ["Delivery", "Loss", "send_packets"]


@dataclass(frozen=True)
class Loss:
    """State what goes wrong on the way, each thing independently of the others.

    Args:
        loss: probability in [0, 1) that a packet sent is lost, at each transmission.
        duplication: probability in [0, 1) that a packet which was not lost comes twice.
        reordering: probability in [0, 1) that a copy is held back behind later ones.
        reorder_seconds: the most it is held back, each time up to it being equally likely; >= 0, and > 0 where
            reordering is.
        disconnection: probability in [0, 1), once an upload, that the client vanishes during it.

    Raises:
        ConfigError: a number is none of these.

    Example:
        >>> Loss(loss=0.1, reordering=0.2, reorder_seconds=0.5).duplication
        0.0

    Source: none.

    Deviations: none.
    """

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    reorder_seconds: float = 0.0
    disconnection: float = 0.0

    def __post_init__(self) -> None:
        for name in ("loss", "duplication", "reordering", "disconnection"):
            if not 0 <= check_number(name, getattr(self, name)) < 1:
                raise ConfigError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")
        if check_number("reorder_seconds", self.reorder_seconds) < 0:
            raise ConfigError(f"reorder_seconds must be >= 0, got {self.reorder_seconds!r}")
        if self.reordering > 0 and self.reorder_seconds == 0:
            raise ConfigError("reorder_seconds must be > 0 where reordering is, got 0")


@dataclass(frozen=True)
class Delivery:
    """Hold what became of the packets of one upload.

    Attributes:
        arrivals: (seconds, packet number) of each copy that arrived, in order of arrival, second copies included.
        delivered: the numbers of the packets that arrived, as ``Client.end_round`` takes them.
        sent_bytes: bytes of all transmissions, one that was cut off in full.
        num_sent: transmissions.
        num_fresh: packets that were sent once or more: those below this number.
        num_lost: transmissions of which nothing arrived: lost, cut off, or held back past the deadline.
        end_seconds: when the sender was done: the last packet sent was acknowledged or given up, or the deadline or
            the end of the connection was reached.
        disconnected_at: when the client was gone, in seconds, where that was before it was done.
    """

    arrivals: tuple[tuple[float, int], ...]
    delivered: frozenset[int]
    sent_bytes: int
    num_sent: int
    num_fresh: int
    num_lost: int
    end_seconds: float
    disconnected_at: float | None


def send_packets(
    sizes: Sequence[int], connection: Connection, start: float, deadline: float, loss: Loss, key: Key
) -> Delivery:
    """Send packets over a connection until all are acknowledged, the deadline is too near or the client is gone.

    Packets leave back to back. Each that arrives is acknowledged: acknowledgements are taken as a few bytes, so that
    they cost a latency and nothing else, and are not lost. One that was lost is known to be after a timeout of two
    latencies and ``reorder_seconds`` from when it left, taken as long enough for any acknowledgement: only what was
    lost is sent again. Of the packets at hand the lowest number goes first, so a lost one before those not sent yet.
    What cannot arrive by the deadline is not sent: the first new packet that cannot ends the new ones, whatever the
    size of those behind it; a lost one that cannot is given up, others are still tried.

    The client is gone when its session ends, or at a time equally likely anywhere in the upload (from ``start`` to the
    deadline, or to when all would have arrived without loss, if that is before) where it vanishes. A packet that has
    not left in full by then never arrives; one that has does. An upload that would never end is cut by sessions alone.

    Args:
        sizes: bytes of each packet, 1 or more, in order of importance.
        connection: the client's.
        start: seconds.
        deadline: seconds, after which nothing counts as arrived; inf for none.
        loss: what goes wrong.
        key: names seed, round and client; its purpose should be this upload's alone.

    Returns:
        The same for the same arguments.

    Raises:
        ConfigError: a size is below 1, or a time is negative or not a number.

    Example:
        >>> from gradwire.federated.network.links import lora
        >>> sent = send_packets([500] * 4, lora().connection(Key(1, client=0)), 0.0, 4.0, Loss(), Key(1))
        >>> sent.arrivals, sent.end_seconds
        (((1.8, 0), (2.6, 1), (3.4000000000000004, 2)), 4.0)

    Source: none.

    Deviations: none.
    """
    sizes = [check_integer("packet size", size, 1) for size in sizes]
    if not deadline >= 0:
        raise ConfigError(f"deadline must be >= 0 seconds, got {deadline!r}")
    draw = _uniforms(key)
    gone = min(_vanishes(sizes, connection, start, deadline, loss, draw), connection.leaves(start))

    arrivals: list[tuple[float, int]] = []
    timeouts: list[tuple[float, int]] = []  # heap of what was lost: when that is known, and the number
    known: list[int] = []  # heap of the numbers that are known to be lost
    fresh = num_sent = num_fresh = num_lost = sent_bytes = 0
    now = end = ahead = start  # ahead: when what left before will have arrived, held back or not
    cut_off = False
    while fresh < len(sizes) or timeouts or known:
        if not known and fresh == len(sizes):
            now = max(now, timeouts[0][0])
        while timeouts and timeouts[0][0] <= now:
            heapq.heappush(known, heapq.heappop(timeouts)[1])
        again = bool(known)
        number = heapq.heappop(known) if again else fresh
        arrival = max(ahead, connection.uploaded(sizes[number], now))
        end = max(end, now)
        if arrival > deadline or arrival == math.inf:
            fresh = fresh if again else len(sizes)
            continue
        if now >= gone:
            cut_off = True
            break
        fresh += not again
        left = connection.sent(sizes[number], now)
        num_sent += 1
        num_fresh += not again
        sent_bytes += sizes[number]
        if left > gone:
            num_lost += 1
            cut_off = True
            break
        now, ahead = left, arrival
        copies = [at for at in _copies(arrival, loss, draw) if at <= deadline]
        arrivals += [(at, number) for at in copies]
        if copies:
            end = max(end, min(copies) + connection.at(min(copies)).latency_seconds)
        else:
            num_lost += 1
            heapq.heappush(timeouts, (left + 2 * connection.at(left).latency_seconds + loss.reorder_seconds, number))
    end = min(end, max(start, deadline))
    cut_off = cut_off or gone < end
    arrivals.sort(key=lambda arrived: arrived[0])
    return Delivery(
        arrivals=tuple(arrivals),
        delivered=frozenset(number for _, number in arrivals),
        sent_bytes=sent_bytes,
        num_sent=num_sent,
        num_fresh=num_fresh,
        num_lost=num_lost,
        end_seconds=gone if cut_off else end,
        disconnected_at=gone if cut_off else None,
    )


def _uniforms(key: Key) -> Callable[[int], list[float]]:
    """Read a key's stream on and on: the next numbers of [0, 1), the top 53 bits of a word each."""
    generator = key.generator()

    def draw(num_values: int) -> list[float]:
        words = np.asarray(generator.random_raw(num_values), np.uint64)
        values: list[float] = ((words >> np.uint64(11)) * 2.0**-53).tolist()
        return values

    return draw


def _vanishes(
    sizes: Sequence[int],
    connection: Connection,
    start: float,
    deadline: float,
    loss: Loss,
    draw: Callable[[int], list[float]],
) -> float:
    """When the client vanishes; inf when it does not."""
    chance, share = draw(2)
    end = min(connection.uploaded(sum(sizes), start), deadline)
    return start + share * (end - start) if chance < loss.disconnection and start <= end < math.inf else math.inf


def _copies(arrival: float, loss: Loss, draw: Callable[[int], list[float]]) -> list[float]:
    """When the copies of a packet arrive: none, one or two of them."""
    chance, twice, *holds = draw(6)
    num_copies = 0 if chance < loss.loss else 2 if twice < loss.duplication else 1
    return [
        arrival + (loss.reorder_seconds * share if held < loss.reordering else 0.0)
        for held, share in (holds[:2], holds[2:])[:num_copies]
    ]
