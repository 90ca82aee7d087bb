"""Inbox: what both a server and a regional one do with blobs that come in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.aggregation.aggregator import Aggregator, Mirrors, check_weight
from gradwire.aggregation.clipping import clip_payload
from gradwire.checks import check_integer, check_number
from gradwire.compressors.compressor import Compressor
from gradwire.compressors.references import Reference
from gradwire.ends.client import reference_digest
from gradwire.errors import ConfigError, Duplicate, ProtocolError, StaleReference
from gradwire.layout import Layout
from gradwire.payload import Payload
from gradwire.rng import Key
from gradwire.saved import check_state, from_saved, reading_state, to_bytes, to_saved
from gradwire.wire import Limits, decode

__all__ = ["Clipped", "Inbox"]

STATE_FORMAT = 1


@dataclass(frozen=True)
class Clipped:
    """A payload, or a packet of one, that was longer than allowed.

    Attributes:
        client_id: who sent it.
        sequence: of which payload.
        packet: the packet's number, or None where the payload came whole.
        factor: what its entries were multiplied by, in [0, 1): the rest of it was cut.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> server = gw.Server(gw.dense(), gw.Layout.flat(2), max_norm=1.0)
        >>> server.receive(gw.Client(gw.dense(), gw.Layout.flat(2)).compress(np.array([3, 4], np.float32)))
        >>> server.close_round().clipped
        (Clipped(client_id=0, sequence=0, packet=None, factor=0.2),)
    """

    client_id: int
    sequence: int
    packet: int | None
    factor: float


class Inbox:
    """Checks blobs, knows which were counted, and adds them up; ``Server`` and ``Region`` are ones.

    Args:
        compressor: what the clients compress with.
        layout: the model's layout.
        seed: seed of the run, the same at all ends.
        num_clients: how many clients there are, for schemes that mirror each of them (``ef21`` needs it); client ids
            are then below it.
        max_staleness: accept payloads of this many closed rounds.
        aggregator: what adds payloads up, made from the layout: ``Aggregator``, a weighted mean, when None.
        max_norm: the longest a payload may be, in the Euclidean norm of its entries; longer ones are scaled down to
            it. None for any length.

    Attributes:
        round: the round that is open.
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        seed: int = 0,
        num_clients: int | None = None,
        max_staleness: int = 0,
        aggregator: Callable[[Layout], Aggregator] | None = None,
        max_norm: float | None = None,
    ) -> None:
        if not isinstance(compressor, Compressor):
            raise ConfigError(f"compressor must be a Compressor, got {compressor!r}; gw.parse reads spec text")
        if not isinstance(layout, Layout):
            raise ConfigError(f"layout must be a Layout, got {type(layout).__name__}")
        if aggregator is not None and not callable(aggregator):
            raise ConfigError(f"aggregator must be a function layout -> Aggregator or None, got {aggregator!r}")
        if compressor.mirrored and num_clients is None:
            raise ConfigError(f"{compressor} keeps a mirror of each client: Server needs num_clients, got None")
        if compressor.mirrored and (aggregator is not None or max_norm is not None):
            raise ConfigError(
                f"{compressor} sends steps of a mirror, which are added as they are: no aggregator or max_norm"
            )
        self.compressor = compressor
        self.layout = layout
        self.seed = Key(seed).seed
        self.num_clients = None if num_clients is None else check_integer("num_clients", num_clients, 1)
        self.max_staleness = check_integer("max_staleness", max_staleness, 0)
        self.max_norm = None if max_norm is None else check_number("max_norm", max_norm)
        if self.max_norm is not None and not self.max_norm > 0:
            raise ConfigError(f"max_norm must be positive, got {max_norm}")
        self.round = 0
        self._limits = Limits(max_parameters=max(1, layout.d))
        self._make_aggregator = aggregator
        self._aggregator = self._new_aggregator()
        self._limited = False
        self._accepted: list[tuple[int, int]] = []
        self._arrived: dict[tuple[int, int], set[int]] = {}
        self._covered: dict[tuple[int, int], tuple[int, NDArray[np.int64]]] = {}
        self._lengths: dict[tuple[int, int], float] = {}
        self._clipped: list[Clipped] = []
        self._partial: dict[tuple[int, int], set[int]] = {}
        self._counted: dict[int, list[list[int]]] = {}
        self._references: dict[bytes, bytes] = {}
        self._decoded: tuple[bytes, Reference] | None = None

    def _new_aggregator(self) -> Aggregator:
        if self.compressor.mirrored and self.num_clients is not None:
            return Mirrors(self.layout, self.num_clients)
        return Aggregator(self.layout) if self._make_aggregator is None else self._make_aggregator(self.layout)

    @property
    def aggregator(self) -> Aggregator:
        """What adds up the open round: to be read, not changed."""
        return self._aggregator

    def receive(self, blob: bytes, client_id: int = 0, weight: float = 1.0) -> None:
        """Count one client's blob into the open round.

        Args:
            blob: from ``Client.compress``.
            client_id: who sent it.
            weight: the weight it was compressed with.

        Raises:
            DecodeError: on bytes that are no payload.
            Duplicate: on one that was counted already: its sender may forget it.
            StaleReference: on one that leans on a reference not held here any more.
            ProtocolError: on another layout, a round that is closed or not open yet, or a downlink blob.
            ConfigError: on a weight that is not positive. Nothing is changed in any of these cases.
        """
        weight = check_weight(weight)
        client_id = check_integer("client_id", client_id, 0, 2**63)
        if self.num_clients is not None and client_id >= self.num_clients:
            raise ProtocolError(f"client_id must be below {self.num_clients}, got {client_id}")
        payload = decode(blob, self._limits)
        self._check(payload, client_id)
        name = (client_id, payload.sequence)
        first = name not in self._arrived
        covered = self._coverage(payload, name)
        clipped, length, factor = self._clip(payload, name)
        if not self._limited:
            self._set_limits()
            self._limited = True
        before = self._aggregator.num_received
        self._aggregator.add(clipped, weight, self.reference_of(payload), count=first)
        if factor < 1:
            packet = None if payload.packet is None else payload.packet[0]
            self._clipped.append(Clipped(*name, packet, factor))
        if self._aggregator.num_received > before:
            self._accepted.append(name)
        if payload.packet is not None and self.max_norm is not None:
            self._lengths[name] = length
        if covered is not None:
            self._covered[name] = covered
        numbers = self._arrived.setdefault(name, set())
        if payload.packet is not None:
            numbers.add(payload.packet[0])
            self._partial.setdefault(name, set()).add(payload.packet[0])
            if len(self._partial[name]) < payload.packet[1]:
                return
            del self._partial[name]
        _insert(self._counted.setdefault(client_id, []), payload.sequence)

    def _follow(self, blob: bytes) -> None:
        """Go into the round after the one a server's blob closed, which may now be leant on.

        What there was is left as it is: whoever kept it can go back to it.
        """
        references = {**self._references, reference_digest(blob): blob}
        self._references = dict(list(references.items())[-(self.max_staleness + 1) :])
        self._accepted, self._arrived, self._covered, self._lengths, self._clipped = [], {}, {}, {}, []
        self._aggregator = copy.copy(self._aggregator)
        self._aggregator.reset()
        self._limited = False

    def _set_limits(self) -> None:
        """Tell a round's aggregator what its mean and weights may come to, for the round to be closed for certain.

        Done when the first payload arrives: by then a step has its memory.
        """

    def _packets(self) -> dict[tuple[int, int], frozenset[int]]:
        """The packet numbers that arrived of each payload that came in packets."""
        return {name: frozenset(numbers) for name, numbers in self._arrived.items() if numbers}

    def _clip(self, payload: Payload, name: tuple[int, int]) -> tuple[Payload, float, float]:
        """The payload no longer than allowed, the length of all of it that came so far, and the factor."""
        if self.max_norm is None:
            return payload, 0.0, 1.0
        before = self._lengths.get(name, 0.0)
        clipped, length, factor = clip_payload(payload, max(0.0, self.max_norm**2 - before**2) ** 0.5)
        return clipped, (before**2 + length**2) ** 0.5, factor

    def _check(self, payload: Payload, client_id: int) -> None:
        if payload.sum_weights is not None:
            raise ProtocolError("receive takes a client's blob, got a server's")
        if payload.d != self.layout.d or payload.layout_digest != self.layout.digest:
            raise ProtocolError(f"blob {self.layout.mismatch(payload.layout_digest.hex(), payload.d)}")
        if any(low <= payload.sequence <= high for low, high in self._counted.get(client_id, [])):
            raise Duplicate(f"payload {payload.sequence} of client {client_id} was counted already")
        # kept after the round: a packet that was counted is no lost one, however late it comes again
        if (numbers := self._partial.get((client_id, payload.sequence))) is not None and (
            payload.packet is None or payload.packet[0] in numbers
        ):
            raise Duplicate(f"payload {payload.sequence} of client {client_id} was counted already, in this packet")
        if not self.round - self.max_staleness <= payload.round <= self.round:
            raise ProtocolError(
                f"payload is of round {payload.round}, expected {self.round}"
                + (f" or one of the {self.max_staleness} before" if self.max_staleness else "")
            )

    def _coverage(self, payload: Payload, name: tuple[int, int]) -> tuple[int, NDArray[np.int64]] | None:
        """The number of packets and the coordinates they cover with this one; None where there are no packets.

        Its weight counts once for all packets, so that none may send a coordinate of another again.
        """
        if payload.packet is None:
            return None
        starts = np.cumsum([0, *(part.length for part in payload.parts)])
        inside = [start + part.support.indices for start, part in zip(starts, payload.parts, strict=False)]
        new = np.concatenate(inside)
        count, before = self._covered.get(name, (payload.packet[1], np.empty(0, np.int64)))
        if payload.packet[1] != count:
            raise ProtocolError(
                f"payload {name[1]} of client {name[0]} has {count} packets, got one of {payload.packet[1]}"
            )
        together = np.union1d(before, new)
        if together.size != before.size + new.size:
            raise ProtocolError(
                f"packet {payload.packet[0]} of payload {name[1]} repeats coordinates of another packet"
            )
        return count, together

    def reference_of(self, payload: Payload) -> Reference | None:
        """Find the reference a payload leans on.

        Args:
            payload: of a client.

        Returns:
            The reference; None where it leans on none.

        Raises:
            StaleReference: when it is not held here any more.
        """
        if payload.reference_digest is None:
            return None
        blob = self._references.get(payload.reference_digest)
        if blob is None:
            raise StaleReference(f"payload leans on reference {payload.reference_digest.hex()}, which is not held here")
        if self._decoded is None or self._decoded[0] != payload.reference_digest:
            self._decoded = payload.reference_digest, Reference.of(decode(blob, self._limits))
        return self._decoded[1]

    def counted(self, client_id: int) -> tuple[tuple[int, int], ...]:
        """Tell which payloads of a client were counted, in this round and before: what its host may answer it.

        Args:
            client_id: which client.

        Returns:
            The first and last number of each closed run, increasing and apart; a number in none was not counted.

        Example:
            >>> import numpy as np, gradwire as gw
            >>> client, server = gw.Client(gw.topk(0.5), gw.Layout.flat(2)), gw.Server(gw.topk(0.5), gw.Layout.flat(2))
            >>> blobs = [client.compress(np.array([4, 1], np.float32)) for _ in range(3)]
            >>> server.receive(blobs[0])
            >>> server.receive(blobs[2])
            >>> server.counted(0)
            ((0, 0), (2, 2))
        """
        return tuple((run[0], run[1]) for run in self._counted.get(client_id, []))

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that must survive a restart: arrays and plain values only."""
        state = {
            "format": STATE_FORMAT,
            "spec": str(self.compressor),
            "layout": self.layout.digest.hex(),
            "seed": self.seed,
            "round": self.round,
            **self._aggregator.state_dict(),
            "accepted": [list(pair) for pair in self._accepted],
            "arrived": _plain(self._arrived),
            "partial": _plain(self._partial),
            "covered": [[*name, count, indices.copy()] for name, (count, indices) in self._covered.items()],
            "lengths": [[*name, length] for name, length in self._lengths.items()],
            "clipped": [[c.client_id, c.sequence, c.packet, c.factor] for c in self._clipped],
            "counted": [[client, [list(run) for run in runs]] for client, runs in sorted(self._counted.items())],
            "references": [np.frombuffer(blob, np.uint8).copy() for blob in self._references.values()],
        }
        return to_saved(state)

    def _checked_state(self, state: dict[str, Any]) -> Callable[[], None]:
        """Check a state, and return what takes it over: nothing is changed before."""
        state = from_saved(state)
        check_state(state, STATE_FORMAT, str(self.compressor), self.layout)
        with reading_state():
            aggregator = self._new_aggregator()
            aggregator.load_state_dict(state)
            accepted = [(int(client), int(sequence)) for client, sequence in state["accepted"]]
            counted = {int(client): [[int(a), int(b)] for a, b in runs] for client, runs in state["counted"]}
            arrived, partial = _unplain(state["arrived"]), _unplain(state["partial"])
            covered = {
                (int(client), int(sequence)): (int(count), np.array(indices, np.int64))
                for client, sequence, count, indices in state["covered"]
            }
            lengths = {(int(client), int(sequence)): float(length) for client, sequence, length in state["lengths"]}
            clipped = [
                Clipped(int(client), int(sequence), None if packet is None else int(packet), float(factor))
                for client, sequence, packet, factor in state["clipped"]
            ]
            blobs = [to_bytes(blob) for blob in state["references"]]
            for blob in blobs:
                decode(blob)
            seed, round_index = Key(state["seed"]).seed, check_integer("round", state["round"], 0, 2**63 - 1)

        def take_over() -> None:
            self._aggregator, self._accepted, self._counted = aggregator, accepted, counted
            self._arrived, self._partial, self._covered = arrived, partial, covered
            self._lengths, self._clipped = lengths, clipped
            self._references = {reference_digest(blob): blob for blob in blobs}
            self.seed, self.round, self._limited = seed, round_index, False

        return take_over


def _plain(numbers: dict[tuple[int, int], set[int]]) -> list[list[Any]]:
    return [[client, sequence, sorted(found)] for (client, sequence), found in numbers.items()]


def _unplain(plain: list[list[Any]]) -> dict[tuple[int, int], set[int]]:
    return {(int(client), int(sequence)): {int(n) for n in found} for client, sequence, found in plain}


def _insert(runs: list[list[int]], sequence: int) -> None:
    """Add a number to sorted, disjoint, non-adjacent closed runs."""
    runs.append([sequence, sequence])
    runs.sort()
    merged: list[list[int]] = []
    for low, high in runs:
        if merged and low <= merged[-1][1] + 1:
            merged[-1][1] = max(high, merged[-1][1])
        else:
            merged.append([low, high])
    runs[:] = merged
