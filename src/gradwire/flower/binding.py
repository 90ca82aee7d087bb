"""Binding: which node is which client, and what each is believed to hold."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from gradwire.errors import ProtocolError

__all__ = ["Bindings", "Node"]


@dataclass
class Node:
    """What the server knows of a node.

    Attributes:
        client: its client's number; None before it answered.
        wanted: the number it claims and another node has.
        confirmed: the version of the model it said it holds.
        believed: the version it holds if the last message reached it; None where it needs the model.
        reachable: whether its last instruction was answered, or may still be.
    """

    client: int | None = None
    wanted: int | None = None
    confirmed: int | None = None
    believed: int | None = None
    reachable: bool = True


class Bindings:
    """Nodes and clients: a node is one client for good, a client one node at a time.

    Another node may take a client over only where the node that has it is not online, or left its last instruction
    without an answer or with an error.

    Example:
        >>> from gradwire.flower.binding import Bindings
        >>> bindings = Bindings()
        >>> bindings.claim(node_id=7, client=0, online={7, 8})
        >>> bindings.claim(node_id=8, client=0, online={8})
        >>> bindings.of(8).client, bindings.of(7).client
        (0, None)
    """

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        self._owners: dict[int, int] = {}

    def of(self, node_id: int) -> Node:
        """Return what is known of a node."""
        return self._nodes.setdefault(node_id, Node())

    def claim(self, node_id: int, client: int, online: Set[int], expected: int | None = None) -> None:
        """Take note that a node says which client it is.

        Args:
            node_id: which node.
            client: the number it says.
            online: nodes that are there.
            expected: the number it must say, where the server knows better.

        Raises:
            ProtocolError: where it is another client, or that client is another node's. It is remembered then only
                that it claimed it.
        """
        node = self.of(node_id)
        if expected is not None and client != expected:
            raise ProtocolError(f"node {node_id} says that it is client {client}, expected client {expected}")
        if node.client is not None and node.client != client:
            raise ProtocolError(f"node {node_id} says that it is client {client}, it was client {node.client}")
        owner = self._owners.get(client)
        if owner is not None and owner != node_id:
            if self._holds(owner, online):
                node.wanted = client
                raise ProtocolError(self._taken(node_id, client))
            self._nodes[owner].client = None
        node.client, node.wanted = client, None
        self._owners[client] = node_id

    def refusal(self, node_id: int, online: Set[int]) -> str | None:
        """Say why a node is not counted, as long as its client is another node's; else None."""
        node = self.of(node_id)
        if node.wanted is None:
            return None
        owner = self._owners.get(node.wanted)
        if owner is None or not self._holds(owner, online):
            node.wanted = None
            return None
        return self._taken(node_id, node.wanted)

    def void(self) -> None:
        """Forget what all nodes hold: the model is another."""
        for node in self._nodes.values():
            node.confirmed = node.believed = None

    def _holds(self, owner: int, online: Set[int]) -> bool:
        return owner in online and self._nodes[owner].reachable

    def _taken(self, node_id: int, client: int) -> str:
        return (
            f"node {node_id} says that it is client {client}, which node {self._owners[client]} is: give each "
            "SuperNode its own client-id in --node-config"
        )
