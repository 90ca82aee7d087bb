"""Our operations: selection alone, the codec alone, a whole round trip, aggregation of many clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradwire.bench.measure import Operation
from gradwire.bench.updates import adversarial, blocks
from gradwire.compressors.compressor import Compressor, Round
from gradwire.compressors.spec import parse
from gradwire.ends.client import Client
from gradwire.ends.server import Result, Server
from gradwire.layout import Layout
from gradwire.payload import Payload
from gradwire.wire import decode, encode

__all__ = [
    "METHODS",
    "TOPK",
    "Codec",
    "Payloads",
    "Trip",
    "aggregation",
    "hard_inputs",
    "make_blobs",
    "on_blocks",
    "step_name",
]

TOPK = "ef(topk(0.01))"
METHODS = (TOPK, "ef(topk(0.01) | fractional(16))", "ef(tcs(0.01, 0.001))", "ef(regtopk(0.01))")

_AGAIN_NOTE = "those bytes as another client's: what the reference was asked for is known"

Vector = NDArray[np.float32]


class Payloads:
    """The lossy half alone: residual updated, indices sorted, values gathered; no bytes."""

    def __init__(self, spec: str, updates: Sequence[Vector], layout: Layout) -> None:
        self.compressor: Compressor = parse(spec)
        self.updates = updates
        self.state = self.compressor.init(layout)
        self.payload: Payload | None = None

    def run(self, number: int) -> None:
        """Compress the update of a round."""
        update = self.updates[number % len(self.updates)]
        self.payload, self.state = self.compressor.compress(update, self.state, Round(index=number, sequence=number))

    def operation(self, group: str, name: str, note: str) -> Operation:
        """Make it an operation."""
        return Operation(group, name, self.run, note, floor=self._floor)

    def _floor(self, number: int) -> None:
        add_nothing(self.state.memory["residual"], self.updates[number % len(self.updates)])


def hard_inputs(spec: str, layout: Layout, k: int) -> list[Callable[[], list[Operation]]]:
    """Tell how to make the lossy half on each of the updates that are hard to select from."""

    def maker(name: str, make: Callable[[], Vector], note: str) -> Callable[[], list[Operation]]:
        return lambda: [Payloads(spec, [make()], layout).operation("adversarial", f"{spec}, {name}", note)]

    return [maker(name, make, note) for name, (make, note) in adversarial(layout.d, k).items()]


def on_blocks(spec: str, updates: int, d: int) -> list[Operation]:
    """Make the compression of updates whose blocks differ in scale, to the bytes that travel: see ``blocks``.

    Args:
        spec: what is compressed with.
        updates: how many take turns.
        d: number of entries.
    """
    trip = Trip(spec, [blocks(seed, d) for seed in range(updates)], Layout.flat(d))
    compress = trip.operations()[0]
    note = "to the bytes that travel; 64 blocks of one vector with log-normal scales, sigma 1.5"
    return [replace(compress, name=f"{compress.name}, blocks", note=note)]


def step_name(spec: str, step: str) -> str:
    """Name a step of a round trip: compress, receive, close_round or end_round."""
    return f"{'Client' if step in ('compress', 'end_round') else 'Server'}.{step}, {spec}"


def _again(spec: str) -> str:
    return f"{step_name(spec, 'receive')}, the second of a round"


class Codec:
    """The lossless half alone: a payload to bytes and back."""

    def __init__(self, source: Payloads, spec: str) -> None:
        self.source = source
        self.spec = spec
        self.blob = b""
        self.names = (f"encode, {spec}", f"decode, {spec}")

    @property
    def num_entries(self) -> int:
        """Entries of the last payload."""
        return 0 if self.source.payload is None else sum(p.support.num_kept for p in self.source.payload.parts)

    def operations(self) -> list[Operation]:
        """Make the operations, in order, after the source's own."""
        return [
            Operation("ours", self.names[0], self._encode, "a payload to bytes"),
            Operation("ours", self.names[1], self._decode, "bytes to a payload"),
        ]

    def _encode(self, number: int) -> None:
        if self.source.payload is not None:
            self.blob = encode(self.source.payload)

    def _decode(self, number: int) -> Payload:
        return decode(self.blob)


class Trip:
    """A round of one client and its server: compress, receive, close_round, end_round.

    Args:
        spec: what the client compresses with.
        updates: (d,) float32 each, used in turn.
        layout: theirs.
        again: whether the server receives the bytes once more, as another client's: where payloads lean on the
            reference, what the first one looked for there is known to all others.
    """

    def __init__(self, spec: str, updates: Sequence[Vector], layout: Layout, again: bool = False) -> None:
        compressor = parse(spec)
        self.spec = spec
        self.again = again
        self.updates = updates
        self.client = Client(compressor, layout)
        self.server = Server(compressor, layout)
        self.blob = b""
        self.result: Result | None = None

    def operations(self) -> list[Operation]:
        """Make the four operations, in order."""
        return [
            Operation(
                "ours",
                step_name(self.spec, "compress"),
                self._compress,
                "an update to the bytes that travel",
                floor=self._floor,
            ),
            Operation("ours", step_name(self.spec, "receive"), self._receive, "those bytes into the round's sum"),
            *([Operation("ours", _again(self.spec), self._receive_again, _AGAIN_NOTE)] if self.again else []),
            Operation(
                "ours", step_name(self.spec, "close_round"), self._close, "the mean, and the bytes of the way down"
            ),
            Operation(
                "ours", step_name(self.spec, "end_round"), self._end, "those bytes to what is added to the model"
            ),
        ]

    def _floor(self, number: int) -> None:
        add_nothing(self.client._standing.state.memory["residual"], self.updates[number % len(self.updates)])

    def _compress(self, number: int) -> None:
        self.blob = self.client.compress(self.updates[number % len(self.updates)])

    def _receive(self, number: int) -> None:
        self.server.receive(self.blob)

    def _receive_again(self, number: int) -> None:
        self.server.receive(self.blob, client_id=1)

    def _close(self, number: int) -> None:
        self.result = self.server.close_round()

    def _end(self, number: int) -> Vector | None:
        return None if self.result is None else self.client.end_round(self.result.blob)


def add_nothing(total: Vector, addend: Vector) -> None:
    """One ``torch.add_``, times 0: the same way through memory, and ``total`` stays what it is."""
    import torch

    torch.from_numpy(total).add_(torch.from_numpy(addend), alpha=0)


def make_blobs(spec: str, updates: Sequence[Vector], layout: Layout) -> list[bytes]:
    """Compress each update by a client of its own."""
    return [Client(parse(spec), layout).compress(update) for update in updates]


def aggregation(spec: str, blobs: Sequence[bytes], layout: Layout, num_clients: int) -> Server:
    """Receive blobs in turn from so many clients, in one round of a new server."""
    server = Server(parse(spec), layout)
    for client_id in range(num_clients):
        server.receive(blobs[client_id % len(blobs)], client_id)
    return server
