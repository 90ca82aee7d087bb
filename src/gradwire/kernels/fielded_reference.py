"""The code of what fired beside a field of row and column levels, in NumPy: what ``fielded.py`` computes bit for bit.

As in ``fires_reference.py``, but each coordinate has a level of its own: the payload's, plus its row's and column's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradwire.fields import Field
from gradwire.kernels.fires_reference import (
    DEPTH,
    LEVELS,
    REACH,
    WEIGHT,
    Thresholds,
    chunks,
    last_candidate,
    octaves_of,
)
from gradwire.kernels.fires_reference import thresholds as thresholds_from
from gradwire.kernels.range_reference import decode_bits as read_bits
from gradwire.kernels.range_reference import encode_bits as write_bits

__all__ = ["FIELD_ONES", "FIELD_ZEROS", "NARROWER", "decode_fires", "encode_fires", "outside"]

# fires among so many coordinates, by the distance of their thresholds: nearly a Laplacian's
FIELD_ONES = np.array(
    [
        *(31800, 31600, 31400, 31000, 30600, 30000, 29300, 28200, 25500, 23000, 19500, 14500),  # below the level
        *(9900, 6050, 2950, 1050, 240, 50, 14),
    ],
    np.uint64,
)
"""Initial counts of fires in each context."""
FIELD_ZEROS = np.uint64(WEIGHT) - FIELD_ONES
"""Initial counts of others."""
NARROWER = 4
"""Half octaves above the level that are told apart beside no field, but not here, where levels are nearer the truth."""


def _levels_at(indices: NDArray[np.int64], level: int, field: Field) -> NDArray[np.int64]:
    return np.clip(level + field.at(indices), 0, LEVELS - 1)


def _lasts(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The largest threshold that is coded, for each of some levels."""
    return np.array([last_candidate(level, REACH - NARROWER) for level in range(LEVELS)], np.int64)[levels]


def outside(indices: NDArray[np.int64], level: int, which: Thresholds, field: Field) -> NDArray[np.bool_]:
    """Tell which coordinates have thresholds above what is coded.

    Args:
        indices: (k,) int64 increasing.
        level: half octave of the mean magnitude, in steps times 2^32.
        which: the thresholds.
        field: of as many coordinates as the part.

    Returns:
        (k,) bool.
    """
    found = np.array([int(thresholds_from(which, i, i + 1)[0]) for i in indices.tolist()], np.int64)
    return found > _lasts(_levels_at(indices, level, field))


def _candidates(
    length: int, level: int, which: Thresholds, field: Field
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """The coordinates that are coded, and their contexts."""
    places, contexts = [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
    for start, stop in chunks(length):
        here = thresholds_from(which, start, stop)
        levels = _levels_at(np.arange(start, stop), level, field)
        found = np.flatnonzero(here <= _lasts(levels))
        places.append(start + found)
        contexts.append(np.maximum(octaves_of(here[found]) - levels[found] + DEPTH, 0).astype(np.uint32))
    return np.concatenate(places), np.concatenate(contexts)


def encode_fires(
    length: int, indices: NDArray[np.int64], level: int, which: Thresholds, field: Field
) -> NDArray[np.uint8]:
    """Write which of the coded coordinates fire.

    Args:
        length: number of coordinates.
        indices: (k,) int64 increasing: those that fire, none of them ``outside``.
        level: half octave of the mean magnitude, in steps times 2^32.
        which: the thresholds.
        field: of as many coordinates.

    Returns:
        (m,) uint8: a range code of a bit for each candidate, in order.
    """
    places, contexts = _candidates(length, level, which, field)
    bits = np.zeros(places.size, np.uint8)
    bits[np.searchsorted(places, indices)] = 1
    return write_bits(bits, contexts, FIELD_ONES, FIELD_ZEROS)


def decode_fires(
    data: NDArray[np.uint8], length: int, num_fires: int, level: int, which: Thresholds, field: Field
) -> NDArray[np.int64] | None:
    """Read what ``encode_fires`` wrote.

    Args:
        data: (m,) uint8: those bytes and no others.
        length: number of coordinates.
        num_fires: how many fire.
        level: the level.
        which: the thresholds.
        field: the field it was written beside.

    Returns:
        (num_fires,) int64 increasing; None where the bytes are not exactly those of so many fires.
    """
    places, contexts = _candidates(length, level, which, field)
    bits = read_bits(data, contexts, FIELD_ONES, FIELD_ZEROS)
    if bits is None or int(bits.sum()) != num_fires:
        return None
    return places[np.flatnonzero(bits)]
