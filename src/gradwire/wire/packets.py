"""Packets: a payload cut into self-contained blobs of bounded size, largest magnitudes first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import ConfigError
from gradwire.payload import Explicit, Fielded, Floats, Known, Part, Payload
from gradwire.wire import encode
from gradwire.wire.dithering import read_beside

__all__ = ["cut_packets", "most_packets"]

_MAX_PACKETS = 2**20
_FULL = 0.99  # of the bytes: the search for the last entry that fits costs more than the hundredth


def most_packets(d: int) -> int:
    """Return how many packets a payload of length d may have: one an entry, and 2^20."""
    return min(max(1, d), _MAX_PACKETS)


def cut_packets(payload: Payload, mtu: int) -> list[Payload]:
    """Cut a payload so that each piece takes at most ``mtu`` bytes and can be decoded without the others.

    Entries go in order of falling magnitude, ties to the lower coordinate, as many to a packet as fit, or a hundredth
    of its bytes fewer; the order of the entries inside a packet is that of their coordinates. The packets' entries are
    the payload's.

    Args:
        payload: the indices of a seeded or known support then travel, so that no packet leans on a reference; nor does
            one lean on a field.
        mtu: most bytes of a packet, container included.

    Returns:
        One packet or more, each a payload whose ``packet`` is (its number, their count).

    Raises:
        ConfigError: on an mtu too small for a single entry, or for ``most_packets``.
    """
    payload = replace(payload, parts=tuple(map(_standing_alone, payload.parts)), reference_digest=None)
    whole = replace(payload, packet=(0, 1))
    if len(encode(whole)) <= mtu:
        return [whole]
    owners, positions = _by_magnitude(payload)
    pieces = list(islice(_cut(payload, owners, positions, mtu), _MAX_PACKETS + 1))
    if len(pieces) > _MAX_PACKETS:
        raise ConfigError(f"mtu must be larger, got {mtu}: a payload may have at most {_MAX_PACKETS} packets")
    return [
        replace(_pick(payload, owners, positions, a, b), packet=(i, len(pieces))) for i, (a, b) in enumerate(pieces)
    ]


def _standing_alone(part: Part) -> Part:
    """A part without a known or fielded support: its indices, in order, travel instead."""
    if isinstance(part.support, Fielded):
        return Part(read_beside(part.support, None), part.values)
    if not isinstance(part.support, Known):
        return part
    order = np.argsort(part.support.indices)
    return Part(Explicit(part.length, part.support.indices[order]), part.values.take(order, part.support))


def _by_magnitude(payload: Payload) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part and position in it of each entry, by falling magnitude."""
    counts = [part.support.num_kept for part in payload.parts]
    owners = np.repeat(np.arange(len(counts)), counts)
    positions = np.concatenate([np.arange(count) for count in counts])
    magnitudes = np.abs(np.concatenate([part.numbers() for part in payload.parts]))
    order = np.argsort(-magnitudes, kind="stable")
    return owners[order], positions[order]


def _cut(
    payload: Payload, owners: NDArray[np.int64], positions: NDArray[np.int64], mtu: int
) -> Iterator[tuple[int, int]]:
    """Ranges of the ordered entries that fill one packet each."""
    worst = replace(payload, packet=(_MAX_PACKETS - 1, _MAX_PACKETS))

    def size(start: int, stop: int) -> int:
        return len(encode(_pick(worst, owners, positions, start, stop)))

    total, start, guess = owners.size, 0, 64
    if total == 0:
        if size(0, 0) > mtu:
            raise ConfigError(f"mtu must be at least {size(0, 0)} bytes, the size of an empty packet here, got {mtu}")
        yield 0, 0
    while start < total:
        low, high = start, total + 1  # low fits (or is empty), high does not
        stop = min(total, start + guess)
        while high - low > 1:
            took = size(start, stop)
            if took <= mtu:
                low = stop
                if took >= _FULL * mtu:
                    break
                stop = min(high - 1, max(low + 1, start + int((low - start) * mtu / took)))
            else:
                high = stop
                stop = max(low + 1, min(high - 1, start + int((stop - start) * mtu / took)))
        if low == start:
            raise ConfigError(
                f"mtu must be at least {size(start, start + 1)} bytes, the size of one entry here, got {mtu}"
            )
        yield start, low
        guess, start = low - start, low


def _pick(payload: Payload, owners: NDArray[np.int64], positions: NDArray[np.int64], start: int, stop: int) -> Payload:
    """The payload with only some of its ordered entries; neighbouring parts left without any are joined."""
    chosen_owners, chosen_positions = owners[start:stop], positions[start:stop]
    parts: list[Part] = []
    empty = 0
    for number, part in enumerate(payload.parts):
        kept = np.sort(chosen_positions[chosen_owners == number])
        if not kept.size:
            empty += part.length
            continue
        if empty:
            parts.append(_nothing(empty))
            empty = 0
        if kept.size == part.length:
            parts.append(part)
        else:
            parts.append(Part(Explicit(part.length, part.support.indices[kept]), part.values.take(kept, part.support)))
    if empty or not parts:
        parts.append(_nothing(empty))
    return replace(payload, parts=tuple(parts))


def _nothing(length: int) -> Part:
    return Part(Explicit(length, np.empty(0, np.int64)), Floats(np.empty(0, np.float32)))
