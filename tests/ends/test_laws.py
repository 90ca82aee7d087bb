"""Law 1 (conservation), law 2 (same bytes everywhere) and law 5 (memory), under whatever the network does."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tracemalloc
from contextlib import redirect_stdout

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
import gradwire as gw

# --- law 1 ----------------------------------------------------------------------------------------

CONSERVING = [
    "ef(topk(0.1))",
    "ef(topk(0.1) | uniform(4))",
    "ef(topk(0.2) | uniform(1))",
    "ef(randk(0.2) | fp16())",
    "ef(randk(0.3, shared=True))",
    "ef(topk(0.1, scope='tensor') | bf16())",
    "ef(topk(0.2, scope=7) | uniform(8, scope=5))",
    "ef(topk(num_bytes=70) | uniform(8))",
    "ef(randk(0.2, unbiased=True), unchecked=True)",
    "ef(dense())",
    "ef(uniform(3, stochastic=True), unchecked=True)",
]
LAYOUTS = {"flat": gw.Layout.flat(40), "model": cases.model_layout(40)}


class Host:
    """One client with everything a host keeps: its last saved state, and what is in flight."""

    def __init__(self, compressor: gw.Compressor, layout: gw.Layout, number: int) -> None:
        self.compressor, self.layout, self.number = compressor, layout, number
        self.client = self._new()
        self.raw = np.zeros(layout.d)
        self.norms = 0.0
        self.saved = self.client.state_dict()

    def _new(self) -> gw.Client:
        return gw.Client(self.compressor, self.layout, client_id=self.number, seed=1)

    def crash(self) -> None:
        """Lose the process; the state was saved before anything was sent and after each answer."""
        self.client = self._new()
        self.client.load_state_dict(self.saved)

    def compress(self, update: np.ndarray, round: int) -> None:
        self.client.compress(update, round=round)
        self.raw += update
        self.norms += float(np.linalg.norm(update))
        self.saved = self.client.state_dict()

    def end_round(self, blob: bytes, delivered: dict[int, bool]) -> None:
        self.client.end_round(blob, delivered)
        self.saved = self.client.state_dict()


class World:
    """Several hosts and one server; every step checks conservation."""

    num_forgotten = 0

    def __init__(self, spec: str, layout: gw.Layout, num_clients: int, max_staleness: int = 0) -> None:
        compressor = gw.parse(spec)
        self.layout = layout
        self.make_server = lambda: gw.Server(compressor, layout, seed=1, max_staleness=max_staleness)
        self.server = self.make_server()
        self.hosts = [Host(compressor, layout, i) for i in range(num_clients)]
        self.accepted = [np.zeros(layout.d) for _ in range(num_clients)]
        self.counted: list[set[int]] = [set() for _ in range(num_clients)]
        self.history: list[tuple[int, bytes]] = []
        self.last: bytes | None = None
        self.rng = np.random.default_rng(0)

    def update(self) -> np.ndarray:
        scale = 10.0 ** self.rng.integers(-3, 3)
        return (scale * self.rng.standard_normal(self.layout.d)).astype(np.float32)

    def deliver(self, number: int, blob: bytes) -> bool:
        """Hand a blob to the server; True when it is counted, now or before."""
        sequence = gw.inspect(blob)["sequence"]
        try:
            self.server.receive(blob, number)
        except gw.Duplicate:
            assert sequence in self.counted[number]
            return True
        except gw.Forgotten:
            assert blob not in self.hosts[number].client.pending, "what is not answered yet is never forgotten"
            self.num_forgotten += 1
            return False
        except gw.ProtocolError:
            assert sequence not in self.counted[number]
            return False
        assert sequence not in self.counted[number]
        self.counted[number].add(sequence)
        self.accepted[number] += gw.decompress(gw.decode(blob))
        return True

    def step(self, action: str, number: int) -> None:
        host = self.hosts[number]
        if action == "compress" and len(host.client.pending) < 3:
            host.compress(self.update(), self.server.round)
            self.history.append((number, host.client.pending[-1]))
        elif action == "send":
            for blob in host.client.pending:
                self.deliver(number, blob)
        elif action == "replay" and self.history:
            # anything ever sent arrives again, however late and in whatever order
            for at in self.rng.integers(0, len(self.history), 3):
                self.deliver(*self.history[at])
        elif action == "crash":
            host.crash()
        elif action == "crash server":
            saved = self.server.state_dict()
            self.server = self.make_server()
            self.server.load_state_dict(saved)
        elif action == "refused update":
            bad = self.update()
            bad[-1] = np.nan
            with pytest.raises(gw.UpdateError):
                host.client.compress(bad)
        elif action == "close":
            result = self.server.close_round()
            self.last = result.blob
        elif action == "answer" and self.last is not None:
            self.answer(number)
        self.check()

    def play(self, steps: list[tuple[str, int]]) -> None:
        """Take steps, each of which is checked; in the end everyone hears the last blob, and nothing is on its way."""
        for action, number in steps:
            self.step(action, number)
        self.step("close", 0)
        for number in range(len(self.hosts)):
            self.answer(number)
        self.check()

    def answer(self, number: int) -> None:
        """A client that hears the last blob sends again what is pending and is told what became of it."""
        host = self.hosts[number]
        assert self.last is not None
        rounds = [gw.inspect(blob)["round"] for blob in host.client.pending]
        if any(r >= self.server.round for r in rounds):
            return  # its round is still open: no answer yet
        outcomes = {gw.inspect(blob)["sequence"]: self.deliver(number, blob) for blob in host.client.pending}
        try:
            host.end_round(self.last, outcomes)
        except gw.ProtocolError:
            assert gw.inspect(self.last)["round"] < host.client.round, "heard that one before"

    def check(self) -> None:
        for number, host in enumerate(self.hosts):
            state = host.client.state_dict()
            held = state["residual"].astype(np.float64)
            for blob in host.client.pending:
                if gw.inspect(blob)["sequence"] not in self.counted[number]:
                    held += gw.decompress(gw.decode(blob))
            error = np.linalg.norm(self.accepted[number] + held - host.raw)
            assert error <= 1e-5 * host.norms + 1e-30, f"client {number}: {error / host.norms} of the norms is gone"


ACTIONS = ["compress", "compress", "compress", "send", "send", "close", "answer", "answer", "replay", "crash",
           "crash server", "refused update"]  # fmt: skip


@pytest.mark.parametrize("spec", CONSERVING)
@pytest.mark.parametrize("shape", LAYOUTS)
@settings(max_examples=15, deadline=None)
@given(
    max_staleness=st.sampled_from([0, 0, 2]),
    steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 2)), min_size=10, max_size=60),
)
def test_conservation_under_any_pattern(spec, shape, max_staleness, steps):
    """Clients have up to three payloads on the way, of which a server counts one a round."""
    world = World(spec, LAYOUTS[shape], 3, max_staleness)
    world.play(steps)
    assert not any(host.client.pending for host in world.hosts)


# without a contraction the residual grows without bound, and with it float32's rounding: not for 90 rounds
@pytest.mark.parametrize("spec", [s for s in CONSERVING if "unchecked" not in s])
def test_conservation_over_many_lossy_rounds(spec):
    """90 rounds at 30 % loss and old blobs that come again: what arrived plus the residuals is what was put in."""
    rng = np.random.default_rng(4)
    world = World(spec, LAYOUTS["model"], 2)
    for _ in range(90):
        for number in range(2):
            if rng.random() < 0.8:
                world.step("compress", number)
            if rng.random() < 0.7:
                world.step("send", number)
        world.step("replay", 0)
        world.step("close", 0)
        for number in range(2):
            if rng.random() < 0.9:
                world.step("answer", number)
    assert sum(len(c) for c in world.counted) > 65
    assert world.num_forgotten > 0
    assert all(len(runs) <= 9 for _, runs, *_ in world.server.state_dict()["counted"])


def test_the_check_notices_a_loss():
    """Meta: forgetting one blob, or counting it twice, must fail."""
    world = World("ef(topk(0.1))", LAYOUTS["flat"], 1)
    world.step("compress", 0)
    world.step("send", 0)
    world.accepted[0] *= 2
    with pytest.raises(AssertionError, match="gone"):
        world.check()
    lossy = World("ef(topk(0.1), decay=0.5)", LAYOUTS["flat"], 1)
    with pytest.raises(AssertionError, match="gone"):  # noqa: PT012
        for _ in range(3):
            for action in ("compress", "send", "close", "answer"):
                lossy.step(action, 0)


@pytest.mark.parametrize("spec", [s for s in CONSERVING if "unchecked" not in s])
def test_what_is_left_behind_gets_through_in_the_end(spec):
    """With nothing new, the residual drains: error feedback sends everything sooner or later."""
    layout = gw.Layout.flat(40)
    client, server = (make(gw.parse(spec), layout, seed=1) for make in (gw.Client, gw.Server))
    update = np.random.default_rng(3).standard_normal(40).astype(np.float32)
    total = np.zeros(40)
    first = None
    for r in range(60):
        server.receive(client.compress(update if r == 0 else np.zeros(40, np.float32)))
        total += client.end_round(server.close_round().blob)
        first = np.linalg.norm(client.state_dict()["residual"]) if first is None else first
    assert np.linalg.norm(total - update) < max(0.3 * first, 1e-5)


# --- law 2 ----------------------------------------------------------------------------------------

SCRIPT = """
import hashlib
import numpy as np
import gradwire as gw

