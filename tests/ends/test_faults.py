"""Whatever fails, wherever: both ends are as they were, or as if nothing had failed."""

from __future__ import annotations

import inspect
import signal
import sys
import time

import numpy as np
import pytest

import gradwire as gw
from gradwire.aggregation import parse_aggregation
from gradwire.ends import client as client_module
from gradwire.ends import server as server_module
from gradwire.federated.algorithms import fedadagrad, fedadam, fedavgm, fedyogi

D = 600
LAYOUT = gw.Layout.from_arrays({"w": np.zeros((20, 29), np.float32), "b": np.zeros(20, np.float32)})
SPECS = [
    "ef(topk(0.05))",
    "ef(topk(0.05) | fractional(16))",
    "ef(uniform(4))",
    "ef(dense(), decay=0.9)",
    "ef(tcs(0.05, 0.02) | fp16())",
    "ef(regtopk(0.05))",
    "ef(warmup(topk(0.05), 1, first=uniform(8)))",
    "warmup(ef(topk(0.05)), 1, first=topk(0.5))",
    "ef(powersgd(1))",
    "ef21(topk(0.05))",
    "momentum_correction(topk(0.05))",
    "momentum(qsgd(4), 0.8)",
    "momentum(ef(topk(0.05)), 0.8)",
    "ef(adaptopk_online(0.05, rounds=10))",
    "ef(topk(0.05, num_bytes=200))",
]


class Fault(BaseException):
    """What is thrown in: no Exception, as an interrupt is none."""


