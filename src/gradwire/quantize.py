"""Quantizers: the numbers sent, in fewer bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_flag, check_integer, check_number, check_scope
from gradwire.compressor import Vector
from gradwire.errors import ConfigError
from gradwire.guarantee import Contractive, Guarantee, Unbiased
from gradwire.kernels import ops
from gradwire.payload import Floats, Levels, Part, Support, Symbols, block_ranks
from gradwire.pipeline import Quantizer
from gradwire.rng import Key

__all__ = ["bf16", "fixed", "fp16", "fractional", "qsgd", "sign", "ternary", "uniform"]

_TINY = 2.0**-149  # the smallest float32 above zero
_NORMAL = 2.0**-126  # the smallest of full precision
_LARGEST = float(np.finfo(np.float32).max)
_LLOYD_ROUNDS = 8
_MAX_LEVELS = 1 << 15


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

    Args:
        bits: 1 to 8 bits a number.
        stochastic: round up or down at random so that the expectation is exact.
        scope: what a scale covers: ``'tensor'``, ``'model'`` or a block of that many coordinates.

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> import gradwire as gw
        >>> gw.uniform(8, stochastic=True).guarantee(100).omega < 0.01
        True

    Source: glossary "Gradient Compression", quantized gradient communication; TCS (arXiv 2101.08837) Eq. (11).
    Deviations: a step is at most the largest float32: one-bit grids end at half of it.
    """

    bits: int
    stochastic: bool = False
    scope: str | int = "tensor"

    summary: ClassVar[str] = "evenly spaced integers with a scale"
    citation: ClassVar[str] = "Alistarh et al. 2017, arXiv:1610.02132"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_integer("bits", self.bits, 1, 8))
        check_flag("stochastic", self.stochastic)
        object.__setattr__(self, "scope", check_scope(self.scope))

    @property
    def num_symbols(self) -> int:
        """Grid points: odd, so that zero is one of them, except for one and two bits."""
        return (1 << self.bits) - (1 if self.bits > 2 else 0)

    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Round to the grid."""
        block = self.scope if isinstance(self.scope, int) else 0
        numbers = [p.numbers() for p in parts]
        if self.scope == "model":
            scales = [self._scales(np.concatenate(numbers), None)] * len(parts)
        else:
            scales = [self._scales(x, _ranks(p.support, block)) for x, p in zip(numbers, parts, strict=True)]
        supports = [p.support for p in parts]
        return _on_grid(supports, numbers, scales, self.num_symbols, block, key if self.stochastic else None)

    def guarantee(self, d: int) -> Guarantee:
        """Tell what d numbers under one scale lose at most, with h = (num_symbols - 1) / 2 steps to the largest.

        With a zero on the grid the largest of the d numbers is exact, and of the others, each t steps long, rounding
        loses no more than it does at some t <= 1/2. To nearest that is t^2, and the worst input has them all at
        t = 1/2: Contractive(1 / (1 + (d - 1) / 4 h^2)). At random the variance is t (1 - t) and the worst t is
        1 / (1 + q), q^2 = 1 + (d - 1) / h^2: Unbiased((q - 1) / 2). Both are attained.

        Without a zero: at random, 1/4 a number for d - 1 zeros, Unbiased((d - 1) / 4 h^2). For one bit to nearest
        |x - q|^2 = |x|^2 - |x|_1^2 / d, hence Contractive(1 / d), attained by a single spike; for two Lloyd's
        alternation starts from there and no step of it loses.
        """
        others = max(min(d, self.scope) if isinstance(self.scope, int) else d, 1) - 1
        half = (self.num_symbols - 1) / 2
        if not self.stochastic:
            return Contractive(1 / (1 + others / (4 * half * half if self.bits > 2 else 1)))
        if self.num_symbols % 2:
            return Unbiased((math.sqrt(1 + others / (half * half)) - 1) / 2)
        return Unbiased(others / (4 * half * half))

    def _scales(self, numbers: Vector, ranks: NDArray[np.int64] | None) -> Vector:
        """Grid step of all numbers together, or of each block: (s,) float32 > 0."""
        magnitudes = np.abs(numbers)
        if ranks is None:
            ranks = np.zeros(magnitudes.size, np.int64)
        num_scales = int(ranks[-1]) + 1
        half = (self.num_symbols - 1) / 2
        if self.bits <= 2 and not self.stochastic:
            return _steps(_fitted_steps(magnitudes, ranks, num_scales, 2 ** (self.bits - 1)), half)
        return _steps_to(np.maximum.reduceat(magnitudes, np.searchsorted(ranks, np.arange(num_scales))), half)


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", check_integer("levels", self.levels, 1, 32767))

    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Round to the grid, up or down at random."""
        numbers = [p.numbers() for p in parts]
        norms = [np.sqrt(np.sum(np.square(x, dtype=np.float64), keepdims=True)) for x in numbers]
        scales = [_steps_to(norm, self.levels) for norm in norms]
        return _on_grid([p.support for p in parts], numbers, scales, 2 * self.levels + 1, 0, key)

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
        scales = [_steps_to(np.abs(x).max(keepdims=True), 1) for x in numbers]
        return _on_grid([p.support for p in parts], numbers, scales, 3, 0, key)

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
    what they sent.

    Args:
        bits: 2 to 16 bits a number.
        clip: the largest magnitude that can be sent.

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

    summary: ClassVar[str] = "integers under a public scale, which add up"
    citation: ClassVar[str] = "Sapio et al. 2019, arXiv:1903.06701"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_integer("bits", self.bits, 2, 16))
        object.__setattr__(self, "clip", check_number("clip", self.clip))
        least = self._half * _NORMAL
        if not least <= self.clip <= _LARGEST:
            raise ConfigError(f"clip must be in [{least!r}, {_LARGEST!r}], got {self.clip!r}")

    @property
    def num_symbols(self) -> int:
        """Grid points: 2^bits - 1, zero in the middle."""
        return 2 * self._half + 1

    @property
    def step(self) -> float:
        """What one integer is worth: the same float32 number for every client."""
        return float(_steps(np.array([self.clip / self._half]), self._half)[0])

    @property
    def _half(self) -> int:
        return int((1 << (self.bits - 1)) - 1)

    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Round to the grid."""
        scale = np.array([self.step], np.float32)
        end = scale[0] * np.float32(self._half)
        numbers = [np.clip(p.numbers(), -end, end) for p in parts]
        return _on_grid([p.support for p in parts], numbers, [scale] * len(parts), self.num_symbols, 0, None)

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(0): every number moves towards zero or to its nearest point, and a small one becomes 0."""
        return Contractive(0.0)


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
    largest = float(magnitudes.max())
    smallest = float(magnitudes.min(where=magnitudes > 0, initial=np.float32(largest)))
    # p - 1 for interval p: the inner edges that are not below the magnitude. A zero comes after all of them.
    edges = _inner_edges(largest, smallest, intervals)
    found = edges.size - np.searchsorted(edges, magnitudes)
    found[magnitudes == 0] = min(intervals, _MAX_LEVELS - 1)
    counts = np.bincount(found)
    used = counts > 0
    sums = np.bincount(found, weights=magnitudes)
    symbols = 2 * (np.cumsum(used) - 1)[found] + (numbers < 0)
    return Levels(symbols.astype(np.uint16), (sums[used] / counts[used]).astype(np.float32))


