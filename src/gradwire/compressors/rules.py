"""Rules: which compressor when (``warmup``), and which for which tensor (``by_tensor``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate as running_sum
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import check_integer
from gradwire.compressors.compressor import Compressor, Phases, Round, Sharing, State, Vector, least_shared
from gradwire.compressors.feedback import has_feedback, has_momentum
from gradwire.compressors.guarantee import Absolute, Contractive, Guarantee, Unbiased, Unknown, as_contraction
from gradwire.compressors.pipeline import Coder, Sparsifier, Stage, largest_fitting, pruned
from gradwire.compressors.references import Reference
from gradwire.compressors.sparsify import dense
from gradwire.errors import ConfigError
from gradwire.layout import Layout, TensorSpec
from gradwire.payload import Every, Explicit, Floats, Part, Payload, Symbols
from gradwire.rng import Key
from gradwire.wire import encode

__all__ = ["by_tensor", "warmup", "weaker"]

_DENSE = dense()


def weaker(a: Guarantee, b: Guarantee) -> Guarantee:
    """Tell what holds of either of two compressors, and of both on disjoint coordinates.

    Args:
        a: the guarantee of one.
        b: the guarantee of the other.

    Returns:
        The worse of two of a kind. A lossless one, Contractive(1), is of every kind, and Unbiased(omega) with omega
        <= 1 is Contractive(1 - omega) too; else Unknown.

    Example:
        >>> import gradwire as gw
        >>> from gradwire.compressors.rules import weaker
        >>> weaker(gw.Contractive(0.5), gw.Contractive(0.1)), weaker(gw.Contractive(1.0), gw.Unbiased(2.0))
        (Contractive(delta=0.1), Unbiased(omega=2.0))
    """
    if a == Contractive(1.0):
        return b
    if b == Contractive(1.0):
        return a
    match a, b:
        case Unbiased(x), Unbiased(y):
            return Unbiased(max(x, y))
        case Absolute(x), Absolute(y):
            return Absolute(max(x, y))
    match as_contraction(a), as_contraction(b):
        case Contractive(x), Contractive(y):
            return Contractive(min(x, y))
        case _:
            return Unknown()


@dataclass(frozen=True, repr=False)
class warmup(Compressor):
    """Compress with ``first`` in rounds 0 to ``rounds`` - 1, with ``compressor`` from then on.

    Both keep what they remember throughout. With ``ef(warmup(...))`` one residual serves both; in
    ``warmup(ef(...), ...)`` it is the later compressor's, and takes back what the warm-up did not deliver.

    Args:
        compressor: what compresses after the warm-up.
        rounds: how many rounds the warm-up takes, 0 or more.
        first: what compresses until then; without feedback or momentum of its own, left behind at the end.

    Raises:
        ConfigError: on ``ef21`` as either, whose server knows no other payloads (``ef21(warmup(...))`` works);
            feedback or momentum in ``first``; rounds below 0.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.compressors.rules import warmup
        >>> client = gw.Client(warmup(gw.topk(0.25), 2), gw.Layout.flat(4))
        >>> update = np.array([1, 2, 3, 4], np.float32)
        >>> [gw.inspect(client.compress(update, round=r))["num_kept"] for r in range(4)]
        [4, 4, 1, 1]

    Source: DGC, Lin et al. 2018 (arXiv 1712.01887), warm-up training, section 3.3.
    Deviations: one step instead of a density that falls exponentially; nested, ``warmup(warmup(c, 8, b), 4, a)``, it
        has as many steps as wanted. The learning rate is the host's.
    """

    compressor: Compressor
    rounds: int
    first: Compressor = _DENSE

    summary: ClassVar[str] = "another compressor in the first rounds"
    citation: ClassVar[str] = "Lin et al. 2018, arXiv:1712.01887"
    typical: ClassVar[str] = "warmup(topk(0.01), 5)"

    def __post_init__(self) -> None:
        for name, inner in (("compressor", self.compressor), ("first", self.first)):
            if not isinstance(inner, Compressor):
                raise ConfigError(f"warmup's {name} must be a compressor, got {inner!r}")
            if inner.mirrored:
                raise ConfigError(f"warmup cannot switch to or from {inner}: put it outside, ef21(warmup(...))")
        object.__setattr__(self, "rounds", check_integer("rounds", self.rounds, 0))
        if has_feedback(self.first):
            raise ConfigError(
                f"warmup's first must have no feedback of its own, which would be left behind when the warm-up ends, "
                f"got {self.first}; write ef(warmup(...))"
            )
        if has_momentum(self.first):
            raise ConfigError(
                f"warmup's first must have no momentum of its own, which would be left behind when the warm-up ends, "
                f"got {self.first}; write momentum(warmup(...), ...)"
            )

    @property
    def uses_reference(self) -> bool:
        """Whether either reads the reference."""
        return self.compressor.uses_reference or self.first.uses_reference

    @property
    def needs_mean(self) -> bool:
        """Whether either needs the reference to be the clients' mean."""
        return self.compressor.needs_mean or self.first.needs_mean

    @property
    def summable(self) -> bool:
        """Whether both are."""
        return self.compressor.summable and self.first.summable

    def adds_up(self, index: int) -> bool:
        """Tell what the compressor whose turn it is does."""
        return (self.first if self._is_first(index) else self.compressor).adds_up(index)

    @property
    def shares(self) -> Sharing:
        """The less shared of both."""
        return least_shared(self.compressor, self.first)

    def shared_support(self, layout: Layout, round: Round) -> NDArray[np.int64] | None:
        """Tell what the compressor whose turn it is says."""
        return (self.first if self._is_first(round.index) else self.compressor).shared_support(layout, round)

    def largest_support(self, d: int, index: int) -> int:
        """Tell what the compressor whose turn it is says."""
        return (self.first if self._is_first(index) else self.compressor).largest_support(d, index)

    def init(self, layout: Layout) -> State:
        """Make the state: the later compressor's memory, and the first one's under names that begin with ``first.``."""
        return self._joined(layout, self.compressor.init(layout).memory, self.first.init(layout).memory)

    def compress(self, update: Vector, state: State, round: Round | None = None) -> tuple[Payload, State]:
        """Turn an update into a payload with the compressor whose turn it is."""
        later, first = self._split(state)
        if self._is_first(0 if round is None else round.index):
            payload, first = self.first.compress(update, first, round)
        else:
            payload, later = self.compressor.compress(update, later, round)
        return payload, self._joined(state.layout, later.memory, first.memory)

    def num_largest(self, state: State, round: Round) -> int | None:
        """Tell what the compressor whose turn it is does."""
        later, first = self._split(state)
        if self._is_first(round.index):
            return self.first.num_largest(first, round)
        return self.compressor.num_largest(later, round)

    def largest_update(self, state: State) -> float:
        """Tell the less of both."""
        later, first = self._split(state)
        return min(self.compressor.largest_update(later), self.first.largest_update(first))

    def phases(self, update: Vector, state: State, round: Round | None = None) -> Phases:
        """Compress together with the other workers with the compressor whose turn it is."""
        later, first = self._split(state)
        if self._is_first(0 if round is None else round.index):
            mean, first = yield from self.first.phases(update, first, round)
        else:
            mean, later = yield from self.compressor.phases(update, later, round)
        return mean, self._joined(state.layout, later.memory, first.memory)

    def restore(self, payload: Payload, state: State, reference: Vector | Reference | None = None) -> State:
        """Hand a payload that was not delivered back to its maker, or to the residual where the other one has one."""
        later, first = self._split(state)
        if self._is_first(payload.round):
            first = self.first.restore(payload, first, reference)
        if not self._is_first(payload.round) or has_feedback(self.compressor):
            later = self.compressor.restore(payload, later, reference)
        return self._joined(state.layout, later.memory, first.memory)

    def guarantee(self, d: int) -> Guarantee:
        """The weaker of both: see ``weaker``."""
        return weaker(self.compressor.guarantee(d), self.first.guarantee(d))

    def _is_first(self, index: int) -> bool:
        return index < self.rounds

    @cached_property
    def _prefix(self) -> str:
        """What names of the first one's memory begin with: a warm-up inside has taken ``first.`` already."""
        prefix = "first."
        while any(name.startswith(prefix) for name in self.compressor.init(Layout.flat(1)).memory):
            prefix += "first."
        return prefix

    def _split(self, state: State) -> tuple[State, State]:
        later: dict[str, Any] = {}
        first: dict[str, Any] = {}
        for name, value in state.memory.items():
            if name.startswith(self._prefix):
                first[name.removeprefix(self._prefix)] = value
            else:
                later[name] = value
        return state.having(later), state.having(first)

    def _joined(self, layout: Layout, later: dict[str, Any], first: dict[str, Any]) -> State:
        return State(layout, later | {self._prefix + name: value for name, value in first.items()})