class Thrower:
    """Throws a fault when the so-manieth call of a function of gradwire begins."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.thrown = False

    def __call__(self, frame, event, argument):
        code = frame.f_code
        # generators are also called to be thrown away, where nothing can be raised
        if event == "call" and "gradwire" in code.co_filename and not code.co_flags & inspect.CO_GENERATOR:
            if self.thrown:  # taking back is the answer to a fault: no second one in the middle of it
                return
            if self.left == 0:
                self.thrown = True
                raise Fault
            self.left -= 1


def throwing(number, action):
    """Run an action with a fault at its call of that number; tell whether there was such a call."""
    thrower = Thrower(number)
    sys.setprofile(thrower)
    try:
        action()
    except Fault:
        pass
    finally:
        sys.setprofile(None)
    return thrower.thrown


def updates(seed, count=3):
    return np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)


def same(a, b):
    """Whether two states are equal, numbers to float32 rounding."""
    if isinstance(a, dict):
        assert set(a) == set(b)
        return all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and a.dtype.kind == "f":
        return a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-5)
    return np.array_equal(a, b)


def talk(spec, rounds=2):
    """A client and a server that have talked for some rounds, with a payload lost on the way."""
    compressor = gw.parse(spec)
    client, server = gw.Client(compressor, LAYOUT), gw.Server(compressor, LAYOUT, num_clients=1)
    for number, update in enumerate(updates(1, rounds)):
        blob = client.compress(update)
        if number:
            server.receive(blob)
        client.end_round(server.close_round().blob, delivered=bool(number))
    return client, server


STEPS = pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])


def every_fault(make, action, step=1):
    """Throw a fault into each call of an action on something freshly made: nothing may have changed."""
    number = 0
    while True:
        end = make()
        before = end.state_dict()
        if not throwing(number, lambda end=end: action(end)):
            assert number > 3
            return
        assert same(before, end.state_dict()), f"changed by a fault in call {number}"
        number += step


@STEPS
@pytest.mark.parametrize("spec", dict.fromkeys(SPECS))
def test_a_fault_in_any_call_of_compress_changes_nothing(spec, step):
    saved = talk(spec)[0].state_dict()

    def make():
        client = gw.Client(gw.parse(spec), LAYOUT)
        client.load_state_dict(saved)
        return client

    update = updates(2)[0]
    every_fault(make, lambda client: client.compress(update), step=step)


@STEPS
@pytest.mark.parametrize("spec", ["ef(topk(0.05))", "ef(tcs(0.05, 0.02))", "momentum_correction(topk(0.05))"])
def test_a_fault_in_any_call_of_packets_changes_nothing(spec, step):
    saved = talk(spec)[0].state_dict()

    def make():
        client = gw.Client(gw.parse(spec), LAYOUT)
        client.load_state_dict(saved)
        return client

    update = updates(2)[0]
    every_fault(make, lambda client: client.packets(update, 120), step=step)


@STEPS
@pytest.mark.parametrize("spec", dict.fromkeys(SPECS))
def test_a_fault_in_any_call_of_end_round_changes_nothing(spec, step):
    client, server = talk(spec)
    client.compress(updates(3)[0])
    saved, blob = client.state_dict(), server.close_round().blob

    def make():
        client = gw.Client(gw.parse(spec), LAYOUT)
        client.load_state_dict(saved)
        return client

    every_fault(make, lambda client: client.end_round(blob, delivered=False), step=step)


class Both:
    """A server and its step, as one thing with a state."""

    def __init__(self, server):
        self.server = server

    def state_dict(self):
        return {"server": self.server.state_dict(), "step": self.server.step.state_dict()}


@STEPS
@pytest.mark.parametrize("algorithm", [fedavgm(), fedadam(), fedyogi(), fedadagrad()], ids=str)
@pytest.mark.parametrize("downlink", ["dense()", "ef(topk(0.1))", "momentum_correction(topk(0.1))"])
def test_a_fault_in_any_call_of_close_round_changes_nothing(algorithm, downlink, step):
    def make():
        optimiser = algorithm.make_step(LAYOUT)
        server = gw.Server(gw.topk(0.2), LAYOUT, downlink=gw.parse(downlink), step=optimiser)
        clients = [gw.Client(gw.topk(0.2), LAYOUT, number) for number in range(3)]
        for index in range(2):
            if index:
                server.close_round()
            for client, update in zip(clients, updates(index), strict=True):
                server.receive(client.compress(update, round=index), client.client_id)
        return Both(server)

    every_fault(make, lambda both: both.server.close_round(), step=step)


@pytest.mark.parametrize("aggregator", ["mean()", "median()", "trimmed_mean(0.3)", "over_the_air(20.0)"])
def test_a_fault_in_any_call_of_close_round_leaves_what_was_received(aggregator):
    rule = parse_aggregation(aggregator)

    def make():
        server = gw.Server(gw.dense(), LAYOUT, aggregator=lambda layout: rule.make(layout, compressor=gw.dense()))
        for number, update in enumerate(updates(0)):
            server.receive(gw.Client(gw.dense(), LAYOUT, number).compress(update), number)
        return server

    every_fault(make, lambda server: server.close_round())
    server, disturbed = make(), make()
    throwing(7, disturbed.close_round)
    assert disturbed.close_round().blob == server.close_round().blob


RULES = ["mean()", "median()", "over_the_air(20.0, fading='rayleigh')"]


@STEPS
@pytest.mark.parametrize("spec", ["topk(0.2)", "dense()", "uniform(4)", "ef21(topk(0.2))", *RULES])
@pytest.mark.parametrize("earlier", [0, 1])
def test_a_fault_in_any_call_of_receive_changes_nothing(spec, earlier, step):
    """Whole payloads, the first of a round and a later one, with a norm that is bounded where it may be."""
    rule = parse_aggregation(spec) if spec in RULES else None
    compressor = gw.dense() if rule else gw.parse(spec)
    made = {"max_norm": 5.0} if rule is None and not compressor.mirrored else {}
    if rule is not None:
        made["aggregator"] = lambda layout: rule.make(layout, compressor=compressor)
    clients = [gw.Client(compressor, LAYOUT, n) for n in range(3)]
    first = clients[0].compress(updates(9)[0])
    blobs = [client.compress(update, round=1) for client, update in zip(clients, updates(0), strict=True)]

    def make():
        server = gw.Server(compressor, LAYOUT, num_clients=3, **made)
        server.receive(first)
        server.close_round()
        for number in range(earlier):
            server.receive(blobs[number], number)
        return server

    every_fault(make, lambda server: server.receive(blobs[earlier], earlier), step=step)


@STEPS
def test_a_fault_in_any_call_of_receive_of_packets_changes_nothing(step):
    packets = gw.Client(gw.topk(0.2), LAYOUT).packets(updates(0)[0], 200)

    def make(number=1):
        server = gw.Server(gw.topk(0.2), LAYOUT, max_norm=1.0)
        for packet in packets[:number]:
            server.receive(packet)
        return server

    every_fault(make, lambda server: server.receive(packets[1]), step=step)
    every_fault(lambda: make(len(packets) - 1), lambda server: server.receive(packets[-1]), step=step)


@STEPS
@pytest.mark.parametrize("forward", ["ef(dense())", "ef(topk(0.1))"])
def test_a_region_forwards_once_whatever_fails(forward, step):
    def make():
        region = gw.Region(gw.topk(0.2), LAYOUT, forward=gw.parse(forward))
        for number, update in enumerate(updates(0)):
            region.receive(gw.Client(gw.topk(0.2), LAYOUT, number).compress(update), number)
        return region

    expected = make().forward()
    blob = gw.Server(gw.dense(), LAYOUT).close_round().blob
    number, thrown = 0, True
    while thrown:
        region = make()
        thrown = throwing(number, region.forward)
        if thrown:
            assert region.forward() == expected, f"after a fault in call {number}"
        before = region.state_dict()
        if throwing(number, lambda region=region: region.end_round(blob, delivered=False)):
            assert same(before, region.state_dict()), f"changed by a fault in call {number} of end_round"
        number += step


def test_no_memory_for_the_bytes(monkeypatch):
    client, _ = talk("ef(topk(0.05))")
    before = client.state_dict()

    def none_left(payload):
        raise MemoryError

    server = gw.Server(gw.dense(), LAYOUT, downlink=gw.ef(gw.topk(0.1)))
    server.receive(gw.Client(gw.dense(), LAYOUT).compress(updates(5)[0]))
    monkeypatch.setattr(client_module, "write", none_left)
    for send in (client.compress, lambda update: client.packets(update, 200)):
        with pytest.raises(MemoryError):
            send(updates(4)[0])
        assert same(before, client.state_dict())
    monkeypatch.setattr(server_module, "encode", none_left)
    before = server.state_dict()
    with pytest.raises(MemoryError):
        server.close_round()
    assert same(before, server.state_dict())


def test_a_round_closed_after_a_fault_sends_the_mean_once(monkeypatch):
    """What the retry sends and keeps is what was never disturbed."""
    ends = [gw.Server(gw.dense(), LAYOUT, downlink=gw.ef(gw.topk(0.1)), step=fedadam().make_step(LAYOUT)) for _ in "ab"]
    for server in ends:
        server.receive(gw.Client(gw.dense(), LAYOUT).compress(updates(5)[0]))
    for number in range(0, 60, 7):
        throwing(number, ends[0].close_round) if ends[0].round == 0 else None
    results = [server.close_round() if server.round == 0 else None for server in ends]
    assert results[0] is not None
    np.testing.assert_allclose(results[0].applied, results[1].applied, rtol=1e-5, atol=1e-6)
    assert same(*(server.state_dict()["scheme"] for server in ends))


# --- real interrupts ------------------------------------------------------------------------------


@pytest.fixture
def alarm():
    """SIGALRM raises KeyboardInterrupt, as SIGINT does."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("spec", ["ef(topk(0.01))", "ef(topk(0.01) | fractional(16))", "ef(uniform(4))"])
