"""Sparsifiers: which coordinates are sent."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import LARGEST, check_bytes, check_density, check_flag, check_number, check_scope
from gradwire.compressors.compressor import Round, Sharing, State, Vector
from gradwire.compressors.guarantee import Absolute, Contractive, Guarantee, Unbiased
from gradwire.compressors.pipeline import Sparsifier, listing_pays
from gradwire.compressors.references import Reference
from gradwire.errors import ConfigError
from gradwire.kernels import ops
from gradwire.layout import Layout, check_finite
from gradwire.payload import SUPPORT_PURPOSE, Every, Explicit, Floats, Part, Payload, Seeded
from gradwire.rng import Key

__all__ = ["dense", "largest_of", "listed_part", "num_kept_of", "part_at", "randk", "threshold", "topk"]

_TOLERANCE = 1.5


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

    @property
    def shares(self) -> Sharing:
        """Every client sends every coordinate."""
        return "whole"

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Keep everything."""
        return [Part(Every(update.size), Floats(update))]

    def guarantee(self, d: int) -> Guarantee:
        """Nothing is lost: Contractive(1)."""
        return Contractive(1.0)

    def compress_listed(self, vector: Reference, state: State, round: Round | None = None) -> tuple[Payload, State]:
        """Turn a vector that is given by its few numbers into the payload of ``compress``, without making it dense.

        Args:
            vector: finite, of the model's length; not modified.
            state: from ``init``.
            round: what both ends agree on.

        Returns:
            The payload that ``compress`` makes of ``vector.vector``, and the state.

        Example:
            >>> import numpy as np, gradwire as gw
            >>> vector = gw.Reference(4, np.float32([2, 0]), np.array([1, 3]))
            >>> state = gw.dense().init(gw.Layout.flat(4))
            >>> gw.dense().compress_listed(vector, state)[0] == gw.dense().compress(vector.vector, state)[0]
            True
        """
        layout = state.layout
        if vector.indices is None or layout.num_parameters < layout.d:
            return self.compress(vector.vector, state, round)
        sent = vector.numbers != 0
        support, numbers = Explicit(layout.d, vector.indices[sent]), Floats(vector.numbers[sent])
        dense_bytes = np.dtype(np.float32).itemsize * layout.d
        everywhere = support.num_kept == layout.d
        if everywhere or (support.num_kept and not listing_pays(support, numbers.num_bytes, dense_bytes)):
            return self.compress(vector.vector, state, round)
        round = round or Round()
        payload = Payload(
            layout.d,
            (Part(support, numbers),),
            round=round.index,
            sequence=round.sequence,
            layout_digest=layout.digest,
            sum_weights=round.sum_weights,
        )
        return payload, state


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

    Source: glossary "Top-k Sparsification"; Stich et al. 2018 (arXiv 1809.07599), Definition 2.2.
    Deviations: none.
    """

    density: float | None = field(default=None, metadata={"positional": True})
    num_bytes: int | None = None
    scope: str | int = "model"

    summary: ClassVar[str] = "the k entries of largest magnitude"
    citation: ClassVar[str] = "Stich et al. 2018, arXiv:1809.07599"
    typical: ClassVar[str] = "topk(0.01)"

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

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Select the largest magnitudes."""
        if self.scope == "model":
            count = self._count(update.size, update.size, num_kept)
            return [listed_part(update.size, *(round.largest or largest_of(update, count)), state.layout)]
        if self.scope == "tensor":
            pieces = [update[t.offset : t.stop] for t in state.layout.tensors if not t.buffer and t.num_elements]
            parts = [part_at(x, ops.topk(x, self._count(x.size, update.size, num_kept))) for x in pieces]
            return parts or [part_at(update, np.empty(0, np.int64))]
        if not (d := update.size):
            return [part_at(update, np.empty(0, np.int64))]
        block = min(int(self.scope), d)
        kept, last = (self._count(length, d, num_kept) for length in (block, d % block))
        return [part_at(update, ops.topk_blocks(update, block, kept, last))]

    def num_largest(self, state: State, round: Round) -> int | None:
        """Tell k, where one number is chosen in the whole model."""
        if self.scope != "model" or self.num_bytes is not None or round.num_bytes is not None:
            return None
        d = state.layout.num_parameters
        return self._count(d, d, round.num_kept)

    def most_kept(self, d: int) -> int:
        """Tell k; d where scoped, since every tensor or block sends an entry, or under a budget."""
        if self.density is None or self.num_bytes is not None or self.scope != "model":
            return d
        return num_kept_of(self.density, d) if d else 0

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(k / d); 2/3 of the density where scoped, the worst that rounding k can do; 0 under a budget."""
        if self.num_bytes is not None or self.density is None:
            return Contractive(0.0)
        if d == 0 or self.density == 1:
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
    typical: ClassVar[str] = "randk(0.01)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", check_density(self.density))
        check_flag("unbiased", self.unbiased)
        check_flag("shared", self.shared)

    @property
    def adjustable(self) -> bool:
        """Whether a byte budget can be met by keeping fewer: yes."""
        return True

    @property
    def shares(self) -> Sharing:
        """All coordinates where the client is left out of the key, else none."""
        return "whole" if self.shared else "none"

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Draw the coordinates."""
        d = update.size
        count = num_kept if num_kept is not None else num_kept_of(self.density, d) if d else 0
        if count == 0:
            return [part_at(update, np.empty(0, np.int64))]
        support = self._support(d, count, round.key)
        values = update[support.indices]
        if self.unbiased:
            with np.errstate(over="ignore"):
                values = values * np.float32(d / count)
            check_finite(values, "update scaled by d / k")
        return [Part(support, Floats(values))]

    def shared_support(self, layout: Layout, round: Round) -> NDArray[np.int64] | None:
        """Draw the coordinates, where the client is left out of the key."""
        d = layout.num_parameters
        return self._support(d, self.most_kept(d), round.key).indices if self.shared else None

    def _support(self, d: int, count: int, key: Key) -> Seeded:
        return Seeded(d, count, key.derive(purpose=SUPPORT_PURPOSE, shared=self.shared))

    def most_kept(self, d: int) -> int:
        """Tell k."""
        return num_kept_of(self.density, d) if d else 0

    def guarantee(self, d: int) -> Guarantee:
        """Contractive(k / d) in expectation, or Unbiased(d / k - 1)."""
        if d == 0:
            return Contractive(1.0)
        kept = num_kept_of(self.density, d)
        return Unbiased(d / kept - 1) if self.unbiased else Contractive(kept / d)


