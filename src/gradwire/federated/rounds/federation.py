"""Federation: everything that exists in a simulation, and what its rounds, of either kind, are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.aggregation.over_the_air import OverTheAir
from gradwire.compressors.compressor import Compressor, Round, Vector, decompress
from gradwire.compressors.sparsify import dense
from gradwire.compressors.spec import parse
from gradwire.ends.client import Client, Delivered
from gradwire.ends.downlink import Downlink
from gradwire.ends.inbox import Inbox
from gradwire.ends.server import Result
from gradwire.errors import ConfigError, Duplicate, ProtocolError, StateError
from gradwire.federated.algorithms.controls import Controls, control_correction, control_update
from gradwire.federated.data.models import build_model
from gradwire.federated.data.partition import parse_partition
from gradwire.federated.data.task import Task
from gradwire.federated.data.train import Trainer, draw_batches, draw_shifts
from gradwire.federated.data.training import Trained
from gradwire.federated.experiment import Experiment
from gradwire.federated.network.budgets import round_shares
from gradwire.federated.network.links import Connection, parse_links
from gradwire.federated.network.traffic import RoundTraffic
from gradwire.federated.rounds.ledger import Ledger
from gradwire.federated.rounds.members import Member, Members, MembersOnDisk
from gradwire.federated.rounds.servers import make_servers
from gradwire.federated.rounds.stopwatch import Stopwatch
from gradwire.rng import Key
from gradwire.wire import Limits, Opened, decode, encode, read

__all__ = ["Federation", "Job"]

LARGEST_ERROR = 1e-5


@dataclass(frozen=True)
class Job:
    """What one client is to train.

    Attributes:
        client_id: who.
        rows: (local_steps, batch_size) int64, its examples.
        shifts: (local_steps, batch_size, 3) int64, how its images are moved, or None.
    """

    client_id: int
    rows: NDArray[np.int64]
    shifts: NDArray[np.int64] | None


class Federation:
    """Clients, server and all between them, for one variant of an experiment and one seed.

    Args:
        experiment: the settings: one method, algorithm, kind of links and budget.
        compressor: the method.
        task: the data.
        seed: decides the initial model, the partition, the batches, the links and all the compressor draws.
        batched: see ``Trainer``.
        folder: where clients are kept that are not in memory.

    Attributes:
        seconds: the virtual clock. Clients that can be reached at second 0 hold the initial model then.
        model: (d,) float32, the global model.
        traffic: bytes and counts of the round that is open.
        watch: wall time spent in Client and Server.
        conservation_error: the largest share of a client's updates that an audit found missing.
        residual_norms: |e| after each payload of the round that is open, where ``measures_residuals`` is set.
        moved: (d,) bool, the coordinates that the last aggregate had, of a round in which anything arrived, or None.
        num_moved: how many coordinates the aggregate of the round that closed had.
        overlap: which share of them ``moved`` had before, or None.
    """

    def __init__(
        self,
        experiment: Experiment,
        compressor: Compressor,
        task: Task,
        seed: int,
        batched: bool | None = None,
        folder: Path | None = None,
    ) -> None:
        e, self.experiment, self.compressor, self.seed = experiment, experiment, compressor, seed
        if e.augment and task.train_inputs.ndim != 4:
            raise ConfigError(f"augment moves images (n, c, h, w), got {task.name}: {tuple(task.train_inputs.shape)}")
        model = build_model(e.model or task.default_model, task, seed)
        self.trainer = Trainer(task, model, e.device, batched, e.weight_decay, e.precision)
        self.layout = self.trainer.layout
        self._limits = Limits.of(self.layout.d)
        self.shards = parse_partition(e.partition).split(
            task.labels, e.clients, _partition_generator(seed), task.groups
        )
        self.weights = [float(shard.size) if e.weighting == "examples" else 1.0 for shard in self.shards]
        self.connections: list[Connection] = parse_links(e.links[0]).assign(e.clients, seed)
        self.region_connections = parse_links(e.region_link).assign(e.regions, seed) if e.regions else []
        self.algorithm, self.budget = e.algorithm, e.budget
        self.step = self.algorithm.make_step(self.layout)
        self.server, self.regions = make_servers(e, compressor, self.layout, seed, self.step)
        self.controls = self._make_controls() if self.algorithm.uses_controls else None
        self.ledger = Ledger(compressor, self.layout.d) if e.audit else None
        self.members = self._make_members(folder)
        self.fates: dict[int, dict[int, bool | frozenset[int]]] = {}
        self.control_fates: dict[int, dict[int, Vector]] = {}
        self.lengths: list[list[int]] = []
        self.last_blobs: list[bytes] = []
        self.shipped: tuple[int, bytes] | None = None  # the round and blob of the newest field
        self._downlinks: list[Downlink] = []
        self.conservation_error = 0.0
        self._shares = round_shares(compressor, self.budget, self.layout.num_parameters, e.rounds)
        self.measures_residuals = False
        self.residual_norms: list[float] = []
        self.moved: NDArray[np.bool_] | None = None
        self.num_moved = 0
        self.overlap: float | None = None
        self.traffic, self.watch = RoundTraffic(), Stopwatch()
        self.set_model(self.trainer.initial(), 0.0)
        self.model = decompress(decode(self.whole_blobs()[0]))

    def set_model(self, model: Vector, seconds: float) -> None:
        """Put a model, (d,) float32, in the place of the global one, at a time of the virtual clock."""
        self.model, self.seconds = model, seconds
        self._whole: tuple[int, list[bytes]] | None = None

    def _make_controls(self) -> Controls:
        e, road = self.experiment, self.algorithm.road
        compressor = self.compressor if road is None else parse(road)
        return Controls(compressor, parse(e.downlink), self.layout, self.seed, e.clients, e.rounds)

    def _make_members(self, folder: Path | None) -> Members:
        if not self.experiment.clients_on_disk:
            return Members(self._make_member)
        if folder is None:
            raise ConfigError("clients_on_disk needs a folder to keep them in, got none")
        return MembersOnDisk(self._make_member, folder / "members.sqlite")

    # ---- clients

    def _make_member(self, client_id: int) -> Member:
        client = Client(self.compressor, self.layout, client_id, self.seed, self.experiment.rounds)
        if self.controls is None:
            return Member(client)
        return Member(client, control=self.controls.make_client(client_id), variate=np.zeros(self.layout.d, np.float32))

    def sample(self, index: int) -> list[int]:
        """Draw the clients of a round among those that can be reached, waiting for one where there is none."""
        there = [i for i, c in enumerate(self.connections) if c.available(self.seconds)]
        if not there:
            self.seconds = min(c.next_available(self.seconds) for c in self.connections)
            if self.seconds == float("inf"):
                raise ProtocolError(f"round {index}: no client can ever be reached again")
            there = [i for i, c in enumerate(self.connections) if c.available(self.seconds)]
        wanted = max(1, round(self.experiment.participation * self.experiment.clients))
        if wanted >= len(there):
            return there
        chosen = Key(self.seed, index, purpose="sampling").choice(len(there), wanted)
        return [there[i] for i in chosen]

    def job(self, client_id: int, index: int, examples: NDArray[np.int64] | None = None) -> Job:
        """Draw what a client trains on in its turn of this number, of its own examples or of some of them."""
        e, key = self.experiment, Key(self.seed, index, client_id)
        shard = self.shards[client_id] if examples is None else examples
        shifts = draw_shifts(key, e.local_steps, e.batch_size) if e.augment else None
        return Job(client_id, draw_batches(shard, key, e.local_steps, e.batch_size), shifts)

    def train(
        self,
        jobs: Sequence[Job],
        starts: Vector,
        learning_rate: float,
        local_steps: Sequence[int],
        variates: Sequence[Vector | None] = (),
    ) -> Trained:
        """Train some clients.

        Args:
            jobs: who, on what.
            starts: (d,) float32, the model they start from, or (n, d), each one's.
            learning_rate: of local SGD.
            local_steps: how many steps each makes.
            variates: each one's control variate, (d,) float32, where there are any.

        Returns:
            Their updates and losses.
        """
        weights = np.array([self.weights[job.client_id] for job in jobs])
        if not jobs:
            return Trained(np.empty((0, self.layout.d), np.float32), np.empty(0, np.float32), weights)
        shifts = [job.shifts for job in jobs if job.shifts is not None] or None
        fewer = None if all(k == self.experiment.local_steps for k in local_steps) else list(local_steps)
        corrections = None
        if self.controls is not None:
            corrections = control_correction(self.controls.value, np.stack([v for v in variates if v is not None]))
        rows = [job.rows for job in jobs]
        updates, losses = self.trainer.local_updates(
            starts,
            rows,
            learning_rate,
            shifts,
            proximal=self.algorithm.proximal,
            corrections=corrections,
            local_steps=fewer,
        )
        return Trained(updates, losses, weights)

    def seconds_of_round(self, index: int) -> float:
        """How long a round may take: the deadline, moved by a schedule of the method's where there are budgets."""
        seconds = self.experiment.deadline_seconds
        return float("inf") if seconds is None else seconds * self._shares[index]

    def audit(self, members: Iterable[Member]) -> None:
        """Check that nothing was lost of the updates of clients that are up to date.

        Raises:
            StateError: when more than rounding is missing.
        """
        for member in members:
            residual = member.client.state_dict()["residual"]
            if self.ledger is None or member.pending or residual is None:
                continue
            error = self.ledger.error(member.client.client_id, residual)
            self.conservation_error = max(self.conservation_error, error)
            if error > LARGEST_ERROR:
                name = f"client {member.client.client_id}"
                raise StateError(f"{name}: {error:.1e} of its updates are missing, expected {LARGEST_ERROR}")

    def catch_up(self, member: Member) -> None:
        """Bring a client to the present: the blobs it missed, or everything where that is shorter.

        Bytes are counted here; the time they take is the caller's, by ``member.owed_bytes``. Clients that are there at
        second 0 have the initial model by then.
        """
        now, client_id = self.server.round, member.client.client_id
        if member.version == now:
            return
        if member.version is None:
            whole = sum(map(len, self.whole_blobs()))
            self.traffic.add(client_id, "other", whole)
            member.owed_bytes = whole if self.seconds > 0 else 0
        else:
            missed = [sum(road) for road in zip(*self.lengths[member.version :], strict=True)]
            whole = (
                sum(map(len, self.whole_blobs())) + sum(self.lengths[-1]) if member.version < now - 1 else sum(missed)
            )
            if sum(missed) <= whole:
                self.traffic.add(client_id, "downlink", missed[0])
                self.traffic.add(client_id, "other", sum(missed[1:]))
                if self.shipped is not None and member.version <= self.shipped[0] < now - 1:
                    member.client.end_round(self.shipped[1], {})  # for its field; nothing is said of payloads
            else:
                self.traffic.add(client_id, "other", whole)
            member.owed_bytes += min(sum(missed), whole)
            self.tell(member)
        member.version = now

    def download(self, member: Member, start: float) -> float:
        """Let a client download what it is owed from some second on; return when it has it.

        One that its session does not leave the time for begins again in the next one.
        """
        connection = self.connections[member.client.client_id]
        ready = connection.downloaded(member.owed_bytes, max(start, member.busy_until))
        if ready <= connection.leaves(start):
            member.owed_bytes, member.busy_until = 0, ready
        return ready

    def tell(self, member: Member) -> None:
        """Give a client the last blob of each road, and word of what became of its payloads."""
        client_id = member.client.client_id
        fates = self.fates.pop(client_id, {})
        delivered: dict[int, Delivered] = {sequence: fates.get(sequence, False) for sequence in member.pending}
        with self.watch:
            downlinks = self._read_downlinks()
            member.client.end_round(downlinks[0], delivered)
            if self.controls is not None and member.control is not None and member.variate is not None:
                heard = self.control_fates.pop(client_id, {})
                if not self.controls.keeps_what_is_lost:
                    for change in heard.values():
                        member.variate += change
                member.control.end_round(downlinks[1], {n: n in heard for n in member.pending})
        member.pending.clear()

    def _read_downlinks(self) -> list[Downlink]:
        """What the last blobs say, read once for all clients."""
        if [downlink.blob for downlink in self._downlinks] != self.last_blobs:
            self._downlinks = [Downlink.read(blob, self.layout) for blob in self.last_blobs]
        return self._downlinks

    def compress(
        self,
        member: Member,
        update: Vector,
        index: int,
        local_steps: int,
        num_bytes: int | None = None,
        weight: float | None = None,
    ) -> list[Opened]:
        """Make a client's payload: one blob, or its packets.

        Args:
            member: the client.
            update: (d,) float32.
            index: the round it belongs to.
            local_steps: how many the client made.
            num_bytes: its budget; a payload that cannot be made so small is sent as it is.
            weight: the one ``receive`` will be called with; the client's own when None.
        """
        client, weight = member.client, self.weights[member.client.client_id] if weight is None else weight
        sequence, scale = client.sequence, self.algorithm.scale(local_steps)
        if scale != 1:
            update = update.copy()
            update[: self.layout.num_parameters] *= np.float32(scale)
        with self.watch:
            if self.experiment.mtu is not None:
                packets = client.packets(update, self.experiment.mtu, weight=weight, round=index)
                opened = [read(packet, self._limits) for packet in packets]
            else:
                try:
                    opened = [client.compress_opened(update, weight=weight, round=index, num_bytes=num_bytes)]
                except ConfigError:
                    if num_bytes is None:
                        raise
                    opened = [client.compress_opened(update, weight=weight, round=index)]
        member.pending.append(sequence)
        self.traffic.num_sent += 1
        if self.measures_residuals and client.residual is not None:
            self.residual_norms.append(float(np.linalg.norm(client.residual)))
        if self.ledger is not None:
            self.ledger.computed(client.client_id, update)
        return opened

    def compress_control(
        self, member: Member, update: Vector, local_steps: int, rate: float, index: int
    ) -> Opened | None:
        """Make what tells the server how a client's control variate changes; None where there are none.

        The variate moves at once where the road keeps what is lost for later, else when it is known to have arrived.
        """
        if self.controls is None or member.control is None or member.variate is None:
            return None
        change = control_update(self.layout, self.controls.value, update, local_steps, rate)
        if self.controls.keeps_what_is_lost:
            member.variate += change
        with self.watch:
            return member.control.compress_opened(change, weight=1.0, round=index)

    # ---- servers

    def inbox_of(self, client_id: int) -> Inbox:
        """Where a client's payloads go: its region's server, or the server."""
        return self.regions[client_id % len(self.regions)] if self.regions else self.server

    @property
    def channel_uses(self) -> int | None:
        """Of an analog channel, over all regions; None where there is none."""
        inboxes: list[Inbox] = [*self.regions] or [self.server]
        channels = [box.aggregator for box in inboxes if isinstance(box.aggregator, OverTheAir)]
        return sum(channel.channel_uses for channel in channels) if channels else None

    def receive(self, opened: Opened, name: tuple[int, int, int | None], weight: float, local_steps: int) -> bool:
        """Hand a blob to its server.

        Args:
            opened: what arrived.
            name: the client, the payload's sequence number and the packet's, None where it came whole.
            weight: the client's.
            local_steps: how many it made.

        Returns:
            False where it was counted before, or not heard.

        Raises:
            DecodeError: on a damaged blob.
            ProtocolError: on one of another layout or too old a round.
        """
        client_id, sequence, packet = name
        inbox = self.inbox_of(client_id)
        before = inbox.aggregator.num_received
        try:
            with self.watch:
                inbox.receive(opened, client_id, weight)
        except Duplicate:
            self.traffic.num_duplicates += 1
            return False
        if packet is None and inbox.aggregator.num_received == before:
            self.traffic.add(client_id, "lost")
            return False
        fates = self.fates.setdefault(client_id, {})
        arrived = fates.get(sequence)
        if packet is None:
            fates[sequence] = True
        else:
            fates[sequence] = (arrived if isinstance(arrived, frozenset) else frozenset()) | {packet}
        if self.step is not None and arrived is None:
            self.step.count(weight, local_steps)
        if self.ledger is not None:
            self.ledger.counted(name, decompress(opened.payload, inbox.reference_of(opened.payload)))
        return True

    def receive_control(self, opened: Opened, client_id: int, sequence: int) -> None:
        """Hand the change of a control variate to its server."""
        if self.controls is not None:
            with self.watch:
                self.control_fates.setdefault(client_id, {})[sequence] = self.controls.receive(opened, client_id)

    def close_round(self) -> Result:
        """End the round: regions forward, the server steps, the model moves."""
        accepted = 0
        clipped: list[Any] = []
        with self.watch:
            arrived = self.seconds
            for region, connection in zip(self.regions, self.region_connections, strict=True):
                up = region.forward()
                if up is None:
                    continue
                self.server.receive(up.blob, region.region_id, up.weight)
                self.traffic.wan_uplink_bytes += len(up.blob)
                arrived = max(arrived, connection.uploaded(len(up.blob), self.seconds))
                accepted += len(up.accepted)
                clipped += up.clipped
            result = self.server.close_round()
            self.seconds = arrived
            for region, connection in zip(self.regions, self.region_connections, strict=True):
                region.end_round(result.blob)
                self.traffic.wan_downlink_bytes += len(result.blob)
                arrived = max(arrived, connection.downloaded(len(result.blob), self.seconds))
            self.seconds = arrived
            if not self.regions:
                accepted, clipped = result.num_received, list(result.clipped)
            self.last_blobs = [result.blob]
            if self.controls is not None:
                self.last_blobs.append(self.controls.close_round())
        self.traffic.num_received += accepted
        self.traffic.num_clipped += len(clipped)
        if self.ledger is not None:
            self.ledger.close(clipped)
        self.lengths.append([len(blob) for blob in self.last_blobs])
        if self.server.compressor.uses_field and self._read_downlinks()[0].payload.shipped_field is not None:
            self.shipped = result.round, result.blob
        self.model += result.applied
        self._compare(result.update)
        return result

    def _compare(self, update: Vector) -> None:
        """See how much of an aggregate's support the one before had."""
        moved, before = update != 0, self.moved
        self.num_moved, self.overlap = int(np.count_nonzero(moved)), None
        if self.num_moved:
            if before is not None:
                self.overlap = int(np.count_nonzero(moved & before)) / self.num_moved
            self.moved = moved

    def whole_blobs(self) -> list[bytes]:
        """The model as it is, and c where there is one that has moved, for who needs all of it."""
        version = self.server.round
        if self._whole is None or self._whole[0] != version:
            vectors = [self.model] if self.controls is None or not version else [self.model, self.controls.value]
            compressor = dense()
            payloads = (compressor.compress(v, compressor.init(self.layout), Round(sum_weights=0.0)) for v in vectors)
            self._whole = version, [encode(payload) for payload, _ in payloads]
        return self._whole[1]


def _partition_generator(seed: int) -> np.random.Generator:
    return np.random.Generator(Key(seed, purpose="partition").generator())
