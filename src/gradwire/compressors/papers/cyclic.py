"""Cyclic: a support that all clients share and that moves on each round, the control RegTop-k needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_density
from gradwire.compressors.compressor import Round, Sharing, State, Vector
from gradwire.compressors.guarantee import Contractive, Guarantee
from gradwire.compressors.pipeline import Sparsifier
from gradwire.compressors.sparsify import num_kept_of, part_at
from gradwire.layout import Layout
from gradwire.payload import Cyclic, Floats, Part

__all__ = ["cyclic"]


@dataclass(frozen=True, repr=False)
class cyclic(Sparsifier):
    """Send the k coordinates whose turn it is, the same for all clients: no index travels.

    Round t sends coordinates t k to (t + 1) k - 1, modulo d: each is sent once in d / k rounds. With error feedback
    nothing is lost, only late, and since all clients send the same coordinates, their mean has no more entries than one
    of them sent. A byte budget cannot be met: all clients keep the same number.

    Args:
        density: k / d in (0, 1], k as for topk.

    Raises:
        ConfigError: on a density outside (0, 1].

    Example:
        >>> import numpy as np, gradwire as gw
        >>> client = gw.Client(gw.cyclic(0.5), gw.Layout.flat(4))
        >>> update = np.array([1, 2, 3, 4], np.float32)
        >>> [gw.decompress(gw.decode(client.compress(update, round=t))).tolist() for t in (0, 1)]
        [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]]

    Source: the control for RegTop-k (arXiv 2501.05633): all supports equal, as they become there, and nothing to agree
        on.
    Deviations: none.
    """

    density: float

    summary: ClassVar[str] = "the k coordinates whose turn it is, shared by all, no indices sent"
    citation: ClassVar[str] = "a control for RegTop-k, arXiv:2501.05633"
    typical: ClassVar[str] = "ef(cyclic(0.01))"

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", check_density(self.density))

    @property
    def scheduled(self) -> bool:
        """Whether what is kept depends on the round's number: yes."""
        return True

    @property
    def shares(self) -> Sharing:
        """The window is the same for all clients."""
        return "whole"

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Take the round's window."""
        d = update.size
        if d == 0:
            return [part_at(update, np.empty(0, np.int64))]
        support = self._support(d, round.index)
        return [Part(support, Floats(update[support.indices]))]

    def shared_support(self, layout: Layout, round: Round) -> NDArray[np.int64]:
        """Tell the round's window."""
        d = layout.num_parameters
        return self._support(d, round.index).indices if d else np.empty(0, np.int64)

    def _support(self, d: int, index: int) -> Cyclic:
        return Cyclic(d, num_kept_of(self.density, d), index)

    def most_kept(self, d: int) -> int:
        """Tell k."""
        return num_kept_of(self.density, d) if d else 0

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(0): what is sent is sent whole, but it may be small."""
        return Contractive(1.0 if self.density == 1 else 0.0)
