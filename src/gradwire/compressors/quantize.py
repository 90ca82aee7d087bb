"""Quantizers: the numbers sent, in fewer bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import LARGEST, check_flag, check_integer, check_number, check_scope
from gradwire.compressors.compressor import Vector
from gradwire.compressors.guarantee import Contractive, Guarantee, Unbiased, Unknown
from gradwire.compressors.pipeline import Quantizer
from gradwire.compressors.rounding import as_levels, dither
from gradwire.errors import ConfigError
from gradwire.kernels import ops
from gradwire.payload import Floats, Levels, Part, Support, Symbols, block_ranks
from gradwire.rng import Key

__all__ = ["bf16", "fixed", "fp16", "fractional", "grid_steps", "qsgd", "sign", "ternary", "uniform"]

_TINY = 2.0**-149  # the smallest float32 above zero
_NORMAL = 2.0**-126  # the smallest of full precision
_LLOYD_ROUNDS = 8
_MAX_LEVELS = 1 << 15


class _Grids(NamedTuple):
    """The grids of a part, one for each of its scales."""

    steps: Vector  # (s,) float32 > 0
    zero_points: NDArray[np.uint16] | None = None  # (s,): the symbol of zero; None: it is in the middle


@dataclass(frozen=True, repr=False)
class fp16(Quantizer):
    """Send IEEE half precision, rounded to nearest even; beyond +-65504 the largest half is sent.

    Example:
        >>> import gradwire as gw
        >>> str(gw.topk(0.01) | gw.fp16())
        'topk(0.01) | fp16()'

    Source: IEEE 754-2019, binary16.
    Deviations: saturates instead of overflowing to infinity.
    """

    summary: ClassVar[str] = "half precision"
    citation: ClassVar[str] = "IEEE 754-2019"

    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Round to half precision."""
        return [
            Part(p.support, Floats(np.clip(p.numbers(), -65504, 65504).astype(np.float16), "float16")) for p in parts
        ]

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(0): the error is never longer than the input, and numbers below 2^-25 become 0."""
        return Contractive(0.0)


@dataclass(frozen=True, repr=False)
class bf16(Quantizer):
    """Send bfloat16: float32's exponents with 8 bits of precision, rounded to nearest even.

    Example:
        >>> import gradwire as gw
        >>> str(gw.bf16())
        'bf16()'

    Source: Kalamkar et al. 2019 (arXiv 1905.12322).
    Deviations: saturates instead of overflowing to infinity.
    """

    summary: ClassVar[str] = "bfloat16"
    citation: ClassVar[str] = "Kalamkar et al. 2019, arXiv:1905.12322"

    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Round to bfloat16."""
        return [Part(p.support, Floats(ops.bfloat16_bits(p.numbers()), "bfloat16")) for p in parts]

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(0): the error is never longer than the input, and the smallest denormals become 0."""
        return Contractive(0.0)


@dataclass(frozen=True, repr=False)
class uniform(Quantizer):
    """Send the nearest point of an evenly spaced grid that is symmetric about zero.

    From three bits on the grid has 2^bits - 1 points, zero among them, and ends at +-max|x|. One and two bits are too
    few to spend on zero: 2^bits points at odd multiples of half a step, and the step that fits best in least squares.
    For one bit that is the scaled sign +-mean|x| of TCS Eq. (11); for two it is found by Lloyd's alternation.
    With stochastic rounding the grid ends at +-max|x| whatever the bits.

    An affine grid has all 2^bits points, and one of them, the zero point, is zero: a point s is worth
    step * (s - zero point). Of the grids that reach from min(x, 0) to max(x, 0) it is the one with the smallest step,
    so that numbers of one sign alone have all points to themselves, and no number is off by more than half a step.
    Two points cannot reach to both sides of zero: one bit keeps the side that goes farther, at its end or as zero, and
    sends zero for the other side.

    Args:
        bits: 1 to 8 bits a number.
        stochastic: round up or down at random so that the expectation is exact.
        scope: what a scale covers: ``'tensor'``, ``'model'`` or a block of that many coordinates.
        affine: a grid that follows the smallest and the largest number instead of a symmetric one; it takes ``bits``
            more bits a scale.

    Raises:
        ConfigError: on a value outside these, or one affine bit with stochastic rounding, whose expectation could
            not be exact.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> gw.uniform(8, stochastic=True).guarantee(100).omega < 0.01
        True
        >>> compressor = gw.uniform(2, affine=True)
        >>> update = np.array([0.9, 2, 5.7, 4.2, -0.1], np.float32)
        >>> payload, _ = compressor.compress(update, compressor.init(gw.Layout.flat(5)))
        >>> [round(x, 2) for x in gw.decompress(payload).tolist()]
        [0.0, 2.85, 5.7, 2.85, 0.0]

    Source: glossary "Gradient Compression", quantized gradient communication; TCS (arXiv 2101.08837) Eq. (11);
        Jacob et al. 2018 (arXiv 1712.05877), Eq. (1), for the affine grid.
    Deviations: a grid ends at the largest float32 at most: one-bit grids at half of it, and of an affine one, whose
        ends may lie up to a step beyond the numbers, the step shrinks where one would not be finite. Jacob et al.
        take the step (max - min) / (2^bits - 1), which may leave one end half a step outside.
    """

    bits: int
    stochastic: bool = False
    scope: str | int = "tensor"
    affine: bool = False

    summary: ClassVar[str] = "evenly spaced integers with a scale"
    citation: ClassVar[str] = "Alistarh et al. 2017, arXiv:1610.02132"
    typical: ClassVar[str] = "uniform(8)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_integer("bits", self.bits, 1, 8))
        check_flag("stochastic", self.stochastic)
        object.__setattr__(self, "scope", check_scope(self.scope))
        check_flag("affine", self.affine)
        if self.affine and self.stochastic and self.bits == 1:
            raise ConfigError(f"bits must be 2 or more for an affine grid with stochastic rounding, got {self.bits}")

    @property
    def num_symbols(self) -> int:
        """Grid points: 2^bits, or one less where a symmetric grid has zero among them."""
        return (1 << self.bits) - (1 if self.bits > 2 and not self.affine else 0)

    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Round to the grid."""
        block = self.scope if isinstance(self.scope, int) else 0
        numbers = [p.numbers() for p in parts]
        if self.scope == "model":
            grids = [self._grids(np.concatenate(numbers), None)] * len(parts)
        else:
            grids = [self._grids(x, _ranks(p.support, block)) for x, p in zip(numbers, parts, strict=True)]
        supports = [p.support for p in parts]
        return _on_grid(supports, numbers, grids, self.num_symbols, block, key if self.stochastic else None)

    def guarantee(self, d: int) -> Guarantee:
        """Tell what d numbers under one scale lose at most, with h = (num_symbols - 1) / 2 steps to the largest.

        With a zero on the grid the largest of the d numbers is exact, and of the others, each t steps long, rounding
        loses no more than it does at some t <= 1/2. To nearest that is t^2, and the worst input has them all at
        t = 1/2: Contractive(1 / (1 + (d - 1) / 4 h^2)). At random the variance is t (1 - t) and the worst t is
        1 / (1 + q), q^2 = 1 + (d - 1) / h^2: Unbiased((q - 1) / 2). Both are attained.

        Without a zero: at random, 1/4 a number for d - 1 zeros, Unbiased((d - 1) / 4 h^2). For one bit to nearest
        |x - q|^2 = |x|^2 - |x|_1^2 / d, hence Contractive(1 / d), attained by a single spike; for two Lloyd's
        alternation starts from there and no step of it loses.

        An affine grid has h + 1 points to one side of zero and h to the other, h = 2^(bits - 1) - 1, or is more
        uneven. With the smallest step one end of the numbers is a point, some a of them from zero, and the other end
        lies b + t steps from zero, b whole and t <= 1, with a + b >= 2 h. So a^2 + b^2 >= 2 h^2; the end at b + t
        loses no more than a number of t steps would; and all of the above holds of it and the d - 2 others with 2 h^2
        in the place of h^2. For one bit the end is exact and all others may be lost: Contractive(1 / d), attained by
        a number and d - 1 times its negative.
        """
        others = max(min(d, self.scope) if isinstance(self.scope, int) else d, 1) - 1
        half = (self.num_symbols - 1) / 2
        square = 2 * math.floor(half) ** 2 if self.affine else half * half
        if not self.stochastic:
            coarse = self.bits <= (1 if self.affine else 2)
            return Contractive(1 / (1 + others / (1 if coarse else 4 * square)))
        if self.affine or self.num_symbols % 2:
            return Unbiased((math.sqrt(1 + others / square) - 1) / 2)
        return Unbiased(others / (4 * square))

    def _grids(self, numbers: Vector, ranks: NDArray[np.int64] | None) -> _Grids:
        """Grid of all numbers together, or of each block."""
        if ranks is None:
            ranks = np.zeros(numbers.size, np.int64)
        num_scales = int(ranks[-1]) + 1
        half = (self.num_symbols - 1) / 2
        starts = np.searchsorted(ranks, np.arange(num_scales))
        if self.affine:
            lowest, highest = (f.reduceat(numbers, starts) for f in (np.minimum, np.maximum))
            return _affine_grids(np.maximum(-lowest, 0), np.maximum(highest, 0), self.num_symbols - 1)
        magnitudes = np.abs(numbers)
        if self.bits <= 2 and not self.stochastic:
            return _Grids(grid_steps(_fitted_steps(magnitudes, ranks, num_scales, 2 ** (self.bits - 1)), half))
        return _Grids(_steps_to(np.maximum.reduceat(magnitudes, starts), half))


