"""Client: the sending end of a conversation, without any input or output of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.aggregation.aggregator import check_weight
from gradwire.checks import check_bytes, check_integer, check_support
from gradwire.compressors.compressor import Compressor, Round, State, Vector, decompress, resolve
from gradwire.compressors.references import Reference
from gradwire.ends.downlink import Downlink, reference_digest
from gradwire.ends.fields import check_field, read_field, saved_field
from gradwire.errors import ConfigError, ProtocolError, StateError
from gradwire.fields import Field
from gradwire.kernels import ops
from gradwire.layout import Layout, as_update
from gradwire.payload import Fielded, Payload
from gradwire.rng import Key
from gradwire.saved import check_memory, check_state, copy_memory, from_saved, reading_state, to_bytes, to_saved
from gradwire.wire import Opened, decode, write
from gradwire.wire.packets import cut_packets

__all__ = ["Client"]

STATE_FORMAT = 1
Delivered = bool | Set[int]


@dataclass(frozen=True)
class _Pending:
    """A payload that was sent and not answered yet: one blob, or its packets in order; and what it leans on."""

    sequence: int
    blobs: tuple[bytes, ...]
    held: _Held | None
    field: Field | None = None


@dataclass(frozen=True)
class _Held:
    """A blob of the server, the vector it stands for where that is read, and the weights behind it."""

    blob: bytes
    reference: Reference | None
    sum_weights: float | None

    def saved(self) -> NDArray[np.uint8]:
        """The blob, as it is kept in a state."""
        return np.frombuffer(self.blob, np.uint8).copy()


@dataclass(frozen=True)
class _Standing:
    """All of a client that changes, as one value: it is replaced by the next in one step, or not at all."""

    state: State
    pending: tuple[_Pending, ...] = ()
    reference: _Held | None = None
    field: Field | None = None
    synced: int = 0
    round: int = 0
    sequence: int = 0


class Client:
    """Turns updates into blobs, remembers what was not delivered, and follows the server's rounds.

    Nothing is sent or received here: the host carries the bytes, and says in ``end_round`` what arrived. A server asked
    again about one of eight pending payloads or fewer knows, however late. A client is for one thread at a time.

    Args:
        compressor: what compresses updates.
        layout: the model's layout.
        client_id: this client's number, 0 or more; part of the key randomness is drawn from.
        seed: seed of the run, the same at all ends.
        num_rounds: rounds of the whole run, for compressors with a schedule, or None.

    A call that fails, by an interrupt or for want of memory too, leaves the client as it was, a residual to float32
    rounding. Where an interrupt comes just as a call returns, it may have been done: ``sequence`` and ``round`` tell.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> layout = gw.Layout.flat(4)
        >>> client, server = gw.Client(gw.topk(0.5), layout), gw.Server(gw.topk(0.5), layout)
        >>> blob = client.compress(np.array([1, -4, 2, 0], np.float32))
        >>> server.receive(blob, client_id=0)
        >>> result = server.close_round()
        >>> client.end_round(result.blob, delivered=True).tolist()
        [0.0, -4.0, 2.0, 0.0]
    """

    def __init__(
        self,
        compressor: Compressor,
        layout: Layout,
        client_id: int = 0,
        seed: int = 0,
        num_rounds: int | None = None,
    ) -> None:
        if not isinstance(compressor, Compressor):
            raise ConfigError(f"compressor must be a Compressor, got {compressor!r}; gw.parse reads spec text")
        if not isinstance(layout, Layout):
            raise ConfigError(f"layout must be a Layout, got {type(layout).__name__}")
        self.compressor = compressor
        self.layout = layout
        self.client_id = check_integer("client_id", client_id, 0, 2**63)
        self.seed = Key(seed).seed
        self.num_rounds = _check_num_rounds(num_rounds)
        self._standing = _Standing(compressor.init(layout))

    @property
    def round(self) -> int:
        """The round the next update belongs to."""
        return self._standing.round

    @property
    def sequence(self) -> int:
        """How many payloads were made so far."""
        return self._standing.sequence

    @property
    def residual(self) -> Vector | None:
        """(d,) float32, what was not sent yet, not to be written to; None without error feedback."""
        return self._standing.state.memory.get("residual")

    @property
    def pending_sequences(self) -> tuple[int, ...]:
        """Numbers of the payloads that were made and not answered yet, in order."""
        return tuple(p.sequence for p in self._standing.pending)

    @property
    def pending(self) -> tuple[bytes, ...]:
        """Blobs that were made and not answered yet, oldest first: what to send again after a crash."""
        return tuple(blob for p in self._standing.pending for blob in p.blobs)

    def compress(
        self,
        update: Any,
        weight: float = 1.0,
        round: int | None = None,
        num_bytes: int | None = None,
        support: Any = None,
    ) -> bytes:
        """Turn an update into the bytes to send.

        Args:
            update: (d,) float16, bfloat16, float32 or float64, NumPy or torch; not modified.
            weight: this client's weight in the mean, > 0; the same number goes to ``Server.receive``.
            round: the round this client joins, where it sat some out; the round after the last one ended when None.
            num_bytes: the blob must take at most this many bytes.
            support: coordinates to send instead of those that the compressor would choose, since all clients of the
                round send them: (k,) integers, increasing; what ``propose`` of one of them gave. No more than the
                compressor would send (``Compressor.largest_support``), whoever asks for them.

        Returns:
            The blob: exactly what travels.

        Raises:
            UpdateError: on NaN, Inf, a wrong length or dtype.
            ConfigError: on a weight, round, budget or support that cannot be, or a compressor that takes no support.
        """
        return self.compress_opened(update, weight, round, num_bytes, support).blob

    def compress_opened(
        self,
        update: Any,
        weight: float = 1.0,
        round: int | None = None,
        num_bytes: int | None = None,
        support: Any = None,
    ) -> Opened:
        """As ``compress``, for whoever hosts both ends: the server need not read what is written here.

        Args:
            update: as for ``compress``.
            weight: as for ``compress``.
            round: as for ``compress``.
            num_bytes: as for ``compress``.
            support: as for ``compress``.

        Returns:
            The blob, what it says and where its bytes go; ``Server.receive`` takes it in place of the blob.

        Raises:
            UpdateError: as ``compress``.
            ConfigError: as ``compress``.

        Example:
            >>> import numpy as np, gradwire as gw
            >>> layout = gw.Layout.flat(2)
            >>> server = gw.Server(gw.topk(0.5), layout)
            >>> server.receive(gw.Client(gw.topk(0.5), layout).compress_opened(np.array([4, 1], np.float32)))
            >>> server.close_round().update.tolist()
            [4.0, 0.0]
        """
        num_bytes = check_bytes(num_bytes)
        chosen = None if support is None else check_support(support, self.layout.num_parameters)
        if chosen is not None and num_bytes is not None:
            raise ConfigError("a payload of a given support has the bytes it has: leave num_bytes out")

        def whole(payload: Payload) -> tuple[Opened, ...]:
            if chosen is not None:
                _check_inside(payload, chosen, self.layout.num_parameters, self.compressor)
            return (write(payload),)

        return self._send(update, weight, round, num_bytes, whole, chosen)[0]

    def propose(self, update: Any, weight: float = 1.0, round: int | None = None) -> NDArray[np.int64]:
        """Tell which coordinates this client would send of an update; nothing is sent and nothing remembered.

        Args:
            update: as for ``compress``.
            weight: as for ``compress``.
            round: as for ``compress``.

        Returns:
            (k,) int64, increasing, of the model's parameters: what all clients of a round may take as ``support``.

        Raises:
            UpdateError: on NaN, Inf, a wrong length or dtype.
            ConfigError: on a weight or round that cannot be.

        Example:
            >>> import numpy as np, gradwire as gw
            >>> client = gw.Client(gw.ef(gw.topk(0.5)), gw.Layout.flat(2))
            >>> client.propose(np.array([4, 1], np.float32)).tolist(), client.sequence
            ([0], 0)
        """
        before = self._standing
        state = before.state.attempt()
        try:
            payload, _ = self._compress(update, weight, round, None, state)
            held = before.reference if payload.reference_digest is not None else None
            return _coordinates_of(payload, self.layout.num_parameters, None if held is None else held.reference)
        finally:
            state.journal.undo()

    def packets(self, update: Any, mtu: int, weight: float = 1.0, round: int | None = None) -> list[bytes]:
        """Turn an update into blobs of at most ``mtu`` bytes, the largest magnitudes first, each readable alone.

        Args:
            update: as for ``compress``.
            mtu: most bytes of a blob.
            weight: as for ``compress``; the server counts it once for all packets.
            round: as for ``compress``.

        Returns:
            The blobs in order of importance; ``end_round(delivered=...)`` takes the set of numbers that arrived.

        Raises:
            UpdateError: on NaN, Inf, a wrong length or dtype.
            ConfigError: on an mtu too small for one entry, or a weight or round that cannot be.
        """
        mtu = check_integer("mtu", mtu, 1)
        opened = self._send(update, weight, round, None, lambda payload: tuple(map(write, cut_packets(payload, mtu))))
        return list(map(attrgetter("blob"), opened))  # calls nothing that could fail now

    def _send(
        self,
        update: Any,
        weight: float,
        round: int | None,
        num_bytes: int | None,
        written: Callable[[Payload], tuple[Opened, ...]],
        support: NDArray[np.int64] | None = None,
    ) -> tuple[Opened, ...]:
        """Compress and write; what is remembered changes once the bytes exist, or not at all."""
        before = self._standing
        state = before.state.attempt()
        try:
            payload, after = self._compress(update, weight, round, num_bytes, state, support)
            opened = written(payload)
            blobs = tuple(map(attrgetter("blob"), opened))
            leans_on = None if payload.reference_digest is None else before.reference
            fielded = any(isinstance(part.support, Fielded) for part in payload.parts)
            self._standing = replace(
                before,
                state=State(self.layout, after.memory),
                pending=(
                    *before.pending,
                    _Pending(before.sequence, blobs, leans_on, before.field if fielded else None),
                ),
                sequence=before.sequence + 1,
                round=max(before.round, payload.round),
            )
        except BaseException:  # an interrupt or no memory, too
            self._standing = before
            state.journal.undo()
            raise
        return opened

    def _compress(
        self,
        update: Any,
        weight: float,
        round: int | None,
        num_bytes: int | None,
        state: State,
        support: NDArray[np.int64] | None = None,
    ) -> tuple[Payload, State]:
        weight = check_weight(weight)
        index = self.round if round is None else check_integer("round", round, 0, 2**63 - 1)
        most = self.compressor.largest_support(self.layout.num_parameters, index)
        if support is not None and support.size > most:
            raise ConfigError(
                f"support may have {most} coordinates at most, as {self.compressor} sends in round {index}, got "
                f"{support.size}"
            )
        vector = as_update(update, self.layout.d, not self.compressor.checks_update, layout=self.layout)
        standing = self._standing
        current = self.compressor.uses_reference and index == standing.synced
        held = standing.reference if current else None
        agreed = Round(
            index=index,
            key=Key(self.seed, index, self.client_id),
            reference=None if held is None else held.reference,
            reference_digest=None if held is None else reference_digest(held.blob),
            reference_weights=1.0 if held is None or not held.sum_weights else held.sum_weights,
            weight=weight,
            num_bytes=num_bytes,
            num_rounds=self.num_rounds,
            sequence=self.sequence,
            held_field=standing.field,
            support=support,
        )
        return self.compressor.compress(vector, state, agreed)

    def end_round(self, blob: bytes | Downlink, delivered: Delivered | Mapping[int, Delivered] = True) -> Vector:
        """Follow the server into the next round.

        Args:
            blob: ``result.blob`` of the round that closed; the last one alone is enough after rounds missed. Where many
                clients in a process follow it, ``Downlink.read`` of it, which is worked out once for all of them.
            delivered: what became of all payloads pending: True when each was accepted or answered ``Duplicate``,
                False when none was: error feedback then takes them back. After ``packets``, the set of packet
                numbers that arrived: the others are taken back. Or a dict from sequence number to any of these:
                payloads it does not name stay pending, nothing being known of them yet.

        Returns:
            (d,) float32: what to add to the model, equal to ``result.applied`` at the server. That of a ``Downlink`` is
            not to be written to.

        Raises:
            DecodeError: on a damaged blob.
            ProtocolError: on a blob of another layout, an uplink blob, or one of a round ended before.
            UpdateError: where the residual and what it takes back are more than float32 holds. Nothing is changed in
                any of these cases.
        """
        self._check_fates(delivered)
        if isinstance(blob, Downlink):
            downlink = blob
            downlink.check(self.layout)
        else:
            downlink = Downlink.read(blob, self.layout)
        payload = downlink.payload
        standing = self._standing
        if payload.round < standing.synced:
            raise ProtocolError(
                f"blob is of round {payload.round}, which ended before; expected {standing.synced} or later"
            )
        shipped = check_field(payload.shipped_field, self.layout) if self.compressor.uses_field else None
        applied = downlink.applied if downlink is blob else decompress(payload)
        state, pending = self._settled(delivered)
        held, next_round = self._hold(downlink), payload.round + 1
        field = standing.field if shipped is None else shipped
        self._standing = _Standing(state, pending, held, field, next_round, next_round, standing.sequence)
        return applied

    def settle(self, delivered: Delivered | Mapping[int, Delivered]) -> None:
        """Take note of what became of pending payloads, where no blob of the server came with the answer.

        Args:
            delivered: as for ``end_round``.

        Raises:
            ConfigError: on an answer about a payload that is not pending, or packets that it does not have.
            UpdateError: where the residual and what it takes back are more than float32 holds. Nothing is changed in
                any of these cases.

        Example:
            >>> import numpy as np, gradwire as gw
            >>> client = gw.Client(gw.ef(gw.topk(0.5)), gw.Layout.flat(2))
            >>> blobs = [client.compress(np.array([4, 1], np.float32)) for _ in range(2)]
            >>> client.settle({0: False})  # of payload 1 nothing is known yet
            >>> client.pending_sequences, client.state_dict()["residual"].tolist()
            ((1,), [4.0, 2.0])
        """
        self._check_fates(delivered)
        state, pending = self._settled(delivered)
        self._standing = replace(self._standing, state=state, pending=pending)

    def skip_to(self, sequence: int) -> None:
        """Number the next payload so: a server has counted numbers that this client, restored from long ago, forgot.

        Args:
            sequence: the number, not below ``self.sequence``.

        Raises:
            ConfigError: on a number that was given to a payload before.
        """
        sequence = check_integer("sequence", sequence, self.sequence, 2**63 - 1)
        self._standing = replace(self._standing, sequence=sequence)

    def _fates(self, delivered: Delivered | Mapping[int, Delivered]) -> Mapping[int, Delivered]:
        """What became of the payloads that an answer names, by number."""
        sequences = self.pending_sequences
        if isinstance(delivered, Mapping):
            return delivered
        if isinstance(delivered, Set) and len(sequences) != 1:
            raise ConfigError(f"a set of packet numbers needs exactly one payload pending, got {len(sequences)}")
        return dict.fromkeys(sequences, delivered)

    def _check_fates(self, delivered: Delivered | Mapping[int, Delivered]) -> None:
        """Raise ConfigError on an answer that is about nothing that is pending."""
        fates = self._fates(delivered)
        pending = {p.sequence: len(p.blobs) for p in self._standing.pending}
        for sequence, fate in fates.items():
            if sequence not in pending:
                raise ConfigError(f"delivered may name the pending payloads {list(pending)}, got {sequence!r}")
            packets = range(pending[sequence])
            right = isinstance(fate, bool) or (
                isinstance(fate, Set) and all(not isinstance(n, bool) and n in packets for n in fate)
            )
            if not right:
                raise ConfigError(
                    f"delivered must be True, False or packet numbers in [0, {pending[sequence]}), got {fate!r}"
                )

    def _settled(self, delivered: Delivered | Mapping[int, Delivered]) -> tuple[State, tuple[_Pending, ...]]:
        """The state with what was lost taken back, against the reference it leans on; and what stays pending."""
        fates, standing = self._fates(delivered), self._standing
        state = standing.state.attempt()
        for sent in standing.pending:
            fate = fates.get(sent.sequence, True)
            for number, blob in enumerate(sent.blobs):
                if not (number in fate if isinstance(fate, Set) else fate):
                    leant_on = None if sent.held is None else sent.held.reference
                    reference = Reference.beside(sent.field, leant_on, self.layout.d)
                    state = self.compressor.restore(decode(blob), state, reference)
        return state, tuple(p for p in standing.pending if p.sequence not in fates)

    def _hold(self, downlink: Downlink) -> _Held:
        """What to keep of a server's blob, decoded only where the compressor reads it."""
        reference = downlink.reference if self.compressor.uses_reference else None
        return _Held(downlink.blob, reference, downlink.payload.sum_weights)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that must survive a restart: arrays and plain values only.

        Returns:
            ``format``, ``spec``, ``layout`` (hash), ``client_id``, ``seed``, ``num_rounds``, ``round``, ``sequence``,
            ``residual`` ((d,) float32 as of now, or None without error feedback), ``pending`` (blobs as uint8 arrays
            with their sequence), ``reference`` (the last downlink blob, or None), ``field`` (the last
            one shipped, or None) and ``scheme`` (the compressor's other memory).
        """
        standing = self._standing
        memory = copy_memory(standing.state.memory)
        state = {
            "format": STATE_FORMAT,
            "spec": str(self.compressor),
            "layout": self.layout.digest.hex(),
            "client_id": self.client_id,
            "seed": self.seed,
            "num_rounds": self.num_rounds,
            "round": standing.round,
            "sequence": standing.sequence,
            "residual": memory.pop("residual", None),
            "pending": [
                {
                    "sequence": p.sequence,
                    "blobs": [np.frombuffer(b, np.uint8).copy() for b in p.blobs],
                    "reference": None if p.held is None else p.held.saved(),
                    "field": saved_field(p.field),
                }
                for p in standing.pending
            ],
            "reference": None if standing.reference is None else standing.reference.saved(),
            "field": saved_field(standing.field),
            "scheme": memory,
        }
        return to_saved(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken: the next bytes are the same.

        Args:
            state: from ``state_dict`` of a client with the same spec, layout and id; not modified.

        Raises:
            StateError: on a state of something else; nothing is changed then.
        """
        state = from_saved(state)
        check_state(state, STATE_FORMAT, str(self.compressor), self.layout)
        with reading_state():
            if state["client_id"] != self.client_id:
                raise StateError(f"state is of client {state['client_id']}, expected {self.client_id}")
            memory = copy_memory(state["scheme"])
            if state["residual"] is not None:
                memory["residual"] = np.array(state["residual"], np.float32)
            check_memory(memory, self.compressor.init(self.layout).memory, self.layout.num_parameters)
            reference, synced = None, 0
            if state["reference"] is not None:
                blob = to_bytes(state["reference"])
                downlink = Downlink(blob, decode(blob))
                reference, synced = self._hold(downlink), downlink.payload.round + 1
            field = read_field(state["field"], self.layout)
            pending = tuple(self._read_pending(p, reference) for p in state["pending"])
            sequences = [p.sequence for p in pending]
            if sequences != sorted(set(sequences)):
                raise StateError(f"state's pending payloads must be numbered in order, got {sequences}")
            seed = Key(state["seed"]).seed
            num_rounds = _check_num_rounds(state["num_rounds"])
            round_index = check_integer("round", state["round"], 0, 2**63 - 1)
            sequence = check_integer("sequence", state["sequence"], 0, 2**63 - 1)
        self.seed, self.num_rounds = seed, num_rounds
        self._standing = _Standing(State(self.layout, memory), pending, reference, field, synced, round_index, sequence)

    def _read_pending(self, saved: Mapping[str, Any], current: _Held | None) -> _Pending:
        """Read a pending payload of a state; what it leans on is mostly the current reference."""
        held = None
        if saved["reference"] is not None:
            blob = to_bytes(saved["reference"])
            held = current if current is not None and current.blob == blob else self._hold(Downlink(blob, decode(blob)))
        blobs = tuple(map(to_bytes, saved["blobs"]))
        for blob in blobs:
            decode(blob)
        sequence = check_integer("sequence", saved["sequence"], 0, 2**63 - 1)
        return _Pending(sequence, blobs, held, read_field(saved["field"], self.layout))


def _coordinates_of(payload: Payload, num_parameters: int, reference: Reference | None = None) -> NDArray[np.int64]:
    """Which of the model's parameters a payload sends: (k,) int64 increasing."""
    parts = resolve(payload, reference)
    starts = np.cumsum([0, *(part.length for part in parts)])
    found = np.sort(np.concatenate([start + p.support.indices for start, p in zip(starts, parts, strict=False)]))
    return found[found < num_parameters]


def _check_inside(payload: Payload, support: NDArray[np.int64], num_parameters: int, compressor: Compressor) -> None:
    """Raise ConfigError on a payload of other coordinates than were asked for."""
    sent = None if payload.reference_digest is not None else _coordinates_of(payload, num_parameters)
    if sent is None or (ops.find(support, sent) < 0).any():
        raise ConfigError(f"{compressor} chooses its own coordinates, it cannot be given a support")


def _check_num_rounds(value: Any) -> int | None:
    return None if value is None else check_integer("num_rounds", value, 1)