@dataclass(frozen=True, repr=False)
class by_tensor(Compressor):
    """Compress matrices with one stage or pipeline, and everything else with another.

    Parameters of tensors with two dimensions or more, at least ``min_elements`` elements and a name that ``match`` fits
    are compressed with ``compressor``, all together: a model-wide topk selects over all of them. The other
    parameters are compressed with ``others``, all together. Running statistics travel whole. ``others`` may be a
    ``by_tensor`` itself, and error feedback goes outside: ``ef(by_tensor(topk(0.01)))``.

    A support is cut where tensors of the two kinds meet; a seeded one cannot be. A byte budget is met with fewer
    entries of ``compressor``.

    Args:
        compressor: for matrices: a stage or pipeline.
        others: for everything else: a stage, a pipeline or ``by_tensor``.
        min_elements: tensors of fewer elements belong to the others, 0 or more.
        match: pattern of names, as in a shell: ``*``, ``?`` and ``[...]``, case counts.

    Raises:
        ConfigError: on what is no stage, leans on a reference or has a byte budget of its own; two different coders; a
            parameter out of range.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.compressors.rules import by_tensor
        >>> arrays = {"weight": np.ones((64, 64), np.float32), "bias": np.ones(64, np.float32)}
        >>> layout = gw.Layout.from_arrays(arrays)
        >>> blob = gw.Client(by_tensor(gw.topk(0.01)), layout).compress(layout.flatten(arrays))
        >>> [(part.length, part.support.num_kept) for part in gw.decode(blob).parts]
        [(4096, 41), (64, 64)]

    Source: PowerSGD, Vogels et al. 2019 (arXiv 1905.13727), section 3: vectors are sent uncompressed; DGC's code does
        the same to biases and norms.
    Deviations: none.
    """

    compressor: Compressor
    others: Compressor = _DENSE
    min_elements: int = 1024
    match: str = "*"

    summary: ClassVar[str] = "matrices one way, biases, norms and small tensors another"
    citation: ClassVar[str] = "Vogels et al. 2019, arXiv:1905.13727"
    typical: ClassVar[str] = "by_tensor(topk(0.01))"

    def __post_init__(self) -> None:
        for name, inner in (("compressor", self.compressor), ("others", self.others)):
            if not isinstance(inner, Stage if name == "compressor" else (Stage, by_tensor)):
                outside = ": put by_tensor inside, for instance ef(by_tensor(topk(0.01)))" if _is_wrapper(inner) else ""
                raise ConfigError(f"by_tensor's {name} must be a stage or pipeline, got {inner!r}{outside}")
            if inner.uses_reference:
                raise ConfigError(f"by_tensor's {name} cannot lean on the whole model's reference, got {inner}")
            if inner.init(Layout.flat(1)).memory:
                raise ConfigError(f"by_tensor's {name} cannot remember anything between rounds, got {inner}")
            if any(isinstance(s, Sparsifier) and s.budget is not None for s in _stages(inner)):
                raise ConfigError(f"by_tensor's {name} cannot have num_bytes of its own, got {inner}")
        object.__setattr__(self, "min_elements", check_integer("min_elements", self.min_elements, 0))
        if not isinstance(self.match, str) or not self.match:
            raise ConfigError(f"match must be a pattern of tensor names such as '*.weight', got {self.match!r}")
        coders = sorted({type(s).__name__ for s in _stages(self) if isinstance(s, Coder)})
        if len(coders) > 1:
            raise ConfigError(f"a payload has one coder, got {' and '.join(coders)} in {self}")

    @property
    def shares(self) -> Sharing:
        """The less shared of both."""
        return least_shared(self.compressor, self.others)

    def init(self, layout: Layout) -> State:
        """Make the state: the layout alone."""
        return State(layout)

    def compress(self, update: Vector, state: State, round: Round | None = None) -> tuple[Payload, State]:
        """Turn an update into a payload.

        Raises:
            ConfigError: where a seeded support would have to be cut; on a byte budget that cannot be met.
        """
        layout, round = state.layout, round or Round()
        num_bytes, unbounded = round.num_bytes, replace(round, num_bytes=None, support=None)
        adjustable = any(isinstance(s, Sparsifier) and s.adjustable for s in _stages(self.compressor))
        if num_bytes is None:
            return self._payload(update, layout, unbounded), state
        if adjustable:
            size = sum(tensor.num_elements for tensor in layout.tensors if self._matches(tensor))
            made = largest_fitting(
                lambda num_kept: self._payload(update, layout, replace(unbounded, num_kept=num_kept)), size, num_bytes
            )
            return made, state
        made = self._payload(update, layout, unbounded)
        if (needed := len(encode(made))) > num_bytes:
            raise ConfigError(f"num_bytes must be at least {needed} for {self} here, got {num_bytes}")
        return made, state

    def guarantee(self, d: int) -> Guarantee:
        """The weaker of what both promise of a vector of any length up to d: the errors are orthogonal."""
        return weaker(_of_any_length(self.compressor, d), _of_any_length(self.others, d))

    def _matches(self, tensor: TensorSpec) -> bool:
        return (
            not tensor.buffer
            and len(tensor.shape) >= 2
            and tensor.num_elements >= self.min_elements
            and fnmatchcase(tensor.name, self.match)
        )

    def _payload(self, update: Vector, layout: Layout, round: Round) -> Payload:
        tensors = [t for t in layout.tensors if not t.buffer and t.num_elements]
        stretches = [(chosen, list(group)) for chosen, group in groupby(tensors, self._matches)]
        pieces: dict[bool, Iterator[list[Part]]] = {}
        coder = "auto"
        for chosen, compressor in ((True, self.compressor), (False, self.others)):
            mine = [group for kind, group in stretches if kind is chosen]
            if not mine:
                continue
            inner = round if chosen else replace(round, key=_other_key(round.key), num_kept=None)
            payload = _compress(compressor, update, [t for group in mine for t in group], inner)
            stops = list(running_sum(sum(t.num_elements for t in group) for group in mine))
            pieces[chosen] = _cut(payload.parts, stops, compressor)
            coder = payload.coder if payload.coder != "auto" else coder
        parts = [part for chosen, _ in stretches for part in next(pieces[chosen])]
        if layout.num_parameters < layout.d:
            statistics = update[layout.num_parameters :].copy()
            parts.append(pruned(Part(Every(statistics.size), Floats(statistics))))
        return Payload(
            layout.d,
            tuple(_join_empty(parts)),
            round=round.index,
            sequence=round.sequence,
            layout_digest=layout.digest,
            sum_weights=round.sum_weights,
            coder=coder,
        )


