"""Reader: take fields off bytes that may be anything, never past their end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import Malformed, Truncated

__all__ = ["Reader", "varint"]


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
        data = self._data
        at, end = self.position, len(data)
        values: list[int] = []
        for _ in range(count):
            value = shift = 0
            while True:
                if at == end:
                    raise Truncated(f"{what}: expected {count} integers at offset {self.position}, got {len(values)}")
                byte = data[at]
                at += 1
                value |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
                if shift > 42:
                    raise Malformed(f"{what}: integer too large")
            if value >= below or (shift and not byte):
                raise Malformed(f"{what} must be below {below} and in its shortest form, got {value}")
            values.append(value)
        self.position = at
        return np.array(values, np.int64)

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
        value = 0
        for group in range(10):
            if self.position == len(self._data):
                self.need(1, what)
            byte = self._data[self.position]
            self.position += 1
            value |= (byte & 0x7F) << (7 * group)
            if byte < 0x80:
                if byte == 0 and group:
                    raise Malformed(f"{what}: integer not in its shortest form")
                if value >= below:
                    raise Malformed(f"{what} must be below {below}, got {value}")
                return value
        raise Malformed(f"{what}: integer of more than 10 bytes")
