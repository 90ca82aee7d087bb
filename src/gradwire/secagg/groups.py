"""Groups: a round of many clients as several secure sums of a few each, and what these come to together."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from gradwire.checks import check_integer
from gradwire.errors import ProtocolError, TooFewClients
from gradwire.layout import Layout
from gradwire.secagg.numbers import Integers, Sparse, added, mean_blob
from gradwire.secagg.server import SecureServer, SecureSum
from gradwire.secagg.terms import Terms

__all__ = ["SecureGroups", "deal"]

_Member = TypeVar("_Member")
_Found = TypeVar("_Found")


def deal(members: Sequence[_Member], terms: Terms) -> tuple[tuple[_Member, ...], ...]:
    """Deal a round's clients to as few groups as the terms allow, at random.

    Args:
        members: the clients, or what stands for them; all different.
        terms: of each group: no more than ``num_clients``, and no fewer than ``threshold`` where there are several.

    Returns:
        The groups, whose sizes differ by 1 at most. Where the clients are too many for some groups and too few for one
        more, those that are too many, fewer than ``threshold``, are in none and sit the round out.

    Example:
        >>> import gradwire as gw
        >>> from gradwire.secagg import Terms, deal
        >>> terms = Terms(num_clients=6, threshold=4, grid=gw.fixed(8, 1.0))
        >>> [len(group) for group in deal(range(15), terms)], [len(group) for group in deal(range(7), terms)]
        ([5, 5, 5], [6])
    """
    drawn, most = list(members), terms.num_clients
    secrets.SystemRandom().shuffle(drawn)
    count = max(1, -(-len(drawn) // most))
    if count > 1 and len(drawn) // count < terms.threshold:
        count -= 1
        drawn = drawn[: count * most]
    return tuple(tuple(drawn[i::count]) for i in range(count))


class SecureGroups:
    """The server's side of a round of many clients, in groups that are a secure sum each.

    A number takes the bits of its group's largest sum, not of all clients', and a client keys and shares for its group
    alone. The price: the server learns each group's sum. Goes as ``SecureServer`` does, but that a client's keys come
    with the group it was invited to. A group below the threshold has no sum, and the others go on; what its clients
    sent is not in ``SecureSum.clients``.

    Args:
        terms: of each group.
        layout: the model's, without running statistics.
        num_groups: how many there are: ``deal`` says who is in which.
        round: the round the sums are for.

    Raises:
        ConfigError: on an argument of another kind.

    Attributes:
        invitations: of each group, for those that were dealt to it.

    Example:
        >>> import gradwire as gw
        >>> from gradwire.secagg import SecureClient, SecureGroups, Terms, deal
        >>> terms, layout = Terms(num_clients=3, threshold=2, grid=gw.fixed(8, 1.0)), gw.Layout.flat(4)
        >>> dealt = deal(range(6), terms)
        >>> groups = SecureGroups(terms, layout, len(dealt))
        >>> clients = {i: SecureClient(terms, layout, i) for i in range(6)}
        >>> for group, members in enumerate(dealt):
        ...     for i in members:
        ...         groups.receive(clients[i].join(groups.invitations[group]), i, group)
        >>> sorted(groups.rosters())
        [0, 1, 2, 3, 4, 5]

    Source: Bonawitz et al. 2019 (arXiv 1902.01046), Section 6: a sum for each group of at least k clients.
    Deviations: the groups are drawn by the operating system's generator, anew for each round.
    """

    def __init__(self, terms: Terms, layout: Layout, num_groups: int, round: int = 0) -> None:
        count = check_integer("num_groups", num_groups, 1, 2**20)
        servers = [SecureServer(terms, layout, round) for _ in range(count)]
        self.invitations = tuple(server.invitation for server in servers)
        self._servers = servers
        self._left = dict(enumerate(servers))
        self._lost: dict[int, ProtocolError] = {}
        self._group_of: dict[int, int] = {}

    @property
    def lost(self) -> Mapping[int, ProtocolError]:
        """The groups that have no sum, and why."""
        return MappingProxyType(self._lost)

    @property
    def ready(self) -> tuple[int, ...]:
        """Clients that answered the step under way, of groups in which enough did, in order of their numbers."""
        answered = [server.answered for server in self._left.values()]
        return tuple(sorted(i for of in answered if len(of) >= self._servers[0].terms.threshold for i in of))

    def receive(self, message: bytes, client_id: int, group: int | None = None) -> None:
        """Take in what a client answered.

        Args:
            message: from a ``SecureClient``.
            client_id: whose, as the transport vouches for it.
            group: which it was invited to, with its keys; it stays in that one.

        Raises:
            DecodeError: on a damaged message.
            Duplicate: on one that was taken in before.
            ProtocolError: on whatever ``SecureServer.receive`` refuses, a client of no group, or of another one.
                Nothing is changed in any of these cases.
        """
        known = self._group_of.get(client_id)
        number = known if group is None else check_integer("group", group, 0, len(self._servers) - 1)
        if number is None:
            raise ProtocolError(f"client {client_id} is in no group")
        if known not in (None, number):
            raise ProtocolError(f"client {client_id} is in group {known}, it cannot be in group {number} as well")
        self._servers[number].receive(message, client_id)
        self._group_of[client_id] = number

    def rosters(self) -> dict[int, bytes]:
        """End the first step, as ``SecureServer.rosters`` does; TooFewClients where no group is left."""
        return _of_all(self._each(SecureServer.rosters))

    def deliveries(self, support: Integers) -> dict[int, bytes]:
        """End the second step, as ``SecureServer.deliveries`` does; TooFewClients where no group is left."""
        return _of_all(self._each(lambda server: server.deliveries(support)))

    def survivors(self) -> dict[int, bytes]:
        """End the third step, as ``SecureServer.survivors`` does; TooFewClients where no group is left."""
        return _of_all(self._each(SecureServer.survivors))

    def confirmed(self) -> dict[int, bytes]:
        """End the fourth step, as ``SecureServer.confirmed`` does; TooFewClients where no group is left."""
        return _of_all(self._each(SecureServer.confirmed))

    def close_round(self) -> SecureSum:
        """End the last step: take the masks off the sum of each group, and add them.

        Returns:
            The sum over all groups that came to one.

        Raises:
            TooFewClients: where no group has a sum.
            ProtocolError: where the only group has none, for what ``SecureServer.close_round`` names; or out of turn.
        """
        sums = list(self._each(SecureServer.close_round).values())
        self._left = {}
        support, integers = added(*(Sparse(total.support, total.integers) for total in sums))
        server = self._servers[0]
        sum_weights = sum(total.sum_weights for total in sums)
        return SecureSum(
            integers,
            support,
            sum_weights,
            sum(total.num_at_clip for total in sums),
            tuple(sorted(client for total in sums for client in total.clients)),
            mean_blob(integers, support, sum_weights, server.layout, server.terms, server.round),
        )

    def _each(self, end: Callable[[SecureServer], _Found]) -> dict[int, _Found]:
        """End a step in every group that is left."""
        if not self._left:
            raise ProtocolError("these secure sums are over: each round takes new SecureGroups")
        found: dict[int, _Found] = {}
        for group, server in list(self._left.items()):
            try:
                found[group] = end(server)
            except ProtocolError as error:
                if not server.is_over:  # out of turn, and so are all
                    raise
                self._lost[group] = error
                del self._left[group]
        if found:
            return found
        if len(self._servers) == 1:
            raise self._lost[0]
        reasons = "; ".join(f"group {group}: {error}" for group, error in sorted(self._lost.items()))
        raise TooFewClients(f"none of {len(self._servers)} groups has a sum: {reasons}")


def _of_all(messages: Mapping[int, Mapping[int, bytes]]) -> dict[int, bytes]:
    """What to send to whom, of all groups."""
    return {client: message for told in messages.values() for client, message in told.items()}
