"""Who shares masks with whom: all with all, or each with a few, as in SecAgg+; and for what a few are enough."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from gradwire.checks import check_integer
from gradwire.errors import ConfigError

__all__ = ["Chances", "chances", "draw_neighbours", "least_neighbours"]


def draw_neighbours(clients: Sequence[int], num_neighbours: int | None) -> dict[int, tuple[int, ...]]:
    """Put clients in a ring in random order and give each those nearest to it, half of them on either side.

    Args:
        clients: their numbers, all different.
        num_neighbours: how many each gets, an even number; all others where that is None or as many.

    Returns:
        Each client's neighbours, in order of their numbers; who is a neighbour of one has it for a neighbour.

    Example:
        >>> from gradwire.secagg.graph import draw_neighbours
        >>> draw_neighbours([5, 3, 9], None)[3]
        (5, 9)

    Source: Bell et al. 2020 (eprint 2020/704), the Harary graph with random nodes of Section 3.
    """
    ring, n = list(clients), len(clients)
    if num_neighbours is None or num_neighbours >= n - 1:
        return {client: tuple(sorted(set(ring) - {client})) for client in ring}
    secrets.SystemRandom().shuffle(ring)
    steps = [step for step in range(-(num_neighbours // 2), num_neighbours // 2 + 1) if step]
    return {client: tuple(sorted(ring[(i + step) % n] for step in steps)) for i, client in enumerate(ring)}


class Chances(NamedTuple):
    """How likely a drawn graph is not good enough: bounds from above.

    Attributes:
        exposed: the server and those who work with it learn more than the sum of all honest clients.
        lost: the round ends without a sum, since too few who hold shares of some client are left.
    """

    exposed: float
    lost: float


def chances(num_clients: int, num_neighbours: int, share_threshold: int, colluding: int, dropping: int) -> Chances:
    """Bound the chances that a random graph fails.

    Exposed: some client has ``share_threshold`` of its neighbours among the ``colluding``, whose shares bring back
    its secrets; or half of ``num_neighbours`` clients in a row are colluding or gone, without which the others are all
    connected. Lost: more of some client's neighbours are gone than its shares allow for. Both are sums over clients.

    Args:
        num_clients: clients of the round.
        num_neighbours: of each, an even number.
        share_threshold: shares that bring back a secret.
        colluding: clients that tell the server all they know.
        dropping: clients that do not answer to the end.

    Returns:
        The two chances, at most 1.

    Example:
        >>> from gradwire.secagg import chances
        >>> bounds = chances(1000, 100, 68, colluding=100, dropping=100)
        >>> bounds.exposed < 2**-40, bounds.lost < 2**-20
        (True, True)

    Source: Bell et al. 2020 (eprint 2020/704), Section 3: the three properties of a good graph.
    Deviations: the tails are added up exactly instead of bounded; one run of lost clients counts as a cut, though a
        ring needs two.
    """
    n, gone = num_clients, colluding + dropping
    caught = _tail(n - 1, colluding, num_neighbours, share_threshold)
    run = math.prod(max(0, gone - i) / (n - i) for i in range(num_neighbours // 2))
    missing = _tail(n - 1, dropping, num_neighbours, num_neighbours - share_threshold + 1)
    return Chances(min(1.0, n * (caught + run)), min(1.0, n * missing))


def least_neighbours(
    num_clients: int, colluding: int, dropping: int, exposed: float = 2.0**-40, lost: float = 2.0**-20
) -> tuple[int, int]:
    """Find the fewest neighbours that are enough.

    Args:
        num_clients: clients of a round, 3 or more.
        colluding: how many of them may work with the server.
        dropping: how many may not answer to the end.
        exposed: largest chance that more than the sum is learned.
        lost: largest chance that a round ends without a sum.

    Returns:
        ``num_neighbours`` and ``share_threshold`` for ``Terms``.

    Raises:
        ConfigError: where no number below ``num_clients`` is enough: leave ``num_neighbours`` out then.

    Example:
        >>> from gradwire.secagg import least_neighbours
        >>> k, t = least_neighbours(1000, colluding=50, dropping=100)
        >>> 30 < k < 100 and 2 * t > k + 1
        True
    """
    n = check_integer("num_clients", num_clients, 3)
    for name, number in (("colluding", colluding), ("dropping", dropping)):
        check_integer(name, number, 0, n)
    for k in range(2, n - 1, 2):
        for t in range((k + 1) // 2 + 1, k + 1):
            bounds = chances(n, k, t, colluding, dropping)
            if bounds.lost > lost:
                break  # more shares are only harder to get
            if bounds.exposed <= exposed:
                return k, t
    raise ConfigError(
        f"no number of neighbours below {n} keeps the chances at {exposed:.1e} and {lost:.1e} with {colluding} "
        f"colluding and {dropping} dropping clients: leave num_neighbours out"
    )


def _tail(population: int, marked: int, drawn: int, least: int) -> float:
    """The chance that at least so many of those drawn without replacement are marked."""
    ways = sum(
        math.comb(marked, i) * math.comb(population - marked, drawn - i)
        for i in range(max(0, least), min(drawn, marked) + 1)
    )
    return ways / math.comb(population, drawn)