def _inner_edges(largest: float, smallest: float, intervals: int) -> NDArray[np.float64]:
    """e_(P-1) .. e_1, increasing; logarithms keep the ratio of a denormal to 1e38 from vanishing.

    Rounded to 40 bits, so that an edge which is a float32 number is that number and not a last bit beside it.
    """
    if largest == 0:
        return np.empty(0)
    top, bottom = math.log2(largest), math.log2(smallest)
    logs = (top + p / intervals * (bottom - top) for p in range(intervals - 1, 0, -1))
    mantissas, exponents = np.frexp(np.minimum([math.exp2(x) for x in logs], _LARGEST))
    edges: NDArray[np.float64] = np.ldexp(np.rint(np.ldexp(mantissas, 40)), exponents - 40)
    return edges


def _on_grid(
    supports: list[Support],
    numbers: list[Vector],
    scales: list[Vector],
    num_symbols: int,
    block: int,
    key: Key | None,
) -> list[Part]:
    """Round each part's numbers to its grid: to nearest, or at random where a key is given."""
    dither: list[Vector | None] = [None] * len(numbers)
    if key is not None:
        sizes = [x.size for x in numbers]
        dither = list(np.split(key.derive(purpose="dither").uniform(sum(sizes)), np.cumsum(sizes)[:-1]))
    out = []
    for support, x, s, u in zip(supports, numbers, scales, dither, strict=True):
        per_value = s[block_ranks(support, block)] if block else s
        symbols = ops.quantize_centred(x, per_value, num_symbols, u)
        out.append(Part(support, Symbols(symbols, num_symbols, s, block)))
    return out


def _steps_to(ends: NDArray[np.floating], half: float) -> Vector:
    """Steps of grids that reach ``ends`` in ``half`` steps: (s,) float32.

    Among denormals the step is rounded up: the one nearest can be a third short, and what lies beyond a grid's end is
    cut off.
    """
    steps = np.asarray(ends, np.float64) / half
    return _steps(np.where(steps < _NORMAL, np.ceil(steps / _TINY) * _TINY, steps), half)


def _steps(steps: NDArray[np.float64], half: float) -> Vector:
    """Round steps to float32 > 0 whose grid, ``half`` steps to either side, is finite."""
    step = np.clip(steps, _TINY, _LARGEST / max(half, 1.0)).astype(np.float32)
    with np.errstate(over="ignore"):
        overflows = np.isinf(step * np.float32(half))
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
