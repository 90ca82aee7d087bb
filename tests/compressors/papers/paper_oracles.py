"""What the tests of the papers' schemes share: plain definitions to compare with, and a network that loses things."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gradwire as gw
from gradwire.ends.downlink import reference_digest


def vectors(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def s_top(x: Iterable[float], k: int, allowed: Iterable[int] | None = None) -> list[int]:
    """S_top by sorting: min(k, non-zeros) indices, increasing; of equal magnitudes the lower index."""
    x = [abs(float(v)) for v in x]
    candidates = range(len(x)) if allowed is None else allowed
    return sorted(sorted((i for i in candidates if x[i] > 0), key=lambda i: (-x[i], i))[:k])


def equation_11(x: np.ndarray) -> np.ndarray:
    """Scaled sign: the mean magnitude times the sign."""
    x = x.astype(np.float64)
    return np.abs(x).mean() * np.sign(x)


def equation_12(x: np.ndarray, intervals: int) -> np.ndarray:
    """The fractional quantizer in exact arithmetic: u is in interval p where e_p < u <= e_(p-1); zeros stay zero."""
    u = [abs(Fraction(float(v))) for v in x]
    nonzero = [v for v in u if v]
    if not nonzero:
        return np.zeros(len(u))
    top, bottom = max(nonzero), min(nonzero)
    edges = [top ** (intervals - p) * bottom**p for p in range(intervals + 1)]  # to the power of P
    found = []
    for v in u:
        inside = [p for p in range(1, intervals + 1) if edges[p] < v**intervals <= edges[p - 1]]
        found.append(0 if not v else intervals if v == bottom else inside[0])
    means = {p: sum(v for v, q in zip(u, found, strict=True) if q == p) / found.count(p) for p in set(found)}
    return np.array([float(means[p]) * np.sign(v) if p else 0.0 for v, p in zip(x, found, strict=True)])


def support_of(blob: bytes, reference: np.ndarray | None = None) -> list[int]:
    """Coordinates that arrive other than zero."""
    return np.flatnonzero(gw.decompress(gw.decode(blob), reference)).tolist()


def buffered_layout(d: int, num_buffers: int = 3) -> gw.Layout:
    """A matrix, a vector, and running statistics that travel whole at the end."""
    half = d // 2
    return gw.Layout.from_arrays(
        {
            "w": np.zeros((half, 1), np.float32),
            "b": np.zeros(d - half, np.float32),
            "bn.running_mean": np.zeros(num_buffers, np.float32),
        }
    )


def same(a: Any, b: Any) -> bool:
    """Deep equality of states, arrays bit for bit."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def same_to_rounding(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """As ``same``, but a residual that was touched and restored may be off by float32 rounding."""
    np.testing.assert_allclose(a["residual"], b["residual"], rtol=1e-6, atol=1e-6)
    return same({**a, "residual": None}, {**b, "residual": None})


class Talk:
    """Clients and a server of one spec, and the plain loop over rounds."""

    def __init__(
        self, spec: str, layout: gw.Layout | int, num_clients: int = 2, num_rounds: int | None = None, **server: Any
    ) -> None:
        self.layout = gw.Layout.flat(layout) if isinstance(layout, int) else layout
        self.compressor = gw.parse(spec)
        self.num_rounds = num_rounds
        self.clients = [self.new_client(i) for i in range(num_clients)]
        self.server = gw.Server(self.compressor, self.layout, seed=1, **server)
        self.applied: np.ndarray | None = None
        self.blob = b""

    def new_client(self, number: int) -> gw.Client:
        return gw.Client(self.compressor, self.layout, client_id=number, seed=1, num_rounds=self.num_rounds)

    def residual(self, number: int) -> np.ndarray:
        return self.clients[number].state_dict()["residual"]

    def close(self, delivered: dict[int, Any] | None = None, heard: Iterable[int] | None = None) -> gw.Result:
        result = self.server.close_round()
        self.applied, self.blob = result.applied, result.blob
        for i in range(len(self.clients)) if heard is None else heard:
            got = self.clients[i].end_round(result.blob, (delivered or {}).get(i, True))
            assert np.array_equal(got, result.applied)
        return result

    def round(self, updates: Any, weights: Iterable[float] | None = None) -> tuple[list[bytes], gw.Result]:
        """All take part and all arrives."""
        weights = [1.0] * len(self.clients) if weights is None else list(weights)
        blobs = [c.compress(u, w) for c, u, w in zip(self.clients, updates, weights, strict=True)]
        for i, (blob, w) in enumerate(zip(blobs, weights, strict=True)):
            self.server.receive(blob, i, w)
        return blobs, self.close()


ACTIONS = ["compress", "compress", "packets", "send", "send", "close", "close", "answer", "answer", "replay", "crash",
           "crash server"]  # fmt: skip


class Network:
    """Clients that keep books: what was put in equals what the server counted, what is in flight, and the residual.

    Every step checks that. Blobs and single packets are lost, duplicated, reordered and late; every end crashes and
    goes on from its last saved state.
    """

    def __init__(self, spec: str, layout: gw.Layout, num_clients: int, max_staleness: int = 0) -> None:
        self.compressor, self.layout, self.staleness = gw.parse(spec), layout, max_staleness
        self.server = self.new_server()
        self.clients = [self.new_client(i) for i in range(num_clients)]
        self.saved = [client.state_dict() for client in self.clients]
        self.put_in = np.zeros((num_clients, layout.d))
        self.norms = np.zeros(num_clients)
        self.counted = np.zeros((num_clients, layout.d))
        self.names: set[tuple[int, int, int]] = set()
        self.references: dict[bytes, np.ndarray] = {}
        self.history: list[tuple[int, bytes]] = []
        self.last: bytes | None = None
        self.rng = np.random.default_rng(0)

    def new_server(self) -> gw.Server:
        return gw.Server(self.compressor, self.layout, seed=1, max_staleness=self.staleness)

    def new_client(self, number: int) -> gw.Client:
        return gw.Client(self.compressor, self.layout, client_id=number, seed=1, num_rounds=6)

    def vector_of(self, blob: bytes) -> np.ndarray:
        payload = gw.decode(blob)
        return gw.decompress(payload, self.references.get(payload.reference_digest or b""))

    @staticmethod
    def name(number: int, blob: bytes) -> tuple[int, int, int]:
        payload = gw.decode(blob)
        return number, payload.sequence, payload.packet[0] if payload.packet else -1

    def deliver(self, number: int, blob: bytes) -> bool:
        """True when the server counts a blob, now or before."""
        name = self.name(number, blob)
        try:
            self.server.receive(blob, number)
        except gw.Duplicate:
            assert name in self.names
            return True
        except gw.Forgotten:
            assert blob not in self.clients[number].pending, "what is not answered yet is never forgotten"
            return False
        except gw.ProtocolError:
            assert name not in self.names
            return False
        assert name not in self.names
        self.names.add(name)
        self.counted[number] += self.vector_of(blob)
        return True

    def step(self, action: str, number: int) -> None:
        client = self.clients[number]
        if action in ("compress", "packets") and not client.pending:
            update = (10.0 ** self.rng.integers(-3, 3) * self.rng.standard_normal(self.layout.d)).astype(np.float32)
            if action == "packets":
                client.packets(update, 70, round=self.server.round)
            else:
                client.compress(update, round=self.server.round)
            self.put_in[number] += update
            self.norms[number] += np.linalg.norm(update)
            self.saved[number] = client.state_dict()
            self.history += [(number, blob) for blob in client.pending]
        elif action == "send":
            for blob in client.pending:
                if self.rng.random() < 0.7:
                    self.deliver(number, blob)
        elif action == "replay" and self.history:
            for at in self.rng.integers(0, len(self.history), 3):
                self.deliver(*self.history[at])
        elif action == "crash":
            self.clients[number] = self.new_client(number)
            self.clients[number].load_state_dict(self.saved[number])
        elif action == "crash server":
            saved = self.server.state_dict()
            self.server = self.new_server()
            self.server.load_state_dict(saved)
        elif action == "close":
            result = self.server.close_round()
            self.last = result.blob
            self.references[reference_digest(result.blob)] = result.applied
        elif action == "answer" and self.last is not None:
            self.answer(number)
        self.check()

    def answer(self, number: int) -> None:
        """Send what is pending once more, and tell the client what became of it."""
        client = self.clients[number]
        if any(gw.inspect(blob)["round"] >= self.server.round for blob in client.pending):
            return  # its round is still open
        outcomes = [self.deliver(number, blob) for blob in client.pending]
        fate = {i for i, arrived in enumerate(outcomes) if arrived} if client.pending else True
        try:
            client.end_round(self.last, fate)
        except gw.ProtocolError:
            assert gw.inspect(self.last)["round"] < client.round, "heard that one before"
        self.saved[number] = client.state_dict()

    def check(self) -> None:
        for number, client in enumerate(self.clients):
            held = client.state_dict()["residual"].astype(np.float64)
            for blob in client.pending:
                if self.name(number, blob) not in self.names:
                    held += self.vector_of(blob)
            error = np.linalg.norm(self.counted[number] + held - self.put_in[number])
            assert error <= 1e-5 * self.norms[number] + 1e-30, f"client {number} lost {error}"

    def finish(self) -> None:
        """In the end all hear the last blob, and nothing is in flight."""
        self.step("close", 0)
        for number, client in enumerate(self.clients):
            self.answer(number)
            assert not client.pending
        self.check()


def check_errors(cases: Iterable[tuple[str, str]]) -> None:
    """Each spec is refused by a ConfigError that matches the pattern."""
    for spec, message in cases:
        with pytest.raises(gw.ConfigError, match=message):
            gw.parse(spec)
