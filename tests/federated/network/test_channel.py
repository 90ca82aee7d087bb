"""Packets on a lossy link: closed forms without loss, statistics with it, and deadlines, order and disconnection."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import up_to
from gradwire.errors import ConfigError
from gradwire.federated.network.channel import Loss, send_packets
from gradwire.federated.network.traces import Conditions, Connection, ListedSessions
from gradwire.rng import Key

LINE = Connection((Conditions(0, 8000, 8000, 0.25, 1),))  # 1000 bytes a second
FALLING = Connection((Conditions(0, 8000, 1, 2.0, 1), Conditions(3, 0, 1, 1.0, 1), Conditions(4, 4000, 1, 0.1, 1)))


def send(sizes, loss=None, seed=0, connection=LINE, start=0.0, deadline=math.inf, round=0):
    key = Key(seed, round, client=0, purpose="channel")
    return send_packets(sizes, connection, start, deadline, loss or Loss(), key)


def numbers(delivery):
    return [number for _, number in delivery.arrivals]


@pytest.mark.parametrize("connection", [LINE, FALLING])
@pytest.mark.parametrize("start", [0.0, 1.7])
def test_without_loss_the_last_arrives_with_the_whole(connection, start):
    sizes = np.random.default_rng(0).integers(1, 300, 50).tolist()
    done = send(sizes, connection=connection, start=start)
    assert numbers(done) == list(range(50))
    assert done.arrivals[-1][0] == pytest.approx(connection.uploaded(sum(sizes), start), rel=1e-9)
    assert done.delivered == set(range(50))
    assert (done.sent_bytes, done.num_sent, done.num_lost) == (sum(sizes), 50, 0)
    latency = connection.at(done.arrivals[-1][0]).latency_seconds
    assert done.end_seconds == pytest.approx(done.arrivals[-1][0] + latency)
    assert done.disconnected_at is None


def test_no_packets():
    done = send([], Loss(loss=0.5, disconnection=0.9), start=3.0)
    assert done.arrivals == ()
    assert done.delivered == frozenset()
    assert (done.sent_bytes, done.num_sent, done.num_lost, done.end_seconds) == (0, 0, 0, 3.0)
    assert done.disconnected_at is None


def test_one_loss_by_hand():
    # the first seed under which packet 0 alone is lost, once
    for seed in range(1000):
        done = send([1000, 1000, 1000], Loss(loss=0.3), seed)
        if done.num_sent == 4 and numbers(done) == [1, 0, 2]:
            break
    # 0 leaves by 1 s, is known to be lost at 1.5 s, and goes as soon as 1 has left, before 2
    assert [at for at, _ in done.arrivals] == pytest.approx([2.25, 3.25, 4.25])
    assert done.end_seconds == pytest.approx(4.5)
    assert done.num_lost == 1


def test_the_sender_waits_for_the_timeout():
    seed = next(seed for seed in range(1000) if send([1000], Loss(loss=0.5), seed).num_sent == 2)
    done = send([1000], Loss(loss=0.5), seed)
    assert done.arrivals == ((pytest.approx(1 + 2 * 0.25 + 1 + 0.25), 0),)


def test_of_several_lost_the_most_important_goes_first():
    # 0, 1 and 2 are lost once, which is known before 3, that takes 3 s, has left
    for seed in range(1000):
        done = send([100, 100, 100, 3000], Loss(loss=0.6), seed)
        if done.num_sent == 7 and numbers(done) == [3, 0, 1, 2]:
            break
    assert [at for at, _ in done.arrivals] == pytest.approx([3.55, 3.65, 3.75, 3.85])


def test_it_is_given_up_when_the_loss_is_known():
    seed = next(seed for seed in range(1000) if send([1000], Loss(loss=0.5), seed, deadline=2.0).num_lost)
    done = send([1000], Loss(loss=0.5), seed, deadline=2.0)  # again would arrive at 2.75 s
    assert (done.num_sent, done.delivered) == (1, frozenset())
    assert done.end_seconds == pytest.approx(1.5)


def test_a_deadline_that_has_passed():
    for seed in range(20):
        done = send([10], Loss(disconnection=0.9), seed, start=5.0, deadline=4.0)
        assert (done.num_sent, done.end_seconds, done.disconnected_at) == (0, 5.0, None)


def test_everything_arrives_without_a_deadline():
    for seed in range(20):
        done = send([100] * 50, Loss(loss=0.3, reordering=0.2, reorder_seconds=0.5), seed)
        assert sorted(numbers(done)) == list(range(50))
        assert done.num_sent == 50 + done.num_lost
        assert done.sent_bytes == 100 * done.num_sent


@pytest.mark.parametrize("p", [0.1, 0.3, 0.7])
def test_loss_share_and_number_of_transmissions(p):
    packets = 5000
    done = send([10] * packets, Loss(loss=p))
    assert done.num_lost / done.num_sent == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / done.num_sent))
    # a packet's transmissions are geometric: mean 1 / (1 - p), variance p / (1 - p)^2
    spread = math.sqrt(p / packets) / (1 - p)
    assert done.num_sent / packets == pytest.approx(1 / (1 - p), abs=5 * spread)


def test_a_tight_deadline_delivers_a_prefix():
    sizes = [300, 100, 500, 20, 400, 10]
    for deadline in np.linspace(0.003, 2, 41):  # none of them on a packet's arrival
        done = send(sizes, deadline=deadline)
        assert numbers(done) == list(range(len(done.arrivals)))
        assert len(done.delivered) == sum(LINE.uploaded(total) <= deadline for total in np.cumsum(sizes).tolist())
        assert done.sent_bytes == sum(sizes[: len(done.delivered)])  # what is too late is not sent at all
        assert done.end_seconds <= max(deadline, 0)
    assert send(sizes, deadline=0.2).num_sent == 0


losses = st.builds(
    Loss,
    loss=st.floats(0, 0.8),
    duplication=st.floats(0, 0.9),
    reordering=st.floats(0, 0.9),
    reorder_seconds=st.floats(0.001, 3),
    disconnection=st.floats(0, 0.9),
)


@settings(deadline=None, max_examples=up_to(200))
@given(
    sizes=st.lists(st.integers(1, 2000), max_size=12),
    loss=losses,
    start=st.floats(0, 10),
    patience=st.floats(0, 20),
    seed=st.integers(0, 1000),
    connection=st.sampled_from([LINE, FALLING, Connection(LINE.conditions, ListedSessions(True, (6.0,)))]),
)
def test_what_every_delivery_keeps(sizes, loss, start, patience, seed, connection):
    deadline = start + patience
    done = send(sizes, loss, seed, connection, start, deadline)
    assert done == send(sizes, loss, seed, connection, start, deadline)
    times = [at for at, _ in done.arrivals]
    assert times == sorted(times)
    assert all(start < at <= deadline for at in times)
    assert done.delivered == set(numbers(done)) <= set(range(len(sizes)))
    assert done.num_sent - done.num_lost == len(done.delivered)
    assert len(done.delivered) <= len(times) <= 2 * len(done.delivered)
    assert start <= done.end_seconds <= deadline
    if done.disconnected_at is not None:
        assert done.end_seconds == done.disconnected_at <= connection.leaves(start)
    if not sizes:
        assert done.num_sent == 0


def test_other_keys_give_other_deliveries():
    loss = Loss(loss=0.3)
    assert send([100] * 30, loss) == send([100] * 30, loss)
    assert send([100] * 30, loss) != send([100] * 30, loss, seed=1)
    assert send([100] * 30, loss) != send([100] * 30, loss, round=1)


def test_duplicates_need_duplication():
    once = send([10] * 2000, Loss(loss=0.3, reordering=0.5, reorder_seconds=2.0))
    assert len(once.arrivals) == 2000
    twice = send([10] * 2000, Loss(duplication=0.25))
    assert len(twice.delivered) == 2000
    assert len(twice.arrivals) / 2000 == pytest.approx(1.25, abs=5 * math.sqrt(0.25 * 0.75 / 2000))
    assert twice.sent_bytes == 20_000  # the network made the copies, not the sender
    apart = send([10] * 200, Loss(duplication=0.99, reordering=0.5, reorder_seconds=0.1))
    assert len({(at, number) for at, number in apart.arrivals}) > 300  # each copy is held back by itself


def test_reordering():
    done = send([10] * 2000, Loss(reordering=0.3, reorder_seconds=0.1))
    held = sum(abs(at - (0.25 + 0.01 * (number + 1))) > 1e-6 for at, number in done.arrivals)
    assert held / 2000 == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 2000))
    assert numbers(done) != sorted(numbers(done))
    assert max(at - (0.25 + 0.01 * (number + 1)) for at, number in done.arrivals) <= 0.1 + 1e-6
    assert numbers(send([10] * 200, Loss(loss=0.0))) == list(range(200))


def test_a_small_lost_packet_is_still_tried():
    # 0 (large) and 1 (small) are both lost; by their timeouts only the small one can still arrive
    sizes, deadline = [1500, 100], 3.0
    seeds = [s for s in range(400) if send(sizes, Loss(loss=0.5), s, deadline=deadline).delivered == {1}]
    resent = [send(sizes, Loss(loss=0.5), s, deadline=deadline) for s in seeds]
    assert any(done.num_sent >= 3 and done.sent_bytes == 1600 + 100 * (done.num_sent - 2) for done in resent)
    assert all(done.end_seconds <= deadline for done in resent)


@pytest.mark.parametrize("start", [0.0, 7.0])
def test_disconnection_comes_as_often_and_as_evenly_as_asked(start):
    sizes = [10] * 100  # 1 s, then 0.25 s until the last has arrived
    runs = [send(sizes, Loss(disconnection=0.4), seed, start=start) for seed in range(800)]
    gone = [done.disconnected_at - start for done in runs if done.disconnected_at is not None]
    assert len(gone) / 800 == pytest.approx(0.4, abs=5 * math.sqrt(0.24 / 800))
    assert np.mean(gone) == pytest.approx(1.25 / 2, abs=5 * 1.25 / math.sqrt(12 * len(gone)))
    assert 0 <= min(gone) <= max(gone) <= 1.25
    for done in runs:
        if done.disconnected_at is not None:
            left = min(100, math.floor((done.disconnected_at - start) / 0.01 + 1e-9))
            assert abs(len(done.delivered) - left) <= 1
            assert done.delivered == set(range(len(done.delivered)))
            assert done.num_sent - len(done.delivered) == done.num_lost <= 1
        else:
            assert len(done.delivered) == 100


def test_the_end_of_a_session_cuts():
    leaving = Connection(LINE.conditions, ListedSessions(True, (2.5, 10.0)))
    done = send([1000] * 4, connection=leaving)
    assert done.arrivals == ((1.25, 0), (2.25, 1))
    assert done.disconnected_at == done.end_seconds == 2.5
    assert (done.num_sent, done.sent_bytes, done.num_lost) == (3, 3000, 1)  # the third was cut off
    away = send([1000], connection=leaving, start=3.0)
    assert (away.num_sent, away.disconnected_at, away.end_seconds) == (0, 3.0, 3.0)
    back = send([1000], connection=leaving, start=10.0)
    assert back.disconnected_at is None
    in_flight = send([2400], connection=leaving)  # has left at 2.4 s, arrives at 2.65 s
    assert in_flight.delivered == {0}
    assert in_flight.disconnected_at == 2.5


def test_a_line_that_dies_ends_the_upload():
    dying = Connection((Conditions(0, 8000, 1, 0.25, 1), Conditions(2, 0, 1, 0.25, 1)))
    done = send([1000] * 5, connection=dying)
    assert done.delivered == {0, 1}
    assert done.disconnected_at is None
    assert math.isfinite(done.end_seconds)
    for seed in range(30):
        assert send([1000] * 5, Loss(loss=0.5, disconnection=0.9), seed, dying).disconnected_at is None


def test_no_time_at_all():
    ideal = Connection((Conditions(0, math.inf, math.inf, 0.0, math.inf),))
    done = send([10**6] * 100, Loss(loss=0.5), connection=ideal, start=5.0)
    assert done.delivered == set(range(100))
    assert {at for at, _ in done.arrivals} == {5.0}
    assert done.end_seconds == 5.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": 1.0}, r"loss must be in \[0, 1\), got 1.0"),
        ({"duplication": -0.1}, r"duplication must be in \[0, 1\), got -0.1"),
        ({"reordering": math.nan}, r"reordering must be finite, got nan"),
        ({"disconnection": 2}, r"disconnection must be in \[0, 1\), got 2"),
        ({"reorder_seconds": -1.0}, r"reorder_seconds must be >= 0, got -1.0"),
        ({"reordering": 0.1}, r"reorder_seconds must be > 0 where reordering is, got 0"),
    ],
)
def test_bad_losses(settings, message):
    with pytest.raises(ConfigError, match=message):
        Loss(**settings)


def test_other_refusals():
    with pytest.raises(ConfigError, match="packet size must be an integer of 1 or more, got 0"):
        send([10, 0])
    with pytest.raises(ConfigError, match="deadline must be >= 0 seconds, got nan"):
        send([10], deadline=math.nan)
    with pytest.raises(ConfigError, match="start must be >= 0, got -1"):
        send([10], start=-1)
