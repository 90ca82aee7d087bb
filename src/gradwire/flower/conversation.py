"""Conversation: the server's side of it, without any message of Flower's: model, rounds, and what clients are told."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from gradwire.compressors.compressor import Compressor, Vector
from gradwire.ends.server import Result, Server
from gradwire.errors import StateError
from gradwire.flower.header import NUM_RUNS, Counted, Instruction
from gradwire.flower.model import Model
from gradwire.saved import reading_state, to_bytes

__all__ = ["Conversation"]

_FORMAT = 1
_FIRST_SLOT = 2**62


class Conversation:
    """The model, its rounds, and which payloads of whom were counted.

    A client that begins with a fresh state has another incarnation; the server counts the payloads of each incarnation
    apart, under a number of its own, so that a node that lost its disk may number its payloads from 0 again.

    Args:
        name: the clients keep their state under it.
        spec: what compresses the way up.
        downlink: what compresses the way down.
        model: where the first round starts.
        seed: seed of the run.
        max_staleness: how late payloads may come, in rounds.
        payloads_per_round: how many of one client and round are counted; None for any number.

    Attributes:
        birth: 8 bytes that tell it from another of the same name.
    """

    def __init__(
        self,
        name: str,
        spec: Compressor,
        downlink: Compressor,
        model: Model,
        seed: int,
        max_staleness: int,
        payloads_per_round: int | None = 1,
    ) -> None:
        self.name = name
        self.model = model
        self.birth = secrets.token_bytes(8)
        self.server = Server(
            spec, model.layout, seed, downlink, max_staleness=max_staleness, payloads_per_round=payloads_per_round
        )
        self._blobs: list[bytes] = []
        self._model_bytes = 4 * model.layout.d
        self._slots: dict[int, dict[bytes, int]] = {}
        self._taken: set[int] = set()
        self._num_slots = 0

    @property
    def num_rounds(self) -> int | None:
        """Rounds of the whole run, where known: schedules of both ways go by it."""
        return self.server.num_rounds

    @num_rounds.setter
    def num_rounds(self, value: int | None) -> None:
        self.server.num_rounds = value

    @property
    def heard(self) -> bool:
        """Whether any client ever answered."""
        return bool(self._slots)

    @property
    def version(self) -> int:
        """How many rounds were closed."""
        return self.server.round

    def meet(self, client: int, incarnation: bytes) -> None:
        """Take note of who a client is now."""
        known = self._slots.setdefault(client, {})
        if incarnation in known:
            known[incarnation] = known.pop(incarnation)  # the newest comes last
            return
        known[incarnation] = self._free_slot(client)
        while len(known) > NUM_RUNS:  # their numbers stay taken
            del known[next(iter(known))]

    def _free_slot(self, client: int) -> int:
        """A number nobody has yet: the client's own for its first incarnation."""
        slot = client
        while slot in self._taken:
            self._num_slots += 1
            slot = _FIRST_SLOT + self._num_slots
        self._taken.add(slot)
        return slot

    def receive(self, client: int, incarnation: bytes, blob: bytes, weight: float) -> None:
        """Count a payload into the open round; raises what ``Server.receive`` raises."""
        self.server.receive(blob, self._slots[client][incarnation], weight)

    def _newest_slot(self, client: int) -> int:
        """The number under which payloads of a client's present incarnation are counted."""
        return next(reversed(self._slots[client].values()))

    def counted(self, client: int) -> Counted | None:
        """Return what is told a client of its payloads; None where it is not known who that is."""
        known = self._slots.get(client)
        if not known:
            return None
        incarnation, slot = list(known.items())[-1]
        return Counted(incarnation, self.server.counted(slot)[-NUM_RUNS:])

    def instruct(
        self, client: int | None, held: int | None, weighted_by: str, num_bytes: int | None, *, settling: bool = True
    ) -> Instruction:
        """Make what a client is told.

        Args:
            client: which, None where it is not known yet.
            held: the version it holds; None where it needs the model.
            weighted_by: the metric that is its weight.
            num_bytes: what its payload may take.
            settling: whether it is told what became of its payloads, which is then final.

        Returns:
            The instruction: with blobs where these lead from there to here in fewer bytes than the model takes.
        """
        blobs = None if held is None else self._blobs_from(held)
        full = blobs is None
        if blobs is None:
            blobs = tuple(self._blobs[-1:]) if self.server.compressor.uses_reference else ()
        return Instruction(
            self.name,
            self.birth,
            str(self.server.compressor),
            self.model.layout.digest,
            self.server.seed,
            self.version,
            full,
            weighted_by,
            self.num_rounds,
            num_bytes,
            self.counted(client) if settling and client is not None else None,
            blobs,
        )

    def _blobs_from(self, held: int) -> tuple[bytes, ...] | None:
        missing = self.version - held
        if not 0 <= missing <= len(self._blobs):
            return None
        return tuple(self._blobs[len(self._blobs) - missing :])

    def close(self, step: Callable[[Vector], Vector]) -> Result:
        """Close the open round and move the model.

        Args:
            step: mean -> delta; where it raises, the round stays open and nothing changes.

        Returns:
            The result.
        """
        self.server.step = step
        result = self.server.close_round()
        self.model = self.model.moved(result.applied)
        self._blobs.append(result.blob)
        while sum(map(len, self._blobs)) > self._model_bytes and len(self._blobs) > 1:
            del self._blobs[0]
        return result

    def replace_model(self, model: Model) -> None:
        """Go on with a model of the same layout that came from elsewhere: no blob leads to it."""
        self.model = model
        self._blobs = []

    def state_dict(self) -> dict[str, Any]:
        """Return a copy, as arrays and plain values."""
        return {
            "format": _FORMAT,
            "name": self.name,
            "birth": self.birth.hex(),
            "model": self.model.state_dict(),
            "server": self.server.state_dict(),
            "blobs": [np.frombuffer(blob, np.uint8).copy() for blob in self._blobs],
            "slots": [
                [client, [[incarnation.hex(), slot] for incarnation, slot in known.items()]]
                for client, known in self._slots.items()
            ],
            "num_slots": self._num_slots,
        }

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Any],
        spec: Compressor,
        downlink: Compressor,
        max_staleness: int,
        payloads_per_round: int | None = 1,
    ) -> Self:
        """Read what ``state_dict`` gave, or raise StateError."""
        with reading_state():
            if state["format"] != _FORMAT:
                raise StateError(f"state has format {state['format']!r}, expected {_FORMAT}")
            model = Model.from_state(state["model"])
            self = cls(str(state["name"]), spec, downlink, model, 0, max_staleness, payloads_per_round)
            self.server.load_state_dict(state["server"])
            self.birth = bytes.fromhex(state["birth"])
            self._blobs = [to_bytes(blob) for blob in state["blobs"]]
            self._slots = {
                int(client): {bytes.fromhex(incarnation): int(slot) for incarnation, slot in known}
                for client, known in state["slots"]
            }
            self._num_slots = int(state["num_slots"])
            self._taken = {slot for known in self._slots.values() for slot in known.values()}
        return self
