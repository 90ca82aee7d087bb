"""Support: a round's coordinates as bytes, where they follow from one client's update and have to be told."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.quantize import uniform
from gradwire.compressors.sparsify import threshold
from gradwire.errors import Malformed
from gradwire.layout import Layout
from gradwire.wire import Limits, decode, encode

__all__ = ["pack_support", "unpack_support"]


def pack_support(support: NDArray[np.int64], num_parameters: int) -> bytes:
    """Return coordinates as a payload that has equal numbers there."""
    marks = np.zeros(num_parameters, np.float32)
    marks[support] = 1.0
    spec = threshold(0.5) | uniform(1)
    return encode(spec.compress(marks, spec.init(Layout.flat(num_parameters)))[0])


def unpack_support(data: bytes, num_parameters: int, most: int | None = None) -> NDArray[np.int64]:
    """Return the coordinates that ``pack_support`` made bytes of, ``most`` of them at most, or raise DecodeError."""
    payload = decode(data, Limits.of(num_parameters))
    if payload.d != num_parameters or len(payload.parts) != 1 or payload.reference_digest is not None:
        raise Malformed(f"these bytes list no coordinates of {num_parameters} parameters")
    support = payload.parts[0].support.indices
    if not support.size or (most is not None and support.size > most):
        raise Malformed(f"a round has 1 to {most or num_parameters} coordinates, got {support.size}")
    return support
