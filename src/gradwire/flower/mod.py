"""Mod: the client's side. What the app trains goes out compressed, what comes in compressed reaches it as a model."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict

from gradwire.aggregation.aggregator import LARGEST_WEIGHT
from gradwire.checks import check_integer, check_number
from gradwire.compressors.compressor import Compressor, Vector
from gradwire.compressors.spec import parse
from gradwire.errors import ConfigError, ProtocolError, StateError, UpdateError
from gradwire.flower.carrier import NAME, Found, find_carrier, kind_of, make_carrier, with_content, without_carrier
from gradwire.flower.header import (
    NO_INCARNATION,
    NUM_RUNS,
    Answer,
    Counted,
    Instruction,
    Refusal,
    is_step,
    read_instruction,
)
from gradwire.flower.model import Model
from gradwire.flower.state import ContextStore, FolderStore, Member, Place, default_folder

__all__ = ["CompressionMod", "Worked", "asked", "trained"]

_log = logging.getLogger("flwr")

_INSECURE = (
    "the ServerApp adds updates up securely: give the ClientApp gradwire.flower.secure.SecureMod in the place of "
    "CompressionMod"
)

CallNext = Callable[[Message, Context], Message]


@dataclass(frozen=True)
class Worked:
    """What came of a message.

    Attributes:
        reply: the app's.
        blob: what the server is to have of it, None for nothing.
        trained: whether the reply holds a model, in whose place that goes.
    """

    reply: Message
    blob: bytes | None
    trained: bool


class CompressionMod:
    """Send compressed model updates instead of models, for any ClientApp.

    Goes into ``ClientApp(mods=[...])``, not into ``@app.train(mods=[...])``, since evaluation gets compressed models
    too; mods after it see whole models, mods before it what travels. The ServerApp wraps its strategy in
    ``CompressedStrategy``.

    Args:
        spec: what to compress with, a ``Compressor`` or its text; the server's when None. One that is given must be
            the server's.
        client_id: this client's number, or a function of the context that gives it. By default ``client-id`` of the
            node's config, else what the server's ``client_id_of`` says, else ``partition-id``, else a number made of
            the node's id.
        state: ``"disk"`` keeps what was not sent yet in files; ``"context"`` in the context that Flower keeps in
            memory, as it is needed where the simulation engine runs on several machines.
        state_dir: where the files are; ``$GRADWIRE_STATE`` by default, else ``gradwire`` in Flower's home.
        keep_days: states of conversations that nobody touched for so long are deleted when a new one begins.

    Raises:
        ConfigError: on a spec that is none, or another argument that cannot be.

    Example:
        >>> from flwr.clientapp import ClientApp
        >>> from gradwire.flower import CompressionMod
        >>> app = ClientApp(mods=[CompressionMod()])
    """

    def __init__(
        self,
        spec: Compressor | str | None = None,
        *,
        client_id: int | Callable[[Context], int] | None = None,
        state: Literal["disk", "context"] = "disk",
        state_dir: Path | str | None = None,
        keep_days: float = 30.0,
    ) -> None:
        if state not in ("disk", "context"):
            raise ConfigError(f"state must be 'disk' or 'context', got {state!r}")
        if not isinstance(spec, (Compressor, str, type(None))):
            raise ConfigError(f"spec must be a Compressor, its text or None, got {spec!r}")
        self.spec = parse(spec) if isinstance(spec, str) else spec
        self._client_id = client_id
        self._state = state
        self._state_dir = None if state_dir is None else Path(state_dir)
        self._keep_days = check_number("keep_days", keep_days)

    def __call__(self, message: Message, context: Context, call_next: CallNext) -> Message:
        """Handle one message.

        Args:
            message: from the ServerApp.
            context: the node's.
            call_next: the app, or the next mod.

        Returns:
            The reply: the app's, with the carrier in place of its model; or one that asks for the whole model.

        Raises:
            GradwireError: on whatever does not fit, before anything is remembered; Flower sends its text to the
                server, which logs it.
        """
        found = find_carrier(message.content)
        if found is None:
            if kind_of(message) in ("train", "evaluate"):
                raise ProtocolError(
                    "the message holds nothing of gradwire's: wrap the ServerApp's strategy in CompressedStrategy, or "
                    "take CompressionMod out of the ClientApp"
                )
            return call_next(message, context)
        if is_step(found.data):
            return self._step(message, context, call_next, found)
        told = read_instruction(found.data)
        if isinstance(told, Refusal):
            raise ProtocolError(told.reason)
        self._check_spec(told)
        client_id = self._number(context, told.client)
        store = self._store(context)
        with store.open(told.conversation, client_id) as place:
            known = place.read()
            member = _followed(known, told, client_id, message.content, found)
            if isinstance(member, Answer):
                asking = ArrayRecord({NAME: make_carrier(member.encode())})
                return Message(RecordDict({found.key: asking}), reply_to=message)
            _settle(member, told)
            worked = self._work(
                place, member, told, message, lambda: asked(message, context, call_next, found.key, member.model)
            )
            if isinstance(worked, Message):
                return worked
            place.write(member)
            if known is None:
                _log.info("gradwire: client %d keeps what it did not send yet in %s", client_id, place)
        answer = Answer(member.birth, client_id, member.incarnation, member.version, blob=worked.blob)
        return with_content(worked.reply, _answered(worked.reply.content, found.key, answer, worked.trained))

    def _step(self, message: Message, context: Context, call_next: CallNext, found: Found) -> Message:
        """Answer a later step of a secure sum."""
        raise ProtocolError(_INSECURE)

    def _work(
        self, place: Place, member: Member, told: Instruction, message: Message, ask: Callable[[], Message]
    ) -> Worked | Message:
        """Do what is asked for: have the app train or evaluate, and compress what it trained; or its error."""
        if told.invitation is not None:
            raise ProtocolError(_INSECURE)
        reply = ask()
        if reply.has_error():
            return reply
        if kind_of(message) != "train":
            return Worked(reply, None, trained=False)
        update, weight = trained(member, told.weighted_by, reply.content)
        blob = member.client.compress(update, weight, told.version, told.num_bytes) if weight else None
        return Worked(reply, blob, trained=True)

    def _check_spec(self, told: Instruction) -> None:
        if self.spec is not None and str(self.spec) != told.spec:
            raise ConfigError(
                f"the ServerApp compresses with {told.spec}, this ClientApp with {self.spec}: give both the same spec, "
                "or CompressionMod none"
            )

    def _store(self, context: Context) -> FolderStore | ContextStore:
        if self._state == "context":
            return ContextStore(context)
        folder = default_folder() if self._state_dir is None else self._state_dir
        return FolderStore(folder, self._keep_days, synced=not _is_simulated(context))

    def _number(self, context: Context, told: int | None) -> int:
        """This client's number: the one it was given here, else the one the server told, else one of the node's."""
        given = self._given_number(context)
        if told is not None:
            if given is not None and given != told:
                raise ConfigError(
                    f"the ServerApp's client_id_of says that this node is client {told}, here it is client {given}: "
                    "leave client_id and client-id out, or give the same number"
                )
            return told
        if given is not None:
            return given
        if "partition-id" in context.node_config:
            return _checked("node config's partition-id", context.node_config["partition-id"])
        _log.warning(
            "gradwire: this node has neither client-id nor partition-id in --node-config: it goes by its node id, "
            "another one after a restart without authentication, and what it still had to send is then lost"
        )
        return context.node_id >> 1

    def _given_number(self, context: Context) -> int | None:
        """The number that the app or the node's config gives this client; None where neither does."""
        if self._client_id is not None:
            return _checked("client_id", self._client_id(context) if callable(self._client_id) else self._client_id)
        if "client-id" in context.node_config:
            return _checked("node config's client-id", context.node_config["client-id"])
        return None


