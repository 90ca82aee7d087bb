"""Roster: the grid as a strategy sees it that is to wait for nobody who left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

__all__ = ["Roster"]


class Roster(Grid):
    """A grid on which nodes that left still stand, until as many came in their place.

    Flower's strategies wait until as many nodes are there as they want. With this they do so at the beginning alone.

    Args:
        grid: the grid.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._seen: dict[int, None] = {}
        self._most = 0

    @property
    def online(self) -> set[int]:
        """The nodes that are there."""
        return set(self._grid.get_node_ids())

    def get_node_ids(self) -> list[int]:
        """Return the nodes that are there, and of those that left as many as are missing since."""
        there = list(self._grid.get_node_ids())
        self._most = max(self._most, len(there))
        absent = [node_id for node_id in self._seen if node_id not in there]
        self._seen |= dict.fromkeys(there)
        missing = self._most - len(there)
        return there + absent[len(absent) - min(missing, len(absent)) :]

    def get_nodes(self) -> Iterable[Any]:
        """As the grid says."""
        return self._grid.get_nodes()

    def set_run(self, run: Any) -> None:
        """As the grid does."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """The grid's."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """As the grid does."""
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid does."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the grid does."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the grid does."""
        return self._grid.send_and_receive(messages, timeout=timeout)
