"""Terms: what all ends of a secure sum agreed on before; nothing of it is taken from a message."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np

from gradwire.checks import check_integer
from gradwire.compressors.quantize import fixed
from gradwire.errors import ConfigError
from gradwire.wire.reader import varint

__all__ = ["BEYOND", "FEWEST", "Terms"]

BEYOND = ("clip", "refuse")
FEWEST = 3
"""Of fewer clients' sum each could tell the only other one's part."""
_WIDEST = 32


@dataclass(frozen=True)
class Terms:
    """What all ends of a secure sum agree on.

    Numbers travel as the integers of ``grid``, times the client's weight, modulo 2^``width``. The width follows from
    the rest so that no sum can overflow, whatever the clients send: 2^(width - 1) is more than ``num_clients`` x
    ``max_weight`` x the grid's last integer.

    Attributes:
        num_clients: most clients of a sum, 3 or more; ``SecureGroups`` adds up a round of more.
        threshold: fewest clients whose sum is made known; more than half of ``num_clients``.
        grid: what clients quantize with; its ``bits`` and ``clip`` count, how it rounds is each client's own choice.
        max_weight: a client's weight is an integer from 1 to this.
        num_neighbours: how many others each client shares masks and secrets with, an even number; None: all of them.
        share_threshold: how many shares bring back a client's secret; more than half of those who hold one, so that
            no server gets both of a client's secrets by telling some that it is there and others that it is not.
            None: ``threshold``, or with ``num_neighbours`` two thirds of the holders.
        beyond: what is done about numbers at the last point of the grid, where those beyond the clip go: ``'clip'``
            counts them, ``'refuse'`` has the client send nothing.
        most_in_clear: most numbers that a client sends for everybody to see, and with them its weight: those of its
            payload outside of the coordinates that all share, as ``tcs`` has some. 0: a payload that has any is
            refused. docs/security.md, "In clear, on request".

    Raises:
        ConfigError: on a value outside these, or a sum that would take more than 32 bits a number.

    Example:
        >>> import gradwire as gw
        >>> from gradwire.secagg import Terms
        >>> terms = Terms(num_clients=100, threshold=67, grid=gw.fixed(8, 1.0))
        >>> terms.width, terms.share_threshold
        (15, 67)
    """

    num_clients: int
    threshold: int
    grid: fixed
    max_weight: int = 1
    num_neighbours: int | None = None
    share_threshold: int | None = None
    beyond: str = "clip"
    most_in_clear: int = 0

    def __post_init__(self) -> None:
        n = check_integer("num_clients", self.num_clients, FEWEST, 2**20)
        if not isinstance(self.grid, fixed):
            raise ConfigError(f"grid must be a fixed quantizer such as fixed(8, 1.0), got {self.grid!r}")
        check_integer("threshold", self.threshold, n // 2 + 1, n)
        check_integer("max_weight", self.max_weight, 1, 2**31)
        check_integer("most_in_clear", self.most_in_clear, 0, 2**31)
        if self.beyond not in BEYOND:
            raise ConfigError(f"beyond must be 'clip' or 'refuse', got {self.beyond!r}")
        if self.num_neighbours is not None:
            check_integer("num_neighbours", self.num_neighbours, 2, n - 1)
            if self.num_neighbours % 2:
                raise ConfigError(f"num_neighbours must be even, got {self.num_neighbours}")
        most = self.most_holders
        if self.share_threshold is None:
            wanted = self.threshold if self.num_neighbours is None else 2 * most // 3 + 1
            object.__setattr__(self, "share_threshold", wanted)
        elif self.num_neighbours is None and self.share_threshold != self.threshold:
            raise ConfigError(
                f"share_threshold is the threshold where all are neighbours, got {self.share_threshold!r}"
            )
        check_integer("share_threshold", self.share_threshold, most // 2 + 1, most)
        if self.width > _WIDEST:
            raise ConfigError(
                f"a sum of {n} clients x weight {self.max_weight} x {self.largest} takes {self.width} bits, at most "
                f"{_WIDEST} are possible: fewer bits, clients or a smaller max_weight"
            )

    @property
    def most_holders(self) -> int:
        """Most clients that hold a share of one client's secrets, itself among them."""
        return self.num_clients if self.num_neighbours is None else self.num_neighbours + 1

    @property
    def num_shares(self) -> int:
        """How many shares bring back a secret."""
        return self.share_threshold or self.threshold

    @property
    def largest(self) -> int:
        """The grid's last integer."""
        return (self.grid.num_symbols - 1) // 2

    @property
    def width(self) -> int:
        """Bits of a number in a sum."""
        return 1 + (self.num_clients * self.max_weight * self.largest).bit_length()

    @property
    def most_at_clip(self) -> int:
        """A client that has more numbers at the last point of the grid counts as having so many."""
        return self.max_weight * self.largest

    @property
    def digest(self) -> bytes:
        """Eight bytes that name these terms: docs/format.md, "Secure aggregation"."""
        numbers = (self.num_clients, self.threshold, self.num_neighbours or 0, self.num_shares, self.max_weight)
        rest = (self.grid.bits, BEYOND.index(self.beyond), self.most_in_clear)
        data = b"".join(map(varint, (*numbers, *rest)))
        return hashlib.sha256(data + struct.pack("<f", np.float32(self.grid.step))).digest()[:8]
