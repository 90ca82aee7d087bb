"""Post: instructions out, replies in; who holds what, what came late, and who needs the model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from gradwire.errors import ConfigError, DecodeError, LimitExceeded, ProtocolError, visible
from gradwire.flower.binding import Bindings
from gradwire.flower.carrier import (
    NAME,
    count_bytes,
    find_carrier,
    kind_of,
    make_carrier,
    with_content,
    without_carrier,
)
from gradwire.flower.conversation import Conversation
from gradwire.flower.header import NO_INCARNATION, Refusal, read_answer
from gradwire.flower.ledger import Ledger
from gradwire.flower.replies import Reply, lacks_mod
from gradwire.wire import Limits

__all__ = ["Budget", "Post", "Sent"]

_log = logging.getLogger("flwr")
_LATE_KEPT = 8

Budget = Callable[[int | None], int | None]


@dataclass(frozen=True)
class Sent:
    """An instruction on its way.

    Attributes:
        message: what was pushed; Flower writes its id there.
        original: what the inner strategy made, to be told again.
        clock: when it was made, in batches of instructions.
        version: the model it leads to.
    """

    message: Message
    original: Message
    clock: int
    version: int

    @property
    def node_id(self) -> int:
        """Whom it is for."""
        return self.message.metadata.dst_node_id

    @property
    def trains(self) -> bool:
        """Whether a payload may come of it."""
        return kind_of(self.message) == "train"


@dataclass(frozen=True)
class _Read:
    """A reply and what it is the reply to."""

    reply: Reply
    sent: Sent


class Post:
    """Sends a strategy's messages with what gradwire has to say, and reads what comes back.

    Args:
        conversation: the server's side.
        ledger: counts bytes.
        weighted_by: the metric that is a client's weight.
        budget: client, None where it is not known -> what its payload may take.
        client_id_of: Flower's node info -> client, where the server knows; None otherwise.

    Attributes:
        without_mod: replies to a train instruction of nodes without ``CompressionMod``, so far.
    """

    def __init__(
        self,
        conversation: Conversation,
        ledger: Ledger,
        weighted_by: str,
        budget: Budget,
        client_id_of: Callable[[Any], int] | None,
    ) -> None:
        self._conversation = conversation
        self._ledger = ledger
        self._weighted_by = weighted_by
        self._budget = budget
        self._client_id_of = client_id_of
        self._bindings = Bindings()
        self._open: list[Sent] = []
        self._late: dict[str, Sent] = {}
        self._clock = 0
        self._voided = 0
        self._told: dict[int, int] = {}
        self._expected: dict[int, int] = {}
        self._online: set[int] = set()
        self._grid: Grid | None = None
        self._until = 0.0
        self.without_mod = 0

    @property
    def names(self) -> dict[int, str]:
        """Node -> its client, of those that answered."""
        nodes = {node_id for r in self._ledger.rounds for node_id in r.by_node}
        known = {node_id: self._bindings.of(node_id).client for node_id in nodes}
        return {node_id: str(client) for node_id, client in known.items() if client is not None}

    def void(self) -> None:
        """Forget what all nodes hold: the model is another."""
        self._bindings.void()
        self._voided = self._clock + 1

    def send(self, messages: Iterable[Message], grid: Grid, timeout: float) -> list[Message]:
        """Make of a strategy's messages what is pushed.

        Args:
            messages: the inner strategy's; not modified.
            grid: where they go.
            timeout: seconds that replies are waited for.

        Returns:
            As many messages; those without a model as they were.
        """
        self._grid, self._until = grid, time.monotonic() + timeout
        self._clock += 1
        self._online = set(grid.get_node_ids())
        if self._client_id_of is not None:
            self._expected = {info.node_id: self._client_id_of(info) for info in grid.get_nodes()}
        out: list[Message] = []
        for message in messages:
            if not message.content.array_records:
                out.append(message)
                continue
            made = self._instruct(message)
            if isinstance(made, Sent):
                self._open.append(made)
                made = made.message
            out.append(made)
        return out

    def collect(self, replies: Iterable[Message]) -> tuple[list[Reply], list[Message]]:
        """Read the replies to what was sent last; who cannot follow gets the model and is waited for once more.

        Args:
            replies: as Flower gives them.

        Returns:
            What was answered, by client, and Flower's error replies.
        """
        found, errors = self._take(list(replies))
        behind = [read for read in found if read.reply.answer.resync]
        left = self._until - time.monotonic()
        if behind and left > 0 and self._grid is not None:
            _log.info("gradwire: %d of %d nodes need the whole model", len(behind), len(found))
            self._clock += 1
            again = [made for read in behind if isinstance(made := self._instruct(read.sent.original), Sent)]
            self._open += again
            more, more_errors = self._take(list(self._grid.send_and_receive([s.message for s in again], timeout=left)))
            found, errors = found + more, errors + more_errors
        for sent in self._open:  # silent: it may have come, and may be answered later
            node = self._bindings.of(sent.node_id)
            node.reachable = False
            self._keep(sent)
        self._open = []
        answered = [read.reply for read in found if not read.reply.answer.resync]
        return sorted(answered, key=lambda reply: (reply.answer.client, reply.node_id)), errors

    def drain(self, grid: Grid) -> list[Reply]:
        """Read what came since it was given up; payloads that nothing was said about yet are returned."""
        if not self._late:
            return []
        replies = list(grid.pull_messages(list(self._late)))
        fresh: list[Reply] = []
        for message in replies:
            sent = self._late.pop(message.metadata.reply_to_message_id, None)
            if sent is None:
                continue
            if message.has_error():
                self._failed(sent)
                continue
            read = self._read(message, sent)
            if read is None or read.reply.answer.resync:
                continue
            answer = read.reply.answer
            _log.info("gradwire: client %d answered late, of round %d", answer.client, sent.version)
            if answer.blob is not None and sent.trains and sent.clock >= self._told.get(answer.client, 0):
                fresh.append(read.reply)
        return sorted(fresh, key=lambda reply: (reply.answer.client, reply.node_id))

    def _instruct(self, message: Message) -> Sent | Message:
        """Make one message: an instruction, or the refusal of a node that is not counted."""
        node_id = message.metadata.dst_node_id
        records = message.content.array_records
        if len(records) != 1:
            raise ConfigError(f"the strategy's messages must hold one ArrayRecord, got {list(records)}")
        ((key, _),) = records.items()
        node = self._bindings.of(node_id)
        rest = dict(message.content.items())
        if (reason := self._bindings.refusal(node_id, self._online)) is not None:
            content = RecordDict({**rest, key: ArrayRecord({NAME: make_carrier(Refusal(reason).encode())})})
            self._ledger.add(node_id, "other", count_bytes(content))
            return with_content(message, content)
        client = node.client if node.client is not None else self._expected.get(node_id)
        told = self._conversation.instruct(client, node.believed, self._weighted_by, self._budget(client))
        if client is not None and told.counted is not None:
            self._told[client] = self._clock
        record = self._conversation.model.record() if told.full else ArrayRecord()
        record[NAME] = make_carrier(told.encode())
        content = RecordDict({**rest, key: record})
        node.believed, node.reachable = told.version, True
        self._ledger.add(node_id, "other" if told.full else "downlink", count_bytes(content))
        return Sent(with_content(message, content), message, self._clock, told.version)

    def _take(self, replies: list[Message]) -> tuple[list[_Read], list[Message]]:
        """Match replies with what was sent and read them; what is left in ``_open`` is silent."""
        by_id = {sent.message.metadata.message_id: sent for sent in self._open}
        errors: list[Message] = []
        found: list[_Read] = []
        matched: list[tuple[Message, Sent]] = []
        for message in replies:
            sent = by_id.pop(message.metadata.reply_to_message_id, None)
            if message.has_error():
                errors.append(message)
                self._report(message, sent)
            elif sent is not None:
                matched.append((message, sent))
        self._open = list(by_id.values())
        for message, sent in matched:
            read = self._read(message, sent)
            if read is not None:
                found.append(read)
        return found, errors

    def _report(self, message: Message, sent: Sent | None) -> None:
        node_id = message.metadata.src_node_id if sent is None else sent.node_id
        reason = visible(message.error.reason or f"code {message.error.code}")
        _log.warning("gradwire: node %d answered with an error: %s", node_id, reason)
        if sent is not None:
            self.without_mod += sent.trains and lacks_mod(message)
            self._failed(sent)

    def _failed(self, sent: Sent) -> None:
        """The client is as it was before the instruction."""
        node = self._bindings.of(sent.node_id)
        node.believed, node.reachable = node.confirmed, False

    def _read(self, message: Message, sent: Sent) -> _Read | None:
        """Read one reply and take note of what it says of its node; None, and a line in the log, on one that lies."""
        node_id = sent.node_id
        content = message.content
        size = count_bytes(content)
        resync = False
        try:
            found = find_carrier(content)
            if found is None:
                self.without_mod += sent.trains
                raise ProtocolError("its reply holds nothing of gradwire's: its ClientApp lacks CompressionMod")
            limit = Limits.of(self._conversation.model.layout.d).max_bytes
            if len(found.data) > limit:
                raise LimitExceeded(f"it has {len(found.data)} bytes, at most {limit} make sense")
            answer = read_answer(found.data)
            if answer.birth != self._conversation.birth:
                raise ProtocolError("it answers another conversation")
            resync = answer.resync
            if not answer.resync and answer.version != sent.version:
                raise ProtocolError(f"it says that it holds version {answer.version}, expected {sent.version}")
            self._bindings.claim(node_id, answer.client, self._online, self._expected.get(node_id))
        except (ProtocolError, DecodeError) as error:
            _log.warning(
                "gradwire: refused what node %d sent: %s: %s", node_id, type(error).__name__, visible(str(error))
            )
            self._failed(sent)
            return None
        finally:
            self._ledger.add(node_id, "uplink" if sent.trains and not resync else "other", size)
        if answer.incarnation != NO_INCARNATION:
            self._conversation.meet(answer.client, answer.incarnation)
        node = self._bindings.of(node_id)
        if sent.clock >= self._voided:
            node.confirmed = node.believed = None if answer.resync else answer.version
        node.reachable = True
        return _Read(Reply(node_id, with_content(message, without_carrier(content)), found.key, answer), sent)

    def _keep(self, sent: Sent) -> None:
        """Remember what may still be answered, the newest few of each node."""
        self._late[sent.message.metadata.message_id] = sent
        of_node = [name for name, other in self._late.items() if other.node_id == sent.node_id]
        for name in of_node[:-_LATE_KEPT]:
            del self._late[name]