def _checked(name: str, number: Any) -> int:
    return check_integer(name, number, 0, 2**63 - 1)


def _is_simulated(context: Context) -> bool:
    """Whether this is the simulation engine: no node's state has to survive the machine, the server's does not."""
    return {"partition-id", "num-partitions"} <= set(context.node_config) and "ray" in sys.modules


def _followed(
    member: Member | None, told: Instruction, client_id: int, content: RecordDict, found: Found
) -> Member | Answer:
    """Bring a member to the version the server tells of, or say that it needs the model for that."""
    if member is not None and member.birth != told.birth:
        _log.info("gradwire: conversation %r begins anew, the state of an earlier one is given up", told.conversation)
        member = None
    if member is not None:
        _check_same(member, told)
    unsettled = (
        member is not None and _verdict(member, told) is None and len(member.client.pending_sequences) >= NUM_RUNS
    )
    if told.full and not unsettled:
        return _restarted(member, told, client_id, content, found)
    if member is None:
        return Answer(told.birth, client_id, NO_INCARNATION, 0, resync=True)
    if unsettled or not told.first <= member.version <= told.version:
        return Answer(told.birth, client_id, member.incarnation, member.version, resync=True)
    model = member.model
    for blob in told.blobs[member.version - told.first :]:
        model = model.moved(member.client.end_round(blob, {}))
    member.version, member.model = told.version, model
    return member


