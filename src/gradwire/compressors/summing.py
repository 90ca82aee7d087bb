"""Summing: numbers at coordinates that all workers send add up without being encoded; what is left is told."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.references import Reference
from gradwire.errors import UpdateError
from gradwire.kernels import ops
from gradwire.layout import Layout, check_finite
from gradwire.payload import Cyclic, Explicit, Floats, Known, Part, Payload, Seeded

__all__ = ["add_up", "checked_sum", "listed", "num_summed"]

_NOWHERE, _NOTHING = np.empty(0, np.int64), np.empty(0, np.float32)


def checked_sum(total: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return what was heard as the sum over all workers, once it can be one.

    Args:
        total: what was heard.
        size: how many numbers were summed.

    Returns:
        (size,) float32, finite.

    Raises:
        UpdateError: on a sum of another length, or that is more than float32 holds.
    """
    if np.shape(total) != (size,):
        raise UpdateError(f"the sum over the workers must have shape ({size},), got {np.shape(total)}")
    check_finite(total, "the sum over the workers")
    return total


def listed(parts: Sequence[Part]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """List what parts stand for.

    Args:
        parts: of a payload, the indices of their supports at hand.

    Returns:
        (k,) int64 increasing: the coordinates that are sent; and the numbers there, (k,) float32.
    """
    places, numbers = [_NOWHERE], [_NOTHING]
    start = 0
    for part in parts:
        if part.support.num_kept:
            indices, found = part.support.indices, part.numbers()
            if isinstance(part.support, Known):  # the known ones come first, then the others
                count = part.support.count
                indices, found = ops.merge(indices[:count], found[:count], indices[count:], found[count:])
            places.append(start + indices)
            numbers.append(found)
        start += part.length
    return np.concatenate(places), np.concatenate(numbers)


def num_summed(payload: Payload, layout: Layout, whole: bool) -> int:
    """Tell how many numbers of a payload ``add_up`` sums: the same for whatever the workers of a round compressed.

    Args:
        payload: from ``compress`` or ``decode``.
        layout: the model's layout.
        whole: as for ``add_up``.

    Returns:
        The number.
    """
    return sum(_counts(payload.parts, layout, whole))


def add_up(
    payload: Payload, parts: Sequence[Part], layout: Layout, whole: bool, num_workers: int
) -> Generator[NDArray[np.float32] | Payload, Any, Reference]:
    """Exchange a payload with those of the other workers, and work out their mean.

    Which coordinates are shared follows from the layout, the round and the reference alone, never from the update, so
    that all workers sum the same ones: zeros that a payload leaves out are summed, too.

    Args:
        payload: this worker's.
        parts: its parts, the indices of their supports at hand.
        layout: the model's layout.
        whole: whether all coordinates are shared; else those known from the reference and the running statistics are.
        num_workers: W.

    Yields:
        (n,) float32 to be summed over all workers, where there is any; the sum is sent back. Then, unless ``whole``,
        the payload of all that is not shared; those of all workers are sent back, by rank.

    Returns:
        The mean.

    Raises:
        UpdateError: on a sum of another length, or that is more than float32 holds.
    """
    counts = _counts(parts, layout, whole)
    places = None if sum(counts) == layout.d else _placed(parts, counts)
    numbers = [_numbers(part, count) for part, count in zip(parts, counts, strict=True) if count]
    own = numbers[0] if len(numbers) == 1 else np.concatenate([_NOTHING, *numbers])
    total = checked_sum((yield own), own.size) if own.size else own
    if places is not None and not whole:
        rest = tuple(_rest(part, count) for part, count in zip(parts, counts, strict=True))
        indices, others = _NOWHERE, _NOTHING
        for told in (yield replace(payload, parts=rest, reference_digest=None)):
            indices, others = ops.merge(indices, others, *listed(told.parts))
        places, total = ops.merge(places, total, indices, others)
        check_finite(total, "the sum over the workers")
    mean = (total / np.float32(num_workers)).astype(np.float32, copy=False)
    return Reference(layout.d, mean, places)


def _counts(parts: Sequence[Part], layout: Layout, whole: bool) -> list[int]:
    """How many coordinates of each part are every worker's: the same for any update."""
    counts: list[int] = []
    start = 0
    for part in parts:
        support = part.support
        if isinstance(support, Known) or (whole and isinstance(support, (Seeded, Cyclic))):
            counts.append(support.count)
        else:  # zeros among them may have been left out
            counts.append(part.length if whole or start >= layout.num_parameters else 0)
        start += part.length
    return counts


def _placed(parts: Sequence[Part], counts: list[int]) -> NDArray[np.int64]:
    """The shared coordinates, increasing."""
    places = [_NOWHERE]
    start = 0
    for part, count in zip(parts, counts, strict=True):
        if count == part.length:
            places.append(np.arange(start, start + count))
        elif count:
            places.append(start + part.support.indices[:count])
        start += part.length
    return np.concatenate(places)


def _numbers(part: Part, count: int) -> NDArray[np.float32]:
    """The numbers at a part's shared coordinates, those that were left out being zeros."""
    if count <= part.support.num_kept:
        return part.numbers()[:count]
    out = np.zeros(part.length, np.float32)
    out[part.support.indices] = part.numbers()
    return out


def _rest(part: Part, count: int) -> Part:
    """What is left of a part without its shared coordinates."""
    support = part.support
    if not isinstance(support, Known):
        return Part(Explicit(part.length, _NOWHERE), Floats(_NOTHING)) if count else part
    others = part.values.take(np.arange(count, support.num_kept), support)
    return Part(Explicit(part.length, support.extra), others)
