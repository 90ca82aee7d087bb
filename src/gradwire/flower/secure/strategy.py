"""SecureStrategy: the server's side of secure sums over Flower, five messages to each client and round."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from gradwire.checks import check_number
from gradwire.compressors.compressor import Compressor
from gradwire.compressors.papers.leader import leader_of
from gradwire.errors import ConfigError, DecodeError, Duplicate, LimitExceeded, ProtocolError, TooFewClients, visible
from gradwire.flower.carrier import NAME, count_bytes, find_carrier, instruction_of, make_carrier, with_content
from gradwire.flower.header import NO_INCARNATION, PROPOSAL, Answer, Step, StepAnswer, read_step_answer
from gradwire.flower.kinds import takes_mean
from gradwire.flower.model import Model
from gradwire.flower.post import Post
from gradwire.flower.replies import Reply
from gradwire.flower.secure.conversation import SecureConversation
from gradwire.flower.secure.support import Support, check_spec, check_terms, support_of
from gradwire.flower.strategy import WITHOUT_MOD, CompressedStrategy
from gradwire.secagg import SecureGroups, SecureSum, Terms, deal
from gradwire.secagg.support import pack_support, unpack_support
from gradwire.wire import Limits

__all__ = ["SecureStrategy"]

_log = logging.getLogger("flwr")
_SHARES, _MASKED, _CONFIRMATIONS, _REVEALS = 2, 3, 4, 5


@dataclass
class _Session:
    """The secure sums of a round under way.

    Attributes:
        groups: the sums, one for each group of nodes.
        grid: where the nodes are.
        originals: client -> what the inner strategy has for its node.
        keys: client -> the key of the ArrayRecord in it.
        support: the coordinates that its leader proposed.
        sent: the id of a message of the step under way -> whose it is.
        sequences: client -> the number of the payload it masked.
    """

    groups: SecureGroups
    grid: Grid
    originals: dict[int, Message] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)
    support: Support | None = None
    sent: list[tuple[Message, int]] = field(default_factory=list)
    sequences: dict[int, int] = field(default_factory=dict)


class SecureStrategy(CompressedStrategy):
    """Let a strategy that takes the mean train on secure sums: nobody but a client itself sees its update.

    Each round asks the chosen nodes five times: for keys, for shares, to train, to confirm to each other who is in the
    sum, and for what takes the masks off it. With ``leader`` one of them, drawn anew each round, trains before the
    others and tells which coordinates to send. Whoever does not answer in time has dropped out. A round of more clients
    than a sum may have is dealt to groups. Below ``terms.threshold`` nothing of a group is summed, and the updates stay
    with its clients; where no group has a sum the model stays as it was. Each ClientApp has ``SecureMod`` with the same
    terms. The inner strategy is handed one reply with the mean, the weights' sum, and no metrics of single clients.

    Args:
        inner: FedAvg, FedAvgM, FedProx, FedAdam, FedYogi or FedAdagrad; its ``train_metrics_aggr_fn`` sees the weight
            alone.
        spec: what compresses the way up, on coordinates that are the same for all clients and with the terms' grid:
            ``ef(leader(0.01) | fixed(8, 0.05))``, or ``ef(randk(0.01, shared=True) | fixed(8, 0.05))`` where they must
            tell nothing of anybody's update.
        terms: what was agreed on with the clients. A round of more than ``terms.num_clients`` is summed in groups.
        downlink: as for ``CompressedStrategy``.
        client_id_of: as for ``CompressedStrategy``; node authentication and this keep a node from playing many.
        step_timeout: seconds to wait in each of the steps in which nobody trains; training has the
            ``timeout`` of ``start``.
        seed: as for ``CompressedStrategy``.
        conversation: as for ``CompressedStrategy``.
        out: as for ``CompressedStrategy``.
        state_file: as for ``CompressedStrategy``; a sum that was under way begins anew.

    Raises:
        ConfigError: on what cannot work together, before the run starts.

    Example:
        >>> import gradwire as gw
        >>> from flwr.serverapp.strategy import FedAvg
        >>> from gradwire.flower.secure import SecureStrategy, Terms
        >>> terms = Terms(num_clients=10, threshold=7, grid=gw.fixed(8, 0.05), max_weight=1000)
        >>> strategy = SecureStrategy(FedAvg(), "ef(leader(0.01) | fixed(8, 0.05))", terms)
    """

    conversation_type = SecureConversation

    def __init__(
        self,
        inner: Strategy,
        spec: Compressor | str,
        terms: Terms,
        *,
        downlink: Compressor | str | None = None,
        client_id_of: Callable[[Any], int] | None = None,
        step_timeout: float = 60.0,
        seed: int = 0,
        conversation: str | None = None,
        out: Path | str | None = None,
        state_file: Path | str | None = None,
    ) -> None:
        self.terms = check_terms(terms)
        self.step_timeout = check_number("step_timeout", step_timeout)
        super().__init__(
            inner,
            spec,
            downlink=downlink,
            client_id_of=client_id_of,
            seed=seed,
            conversation=conversation,
            out=out,
            state_file=state_file,
        )
        self._train_timeout = 0.0
        self._most_kept = 0
        self._session: _Session | None = None
        self._total: SecureSum | None = None

    def _check(self, inner: Strategy) -> None:
        super()._check(inner)
        if not takes_mean(inner):
            raise ConfigError(
                f"{type(inner).__name__} looks at each client's update, which nobody sees in a secure sum: use a "
                "strategy that takes the mean, such as FedAvg"
            )

    def _begin(self, grid: Grid, arrays: ArrayRecord, num_rounds: int, timeout: float) -> ArrayRecord:
        self._most_kept = check_spec(self.spec, Model.from_record(arrays).layout, self.terms, self.seed)
        self._train_timeout = timeout
        return super()._begin(grid, arrays, num_rounds, timeout)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Have the chosen nodes join a sum and exchange shares, and configure the training of those that did."""
        self._end_round()
        self._open(grid, arrays)
        conversation, post = self._opened_secure()
        self._begin_round()
        post.drain(grid)
        messages = list(self.inner.configure_train(server_round + self._before, self._current(), config, grid))
        dealt = deal([message.metadata.dst_node_id for message in messages], self.terms)
        group_of = {node_id: group for group, nodes in enumerate(dealt) for node_id in nodes}
        if (left := len(messages) - len(group_of)) > 0:
            _log.warning("gradwire: %d of %d nodes fit into no group and sit this round out", left, len(messages))
        groups = SecureGroups(self.terms, conversation.model.layout, len(dealt), conversation.version)
        self._session = _Session(groups, grid)
        try:
            self._join(self._session, messages, group_of)
            self._share(self._session)
            return self._deliver(self._session)
        except TooFewClients as error:
            _log.warning("gradwire: no sum in this round: %s", visible(str(error)))
            self._session = None
            return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up what came masked, have the masks taken off, and close the round."""
        conversation, _ = self._opened_secure()
        session, self._session, self._total = self._session, None, None
        errors: list[Message] = []
        counted: list[Reply] = []
        if session is not None:
            masked, errors = self._take(session, _MASKED, list(replies))
            self._total = self._sum(session)
            if self._total is not None:
                conversation.receive_sum(self._total, session.sequences)
                counted = [self._as_one(session, masked[0], self._total)]
        metrics = self._close(server_round + self._before, counted, errors)
        self._save()
        return self._record, metrics

    def _num_counted(self, num_received: int) -> int:
        return 0 if self._total is None else len(self._total.clients)

    def _opened_secure(self) -> tuple[SecureConversation, Post]:
        conversation, post = self._opened()
        return cast(SecureConversation, conversation), post

    # ---- the five steps

    def _join(self, session: _Session, messages: list[Message], group_of: Mapping[int, int]) -> None:
        """Step 1: the model goes out as always, with the group's invitation; keys come back in place of payloads."""
        conversation, post = self._opened_secure()
        by_node = {m.metadata.dst_node_id: m for m in messages if m.metadata.dst_node_id in group_of}
        invitations = {node_id: session.groups.invitations[group_of[node_id]] for node_id in by_node}
        out = post.send(by_node.values(), session.grid, self.step_timeout, invitations)
        answers, _ = post.collect(session.grid.send_and_receive(out, timeout=self.step_timeout))
        if post.without_mod and not conversation.heard:
            raise ProtocolError(WITHOUT_MOD)
        for reply in answers:
            client, keys = reply.answer.client, reply.answer.blob or b""
            if self._heard(session, client, reply.node_id, keys, group_of[reply.node_id]):
                session.originals[client] = by_node[reply.node_id]
                session.keys[client] = reply.key

    def _share(self, session: _Session) -> None:
        """Step 2: each client gives its neighbours shares of its secrets, which they alone can read."""
        out = self._step(session, _SHARES, session.groups.rosters())
        self._take(session, _SHARES, list(session.grid.send_and_receive(out, timeout=self.step_timeout)))

    def _propose(self, session: _Session) -> Support:
        """Between steps 2 and 3: a leader trains and tells its coordinates; where it does not, another is drawn.

        Those that do not answer have most likely dropped out, so that none is drawn once fewer than the
        threshold are left.
        """
        conversation, _ = self._opened_secure()
        shared = session.groups.ready
        others = list(shared)
        while len(others) >= self.terms.threshold:
            client = leader_of(others, self.seed, conversation.version)
            others.remove(client)
            out = self._step(session, PROPOSAL, {client: b""})
            replies = list(session.grid.send_and_receive(out, timeout=self._train_timeout))
            self._take(session, PROPOSAL, replies)
            if session.support is not None:
                return session.support
            _log.warning("gradwire: client %d leads the round and proposed no coordinates", client)
        raise TooFewClients(
            f"{len(shared)} clients could lead and {len(shared) - len(others)} were asked in vain; the threshold is "
            f"{self.terms.threshold}"
        )

    def _deliver(self, session: _Session) -> list[Message]:
        """Step 3: the messages that have clients train, and mask what comes of it."""
        conversation, _ = self._opened_secure()
        layout = conversation.model.layout
        if self.spec.led:
            support = self._propose(session)
            told = pack_support(support, layout.num_parameters)
        else:
            support, told = support_of(self.spec, layout, self.seed, conversation.version), b""
        return self._step(session, _MASKED, session.groups.deliveries(support), told)

    def _sum(self, session: _Session) -> SecureSum | None:
        """Steps 4 and 5: have the masks taken off; None, and a line in the log, where there is no sum."""
        try:
            for number, end in ((_CONFIRMATIONS, SecureGroups.survivors), (_REVEALS, SecureGroups.confirmed)):
                out = self._step(session, number, end(session.groups))
                self._take(session, number, list(session.grid.send_and_receive(out, timeout=self.step_timeout)))
            total = session.groups.close_round()
        except ProtocolError as error:
            _log.warning("gradwire: no sum in this round: %s", visible(str(error)))
            return None
        for group, reason in session.groups.lost.items():
            _log.warning("gradwire: no sum of group %d in this round: %s", group, visible(str(reason)))
        if total.num_at_clip:
            _log.info("gradwire: %d of the sum's numbers were at the clip of %s", total.num_at_clip, self.terms.grid)
        return total

    def _step(self, session: _Session, number: int, told: Mapping[int, bytes], support: bytes = b"") -> list[Message]:
        """Make the messages of a step; with those of training goes what the inner strategy has for the app."""
        conversation, _ = self._opened_secure()
        session.sent = []
        for client, message in told.items():
            original, key = session.originals[client], session.keys[client]
            step = Step(conversation.name, conversation.birth, client, number, message, support)
            carrier = make_carrier(step.encode())
            rest = dict(original.content.items()) if number in (_MASKED, PROPOSAL) else {}
            content = RecordDict({**rest, key: ArrayRecord({NAME: carrier})})
            self._ledger.add(original.metadata.dst_node_id, "downlink", count_bytes(content))
            session.sent.append((instruction_of(original, content), client))
        return [message for message, _ in session.sent]

    def _take(self, session: _Session, step: int, replies: list[Message]) -> tuple[list[Message], list[Message]]:
        """Read the replies to a step: those that were taken in, and Flower's error replies."""
        clients = {message.metadata.message_id: client for message, client in session.sent}
        taken: list[Message] = []
        errors: list[Message] = []
        in_order = sorted(replies, key=lambda reply: clients.get(reply.metadata.reply_to_message_id, -1))
        for reply in in_order:
            client = clients.get(reply.metadata.reply_to_message_id)
            if client is None:
                continue
            node_id = session.originals[client].metadata.dst_node_id
            if reply.has_error():
                errors.append(reply)
                reason = visible(reply.error.reason or f"code {reply.error.code}")
                _log.warning("gradwire: client %d, node %d, drops out: %s", client, node_id, reason)
                continue
            self._ledger.add(node_id, "uplink", count_bytes(reply.content))
            answer = self._read(client, node_id, reply)
            if answer is not None and self._taken(session, step, node_id, answer):
                taken.append(reply)
        return taken, errors

    def _taken(self, session: _Session, step: int, node_id: int, answer: StepAnswer) -> bool:
        """Take one answer in; False, and a line in the log, where it cannot be."""
        if step == PROPOSAL:
            conversation, _ = self._opened_secure()
            try:
                session.support = unpack_support(
                    answer.message, conversation.model.layout.num_parameters, self._most_kept
                )
            except DecodeError as error:
                self._log_dropped(answer.client, node_id, error)
            return session.support is not None
        if not self._heard(session, answer.client, node_id, answer.message):
            return False
        if step == _MASKED:
            session.sequences[answer.client] = answer.sequence
        return True

    def _read(self, client: int, node_id: int, reply: Message) -> StepAnswer | None:
        conversation, _ = self._opened_secure()
        try:
            found = find_carrier(reply.content)
            if found is None:
                raise ProtocolError("its reply holds nothing of gradwire's")
            limit = Limits.of(conversation.model.layout.d).max_bytes
            if len(found.data) > limit:
                raise LimitExceeded(f"it has {len(found.data)} bytes, at most {limit} make sense")
            answer = read_step_answer(found.data)
            if answer.birth != conversation.birth or answer.client != client:
                raise ProtocolError(f"it answers as client {answer.client}, expected {client}")
        except (ProtocolError, DecodeError) as error:
            self._log_dropped(client, node_id, error)
            return None
        return answer

    def _heard(self, session: _Session, client: int, node_id: int, message: bytes, group: int | None = None) -> bool:
        """Take one message in; False, and a line in the log, where it cannot be."""
        try:
            session.groups.receive(message, client, group)
        except Duplicate:
            return False
        except (ProtocolError, DecodeError) as error:
            self._log_dropped(client, node_id, error)
            return False
        return True

    def _log_dropped(self, client: int, node_id: int, error: Exception) -> None:
        said = "gradwire: refused what client %d, node %d sent, it drops out of the sum: %s: %s"
        _log.warning(said, client, node_id, type(error).__name__, visible(str(error)))

    def _as_one(self, session: _Session, message: Message, total: SecureSum) -> Reply:
        """The reply of a client that is all of them together."""
        metrics = MetricRecord({self.weighted_by_key: float(total.sum_weights)})
        key = session.keys[total.clients[0]]
        answer = Answer(bytes(8), 0, NO_INCARNATION, 0, blob=total.blob)
        return Reply(0, with_content(message, RecordDict({"metrics": metrics})), key, answer)