def _restarted(member: Member | None, told: Instruction, client_id: int, content: RecordDict, found: Found) -> Member:
    """Take the model that came whole."""
    record = without_carrier(content).get(found.key)
    if not isinstance(record, ArrayRecord):
        raise ProtocolError(f"the instruction says that the model comes with it, there is none under {found.key!r}")
    model = Model.from_record(record)
    if model.layout.digest != told.layout:
        raise ProtocolError(f"the model that came {model.layout.mismatch(told.layout.hex())}")
    if member is None:
        member = Member.fresh(told, client_id, model)
    elif (said := member.model.difference(model)) is not None:
        raise StateError(
            f"conversation {told.conversation!r} began with another model, here is what this node remembers: {said}; "
            "give the changed model's conversation another name"
        )
    member.model = model
    member.restart_at(told.blobs[-1] if told.blobs else None, told.version)
    return member


def _check_same(member: Member, told: Instruction) -> None:
    """Refuse a conversation that goes on with another spec, seed or model than it began with."""
    client = member.client
    if str(client.compressor) != told.spec or client.seed != told.seed:
        raise StateError(
            f"conversation {told.conversation!r} began with {client.compressor} and seed {client.seed}, the ServerApp "
            f"now has {told.spec} and seed {told.seed}: give it another name"
        )
    if not told.full and member.model.layout.digest != told.layout:  # a model that came is compared array by array
        raise StateError(
            f"the model of conversation {told.conversation!r} {member.model.layout.mismatch(told.layout.hex())}; "
            "give it another name"
        )
    client.num_rounds = told.num_rounds


def _settle(member: Member, told: Instruction) -> None:
    """Take back what the server did not count, and number the next payload past all it did."""
    counted, client = _verdict(member, told), member.client
    if counted is None:
        return
    client.settle({number: counted.holds(number) for number in client.pending_sequences})
    if counted.next > client.sequence:
        client.skip_to(counted.next)


def _verdict(member: Member, told: Instruction) -> Counted | None:
    """What the server says of this state's payloads; None where it knows no client, or the client by another state."""
    return told.counted if told.counted is not None and told.counted.incarnation == member.incarnation else None


def asked(message: Message, context: Context, call_next: CallNext, key: str, model: Model) -> Message:
    """Let the app work on the model, which it gets as it would without gradwire."""
    content = RecordDict({k: model.record() if k == key else record for k, record in message.content.items()})
    return call_next(with_content(message, content), context)


def trained(member: Member, weighted_by: str, content: RecordDict) -> tuple[Vector, float]:
    """The update that an app trained, (d,) float32, and its weight."""
    records, metrics = list(content.array_records.values()), list(content.metric_records.values())
    if len(records) != 1 or len(metrics) != 1:
        raise UpdateError(
            "a train reply must hold one ArrayRecord and one MetricRecord, "
            f"got {len(records)} and {len(metrics)}: {list(content)}"
        )
    weight = _weight(metrics[0].get(weighted_by), weighted_by)
    update = member.model.flatten(records[0])
    np.subtract(update, member.model.vector, out=update)
    return update, weight


def _weight(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LARGEST_WEIGHT:
        raise UpdateError(
            f"the train reply's metric {name!r} is its weight and must be a number of 0 or more, got {value!r}"
        )
    return float(value)


def _answered(content: RecordDict, key: str, answer: Answer, trained: bool) -> RecordDict:
    """Put the carrier in: in place of a trained model, else beside what the app sends."""
    carrier = make_carrier(answer.encode())
    records: dict[str, Any] = dict(content.items())
    if trained:
        only = next(iter(content.array_records))
        records[only] = ArrayRecord({NAME: carrier})
        return RecordDict(records)
    beside = records.get(key, ArrayRecord())
    if not isinstance(beside, ArrayRecord):
        key, beside = NAME, ArrayRecord()
    beside = beside.copy()
    beside[NAME] = carrier
    records[key] = beside
    return RecordDict(records)
