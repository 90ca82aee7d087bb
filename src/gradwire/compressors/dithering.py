"""Known dither: rounding to one step with thresholds that both ends draw from the key."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwire.checks import LARGEST, check_bytes, check_density, check_flag, check_number
from gradwire.compressors.compressor import Compressor, Round, State, Vector
from gradwire.compressors.guarantee import Guarantee, Unbiased, Unknown
from gradwire.compressors.pipeline import pruned
from gradwire.errors import ConfigError, UpdateError
from gradwire.fields import Field
from gradwire.kernels import ops
from gradwire.kernels.fires_reference import LARGEST_COUNT, LEVELS, half_octave
from gradwire.layout import Layout, check_finite
from gradwire.payload import THRESHOLDS_PURPOSE, Dithered, Every, Explicit, Fielded, Floats, Multiples, Part, Payload
from gradwire.wire import encode
from gradwire.wire.dithering import beside_field, encode_dithered, encode_fielded, thresholds_of

__all__ = ["NOISY_BITS", "dither", "noisy_dither"]

NOISY_BITS = 0.02
"""Bits a parameter below which a server's momentum makes the noise of rounding grow, in experiments without end."""

_LARGE = 1 << 20  # parameters from which time counts more than the last bytes
_NARROWER = (4, 2)  # half octaves that are not coded then, where few fires are in them
_FEW = 0.01
_LISTED = 4096  # fires up to which a plain list is tried, too
_TRIED = 8
_BITS_A_FIRE = 5.5
_SMALLEST = 2.0**-149