@dataclass(frozen=True, repr=False)
class sign(Quantizer):
    """Send the sign of each number, and for each scale the mean magnitude: the scaled sign.

    Q(u_i) = |u|_1 / d * sign(u_i): one bit a number, or less where signs run in a row. It is ``uniform(1)`` under its
    own name.

    Args:
        scope: what a mean covers: ``'tensor'``, ``'model'`` or a block of that many coordinates.

    Raises:
        ConfigError: on another scope.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> compressor = gw.sign()
        >>> update = np.array([1, -2, 3, 2], np.float32)
        >>> payload, _ = compressor.compress(update, compressor.init(gw.Layout.flat(4)))
        >>> gw.decompress(payload).tolist()
        [2.0, -2.0, 2.0, 2.0]

    Source: TCS (arXiv 2101.08837) Eq. (11); Karimireddy et al. 2019 (arXiv 1901.09847), Algorithm 1, whose
        contraction |x|_1^2 / (d |x|^2) is that of ``guarantee``.
    Deviations: a zero among the numbers counts as positive; a mean above half of the largest float32 is sent as
        that half.
    """

    scope: str | int = "tensor"

    summary: ClassVar[str] = "signs with their mean magnitude"
    citation: ClassVar[str] = "TCS, arXiv:2101.08837, Eq. (11)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scope", check_scope(self.scope))

    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Keep the signs."""
        return uniform(1, scope=self.scope).quantize(parts, key)

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(1 / d), d the numbers under one scale: |x - Q(x)|^2 = |x|^2 - |x|_1^2 / d."""
        return uniform(1, scope=self.scope).guarantee(d)


