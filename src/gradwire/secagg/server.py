"""SecureServer: the server's side of one secure sum, without input or output of its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_integer, check_support
from gradwire.errors import ConfigError, Duplicate, Malformed, ProtocolError, TooFewClients
from gradwire.kernels import ops
from gradwire.layout import Layout
from gradwire.secagg import keys, messages
from gradwire.secagg.graph import draw_neighbours
from gradwire.secagg.keys import KEY_BYTES, SEALED_BYTES, SEED_BYTES, TAG_BYTES
from gradwire.secagg.numbers import (
    NOWHERE,
    NUM_COUNTS,
    Integers,
    Sparse,
    added,
    centred,
    check_layout,
    check_sum,
    mean_blob,
    read_clear,
    support_digest,
)
from gradwire.secagg.terms import Terms
from gradwire.wire import Limits

__all__ = ["SecureServer", "SecureSum"]

_MOST_WEIGHT = 5
"""Bytes that a weight takes at most."""


@dataclass(frozen=True)
class SecureSum:
    """What a secure sum came to.

    Attributes:
        integers: (k,) int64: the sum over clients of weight x steps of the grid, at each coordinate.
        support: (k,) int64 increasing: the coordinates, those that clients sent in clear among them.
        sum_weights: of the clients in the sum.
        num_at_clip: how many numbers of all clients were at the last point of the grid, where those beyond the clip
            go; a client counts for ``Terms.most_at_clip`` at most.
        clients: who is in the sum, in order of their numbers.
        blob: the weighted mean as one client's payload: ``gw.Server.receive`` takes it with ``sum_weights``.
    """

    integers: Integers
    support: Integers
    sum_weights: int
    num_at_clip: int
    clients: tuple[int, ...]
    blob: bytes


class SecureServer:
    """The server's side of one secure sum: what clients send is passed on or added up, and seen by nobody.

    ``invitation`` goes to all; ``receive`` takes what they answer with. ``rosters``, ``deliveries``, ``survivors``,
    ``confirmed`` and ``close_round`` each end a step: who has not answered by then has dropped out, which is for the
    host to decide. Where fewer than ``Terms.threshold`` are left there is no sum, and this object is used up. Memory is
    that of one vector of the support and of the clients' keys and shares.

    Args:
        terms: what was agreed on with the clients.
        layout: the model's, without running statistics.
        round: the round the sum is for.

    Raises:
        ConfigError: on an argument of another kind.

    Example:
        >>> import gradwire as gw
        >>> from gradwire.secagg import SecureClient, SecureServer, Terms
        >>> terms, layout = Terms(num_clients=3, threshold=2, grid=gw.fixed(8, 1.0)), gw.Layout.flat(4)
        >>> server = SecureServer(terms, layout)
        >>> server.receive(SecureClient(terms, layout, 0).join(server.invitation), 0)
        >>> server.rosters()
        Traceback (most recent call last):
        gradwire.errors.TooFewClients: 1 of the clients sent keys, at least 2 must: there is no sum

    Source: Bonawitz et al. 2017 (eprint 2017/281), Figure 4; Bell et al. 2020 (eprint 2020/704), for neighbours.
    Deviations: see ``SecureClient``.
    """

    def __init__(self, terms: Terms, layout: Layout, round: int = 0) -> None:
        if not isinstance(terms, Terms):
            raise ConfigError(f"terms must be Terms, got {type(terms).__name__}")
        self.terms = terms
        self.layout = check_layout(layout)
        self.round = check_integer("round", round, 0, 2**63 - 2)
        self.session = keys.draw(keys.SESSION_BYTES)
        self.invitation = messages.encode_invitation(self.session, self.round, terms.digest, self.layout.digest)
        self._context = keys.context_of(self.session, self.round, terms.digest, self.layout.digest)
        self._expected: int | None = messages.KEYS
        self._answered: dict[int, dict[int, bytes]] = {}
        self._published: dict[int, messages.Keys] = {}
        self._known: set[bytes] = set()
        self._neighbours: dict[int, tuple[int, ...]] = {}
        self._places: dict[int, dict[int, int]] = {}
        self._sealed: dict[int, dict[int, bytes]] = {}
        self._delivered: dict[int, tuple[int, ...]] = {}
        self._support: Integers = np.empty(0, np.int64)
        self._digest = b""
        self._total: NDArray[np.uint32] = np.empty(0, np.uint32)
        self._in_clear = NOWHERE
        self._tags: dict[int, dict[int, bytes]] = {}
        self._in_sum: tuple[int, ...] = ()
        self._confirmed: tuple[int, ...] = ()
        self._shares: dict[int, dict[int, bytes]] = {}

    @property
    def answered(self) -> tuple[int, ...]:
        """Clients that answered the step under way, in order of their numbers."""
        return () if self._expected is None else tuple(sorted(self._answered.get(self._expected, {})))

    @property
    def is_over(self) -> bool:
        """Whether nothing more is taken in: there is a sum, or there cannot be one."""
        return self._expected is None

    def receive(self, message: bytes, client_id: int) -> None:
        """Take in what a client answered.

        Args:
            message: from a ``SecureClient``.
            client_id: whose, as the transport vouches for it.

        Raises:
            DecodeError: on a damaged message.
            Duplicate: on one that was taken in before.
            ProtocolError: on one of another session or step, a second answer, or a client that is not among those
                asked. Nothing is changed in any of these cases.
        """
        client_id = check_integer("client_id", client_id, 0, 2**63 - 1)
        digest = hashlib.sha256(message).digest()
        kind = messages.kind_of(message)
        before = self._answered.get(kind, {}).get(client_id)
        if before == digest:
            raise Duplicate(f"client {client_id}'s {messages.NAMES[kind - 1]} were taken in before")
        if self._expected is None:
            raise ProtocolError("this secure sum is over: each round takes a new SecureServer")
        if before is not None:
            raise ProtocolError(f"client {client_id} answered before, with other {messages.NAMES[kind - 1]}")
        take = {
            messages.KEYS: self._take_keys,
            messages.SHARES: self._take_shares,
            messages.MASKED: self._take_masked,
            messages.CONFIRMATIONS: self._take_confirmations,
            messages.REVEALS: self._take_reveals,
        }[self._expected]
        take(message, client_id)
        self._answered.setdefault(self._expected, {})[client_id] = digest

    def rosters(self) -> dict[int, bytes]:
        """End the first step: tell each client that sent keys who its neighbours are.

        Returns:
            Client -> what to send it.

        Raises:
            TooFewClients: where fewer than the threshold sent keys.
            ProtocolError: out of turn.
        """
        present = self._end_step(messages.KEYS, messages.SHARES)
        self._neighbours = draw_neighbours(present, self.terms.num_neighbours)
        holders = {client: sorted((*others, client)) for client, others in self._neighbours.items()}
        self._places = {client: {holder: i + 1 for i, holder in enumerate(held)} for client, held in holders.items()}
        return {
            client: messages.encode_roster(self.session, [(n, self._published[n]) for n in neighbours])
            for client, neighbours in self._neighbours.items()
        }

    def deliveries(self, support: Integers) -> dict[int, bytes]:
        """End the second step: hand each client its neighbours' shares.

        Args:
            support: (k,) int64 increasing: the coordinates that all clients of the round send.

        Returns:
            Client -> what to send it.

        Raises:
            ConfigError: on a support that is none.
            TooFewClients: where fewer than the threshold sent shares.
            ProtocolError: out of turn.
        """
        support = check_support(support, self.layout.d)
        present = set(self._end_step(messages.SHARES, messages.MASKED))
        self._support, self._digest = support, support_digest(support)
        self._total = np.zeros(NUM_COUNTS + support.size, np.uint32)
        out = {}
        for client in sorted(present):
            sealed = [self._sealed[n][client] if n in present else None for n in self._neighbours[client]]
            self._delivered[client] = tuple(n for n in self._neighbours[client] if n in present)
            out[client] = messages.encode_chosen(messages.DELIVERIES, self.session, sealed)
        self._sealed = {}
        return out

    def survivors(self) -> dict[int, bytes]:
        """End the third step: tell each client in the sum which of its neighbours are, too.

        Returns:
            Client -> what to send it.

        Raises:
            TooFewClients: where fewer than the threshold sent masked numbers.
            ProtocolError: out of turn.
        """
        self._in_sum = self._end_step(messages.MASKED, messages.CONFIRMATIONS)
        self._shares = {client: {} for client in self._delivered}
        out = {}
        for client in self._in_sum:
            tags = [self._tags[n][client] if n in self._tags else None for n in self._delivered[client]]
            out[client] = messages.encode_chosen(messages.SURVIVORS, self.session, tags)
        self._tags = {}
        return out

    def confirmed(self) -> dict[int, bytes]:
        """End the fourth step: tell each client that confirmed which clients are in the sum what others confirmed.

        Returns:
            Client -> what to send it.

        Raises:
            TooFewClients: where fewer than the threshold confirmed.
            ProtocolError: out of turn.
        """
        self._confirmed = self._end_step(messages.CONFIRMATIONS, messages.REVEALS)
        out = {}
        for client in self._confirmed:
            tags = [self._tags[n][client] if n in self._tags else None for n in self._beside(client)]
            out[client] = messages.encode_chosen(messages.CONFIRMED, self.session, tags)
        self._tags = {}
        return out

    def _beside(self, client: int) -> tuple[int, ...]:
        """A client's neighbours in the sum."""
        in_sum = set(self._in_sum)
        return tuple(n for n in self._delivered[client] if n in in_sum)

    def close_round(self) -> SecureSum:
        """End the last step: take the masks off the sum.

        Returns:
            The sum of all whose masked numbers arrived, whether or not they answered the last step.

        Raises:
            TooFewClients: where too few shares of some secret came.
            ProtocolError: where shares of a secret do not fit what its client published, or the sum cannot be one of
                clients that kept to the terms; there is no sum then. Also out of turn.
        """
        self._end_step(messages.REVEALS, None)
        total, count = self._total, self._total.size
        for client in self._in_sum:
            seed = self._recovered(client)
            if not keys.same(keys.commit(seed, self._context, client), self._published[client].commitment):
                raise ProtocolError(f"client {client}'s mask: its shares do not fit what it published")
            total = total - keys.self_mask(seed, self._context, client, self._digest, count)
        for client in self._delivered.keys() - set(self._in_sum):
            total = self._without(client, total)
        sums = centred(total, self.terms.width)
        summed = Sparse(self._support, sums[NUM_COUNTS:])
        sum_weights, num_at_clip = check_sum(sums[:NUM_COUNTS], summed.integers, len(self._in_sum), self.terms)
        support, integers = added(summed, self._in_clear)
        blob = mean_blob(integers, support, sum_weights, self.layout, self.terms, self.round)
        return SecureSum(integers, support, sum_weights, num_at_clip, self._in_sum, blob)

    def _without(self, gone: int, total: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The sum without the masks that clients in it have in common with one that is not."""
        there = [n for n in self._delivered[gone] if n in set(self._in_sum)]
        if not there:
            return total
        key = keys.key_of(self._recovered(gone), self._context)
        if not keys.same(keys.public_of(key), self._published[gone].mask):
            raise ProtocolError(f"client {gone}'s key: its shares do not fit what it published")
        for client in there:
            secret = keys.agree(key, self._published[client].mask)
            mask = keys.pair_mask(secret, self._context, client, gone, self._digest, total.size)
            total = total - mask if client < gone else total + mask
        return total

    def _recovered(self, client: int) -> bytes:
        """A client's secret, from the shares of it that came."""
        shares, needed = self._shares[client], self.terms.num_shares
        if len(shares) < needed:
            raise TooFewClients(f"{len(shares)} shares of client {client}'s secret came, {needed} bring it back")
        return keys.combine({holder: shares[holder] for holder in sorted(shares)[:needed]})

    def _end_step(self, kind: int, following: int | None) -> tuple[int, ...]:
        """Who answered in a step, which is over now."""
        name = messages.NAMES[kind - 1]
        if self._expected != kind:
            now = "over" if self._expected is None else f"waiting for {messages.NAMES[self._expected - 1]}"
            raise ProtocolError(f"the step of the {name} cannot be ended: this secure sum is {now}")
        present = self.answered
        late = kind in (messages.CONFIRMATIONS, messages.REVEALS)
        least = 1 if late and self.terms.num_neighbours is not None else self.terms.threshold
        if len(present) < least:
            self._expected = None
            raise TooFewClients(f"{len(present)} of the clients sent {name}, at least {least} must: there is no sum")
        self._expected = following
        return present

    def _check_asked(self, client_id: int, asked: object) -> None:
        if client_id not in asked:  # type: ignore[operator]
            raise ProtocolError(f"client {client_id} is not among those asked in this step")

    def _take_keys(self, message: bytes, client_id: int) -> None:
        most = 2 * KEY_BYTES + SEED_BYTES
        published = messages.open_message(message, messages.KEYS, most, self.session).keys()
        if len(self._published) == self.terms.num_clients:
            raise ProtocolError(f"there are {self.terms.num_clients} clients already, as many as the terms allow")
        if published.cipher == published.mask or self._known & {published.cipher, published.mask}:
            raise ProtocolError(f"client {client_id} has a key that is there already")
        for key in (published.cipher, published.mask):
            keys.agree(keys.fresh_key(), key)  # of small order: refused before others are told
        self._published[client_id] = published
        self._known |= {published.cipher, published.mask}

    def _take_shares(self, message: bytes, client_id: int) -> None:
        self._check_asked(client_id, self._neighbours)
        neighbours = self._neighbours[client_id]
        opened = messages.open_message(message, messages.SHARES, len(neighbours) * SEALED_BYTES, self.session)
        self._sealed[client_id] = dict(zip(neighbours, opened.all_of(len(neighbours), SEALED_BYTES), strict=True))

    def _take_masked(self, message: bytes, client_id: int) -> None:
        self._check_asked(client_id, self._delivered)
        count, width = self._total.size, self.terms.width
        num_bytes = -(-count * width // 8)
        neighbours = self._delivered[client_id]
        most = messages.DIGEST_BYTES + num_bytes + len(neighbours) * TAG_BYTES
        if self.terms.most_in_clear:
            most += _MOST_WEIGHT + Limits.of(self.layout.d).max_bytes
        opened = messages.open_message(message, messages.MASKED, most, self.session)
        digest, packed, tags, clear = opened.masked(num_bytes, len(neighbours), self.terms.most_in_clear > 0)
        if digest != (own := self._digest[: messages.DIGEST_BYTES]):
            raise ProtocolError(f"client {client_id} has another support: {digest.hex()}, not {own.hex()}")
        if count * width % 8 and packed[-1] >> count * width % 8:
            raise Malformed("masked numbers: unused bits of the last byte must be 0")
        numbers = ops.unpack(np.frombuffer(packed, np.uint8), count, width)
        if clear is not None:
            self._in_clear = added(self._in_clear, self._weighed(*clear))
        self._total = self._total + numbers.astype(np.uint32)
        self._tags[client_id] = dict(zip(neighbours, tags, strict=True))

    def _weighed(self, weight: int, data: bytes) -> Sparse:
        """What a client sent in clear, times the weight that it says it has."""
        if not 1 <= weight <= self.terms.max_weight:
            raise ProtocolError(f"a weight must be from 1 to {self.terms.max_weight}, got {weight}")
        support, integers = read_clear(data, self.layout, self.terms, self._support, self.round)
        return Sparse(support, weight * integers)

    def _take_confirmations(self, message: bytes, client_id: int) -> None:
        self._check_asked(client_id, self._in_sum)
        beside = self._beside(client_id)
        opened = messages.open_message(message, messages.CONFIRMATIONS, len(beside) * TAG_BYTES, self.session)
        self._tags[client_id] = dict(zip(beside, opened.all_of(len(beside), TAG_BYTES), strict=True))

    def _take_reveals(self, message: bytes, client_id: int) -> None:
        self._check_asked(client_id, self._confirmed)
        delivered = self._delivered[client_id]
        most = SEED_BYTES + len(delivered) * (SEED_BYTES + 1)
        opened = messages.open_message(message, messages.REVEALS, most, self.session)
        own, shares = opened.chosen(len(delivered), SEED_BYTES, SEED_BYTES)
        for owner, share in ((client_id, own), *zip(delivered, shares, strict=True)):
            if share is not None:
                self._shares[owner][self._places[owner][client_id]] = share