@dataclass(frozen=True, repr=False)
class dither(Compressor):
    """Round to multiples of one step, up or down by thresholds that both ends know: few bits for what is not zero.

    A number x becomes sign(x) (floor(a) + [threshold < a - floor(a)]) steps, a = |x| / step, with thresholds uniform in
    [0, 1): x on average. Most numbers become zero, and one of small magnitude can become anything else, it *fires*,
    only where its threshold is smaller still. Thresholds are drawn from the key of (seed, round, client), so the server
    knows where fires are likely: telling them takes about half the bits of a list of coordinates. Nothing is
    remembered at either end, and of a payload that is lost nothing is owed.

    Args:
        step: the step, above 0.
        num_bytes: instead, the whole encoded payload takes at most this many bytes, header included, and as nearly as
            may be: the step is searched. It then depends a little on the thresholds, and numbers are right on average
            but for that.
        density: instead, the share of the parameters that is to fire, in (0, 1]: the step is the mean magnitude over
            it.
        golden: a coordinate's threshold is not new each round, but moves on by 0.618... of the whole, so that those of
            a few rounds are spread evenly: what one round rounds down the next ones round up. Over all seeds an update
            is then still right on average; but whoever knows the past of a coordinate knows its next threshold.
        field: lean on how large numbers have been in each row and column of a matrix, where the server has shipped that
            and it saves bytes: ``Server`` ships it, now and then, once not having it has cost as much as sending it. A
            client that does not have it sends the same numbers without.

    Raises:
        ConfigError: on a value outside these, or more than one of step, num_bytes and density.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> client = gw.Client(gw.dither(density=0.01), gw.Layout.flat(10_000))
        >>> blob = client.compress(np.random.default_rng(0).laplace(size=10_000))
        >>> 50 < gw.inspect(blob)["num_kept"] < 150, len(blob) < 110
        (True, True)

    Source: Ziv 1985, "On universal quantization", and Zamir and Feder 1992, "On universal quantization by randomized
        uniform/lattice quantizers": a dithered quantizer coded given its dither; for federated learning UVeQFed,
        Shlezinger et al. 2020 (arXiv 2006.03262), with subtraction. The rounding is that of QSGD, Alistarh et al. 2017
        (arXiv 1610.02132), Section 3.1, with one step for the whole update.
    Deviations: nothing is subtracted at the server. Thresholds have 32 bits, so that a magnitude is cut to a multiple
        of 2^-32 steps. No number is more than 2^23 steps: where one would be, the step is larger.
    """

    step: float | None = dataclasses.field(default=None, metadata={"positional": True})
    num_bytes: int | None = None
    density: float | None = None
    golden: bool = False
    field: bool = False

    summary: ClassVar[str] = "random rounding to one step; thresholds both ends know make it cheap to code"
    citation: ClassVar[str] = "after Ziv 1985 and Zamir and Feder 1992; UVeQFed, arXiv:2006.03262"
    typical: ClassVar[str] = "dither(density=0.001)"

    def __post_init__(self) -> None:
        given = [name for name in ("step", "num_bytes", "density") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"dither takes one of step, num_bytes and density, got {' and '.join(given)}")
        if self.step is not None:
            object.__setattr__(self, "step", check_number("step", self.step))
            if not _SMALLEST <= (self.step or 0.0) <= LARGEST:
                raise ConfigError(f"step must be in [2^-149, {LARGEST!r}], got {self.step!r}")
        if self.density is not None:
            object.__setattr__(self, "density", check_density(self.density))
        object.__setattr__(self, "num_bytes", check_bytes(self.num_bytes))
        check_flag("golden", self.golden)
        check_flag("field", self.field)

    @property
    def checks_update(self) -> bool:
        """Whether ``compress`` refuses what is not finite: yes, in the pass that finds the mean magnitude."""
        return True

    @property
    def uses_field(self) -> bool:
        """Whether the field is leant on, where there is one."""
        return self.field

    def init(self, layout: Layout) -> State:
        """Make the state: the layout alone."""
        return State(layout)

    def compress(self, update: Vector, state: State, round: Round | None = None) -> tuple[Payload, State]:
        """Turn an update into a payload.

        Raises:
            UpdateError: on NaN or Inf; where a number would be rounded to more than float32 holds.
            ConfigError: on a byte budget that not even an empty payload fits in; without step, num_bytes and density.
        """
        round = round or Round()
        parameters = update[: state.layout.num_parameters]
        total, largest = ops.sum_magnitudes(parameters)
        if not (math.isfinite(largest) and np.isfinite(update[parameters.size :]).all()):
            check_finite(update, "update", state.layout)
        mean = total / max(parameters.size, 1)
        least = max(largest * 2 / LARGEST_COUNT, _SMALLEST)

        def payload(step: float) -> Payload:
            return self._payload(update, state, round, mean, step)

        num_bytes = self.num_bytes if round.num_bytes is None else round.num_bytes
        if self.num_bytes is not None and num_bytes is not None:
            num_bytes = min(num_bytes, self.num_bytes)
        step = self.step if self.density is None else mean / self.density
        if step is None and num_bytes is None:
            raise ConfigError(f"{self} needs a step, a density or num_bytes, here or from Client.compress, got none")
        if num_bytes is None:
            return payload(max(step or 0.0, least)), state
        return _fitting(payload, total, max(step or 0.0, least), num_bytes), state

    def guarantee(self, d: int) -> Guarantee:
        """Unbiased(1 / density): a number's variance is at most step |x|, the sum of all d mean^2 / density at most.

        With a step it is unbiased, but for small updates its error is beyond any multiple of theirs: Unknown; so it is
        within a budget.
        """
        return Unknown() if self.density is None else Unbiased(1 / self.density)

    def _payload(self, update: Vector, state: State, round: Round, mean: float, step: float) -> Payload:
        """The payload of a step; of an infinite one, that of nothing."""
        layout = state.layout
        d = layout.num_parameters
        parts = [_part(update[:d], round, mean, step, self.golden)]
        if self.field and isinstance(support := parts[0].support, Dithered):
            parts[0] = Part(_shorter(support, round.held_field), parts[0].values)
        if d < layout.d:
            statistics = update[d:]
            parts.append(pruned(Part(Every(statistics.size), Floats(statistics.copy()))))
        return Payload(
            layout.d,
            tuple(parts),
            round=round.index,
            sequence=round.sequence,
            layout_digest=layout.digest,
            sum_weights=round.sum_weights,
        )