@dataclass(frozen=True, repr=False)
class qsgd(Quantizer):
    """Send each number as a random multiple of |x|_2 / levels whose expectation it is.

    Q_s(x_i) = |x|_2 sign(x_i) xi_i, where xi_i is l / s or (l + 1) / s for the l with l <= s |x_i| / |x|_2 <= l + 1,
    the upper one with probability s |x_i| / |x|_2 - l. One norm a part.

    Args:
        levels: s, 1 to 32,767: the grid has 2 s + 1 points.

    Raises:
        ConfigError: on a number outside that.

    Example:
        >>> import gradwire as gw
        >>> gw.qsgd(8).guarantee(64)
        Unbiased(omega=0.25)

    Source: Alistarh et al. 2017 (arXiv 1610.02132), Section 3.1, the quantizer of Eq. (4).
    Deviations: symbols are coded as everywhere in gradwire instead of in Elias code; the norm is of a part (all that
        one ``topk`` keeps, or a whole model), not of a bucket.
    """

    levels: int

    summary: ClassVar[str] = "random rounding to multiples of the norm's fraction"
    citation: ClassVar[str] = "Alistarh et al. 2017, arXiv:1610.02132"
    typical: ClassVar[str] = "qsgd(16)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", check_integer("levels", self.levels, 1, 32767))

    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Round to the grid, up or down at random."""
        numbers = [p.numbers() for p in parts]
        norms = [np.sqrt(np.sum(np.square(x, dtype=np.float64), keepdims=True)) for x in numbers]
        grids = [_Grids(_steps_to(norm, self.levels)) for norm in norms]
        return _on_grid([p.support for p in parts], numbers, grids, 2 * self.levels + 1, 0, key)

    def guarantee(self, d: int) -> Guarantee:
        """Unbiased(sqrt(d) / s - 1) for s < sqrt(d) / 2, else Unbiased(d / 4 s^2).

        Both are below min(d / s^2, sqrt(d) / s), Lemma 3.1's. A number of t steps has variance at most t (1 - t) for
        t <= 1/2, else 1/4: a concave function of t^2, and all t^2 add up to s^2, so that equal ones are the worst.
        """
        root = math.sqrt(max(d, 1)) / self.levels
        return Unbiased(root - 1 if root > 2 else root * root / 4)


@dataclass(frozen=True, repr=False)
class ternary(Quantizer):
    """Send -1, 0 or 1 times the largest magnitude, at random, with the number as expectation.

    s * sign(x_i) * b_i with s = max|x| and P(b_i = 1) = |x_i| / s. One scale a part.

    Example:
        >>> import gradwire as gw
        >>> gw.ternary().guarantee(9)
        Unbiased(omega=1.0)

    Source: Wen et al. 2017, TernGrad (arXiv 1705.07878), Section 3.1.
    Deviations: the scale is of a part, not of a layer, and each client's own (no scaler sharing); no gradient
        clipping.
    """

    summary: ClassVar[str] = "-1, 0 or 1 times the largest magnitude, at random"
    citation: ClassVar[str] = "Wen et al. 2017, arXiv:1705.07878"

    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Draw the signs."""
        numbers = [p.numbers() for p in parts]
        grids = [_Grids(_steps_to(np.abs(x).max(keepdims=True), 1)) for x in numbers]
        return _on_grid([p.support for p in parts], numbers, grids, 3, 0, key)

    def guarantee(self, d: int) -> Guarantee:
        """Unbiased((sqrt(d) - 1) / 2): the variance is max|x| |x|_1 - |x|^2.

        With the largest 1 and the d - 1 others all t, which is the worst way to spread them, it is
        (d - 1) (t - t^2) / (1 + (d - 1) t^2) times |x|^2, and t = 1 / (1 + sqrt(d)) makes the most of that.
        """
        return Unbiased((math.sqrt(max(d, 1)) - 1) / 2)


