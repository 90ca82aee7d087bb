"""SecureMod: the client's side of a secure sum over Flower, whose process ends with each message."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, Context, Message, RecordDict

from gradwire.compressors.compressor import Compressor, Vector
from gradwire.errors import ProtocolError, UpdateError
from gradwire.flower.carrier import NAME, Found, kind_of, make_carrier
from gradwire.flower.header import PROPOSAL, Instruction, Step, StepAnswer, read_step
from gradwire.flower.mod import CallNext, CompressionMod, Worked, asked, trained
from gradwire.flower.secure.support import check_terms, support_of
from gradwire.flower.state import Member, Place
from gradwire.secagg import SecureClient, Terms
from gradwire.secagg.support import pack_support, unpack_support

__all__ = ["SecureMod"]

_log = logging.getLogger("flwr")
_WEIGHTED_BY = "num-examples"


class SecureMod(CompressionMod):
    """Send updates of which the server learns the sum alone; goes where ``CompressionMod`` does.

    Of a train reply nothing leaves the node but its masked update and weight: no metrics, and where they cannot be sent
    no word of why but in the node's own log. What ``@app.evaluate``
    answers goes as it is. An instruction that asks for an update in clear is refused.

    Args:
        terms: what was agreed on; the server's must be the same.
        spec: as for ``CompressionMod``.
        weighted_by: the metric that is this client's weight, an integer from 1 to ``terms.max_weight``; with any other
            it drops out of the round.
        options: ``client_id``, ``state``, ``state_dir`` and ``keep_days``, as for ``CompressionMod``. Beside the state
            lie the secrets of the sum under way, which only this user may read.

    Raises:
        ConfigError: on terms or another argument that cannot be.

    Example:
        >>> import gradwire as gw
        >>> from flwr.clientapp import ClientApp
        >>> from gradwire.flower.secure import SecureMod, Terms
        >>> terms = Terms(num_clients=10, threshold=7, grid=gw.fixed(8, 0.05), max_weight=1000)
        >>> app = ClientApp(mods=[SecureMod(terms)])
    """

    def __init__(
        self, terms: Terms, spec: Compressor | str | None = None, *, weighted_by: str = _WEIGHTED_BY, **options: Any
    ) -> None:
        super().__init__(spec, **options)
        self.terms = check_terms(terms)
        self.weighted_by = weighted_by

    def _work(
        self, place: Place, member: Member, told: Instruction, message: Message, ask: Callable[[], Message]
    ) -> Worked | Message:
        """Answer the invitation, which comes with the model; the app trains once it is clear who takes part."""
        if kind_of(message) != "train":
            return super()._work(place, member, told, message, ask)
        if told.invitation is None:
            raise ProtocolError(
                "the ServerApp asks for updates in clear, and this ClientApp has SecureMod: wrap the strategy in "
                "gradwire.flower.secure.SecureStrategy"
            )
        client = SecureClient(self.terms, member.model.layout, member.client.client_id)
        keys = client.join(told.invitation)
        place.write_secrets(client.to_secrets())
        if member.proposed is not None:  # and was asked for no more: it goes with the next update
            number = member.client.sequence
            member.client.compress(*member.proposed, round=member.version)
            member.client.settle({number: False})
            member.proposed = None
        return Worked(Message(RecordDict(), reply_to=message), keys, trained=False)

    def _step(self, message: Message, context: Context, call_next: CallNext, found: Found) -> Message:
        """Answer a later step; what is wrong with an update or a weight is said here, since Flower sends errors on."""
        try:
            return self._answered(message, context, call_next, found)
        except UpdateError as error:
            _log.error("gradwire: %s", error)
            raise UpdateError("this client's update or weight cannot be sent: its own log says why") from None

    def _answered(self, message: Message, context: Context, call_next: CallNext, found: Found) -> Message:
        """Answer a later step: what is kept is replaced before the answer leaves."""
        step = read_step(found.data)
        client_id = self._number(context, step.client)
        with self._store(context).open(step.conversation, client_id) as place:
            member, secrets = place.read(), place.read_secrets()
            if member is None or secrets is None or member.birth != step.birth:
                raise ProtocolError(f"step {step.number} of a secure sum comes to a client that did not join it")
            client = SecureClient.from_secrets(secrets, self.terms, member.model.layout, client_id)
            sequence = member.client.sequence if step.number == 3 else 0
            if step.number == 2:
                answered = client.share(step.message)
            elif step.number == 4:
                answered = client.confirm(step.message)
            elif step.number == 5:
                answered = client.reveal(step.message)
            else:
                if step.number == PROPOSAL:
                    _check_leads(client, member)
                if member.proposed is None:
                    reply = asked(message, context, call_next, found.key, member.model)
                    if reply.has_error():
                        return reply
                    member.proposed = self._weighed(member, reply.content)
                if step.number == PROPOSAL:
                    answered = _coordinates(member, *member.proposed)
                else:
                    answered = _masked(client, member, step, *member.proposed)
                    member.proposed = None
                place.write(member)
            place.write_secrets(client.to_secrets())
        answer = StepAnswer(member.birth, client_id, sequence, answered)
        return Message(RecordDict({found.key: ArrayRecord({NAME: make_carrier(answer.encode())})}), reply_to=message)

    def _weighed(self, member: Member, content: RecordDict) -> tuple[Vector, int]:
        """The update that the app trained, and its weight in the sum."""
        update, weight = trained(member, self.weighted_by, content)
        if weight != int(weight) or not 1 <= weight <= self.terms.max_weight:
            raise UpdateError(
                f"the train reply's metric {self.weighted_by!r} is its weight in a secure sum and must be an integer "
                f"from 1 to max_weight, {self.terms.max_weight}, got {weight:g}"
            )
        return update, int(weight)


def _check_leads(client: SecureClient, member: Member) -> None:
    """Refuse to tell coordinates where nothing asks for them, and a second time."""
    spec = member.client.compressor
    if not spec.led:
        raise ProtocolError(f"{spec} asks no client which coordinates to send")
    if member.proposed is not None or not client.may_mask:
        raise ProtocolError("a client proposes a round's coordinates once, before it masks")


def _coordinates(member: Member, update: Vector, weight: int) -> bytes:
    """The coordinates that a leader would send."""
    return pack_support(member.client.propose(update, weight, member.version), member.model.layout.num_parameters)


def _masked(client: SecureClient, member: Member, step: Step, update: Vector, weight: int) -> bytes:
    """Compress an update on the coordinates that all clients send, and mask it."""
    spec, layout = member.client.compressor, member.model.layout
    if spec.led:
        support = unpack_support(step.support, layout.num_parameters)
        blob = member.client.compress(update, weight, member.version, support=support)
    else:
        support = support_of(spec, layout, member.client.seed, member.version)
        blob = member.client.compress(update, weight, member.version)
    return client.mask(step.message, blob, support, weight)
