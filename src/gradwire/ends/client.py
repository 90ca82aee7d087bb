"""Client: the sending end of a conversation, without any input or output of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwire.aggregation.aggregator import check_weight
from gradwire.checks import check_bytes, check_integer
from gradwire.compressors.compressor import Compressor, Round, State, Vector, decompress
from gradwire.compressors.references import Reference
from gradwire.errors import ConfigError, ProtocolError, StateError
from gradwire.layout import Layout, as_update
from gradwire.payload import Payload
from gradwire.rng import Key
from gradwire.saved import check_memory, check_state, copy_memory, reading_state, to_bytes
from gradwire.wire import Limits, decode, encode
from gradwire.wire.packets import cut_packets

__all__ = ["Client", "reference_digest"]

STATE_FORMAT = 1
Delivered = bool | Set[int]


@dataclass(frozen=True)
class _Pending:
    """A payload that was sent and not answered yet: one blob, or its packets in order."""

    sequence: int
    blobs: tuple[bytes, ...]


@dataclass(frozen=True)
class _Held:
    """The last blob of the server, the vector it stands for where that is read, and the weights behind it."""

    blob: bytes
    reference: Reference | None
    sum_weights: float | None


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

    Attributes:
        round: the round the next update belongs to.
        sequence: how many payloads were made so far.

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
        self.round = 0
        self.sequence = 0
        self._state = compressor.init(layout)
        self._pending: list[_Pending] = []
        self._reference: _Held | None = None
        self._synced = 0

    @property
    def pending(self) -> tuple[bytes, ...]:
        """Blobs that were made and not answered yet, oldest first: what to send again after a crash."""
        return tuple(blob for p in self._pending for blob in p.blobs)

    def compress(
        self, update: Any, weight: float = 1.0, round: int | None = None, num_bytes: int | None = None
    ) -> bytes:
        """Turn an update into the bytes to send.

        Args:
            update: (d,) float16, bfloat16, float32 or float64, NumPy or torch; not modified.
            weight: this client's weight in the mean, > 0; the same number goes to ``Server.receive``.
            round: the round this client joins, where it sat some out; the round after the last one ended when None.
            num_bytes: the blob must take at most this many bytes.

        Returns:
            The blob: exactly what travels.

        Raises:
            UpdateError: on NaN, Inf, a wrong length or dtype.
            ConfigError: on a weight, round or budget that cannot be.
        """
        payload = self._compress(update, weight, round, check_bytes(num_bytes))
        blob = encode(payload)
        self._sent((blob,), payload.round)
        return blob

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
        before = State(self.layout, copy_memory(self._state.memory))
        payload = self._compress(update, weight, round, None)
        try:
            blobs = tuple(encode(packet) for packet in cut_packets(payload, mtu))
        except ConfigError:
            self._state = before
            raise
        self._sent(blobs, payload.round)
        return list(blobs)

    def _sent(self, blobs: tuple[bytes, ...], round: int) -> None:
        self._pending.append(_Pending(self.sequence, blobs))
        self.sequence += 1
        self.round = max(self.round, round)

    def _compress(self, update: Any, weight: float, round: int | None, num_bytes: int | None) -> Payload:
        weight = check_weight(weight)
        index = self.round if round is None else check_integer("round", round, 0, 2**63 - 1)
        vector = as_update(update, self.layout.d, check=not self.compressor.checks_update)
        current = self.compressor.uses_reference and self._reference is not None and index == self._synced
        held = self._reference if current else None
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
        )
        payload, self._state = self.compressor.compress(vector, self._state, agreed)
        return payload

    def end_round(self, blob: bytes, delivered: Delivered | Mapping[int, Delivered] = True) -> Vector:
        """Follow the server into the next round.

        Args:
            blob: ``result.blob`` of the round that closed; the last one alone is enough after rounds missed.
            delivered: what became of all payloads pending: True when each was accepted or answered ``Duplicate``,
                False when none was: error feedback then takes them back. After ``packets``, the set of packet
                numbers that arrived: the others are taken back. Where several payloads are pending, a dict from
                sequence number to any of these.

        Returns:
            (d,) float32: what to add to the model, equal to ``result.applied`` at the server.

        Raises:
            DecodeError: on a damaged blob.
            ProtocolError: on a blob of another layout, an uplink blob, or one of a round ended before.
            UpdateError: where the residual and what it takes back are more than float32 holds. Nothing is changed in
                any of these cases.
        """
        lost = self._lost(delivered)
        payload = decode(blob, Limits(max_parameters=max(1, self.layout.d)))
        if payload.sum_weights is None:
            raise ProtocolError("end_round takes a server's blob, got a client's")
        if payload.d != self.layout.d or payload.layout_digest != self.layout.digest:
            raise ProtocolError(
                f"blob is of layout {payload.layout_digest.hex()} with d = {payload.d}, "
                f"expected {self.layout.digest.hex()} with d = {self.layout.d}"
            )
        if payload.round >= 2**63 - 1:
            raise ProtocolError(f"blob is of round {payload.round}, after which there is none")
        if payload.round < self._synced:
            raise ProtocolError(
                f"blob is of round {payload.round}, which ended before; expected {self._synced} or later"
            )
        applied = decompress(payload)
        state = self._state
        for unanswered in lost:
            state = self.compressor.restore(unanswered, state, self._reference_of(unanswered))
        self._state = state
        self._pending.clear()
        self._reference = self._hold(bytes(blob), payload)
        self.round = self._synced = payload.round + 1
        return applied

    def _lost(self, delivered: Delivered | Mapping[int, Delivered]) -> list[Payload]:
        """The pending payloads, or packets, that did not arrive."""
        sequences = [p.sequence for p in self._pending]
        if not isinstance(delivered, Mapping):
            if isinstance(delivered, Set) and len(sequences) != 1:
                raise ConfigError(f"a set of packet numbers needs exactly one payload pending, got {len(sequences)}")
            delivered = dict.fromkeys(sequences, delivered)
        if set(delivered) != set(sequences):
            raise ConfigError(f"delivered must name the pending payloads {sequences}, got {sorted(delivered)}")
        lost = []
        for pending in self._pending:
            fate = delivered[pending.sequence]
            arrived = fate if isinstance(fate, Set) else set(range(len(pending.blobs))) if fate is True else set()
            wrong = [n for n in arrived if isinstance(n, bool) or n not in range(len(pending.blobs))]
            if wrong or not isinstance(fate, (bool, Set)):
                raise ConfigError(
                    f"delivered must be True, False or packet numbers in [0, {len(pending.blobs)}), got {fate!r}"
                )
            lost += [decode(blob) for number, blob in enumerate(pending.blobs) if number not in arrived]
        return lost

    def _reference_of(self, payload: Payload) -> Reference | None:
        return None if payload.reference_digest is None or self._reference is None else self._reference.reference

    def _hold(self, blob: bytes, payload: Payload) -> _Held:
        """What to keep of a server's blob, decoded only where the compressor reads it."""
        reference = Reference.of(payload) if self.compressor.uses_reference else None
        return _Held(blob, reference, payload.sum_weights)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that must survive a restart: arrays and plain values only.

        Returns:
            ``format``, ``spec``, ``layout`` (hash), ``client_id``, ``seed``, ``num_rounds``, ``round``, ``sequence``,
            ``residual`` ((d,) float32 as of now, or None without error feedback), ``pending`` (blobs as uint8 arrays
            with their sequence), ``reference`` (the last downlink blob, or None) and ``scheme`` (the compressor's
            other memory).
        """
        memory = copy_memory(self._state.memory)
        return {
            "format": STATE_FORMAT,
            "spec": str(self.compressor),
            "layout": self.layout.digest.hex(),
            "client_id": self.client_id,
            "seed": self.seed,
            "num_rounds": self.num_rounds,
            "round": self.round,
            "sequence": self.sequence,
            "residual": memory.pop("residual", None),
            "pending": [
                {"sequence": p.sequence, "blobs": [np.frombuffer(b, np.uint8).copy() for b in p.blobs]}
                for p in self._pending
            ],
            "reference": None if self._reference is None else np.frombuffer(self._reference.blob, np.uint8).copy(),
            "scheme": memory,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken: the next bytes are the same.

        Args:
            state: from ``state_dict`` of a client with the same spec, layout and id; not modified.

        Raises:
            StateError: on a state of something else; nothing is changed then.
        """
        check_state(state, STATE_FORMAT, str(self.compressor), self.layout)
        with reading_state():
            if state["client_id"] != self.client_id:
                raise StateError(f"state is of client {state['client_id']}, expected {self.client_id}")
            memory = copy_memory(state["scheme"])
            if state["residual"] is not None:
                memory["residual"] = np.array(state["residual"], np.float32)
            check_memory(memory, self.compressor.init(self.layout).memory, self.layout.num_parameters)
            pending = [
                _Pending(check_integer("sequence", p["sequence"], 0, 2**63 - 1), tuple(map(to_bytes, p["blobs"])))
                for p in state["pending"]
            ]
            for blob in (blob for p in pending for blob in p.blobs):
                decode(blob)
            reference, synced = None, 0
            if state["reference"] is not None:
                blob = to_bytes(state["reference"])
                payload = decode(blob)
                reference, synced = self._hold(blob, payload), payload.round + 1
            seed = Key(state["seed"]).seed
            num_rounds = _check_num_rounds(state["num_rounds"])
            round_index = check_integer("round", state["round"], 0, 2**63 - 1)
            sequence = check_integer("sequence", state["sequence"], 0, 2**63 - 1)
        self._state = State(self.layout, memory)
        self._pending, self._reference, self._synced = pending, reference, synced
        self.seed, self.num_rounds, self.round, self.sequence = seed, num_rounds, round_index, sequence


def _check_num_rounds(value: Any) -> int | None:
    return None if value is None else check_integer("num_rounds", value, 1)


def reference_digest(blob: bytes) -> bytes:
    """Eight bytes that name a reference: SHA-256 of the downlink blob it was decoded from."""
    return hashlib.sha256(blob).digest()[:8]