def _is_wrapper(inner: object) -> bool:
    return isinstance(inner, Compressor) and (has_feedback(inner) or has_momentum(inner))


def _stages(compressor: Compressor) -> tuple[Stage, ...]:
    """All stages inside a pipeline, or inside a by_tensor."""
    if isinstance(compressor, by_tensor):
        return (*_stages(compressor.compressor), *_stages(compressor.others))
    return compressor.stages if isinstance(compressor, Stage) else ()


def _of_any_length(compressor: Compressor, d: int) -> Guarantee:
    """What a compressor promises of every vector of length n <= d.

    All that depends on the length gets worse with it, except k / n: rounding k leaves it no less than half of k / d.
    For k >= 2 at d, k / d <= 4/3 of the density and k / n >= 2/3 of it; for k = 1, k / n >= 1 / n.
    """
    guarantee = compressor.guarantee(d)
    if isinstance(compressor, by_tensor) or not any(getattr(s, "density", None) for s in _stages(compressor)):
        return guarantee
    if any(isinstance(s, Sparsifier) and s.scheduled for s in _stages(compressor)) and isinstance(
        guarantee, Contractive
    ):
        return Contractive(guarantee.delta / max(d, 1))  # some round may keep a single entry
    match guarantee:
        case Contractive(delta) if delta < 1:
            return Contractive(delta / 2)
        case Unbiased(omega) if omega > 0:
            return Unbiased(2 * omega + 1)
        case _:
            return guarantee


