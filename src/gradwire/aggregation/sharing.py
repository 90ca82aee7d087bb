"""Which coordinates of payloads all clients of a round send: what a median or an analog channel can work on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Compressor, Vector, resolve
from gradwire.compressors.references import Reference
from gradwire.errors import ConfigError, ProtocolError, StateError
from gradwire.layout import Layout
from gradwire.payload import Dithered, Explicit, Known, Payload, Seeded

__all__ = ["WHY_SHARED", "Numbers", "check_coordinates", "check_support", "numbers_of"]

_USE_INSTEAD = "use dense(), a quantizer alone, randk(density, shared=True) or cyclic(density)"
WHY_SHARED = f"where supports differ most clients send nothing at most coordinates; {_USE_INSTEAD}"


def check_support(compressor: Compressor, rule: object, partly: bool = False) -> bool:
    """Refuse an aggregation whose clients would not send the coordinates it needs.

    Args:
        compressor: what the clients compress with.
        rule: the aggregation.
        partly: whether a support that is shared in part is enough.

    Returns:
        Whether coordinates that a payload leaves out are zeros: ``zeros_are_values`` of the aggregators.

    Raises:
        ConfigError: on a compressor whose clients choose their own coordinates, or that keeps mirrors.
    """
    if compressor.mirrored:
        raise ConfigError(f"{rule} needs updates, {compressor} sends steps of a mirror, which can only be summed")
    shared = compressor.shares
    if shared == "none" or (shared == "partly" and not partly):
        raise ConfigError(f"{rule} needs clients that all send the same coordinates, got {compressor}: {WHY_SHARED}")
    return shared == "whole"


class Numbers(NamedTuple):
    """The numbers of one part of a payload, the shared ones first.

    Attributes:
        start: where the part begins in the model.
        indices: (k,) int64, coordinates of the model; increasing among the shared ones.
        numbers: (k,) float32.
        num_shared: how many of them are at coordinates that every client sends.
    """

    start: int
    indices: NDArray[np.int64]
    numbers: NDArray[np.float32]
    num_shared: int


def numbers_of(
    payload: Payload,
    layout: Layout,
    reference: Vector | Reference | None = None,
    zeros_are_values: bool = False,
    count: bool = True,
) -> list[Numbers]:
    """Tell which numbers of a payload are at coordinates that all clients of a round send.

    Shared are: every coordinate, those drawn without a client's name, a window that moves with the round, and those
    known from the reference. Running statistics travel whole: ones that are left out are zeros.

    Args:
        payload: from ``compress`` or ``decode``.
        layout: the model's layout.
        reference: the vector the payload leans on, where it leans on one: (d,) float32 or a ``Reference``.
        zeros_are_values: whether coordinates that a list leaves out are zeros, as ``dense()`` leaves zeros out, and
            not coordinates that were not chosen.
        count: as for ``Aggregator.add``.

    Returns:
        The numbers, part by part.

    Raises:
        ProtocolError: on a payload of another length, one in packets, or numbers that are not finite.
    """
    if payload.d != layout.d:
        raise ProtocolError(f"payload must have d = {layout.d}, got {payload.d}")
    if payload.packet is not None or not count:
        raise ProtocolError(f"payloads must come whole here, got packet {payload.packet}: use Client.compress")
    found: list[Numbers] = []
    start = 0
    for part in resolve(payload, reference):
        support, numbers, indices = part.support, part.numbers(), part.support.indices
        if not np.isfinite(numbers).all():
            raise ProtocolError(f"payload's numbers must be finite, part {len(found)}'s are not")
        num_shared = numbers.size
        listed = isinstance(support, (Explicit, Dithered))
        if listed and (zeros_are_values or start >= layout.num_parameters):
            numbers, indices = np.zeros(part.length, np.float32), np.arange(part.length, dtype=np.int64)
            numbers[support.indices] = part.numbers()
            num_shared = part.length
        elif isinstance(support, Known):
            num_shared = support.count
        elif listed or (isinstance(support, Seeded) and support.key.client is not None):
            num_shared = 0
        found.append(Numbers(start, start + indices, numbers, num_shared))
        start += part.length
    return found


def check_coordinates(name: str, saved: Any, d: int) -> NDArray[np.int64] | None:
    """Return a copy of saved coordinates, (k,) int64 increasing in [0, d), or None as it is; or raise StateError."""
    if saved is None:
        return None
    if not isinstance(saved, np.ndarray) or saved.dtype != np.int64 or saved.ndim != 1:
        raise StateError(f"state's {name} must be (k,) int64 or None, got {type(saved).__name__} {np.shape(saved)}")
    if saved.size and not (saved[0] >= 0 and saved[-1] < d and (np.diff(saved) > 0).all()):
        raise StateError(f"state's {name} must be increasing coordinates below {d}")
    return saved.copy()