@dataclass(frozen=True, repr=False)
class threshold(Sparsifier):
    """Send the entries of at least some magnitude: a given one, or one estimated to give a density.

    The estimate is DGC's: of a random sample of the update the top ``density`` is taken, and its smallest magnitude is
    the threshold; where more than 1.5 times the entries wanted reach it, the k = min(d, max(1, round(density * d)))
    largest of those are taken exactly. It costs a sort of the sample instead of the update. The sample is a hundredth
    of the update, or 100 / density entries where that is more, so that the number kept is right to about a tenth; an
    update no larger than that is selected from exactly. The largest entry is always sent.

    Args:
        value: the threshold, > 0 and rounded to float32; entries of this magnitude are sent.
        density: instead, the fraction of the entries wanted, in (0, 1].

    Raises:
        ConfigError: on a value outside these, or not exactly one of the two.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> compressor = gw.threshold(2.0)
        >>> update = np.array([1, -4, 2, 0], np.float32)
        >>> payload, _ = compressor.compress(update, compressor.init(gw.Layout.flat(4)))
        >>> gw.decompress(payload).tolist()
        [0.0, -4.0, 2.0, 0.0]

    Source: Sahu et al. 2021 (arXiv 2108.00951), the hard threshold, an absolute compressor; Lin et al. 2017, DGC
        (arXiv 1712.01887), Algorithm 1, and Section 5 for the sampled threshold.
    Deviations: over the whole model, not layer by layer; DGC samples 0.1 to 1 % and says "far more" for 1.5 times.
    """

    value: float | None = field(default=None, metadata={"positional": True})
    density: float | None = None

    summary: ClassVar[str] = "entries above a threshold, given or sampled"
    citation: ClassVar[str] = "Lin et al. 2017, arXiv:1712.01887"
    typical: ClassVar[str] = "threshold(density=0.01)"

    def __post_init__(self) -> None:
        if (self.value is None) == (self.density is None):
            got = "neither" if self.value is None else "both"
            raise ConfigError(f"threshold needs either a value above 0 or a density in (0, 1], got {got}")
        if self.density is not None:
            object.__setattr__(self, "density", check_density(self.density))
            return
        object.__setattr__(self, "value", check_number("value", self.value))
        if not 0 < (self.value or 0.0) <= LARGEST:
            raise ConfigError(f"value must be in (0, {LARGEST!r}], got {self.value!r}")

    def sparsify(self, update: Vector, state: State, round: Round, num_kept: int | None) -> list[Part]:
        """Select what reaches the threshold."""
        return [part_at(update, self._select(update, round.key), state.layout)]

    def guarantee(self, d: int) -> Guarantee:
        """Absolute(value); under a density Contractive(n / d), n what the sample alone is sure to hold."""
        if self.value is not None:
            return Absolute(self.value)
        if d == 0:
            return Contractive(1.0)
        return Contractive(num_kept_of(self.density or 0.0, self._sample_size(d)) / d)

    def _select(self, update: Vector, key: Key) -> NDArray[np.int64]:
        d = update.size
        if d == 0:
            return np.empty(0, np.int64)
        if self.value is not None:
            return _reaching(update, np.float32(self.value))
        density = self.density or 0.0
        wanted, size = num_kept_of(density, d), self._sample_size(d)
        if size == d:
            return ops.topk(update, wanted)
        sample = np.abs(update[key.derive(purpose="sample").choice(d, size)])
        at = size - num_kept_of(density, size)
        chosen = _reaching(update, np.partition(sample, at)[at])
        return chosen if chosen.size <= _TOLERANCE * wanted else chosen[ops.topk(update[chosen], wanted)]

    def _sample_size(self, d: int) -> int:
        return math.ceil(min(d, max(d // 100, 100 / (self.density or 1.0))))


def _reaching(update: Vector, least: np.float32) -> NDArray[np.int64]:
    """Entries of at least this magnitude, zeros never."""
    return np.flatnonzero(np.abs(update) >= max(least, np.float32(2.0**-149)))


def largest_of(update: Vector, k: int) -> tuple[NDArray[np.int64], Vector]:
    """Return the k entries of largest magnitude, as ``Round.largest`` has them.

    Args:
        update: (d,) float32.
        k: how many.

    Returns:
        (m,) int64 increasing, m <= k: zeros are never among them; and the numbers there, (m,) float32.
    """
    chosen = ops.topk(update, k)
    return chosen, ops.gather(update, chosen)


def listed_part(
    length: int, chosen: NDArray[np.int64], numbers: NDArray[np.float32], layout: Layout | None = None
) -> Part:
    """Return the part that sends these numbers.

    Args:
        length: of the vector they are of.
        chosen: (k,) int64, increasing: where they are.
        numbers: (k,) float32.
        layout: of the vector, where it is all parameters: its tensors are hints for the index coding.

    Returns:
        The part; its support is every coordinate where all are chosen.
    """
    hints = () if layout is None else (layout.cuts, layout.columns)
    return Part(Every(length) if chosen.size == length else Explicit(length, chosen, *hints), Floats(numbers))


def part_at(update: Vector, chosen: NDArray[np.int64], layout: Layout | None = None) -> Part:
    """Return the part that sends some coordinates of an update.

    Args:
        update: (d,) float32.
        chosen: (k,) int64, increasing.
        layout: see ``listed_part``.

    Returns:
        The part; its support is every coordinate where all are chosen.
    """
    numbers = update if chosen.size == update.size else ops.gather(update, chosen)
    return listed_part(update.size, chosen, numbers, layout)
