"""Numbers: from a client's blob to integers on the shared support, and from their sum back to a mean."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Vector, resolve
from gradwire.compressors.pipeline import pruned
from gradwire.compressors.references import Reference
from gradwire.compressors.sparsify import listed_part
from gradwire.errors import ConfigError, ProtocolError
from gradwire.kernels import ops
from gradwire.layout import Layout
from gradwire.payload import Payload
from gradwire.rng import Key
from gradwire.secagg.terms import Terms
from gradwire.wire import Limits, decode, encode

__all__ = [
    "NOWHERE",
    "NUM_COUNTS",
    "Sparse",
    "added",
    "centred",
    "check_layout",
    "check_sum",
    "clear_blob",
    "integers_of",
    "mean_blob",
    "pack",
    "read_clear",
    "support_digest",
    "view_of",
]

NUM_COUNTS = 2
"""Numbers before those of the support: the weight, and how many are at the last point of the grid."""

Integers = NDArray[np.int64]


def check_layout(layout: Any) -> Layout:
    """Return a layout of parameters alone, or raise ConfigError: running statistics are on no grid."""
    if not isinstance(layout, Layout):
        raise ConfigError(f"layout must be a Layout, got {type(layout).__name__}")
    if layout.num_parameters < layout.d:
        raise ConfigError(
            f"a secure sum is of parameters alone, the layout has {layout.d - layout.num_parameters} running "
            "statistics: make it with buffers='skip'"
        )
    return layout


def support_digest(support: Integers) -> bytes:
    """Return 32 bytes that name the coordinates: all of them are in the masks' keys, so that no two supports meet."""
    return hashlib.sha256(support.astype("<i8").tobytes()).digest()


def view_of(clients: Sequence[int]) -> bytes:
    """Return 32 bytes that name the clients one knows of."""
    return hashlib.sha256(np.array(sorted(clients), "<i8").tobytes()).digest()


class Sparse(NamedTuple):
    """Integers at some coordinates.

    Attributes:
        support: (k,) int64 increasing.
        integers: (k,) int64.
    """

    support: Integers
    integers: Integers


NOWHERE = Sparse(np.empty(0, np.int64), np.empty(0, np.int64))


def added(*sums: Sparse) -> Sparse:
    """Add integers, each at its coordinate."""
    support, places = np.unique(np.concatenate([each.support for each in sums]), return_inverse=True)
    integers = np.zeros(support.size, np.int64)
    np.add.at(integers, places, np.concatenate([each.integers for each in sums]))
    return Sparse(support, integers)


def integers_of(
    blob: bytes,
    layout: Layout,
    terms: Terms,
    support: Integers,
    round: int,
    reference: Vector | Reference | None = None,
) -> tuple[Integers, Sparse]:
    """Read what a client would send in clear as integers.

    Args:
        blob: from ``gw.Client.compress``, its numbers on the grid of the terms.
        layout: the model's.
        terms: the session's.
        support: (k,) int64 increasing.
        round: the session's.
        reference: what the payload leans on, where it leans on one: (d,) float32 or a ``Reference``.

    Returns:
        (k,) int64, steps of the grid on the support, 0 where the blob has nothing; and those outside of it.

    Raises:
        ConfigError: on a payload of another layout or round, with more numbers outside of the support than the terms
            let be seen, or numbers off the grid.
        DecodeError: on bytes that are no payload.
    """
    payload = decode(blob, Limits.of(layout.d))
    if payload.d != layout.d or payload.layout_digest != layout.digest:
        raise ConfigError(f"blob {layout.mismatch(payload.layout_digest.hex(), payload.d)}")
    if payload.round != round or payload.packet is not None:
        raise ConfigError(f"blob must be a whole payload of round {round}, got round {payload.round}")
    coordinates, integers = _on_grid(payload, terms, reference)
    places = ops.find(support, coordinates)
    shared = places >= 0
    apart = Sparse(coordinates[~shared], integers[~shared])
    if apart.support.size > terms.most_in_clear:
        raise ConfigError(
            f"{apart.support.size} of {coordinates.size} numbers are outside of the support that all clients share, "
            f"where the terms have {terms.most_in_clear} sent in clear: compress with randk(density, shared=True), "
            "cyclic(density) or leader(density)"
        )
    on_support = np.zeros(support.size, np.int64)
    on_support[places[shared]] = integers[shared]
    return on_support, apart