@dataclass(frozen=True, repr=False)
class fixed(Quantizer):
    """Send integers on one public grid, the same for every client and round, so that they can be added up.

    The step is clip / (2^(bits - 1) - 1); a number is sent as the nearest multiple of it, ties to even, and beyond
    +-clip as the last one. A sum of clients' integers, each symbol less 2^(bits - 1) - 1, times the step is the sum of
    what they sent. With stochastic rounding a number within +-clip is its own expectation; under ``ef`` rounding to
    nearest is better, for what it loses is kept.

    Args:
        bits: 2 to 16 bits a number.
        clip: the largest magnitude that can be sent.
        stochastic: round up or down at random so that the expectation is exact.

    Raises:
        ConfigError: on a value outside these, or a clip whose step float32 cannot hold in full precision.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> compressor = gw.fixed(4, clip=7.0)
        >>> update = np.array([1.2, -9, 0.4, 6.6], np.float32)
        >>> payload, _ = compressor.compress(update, compressor.init(gw.Layout.flat(4)))
        >>> gw.decompress(payload).tolist()
        [1.0, -7.0, 0.0, 7.0]

    Source: Sapio et al. 2019, SwitchML (arXiv 1903.06701): integers under a scale that all workers share.
    Deviations: nothing is negotiated: what is beyond the clip is lost, unless error feedback keeps it.
    """

    bits: int
    clip: float
    stochastic: bool = False

    summary: ClassVar[str] = "integers under a public scale, which add up"
    citation: ClassVar[str] = "Sapio et al. 2019, arXiv:1903.06701"
    typical: ClassVar[str] = "fixed(8, 1.0)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_integer("bits", self.bits, 2, 16))
        object.__setattr__(self, "clip", check_number("clip", self.clip))
        least = self._half * _NORMAL
        if not least <= self.clip <= LARGEST:
            raise ConfigError(f"clip must be in [{least!r}, {LARGEST!r}], got {self.clip!r}")
        check_flag("stochastic", self.stochastic)

    @property
    def num_symbols(self) -> int:
        """Grid points: 2^bits - 1, zero in the middle."""
        return 2 * self._half + 1

    @property
    def step(self) -> float:
        """What one integer is worth: the same float32 number for every client."""
        return float(grid_steps(np.array([self.clip / self._half]), self._half)[0])

    @property
    def _half(self) -> int:
        return int((1 << (self.bits - 1)) - 1)

    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Round to the grid."""
        scale = np.array([self.step], np.float32)
        end = scale[0] * np.float32(self._half)
        numbers = [np.clip(p.numbers(), -end, end) for p in parts]
        draws = key if self.stochastic else None
        return _on_grid([p.support for p in parts], numbers, [_Grids(scale)] * len(parts), self.num_symbols, 0, draws)

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(0): every number moves towards zero or to its nearest point, and a small one becomes 0.

        Nothing where rounding is random: a small number may become a whole step.
        """
        return Unknown() if self.stochastic else Contractive(0.0)


