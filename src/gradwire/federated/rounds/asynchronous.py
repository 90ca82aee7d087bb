"""Asynchronous rounds: clients train and send at their own pace, the server steps when enough has arrived."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Vector
from gradwire.errors import ProtocolError, StateError
from gradwire.federated.data.training import Trained
from gradwire.federated.rounds.federation import Federation, Job
from gradwire.rng import Key
from gradwire.saved import reading_state, saved_integer, saved_number, saved_real, saved_vector, to_bytes
from gradwire.wire import read

__all__ = ["AsynchronousRounds"]

_BEGIN, _TRAINED, _ARRIVED = range(3)
_MOST_CUT_OFF = 100  # for each client


@dataclass
class _Turn:
    """What one client is doing.

    Attributes:
        job: what it trains on.
        version: the round whose model it started from.
        local_steps: how many it makes.
        num_bytes: its budget, or None.
        leaves: when its session ends, virtual seconds.
    """

    job: Job
    version: int
    local_steps: int
    num_bytes: int | None
    leaves: float


class AsynchronousRounds:
    """The event queue of a federation whose server does not wait for all.

    A client downloads what it missed, trains, uploads, and its place is taken by another one, itself where all are at
    work. The server weighs each payload by its age and steps when ``buffer_size`` of them have arrived; that is a
    round. An update is worked out when the first client of those at work is done with it: nothing that happens in
    between changes it, and many at a time are faster.

    Args:
        federation: what exists.

    Source: FedAsync, Xie et al. 2019 (arXiv 1903.03934), Algorithm 1; FedBuff, Nguyen et al. 2022 (arXiv 2106.06639),
        Algorithm 1.
    Deviations: see ``fedasync`` and ``fedbuff``.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._events: list[tuple[float, int, int, int]] = []
        self._num_events = 0
        self._num_cut_off = 0
        self._turns: dict[int, _Turn] = {}
        self._models: dict[int, Vector] = {}
        self._updates: dict[int, tuple[Vector, float]] = {}
        self._blobs: dict[int, tuple[int, bytes]] = {}
        self._buffer: list[tuple[Vector, float, float]] = []
        self._staleness: list[int] = []
        e = federation.experiment
        wanted = max(1, round(e.participation * e.clients))
        at_work = Key(federation.seed, purpose="sampling").choice(e.clients, wanted)
        for client_id in at_work:
            self._push(0.0, _BEGIN, int(client_id))
        self._idle = sorted(set(range(e.clients)) - {int(i) for i in at_work})

    @property
    def staleness(self) -> float | None:
        """Mean age of the payloads of the last round; None where there were none."""
        return float(np.mean(self._staleness)) if self._staleness else None

    def round(self) -> Trained:
        """Let time pass until the server has made its next step.

        Returns:
            The updates it was made of.

        Raises:
            ProtocolError: when no client will ever send again.
        """
        f, handlers = self._federation, (self._begin, self._trained, self._arrived)
        index = f.server.round
        self._buffer, self._staleness = [], []
        while f.server.round == index:
            if not self._events:
                raise ProtocolError(f"round {index}: no client will ever send again")
            at, _, kind, client_id = heapq.heappop(self._events)
            f.seconds = max(f.seconds, at)
            handlers[kind](client_id, at)
        updates, losses, weights = zip(*self._buffer, strict=True)
        return Trained(np.stack(updates), np.array(losses, np.float32), np.array(weights))

    def _push(self, at: float, kind: int, client_id: int) -> None:
        if at < math.inf:
            heapq.heappush(self._events, (at, self._num_events, kind, client_id))
            self._num_events += 1

    def _begin(self, client_id: int, now: float) -> None:
        """A client looks for work: it waits until it can be reached and has examples, then trains."""
        f, e = self._federation, self._federation.experiment
        connection = f.connections[client_id]
        if not connection.available(now):
            self._push(connection.next_available(now), _BEGIN, client_id)
            return
        with f.members.at_work([client_id], f.server.round + 1) as members:
            member = members[client_id]
            examples, used = None, member.examples_used
            if e.examples_per_second is not None:
                needed = member.examples_used + e.local_steps * e.batch_size
                if needed > e.examples_per_second * now * (1 + 1e-12):
                    self._push(needed / e.examples_per_second, _BEGIN, client_id)
                    return
                used = needed
                examples = f.shards[client_id][: max(1, int(e.examples_per_second * now))]
            f.catch_up(member)
            f.audit([member])
            ready, leaves = f.download(member, now), connection.leaves(now)
            deadline = now + f.seconds_of_round(f.server.round)
            plan = f.budget.plan(connection, ready, max(0.0, deadline - ready), e.local_steps)
            done = connection.computed(plan.local_steps, ready)
            if done > leaves or done == math.inf:
                f.traffic.add(client_id, "idle")
                self._cut_off(client_id, leaves)
                return
            member.examples_used = used
            turn_number = member.client.sequence
        version = f.server.round
        self._models.setdefault(version, f.model.copy())
        job = f.job(client_id, turn_number, examples)
        self._turns[client_id] = _Turn(job, version, plan.local_steps, plan.num_bytes, leaves)
        self._push(done, _TRAINED, client_id)

    def _trained(self, client_id: int, now: float) -> None:
        """A client is done training: it compresses its update and sends it."""
        f, turn = self._federation, self._turns[client_id]
        if client_id not in self._updates:
            self._work_out()
        update, _ = self._updates[client_id]
        with f.members.at_work([client_id], f.server.round + 1) as members:
            member = members[client_id]
            sequence = member.client.sequence
            [opened] = f.compress(member, update, turn.version, turn.local_steps, turn.num_bytes, weight=1.0)
        f.traffic.sent(client_id, opened)
        arrives = f.connections[client_id].uploaded(len(opened.blob), now)
        if arrives > turn.leaves or arrives == math.inf:
            del self._turns[client_id], self._updates[client_id]
            f.traffic.add(client_id, "lost")
            self._cut_off(client_id, turn.leaves)
        else:
            self._blobs[client_id] = sequence, opened.blob
            self._push(arrives, _ARRIVED, client_id)

    def _cut_off(self, client_id: int, leaves: float) -> None:
        """A session ends before a client's turn does: it tries again in the next one."""
        self._num_cut_off += 1
        if self._num_cut_off > _MOST_CUT_OFF * self._federation.experiment.clients:
            index = self._federation.server.round
            raise ProtocolError(f"round {index}: {self._num_cut_off} turns in a row took longer than a session")
        self._push(leaves, _BEGIN, client_id)

    def _work_out(self) -> None:
        """Train all clients at work that have not been yet, in one batch for each learning rate."""
        f = self._federation
        waiting = [turn for client_id, turn in self._turns.items() if client_id not in self._updates]
        rates = [f.experiment.step_size_at(turn.version) for turn in waiting]
        for rate in sorted(set(rates)):
            turns = [turn for turn, r in zip(waiting, rates, strict=True) if r == rate]
            starts = np.stack([self._models[turn.version] for turn in turns])
            trained = f.train([t.job for t in turns], starts, rate, [t.local_steps for t in turns])
            for turn, update, loss in zip(turns, trained.updates, trained.losses, strict=True):
                self._updates[turn.job.client_id] = update.copy(), float(loss)
        self._models.clear()

    def _arrived(self, client_id: int, now: float) -> None:
        """A payload is there: it is weighed by its age, and the server steps if it was the last it waited for."""
        f, turn = self._federation, self._turns.pop(client_id)
        sequence, blob = self._blobs.pop(client_id)
        update, loss = self._updates.pop(client_id)
        staleness = f.server.round - turn.version
        weight = f.algorithm.weight(staleness)
        self._num_cut_off = 0
        self._push(now, _BEGIN, self._next(client_id))
        if staleness > f.server.max_staleness:
            f.traffic.add(client_id, "late")
            return
        if not f.receive(read(blob), (client_id, sequence, None), weight, turn.local_steps):
            return
        self._buffer.append((update, loss, weight))
        self._staleness.append(staleness)
        if f.server.aggregator.num_received == f.algorithm.buffer_size:
            f.close_round()

    def _next(self, client_id: int) -> int:
        """Who takes a client's place."""
        if not self._idle:
            return client_id
        self._idle.append(client_id)
        key = Key(self._federation.seed, self._num_events, purpose="next")
        return self._idle.pop(int(key.choice(len(self._idle), 1)[0]))

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all of it, between rounds."""
        return {
            "events": [list(event) for event in sorted(self._events)],
            "num_events": self._num_events,
            "num_cut_off": self._num_cut_off,
            "idle": list(self._idle),
            "models": [[version, model.copy()] for version, model in self._models.items()],
            "turns": [
                {
                    "client_id": client_id,
                    "rows": turn.job.rows,
                    "shifts": turn.job.shifts,
                    "version": turn.version,
                    "local_steps": turn.local_steps,
                    "num_bytes": turn.num_bytes,
                    "leaves": str(turn.leaves),  # JSON has no infinity
                }
                for client_id, turn in self._turns.items()
            ],
            "updates": [[client_id, update.copy(), loss] for client_id, (update, loss) in self._updates.items()],
            "blobs": [[i, n, np.frombuffer(blob, np.uint8).copy()] for i, (n, blob) in self._blobs.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            StateError: on a state that no run can have left.
        """
        with reading_state():
            self._load(state)
            self._check()

    def _load(self, state: dict[str, Any]) -> None:
        d = self._federation.layout.d
        self._events = [
            (saved_number("events", at), saved_integer("event", n), saved_integer("kind", kind, 0, 2), _client(client))
            for at, n, kind, client in state["events"]
        ]
        self._num_cut_off = saved_integer("num_cut_off", state["num_cut_off"])
        self._num_events = saved_integer("num_events", state["num_events"])
        self._idle = [_client(i) for i in state["idle"]]
        self._models = {_version(n): saved_vector("models", model, (d,)) for n, model in state["models"]}
        self._turns = {}
        for saved in state["turns"]:
            rows: NDArray[np.int64] = np.array(saved["rows"], np.int64)
            shifts = None if saved["shifts"] is None else np.array(saved["shifts"], np.int64)
            job = Job(_client(saved["client_id"]), rows, shifts)
            num_bytes = None if saved["num_bytes"] is None else saved_integer("num_bytes", saved["num_bytes"], 1)
            steps, leaves = saved_integer("local_steps", saved["local_steps"], 1), float(saved["leaves"])
            self._turns[job.client_id] = _Turn(job, _version(saved["version"]), steps, num_bytes, leaves)
        self._updates = {
            _client(i): (saved_vector("updates", update, (d,)), saved_real("loss", loss))
            for i, update, loss in state["updates"]
        }
        self._blobs = {_client(i): (saved_integer("sequence", n), to_bytes(b)) for i, n, b in state["blobs"]}

    def _check(self) -> None:
        """Refuse what does not go together, or with the experiment."""
        f, e = self._federation, self._federation.experiment
        known = {*self._idle, *self._turns, *self._updates, *self._blobs, *(client for *_, client in self._events)}
        arrived: list[dict[int, Any]] = [self._turns, self._updates, self._blobs]
        needed = {_BEGIN: [], _TRAINED: arrived[:1], _ARRIVED: arrived}
        if max(known, default=0) >= e.clients or any(
            client not in there for _, _, kind, client in self._events for there in needed[kind]
        ):
            raise StateError(f"state's events are not of {e.clients} clients and what they are doing")
        for client_id, turn in self._turns.items():
            shape, shifts = (e.local_steps, e.batch_size), turn.job.shifts
            if turn.job.rows.shape != shape or not np.isin(turn.job.rows, f.shards[client_id]).all():
                raise StateError(f"state's rows of client {client_id} must be {shape} of its own examples")
            if (None if shifts is None else shifts.shape) != ((*shape, 3) if e.augment else None):
                raise StateError(f"state's shifts of client {client_id} must be {(*shape, 3)}, where images are moved")
            waits = client_id not in self._updates
            if turn.local_steps > e.local_steps or turn.version > f.server.round or math.isnan(turn.leaves):
                raise StateError(f"state's turn of client {client_id} is none of this run")
            if waits and turn.version not in self._models:
                raise StateError(f"state lacks the model that client {client_id} started from")


def _client(saved: Any) -> int:
    return saved_integer("client", saved)


def _version(saved: Any) -> int:
    return saved_integer("version", saved)
