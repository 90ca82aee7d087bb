"""SecureClient: one client's side of one secure sum, without input or output of its own."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from gradwire.checks import check_integer, check_support
from gradwire.compressors.compressor import Vector
from gradwire.compressors.references import Reference
from gradwire.errors import ConfigError, ProtocolError, TooFewClients, UpdateError
from gradwire.layout import Layout
from gradwire.secagg import keys, messages
from gradwire.secagg.keys import KEY_BYTES, SEALED_BYTES, SEED_BYTES, TAG_BYTES
from gradwire.secagg.numbers import (
    Integers,
    check_layout,
    clear_blob,
    integers_of,
    pack,
    support_digest,
    view_of,
)
from gradwire.secagg.standing import Confirmed, Joined, Masked, Sharing, Standing, pack_standing, unpack_standing
from gradwire.secagg.terms import Terms

__all__ = ["SecureClient"]

_MOST_INVITATION = 32
_MASKED_WITH, _IN_SUM = b"masked with", b"in the sum"

_Kind = TypeVar("_Kind", Joined, Sharing, Masked, Confirmed)


class SecureClient:
    """One client's side of one secure sum: five messages in, five out, then it is used up.

    ``join`` answers the invitation, ``share`` the roster, ``mask`` the deliveries, ``confirm`` the survivors,
    ``reveal`` what others confirmed. Each answers once: a second message of a kind is refused, so that no server gets
    two different answers. What fails leaves the client as it was. Secrets are of this session alone and leave the
    object by ``to_secrets`` only: a client that crashes has dropped out, and joins the next round with another
    ``SecureClient``.

    Args:
        terms: what was agreed on; a server with others is refused.
        layout: the model's, without running statistics.
        client_id: this client's number, the one the server knows it by.

    Raises:
        ConfigError: on an argument of another kind.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.secagg import SecureClient, SecureServer, Terms
        >>> layout, spec = gw.Layout.flat(100), gw.parse("ef(cyclic(0.1) | fixed(8, 1.0))")
        >>> terms = Terms(num_clients=3, threshold=2, grid=gw.fixed(8, 1.0))
        >>> server, support = SecureServer(terms, layout), np.arange(10)
        >>> clients = {i: SecureClient(terms, layout, i) for i in range(3)}
        >>> for i, client in clients.items():
        ...     server.receive(client.join(server.invitation), i)
        >>> for i, roster in server.rosters().items():
        ...     server.receive(clients[i].share(roster), i)
        >>> for i, deliveries in server.deliveries(support).items():
        ...     blob = gw.Client(spec, layout, client_id=i).compress(np.full(100, 0.25 * i, np.float32))
        ...     server.receive(clients[i].mask(deliveries, blob, support), i)
        >>> for i, survivors in server.survivors().items():
        ...     server.receive(clients[i].confirm(survivors), i)
        >>> for i, confirmed in server.confirmed().items():
        ...     server.receive(clients[i].reveal(confirmed), i)
        >>> total = server.close_round()
        >>> total.clients, total.integers[0].item()  # 0, 32 and 64 steps of 1 / 127
        ((0, 1, 2), 96)

    Source: Bonawitz et al. 2017 (eprint 2017/281), Figure 4; Bell et al. 2020 (eprint 2020/704), for neighbours.
    Deviations: no signatures, but a tag from each client to each neighbour: with the masked numbers it says whom the
        client masked with, with the confirmations who it was told is in the sum. Masks depend on the coordinates they
        are for.
    """

    def __init__(self, terms: Terms, layout: Layout, client_id: int) -> None:
        if not isinstance(terms, Terms):
            raise ConfigError(f"terms must be Terms, got {type(terms).__name__}")
        self.terms = terms
        self.layout = check_layout(layout)
        self.client_id = check_integer("client_id", client_id, 0, 2**63 - 1)
        self._standing: Standing = None
        self._used_up = False

    def join(self, invitation: bytes) -> bytes:
        """Answer the invitation: make secrets for this session, and publish keys.

        Args:
            invitation: ``SecureServer.invitation``.

        Returns:
            The bytes for ``SecureServer.receive``.

        Raises:
            DecodeError: on a damaged message.
            ProtocolError: on other terms or another layout, or where a session was joined before.
        """
        if self._standing is not None or self._used_up:
            raise ProtocolError("this client joined a session before: each takes a new SecureClient")
        opened = messages.open_message(invitation, messages.INVITATION, _MOST_INVITATION)
        round_, terms, layout = opened.invitation()
        if terms != self.terms.digest:
            raise ProtocolError(f"server has terms {terms.hex()}, expected {self.terms.digest.hex()}: {self.terms}")
        if layout != self.layout.digest:
            raise ProtocolError(f"invitation {self.layout.mismatch(layout.hex(), self.layout.d)}")
        context = keys.context_of(opened.session, round_, terms, layout)
        cipher, mask_seed, own_seed = keys.fresh_key(), keys.draw(SEED_BYTES), keys.draw(SEED_BYTES)
        published = messages.Keys(
            keys.public_of(cipher),
            keys.public_of(keys.key_of(mask_seed, context)),
            keys.commit(own_seed, context, self.client_id),
        )
        self._standing = Joined(opened.session, context, round_, cipher, mask_seed, own_seed, published)
        return messages.encode_keys(opened.session, published)

    def share(self, roster: bytes) -> bytes:
        """Answer the roster: give each neighbour a share of both secrets, which it alone can read.

        Args:
            roster: this client's of ``SecureServer.rosters``.

        Returns:
            The bytes for ``SecureServer.receive``.

        Raises:
            DecodeError: on a damaged message.
            TooFewClients: where there are too few neighbours for the threshold.
            ProtocolError: on keys that come twice or are of no use, too many neighbours, or a message out of turn.
        """
        joined = self._in_turn(Joined, "a roster")
        most = self.terms.most_holders - 1
        opened = messages.open_message(roster, messages.ROSTER, 10 + most * (2 * KEY_BYTES + 9), joined.session)
        neighbours = opened.roster()
        self._check_enough(1 + len(neighbours))
        published = [joined.published.cipher, joined.published.mask, *(k for _, *pair in neighbours for k in pair)]
        numbers = tuple(number for number, _, _ in neighbours)
        if len(numbers) > most or self.client_id in numbers or len(set(published)) != len(published):
            raise ProtocolError(
                f"a roster has at most {most} other clients, each with keys of its own; got {len(numbers)}"
            )
        mask_key = keys.key_of(joined.mask_seed, joined.context)
        sealing = tuple(keys.agree(joined.cipher, cipher) for _, cipher, _ in neighbours)
        masking = tuple(keys.agree(mask_key, mask) for _, _, mask in neighbours)
        holders = sorted((*numbers, self.client_id))
        own_shares, mask_shares = (
            dict(zip(holders, keys.split(seed, self.terms.num_shares, len(holders)), strict=True))
            for seed in (joined.own_seed, joined.mask_seed)
        )
        sealed = [
            keys.seal(secret, joined.context, self.client_id, number, own_shares[number] + mask_shares[number])
            for number, secret in zip(numbers, sealing, strict=True)
        ]
        self._standing = Sharing(joined, numbers, sealing, masking, own_shares[self.client_id])
        return messages.encode_shares(joined.session, sealed)

    @property
    def may_mask(self) -> bool:
        """Whether the deliveries are what comes next: a round's coordinates may be asked for then, not later."""
        return isinstance(self._standing, Sharing)

    def mask(
        self,
        deliveries: bytes,
        blob: bytes,
        support: Integers,
        weight: int = 1,
        reference: Vector | Reference | None = None,
    ) -> bytes:
        """Answer the deliveries: hide the numbers of a payload under masks.

        Args:
            deliveries: this client's of ``SecureServer.deliveries``.
            blob: from ``gw.Client.compress``, in the session's round; its numbers are on the terms' grid, and on the
                support, but for ``Terms.most_in_clear`` of them.
            support: (k,) int64 increasing: the coordinates that all clients of the round send.
            weight: this client's weight, an integer from 1 to ``Terms.max_weight``.
            reference: what the payload leans on, where it leans on one: (d,) float32 or a ``Reference``.

        Returns:
            The bytes for ``SecureServer.receive``. Whether they were counted is in ``SecureSum.clients``: where not,
            ``gw.Client.end_round(blob, delivered=False)`` keeps what they hid.

        Raises:
            DecodeError: on a damaged message or blob.
            TooFewClients: where too few neighbours are left for the threshold.
            ConfigError: on a support, weight or blob that cannot be.
            UpdateError: where numbers are at the last point of the grid, and the terms refuse them.
            ProtocolError: on a message out of turn.
        """
        sharing = self._in_turn(Sharing, "deliveries")
        joined, terms = sharing.joined, self.terms
        most = len(sharing.neighbours) * (SEALED_BYTES + 1)
        opened = messages.open_message(deliveries, messages.DELIVERIES, most, joined.session)
        _, sealed = opened.chosen(len(sharing.neighbours), SEALED_BYTES)
        self._check_enough(1 + sum(shares is not None for shares in sealed))
        weight = check_integer("weight", weight, 1, terms.max_weight)
        support = check_support(support, self.layout.d)
        integers, apart = integers_of(blob, self.layout, terms, support, joined.round, reference)
        at_clip = sum(int((np.abs(each) == terms.largest).sum()) for each in (integers, apart.integers))
        if at_clip and terms.beyond == "refuse":
            raise UpdateError(f"{at_clip} numbers are at the clip of {terms.grid} or beyond it, which the terms refuse")
        digest = support_digest(support)
        counts = np.array([weight, min(at_clip, terms.most_at_clip)], np.int64)
        numbers = np.concatenate([counts, weight * integers]).astype(np.uint32)
        numbers += keys.self_mask(joined.own_seed, joined.context, self.client_id, digest, numbers.size)
        held: list[bytes | None] = []
        sent: list[bytes] = []
        expected: list[bytes] = []
        present = [n for n, shares in zip(sharing.neighbours, sealed, strict=True) if shares is not None]
        view = view_of([self.client_id, *present]) if terms.num_neighbours is None else b""
        for number, sealing, masking, shares in zip(
            sharing.neighbours, sharing.sealing, sharing.masking, sealed, strict=True
        ):
            if shares is None:
                continue
            held.append(keys.unseal(sealing, joined.context, number, self.client_id, shares))
            mask = keys.pair_mask(masking, joined.context, self.client_id, number, digest, numbers.size)
            numbers = numbers + mask if self.client_id < number else numbers - mask
            sent.append(keys.attest(sealing, joined.context, _MASKED_WITH, self.client_id, number, view))
            expected.append(keys.attest(sealing, joined.context, _MASKED_WITH, number, self.client_id, view))
        clear = (weight, clear_blob(apart, self.layout, terms, joined.round)) if terms.most_in_clear else None
        agreed = tuple(s for s, shares in zip(sharing.sealing, sealed, strict=True) if shares is not None)
        self._standing = Masked(joined, tuple(present), agreed, sharing.own_share, tuple(held), tuple(expected))
        return messages.encode_masked(joined.session, digest, pack(numbers, terms.width), sent, clear)

    def confirm(self, survivors: bytes) -> bytes:
        """Answer the survivors: tell each neighbour in the sum which clients this one was told are.

        It settles what will be revealed: of each neighbour in the sum a share of its own mask, of each other one of
        its key, never both of one. None of a neighbour that did not mask with this client, or, where all are
        neighbours, masked with other clients than this one.

        Args:
            survivors: this client's of ``SecureServer.survivors``.

        Returns:
            The bytes for ``SecureServer.receive``.

        Raises:
            DecodeError: on a damaged message.
            TooFewClients: where too few neighbours are in the sum, and masked with the same clients, for the threshold.
            ProtocolError: on a message out of turn.
        """
        masked = self._in_turn(Masked, "survivors")
        joined = masked.joined
        most = len(masked.held) * (TAG_BYTES + 1)
        opened = messages.open_message(survivors, messages.SURVIVORS, most, joined.session)
        _, tags = opened.chosen(len(masked.held), TAG_BYTES)
        fits = [tag is not None and keys.same(tag, own) for tag, own in zip(tags, masked.tags, strict=True)]
        self._check_enough(1 + sum(fits))
        shares = tuple(
            both[SEED_BYTES:] if both and tag is None else both[:SEED_BYTES] if both and fit else None
            for both, tag, fit in zip(masked.held, tags, fits, strict=True)
        )
        in_sum = [
            (number, sealing)
            for number, sealing, tag in zip(masked.neighbours, masked.sealing, tags, strict=True)
            if tag is not None
        ]
        numbers = [self.client_id, *(number for number, _ in in_sum)]
        view = view_of(numbers) if self.terms.num_neighbours is None else b""
        sent = [keys.attest(sealing, joined.context, _IN_SUM, self.client_id, n, view) for n, sealing in in_sum]
        expected = [keys.attest(sealing, joined.context, _IN_SUM, n, self.client_id, view) for n, sealing in in_sum]
        self._standing = Confirmed(joined, masked.own_share, shares, tuple(expected))
        return messages.encode_confirmations(joined.session, sent)

    def reveal(self, confirmed: bytes) -> bytes:
        """Answer what others confirmed: give the shares that take the masks off the sum.

        Nothing where fewer than the threshold, this client among them, were told the same: so no two sets of clients
        can be taken for those in the sum.

        Args:
            confirmed: this client's of ``SecureServer.confirmed``.

        Returns:
            The bytes for ``SecureServer.receive``.

        Raises:
            DecodeError: on a damaged message.
            TooFewClients: where too few neighbours confirmed what this client was told.
            ProtocolError: on a message out of turn.
        """
        standing = self._in_turn(Confirmed, "confirmations of others")
        most = len(standing.tags) * (TAG_BYTES + 1)
        opened = messages.open_message(confirmed, messages.CONFIRMED, most, standing.joined.session)
        _, tags = opened.chosen(len(standing.tags), TAG_BYTES)
        self._check_enough(
            1 + sum(tag is not None and keys.same(tag, own) for tag, own in zip(tags, standing.tags, strict=True))
        )
        self._standing, self._used_up = None, True
        return messages.encode_chosen(messages.REVEALS, standing.joined.session, standing.shares, standing.own_share)

    def to_secrets(self) -> bytes:
        """Write this client with its secrets, for a host whose process ends between two messages.

        The host keeps one copy, where nobody else reads it, and replaces it before an answer leaves: from an older copy
        a second answer to the same message could be had, and with both the client's numbers.

        Returns:
            What ``from_secrets`` reads.

        Raises:
            ProtocolError: before a session was joined: there is nothing to keep.
        """
        if self._standing is None and not self._used_up:
            raise ProtocolError("this client has no secrets yet: it joins a session first")
        return pack_standing(self._standing, self.client_id, self.terms.digest)

    @classmethod
    def from_secrets(cls, data: bytes, terms: Terms, layout: Layout, client_id: int) -> SecureClient:
        """Go on with what ``to_secrets`` wrote.

        Args:
            data: the bytes.
            terms: the session's, as for the class.
            layout: as for the class.
            client_id: as for the class.

        Raises:
            StateError: on damaged bytes, those of another client or of other terms.
        """
        self = cls(terms, layout, client_id)
        self._standing = unpack_standing(data, client_id, terms.digest)
        self._used_up = self._standing is None
        return self

    def _check_enough(self, num_holders: int) -> None:
        if num_holders < self.terms.num_shares:
            raise TooFewClients(
                f"client {self.client_id} needs {self.terms.num_shares} clients that hold its shares and know of the "
                f"same clients, itself among them, got {num_holders}: it sends nothing more"
            )

    def _in_turn(self, kind: type[_Kind], what: str) -> _Kind:
        if not isinstance(self._standing, kind):
            state = "used up" if self._used_up else type(self._standing).__name__.lower()
            raise ProtocolError(f"{what} comes out of turn: this client is {state}, and answers each message once")
        return self._standing
