"""Support: the coordinates that all clients of a round send, as both ends work them out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Compressor, Round
from gradwire.ends.client import Client
from gradwire.errors import ConfigError
from gradwire.layout import Layout
from gradwire.rng import Key
from gradwire.secagg import Terms
from gradwire.secagg.numbers import integers_of

__all__ = ["Support", "check_spec", "check_terms", "support_of"]

Support = NDArray[np.int64]


def check_terms(terms: Any) -> Terms:
    """Return terms that can be kept over Flower, or raise ConfigError."""
    if not isinstance(terms, Terms):
        raise ConfigError(f"terms must be Terms, got {type(terms).__name__}")
    if terms.most_in_clear:
        raise ConfigError(f"over Flower nothing is sent in clear: most_in_clear must be 0, got {terms.most_in_clear}")
    return terms


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
