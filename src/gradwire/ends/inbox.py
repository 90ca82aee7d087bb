"""Inbox: what both a server and a regional one do with blobs that come in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from gradwire.aggregation.aggregator import Aggregator, Mirrors, check_weight
from gradwire.aggregation.clipping import clip_payload
from gradwire.checks import check_integer, check_number
from gradwire.compressors.compressor import Compressor
from gradwire.compressors.references import Reference
from gradwire.ends.counted import Counted
from gradwire.ends.downlink import reference_digest
from gradwire.ends.fields import HELD, read_field, saved_field
from gradwire.ends.locking import Lock, locked
from gradwire.ends.pieces import Pieces
from gradwire.errors import ConfigError, Duplicate, Forgotten, ProtocolError, StaleReference
from gradwire.fields import Field
from gradwire.journal import Journal
from gradwire.layout import Layout
from gradwire.payload import Fielded, Payload
from gradwire.rng import Key
from gradwire.saved import check_state, from_saved, reading_state, to_bytes, to_saved
from gradwire.wire import Limits, Opened, decode, encode
from gradwire.wire.packets import most_packets

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
        max_norm: the longest a payload may be, in the Euclidean norm of its entries, all its packets together; longer
            ones are scaled down to it. None for any length.
        payloads_per_round: how many payloads of one client and round are counted; None for any number.

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
        payloads_per_round: int | None = 1,
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
        self.payloads_per_round = (
            None if payloads_per_round is None else check_integer("payloads_per_round", payloads_per_round, 1)
        )
        self.round = 0
        self._lock = Lock()
        self._limits = Limits.of(layout.d)
        self._make_aggregator = aggregator
        self._aggregator = self._new_aggregator()
        self._limited = False
        # of the open round, by (client, payload number)
        self._accepted: list[tuple[int, int]] = []
        self._arrived: dict[tuple[int, int], set[int]] = {}
        self._clipped: list[Clipped] = []
        # of rounds that may still come: payloads that are not whole yet; round -> client -> how many it sent
        self._pieces: dict[tuple[int, int], Pieces] = {}
        self._senders: dict[int, dict[int, int]] = {}
        # of all rounds, by client
        self._counted: dict[int, Counted] = {}
        # what the three were before the open round's first payload; None before it
        self._began: _Known | None = None
        self._references: dict[bytes, bytes] = {}
        self._decoded: tuple[bytes, Reference] | None = None
        self._fields: dict[bytes, Field] = {}
        # of the open round, the payload that came last, whole, where a field may make the next ones shorter
        self._sample: Payload | None = None

    def _new_aggregator(self) -> Aggregator:
        if self.compressor.mirrored and self.num_clients is not None:
            return Mirrors(self.layout, self.num_clients)
        return Aggregator(self.layout) if self._make_aggregator is None else self._make_aggregator(self.layout)

    @property
    def aggregator(self) -> Aggregator:
        """What adds up the open round: to be read, not changed."""
        return self._aggregator

    def receive(self, blob: bytes | bytearray | memoryview | Opened, client_id: int = 0, weight: float = 1.0) -> None:
        """Count one client's blob into the open round. Many threads may call it at once.

        Args:
            blob: from ``Client.compress``; not longer than ``Limits.of(d)`` allows. Or what ``wire.read`` gave of it,
                within those limits.
            client_id: who sent it.
            weight: the weight it was compressed with, from 2^-64 to 2^64. Entries are added times their weight, in
                float32: of products below 2^-126 (1e-38) digits are lost. A common factor of all weights does not
                matter, so keep them near 1.

        Raises:
            DecodeError: on bytes that are no payload, or too many of them (``LimitExceeded``).
            Duplicate: on one that was counted already: its sender may forget it.
            Forgotten: on one of a round that is over for good, when it is not known any more whether it was counted.
                The eight newest payloads of a client are always known: one that asks before it has made more than that
                many always learns the truth, however late.
            StaleReference: on one that leans on a reference or field not held here any more.
            ProtocolError: on another layout, a round that is closed or not open yet, more payloads of a client than a
                round may have, a coordinate that comes twice, or a downlink blob; by a region also on what comes
                between ``forward`` and ``end_round``. It was not counted; what is refused as too old or as one too many
                never will be.
            ConfigError: on a weight that is not positive. Nothing is changed in any of these cases, nor when it
                is interrupted or memory runs out.
        """
        weight = check_weight(weight)
        client_id = check_integer("client_id", client_id, 0, 2**63)
        if self.num_clients is not None and client_id >= self.num_clients:
            raise ProtocolError(f"client_id must be below {self.num_clients}, got {client_id}")
        payload = blob.payload if isinstance(blob, Opened) else decode(blob, self._limits)
        with self._lock.alone:
            journal = Journal()
            try:
                self._count(payload, client_id, weight, journal)
            except BaseException:  # an interrupt or no memory, too
                journal.undo()
                raise

    def _count(self, payload: Payload, client_id: int, weight: float, journal: Journal) -> None:
        self._check(payload, client_id)
        name = (client_id, payload.sequence)
        pieces = self._pieces.get(name)
        self._check_number(payload, client_id, pieces)
        if not self._limited:
            self._set_limits()
            self._limited = True
        clipped, factor = payload, 1.0
        if payload.packet is not None:
            pieces = (pieces or Pieces(payload.round, payload.packet[1])).joined(payload)
        if self.max_norm is not None:
            before = 0.0 if pieces is None else pieces.norm
            clipped, norm, factor = clip_payload(payload, max(0.0, self.max_norm**2 - before**2) ** 0.5)
            pieces = None if pieces is None else replace(pieces, norm=(before**2 + norm**2) ** 0.5)
        known = self._counted.get(client_id, Counted())
        if pieces is None or pieces.complete:
            known = known.added(payload.sequence, payload.round)
        is_first, num_received = name not in self._arrived, self._aggregator.num_received
        self._aggregator.add(clipped, weight, self.reference_of(payload), is_first, journal)
        journal.note_fields(self)
        if self._began is None:
            self._began = self._pieces, self._senders, self._counted
            senders_copied = {index: dict(sent) for index, sent in self._senders.items()}
            self._pieces, self._senders, self._counted = dict(self._pieces), senders_copied, dict(self._counted)
        if name not in self._pieces:
            if payload.round not in self._senders:
                journal.put(self._senders, payload.round, {})
            sent = self._senders[payload.round]
            journal.put(sent, client_id, sent.get(client_id, 0) + 1)
        if is_first and self._aggregator.num_received == num_received:
            return  # it was lost on the air
        if is_first:
            journal.append(self._accepted, name)
            journal.put(self._arrived, name, set())
        packet = None if payload.packet is None else payload.packet[0]
        if packet is None and self.compressor.uses_field:
            self._sample = payload
        if packet is not None:
            journal.note(partial(self._arrived[name].discard, packet))
            self._arrived[name].add(packet)
        if factor < 1:
            journal.append(self._clipped, Clipped(*name, packet, factor))
        if pieces is not None and not pieces.complete:
            journal.put(self._pieces, name, pieces)
            return
        journal.put(self._counted, client_id, known)
        if name in self._pieces:
            journal.note(partial(self._pieces.__setitem__, name, self._pieces[name]))
            del self._pieces[name]

    def _follow(self, blob: bytes, shipped: Field | None) -> None:
        """Go into the round after the one a server's blob closed, which may now be leant on, and its field.

        What there was is left as it is: whoever kept it can go back to it.
        """
        oldest = self.round + 1 - self.max_staleness
        pieces, senders = dict(self._pieces), dict(self._senders)
        counted: dict[int, Counted] = {}
        for name in [name for name, found in pieces.items() if found.round < oldest]:
            known = counted.get(name[0], self._counted.get(name[0], Counted()))
            counted[name[0]] = known.left_behind(name[1], pieces.pop(name).packets)
        for client_id in {client for index in [i for i in senders if i < oldest] for client in senders.pop(index)}:
            if client_id in counted or client_id in self._counted:
                counted[client_id] = counted.get(client_id, self._counted.get(client_id, Counted())).without(oldest)
        leant_on = self.compressor.uses_reference
        references = {**self._references, reference_digest(blob): blob} if leant_on else {}
        self._references = dict(list(references.items())[-(self.max_staleness + 1) :])
        fields = dict(self._fields)
        if shipped is not None:
            fields.pop(shipped.digest, None)  # one that comes again is the newest
            fields[shipped.digest] = shipped
        self._fields = dict(list(fields.items())[-HELD:])
        self._accepted, self._arrived, self._clipped, self._sample = [], {}, [], None
        self._pieces, self._senders = pieces, senders
        self._counted = {**self._counted, **counted}
        self._began = None
        self._aggregator = copy.copy(self._aggregator)
        self._aggregator.reset()
        self._limited = False

    def _set_limits(self) -> None:
        """Tell a round's aggregator what its mean and weights may come to, for the round to be closed for certain.

        Done when the first payload arrives: by then a step has its memory.
        """

    @locked
    def drop_round(self) -> tuple[tuple[int, int], ...]:
        """Forget what the open round received: the round stays open, with nothing in it.

        For a round that cannot be closed, or must not be: because a step of the host's own fails on its mean, say.
        What was dropped is as if it had never come: to be told to its sender as not delivered, which takes it back
        into its residual, or to be received again.

        Returns:
            (client_id, sequence) of the payloads that were accepted, in order of arrival.

        Raises:
            ConfigError: where payloads are steps of mirrors, which outlast a round. Nothing is changed then.

        Example:
            >>> import numpy as np, gradwire as gw
            >>> server = gw.Server(gw.dense(), gw.Layout.flat(2))
            >>> server.receive(gw.Client(gw.dense(), gw.Layout.flat(2)).compress(np.ones(2, np.float32)), 0)
            >>> server.drop_round(), server.close_round().num_received
            (((0, 0),), 0)
        """
        if self.compressor.mirrored:
            raise ConfigError(f"{self.compressor} sends steps of mirrors, which cannot be dropped")
        dropped, before = tuple(self._accepted), dict(vars(self))
        try:
            if self._began is not None:
                self._pieces, self._senders, self._counted = self._began
            self._accepted, self._arrived, self._clipped, self._began = [], {}, [], None
            self._aggregator, self._limited, self._sample = self._new_aggregator(), False, None
        except BaseException:
            vars(self).update(before)
            raise
        return dropped

    @locked
    def counted(self, client_id: int) -> tuple[tuple[int, int], ...]:
        """Tell which of a client's payloads were counted: what a host says to a client that missed the answers.

        Args:
            client_id: whose.

        Returns:
            (first, last) of each run of consecutive numbers that came whole, increasing. All of a client's eight newest
            payloads that were counted are in them; an older number that is in none may have been counted all the same
            and be forgotten, so that it must not be taken for lost.

        Example:
            >>> import numpy as np, gradwire as gw
            >>> server, client = (end(gw.dense(), gw.Layout.flat(2)) for end in (gw.Server, gw.Client))
            >>> server.receive(client.compress(np.ones(2, np.float32)), 0)
            >>> server.counted(0), server.counted(1)
            (((0, 0),), ())
        """
        return tuple((run.low, run.high) for run in self._counted.get(client_id, Counted()).runs)

    def _packets(self) -> dict[tuple[int, int], frozenset[int]]:
        """The packet numbers that arrived of each payload that came in packets."""
        return {name: frozenset(numbers) for name, numbers in self._arrived.items() if numbers}

    def _check(self, payload: Payload, client_id: int) -> None:
        if payload.sum_weights is not None:
            raise ProtocolError("receive takes a client's blob, got a server's")
        if payload.d != self.layout.d or payload.layout_digest != self.layout.digest:
            raise ProtocolError(f"blob {self.layout.mismatch(payload.layout_digest.hex(), payload.d)}")
        if payload.packet is not None and payload.packet[1] > (most := most_packets(payload.d)):
            raise ProtocolError(f"a payload has at most {most} packets here, got {payload.packet[1]}")

    def _check_number(self, payload: Payload, client_id: int, pieces: Pieces | None) -> None:
        """Refuse what was counted before, what is of another round, and one payload too many."""
        number, packet = payload.sequence, None if payload.packet is None else payload.packet[0]
        name, known = f"payload {number} of client {client_id}", self._counted.get(client_id, Counted())
        run = known.run_of(number)
        if run is not None and payload.round <= run.round:
            raise Duplicate(f"{name} was counted already")
        oldest = self.round - self.max_staleness
        came = known.unfinished.get(number) if payload.round < oldest else None if pieces is None else pieces.packets
        if came is not None and (packet is None or came >> packet & 1):
            raise Duplicate(f"{name} was counted already, in this packet")
        if payload.round < oldest and came is None and number <= known.forgotten:
            raise Forgotten(
                f"{name} is of round {payload.round}, so long ago that it is not known any more whether it was counted"
            )
        if not oldest <= payload.round <= self.round:
            raise ProtocolError(
                f"payload is of round {payload.round}, expected {self.round}"
                + (f" or one of the {self.max_staleness} before" if self.max_staleness else "")
            )
        if run is not None or number in known.unfinished:
            raise ProtocolError(
                f"{name} is of round {payload.round}, but one of that number was counted in a round before: a client "
                "that lost its state must not use its numbers again"
            )
        sent = self._senders.get(payload.round, {}).get(client_id, 0)
        if pieces is None and self.payloads_per_round is not None and sent >= self.payloads_per_round:
            raise ProtocolError(
                f"{name} is one too many: {sent} of round {payload.round} came, and payloads_per_round is "
                f"{self.payloads_per_round}"
            )

    def reference_of(self, payload: Payload) -> Reference | None:
        """Find what a payload leans on.

        Args:
            payload: of a client.

        Returns:
            The reference, and the field where it leans on one; None where it leans on nothing.

        Raises:
            StaleReference: when it is not held here any more.
        """
        return Reference.beside(self._field_of(payload), self._vector_of(payload), self.layout.d)

    def _field_of(self, payload: Payload) -> Field | None:
        digests = {part.support.field_digest for part in payload.parts if isinstance(part.support, Fielded)}
        for digest in digests - self._fields.keys():
            raise StaleReference(f"payload leans on field {digest.hex()}, which is not held here")
        if len(digests) > 1:
            raise ProtocolError(f"payload leans on {len(digests)} fields, one at most is allowed")
        return self._fields[digests.pop()] if digests else None

    def _vector_of(self, payload: Payload) -> Reference | None:
        if payload.reference_digest is None:
            return None
        blob = self._references.get(payload.reference_digest)
        if blob is None:
            raise StaleReference(f"payload leans on reference {payload.reference_digest.hex()}, which is not held here")
        if self._decoded is None or self._decoded[0] != payload.reference_digest:
            self._decoded = payload.reference_digest, Reference.of(decode(blob, self._limits))
        return self._decoded[1]

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
            "arrived": [[*name, sorted(found)] for name, found in self._arrived.items()],
            "clipped": [[c.client_id, c.sequence, c.packet, c.factor] for c in self._clipped],
            **_state_of((self._pieces, self._senders, self._counted)),
            "began": None if self._began is None else _state_of(self._began),
            "references": [np.frombuffer(blob, np.uint8).copy() for blob in self._references.values()],
            "fields": [saved_field(field) for field in self._fields.values()],
            "sample": None if self._sample is None else np.frombuffer(encode(self._sample), np.uint8).copy(),
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
            arrived = {
                (int(client), int(sequence)): {int(n) for n in found} for client, sequence, found in state["arrived"]
            }
            clipped = [
                Clipped(int(client), int(sequence), None if packet is None else int(packet), float(factor))
                for client, sequence, packet, factor in state["clipped"]
            ]
            known = _read_known(state, self.layout.d)
            began = None if state["began"] is None else _read_known(state["began"], self.layout.d)
            blobs = [to_bytes(blob) for blob in state["references"]]
            for blob in blobs:
                decode(blob)
            fields = [read_field(saved, self.layout) for saved in state["fields"]]
            sample = None if state["sample"] is None else decode(to_bytes(state["sample"]))
            seed, round_index = Key(state["seed"]).seed, check_integer("round", state["round"], 0, 2**63 - 1)

        def take_over() -> None:
            self._aggregator, self._accepted, self._arrived, self._clipped = aggregator, accepted, arrived, clipped
            (self._pieces, self._senders, self._counted), self._began = known, began
            self._references = {reference_digest(blob): blob for blob in blobs}
            self._fields = {field.digest: field for field in fields if field is not None}
            self._sample = sample
            self.seed, self.round, self._limited = seed, round_index, False

        return take_over


_Known = tuple[dict[tuple[int, int], Pieces], dict[int, dict[int, int]], dict[int, Counted]]


def _state_of(known: _Known) -> dict[str, Any]:
    pieces, senders, counted = known
    return {
        "pieces": [[*name, *found.state()] for name, found in pieces.items()],
        "senders": [[index, *sent] for index, of_round in senders.items() for sent in of_round.items()],
        "counted": [[client, *found.state()] for client, found in sorted(counted.items())],
    }


def _read_known(state: dict[str, Any], d: int) -> _Known:
    pieces = {(int(client), int(sequence)): Pieces.from_state(saved, d) for client, sequence, *saved in state["pieces"]}
    senders: dict[int, dict[int, int]] = {}
    for index, client, number in state["senders"]:
        senders.setdefault(int(index), {})[int(client)] = int(number)
    return pieces, senders, {int(client): Counted.from_state(saved) for client, *saved in state["counted"]}