@dataclass(frozen=True, repr=False)
class fractional(Quantizer):
    """Send which of P intervals a magnitude lies in, and its sign; the receiver takes the interval's mean.

    With edges e_p = u_max (u_min / u_max)^(p / P), p = 0 .. P, u_max and u_min the largest and the smallest magnitude
    that is not zero, interval p is (e_p, e_(p-1)], and the last one holds u_min too. Q(u_i) = mu_p sign(u_i), mu_p the
    mean of the |u| in the interval of |u_i|. One table of means a part.

    What Eq. (12) leaves open:

    - An exact zero is in no interval and arrives as zero; it costs a level only where there is one.
    - Magnitudes that are all equal, and a single one, are all in the last interval and arrive exactly.
    - Intervals with nothing in them take no bytes: the table has the means of the others, largest first.
    - Edges are rounded to float32, so that a magnitude is compared with them exactly.

    Args:
        intervals: P, 1 to 32,768.

    Raises:
        ConfigError: on a number outside that.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> compressor = gw.fractional(2)
        >>> update = np.array([8, -6, 1, 0, 3], np.float32)
        >>> payload, _ = compressor.compress(update, compressor.init(gw.Layout.flat(5)))
        >>> [round(x, 3) for x in gw.decompress(payload).tolist()]
        [5.667, -5.667, 1.0, 0.0, 5.667]

    Source: TCS (arXiv 2101.08837) Eq. (12).
    Deviations: Eq. (12) prints the ends of an interval swapped, and both closed. With 32,768 intervals there is no
        level left for zeros: they join the last interval, and its mean.
    """

    intervals: int

    summary: ClassVar[str] = "one of P magnitudes on a logarithmic scale, and a sign"
    citation: ClassVar[str] = "TCS, arXiv:2101.08837, Eq. (12)"
    typical: ClassVar[str] = "topk(0.01) | fractional(16)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "intervals", check_integer("intervals", self.intervals, 1, _MAX_LEVELS))

    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Find intervals and their means."""
        return [Part(p.support, _by_interval(p.numbers(), self.intervals)) for p in parts]

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(1 / (d - 1)); 1 / d for one interval.

        |x - Q(x)|^2 = |x|^2 - sum_p n_p mu_p^2 and n_p mu_p^2 = (sum of |u| in p)^2 / n_p is at least its sum of
        squares over n_p; u_max and u_min are in different intervals, hence n_p < d, or all are equal and exact.
        """
        return Contractive(1 / max(d - (1 < self.intervals < _MAX_LEVELS), 1))


def _by_interval(numbers: Vector, intervals: int) -> Levels:
    """Quantize the numbers of one part by Eq. (12) of TCS."""
    magnitudes = np.abs(numbers)
    largest, smallest = float(np.maximum.reduce(magnitudes)), float(np.minimum.reduce(magnitudes))
    smallest = smallest or float(magnitudes.min(where=magnitudes > 0, initial=np.float32(largest)))
    # p - 1 for interval p: the inner edges that are not below the magnitude. A zero comes after all of them.
    edges = _inner_edges(largest, smallest, intervals)
    found, counts, sums = ops.find_intervals(magnitudes, edges, min(intervals, _MAX_LEVELS - 1))
    return as_levels(found, sums / np.maximum(counts, 1), numbers, counts)