def _other_key(key: Key) -> Key:
    """The key of the others: independent of the first one's, and shared where that is."""
    seed = int(key.derive(purpose="by_tensor", shared=True).words(1)[0])
    return replace(key, seed=seed)


def _compress(compressor: Compressor, update: Vector, tensors: list[TensorSpec], round: Round) -> Payload:
    """Compress some tensors as if they were the whole model."""
    offsets = [0, *running_sum(t.num_elements for t in tensors)]
    layout = Layout(tuple(replace(t, offset=offset) for t, offset in zip(tensors, offsets, strict=False)))
    gathered = np.concatenate([update[t.offset : t.stop] for t in tensors])
    payload, _ = compressor.compress(gathered, compressor.init(layout), round)
    return payload


def _cut(parts: tuple[Part, ...], stops: list[int], compressor: Compressor) -> Iterator[list[Part]]:
    """Cut parts at some coordinates: for each, the parts that end there."""
    start = 0
    found: list[Part] = []
    remaining = iter(stops)
    stop = next(remaining)
    for part in parts:
        edges = [s - start for s in stops if start < s < start + part.length]
        for piece in _slices(part, edges, compressor) if edges else [part]:
            found.append(piece)
            start += piece.length
            if start == stop:
                yield found
                found, stop = [], next(remaining, -1)


