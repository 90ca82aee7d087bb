"""Mean: that of a few payloads, which are all at hand, without a dense vector where they are sparse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwire.aggregation.aggregator import Aggregator
from gradwire.compressors.compressor import Vector, resolve
from gradwire.compressors.references import Reference
from gradwire.compressors.summing import listed
from gradwire.errors import ConfigError, ProtocolError
from gradwire.kernels import ops
from gradwire.layout import Layout, check_finite
from gradwire.payload import Every, Payload

__all__ = ["mean_of"]

_SPARSE = 16  # payloads that list one coordinate in so many, or fewer, all together, are added up as lists


def mean_of(payloads: Sequence[Payload], layout: Layout, reference: Vector | Reference | None = None) -> Reference:
    """Return the mean of payloads, each counting the same: bit for bit what ``Aggregator`` makes of them in this order.

    Args:
        payloads: one or more, of one round.
        layout: the model's layout.
        reference: the vector they lean on, where they lean on one: (d,) float32 or a ``Reference``.

    Returns:
        The mean, given by the coordinates that one of them lists where those are few, else dense.

    Raises:
        ConfigError: on no payload.
        ProtocolError: on one of another length, or so large that the sum could leave float32's range.
        UpdateError: where the sum leaves it.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.aggregation.mean import mean_of
        >>> layout = gw.Layout.flat(64)
        >>> updates = np.eye(64, dtype=np.float32)[[3, 5]]
        >>> blobs = [gw.Client(gw.topk(0.01), layout).compress(update) for update in updates]
        >>> mean = mean_of([gw.decode(blob) for blob in blobs], layout)
        >>> mean.indices.tolist(), mean.numbers.tolist()
        ([3, 5], [0.5, 0.5])
    """
    if not payloads:
        raise ConfigError("mean_of needs a payload or more, got none")
    for payload in payloads:
        if payload.d != layout.d:
            raise ProtocolError(f"payload must have d = {layout.d}, got {payload.d}")
    everywhere = any(isinstance(part.support, Every) and part.length for payload in payloads for part in payload.parts)
    if everywhere or sum(payload.num_kept for payload in payloads) > layout.d // _SPARSE:
        aggregator = Aggregator(layout)
        for payload in payloads:
            aggregator.add(payload, 1.0, reference)
        return Reference(layout.d, aggregator.mean())
    indices, total = np.empty(0, np.int64), np.empty(0, np.float32)
    for payload in payloads:
        indices, total = ops.merge(indices, total, *listed(resolve(payload, reference)))
    check_finite(total, "the sum of the payloads")
    return Reference(layout.d, total / np.float32(len(payloads)), indices)
