"""The simulator: FedAvg over many clients in one process; only real blobs pass between Client and Server."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.client import Client
from gradwire.compressor import Compressor, Round, decompress
from gradwire.errors import ConfigError, StateError
from gradwire.federated.experiment import Experiment
from gradwire.federated.models import build_model
from gradwire.federated.partition import parse_partition
from gradwire.federated.tasks import Task
from gradwire.federated.train import Trainer, draw_batches, draw_shifts
from gradwire.rng import Key
from gradwire.server import Server
from gradwire.sparsify import dense
from gradwire.wire import decode, encode, inspect

__all__ = ["RoundMetrics", "Simulation", "Totals"]


@dataclass(frozen=True)
class RoundMetrics:
    """What one round came to; byte counts are sums of ``len(blob)`` over the clients.

    Attributes:
        method: the compressor's spec.
        seed: the run's seed.
        round: 0-based.
        accuracy: on the held-out examples after the round, or None where it was not evaluated.
        loss: mean training loss over clients and steps.
        update_norm: root of the mean over clients of |u|^2, before compression.
        uplink_bytes: client to server; the sum of the next three.
        header_bytes: of the uplink: containers.
        support_bytes: of the uplink: which coordinates.
        values_bytes: of the uplink: the numbers.
        downlink_bytes: server to clients, each client's copy counted.
        seconds: wall time.
        compression_seconds: of these, in Client and Server.
    """

    method: str
    seed: int
    round: int
    accuracy: float | None
    loss: float
    update_norm: float
    uplink_bytes: int
    header_bytes: int
    support_bytes: int
    values_bytes: int
    downlink_bytes: int
    seconds: float
    compression_seconds: float


@dataclass
class Totals:
    """Sums over the rounds done so far."""

    rounds_done: int = 0
    uplink_bytes: int = 0
    header_bytes: int = 0
    support_bytes: int = 0
    values_bytes: int = 0
    downlink_bytes: int = 0
    other_bytes: int = 0
    seconds: float = 0.0
    compression_seconds: float = 0.0
    accuracy: float | None = None

    def add(self, metrics: RoundMetrics) -> None:
        """Count a round."""
        self.rounds_done += 1
        for name in ("uplink_bytes", "header_bytes", "support_bytes", "values_bytes", "downlink_bytes"):
            setattr(self, name, getattr(self, name) + getattr(metrics, name))
        self.seconds += metrics.seconds
        self.compression_seconds += metrics.compression_seconds
        self.accuracy = metrics.accuracy if metrics.accuracy is not None else self.accuracy


@dataclass
class _Stopwatch:
    """Adds up the time spent inside ``with`` blocks."""

    seconds: float = 0.0
    _start: float = field(default=0.0, repr=False)

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start


class Simulation:
    """One method, one seed: clients, server and model, advanced a round at a time.

    Args:
        experiment: the settings.
        compressor: the method.
        task: the data.
        seed: decides the initial model, the partition, the batches and every random choice of the compressor.
        batched: see ``Trainer``.

    Attributes:
        totals: sums over the rounds done.
        model: (d,) float32, the global model.

    Source: FedAvg, McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1; TCS (arXiv 2101.08837), Algorithm 1.
    Deviations: minibatches are drawn independently, not by epochs; what is sent is the model difference, compressed.
    """

    def __init__(
        self, experiment: Experiment, compressor: Compressor, task: Task, seed: int, batched: bool | None = None
    ) -> None:
        self.experiment = experiment
        self.compressor = compressor
        self.seed = seed
        self.trainer = Trainer(
            task,
            build_model(experiment.model or task.default_model, task, seed),
            experiment.device,
            batched,
            experiment.weight_decay,
            experiment.precision,
        )
        if experiment.augment and task.train_inputs.ndim != 4:
            raise ConfigError(f"augment moves images (n, c, h, w), got {task.name}: {tuple(task.train_inputs.shape)}")
        self.layout = self.trainer.layout
        self.shards = parse_partition(experiment.partition).split(
            np.asarray(task.train_targets), experiment.clients, _partition_generator(seed), task.groups
        )
        self.weights = [float(shard.size) for shard in self.shards]
        self.clients = [
            Client(compressor, self.layout, client_id=i, seed=seed, num_rounds=experiment.rounds)
            for i in range(experiment.clients)
        ]
        self.server = Server(compressor, self.layout, seed=seed, num_clients=experiment.clients)
        self.totals = Totals()
        self.model = self._send_initial_model()

    @property
    def num_parameters(self) -> int:
        """Length of the updates."""
        return self.layout.d

    def rounds(self) -> Iterator[RoundMetrics]:
        """Run the rounds that are left, giving each one's metrics; may be left after any of them."""
        while self.totals.rounds_done < self.experiment.rounds:
            metrics = self._round(self.totals.rounds_done)
            self.totals.add(metrics)
            yield metrics

    def _send_initial_model(self) -> NDArray[np.float32]:
        model = self.trainer.initial()
        compressor = dense()
        payload, _ = compressor.compress(model, compressor.init(self.layout), Round(sum_weights=0.0))
        blob = encode(payload)
        self.totals.other_bytes += len(blob) * len(self.clients)
        return decompress(decode(blob))

    def _round(self, index: int) -> RoundMetrics:
        began, watch = time.perf_counter(), _Stopwatch()
        e = self.experiment
        batches = [
            draw_batches(shard, Key(self.seed, index, i), e.local_steps, e.batch_size)
            for i, shard in enumerate(self.shards)
        ]
        shifts = None
        if e.augment:
            shifts = [draw_shifts(Key(self.seed, index, i), e.local_steps, e.batch_size) for i in range(e.clients)]
        updates, losses = self.trainer.local_updates(self.model, batches, e.step_size_at(index), shifts)
        blobs: list[bytes] = []
        with watch:
            for client, update, weight in zip(self.clients, updates, self.weights, strict=True):
                blob = client.compress(update, weight=weight)
                self.server.receive(blob, client_id=client.client_id, weight=weight)
                blobs.append(blob)
            result = self.server.close_round()
            for client in self.clients:
                applied = client.end_round(result.blob, delivered=True)
        self.model += applied
        sizes = [inspect(blob) for blob in blobs]
        return RoundMetrics(
            method=str(self.compressor),
            seed=self.seed,
            round=index,
            accuracy=self.trainer.evaluate(self.model) if e.evaluates(index) else None,
            loss=float(np.average(losses, weights=self.weights)),
            update_norm=float(np.sqrt(np.mean(np.sum(np.square(updates, dtype=np.float64), axis=1)))),
            uplink_bytes=sum(map(len, blobs)),
            header_bytes=sum(s["header_bytes"] for s in sizes),
            support_bytes=sum(s["support_bytes"] for s in sizes),
            values_bytes=sum(s["values_bytes"] for s in sizes),
            downlink_bytes=len(result.blob) * len(self.clients),
            seconds=time.perf_counter() - began,
            compression_seconds=watch.seconds,
        )

    def summary(self) -> dict[str, Any]:
        """Return this run's entry of summary.json, of the rounds done so far."""
        t, e = self.totals, self.experiment
        uploads = t.rounds_done * e.clients
        dense_uplink_bytes = 4 * self.layout.d * uploads
        return {
            "method": str(self.compressor),
            "seed": self.seed,
            "clients": e.clients,
            "rounds": e.rounds,
            "final_accuracy": t.accuracy,
            "uplink_bytes": t.uplink_bytes,
            "downlink_bytes": t.downlink_bytes,
            "other_bytes": t.other_bytes,
            "dense_uplink_bytes": dense_uplink_bytes,
            "compression_ratio": dense_uplink_bytes / t.uplink_bytes if t.uplink_bytes else None,
            "bits_per_parameter": 8 * t.uplink_bytes / (self.layout.d * uploads) if uploads else None,
            "model_sha256": hashlib.sha256(self.model.astype("<f4").tobytes()).hexdigest(),
            "seconds": t.seconds,
            "status": "complete" if t.rounds_done == e.rounds else "partial",
            "rounds_done": t.rounds_done,
            "header_bytes": t.header_bytes,
            "support_bytes": t.support_bytes,
            "values_bytes": t.values_bytes,
            "compression_seconds": t.compression_seconds,
            "client_rounds_per_second": uploads / t.seconds if t.seconds else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything needed to go on after the last round done."""
        return {
            "method": str(self.compressor),
            "seed": self.seed,
            "model": self.model.copy(),
            "totals": asdict(self.totals),
            "server": self.server.state_dict(),
            "clients": [client.state_dict() for client in self.clients],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken: the rounds that follow are the same, byte for byte."""
        self.server.load_state_dict(state["server"])
        for client, saved in zip(self.clients, state["clients"], strict=True):
            client.load_state_dict(saved)
        model = np.array(state["model"], np.float32)
        if model.shape != self.model.shape:
            raise StateError(f"model must have shape {self.model.shape}, got {model.shape}")
        self.model = model
        self.totals = Totals(**state["totals"])


def _partition_generator(seed: int) -> np.random.Generator:
    return np.random.Generator(Key(seed, purpose="partition").generator())
