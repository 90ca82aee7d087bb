"""What comes in at a server: how many payloads, packets and bytes, how late, and by how many threads."""

from __future__ import annotations

import copy
import math
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradwire as gw
from examples import up_to
from gradwire.aggregation.over_the_air import OverTheAir
from gradwire.aggregation.robust import Median
from gradwire.ends.counted import KEPT
from gradwire.files.store import pack_state, unpack_state
from gradwire.wire.packets import most_packets

LAYOUT = gw.Layout.flat(40)


def vector(seed, d=40):
    return np.random.default_rng(seed).standard_normal(d).astype(np.float32)


def blob_of(update, sequence=0, round=0, packet=None, layout=LAYOUT):
    """A payload of some number and round, whole or said to be a packet."""
    payload = gw.decode(gw.Client(gw.dense(), layout).compress(np.asarray(update, np.float32)))
    return gw.encode(replace(payload, sequence=sequence, round=round, packet=packet))


def entries(*indices, sequence=0, round=0, packet=(0, 2), value=1.0):
    """A packet with some coordinates only."""
    update = np.zeros(40, np.float32)
    update[list(indices)] = value
    return blob_of(update, sequence, round, packet)


def state_of(end):
    """The state as something that can be compared."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return str(value.dtype), value.shape, value.tobytes()
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    return plain(end.state_dict())


def refused(server, error, match, blob, client_id=0):
    """A blob is refused, by this error and no kind of it, and nothing is changed."""
    before = state_of(server)
    with pytest.raises(error, match=match) as caught:
        server.receive(blob, client_id)
    assert type(caught.value) is error
    assert state_of(server) == before


# --- one payload a client and round -----------------------------------------------------------------


@pytest.mark.parametrize("make", [gw.Server, gw.Region])
def test_one_payload_of_a_client_counts_in_a_round(make):
    end = make(gw.dense(), LAYOUT)
    for client in range(1, 10):
        end.receive(blob_of(np.ones(40)), client)
    end.receive(blob_of(-np.ones(40)), 0)
    for number in range(1, 5):
        refused(end, gw.ProtocolError, "one too many", blob_of(-np.ones(40), number))
    refused(end, gw.Duplicate, "counted already", blob_of(-np.ones(40)))
    assert end.aggregator.mean() == pytest.approx(0.8)


def test_one_client_is_one_vote_of_the_median():
    server = gw.Server(gw.dense(), LAYOUT, aggregator=lambda layout: Median(layout, True))
    for client in range(1, 6):
        server.receive(blob_of(np.full(40, client)), client)
    for number in range(10):
        try:
            server.receive(blob_of(np.full(40, -1e30), number))
        except gw.ProtocolError:
            assert number
    assert server.close_round().update == pytest.approx(2.5)  # of -1e30, 1, 2, 3, 4, 5


def test_the_round_that_counts_is_the_payloads():
    server = gw.Server(gw.dense(), LAYOUT, max_staleness=1)
    server.receive(blob_of(vector(0)))
    server.close_round()
    refused(server, gw.ProtocolError, "one too many", blob_of(vector(1), 1))
    server.receive(blob_of(vector(1), 2, round=1))
    refused(server, gw.ProtocolError, "one too many", blob_of(vector(1), 3))
    refused(server, gw.ProtocolError, "one too many", blob_of(vector(1), 3, round=1))
    server.close_round()
    server.receive(blob_of(vector(2), 4, round=2))
    assert server.close_round().accepted == ((0, 4),)


def test_packets_are_one_payload():
    server = gw.Server(gw.dense(), LAYOUT)
    server.receive(entries(1))
    refused(server, gw.ProtocolError, "one too many", entries(2, sequence=1))
    server.receive(entries(2, packet=(1, 2)))
    refused(server, gw.ProtocolError, "one too many", blob_of(vector(0), 1))
    assert server.close_round().accepted == ((0, 0),)


@pytest.mark.parametrize("limit", [3, None])
def test_more_payloads_where_that_is_wanted(limit):
    server = gw.Server(gw.dense(), LAYOUT, payloads_per_round=limit)
    for number in range(3):
        server.receive(blob_of(vector(number), number))
    if limit is not None:
        refused(server, gw.ProtocolError, "one too many: 3 of round 0 came", blob_of(vector(3), 3))
    assert server.close_round().num_received == 3


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "1"])
def test_the_number_of_payloads_is_checked(bad):
    for make in (gw.Server, gw.Region):
        with pytest.raises(gw.ConfigError, match="payloads_per_round"):
            make(gw.dense(), LAYOUT, payloads_per_round=bad)


def test_what_one_too_many_said_stays_with_its_sender():
    """Two updates in one round: what is counted and the residual are both of them."""
    client, server = (make(gw.ef(gw.topk(0.1)), LAYOUT) for make in (gw.Client, gw.Server))
    fates = {}
    for number in range(2):
        blob = client.compress(vector(number))
        try:
            server.receive(blob)
            fates[number] = True
        except gw.ProtocolError:
            fates[number] = False
    assert fates == {0: True, 1: False}
    applied = client.end_round(server.close_round().blob, fates)
    np.testing.assert_allclose(applied + client.state_dict()["residual"], vector(0) + vector(1), atol=1e-6)


def test_what_is_lost_on_the_air_is_not_counted():
    """Its replay is no Duplicate: that would tell its sender to forget it."""
    server = gw.Server(
        gw.dense(), LAYOUT, aggregator=lambda layout: OverTheAir(layout, fading="rayleigh", threshold=1e9)
    )
    server.receive(blob_of(vector(0)))
    assert server.aggregator.silent == 1
    refused(server, gw.ProtocolError, "one too many", blob_of(vector(0)))
    assert server.close_round().accepted == ()
    refused(server, gw.ProtocolError, "payload is of round 0", blob_of(vector(0)))


# --- packets ----------------------------------------------------------------------------------------


def test_overlapping_packets_are_refused():
    server = gw.Server(gw.dense(), LAYOUT, max_staleness=1)
    server.receive(entries(1, 5, packet=(0, 3)))
    refused(server, gw.ProtocolError, "packet 1 of payload 0 repeats", entries(5, 6, packet=(1, 3)))
    refused(server, gw.ProtocolError, "has 3 packets, got one of 2", entries(6, packet=(1, 2)))
    server.close_round()
    refused(server, gw.ProtocolError, "packet 1 of payload 0 repeats", entries(5, 6, packet=(1, 3)))
    refused(
        server,
        gw.ProtocolError,
        "of round 0 has 3 packets, got one of 3 of round 1",
        entries(6, round=1, packet=(1, 3)),
    )
    server.receive(entries(6, 7, packet=(2, 3)))
    server.receive(entries(packet=(1, 3)))
    assert not server.state_dict()["pieces"]


def test_one_norm_for_all_packets_however_late():
    server = gw.Server(gw.dense(), LAYOUT, max_norm=1.0, max_staleness=3)
    total = np.zeros(40)
    for number in range(4):
        server.receive(entries(number, packet=(number, 4), value=0.8))
        saved = unpack_state(pack_state(server.state_dict()), "state")
        server = gw.Server(gw.dense(), LAYOUT, max_norm=1.0, max_staleness=3)
        server.load_state_dict(saved)
        total += server.close_round().update
    assert total[:4] == pytest.approx([0.8, 0.6, 0, 0])


@pytest.mark.parametrize("count", [41, 2**20 + 1, 2**63])
def test_number_of_packets_is_bounded(count):
    assert most_packets(40) == 40
    assert most_packets(2**30) == 2**20
    refused(gw.Server(gw.dense(), LAYOUT), gw.ProtocolError, "at most 40 packets", entries(1, packet=(0, count)))


def test_no_more_packets_are_cut_than_are_read(monkeypatch):
    monkeypatch.setattr("gradwire.wire.packets._MAX_PACKETS", 5)
    client, server = (make(gw.dense(), LAYOUT) for make in (gw.Client, gw.Server))
    with pytest.raises(gw.ConfigError, match="mtu must be larger, got 30: a payload may have at most 5 packets"):
        client.packets(vector(0), 30)
    for packet in client.packets(vector(0), 80):
        server.receive(packet)
    assert np.array_equal(server.close_round().update, vector(0))


def test_an_empty_packet_costs_nothing():
    """Beside a packet with a million coordinates: neither memory nor a pass over them."""
    layout = gw.Layout.flat(10**6)
    server = gw.Server(gw.dense(), layout)
    server.receive(blob_of(np.ones(10**6), packet=(0, 100), layout=layout))
    empty = [blob_of(np.zeros(10**6), packet=(n, 100), layout=layout) for n in range(1, 4)]
    server.receive(empty[0])
    before = server._pieces[0, 0].coverage
    tracemalloc.start()
    try:
        server.receive(empty[1])
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()
    assert all(a is b for a, b in zip(server._pieces[0, 0].coverage.levels, before.levels, strict=True))


def test_a_state_with_packets_holds_no_more_than_came():
    layout = gw.Layout.flat(100_000)
    packets = gw.Client(gw.topk(0.01), layout).packets(vector(0, 100_000), 200)
    server = gw.Server(gw.topk(0.01), layout)
    bare = len(pack_state(server.state_dict()))
    for packet in packets[:-1]:
        server.receive(packet)
    assert len(pack_state(server.state_dict())) - bare <= 16 * 1000 + 2000
    again = gw.Server(gw.topk(0.01), layout)
    again.load_state_dict(unpack_state(pack_state(server.state_dict()), "state"))
    for end in (server, again):
        with pytest.raises(gw.Duplicate):
            end.receive(packets[3])
        end.receive(packets[-1])
        assert not end.state_dict()["pieces"]
    assert server.close_round().blob == again.close_round().blob


# --- bytes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_every_kind(kind):
    for end in (gw.Server(gw.dense(), LAYOUT), gw.Region(gw.dense(), LAYOUT)):
        end.receive(kind(blob_of(vector(0))))
        assert np.array_equal(end.aggregator.mean(), vector(0))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_too_many_bytes_are_refused_before_they_are_copied(kind):
    server = gw.Server(gw.dense(), LAYOUT)
    most = gw.Limits.of(40).max_bytes
    blob = kind(bytes(most + 1))
    tracemalloc.start()
    try:
        with pytest.raises(gw.LimitExceeded, match=f"at most {most} bytes, got {most + 1}"):
            server.receive(blob)
        assert tracemalloc.get_traced_memory()[1] < most / 10
    finally:
        tracemalloc.stop()
    with pytest.raises(gw.DecodeError) as caught:
        server.receive(kind(bytes(most)))
    assert not isinstance(caught.value, gw.LimitExceeded)


@pytest.mark.parametrize("spec", ["dense()", "uniform(8, scope=1, affine=True)", "topk(0.9)", "powersgd(300)"])
def test_the_costliest_payloads_are_within_the_limit(spec):
    layout = gw.Layout.from_arrays({"w": np.zeros((300, 300), np.float32), "b": np.zeros(300, np.float32)})
    blob = gw.Client(gw.parse(spec), layout).compress(vector(0, layout.d))
    assert len(blob) - 2**20 < len(blob) <= 9 * layout.d < gw.Limits.of(layout.d).max_bytes - 2**20


# --- what is forgotten ------------------------------------------------------------------------------


def test_thousands_of_rounds_with_a_tenth_lost():
    """What is kept, and what a payload is looked up in, is the same after 1,000 rounds and after 3,000."""
    rng = np.random.default_rng(0)
    server = gw.Server(gw.dense(), gw.Layout.flat(8), max_staleness=2)
    whole = gw.decode(blob_of(np.zeros(8), layout=server.layout))
    halves = [replace(whole, packet=(n, 2)) for n in range(2)]
    kept, sizes = [], []
    for index in range(3_000):
        for client, payloads in ((0, [whole]), (1, halves)):
            for payload in payloads:
                if rng.random() < 0.9:
                    server.receive(gw.encode(replace(payload, sequence=index, round=index)), client)
        server.close_round()
        if index % 60 == 59:
            sizes.append(len(pack_state(server.state_dict())))
        kept.append(sum(len(c.runs) + len(c.unfinished) for c in server._counted.values()) + len(server._pieces))
    assert max(kept) <= 2 * 2 * (KEPT + 3)
    assert max(kept[2000:]) <= max(kept[:1000])
    assert max(sizes[-10:]) <= 1.1 * max(sizes[:10])


def test_how_late_a_replay_is_known():
    """Every other payload is lost: the newest are known for ever, older ones are said to be forgotten."""
    server = gw.Server(gw.dense(), LAYOUT, max_staleness=1)
    for index in range(0, 40, 2):
        server.receive(blob_of(vector(0), index, index))
        server.close_round()
        server.close_round()
    for index in range(39):
        error = gw.Forgotten if index < 40 - 2 * KEPT - 1 else gw.ProtocolError if index % 2 else gw.Duplicate
        refused(server, error, "payload", blob_of(vector(0), index, index))
    refused(server, gw.ProtocolError, "is of round 5", blob_of(vector(0), 40, 5))


def test_packets_of_a_round_long_gone():
    server = gw.Server(gw.dense(), LAYOUT)
    server.receive(entries(1, packet=(0, 2)))
    for _ in range(50):
        server.close_round()
    refused(server, gw.Duplicate, "in this packet", entries(1, packet=(0, 2)))
    refused(server, gw.ProtocolError, "is of round 0", entries(2, packet=(1, 2)))
    for index in range(50, 50 + KEPT):
        server.receive(entries(1, sequence=index, round=index))
        server.close_round()
    refused(server, gw.Forgotten, "not known any more", entries(1, packet=(0, 2)))


def test_a_client_that_lost_its_state_is_told():
    """Its first payload has a number that was counted in an older round: no Duplicate, or it would be lost."""
    server = gw.Server(gw.dense(), LAYOUT)
    server.receive(blob_of(vector(0), 0, 0))
    server.close_round()
    refused(server, gw.ProtocolError, "lost its state", blob_of(vector(1), 0, 1))
    server.receive(entries(1, sequence=1, round=1))
    server.close_round()
    refused(server, gw.ProtocolError, "lost its state", entries(2, sequence=1, round=2, packet=(1, 2)))


def test_a_region_tells_replays_also_after_it_forwarded():
    region = gw.Region(gw.dense(), LAYOUT)
    region.receive(blob_of(vector(0)))
    region.receive(entries(1), 1)
    region.forward()
    refused(region, gw.Duplicate, "counted already", blob_of(vector(0)))
    refused(region, gw.Duplicate, "in this packet", entries(1), 1)
    refused(region, gw.ProtocolError, "was forwarded", entries(2, packet=(1, 2)), 1)
    refused(region, gw.ProtocolError, "was forwarded", blob_of(vector(0)), 2)


class Memory:
    """A server beside one that forgets nothing: whatever it says of a blob must be true."""

    def __init__(self, max_staleness, payloads_per_round):
        self.options = {"max_staleness": max_staleness, "payloads_per_round": payloads_per_round}
        self.server = gw.Server(gw.dense(), LAYOUT, **self.options)
        self.blobs = []
        self.next = [0, 0]
        self.counted = {}

    def make(self, client, in_packets, age):
        index = max(0, self.server.round - age)
        number = self.next[client]
        self.next[client] += 1
        packets = [(n, 3) for n in range(3)] if in_packets else [None]
        for packet in packets:
            update = np.zeros(40) if packet else np.ones(40)
            update[[packet[0]] if packet else []] = 1
            self.blobs.append((client, number, index, packet, blob_of(update, number, index, packet)))

    def deliver(self, at):
        client, number, index, packet, blob = self.blobs[at % len(self.blobs)]
        there = self.counted.setdefault((client, number), set())
        may_come = self.server.round - self.options["max_staleness"] <= index
        others = {n for (c, n), came in self.counted.items() if c == client and came and n != number}
        of_round = {n for c, n, i, *_ in self.blobs if (c, i) == (client, index)}
        limit = self.options["payloads_per_round"]
        too_many = limit is not None and not there and len(others & of_round) >= limit
        try:
            self.server.receive(blob, client)
        except gw.Duplicate:
            assert packet in there
        except gw.Forgotten:
            assert not may_come
            assert sum(n > number for n in others) >= KEPT
        except gw.ProtocolError:
            assert packet not in there
            assert not may_come or too_many
        else:
            assert packet not in there
            assert may_come
            assert not too_many
            there.add(packet)

    def restart(self):
        before = state_of(self.server)
        state = unpack_state(pack_state(self.server.state_dict()), "state")
        self.server = gw.Server(gw.dense(), LAYOUT, **self.options)
        self.server.load_state_dict(state)
        assert state_of(self.server) == before


MAKE = st.tuples(st.just("make"), st.integers(0, 1), st.booleans(), st.integers(0, 2))
DELIVER = st.tuples(st.just("deliver"), st.one_of(st.integers(-4, -1), st.integers(0, 200)))
OTHER = st.sampled_from([("close",), ("restart",)])


@settings(max_examples=up_to(60), deadline=None)
@given(
    st.integers(0, 2), st.sampled_from([1, 2, None]), st.lists(st.one_of(MAKE, DELIVER, DELIVER, OTHER), max_size=150)
)
def test_answers_are_true_under_any_pattern(max_staleness, payloads_per_round, steps):
    memory = Memory(max_staleness, payloads_per_round)
    for action, *arguments in steps:
        if action == "make":
            memory.make(*arguments)
        elif action == "deliver" and memory.blobs:
            memory.deliver(*arguments)
        elif action == "close":
            memory.server.close_round()
        elif action == "restart":
            memory.restart()


@pytest.mark.parametrize("payloads_per_round", [1, None])
def test_answers_are_true_over_many_rounds(payloads_per_round):
    """Long enough to forget, with everything that was ever sent coming again."""
    rng = np.random.default_rng(1)
    memory = Memory(1, payloads_per_round)
    for _ in range(60):
        for client in range(2):
            memory.make(client, bool(rng.random() < 0.5), int(rng.integers(0, 2)))
        for at in (*range(-6, 0), *rng.integers(0, len(memory.blobs), 8).tolist()):
            if rng.random() < 0.6:
                memory.deliver(at)
        memory.server.close_round()
    assert any(known.forgotten >= 0 for known in memory.server._counted.values())


# --- threads ----------------------------------------------------------------------------------------


@pytest.fixture
def _impatient():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("make", [gw.Server, gw.Region])
def test_many_threads_at_one_server(make):
    """Each payload is handed in by two threads at a time: it is counted once."""
    end, blobs = make(gw.dense(), LAYOUT), [blob_of(np.full(40, i)) for i in range(50)]
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        told = 0
        for client in range(number // 2, 50, 4):
            try:
                end.receive(blobs[client], client)
            except gw.Duplicate:
                told += 1
        return told

    with ThreadPoolExecutor(8) as pool:
        duplicates = sum(pool.map(work, range(8)))
    assert duplicates == 50
    assert end.aggregator.num_received == 50
    assert end.aggregator.mean() == pytest.approx(24.5)
    assert sorted(end.state_dict()["accepted"]) == [[i, 0] for i in range(50)]


@pytest.mark.usefixtures("_impatient")
def test_rounds_that_close_while_payloads_come():
    """What is counted in all rounds is what was accepted, once."""
    server = gw.Server(gw.dense(), LAYOUT, max_staleness=10**9)
    results, done = [], threading.Event()

    def close():
        while not done.is_set():
            results.append(server.close_round())
        results.append(server.close_round())

    def send(number):
        for client in range(number, 120, 4):
            server.receive(blob_of(np.full(40, client)), client)
            server.state_dict()

    closing = threading.Thread(target=close)
    closing.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(4)))
    done.set()
    closing.join()
    assert [r.round for r in results] == list(range(len(results)))
    assert sorted(client for r in results for client, _ in r.accepted) == list(range(120))
    total = math.fsum(float(r.update[0]) * r.sum_weights for r in results)
    assert total == pytest.approx(sum(range(120)))


def test_servers_can_be_copied():
    server = gw.Server(gw.dense(), LAYOUT)
    server.receive(blob_of(vector(0)))
    twin = copy.deepcopy(server)
    assert state_of(twin) == state_of(server)
    server.receive(blob_of(vector(1)), 1)
    assert (twin.close_round().num_received, server.close_round().num_received) == (1, 2)


def test_a_step_may_look_at_its_server():
    server = gw.Server(gw.dense(), LAYOUT)
    server.step = lambda update: update * np.float32(server.state_dict()["num_received"])
    server.receive(blob_of(np.ones(40)))
    assert server.close_round().applied == pytest.approx(1.0)


@pytest.mark.parametrize(("spec", "kept"), [("ef(topk(0.1))", 0), ("dense()", 0), ("ef(tcs(0.1, 0.05))", 4)])
def test_downlink_blobs_are_kept_only_where_payloads_lean_on_them(spec, kept):
    """As many as may be leant on: of the rounds that may still come, and the open one's."""
    server = gw.Server(gw.parse(spec), LAYOUT, max_staleness=3)
    for index in range(7):
        server.receive(gw.Client(gw.topk(0.5), LAYOUT, 1).compress(vector(index), round=index), index)
        server.close_round()
    assert len(server.state_dict()["references"]) == kept