def _on_grid(payload: Payload, terms: Terms, reference: Vector | Reference | None) -> Sparse:
    """What a payload has that is not 0, in steps of the grid."""
    start = 0
    found: list[Integers] = []
    kept: list[Vector] = []
    for part in resolve(payload, reference):
        numbers = part.numbers()
        there = numbers != 0
        found.append(start + part.support.indices[there])
        kept.append(numbers[there])
        start += part.length
    coordinates, numbers = np.concatenate(found), np.concatenate(kept)
    step = np.float32(terms.grid.step)
    steps = np.rint(numbers / np.float64(step))
    if (np.abs(steps) > terms.largest).any() or (steps.astype(np.float32) * step != numbers).any():
        raise ConfigError(f"blob's numbers must be on the grid of {terms.grid}: put it after the sparsifier")
    order = np.argsort(coordinates)  # of a known support those that follow from the reference come first
    return Sparse(coordinates[order], steps[order].astype(np.int64))


def clear_blob(apart: Sparse, layout: Layout, terms: Terms, round: int) -> bytes:
    """Write the integers that a client sends for everybody to see as a payload of their own.

    Args:
        apart: those, outside of the shared support.
        layout: the model's.
        terms: the session's.
        round: the session's.
    """
    numbers = apart.integers.astype(np.float32) * np.float32(terms.grid.step)
    parts = [listed_part(layout.d, apart.support, numbers, layout)]
    if apart.support.size:
        parts = replace(terms.grid, stochastic=False).quantize(parts, Key(0))
    return encode(Payload(layout.d, tuple(parts), round=round, layout_digest=layout.digest))


def read_clear(data: bytes, layout: Layout, terms: Terms, support: Integers, round: int) -> Sparse:
    """Read what ``clear_blob`` wrote.

    Args:
        data: anything.
        layout: the model's.
        terms: the session's.
        support: the coordinates that all share, which must not be among those.
        round: the session's.

    Raises:
        DecodeError: on bytes that are no payload.
        ProtocolError: on a payload of other numbers than the terms have sent in clear.
    """
    try:
        _, apart = integers_of(data, layout, terms, NOWHERE.support, round)
    except ConfigError as error:
        raise ProtocolError(f"what is sent in clear: {error}") from None
    if (ops.find(support, apart.support) >= 0).any():
        raise ProtocolError("what is sent in clear has numbers on the support that all clients share")
    return apart


def pack(numbers: NDArray[np.uint32], width: int) -> bytes:
    """Write integers modulo 2^width as fields, one after the other."""
    return bytes(ops.pack(numbers.astype(np.int64) & (2**width - 1), width))


def centred(numbers: NDArray[np.uint32], width: int) -> Integers:
    """Return integers modulo 2^width as those nearest to zero: from -2^(width - 1) on."""
    found: Integers = numbers.astype(np.int64) & (2**width - 1)
    return found - (found >> (width - 1) << width)


def mean_blob(
    integers: Integers, support: Integers, sum_weights: int, layout: Layout, terms: Terms, round: int
) -> bytes:
    """Write the weighted mean as one client's payload.

    Args:
        integers: (k,) int64: weighted sums.
        support: (k,) int64 increasing.
        sum_weights: 1 or more.
        layout: the model's.
        terms: the session's.
        round: the session's.
    """
    mean = (integers * (terms.grid.step / sum_weights)).astype(np.float32)
    part = pruned(listed_part(layout.d, support, mean, layout))
    return encode(Payload(layout.d, (part,), round=round, sequence=round, layout_digest=layout.digest))


def check_sum(counts: Integers, integers: Integers, num_clients: int, terms: Terms) -> tuple[int, int]:
    """Return the sum of the weights and how many numbers were at the last point of the grid.

    Raises:
        ProtocolError: on sums that no clients who kept to the terms could have: a mask is still on them.
    """
    sum_weights, num_at_clip = map(int, counts)
    fits = num_clients <= sum_weights <= num_clients * terms.max_weight
    if not fits or not 0 <= num_at_clip <= num_clients * terms.most_at_clip:
        raise ProtocolError(f"{num_clients} clients cannot have a sum of weights of {sum_weights}: one sent nonsense")
    if integers.size and int(np.abs(integers).max()) > sum_weights * terms.largest:
        raise ProtocolError(f"a sum is beyond {sum_weights} x {terms.largest}: one sent nonsense")
    return sum_weights, num_at_clip
