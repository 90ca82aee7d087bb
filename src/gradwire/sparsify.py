"""Sparsifiers: which coordinates are sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_bytes, check_density, check_flag, check_scope
from gradwire.compressor import Round, Vector
from gradwire.errors import ConfigError
from gradwire.guarantee import Contractive, Guarantee, Unbiased
from gradwire.kernels import ops
from gradwire.layout import Layout, check_finite
from gradwire.payload import SUPPORT_PURPOSE, Every, Explicit, Floats, Part, Seeded
from gradwire.pipeline import Sparsifier

__all__ = ["dense", "num_kept_of", "randk", "topk"]


def num_kept_of(density: float, d: int) -> int:
    """Return k = min(d, max(1, round(density * d))), with Python's round."""
    return min(d, max(1, round(density * d)))


@dataclass(frozen=True, repr=False)
class dense(Sparsifier):
    """Send every coordinate, losing nothing.

    Where leaving exact zeros out is cheaper the support is sparse; -0.0 then arrives as 0.0.

    Example:
        >>> import gradwire as gw
        >>> gw.dense().guarantee(10)
        Contractive(delta=1.0)

    Source: the uncompressed baseline, McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1.
    Deviations: none.
    """

    summary: ClassVar[str] = "every coordinate, lossless"
    citation: ClassVar[str] = "McMahan et al. 2017, arXiv:1602.05629"

    def sparsify(self, update: Vector, layout: Layout, round: Round, num_kept: int | None) -> list[Part]:
        """Keep everything."""
        return [Part(Every(update.size), Floats(update))]

    def guarantee(self, d: int) -> Guarantee:
        """Nothing is lost: Contractive(1)."""
        return Contractive(1.0)


@dataclass(frozen=True, repr=False)
class topk(Sparsifier):
    """Send the k entries of largest magnitude, exactly; ties go to the lower index, zeros are never sent.

    Args:
        density: k / d in (0, 1]: k = min(d, max(1, round(density * d))), in each tensor or block where scoped.
        num_bytes: instead of the density, the largest k whose whole encoded payload takes at most this
            many bytes, later stages and header included; spread evenly over tensors or blocks where scoped.
        scope: ``'model'`` selects over all parameters, ``'tensor'`` in each tensor apart, an integer in each
            block of that many coordinates.

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> import gradwire as gw
        >>> gw.topk(0.01).guarantee(1000)
        Contractive(delta=0.01)

    Source: seed glossary "Top-k Sparsification"; Stich et al. 2018 (arXiv 1809.07599), Definition 2.2.
    Deviations: none.
    """

    density: float | None = field(default=None, metadata={"positional": True})
    num_bytes: int | None = None
    scope: str | int = "model"

    summary: ClassVar[str] = "the k entries of largest magnitude"
    citation: ClassVar[str] = "Stich et al. 2018, arXiv:1809.07599"

    def __post_init__(self) -> None:
        if self.density is None and self.num_bytes is None:
            raise ConfigError("topk needs a density in (0, 1] or num_bytes, got neither")
        if self.density is not None:
            object.__setattr__(self, "density", check_density(self.density))
        object.__setattr__(self, "num_bytes", check_bytes(self.num_bytes))
        object.__setattr__(self, "scope", check_scope(self.scope))

    @property
    def budget(self) -> int | None:
        """Bytes the whole payload must fit in, or None."""
        return self.num_bytes

    @property
    def adjustable(self) -> bool:
        """Whether a byte budget can be met by keeping fewer: yes."""
        return True

    def sparsify(self, update: Vector, layout: Layout, round: Round, num_kept: int | None) -> list[Part]:
        """Select the largest magnitudes."""
        if self.scope == "model":
            return [_part(update, ops.topk(update, self._count(update.size, update.size, num_kept)), layout.cuts)]
        if self.scope == "tensor":
            pieces = [update[t.offset : t.stop] for t in layout.tensors if not t.buffer and t.num_elements]
            parts = [_part(x, ops.topk(x, self._count(x.size, update.size, num_kept))) for x in pieces]
            return parts or [_part(update, np.empty(0, np.int64))]
        block = int(self.scope)
        starts = range(0, update.size, block)
        chosen = [
            start + ops.topk(x, self._count(x.size, update.size, num_kept))
            for start in starts
            for x in [update[start : start + block]]
        ]
        return [_part(update, np.concatenate(chosen) if chosen else np.empty(0, np.int64))]

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(k / d); 2/3 of the density where scoped, the worst that rounding k can do; 0 under a budget."""
        if self.num_bytes is not None or self.density is None:
            return Contractive(0.0)
        if d == 0:
            return Contractive(1.0)
        return Contractive(num_kept_of(self.density, d) / d if self.scope == "model" else self.density * 2 / 3)

    def _count(self, length: int, d: int, num_kept: int | None) -> int:
        if length == 0 or num_kept == 0:
            return 0
        if num_kept is not None:
            return min(length, max(1, round(num_kept / d * length)))
        return num_kept_of(self.density or 0.0, length)


@dataclass(frozen=True, repr=False)
class randk(Sparsifier):
    """Send k coordinates drawn from a key both ends hold: no index travels.

    Args:
        density: k / d in (0, 1], k as for topk.
        unbiased: scale the values by d / k, so that the expectation is the update.
        shared: leave the client out of the key: one support for all clients of a round, so that
            payloads can be summed without being decoded.

    Raises:
        ConfigError: on a value outside these.

    Example:
        >>> import gradwire as gw
        >>> gw.randk(0.1, unbiased=True).guarantee(100)
        Unbiased(omega=9.0)

    Source: TCS (arXiv 2101.08837), Section I-B, rand-K with a common seed; Stich et al. 2018, Definition 2.1.
    Deviations: none.
    """

    density: float
    unbiased: bool = False
    shared: bool = False

    summary: ClassVar[str] = "k coordinates drawn from a seed, no indices sent"
    citation: ClassVar[str] = "Stich et al. 2018, arXiv:1809.07599"

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", check_density(self.density))
        check_flag("unbiased", self.unbiased)
        check_flag("shared", self.shared)

    @property
    def adjustable(self) -> bool:
        """Whether a byte budget can be met by keeping fewer: yes."""
        return True

    def sparsify(self, update: Vector, layout: Layout, round: Round, num_kept: int | None) -> list[Part]:
        """Draw the coordinates."""
        d = update.size
        count = num_kept if num_kept is not None else num_kept_of(self.density, d) if d else 0
        if count == 0:
            return [_part(update, np.empty(0, np.int64))]
        support = Seeded(d, count, round.key.derive(purpose=SUPPORT_PURPOSE, shared=self.shared))
        values = update[support.indices]
        if self.unbiased:
            with np.errstate(over="ignore"):
                values = values * np.float32(d / count)
            check_finite(values, "update scaled by d / k")
        return [Part(support, Floats(values))]

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(k / d) in expectation, or Unbiased(d / k - 1)."""
        if d == 0:
            return Contractive(1.0)
        kept = num_kept_of(self.density, d)
        return Unbiased(d / kept - 1) if self.unbiased else Contractive(kept / d)


def _part(update: Vector, chosen: NDArray[np.int64], cuts: tuple[int, ...] = ()) -> Part:
    if chosen.size == update.size:
        return Part(Every(update.size), Floats(update))
    return Part(Explicit(update.size, chosen, cuts), Floats(update[chosen]))