@pytest.mark.usefixtures("alarm")
def test_interrupts_at_any_moment_lose_nothing(spec):
    """What is held is what it was before the call, or after it: never in between."""
    d, rng = 1_000_000, np.random.default_rng(0)
    client = gw.Client(gw.parse(spec), gw.Layout.flat(d))
    update = rng.standard_normal(d).astype(np.float32)
    total = np.zeros(d, np.float64)

    def held():
        sent = np.zeros(d, np.float32)
        for blob in client.pending:
            sent += gw.decompress(gw.decode(blob))
        return client.state_dict()["residual"].astype(np.float64) + sent

    for _ in range(2):  # load the kernels
        client.compress(update)
        total += update
    server = gw.Server(gw.parse(spec), gw.Layout.flat(d))
    client.end_round(server.close_round().blob, delivered=True)
    total = client.state_dict()["residual"].astype(np.float64)
    start = time.perf_counter()
    client.compress(update)
    usual = time.perf_counter() - start
    client.end_round(server.close_round().blob, delivered=False)
    total += update
    for seconds in rng.uniform(0, 1.5 * usual, 25):
        made = client.sequence
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, seconds))
                client.compress(update)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            pass
        if client.sequence > made:
            total += update
        np.testing.assert_allclose(held(), total, rtol=1e-4, atol=1e-4)
        if client.pending:
            client.end_round(server.close_round().blob, delivered=False)
