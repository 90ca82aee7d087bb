"""A grid in this process: nodes that run a ClientApp, and a network that loses, delays and forges as it is told."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity  # messages cannot be made outside a task otherwise

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

UNAVAILABLE, RAISED = 5, 2


@dataclass
class FakeNode:
    """A SuperNode: its app, its config, and the context it keeps while it lives."""

    app: Callable[[Message, Context], Message]
    config: dict[str, Any]
    node_id: int
    online: bool = True
    state: RecordDict = field(default_factory=RecordDict)
    queue: list[Message] = field(default_factory=list)
    run_config: dict[str, Any] = field(default_factory=dict)

    def run(self, message: Message) -> Message:
        context = Context(1, self.node_id, self.config, self.state, self.run_config)
        try:
            return self.app(message, context)
        except Exception as error:
            return Message(Error(RAISED, f"{type(error)}:<'{error}'>"), reply_to=message)


@dataclass
class Clock:
    """Stands in for the module ``time`` where a test's time passes as the test says."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeGrid(Grid):
    """Runs every message at once; ``fate`` says of each what becomes of it, ``seconds`` how long its reply takes.

    ``fate(message) -> str``: ``"ok"``; ``"lost"``: the node never gets it; ``"unanswered"``: it works on it and its
    reply is lost; ``"late"``: its reply is there only at the next look; ``"slow"``: it works on it before its next
    message, and the reply is late; ``"dead"``: Flower says that the node is gone.
    """

    run_id = 1

    def __init__(
        self,
        fate: Callable[[Message], str] = lambda message: "ok",
        seconds: Callable[[Message], float] = lambda message: 0.0,
        clock: Clock | None = None,
    ) -> None:
        self.nodes: dict[int, FakeNode] = {}
        self.fate = fate
        self.pushed: list[Message] = []
        self.replies: list[Message] = []
        self.seconds = seconds
        self.clock = Clock() if clock is None else clock
        self._stored: dict[str, Message] = {}
        self._ready: dict[str, float] = {}
        self._numbers = itertools.count()
        self._ids = itertools.count(2**63 + 11)

    def add(self, app: ClientApp | Callable[[Message, Context], Message], **config: Any) -> FakeNode:
        config = {key.replace("_", "-"): value for key, value in config.items()}
        node = FakeNode(app, config, next(self._ids))
        self.nodes[node.node_id] = node
        return node

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return SimpleNamespace(run_id=self.run_id)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [node_id for node_id, node in self.nodes.items() if node.online]

    def get_nodes(self) -> Iterable[Any]:
        return [SimpleNamespace(node_id=i, name=f"node-{n.config.get('partition-id')}") for i, n in self.nodes.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        assert isinstance(messages, list), "Flower looks at them twice"
        for message in messages:
            assert message.metadata.delivered_at == "", "the simulation engine refuses a message that went out before"
            number = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = number
            self.pushed.append(message)
            ids.append(number)
            self._carry(message, number)
        return ids

    def _carry(self, message: Message, number: str) -> None:
        node = self.nodes[message.metadata.dst_node_id]
        fate = self.fate(message) if node.online else "dead"
        arrived = copy.deepcopy(message)
        message.metadata.delivered_at = "now"
        self._ready[number] = self.clock.now + self.seconds(message)
        if fate == "dead":
            reply = Message(Error(UNAVAILABLE, "node is unavailable"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = 1
            self._stored[number] = reply
        elif fate == "slow":
            node.queue.append(arrived)
        elif fate != "lost":
            for waiting in [*node.queue, arrived]:
                reply = node.run(waiting)
                self.replies.append(reply)
                if fate != "unanswered" or waiting is not arrived:
                    self._stored[waiting.metadata.message_id] = reply
            node.queue.clear()
            if fate == "late":
                self._stored[f"late {number}"] = self._stored.pop(number)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        there = [n for n in message_ids if n in self._stored and self._ready[n] <= self.clock.now]
        return [self._stored.pop(number) for number in there]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        ids = self.push_messages(messages)
        replies = self.pull_messages(ids)
        for name in [name for name in self._stored if name.startswith("late ")]:
            self._stored[name.removeprefix("late ")] = self._stored.pop(name)
        return replies
