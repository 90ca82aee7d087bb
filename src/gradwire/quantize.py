"""Quantizers: the numbers sent, in fewer bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_flag, check_integer, check_scope
from gradwire.compressor import Vector
from gradwire.guarantee import Contractive, Guarantee, Unbiased
from gradwire.kernels import ops
from gradwire.payload import Floats, Part, Support, Symbols, block_ranks
from gradwire.pipeline import Quantizer
from gradwire.rng import Key

__all__ = ["bf16", "fp16", "uniform"]

_TINY = np.float32(2.0**-149)
_LLOYD_ROUNDS = 8


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

    Source: seed glossary "Gradient Compression", quantized gradient communication; TCS (arXiv 2101.08837) Eq. (11).
    Deviations: none.
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
            common = self._scales(np.concatenate(numbers), None)
            scales = [common] * len(parts)
        else:
            scales = [self._scales(x, _ranks(p.support, block)) for x, p in zip(numbers, parts, strict=True)]
        dither: list[Vector | None] = [None] * len(parts)
        if self.stochastic:
            drawn = key.derive(purpose="dither").uniform(sum(x.size for x in numbers))
            dither = list(np.split(drawn, np.cumsum([x.size for x in numbers])[:-1]))
        out = []
        for x, p, s, u in zip(numbers, parts, scales, dither, strict=True):
            per_value = s[block_ranks(p.support, block)] if block else s
            symbols = ops.quantize_centred(x, per_value, self.num_symbols, u)
            out.append(Part(p.support, Symbols(symbols, self.num_symbols, s, block)))
        return out

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(1 / d): the largest entry is exact, or |x|_1^2 >= |x|^2; stochastic: from rounding's variance.

        For two bits 1 / 9d: Lloyd's first fit has (x.q)^2 / |q|^2 >= (|x|_1 / 2)^2 / (9 d / 4), later ones only gain.
        """
        if self.stochastic:
            half = (self.num_symbols - 1) / 2
            return Unbiased(d / (4 * half * half))
        return Contractive(1 / max(d, 1) / (9 if self.bits == 2 else 1))

    def _scales(self, numbers: Vector, ranks: NDArray[np.int64] | None) -> Vector:
        """Grid step of all numbers together, or of each block: (s,) float32 > 0."""
        magnitudes = np.abs(numbers)
        if ranks is None:
            ranks = np.zeros(magnitudes.size, np.int64)
        num_scales = int(ranks[-1]) + 1
        half = (self.num_symbols - 1) / 2
        if self.bits <= 2 and not self.stochastic:
            step = _fitted_steps(magnitudes, ranks, num_scales, 2 ** (self.bits - 1))
        else:
            largest = np.maximum.reduceat(magnitudes, np.searchsorted(ranks, np.arange(num_scales)))
            step = largest.astype(np.float64) / half
        step = np.clip(step, _TINY, float(np.finfo(np.float32).max) / max(half, 1.0)).astype(np.float32)
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