def _inner_edges(largest: float, smallest: float, intervals: int) -> NDArray[np.float64]:
    """e_(P-1) .. e_1, increasing; logarithms keep the ratio of a denormal to 1e38 from vanishing.

    Rounded to 40 bits, so that an edge which is a float32 number is that number and not a last bit beside it.
    """
    if largest == 0:
        return np.empty(0)
    top, bottom = math.log2(largest), math.log2(smallest)
    powers = [math.exp2(top + p / intervals * (bottom - top)) for p in range(intervals - 1, 0, -1)]
    mantissas, exponents = np.frexp(np.minimum(powers, LARGEST))
    edges: NDArray[np.float64] = np.ldexp(np.rint(np.ldexp(mantissas, 40)), exponents - 40)
    return edges


def _on_grid(
    supports: list[Support],
    numbers: list[Vector],
    grids: list[_Grids],
    num_symbols: int,
    block: int,
    key: Key | None,
) -> list[Part]:
    """Round each part's numbers to its grid: to nearest, or at random where a key is given."""
    draws = [None] * len(numbers) if key is None else dither(key, [x.size for x in numbers])
    out = []
    for support, x, grid, u in zip(supports, numbers, grids, draws, strict=True):
        scales, zeros = grid
        if block:
            ranks = block_ranks(support, block)
            scales, zeros = scales[ranks], None if zeros is None else zeros[ranks]
        symbols = ops.quantize_grid(x, scales, num_symbols, u, zeros)
        out.append(Part(support, Symbols(symbols, num_symbols, grid.steps, block, grid.zero_points)))
    return out


def _affine_grids(below: Vector, above: Vector, last: int) -> _Grids:
    """Grids of ``last`` steps that reach from -below to above, both (s,) and 0 or more, by the smallest step.

    With real numbers for zero points the smallest step would be (below + above) / last: it is one of the two integers
    beside that zero point.
    """
    low, high = below.astype(np.float64), above.astype(np.float64)
    if last == 1:
        low, high = np.where(low > high, low, 0.0), np.where(low > high, 0.0, high)
    split = last * low / np.maximum(low + high, _TINY)
    zeros = np.clip([np.floor(split), np.ceil(split)], low > 0, last - (high > 0))
    steps = np.maximum(low / np.maximum(zeros, 1), high / np.maximum(last - zeros, 1))
    zero = np.where(steps[0] <= steps[1], zeros[0], zeros[1])
    half = np.maximum(zero, last - zero)
    return _Grids(grid_steps(_whole_units(steps.min(axis=0)), half), zero.astype(np.uint16))


def _steps_to(ends: NDArray[np.floating], half: float) -> Vector:
    """Steps of grids that reach ``ends`` in ``half`` steps: (s,) float32."""
    return grid_steps(_whole_units(np.asarray(ends, np.float64) / half), half)


def _whole_units(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round steps among denormals up: the one nearest can be a third short, and beyond a grid's end all is cut off."""
    return np.where(steps < _NORMAL, np.ceil(steps / _TINY) * _TINY, steps)


def grid_steps(steps: NDArray[np.float64], half: float | NDArray[np.float64]) -> Vector:
    """Round steps to float32 > 0 whose grid, ``half`` steps to either side, is finite.

    Args:
        steps: (s,) float64.
        half: how far the grid goes, in steps.

    Returns:
        (s,) float32.
    """
    step = np.clip(steps, _TINY, LARGEST / np.maximum(half, 1.0)).astype(np.float32)
    with np.errstate(over="ignore"):
        overflows = np.isinf(step * np.asarray(half, np.float32))
    return np.where(overflows, np.nextafter(step, np.float32(0)), step).astype(np.float32)


def _fitted_steps(
    magnitudes: Vector, ranks: NDArray[np.int64], num_scales: int, num_levels: int
) -> NDArray[np.float64]:
    """Least-squares step of each group for magnitudes at (i + 1/2) steps, i < num_levels, by Lloyd's alternation."""
    counts = np.bincount(ranks, minlength=num_scales)
    step = 2 * np.bincount(ranks, weights=magnitudes, minlength=num_scales) / counts  # the fit of a single level
    for _ in range(0 if num_levels == 1 else _LLOYD_ROUNDS):
        with np.errstate(divide="ignore", invalid="ignore"):
            levels = np.minimum(np.nan_to_num(np.floor(magnitudes / step[ranks])), num_levels - 1) + 0.5
        fit = np.bincount(ranks, weights=magnitudes * levels, minlength=num_scales)
        step = fit / np.bincount(ranks, weights=levels * levels, minlength=num_scales)
    return step


def _ranks(support: Support, block: int) -> NDArray[np.int64] | None:
    return block_ranks(support, block) if block else None
