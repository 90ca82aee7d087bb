"""Conversation whose payloads come as one sum: who is in it is written down, since no payload says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from gradwire.compressors.compressor import Compressor
from gradwire.ends.counted import Counted
from gradwire.flower import header
from gradwire.flower.conversation import Conversation
from gradwire.saved import reading_state
from gradwire.secagg import SecureSum

__all__ = ["SecureConversation"]


class SecureConversation(Conversation):
    """A conversation whose rounds are secure sums."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_sums: dict[int, Counted] = {}

    def receive_sum(self, total: SecureSum, sequences: Mapping[int, int]) -> None:
        """Count a sum into the open round.

        Args:
            total: the sum.
            sequences: client -> the number of its payload.
        """
        self.server.receive(total.blob, 0, total.sum_weights)
        for client in total.clients:
            slot = self._newest_slot(client)
            known = self._in_sums.get(slot, Counted())
            if known.run_of(sequences[client]) is None:  # what a client says of its numbers may be anything
                known = known.added(sequences[client], self.version)
            self._in_sums[slot] = known.without(self.version)
        told = {slot for known in self._slots.values() for slot in known.values()}  # others are told of no more
        self._in_sums = {slot: known for slot, known in self._in_sums.items() if slot in told}

    def counted(self, client: int) -> header.Counted | None:
        """As ``Conversation.counted``: the payloads that are in some sum."""
        told = super().counted(client)
        if told is None:
            return None
        runs = self._in_sums.get(self._newest_slot(client), Counted()).runs
        return header.Counted(told.incarnation, tuple((run.low, run.high) for run in runs[-header.NUM_RUNS :]))

    def state_dict(self) -> dict[str, Any]:
        """As ``Conversation.state_dict``, with who is in which sum."""
        return {**super().state_dict(), "in_sums": [[slot, known.state()] for slot, known in self._in_sums.items()]}

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
        self = super().from_state(state, spec, downlink, max_staleness, payloads_per_round)
        with reading_state():
            self._in_sums = {int(slot): Counted.from_state(known) for slot, known in state["in_sums"]}
        return self
