"""Reader: take fields off bytes that may be anything, never past their end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import Malformed, Truncated

__all__ = ["Reader", "varint", "varints"]

_LONGEST = 7  # bytes of an integer below 2^49
_FEW = 128  # of them are read faster one by one
_AT_ONCE = 1 << 14  # integers that are read together


def varint(value: int) -> bytes:
    """Write an integer as little-endian groups of seven bits, the high bit set on all but the last.

    Args:
        value: 0 <= value < 2^64.

    Returns:
        1 to 10 bytes.
    """
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varints(values: NDArray[np.int64]) -> bytes:
    """Write integers one after the other, each as ``varint`` does.

    Args:
        values: (n,) int64, 0 or more.

    Returns:
        Their bytes.
    """
    if values.size < _FEW:
        return b"".join(map(varint, values.tolist()))
    groups = np.ones(values.size, np.int64)
    rest = values >> 7
    while rest.any():
        groups += rest > 0
        rest >>= 7
    stops = np.cumsum(groups)
    out = np.empty(int(stops[-1]), np.uint8)
    starts, rest = stops - groups, values
    for group in range(int(groups.max())):
        here = groups > group
        if group:
            starts, rest, groups = starts[here], rest[here] >> 7, groups[here]
        out[starts + group] = (rest & 0x7F) | ((groups > group + 1) << 7)
    return out.tobytes()


class Reader:
    """A cursor over bytes.

    Attributes:
        position: offset of the next byte.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.position = 0

    @property
    def size(self) -> int:
        """Bytes in all, read or not."""
        return len(self._data)

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self.position

    def need(self, num_bytes: int, what: str) -> None:
        """Raise Truncated unless this many bytes are left."""
        if num_bytes > self.remaining:
            raise Truncated(f"{what}: expected {num_bytes} bytes at offset {self.position}, got {self.remaining}")

    def take(self, num_bytes: int, what: str) -> memoryview:
        """Read bytes as they are.

        Args:
            num_bytes: how many.
            what: the field's name, for the error.

        Returns:
            The bytes, not copied.

        Raises:
            Truncated: when there are fewer.
        """
        self.need(num_bytes, what)
        self.position += num_bytes
        return self._data[self.position - num_bytes : self.position]

    def rest(self) -> NDArray[np.uint8]:
        """Look at all bytes not read yet, as uint8, without moving."""
        return np.frombuffer(self._data[self.position :], np.uint8)

    def varints(self, count: int, what: str, below: int) -> NDArray[np.int64]:
        """Read ``count`` integers written by ``varint``, each below ``below`` <= 2^49.

        Raises:
            Truncated: when there are fewer.
            Malformed: when one is out of range or not written in the shortest way.
        """
        self.need(count, what)
        if count < _FEW:
            return np.array([self.varint(what, below) for _ in range(count)], np.int64)
        start, values = self.position, np.empty(count, np.int64)
        for first in range(0, count, _AT_ONCE):
            some = values[first : first + _AT_ONCE]
            found = np.frombuffer(self._data[self.position : self.position + _LONGEST * some.size], np.uint8)
            lasts = (found < 0x80).nonzero()[0][: some.size]
            sizes = np.diff(lasts, prepend=-1)
            unfinished = found.size - int(sizes.sum()) if lasts.size < some.size else 0
            if unfinished >= _LONGEST or sizes.max(initial=0) > _LONGEST:
                raise Malformed(f"{what}: integer too large")
            if lasts.size < some.size:
                raise Truncated(f"{what}: expected {count} integers at offset {start}, got {first + lasts.size}")
            found = found[: int(lasts[-1]) + 1]
            firsts = lasts - sizes + 1
            shifts = np.arange(found.size) - np.repeat(firsts, sizes)
            np.add.reduceat((found & 0x7F).astype(np.int64) << 7 * shifts, firsts, out=some)
            wrong = (some >= below) | ((sizes > 1) & (found[lasts] == 0))
            if wrong.any():
                got = int(some[wrong.argmax()])
                raise Malformed(f"{what} must be below {below} and in its shortest form, got {got}")
            self.position += found.size
        return values

    def byte(self, what: str) -> int:
        """Read one byte."""
        return self.take(1, what)[0]

    def varint(self, what: str, below: int = 2**64) -> int:
        """Read an integer written by ``varint``.

        Args:
            what: the field's name, for the error.
            below: the value must be smaller.

        Returns:
            The integer.

        Raises:
            Truncated: when the bytes end inside it.
            Malformed: when it is out of range or not written in the shortest way.
        """
        data, end = self._data, len(self._data)
        value = shift = 0
        while shift < 70:
            if self.position == end:
                self.need(1, what)
            byte = data[self.position]
            self.position += 1
            if byte >= 0x80:
                value |= (byte & 0x7F) << shift
                shift += 7
                continue
            value |= byte << shift
            if shift and not byte:
                raise Malformed(f"{what}: integer not in its shortest form")
            if value >= below:
                raise Malformed(f"{what} must be below {below}, got {value}")
            return value
        raise Malformed(f"{what}: integer of more than 10 bytes")