def noisy_dither(compressor: Compressor, d: int | None = None) -> dither | None:
    """Find a dither of fewer than ``NOISY_BITS`` bits a parameter, itself or inside.

    Args:
        compressor: any.
        d: number of parameters; None where it is not known, and numbers of bytes say nothing then.

    Returns:
        The first one; None where there is none.
    """
    if isinstance(compressor, dither):
        bits = None if compressor.density is None else _BITS_A_FIRE * compressor.density
        if compressor.num_bytes is not None and d:
            bits = 8 * compressor.num_bytes / d
        return compressor if bits is not None and bits < NOISY_BITS else None
    return next((found for inner in compressor.inside if (found := noisy_dither(inner, d))), None)


def _as_float32(step: float) -> np.float32:
    """The step that travels, not above the one asked for."""
    if step > LARGEST:
        raise UpdateError(f"a step of {step:g} is more than float32 holds: the update is too large to be rounded to it")
    rounded = np.float32(step)
    return np.nextafter(rounded, np.float32(0)) if rounded > step else rounded


def _part(values: Vector, round: Round, mean: float, step: float, golden: bool) -> Part:
    nothing = Part(Explicit(values.size, np.empty(0, np.int64)), Floats(np.empty(0, np.float32)))
    if mean == 0 or step == math.inf:
        return nothing
    key, sent = round.key.derive(purpose=THRESHOLDS_PURPOSE), _as_float32(step)
    which = thresholds_of(key, golden, values.size)
    found = ops.round_known(values, float(sent), which)
    if found is None:
        raise UpdateError(f"no number may be {LARGEST_COUNT} steps or more, the largest has more of {step:g}")
    if not found[0].size:
        return nothing
    multiples = Multiples(found[1], sent)
    with np.errstate(over="ignore"):
        if not math.isfinite(multiples.bound):
            raise UpdateError(f"an entry rounded to {multiples.largest} steps of {step:g} is more than float32 holds")
    level = min(half_octave(int(mean / float(sent) * 2.0**32)), LEVELS - 1)
    for narrower in _NARROWER if values.size >= _LARGE and level > _NARROWER[0] else ():
        if ops.outside(found[0], level - narrower, which).mean() <= _FEW:
            level -= narrower
            break
    dithered = Part(Dithered(values.size, found[0], key, level, golden), multiples)
    if found[0].size > _LISTED:
        return dithered
    listed = Part(Explicit(values.size, found[0]), multiples)
    return listed if _size(listed) < _size(dithered) else dithered


def _size(part: Part) -> int:
    """Bytes of a payload of one part, what it is filled up with included."""
    return len(encode(Payload(part.length, (part,))))


def _shorter(support: Dithered, field: Field | None) -> Dithered | Fielded:
    """The support as it is, or coded beside a field, whichever takes fewer bytes."""
    if field is None or field.length != support.length:
        return support
    beside = beside_field(support, field)
    return beside if len(encode_fielded(beside)) < len(encode_dithered(support)) else support


def _fitting(payload: Callable[[float], Payload], total: float, least: float, num_bytes: int) -> Payload:
    """Find the smallest step, but for a percent or a byte, whose payload fits in a number of bytes.

    Bytes beyond the header fall about as 1 / step; what is tried are real payloads.

    Args:
        payload: makes the payload of a step.
        total: sum of the update's magnitudes.
        least: no step may be smaller.
        num_bytes: the most bytes.

    Raises:
        ConfigError: where not even an empty payload fits.
    """
    empty = len(encode(payload(math.inf)))
    if empty > num_bytes:
        raise ConfigError(f"num_bytes must be at least {empty}, the size of an empty payload here, got {num_bytes}")
    room = num_bytes - empty + 1.0
    step = max(least, _BITS_A_FIRE * total / (8 * room))
    low, high, best = least, math.inf, None  # the step is above low, where it is not least itself; high fits
    for _ in range(_TRIED):
        made = payload(step if step <= LARGEST else math.inf)
        size = len(encode(made))
        if size <= num_bytes:
            high, best = step, made
            if step <= least or size >= num_bytes - max(1, num_bytes // 100):
                break
        else:
            low = step
        step *= (size - empty + 1.0) / room
        if not low < step < high:
            step = math.sqrt(low * high) if high < math.inf else 1.1 * low
        step = max(step, least)
    while best is None:
        step *= 2
        made = payload(step if step <= LARGEST else math.inf)
        best = made if len(encode(made)) <= num_bytes else None
    return best
