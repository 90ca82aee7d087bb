"""Numbers: from a client's blob to integers on the shared support, and from their sum back to a mean."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Vector, decompress, resolve
from gradwire.compressors.pipeline import pruned
from gradwire.compressors.references import Reference
from gradwire.compressors.sparsify import listed_part
from gradwire.errors import ConfigError, ProtocolError
from gradwire.kernels import ops
from gradwire.layout import Layout
from gradwire.payload import Payload
from gradwire.secagg.terms import Terms
from gradwire.wire import Limits, decode, encode

__all__ = [
    "NUM_COUNTS",
    "centred",
    "check_layout",
    "check_sum",
    "integers_of",
    "mean_blob",
    "pack",
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
    """Return eight bytes that name the coordinates."""
    return hashlib.sha256(support.astype("<i8").tobytes()).digest()[:8]


def view_of(clients: Sequence[int]) -> bytes:
    """Return eight bytes that name the clients one knows of."""
    return hashlib.sha256(np.array(sorted(clients), "<i8").tobytes()).digest()[:8]


def integers_of(
    blob: bytes,
    layout: Layout,
    terms: Terms,
    support: Integers,
    round: int,
    reference: Vector | Reference | None = None,
) -> Integers:
    """Read what a client would send in clear as integers on the support.

    Args:
        blob: from ``gw.Client.compress``, its numbers on the grid of the terms.
        layout: the model's.
        terms: the session's.
        support: (k,) int64 increasing.
        round: the session's.
        reference: what the payload leans on, where it leans on one: (d,) float32 or a ``Reference``.

    Returns:
        (k,) int64: steps of the grid; 0 where the blob has nothing.

    Raises:
        ConfigError: on a payload of another layout or round, with numbers outside of the support or off the grid.
        DecodeError: on bytes that are no payload.
    """
    payload = decode(blob, Limits.of(layout.d))
    if payload.d != layout.d or payload.layout_digest != layout.digest:
        raise ConfigError(f"blob {layout.mismatch(payload.layout_digest.hex(), payload.d)}")
    if payload.round != round or payload.packet is not None:
        raise ConfigError(f"blob must be a whole payload of round {round}, got round {payload.round}")
    start = 0
    for number, part in enumerate(resolve(payload, reference)):
        sent = np.sort(part.support.indices[part.numbers() != 0]) + start
        start += part.length
        if (outside := int((ops.find(support, sent) < 0).sum())) > 0:
            raise ConfigError(
                f"part {number} has {outside} of {sent.size} numbers outside of the support that all clients share, "
                "which would be lost: compress with randk(density, shared=True), cyclic(density) or leader(density)"
            )
    numbers = decompress(payload, reference)[support]
    step = np.float32(terms.grid.step)
    integers = np.rint(numbers / np.float64(step)).astype(np.int64)
    if (np.abs(integers) > terms.largest).any() or (integers.astype(np.float32) * step != numbers).any():
        raise ConfigError(f"blob's numbers must be on the grid of {terms.grid}: put it after the sparsifier")
    return integers


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
