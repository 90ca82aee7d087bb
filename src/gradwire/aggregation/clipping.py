"""Norm clipping: no payload counts for more than its length allows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gradwire.payload import Floats, Part, Payload

__all__ = ["clip_payload"]


def clip_payload(payload: Payload, max_norm: float) -> tuple[Payload, float, float]:
    """Scale a payload down to a length, where it is longer.

    Computes x min(1, c / |x|) of the numbers x it carries.

    Args:
        payload: any; not modified.
        max_norm: c, the Euclidean norm allowed, 0 or more.

    Returns:
        The payload, itself where it is short enough; the norm of the one returned; and the factor, in [0, 1].

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.aggregation.clipping import clip_payload
        >>> blob = gw.Client(gw.dense(), gw.Layout.flat(2)).compress(np.array([3, 4], np.float32))
        >>> clipped, norm, factor = clip_payload(gw.decode(blob), 1.0)
        >>> [round(x, 3) for x in gw.decompress(clipped).tolist()], norm, factor
        ([0.6, 0.8], 1.0, 0.2)

    Source: gradient clipping by norm, Pascanu et al. 2013 (arXiv 1211.5063), Algorithm 1; of clients' updates,
        McMahan et al. 2018 (arXiv 1710.06963), section 2.1.
    Deviations: none.
    """
    numbers = [part.numbers() for part in payload.parts]
    norm = math.sqrt(sum(float(np.square(n, dtype=np.float64).sum()) for n in numbers))
    if norm <= max_norm:
        return payload, norm, 1.0
    factor = max_norm / norm
    scaled = (n.astype(np.float64) * factor for n in numbers)
    parts = tuple(
        Part(part.support, Floats(n.astype(np.float32))) for part, n in zip(payload.parts, scaled, strict=True)
    )
    return replace(payload, parts=parts), max_norm, factor
