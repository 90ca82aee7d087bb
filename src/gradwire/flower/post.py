"""Post: instructions out, replies in; who holds what, what came late, and who needs the model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from gradwire.checks import check_integer
from gradwire.errors import ConfigError, DecodeError, LimitExceeded, ProtocolError, visible
from gradwire.flower.binding import Bindings
from gradwire.flower.carrier import (
    NAME,
    count_bytes,
    find_carrier,
    instruction_of,
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
        until: when it is given up, by the monotonic clock.
        version: the model it leads to; None where it only says that the node is not counted.
    """

    message: Message
    original: Message
    clock: int
    until: float
    version: int | None

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
        patience: how many rounds late a payload may come: for so long its client is told nothing that would be final.

    Attributes:
        online: nodes that were there when messages were last sent or came.
        failing: nodes whose last answer was an error, or refused.
        without_mod: replies to a train instruction of nodes without ``CompressionMod``, so far.
    """

    def __init__(
        self,
        conversation: Conversation,
        ledger: Ledger,
        weighted_by: str,
        budget: Budget,
        client_id_of: Callable[[Any], int] | None,
        patience: int = 0,
    ) -> None:
        self._conversation = conversation
        self._ledger = ledger
        self._weighted_by = weighted_by
        self._budget = budget
        self._client_id_of = client_id_of
        self._rounds_late = patience
        self._bindings = Bindings()
        self._open: list[Sent] = []
        self._late: dict[str, Sent] = {}
        self._clock = 0
        self._voided = 0
        self._told: dict[int, int] = {}
        self._expected: dict[int, int] = {}
        self._unknown: dict[int, str] = {}
        self._grid: Grid | None = None
        self._until = self._patience = 0.0
        self._invitations: Mapping[int, bytes] = {}
        self.online: set[int] = set()
        self.failing: set[int] = set()
        self.without_mod = 0

    @property
    def busy(self) -> set[int]:
        """Nodes whose reply is waited for."""
        return {sent.node_id for sent in self._open}

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

    def send(
        self,
        messages: Iterable[Message],
        grid: Grid,
        timeout: float,
        invitations: Mapping[int, bytes] = MappingProxyType({}),
    ) -> list[Message]:
        """Make of a strategy's messages what is pushed.

        Args:
            messages: the inner strategy's; not modified.
            grid: where they go.
            timeout: seconds that replies are waited for.
            invitations: node -> what invites it to a secure sum.

        Returns:
            As many messages; those without a model as they were.
        """
        self._grid, self._patience, self._until = grid, timeout, time.monotonic() + timeout
        self._invitations = invitations
        self._clock += 1
        self.online = set(grid.get_node_ids())
        if self._client_id_of is not None:
            self._look_up(self._client_id_of, grid.get_nodes())
        out: list[Message] = []
        for message in messages:
            if not message.content.array_records:
                out.append(message)
                continue
            self._open.append(self._instruct(message))
            out.append(self._open[-1].message)
        return out

    def collect(self, replies: Iterable[Message]) -> tuple[list[Reply], list[Message]]:
        """Read the replies to what was sent last; who cannot follow gets the model and is waited for once more.

        Args:
            replies: as Flower gives them.

        Returns:
            What was answered, by client, and Flower's error replies.
        """
        found, errors = self._take(list(replies))
        left = self._until - time.monotonic()
        again = self._again(found) if left > 0 and self._grid is not None else []
        if again and self._grid is not None:
            more, more_errors = self._take(list(self._grid.send_and_receive(again, timeout=left)))
            found, errors = found + more, errors + more_errors
        self._give_up(self._open)
        return _by_client([read.reply for read in found if not read.reply.answer.resync]), errors

    def poll(self, grid: Grid) -> tuple[list[Reply], list[Message]]:
        """Read what came since the last look, without waiting for the rest of what was sent.

        Who cannot follow is sent the model at once; who is silent for too long is given up.

        Args:
            grid: where they come from.

        Returns:
            Replies with payloads that nothing was said about yet, by client, and Flower's error replies.
        """
        late = self._pull_late(grid)
        waiting = [sent.message.metadata.message_id for sent in self._open]
        replies = list(grid.pull_messages(waiting)) if waiting else []
        if replies:
            self.online = set(grid.get_node_ids())
        found, errors = self._take(replies)
        now = time.monotonic()
        self._until = now + self._patience
        if again := self._again(found):
            grid.push_messages(again)
        self._give_up([sent for sent in self._open if sent.until < now])
        return self._fresh([*late, *found]), errors

    def drain(self, grid: Grid) -> list[Reply]:
        """Read what came since it was given up; payloads that nothing was said about yet are returned."""
        return self._fresh(self._pull_late(grid))

    def _look_up(self, client_id_of: Callable[[Any], int], infos: Iterable[Any]) -> None:
        """Learn which clients the nodes are; one that the user's function has no number for is not counted."""
        told, self._expected, self._unknown = self._unknown, {}, {}
        for info in infos:
            try:
                self._expected[info.node_id] = check_integer("client", client_id_of(info), 0, 2**63 - 1)
            except Exception as error:  # the function is the user's, and one node must not end the others' run
                said = f"node {info.node_id} is none that client_id_of knows: {type(error).__name__}: {error}"
                self._unknown[info.node_id] = visible(said)
                if info.node_id not in told:  # once a node, not once a message
                    _log.warning("gradwire: %s", self._unknown[info.node_id])

    def _pull_late(self, grid: Grid) -> list[_Read]:
        """Read what came since it was given up."""
        found: list[_Read] = []
        for message in list(grid.pull_messages(list(self._late))) if self._late else []:
            sent = self._late.pop(message.metadata.reply_to_message_id, None)
            if sent is None:
                continue
            if message.has_error():
                self._failed(sent)
                continue
            read = self._read(message, sent)
            if read is not None:
                _log.info("gradwire: client %d answered late, of round %d", read.reply.answer.client, sent.version)
                found.append(read)
        return found

    def _fresh(self, found: list[_Read]) -> list[Reply]:
        """Of replies those with a payload whose client was told nothing since that could have been about it."""
        return _by_client(
            read.reply
            for read in found
            if read.reply.answer.blob is not None
            and read.sent.trains
            and read.sent.clock >= self._told.get(read.reply.answer.client, 0)
        )

    def _again(self, found: list[_Read]) -> list[Message]:
        """Make the instructions of those who asked for the model anew."""
        behind = [read for read in found if read.reply.answer.resync]
        if not behind:
            return []
        _log.info("gradwire: %d of %d nodes need the whole model", len(behind), len(found))
        self._clock += 1
        again = [self._instruct(read.sent.original, asked=True) for read in behind]
        self._open += again
        return [sent.message for sent in again]

    def _give_up(self, silent: list[Sent]) -> None:
        """Wait no more for some: what was sent may have come, and may be answered later."""
        for sent in silent:
            self._bindings.of(sent.node_id).reachable = False
            self._keep(sent)
        given_up = set(map(id, silent))
        self._open = [sent for sent in self._open if id(sent) not in given_up]

    def _awaited(self, node_id: int, trains: bool) -> bool:
        """Whether a payload of a node that is late now may still be counted when the next ones are read."""
        oldest = self._conversation.version + trains - self._rounds_late
        return any(
            sent.trains and sent.version is not None and sent.version >= oldest and sent.node_id == node_id
            for sent in self._late.values()
        )

    def _instruct(self, message: Message, *, asked: bool = False) -> Sent:
        """Make one message: an instruction, or the refusal of a node that is not counted."""
        node_id = message.metadata.dst_node_id
        records = message.content.array_records
        if len(records) != 1:
            raise ConfigError(f"the strategy's messages must hold one ArrayRecord, got {list(records)}")
        ((key, _),) = records.items()
        node = self._bindings.of(node_id)
        rest = dict(message.content.items())
        reason = self._unknown.get(node_id) or self._bindings.refusal(node_id, self.online)
        if reason is not None:
            content = RecordDict({**rest, key: ArrayRecord({NAME: make_carrier(Refusal(reason).encode())})})
            self._ledger.add(node_id, "other", count_bytes(content))
            return Sent(instruction_of(message, content), message, self._clock, self._until, None)
        expected = self._expected.get(node_id)
        client = node.client if node.client is not None else expected
        settling = asked or not self._awaited(node_id, kind_of(message) == "train")
        told = self._conversation.instruct(
            client, node.believed, self._weighted_by, self._budget(client), settling=settling
        )
        told = replace(told, client=expected, invitation=self._invitations.get(node_id))
        if client is not None and told.counted is not None:
            self._told[client] = self._clock
        record = self._conversation.model.record() if told.full else ArrayRecord()
        record[NAME] = make_carrier(told.encode())
        content = RecordDict({**rest, key: record})
        node.believed, node.reachable = told.version, True
        self._ledger.add(node_id, "other" if told.full else "downlink", count_bytes(content))
        return Sent(instruction_of(message, content), message, self._clock, self._until, told.version)

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
        self.failing.add(sent.node_id)

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
            if sent.version is None:
                raise ProtocolError("it answers where it was told that it is not counted")
            if not answer.resync and answer.version != sent.version:
                raise ProtocolError(f"it says that it holds version {answer.version}, expected {sent.version}")
            if sent.trains and without_carrier(content).array_records:
                raise ProtocolError("it holds arrays beside gradwire's, which are not checked as an update is")
            self._bindings.claim(node_id, answer.client, self.online, self._expected.get(node_id))
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
        self.failing.discard(node_id)
        return _Read(Reply(node_id, with_content(message, without_carrier(content)), found.key, answer), sent)

    def _keep(self, sent: Sent) -> None:
        """Remember what may still be answered, the newest few of each node."""
        self._late[sent.message.metadata.message_id] = sent
        of_node = [name for name, other in self._late.items() if other.node_id == sent.node_id]
        for name in of_node[:-_LATE_KEPT]:
            del self._late[name]


def _by_client(replies: Iterable[Reply]) -> list[Reply]:
    """In the order that makes a round's sums the same whoever came first."""
    return sorted(replies, key=lambda reply: (reply.answer.client, reply.node_id))
