"""Leader: one of the workers, another one each round, chooses the coordinates that all of them send."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_density
from gradwire.compressors.compressor import Round, State, Vector
from gradwire.compressors.guarantee import Guarantee
from gradwire.compressors.pipeline import Sparsifier
from gradwire.compressors.sparsify import num_kept_of, topk
from gradwire.compressors.summing import checked_sum
from gradwire.errors import ConfigError, UpdateError
from gradwire.kernels import ops
from gradwire.payload import Part
from gradwire.rng import Key

__all__ = ["leader", "leader_of"]

_DIGIT = 4096  # coordinates travel as two numbers, each exact in float32


def leader_of(clients: Sequence[int], seed: int, round: int) -> int:
    """Draw the client that leads a round.

    Args:
        clients: numbers of those that take part, in any order.
        seed: of the run.
        round: the round.

    Returns:
        One of them, each with the same chance.

    Raises:
        ConfigError: where there is none.

    Example:
        >>> from gradwire.compressors.papers.leader import leader_of
        >>> leader_of([4, 7, 9], seed=0, round=3) in (4, 7, 9)
        True
    """
    if not clients:
        raise ConfigError("a leader is drawn of one client or more, got none")
    return sorted(clients)[int(Key(seed, round, purpose="leader").choice(len(clients), 1)[0])]


@dataclass(frozen=True, repr=False)
class leader(Sparsifier):
    """Send the coordinates that the round's leader has its largest entries at, the same for all.

    In ``phases`` the leader, drawn from the key that all workers share, tells its top k, and all send what they have
    there: no worker's support is its own, and sums have k entries, not up to k for each worker. Where a host carries
    messages, ``Client.propose`` of the client that ``leader_of`` names gives the coordinates, and all clients take them
    as ``support`` in ``Client.compress``; without a support each sends its own top k.

    With ``ef`` residuals of the workers grow alike, so that the largest entries of one are large at the others too.

    Args:
        density: k / d in (0, 1], k as for topk.

    Raises:
        ConfigError: on a density outside (0, 1].

    Example:
        >>> import numpy as np, gradwire as gw
        >>> layout, spec = gw.Layout.flat(4), gw.leader(0.5)
        >>> clients = [gw.Client(spec, layout, client_id=i) for i in range(2)]
        >>> updates = np.array([[4, 0, 1, 3], [1, 5, 6, 2]], np.float32)
        >>> support = clients[1].propose(updates[1])
        >>> blobs = [client.compress(u, support=support) for client, u in zip(clients, updates)]
        >>> [gw.decompress(gw.decode(blob)).tolist() for blob in blobs]
        [[0.0, 0.0, 1.0, 0.0], [0.0, 5.0, 6.0, 0.0]]

    Source: Chen et al. 2020, ScaleCom (arXiv 2104.11125), Section 2, the cyclic local top-k (CLT-k).
    Deviations: the leader is drawn instead of taking turns, so that clients may come and go; top-k is exact, and over
        the whole model.
    """

    density: float

    summary: ClassVar[str] = "the largest entries of one worker, drawn each round, for all"
    citation: ClassVar[str] = "Chen et al. 2020, arXiv:2104.11125"
    typical: ClassVar[str] = "ef(leader(0.01))"

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", check_density(self.density))

    @property
    def _own(self) -> topk:
        return topk(self.density)

    @property
    def adjustable(self) -> bool:
        """Whether a byte budget can be met by keeping fewer: yes."""
        return True

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Select the largest magnitudes: what the leader does."""
        return self._own.sparsify(update, state, round, num_kept)

    def num_largest(self, state: State, round: Round) -> int | None:
        """Tell k."""
        return self._own.num_largest(state, round)

    def most_kept(self, d: int) -> int:
        """Tell k."""
        return self._own.most_kept(d)

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(k / d) of the leader's own update; of the others' nothing is promised but that all is kept."""
        return self._own.guarantee(d)

    @property
    def led(self) -> bool:
        """Whether one client proposes the coordinates of all: yes."""
        return True

    @property
    def summable(self) -> bool:
        """Whether ``phases`` can be used: yes."""
        return True

    def phases(
        self, update: Vector, state: State, round: Round | None = None
    ) -> Generator[Vector, Vector, tuple[Vector, State]]:
        """Sum the leader's coordinates, which the others add zeros to, and then what all have there.

        Raises:
            UpdateError: where a sum is of another length, is no list of coordinates, or is more than float32 holds.
        """
        round, layout = round or Round(), state.layout
        d, num_workers = layout.num_parameters, np.float32(round.num_workers)
        k = num_kept_of(self.density, d) if d else 0
        told = np.zeros(2 * k, np.float32)
        if leader_of(range(round.num_workers), round.key.seed, round.key.round) == (round.key.client or 0):
            chosen = ops.topk(update[:d], k) + 1  # 0 is no coordinate
            told[: chosen.size], told[k : k + chosen.size] = chosen // _DIGIT, chosen % _DIGIT
        support = _coordinates((yield told), k, d)
        own = np.zeros(k + layout.d - d, np.float32)
        own[: support.size], own[k:] = update[support], update[d:]
        total = checked_sum((yield own), own.size)
        result = np.zeros(layout.d, np.float32)
        result[support], result[d:] = total[: support.size] / num_workers, total[k:] / num_workers
        return result, state


def _coordinates(heard: Vector, k: int, d: int) -> NDArray[np.int64]:
    """The coordinates that a leader told, or UpdateError."""
    heard = checked_sum(heard, 2 * k)
    numbers = heard[:k].astype(np.int64) * _DIGIT + heard[k:].astype(np.int64)
    support = numbers[numbers > 0] - 1
    if not ((np.diff(support) > 0).all() and (support < d).all()):
        raise UpdateError(f"the leader's coordinates must be increasing and below {d}: did two workers lead?")
    return support
