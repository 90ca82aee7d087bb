"""Natural compression: random powers of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwire.compressors.compressor import Vector
from gradwire.compressors.guarantee import Guarantee, Unbiased
from gradwire.compressors.pipeline import Quantizer
from gradwire.compressors.rounding import as_levels, dither
from gradwire.payload import Levels, Part
from gradwire.rng import Key

__all__ = ["natural"]

_LOWEST, _HIGHEST = -149, 127  # exponents of float32's powers of two, denormal ones included
_POWERS = np.ldexp(1.0, np.arange(_LOWEST, _HIGHEST + 1))


@dataclass(frozen=True, repr=False)
class natural(Quantizer):
    """Send the power of two below or above each number, at random, with the number as expectation.

    A number x with 2^a <= |x| < 2^(a + 1) becomes sign(x) 2^(a + 1) with probability |x| / 2^a - 1, which is its
    mantissa, else sign(x) 2^a. Signs and exponents travel, those that occur in a table of levels. Zeros stay zeros.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> compressor = gw.natural()
        >>> update = np.array([4, -0.5, 0, 3], np.float32)
        >>> payload, _ = compressor.compress(update, compressor.init(gw.Layout.flat(4)))
        >>> sent = gw.decompress(payload)
        >>> sent[:3].tolist(), sent[3] in (2, 4)
        ([4.0, -0.5, 0.0], True)

    Source: Horvath et al. 2019 (arXiv 1905.10988), natural compression, whose second moment is at most 9/8 of |x|^2.
    Deviations: float32 has no power of two above 2^127; the upper neighbour of larger numbers is the largest magnitude
        of their part. Exponents are coded as all symbols are instead of taking eight bits each.
    """

    summary: ClassVar[str] = "one of the two nearest powers of two, at random"
    citation: ClassVar[str] = "Horvath et al. 2019, arXiv:1905.10988"

    def quantize(self, parts: list[Part], key: Key) -> list[Part]:
        """Round to powers of two."""
        draws = dither(key, [part.support.num_kept for part in parts])
        return [Part(p.support, _rounded(p.numbers(), u)) for p, u in zip(parts, draws, strict=True)]

    def guarantee(self, d: int) -> Guarantee:
        """Unbiased(1/8): a number 1 + m times its power has variance m (1 - m), most beside (1 + m)^2 at m = 1/3."""
        return Unbiased(0.125)


def _rounded(numbers: Vector, draws: Vector) -> Levels:
    magnitudes = np.abs(numbers)
    largest = magnitudes.max()
    halves, exponents = np.frexp(magnitudes)  # of denormals too; a magnitude is a half, of [1/2, 1), times 2^exponent
    chances = 2 * halves - 1  # exact, and -1 for zeros
    if largest > _POWERS[-1]:
        above = magnitudes > _POWERS[-1]
        chances[above] = (magnitudes[above] - _POWERS[-1]) / (largest - _POWERS[-1])
    found = exponents - (_LOWEST + 1) + (draws < chances)
    found[magnitudes == 0] = _POWERS.size + 1
    return as_levels(found.astype(np.uint16), np.concatenate([_POWERS, [largest, 0]]), numbers)
