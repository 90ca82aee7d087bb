"""A synchronous round: some clients train, the server waits for them or for the deadline, all go on together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradwire.compressors.compressor import Vector
from gradwire.federated.data.training import Trained
from gradwire.federated.network.channel import send_packets
from gradwire.federated.network.links import Connection
from gradwire.federated.rounds.federation import Federation
from gradwire.federated.rounds.members import Member
from gradwire.rng import Key
from gradwire.wire import Opened

__all__ = ["synchronous_round"]


@dataclass
class _Turn:
    """One client's part in a round, in virtual seconds.

    Attributes:
        member: the client.
        connection: its connection.
        local_steps: how many it makes.
        num_bytes: its budget, or None.
        trained: when it is done with them.
        leaves: when its session ends.
        done: when the server has all of its payload; inf: never.
    """

    member: Member
    connection: Connection
    local_steps: int
    num_bytes: int | None
    trained: float
    leaves: float
    done: float = math.inf

    @property
    def client_id(self) -> int:
        return self.member.client.client_id


@dataclass(frozen=True)
class _Arrival:
    """A blob at the server: when, of whom, of which payload, and which packet of it, or None where it came whole.

    The change of a control variate arrives right after the update it goes with.
    """

    seconds: float
    client_id: int
    sequence: int
    packet: int | None
    opened: Opened
    local_steps: int
    is_control: bool = False


def synchronous_round(federation: Federation) -> Trained:
    """Run one round.

    Each client drawn downloads what it missed, trains, and uploads; what the server has when it closes the round is
    counted. It closes when it has everything, at the deadline, or, without one, when whoever is missing has left.
    A client that cannot finish training in time does not begin, but goes on with its download. Clients that are there
    at the end follow at once, the others when they are drawn again.

    Args:
        federation: what exists; its clock, model, clients and servers move on.

    Returns:
        What was trained.
    """
    f, index = federation, federation.server.round
    client_ids = f.sample(index)
    opened = f.seconds
    deadline = opened + f.seconds_of_round(index)
    with f.members.at_work(client_ids, index + 1) as members:
        turns = [_begin(f, members[i], opened, deadline) for i in client_ids]
        training = [t for t in turns if t.trained < math.inf and t.trained <= min(deadline, t.leaves)]
        for client_id in {t.client_id for t in turns} - {t.client_id for t in training}:
            f.traffic.add(client_id, "idle")
        trained = _train(f, training, index)
        arrivals = [
            a
            for turn, update in zip(training, trained.updates, strict=True)
            for a in _send(f, turn, update, index, deadline)
        ]
        for arrival in sorted(arrivals, key=lambda a: (a.seconds, a.client_id, a.packet or 0, a.is_control)):
            _deliver(f, arrival)
        f.seconds = _closing(turns, opened, deadline)
        closed_at = f.seconds
        f.close_round()
        for turn in turns:
            if turn.leaves >= closed_at:
                f.catch_up(turn.member)
        if f.ledger is not None:
            f.audit(members.values())
    return trained


def _begin(f: Federation, member: Member, opened: float, deadline: float) -> _Turn:
    """Bring a client up to date and see what it can do."""
    connection = f.connections[member.client.client_id]
    f.catch_up(member)
    ready = f.download(member, opened)
    plan = f.budget.plan(connection, ready, max(0.0, deadline - ready), f.experiment.local_steps)
    trained = connection.computed(plan.local_steps, ready)
    return _Turn(member, connection, plan.local_steps, plan.num_bytes, trained, connection.leaves(opened))


def _train(f: Federation, turns: Sequence[_Turn], index: int) -> Trained:
    jobs = [f.job(turn.client_id, index) for turn in turns]
    return f.train(
        jobs,
        f.model,
        f.experiment.step_size_at(index),
        [turn.local_steps for turn in turns],
        [turn.member.variate for turn in turns],
    )


def _send(f: Federation, turn: _Turn, update: Vector, index: int, deadline: float) -> list[_Arrival]:
    """Compress a client's update and put it on its link: what arrives, and when, by the deadline."""
    sequence = turn.member.client.sequence
    if f.experiment.mtu is not None:
        blobs = f.compress(turn.member, update, index, turn.local_steps)
        return _send_packets(f, turn, sequence, blobs, index, deadline)
    rate = f.experiment.step_size_at(index)
    control = f.compress_control(turn.member, update, turn.local_steps, rate, index)
    left = turn.num_bytes if turn.num_bytes is None or control is None else max(1, turn.num_bytes - len(control.blob))
    [blob] = f.compress(turn.member, update, index, turn.local_steps, left)
    f.traffic.sent(turn.client_id, blob)
    blobs = [blob] if control is None else [blob, control]
    sizes = [len(opened.blob) for opened in blobs]
    f.traffic.add(turn.client_id, "other", sum(sizes[1:]))
    arrived = turn.connection.uploaded(sum(sizes), turn.trained)
    if arrived < math.inf and arrived <= turn.leaves:
        turn.done = arrived
    if turn.done == math.inf or turn.done > deadline:
        f.traffic.add(turn.client_id, "lost" if turn.done == math.inf else "late")
        return []
    steps = turn.local_steps
    return [_Arrival(arrived, turn.client_id, sequence, None, b, steps, n == 1) for n, b in enumerate(blobs)]


def _send_packets(
    f: Federation, turn: _Turn, sequence: int, blobs: list[Opened], index: int, deadline: float
) -> list[_Arrival]:
    key = Key(f.seed, index, turn.client_id, "channel")
    sizes = [len(opened.blob) for opened in blobs]
    delivery = send_packets(sizes, turn.connection, turn.trained, deadline, f.experiment.loss, key)
    for opened in blobs[: delivery.num_fresh]:
        f.traffic.sent(turn.client_id, opened)
    f.traffic.sent_again(turn.client_id, delivery.sent_bytes - sum(sizes[: delivery.num_fresh]))
    if not delivery.arrivals:
        f.traffic.add(turn.client_id, "lost" if delivery.num_lost or delivery.disconnected_at is not None else "late")
    if delivery.disconnected_at is not None:
        turn.leaves = min(turn.leaves, delivery.disconnected_at)
    first = {n: at for at, n in reversed(delivery.arrivals)}
    turn.done = max(first.values()) if len(first) == len(blobs) else math.inf
    return [_Arrival(at, turn.client_id, sequence, n, blobs[n], turn.local_steps) for at, n in delivery.arrivals]


def _deliver(f: Federation, arrival: _Arrival) -> None:
    if arrival.is_control:
        f.receive_control(arrival.opened, arrival.client_id, arrival.sequence)
    else:
        name = (arrival.client_id, arrival.sequence, arrival.packet)
        f.receive(arrival.opened, name, f.weights[arrival.client_id], arrival.local_steps)


def _closing(turns: Sequence[_Turn], opened: float, deadline: float) -> float:
    """When the server closes the round: it has everything, the deadline is there, or who is missing has left."""
    if all(turn.done < math.inf for turn in turns):
        return max(opened, min(deadline, max(turn.done for turn in turns)))
    if deadline < math.inf:
        return deadline
    ends = (turn.done if turn.done < math.inf else turn.leaves for turn in turns)
    return max([opened, *(end for end in ends if end < math.inf)])
