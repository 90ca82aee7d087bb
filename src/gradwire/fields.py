"""The field: how large numbers mostly are in each row and column of a model's matrices, in half octaves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import ConfigError

__all__ = ["MOST", "Field", "num_levels"]

MOST = 31
"""Levels are -31 to 31."""


@dataclass(frozen=True, eq=False)
class Field:
    """Levels of rows and columns, which a server ships and coders lean on.

    The coordinates come in stretches, each a matrix row by row, its last row perhaps not whole. A coordinate's level is
    that of its row plus that of its column: half octaves above the mean magnitude of all. A stretch of a single row has
    a level for it and none for its columns.

    Attributes:
        lengths: of the stretches, in order, 1 or more each.
        columns: of each stretch, 1 to its length.
        levels: int8, -31 to 31: for each stretch those of its rows, then those of its columns; not to be modified.

    Example:
        >>> import numpy as np
        >>> from gradwire.fields import Field
        >>> field = Field((6, 2), (3, 2), np.array([1, -1, 0, 0, 4, -2], np.int8))
        >>> field.length, field.num_stretches, field.at(np.arange(8)).tolist()
        (8, 2, [1, 1, 5, -1, -1, 3, -2, -2])
    """

    lengths: tuple[int, ...]
    columns: tuple[int, ...]
    levels: NDArray[np.int8]

    def __post_init__(self) -> None:
        shapes = list(zip(self.lengths, self.columns, strict=False))
        if not shapes or len(self.lengths) != len(self.columns) or not all(1 <= c <= n for n, c in shapes):
            raise ConfigError(f"stretches need a length and 1 to as many columns, got {shapes}")
        needed = sum(num_levels(n, c) for n, c in shapes)
        if self.levels.shape != (needed,) or self.levels.dtype != np.int8:
            raise ConfigError(
                f"levels must be ({needed},) int8 for these stretches, got {self.levels.shape} {self.levels.dtype}"
            )
        if needed and not -MOST <= int(self.levels.min()) <= int(self.levels.max()) <= MOST:
            raise ConfigError(f"levels must be in [-{MOST}, {MOST}]")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Field) and self.digest == other.digest

    __hash__ = None  # type: ignore[assignment]

    @property
    def length(self) -> int:
        """Number of coordinates."""
        return sum(self.lengths)

    @property
    def num_stretches(self) -> int:
        """Number of stretches."""
        return len(self.lengths)

    @cached_property
    def digest(self) -> bytes:
        """Four bytes that name it: SHA-256 of the stretches and levels."""
        shapes = np.array([self.lengths, self.columns], "<u8").T.tobytes()
        return hashlib.sha256(shapes + self.levels.tobytes()).digest()[:4]

    def at(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look levels of coordinates up.

        Args:
            indices: (n,) int64, each in [0, length).

        Returns:
            (n,) int64.
        """
        found = np.zeros(indices.size, np.int64)
        start = first = 0
        for length, columns in zip(self.lengths, self.columns, strict=True):
            inside = np.flatnonzero((indices >= start) & (indices < start + length))
            row, column = np.divmod(indices[inside] - start, columns)
            found[inside] = self.levels[first + row]
            rows = -(-length // columns)
            if rows > 1:
                found[inside] += self.levels[first + rows + column]
            start, first = start + length, first + num_levels(length, columns)
        return found


def num_levels(length: int, columns: int) -> int:
    """Return how many levels a stretch has: its rows' and, where they are two or more, its columns'."""
    rows = -(-length // columns)
    return rows + columns if rows > 1 else 1
