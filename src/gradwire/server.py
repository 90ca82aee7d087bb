"""Server: the aggregating end of a conversation, without any input or output of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.aggregate import Aggregator, Mirrors, check_weight
from gradwire.checks import check_integer
from gradwire.client import reference_digest
from gradwire.compressor import Compressor, Round, State, Vector, decompress
from gradwire.errors import ConfigError, Duplicate, ProtocolError, StaleReference, StateError
from gradwire.layout import Layout, as_update
from gradwire.payload import Payload
from gradwire.references import Reference
from gradwire.rng import Key
from gradwire.saved import check_memory, check_state, copy_memory, reading_state, to_bytes
from gradwire.sparsify import dense
from gradwire.wire import Limits, decode, encode

__all__ = ["Result", "Server"]

STATE_FORMAT = 1


@dataclass(frozen=True)
class Result:
    """What a round came to.

    Attributes:
        update: (d,) float32: the weighted mean of what arrived; zeros when nothing did. For ``ef21`` the mean of all
            clients' mirrors, silent ones included, each counting the same whatever its weight.
        applied: (d,) float32: exactly what decoding ``blob`` gives; what every end adds to the model.
        blob: what goes to each client.
        sum_weights: total weight received.
        num_received: payloads accepted.
        accepted: (client_id, sequence) of each, in order of arrival.
        packets: of those that came in packets: (client_id, sequence) -> the packet numbers that arrived.
        round: the round that closed.

    Example:
        >>> import gradwire as gw
        >>> result = gw.Server(gw.dense(), gw.Layout.flat(2)).close_round()
        >>> result.update.tolist(), result.num_received
        ([0.0, 0.0], 0)
    """

    update: Vector
    applied: Vector
    blob: bytes
    sum_weights: float
    num_received: int
    accepted: tuple[tuple[int, int], ...]
    packets: dict[tuple[int, int], frozenset[int]]
    round: int


class Server:
    """Takes blobs in, closes rounds, and says what to send down.

    Args:
        compressor: what the clients compress with.
        layout: the model's layout.
        seed: seed of the run, the same at all ends.
        downlink: what compresses the way down; lossless by default.
        step: update -> delta, run inside ``close_round`` on the (d,) float32 mean (a server optimiser, clipping); the
            mean itself when None.
        num_clients: how many clients there are, for schemes that mirror each of them (``ef21`` needs it); client ids
            are then below it.
        max_staleness: accept payloads of this many closed rounds.

    Raises:
        ConfigError: on an argument of another kind; ``ef21`` without ``num_clients``, or on the way down.

    Attributes:
        round: the round that is open.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> layout = gw.Layout.flat(2)
        >>> server = gw.Server(gw.dense(), layout)
        >>> for i, weight in enumerate((1.0, 3.0)):
        ...     client = gw.Client(gw.dense(), layout, client_id=i)
        ...     server.receive(client.compress(np.full(2, 4 * i, np.float32), weight), i, weight)
        >>> server.close_round().update.tolist()
        [3.0, 3.0]
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        seed: int = 0,
        downlink: Compressor | None = None,
        step: Callable[[Vector], Vector] | None = None,
        num_clients: int | None = None,
        max_staleness: int = 0,
    ) -> None:
        downlink = dense() if downlink is None else downlink
        for name, value in (("compressor", compressor), ("downlink", downlink)):
            if not isinstance(value, Compressor):
                raise ConfigError(f"{name} must be a Compressor, got {value!r}; gw.parse reads spec text")
        if not isinstance(layout, Layout):
            raise ConfigError(f"layout must be a Layout, got {type(layout).__name__}")
        if step is not None and not callable(step):
            raise ConfigError(f"step must be a function update -> delta or None, got {step!r}")
        if compressor.mirrored and num_clients is None:
            raise ConfigError(f"{compressor} keeps a mirror of each client: Server needs num_clients, got None")
        if downlink.mirrored:
            raise ConfigError(f"downlink must send what is applied, {downlink} sends steps of a mirror; use ef")
        self.compressor = compressor
        self.layout = layout
        self.seed = Key(seed).seed
        self.downlink = downlink
        self.step = step
        self.num_clients = None if num_clients is None else check_integer("num_clients", num_clients, 1)
        self.max_staleness = check_integer("max_staleness", max_staleness, 0)
        self.round = 0
        self._limits = Limits(max_parameters=max(1, layout.d))
        self._aggregator = self._new_aggregator()
        self._accepted: list[tuple[int, int]] = []
        self._arrived: dict[tuple[int, int], set[int]] = {}
        self._covered: dict[tuple[int, int], tuple[int, NDArray[np.int64]]] = {}
        self._partial: dict[tuple[int, int], set[int]] = {}
        self._counted: dict[int, list[list[int]]] = {}
        self._downlink_state = downlink.init(layout)
        self._references: dict[bytes, bytes] = {}
        self._decoded: tuple[bytes, Reference] | None = None

    def _new_aggregator(self) -> Aggregator:
        if self.compressor.mirrored and self.num_clients is not None:
            return Mirrors(self.layout, self.num_clients)
        return Aggregator(self.layout)

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
        self._aggregator.add(payload, weight, self._reference_of(payload), count=first)
        if first:
            self._accepted.append(name)
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

    def close_round(self) -> Result:
        """End the open round: mean, step, downlink.

        Returns:
            The result; its blob goes to every client. A round nothing arrived in gives zeros and a valid blob.

        Raises:
            UpdateError: when ``step`` gives something that is no finite (d,) float vector; the round then stays open.
        """
        if self.step is None:
            update = delta = self._aggregator.mean()
        else:
            update = self._aggregator.mean()
            delta = as_update(self.step(update.copy()), self.layout.d)
        agreed = Round(
            index=self.round,
            key=Key(self.seed, self.round, purpose="downlink"),
            sequence=self.round,
            sum_weights=self._aggregator.sum_weights,
        )
        payload, self._downlink_state = self.downlink.compress(delta, self._downlink_state, agreed)
        blob = encode(payload)
        result = Result(
            update=update,
            applied=decompress(payload),
            blob=blob,
            sum_weights=self._aggregator.sum_weights,
            num_received=self._aggregator.num_received,
            accepted=tuple(self._accepted),
            packets={name: frozenset(numbers) for name, numbers in self._arrived.items() if numbers},
            round=self.round,
        )
        self._aggregator.reset()
        self._accepted, self._arrived, self._covered = [], {}, {}
        self._references[reference_digest(blob)] = blob
        while len(self._references) > self.max_staleness + 1:
            del self._references[next(iter(self._references))]
        self.round += 1
        return result

    def _check(self, payload: Payload, client_id: int) -> None:
        if payload.sum_weights is not None:
            raise ProtocolError("receive takes a client's blob, got a server's")
        if payload.d != self.layout.d or payload.layout_digest != self.layout.digest:
            raise ProtocolError(
                f"blob is of layout {payload.layout_digest.hex()} with d = {payload.d}, "
                f"expected {self.layout.digest.hex()} with d = {self.layout.d}"
            )
        if any(low <= payload.sequence <= high for low, high in self._counted.get(client_id, [])):
            raise Duplicate(f"payload {payload.sequence} of client {client_id} was counted already")
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

    def _reference_of(self, payload: Payload) -> Reference | None:
        if payload.reference_digest is None:
            return None
        blob = self._references.get(payload.reference_digest)
        if blob is None:
            raise StaleReference(f"payload leans on reference {payload.reference_digest.hex()}, which is not held here")
        if self._decoded is None or self._decoded[0] != payload.reference_digest:
            self._decoded = payload.reference_digest, Reference.of(decode(blob, self._limits))
        return self._decoded[1]

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that must survive a restart: arrays and plain values only.

        Returns:
            ``format``, ``spec``, ``downlink``, ``layout``, ``seed``, ``round``, the open round's ``sum`` ((d,) float32,
            weighted and not divided; for ``ef21`` of all mirrors, with ``num_clients``), ``sum_weights``,
            ``num_received``, ``accepted``, what was ``counted`` of each client, the downlink's ``scheme`` memory and
            the past ``references``. The step's own state is the caller's.
        """
        aggregator = self._aggregator
        return {
            "format": STATE_FORMAT,
            "spec": str(self.compressor),
            "downlink": str(self.downlink),
            "layout": self.layout.digest.hex(),
            "seed": self.seed,
            "round": self.round,
            **aggregator.state_dict(),
            "accepted": [list(pair) for pair in self._accepted],
            "arrived": _plain(self._arrived),
            "partial": _plain(self._partial),
            "covered": [[*name, count, indices.copy()] for name, (count, indices) in self._covered.items()],
            "counted": [[client, [list(run) for run in runs]] for client, runs in sorted(self._counted.items())],
            "scheme": copy_memory(self._downlink_state.memory),
            "references": [np.frombuffer(blob, np.uint8).copy() for blob in self._references.values()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Args:
            state: from ``state_dict`` of a server with the same specs and layout; not modified.

        Raises:
            StateError: on a state of something else; nothing is changed then.
        """
        check_state(state, STATE_FORMAT, str(self.compressor), self.layout)
        downlink = state.get("downlink")
        if not isinstance(downlink, str) or downlink != str(self.downlink):
            raise StateError(f"state has downlink {downlink!r}, expected {str(self.downlink)!r}")
        with reading_state():
            aggregator = self._new_aggregator()
            aggregator.load_state_dict(state)
            memory = copy_memory(state["scheme"])
            check_memory(memory, self.downlink.init(self.layout).memory, self.layout.num_parameters)
            accepted = [(int(client), int(sequence)) for client, sequence in state["accepted"]]
            counted = {int(client): [[int(a), int(b)] for a, b in runs] for client, runs in state["counted"]}
            arrived, partial = _unplain(state["arrived"]), _unplain(state["partial"])
            covered = {
                (int(client), int(sequence)): (int(count), np.array(indices, np.int64))
                for client, sequence, count, indices in state["covered"]
            }
            blobs = [to_bytes(blob) for blob in state["references"]]
            for blob in blobs:
                decode(blob)
            seed, round_index = Key(state["seed"]).seed, check_integer("round", state["round"], 0, 2**63 - 1)
        self._aggregator, self._accepted, self._counted = aggregator, accepted, counted
        self._arrived, self._partial, self._covered = arrived, partial, covered
        self._downlink_state = State(self.layout, memory)
        self._references = {reference_digest(blob): blob for blob in blobs}
        self.seed, self.round = seed, round_index


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
