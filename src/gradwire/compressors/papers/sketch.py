"""Sketch: the blocks of coordinates in which all workers together have most, chosen by sums of a few numbers."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import LARGEST, check_density, check_integer
from gradwire.compressors.compressor import Round, State, Vector
from gradwire.compressors.guarantee import Contractive, Guarantee
from gradwire.compressors.pipeline import Sparsifier
from gradwire.compressors.sparsify import num_kept_of, part_at
from gradwire.compressors.summing import checked_sum
from gradwire.kernels import ops
from gradwire.payload import Part

__all__ = ["sketch"]


@dataclass(frozen=True, repr=False)
class sketch(Sparsifier):
    """Send the blocks of coordinates that hold most of the workers' updates, the same for all.

    The model is cut into blocks of as many coordinates each, the last one shorter. In ``phases`` the workers sum the
    lengths of their blocks, one number each, and then what they have in the blocks of the largest sums: nobody's
    support is its own. Where a host carries messages, each client's ``propose`` gives its own largest blocks, and what
    most of them name can be the ``support`` of all; without a support each client sends its own largest blocks. Ties go
    to the lower block; blocks of zeros are never sent.

    Args:
        density: which part of the blocks is sent, in (0, 1]: of n blocks min(n, max(1, round(density * n))).
        block: coordinates of a block, 1 or more.

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> client = gw.Client(gw.sketch(0.5, block=2), gw.Layout.flat(6))
        >>> gw.decompress(gw.decode(client.compress(np.array([1, 1, 0, 3, -2, 2], np.float32)))).tolist()
        [0.0, 0.0, 0.0, 3.0, -2.0, 2.0]

    Source: ARC-Top-K (arXiv 2510.26709): a support that follows from a sketch of all workers' gradients, summed.
    Deviations: what is summed is the length of each block at each worker, not a random projection of it, so that
        blocks in which workers cancel each other are not told apart from others.
    """

    density: float
    block: int = 64

    summary: ClassVar[str] = "the blocks in which all workers have most, by sums of their lengths"
    citation: ClassVar[str] = "ARC-Top-K, arXiv:2510.26709"
    typical: ClassVar[str] = "ef(sketch(0.01))"

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", check_density(self.density))
        object.__setattr__(self, "block", check_integer("block", self.block, 1))

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Take this worker's own largest blocks."""
        return [part_at(update, self.coordinates(self._lengths(update), update.size))]

    def most_kept(self, d: int) -> int:
        """Tell how many coordinates whole blocks have."""
        return min(d, self._num_kept(d) * self.block)

    def guarantee(self, d: int) -> Guarantee:
        """Contractive of 2/3 of the density, the worst that rounding the number of blocks can do; 1 where all are sent.

        The longest m of n blocks hold m / n of the energy or more.
        """
        return Contractive(1.0 if d == 0 or self.density == 1 else self.density * 2 / 3)

    @property
    def summable(self) -> bool:
        """Whether ``phases`` can be used: yes."""
        return True

    def phases(
        self, update: Vector, state: State, round: Round | None = None
    ) -> Generator[Vector, Vector, tuple[Vector, State]]:
        """Sum the lengths of blocks, then what is in the largest.

        Raises:
            UpdateError: where a sum is of another length, or is more than float32 holds.
        """
        layout, num_workers = state.layout, np.float32((round or Round()).num_workers)
        d = layout.num_parameters
        lengths = self._lengths(update[:d])
        support = self.coordinates(checked_sum((yield np.minimum(lengths, LARGEST / 2 / num_workers)), lengths.size), d)
        own = np.zeros(self.most_kept(d) + layout.d - d, np.float32)
        own[: support.size], own[own.size - (layout.d - d) :] = update[support], update[d:]
        total = checked_sum((yield own), own.size) / num_workers
        result = np.zeros(layout.d, np.float32)
        result[support], result[d:] = total[: support.size], total[own.size - (layout.d - d) :]
        return result, state

    def _num_kept(self, d: int) -> int:
        return num_kept_of(self.density, -(-d // self.block)) if d else 0

    def _lengths(self, update: Vector) -> Vector:
        """The Euclidean length of each block, cut off where float32 ends."""
        if not update.size:
            return np.empty(0, np.float32)
        squares = np.square(update, dtype=np.float64)
        lengths = np.sqrt(np.add.reduceat(squares, np.arange(0, update.size, self.block)))
        return np.minimum(lengths, LARGEST).astype(np.float32)

    def coordinates(self, lengths: Vector, d: int) -> NDArray[np.int64]:
        """Return the coordinates of the largest blocks, increasing.

        Args:
            lengths: (blocks,) float32, or whatever else says how large each block is; none of 0 is taken.
            d: coordinates of the model.
        """
        chosen = ops.topk(lengths, self._num_kept(d))
        found = (chosen[:, None] * self.block + np.arange(min(self.block, d))).reshape(-1)
        return found[found < d]