layout = gw.Layout.from_arrays({
    "w": np.zeros((50, 40), np.float32), "b": np.zeros(50, np.float32), "bn.running_mean": np.zeros(5, np.float32),
})
digest = hashlib.sha256()
state = np.uint64(1)
for spec in SPECS:
    compressor = gw.parse(spec)
    clients = [gw.Client(compressor, layout, client_id=i, seed=5) for i in range(3)]
    downlink = gw.dense() if compressor.needs_mean else gw.ef(gw.topk(0.2))
    server = gw.Server(compressor, layout, seed=5, num_clients=3, downlink=downlink)
    for r in range(3):
        for i, client in enumerate(clients):
            # splitmix64 of a counter: the updates depend on no generator of NumPy's
            z = np.arange(layout.d, dtype=np.uint64) + np.uint64(1000003 * (3 * r + i) + 1)
            z = z * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = z ^ (z >> np.uint64(27))
            update = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
            blob = client.compress(update, weight=i + 1)
            digest.update(blob)
            server.receive(blob, i, i + 1)
        result = server.close_round()
        digest.update(result.blob)
        for client in clients:
            client.end_round(result.blob, delivered=r != 1)
print(digest.hexdigest())
"""


def _digest(specs: list[str], **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"SPECS = {specs!r}\n{SCRIPT}"],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_same_bytes_in_another_process():
    specs = [row.spec for row in cases.COMPRESSORS if "num_bytes=1" not in row.spec]
    with redirect_stdout(io.StringIO()) as printed:
        exec(SCRIPT, {"SPECS": specs})
    one = printed.getvalue().strip()
    other = _digest(specs, PYTHONHASHSEED="12345", OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2", TZ="Asia/Tokyo",
                    LC_ALL="C")  # fmt: skip
    assert len(one) == 64
    assert one == other


# --- law 5 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["topk(0.001)", "topk(0.001) | uniform(4)", "randk(0.001)", "ef(topk(0.001))"])
def test_server_memory_does_not_grow_with_clients(spec):
    d = 2_000_000
    layout = gw.Layout.flat(d)
    compressor = gw.parse(spec)
    update = np.random.default_rng(0).standard_normal(d).astype(np.float32)
    blobs = [gw.Client(compressor, layout, client_id=i).compress(update) for i in range(5)]
    # 50 clients: ten of each blob under other client ids, which topk and the payload's own key allow
    tracemalloc.start()
    try:
        server = gw.Server(compressor, layout)
        for i in range(50):
            server.receive(blobs[i % 5], client_id=i)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(server.state_dict()["accepted"]) == 50
    assert peak < 1.2 * 4 * d, f"peak {peak / (4 * d):.2f} dense vectors"


def test_dense_clients_need_no_more_for_fifty_than_for_two():
    d = 300_000
    layout = gw.Layout.flat(d)
    blob = gw.Client(gw.dense(), layout).compress(np.ones(d, np.float32))
    peaks = []
    for count in (2, 50):
        tracemalloc.start()
        try:
            server = gw.Server(gw.dense(), layout)
            for i in range(count):
                server.receive(blob, client_id=i)
            server.close_round()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] + 100_000
