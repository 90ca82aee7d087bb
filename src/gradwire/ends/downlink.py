"""Downlink: a server's blob, read once for as many clients as follow it in one process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from gradwire.compressors.compressor import Vector, decompress
from gradwire.compressors.references import Reference
from gradwire.errors import ProtocolError
from gradwire.layout import Layout
from gradwire.payload import Payload
from gradwire.wire import Limits, decode

__all__ = ["Downlink", "reference_digest"]


@dataclass(frozen=True, eq=False)
class Downlink:
    """A blob that closed a round, and what it stands for, which is worked out once. It does not change.

    Attributes:
        blob: the bytes.
        payload: what they say.

    Example:
        >>> import numpy as np, gradwire as gw
        >>> from gradwire.ends.downlink import Downlink
        >>> layout = gw.Layout.flat(2)
        >>> server, clients = gw.Server(gw.dense(), layout), [gw.Client(gw.dense(), layout, i) for i in range(2)]
        >>> for client in clients:
        ...     server.receive(client.compress(np.array([4, 1], np.float32)), client.client_id)
        >>> downlink = Downlink.read(server.close_round().blob, layout)
        >>> [client.end_round(downlink).tolist() for client in clients]
        [[4.0, 1.0], [4.0, 1.0]]
    """

    blob: bytes
    payload: Payload

    @classmethod
    def read(cls, blob: bytes, layout: Layout) -> Downlink:
        """Read a server's blob.

        Args:
            blob: ``result.blob`` of a round that closed.
            layout: the model's.

        Raises:
            DecodeError: on a damaged blob.
            ProtocolError: on a blob of another layout, or an uplink blob.
        """
        payload = decode(blob, Limits.of(layout.d))
        downlink = cls(bytes(blob), payload)
        downlink.check(layout)
        return downlink

    def check(self, layout: Layout) -> None:
        """Raise ProtocolError on a blob of another layout, or an uplink blob."""
        payload = self.payload
        if payload.sum_weights is None:
            raise ProtocolError("end_round takes a server's blob, got a client's")
        if payload.d != layout.d or payload.layout_digest != layout.digest:
            raise ProtocolError(f"blob {layout.mismatch(payload.layout_digest.hex(), payload.d)}")
        if payload.round >= 2**63 - 1:
            raise ProtocolError(f"blob is of round {payload.round}, after which there is none")

    @cached_property
    def applied(self) -> Vector:
        """What to add to the model: (d,) float32, not to be written to."""
        applied = decompress(self.payload)
        applied.setflags(write=False)
        return applied

    @cached_property
    def reference(self) -> Reference:
        """The vector it stands for, as sparse as it came."""
        return Reference.of(self.payload)


def reference_digest(blob: bytes) -> bytes:
    """Eight bytes that name a reference: SHA-256 of the downlink blob it was decoded from."""
    return hashlib.sha256(blob).digest()[:8]
