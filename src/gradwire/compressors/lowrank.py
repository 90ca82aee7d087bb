"""Low rank: each matrix of the update as the product of two thin factors."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwire.checks import LARGEST, check_integer
from gradwire.compressors.compressor import Compressor, Round, Sharing, State, Vector
from gradwire.compressors.guarantee import Contractive, Guarantee
from gradwire.errors import ConfigError, UpdateError
from gradwire.layout import Layout, check_finite
from gradwire.payload import Every, Explicit, Factors, Floats, Part, Payload
from gradwire.rng import Key
from gradwire.wire import encode

__all__ = ["powersgd"]

_BLOCK = 2**15  # products worked on at a time: they stay in the cache
_DEPENDENT = 2.0**-20  # a column of which no more is left by the columns before it counts as dependent on them
_SMALLEST = 2.0**-100  # matrices below this travel whole: their factors would lose bits in float32's denormals

Matrix = NDArray[np.float32]
Wide = NDArray[np.float64]


@dataclass(frozen=True)
class _Place:
    """A matrix in the update, and its Q in the memory.

    Attributes:
        start: its first coordinate.
        rows: m.
        columns: n.
        q: where Q, (n, r) row by row, stands in the memory.
    """

    start: int
    rows: int
    columns: int
    q: slice

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.columns

    def of(self, update: Vector) -> Matrix:
        return update[self.start : self.stop].reshape(self.rows, self.columns)


@dataclass(frozen=True, repr=False)
class powersgd(Compressor):
    """Send each matrix M (m, n) as P Q^T: P = orthonormal columns of M Q', Q = M^T P, Q' the Q of the round before.

    A tensor of two dimensions or more is a matrix, its first dimension by all others. It is factored where that is
    less to send, (m + n) rank < m n; all other tensors and running statistics travel as they are. What arrives is M
    projected on the columns of P. The compressor remembers Q, so that rounds of similar updates do the steps of a power
    iteration, towards the best approximation there is. In ``phases`` the workers sum P, then Q: all share one P, and
    the result is the projection of their mean.

    Args:
        rank: r >= 1: columns of P and Q.

    Raises:
        ConfigError: on a rank below 1.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.compressors.lowrank import powersgd
        >>> arrays = {"weight": np.outer(np.arange(1, 65), np.ones(48)).astype(np.float32)}
        >>> layout = gw.Layout.from_arrays(arrays)
        >>> blob = gw.Client(powersgd(1), layout).compress(layout.flatten(arrays))
        >>> len(blob) < 4 * (64 + 48) + 32, bool(np.allclose(gw.decompress(gw.decode(blob)), layout.flatten(arrays)))
        (True, True)

    Source: Vogels et al. 2019, "PowerSGD" (arXiv 1905.13727), Algorithm 1 (in ``phases``; in ``compress`` with one
        worker); Algorithm 2 is ``ef`` round it.
    Deviations: Q starts uniform in [-1, 1), the same at all ends, not normal. Columns of Q are remembered scaled by a
        power of two, which changes nothing but keeps P inside float32, and a column that came out as zero starts again.
        A column of P that depends on those before it becomes zero. ``compress`` sends a matrix whole where float32
        cannot hold its factors.
    """

    rank: int

    summary: ClassVar[str] = "matrices as products of two thin factors, warm-started"
    citation: ClassVar[str] = "Vogels et al. 2019, arXiv:1905.13727"
    typical: ClassVar[str] = "powersgd(4)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", check_integer("rank", self.rank, 1))

    @property
    def shares(self) -> Sharing:
        """Factors stand for every coordinate."""
        return "whole"

    def init(self, layout: Layout) -> State:
        """Make the state: all matrices' Q, one after the other, the same at every end."""
        return State(layout, {"q": _start(self._places(layout))})

    def compress(self, update: Vector, state: State, round: Round | None = None) -> tuple[Payload, State]:
        """Turn an update into a payload, with one client's own P and Q.

        Raises:
            ConfigError: on a byte budget that the payload does not fit in.
        """
        round = round or Round()
        layout = state.layout
        places = self._places(layout)
        memory: Vector = state.memory["q"]
        kept = np.zeros_like(memory)
        parts: list[Part] = []
        end = 0
        for place in places:
            parts += _whole(update[end : place.start])
            end = place.stop
            matrix = place.of(update)
            scale = int(np.frexp(np.abs(matrix).max())[1])
            p = _orthonormal(_narrow(_product(matrix, self._of(place, memory)), -scale))
            q = _narrow(_transposed_product(matrix, p), -scale)
            parts.append(_part(matrix, p, _narrow(q, scale)))
            kept[place.q] = q.reshape(-1)
        parts += _whole(update[end : layout.num_parameters]) + _whole(update[layout.num_parameters :])
        payload = Payload(
            layout.d,
            tuple(parts) or (_nothing(0),),
            round=round.index,
            sequence=round.sequence,
            layout_digest=layout.digest,
            sum_weights=round.sum_weights,
        )
        if round.num_bytes is not None and (num_bytes := len(encode(payload))) > round.num_bytes:
            raise ConfigError(f"num_bytes must be at least {num_bytes} for {self} here, got {round.num_bytes}")
        return payload, State(layout, {**state.memory, "q": self._warm(kept, places)})

    @property
    def summable(self) -> bool:
        """Whether ``phases`` can be used: yes."""
        return True

    def adds_up(self, index: int) -> bool:
        """Tell whether ``phases`` give the mean of payloads: no, workers have one basis together."""
        return False

    def phases(
        self, update: Vector, state: State, round: Round | None = None
    ) -> Generator[Vector, Vector, tuple[Vector, State]]:
        """Compress together with the other workers: P and whatever is not factored are summed, then Q.

        Raises:
            UpdateError: where P, Q or a sum is more than float32 holds, or a sum of another length is sent back; the
                state is left as it was.
        """
        num_workers = np.float32((round or Round()).num_workers)
        layout, memory = state.layout, state.memory["q"]
        places = self._places(layout)
        edges = [0, *(edge for place in places for edge in (place.start, place.stop)), layout.d]
        whole = [slice(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
        result = np.empty(layout.d, np.float32)

        own = [_quick_product(place.of(update), self._of(place, memory)) for place in places]
        own += [update[piece] for piece in whole]
        sums = _cut((yield _joined(own)), own)
        p_shared = [_orthonormal(p) for p in sums[: len(places)]]
        for piece, total in zip(whole, sums[len(places) :], strict=True):
            result[piece] = total / num_workers
        if not places:
            return result, state

        own = [_quick_product(place.of(update).T, p) for place, p in zip(places, p_shared, strict=True)]
        q_shared = [total / num_workers for total in _cut((yield _joined(own)), own)]
        for place, p, q in zip(places, p_shared, q_shared, strict=True):
            result[place.start : place.stop] = Factors(p, q).numbers(Every(place.stop - place.start))
        check_finite(result, "the mean over the workers", layout)
        kept = np.concatenate([q.reshape(-1) for q in q_shared])
        return result, State(layout, {**state.memory, "q": self._warm(kept, places)})

    def guarantee(self, d: int) -> Guarantee:
        """A projection: the error is never longer than the update."""
        return Contractive(0.0)

    def _places(self, layout: Layout) -> list[_Place]:
        """The matrices worth factoring, in order."""
        places: list[_Place] = []
        at = 0
        for tensor in layout.tensors:
            if tensor.buffer or len(tensor.shape) < 2 or tensor.num_elements == 0:
                continue
            rows = tensor.shape[0]
            columns = tensor.num_elements // rows
            if (rows + columns) * self.rank < rows * columns:
                places.append(_Place(tensor.offset, rows, columns, slice(at, at + columns * self.rank)))
                at += columns * self.rank
        return places

    def _of(self, place: _Place, memory: Vector) -> Matrix:
        return memory[place.q].reshape(place.columns, self.rank)

    def _warm(self, kept: Vector, places: list[_Place]) -> Vector:
        """What to start the next round from: Q with columns of magnitude 1/2 to 1, zero ones as in the first round."""
        out = np.empty_like(kept)
        start: Vector | None = None
        for place in places:
            q, warm = self._of(place, kept), self._of(place, out)
            largest = np.abs(q).max(axis=0)
            warm[:] = np.ldexp(q.astype(np.float64), -np.frexp(largest)[1])
            if not largest.all():
                start = _start(places) if start is None else start
                warm[:, largest == 0] = self._of(place, start)[:, largest == 0]
        return out


def _start(places: list[_Place]) -> Vector:
    """Every end's first Q: 2 u - 1, u uniform in [0, 1)."""
    size = places[-1].q.stop if places else 0
    return Key(0, purpose="powersgd").uniform(size) * np.float32(2) - np.float32(1)


def _whole(piece: Vector) -> list[Part]:
    """The part of a stretch that travels as it is, none where it is empty."""
    if not piece.size:
        return []
    return [Part(Every(piece.size), Floats(piece.copy())) if piece.any() else _nothing(piece.size)]


def _nothing(length: int) -> Part:
    return Part(Explicit(length, np.empty(0, np.int64)), Floats(np.empty(0, np.float32)))


def _part(matrix: Matrix, p: Matrix, q: Matrix) -> Part:
    """The part that stands for a matrix: its factors without zero columns, or the matrix where they are no use."""
    used = p.any(axis=0) & q.any(axis=0)
    if np.abs(matrix).max() < _SMALLEST:
        return _whole(matrix.reshape(-1))[0]
    if not used.any():
        return _nothing(matrix.size)
    factors = Factors(p[:, used], q[:, used])
    if factors.bound <= LARGEST:
        return Part(Every(matrix.size), factors)
    return _whole(matrix.reshape(-1))[0]


# arithmetic of a fixed order: the same bits whatever the linear algebra library and the number of cores
#
# Products of float32 numbers are exact in float64. np.add.reduce adds them in one thread: pairwise along rows, one
# after the other down columns. In ``phases`` a worker's own products need no such care: all see the same sum of them.


def _blocks(matrix: Matrix) -> Generator[tuple[slice, Wide]]:
    step = max(1, _BLOCK // matrix.shape[1])
    for start in range(0, matrix.shape[0], step):
        yield slice(start, start + step), matrix[start : start + step].astype(np.float64)


def _product(matrix: Matrix, q: Matrix) -> Wide:
    """M Q, (m, r)."""
    out = np.empty((matrix.shape[0], q.shape[1]))
    columns = np.ascontiguousarray(q.T, np.float64)
    for rows, block in _blocks(matrix):
        products = np.empty_like(block)
        for k, column in enumerate(columns):
            np.add.reduce(np.multiply(block, column, out=products), axis=1, out=out[rows, k])
    return out


def _transposed_product(matrix: Matrix, p: Matrix) -> Wide:
    """M^T P, (n, r)."""
    out = np.zeros((p.shape[1], matrix.shape[1]))
    wide = p.astype(np.float64)
    for rows, block in _blocks(matrix):
        products = np.empty_like(block)
        for k in range(p.shape[1]):
            out[k] += np.add.reduce(np.multiply(block, wide[rows, k : k + 1], out=products), axis=0)
    return out.T


def _quick_product(matrix: Matrix, other: Matrix) -> Matrix:
    """A product by the linear algebra library: one worker's own, of which only the sum over all is used by anyone."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found before it is sent
        return matrix @ other


def _orthonormal(p: Matrix) -> Matrix:
    """Gram-Schmidt, each column twice: orthonormal columns that span those of P; dependent ones become zeros."""
    columns = np.ascontiguousarray(p.T, np.float64)
    for k, column in enumerate(columns):
        before = _norm(column)
        for _ in range(2):
            shares = np.add.reduce(columns[:k] * column, axis=1)
            column -= np.add.reduce(columns[:k] * shares[:, None], axis=0)
        after = _norm(column)
        if after > before * _DEPENDENT:
            column /= after
        else:
            column[:] = 0
    return np.ascontiguousarray(columns.T, np.float32)


def _norm(column: Wide) -> float:
    return float(np.sqrt(np.add.reduce(column * column)))


def _narrow(wide: NDArray[np.floating], scale: int = 0) -> Matrix:
    """The numbers times 2^scale, in float32; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(np.ldexp(wide.astype(np.float64, copy=False), scale), np.float32)


def _joined(arrays: list[NDArray[np.float32]]) -> Vector:
    """The arrays as one new vector, which must be finite."""
    joined = np.concatenate([array.reshape(-1) for array in arrays])
    check_finite(joined, "what is summed over the workers")
    return joined


def _cut(summed: Vector, arrays: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Sums of the shapes of the arrays that were joined."""
    size = sum(array.size for array in arrays)
    if np.shape(summed) != (size,):
        raise UpdateError(f"the sum over the workers must have shape ({size},), got {np.shape(summed)}")
    check_finite(summed, "the sum over the workers")
    ends = np.cumsum([array.size for array in arrays])
    return [piece.reshape(array.shape) for piece, array in zip(np.split(summed, ends[:-1]), arrays, strict=True)]
