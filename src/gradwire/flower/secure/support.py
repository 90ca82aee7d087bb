"""Support: the coordinates that all clients of a round send, as both ends work them out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Compressor, Round
from gradwire.compressors.quantize import uniform
from gradwire.compressors.sparsify import threshold
from gradwire.ends.client import Client
from gradwire.errors import ConfigError, Malformed
from gradwire.layout import Layout
from gradwire.rng import Key
from gradwire.secagg import Terms
from gradwire.secagg.numbers import integers_of
from gradwire.wire import Limits, decode

__all__ = ["check_spec", "packed", "support_of", "unpacked"]

Support = NDArray[np.int64]


def support_of(spec: Compressor, layout: Layout, seed: int, round: int) -> Support:
    """Return a round's coordinates, (k,) int64 increasing, or raise ConfigError where clients choose their own."""
    support = spec.shared_support(layout, Round(index=round, key=Key(seed, round)))
    if support is None:
        raise ConfigError(
            f"{spec} has no coordinates that all clients know of beforehand, as a secure sum needs them: take "
            "ef(leader(density) | fixed(bits, clip)), ef(randk(density, shared=True) | fixed(bits, clip)) or "
            "ef(cyclic(density) | fixed(bits, clip))"
        )
    return support


def check_spec(spec: Compressor, layout: Layout, terms: Terms, seed: int) -> int:
    """Return how many coordinates a round has at most, or raise ConfigError where payloads cannot be added up."""
    sample = (Key(seed, purpose="sample").words(layout.d) / 2**63 - 1).astype(np.float32)
    client = Client(spec, layout, seed=seed)
    support = client.propose(sample) if spec.led else support_of(spec, layout, seed, 0)
    blob = client.compress(sample, support=support if spec.led else None)
    integers_of(blob, layout, terms, support, 0)
    return support.size


def packed(support: Support, num_parameters: int) -> bytes:
    """Return coordinates as a payload that has equal numbers there."""
    marks = np.zeros(num_parameters, np.float32)
    marks[support] = 1.0
    return Client(threshold(0.5) | uniform(1), Layout.flat(num_parameters)).compress(marks)


def unpacked(data: bytes, num_parameters: int, most: int | None = None) -> Support:
    """Return the coordinates that ``packed`` made bytes of, ``most`` of them at most, or raise DecodeError."""
    payload = decode(data, Limits.of(num_parameters))
    if payload.d != num_parameters or len(payload.parts) != 1 or payload.reference_digest is not None:
        raise Malformed(f"these bytes list no coordinates of {num_parameters} parameters")
    support = payload.parts[0].support.indices
    if not support.size or (most is not None and support.size > most):
        raise Malformed(f"a round has 1 to {most or num_parameters} coordinates, got {support.size}")
    return support
