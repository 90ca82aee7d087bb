"""Keeping and rounding by what it costs: the fewest bits for the squared error, or the least error for the bits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gradwire.checks import LARGEST, check_bytes, check_number
from gradwire.compressors.compressor import Round, State, Vector, largest_magnitude
from gradwire.compressors.guarantee import Contractive, Guarantee
from gradwire.compressors.pipeline import Sparsifier
from gradwire.compressors.quantize import grid_steps
from gradwire.compressors.sparsify import part_at
from gradwire.errors import ConfigError
from gradwire.kernels import ops
from gradwire.layout import Layout
from gradwire.payload import Explicit, Part, Symbols
from gradwire.wire.contexts import stretches

__all__ = ["rd"]

_PRICE = 33  # of 1/256 bit, in squares of 1/256 step: 0.13 square steps a bit, by measurement
_MOST = 4095  # steps to the largest number


@dataclass(frozen=True, repr=False)
class rd(Sparsifier):
    """Send what lowers the squared error by more than its bits are worth, rounded to one step by the same measure.

    D + slope |x|^2 / d * (bits) is made small, D the squared error: each number becomes its nearest multiple of the
    step, one less, or nothing, and each 16 numbers in a row of a tensor what these say or nothing at all, at the prices
    that the coder's contexts ask just then. The step is the one that suits the slope; the multiples are then worth what
    fits the numbers best in least squares. The largest number is sent in any case where nothing else is.

    The code is that of ``context()``, where it is shorter: rows and columns of a layer that hold much make what lies
    there cheap, so that more of it is sent. Under ``ef`` what was too dear stays in the residual.

    Args:
        slope: the squared error that a bit must save, as a multiple of the mean square: on updates of small networks
            0.1 sends a quarter of the numbers, 1 a few percent, 10 some tenths of one.
        num_bytes: instead, as fine a step as lets the whole encoded payload take at most this many bytes, header
            included: about twelve times the work.

    Raises:
        ConfigError: on a value outside these, or not exactly one of the two.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> compressor = gw.rd(0.1)
        >>> update = np.array([8, 0.25, -8, 0.125], np.float32)
        >>> payload, _ = compressor.compress(update, compressor.init(gw.Layout.flat(4)))
        >>> [round(x, 1) for x in gw.decompress(payload).tolist()]
        [8.0, 0.0, -8.0, 0.0]

    Source: Sullivan and Wiegand 1998 (doi:10.1109/79.733497), Lagrangian rate-distortion optimisation; Kirchhoffer et
        al. 2021 (doi:10.1109/TCSVT.2021.3095970) choose weights of networks so, as NNCodec does.
    Deviations: greedy, without a trellis; the step follows from the slope; blocks are weighed against none.
    """

    slope: float | None = field(default=None, metadata={"positional": True})
    num_bytes: int | None = None

    summary: ClassVar[str] = "what lowers the squared error by more than its bits are worth"
    citation: ClassVar[str] = "Sullivan and Wiegand 1998, doi:10.1109/79.733497"
    typical: ClassVar[str] = "rd(1.0)"

    def __post_init__(self) -> None:
        if (self.slope is None) == (self.num_bytes is None):
            got = "neither" if self.slope is None else "both"
            raise ConfigError(f"rd needs either a slope above 0 or num_bytes, got {got}")
        object.__setattr__(self, "num_bytes", check_bytes(self.num_bytes))
        if self.slope is not None:
            object.__setattr__(self, "slope", check_number("slope", self.slope))
            if not 0 < self.slope <= LARGEST:
                raise ConfigError(f"slope must be in (0, {LARGEST!r}], got {self.slope!r}")

    @property
    def budget(self) -> int | None:
        """Bytes the whole payload must fit in, or None."""
        return self.num_bytes

    @property
    def adjustable(self) -> bool:
        """Whether a byte budget can be met by keeping fewer: yes."""
        return True

    @property
    def own_coder(self) -> str:
        """The code whose prices were asked."""
        return "context"

    @property
    def quantizes(self) -> bool:
        """Whether numbers are rounded here: yes."""
        return True

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Choose a step, then a multiple of it for each number."""
        largest = largest_magnitude(update)
        if largest == 0 or num_kept == 0:
            return [part_at(update, np.empty(0, np.int64))]
        if num_kept is not None:
            rank = update.size - num_kept
            step = float(np.partition(np.abs(update), rank)[rank]) / 0.6
        else:
            square = float(np.sum(np.square(update, dtype=np.float64))) / update.size
            step = math.sqrt((self.slope or 0.0) * square * 256 / _PRICE)
        return [_rounded(update, largest, max(step, largest / _MOST), state.layout)]

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(1 / 50 d) under a slope, 0 under a budget.

        A number sent as q steps has q - 1/2 or more, so that the least-squares fit saves a quarter of the square of the
        step, or more, times the largest q^2. The largest number is at most q + 3/2 steps, or, where it is not sent but
        another is, below 3 1/2, for 2 1/2 with q = 2 or more is sent at any price: it saves its own square over 49, and
        |x|^2 is at most d times that. One number alone is exact.
        """
        return Contractive(0.0 if self.slope is None or d == 0 else 1 / (50 * d))


def _rounded(update: Vector, largest: float, step: float, layout: Layout) -> Part:
    """The part that sends an update in multiples of a step."""
    amounts = np.multiply(update, 256 / step, dtype=np.float64)
    amounts = np.rint(amounts, out=amounts).astype(np.int32)
    most = max(1, (round(largest * (256 / step)) + 128) >> 8)
    hints = (layout.cuts, layout.columns)
    levels, written = ops.choose_levels(amounts, *stretches(Explicit(update.size, _NONE, *hints)), most, _PRICE)
    chosen = np.flatnonzero(levels != 0)
    if not chosen.size:
        chosen = np.array([int(np.abs(update).argmax())])
        symbols = np.where(update[chosen] > 0, 2, 0).astype(np.uint16)
        scale = grid_steps(np.array([largest]), 1)
        return Part(Explicit(update.size, chosen, *hints), Symbols(symbols, 3, scale))
    sent = levels[chosen].astype(np.int64)
    fit = int(sent @ amounts[chosen]) / int(sent @ sent)  # both exact, so that it is the same everywhere
    scale = grid_steps(np.array([fit * step / 256]), most)
    support = Explicit(update.size, chosen, *hints, written.tobytes())
    return Part(support, Symbols((sent + most).astype(np.uint16), 2 * most + 1, scale))


_NONE = np.empty(0, np.int64)