def _slices(part: Part, edges: list[int], compressor: Compressor) -> Iterator[Part]:
    """A part in pieces that end at some of its coordinates, and also where a block with a scale of its own ends."""
    support = part.support
    if not isinstance(support, (Every, Explicit)):
        raise ConfigError(
            f"by_tensor cannot use {compressor} with this model: its support is of the kind {type(support).__name__}, "
            "which stands for all its tensors at once, and other tensors lie between them"
        )
    block = part.values.block if isinstance(part.values, Symbols) else 0
    if block:
        aligned = {-(-edge // block) * block for edge in edges}
        edges = sorted({*edges, *aligned} - {part.length} - {e for e in aligned if e > part.length})
    indices = support.indices
    for low, high in zip([0, *edges], [*edges, part.length], strict=True):
        a, b = np.searchsorted(indices, [low, high])
        if a == b:
            yield _nothing(high - low)
            continue
        values = part.values.take(np.arange(a, b), support)
        if b - a == high - low:
            yield Part(Every(high - low), values)
        else:
            cuts = tuple(c - low for c in support.cuts if low < c < high) if isinstance(support, Explicit) else ()
            yield Part(Explicit(high - low, indices[a:b] - low, cuts), values)


def _join_empty(parts: list[Part]) -> list[Part]:
    """Join neighbouring parts that hold nothing."""
    joined: list[Part] = []
    for part in parts:
        if joined and not part.support.num_kept and not joined[-1].support.num_kept:
            part = _nothing(joined.pop().length + part.length)
        joined.append(part)
    return joined or [_nothing(0)]


def _nothing(length: int) -> Part:
    return Part(Explicit(length, np.empty(0, np.int64)), Floats(np.empty(0, np.float32)))
