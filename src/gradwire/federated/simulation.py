"""The simulator: one method, one seed, round by round; only real blobs pass between clients and servers."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Compressor
from gradwire.ends.client import Client
from gradwire.errors import StateError
from gradwire.federated.data.task import Task
from gradwire.federated.experiment import Experiment
from gradwire.federated.network.traffic import RoundTraffic, Traffic
from gradwire.federated.rounds.asynchronous import AsynchronousRounds
from gradwire.federated.rounds.federation import Federation
from gradwire.federated.rounds.saving import load_federation, save_federation
from gradwire.federated.rounds.stopwatch import Stopwatch
from gradwire.federated.rounds.synchronous import synchronous_round
from gradwire.federated.together import warn_of_noise
from gradwire.layout import Layout
from gradwire.saved import reading_state, saved_integer, saved_number, saved_real

__all__ = ["RoundMetrics", "Simulation", "Totals"]


@dataclass
class RoundMetrics(RoundTraffic):
    """What one round came to: the traffic, and the rest.

    Attributes:
        label: what tells this run from the others of its experiment.
        method: the compressor's spec.
        seed: the run's seed.
        round: 0-based.
        accuracy: on the held-out examples after the round, or None where it was not evaluated.
        test_loss: on the held-out examples, or None where it was not evaluated or is not finite.
        loss: mean training loss over clients and steps, or None where nobody trained.
        update_norm: root of the mean over clients of |u|^2, before compression.
        drift_norm: root of the mean over clients of |u - mean u|^2: how far apart they went.
        num_trained: clients that trained.
        num_moved: coordinates of the aggregate: those that any payload counted had, in most cases.
        overlap: which share of these the aggregate before had as well; None where either is empty.
        residual_norm: root of the mean over payloads of |e|^2, e being what error feedback keeps for later, measured
            in rounds that are evaluated; None where nothing is kept.
        staleness: mean age of the payloads of an asynchronous round, or None.
        virtual_seconds: the virtual clock at the end of the round.
        seconds: wall time.
        compression_seconds: of these, in clients and servers.
    """

    label: str = ""
    method: str = ""
    seed: int = 0
    round: int = 0
    accuracy: float | None = None
    test_loss: float | None = None
    loss: float | None = None
    update_norm: float = 0.0
    drift_norm: float = 0.0
    num_trained: int = 0
    num_moved: int = 0
    overlap: float | None = None
    residual_norm: float | None = None
    staleness: float | None = None
    virtual_seconds: float = 0.0
    seconds: float = 0.0
    compression_seconds: float = 0.0


_SUMMED = tuple(Traffic.__dataclass_fields__)


@dataclass
class Totals(Traffic):
    """Sums over the rounds done so far, and what was reached.

    Attributes:
        rounds_done: how many.
        seconds: wall time.
        compression_seconds: of these, in clients and servers.
        accuracy: the last one measured, or None.
        test_loss: the one measured then, or None.
        drift_norm: sum over rounds.
        target_round: the first round after which the target accuracy was measured, or None.
        target_virtual_seconds: the virtual clock then.
        target_uplink_bytes: what clients had sent by then.
        target_total_bytes: what had travelled by then, in all.
    """

    rounds_done: int = 0
    seconds: float = 0.0
    compression_seconds: float = 0.0
    accuracy: float | None = None
    test_loss: float | None = None
    drift_norm: float = 0.0
    target_round: int | None = None
    target_virtual_seconds: float | None = None
    target_uplink_bytes: int | None = None
    target_total_bytes: int | None = None

    def count(self, metrics: RoundMetrics, target: float | None) -> None:
        """Count a round."""
        self.rounds_done += 1
        for name in (*_SUMMED, "seconds", "compression_seconds", "drift_norm"):
            setattr(self, name, getattr(self, name) + getattr(metrics, name))
        if metrics.accuracy is not None:
            self.accuracy, self.test_loss = metrics.accuracy, metrics.test_loss
        reached = target is not None and metrics.accuracy is not None and metrics.accuracy >= target
        if reached and self.target_round is None:
            self.target_round = metrics.round
            self.target_virtual_seconds = metrics.virtual_seconds
            self.target_uplink_bytes = self.uplink_bytes
            self.target_total_bytes = self.total_bytes

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Totals:
        """Make totals of what ``asdict`` gave, or raise StateError."""
        found = cls(**saved)
        for f in fields(cls):
            value = getattr(found, f.name)
            if value is None and f.default is None:
                continue
            if f.name == "test_loss":  # a likelihood's may be below 0
                found.test_loss = saved_real(f.name, value)
                continue
            read = saved_number if "float" in str(f.type) else saved_integer
            setattr(found, f.name, read(f.name, value))
        return found

    @property
    def total_bytes(self) -> int:
        """All that travelled."""
        return (
            self.uplink_bytes + self.downlink_bytes + self.other_bytes + self.wan_uplink_bytes + self.wan_downlink_bytes
        )


class Simulation:
    """One method, one seed: clients, server and model, advanced a round at a time.

    Args:
        experiment: the settings: the first algorithm, links and budget of its lists are the ones used.
        compressor: the method.
        task: the data.
        seed: decides the initial model, the partition, the batches, the links and all the compressor draws.
        batched: see ``Trainer``.
        label: what tells this run from the others of its experiment; the method's text when None.
        folder: where clients are kept that are not in memory.

    Attributes:
        totals: sums over the rounds done.
        federation: clients, servers, links, model and clock.

    Source: FedAvg, McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1; TCS (arXiv 2101.08837), Algorithm 1.
    Deviations: minibatches are drawn independently, not by epochs; what is sent is the model difference, compressed.
    """

    def __init__(
        self,
        experiment: Experiment,
        compressor: Compressor,
        task: Task,
        seed: int,
        batched: bool | None = None,
        label: str | None = None,
        folder: Path | None = None,
    ) -> None:
        self.experiment = experiment
        self.compressor = compressor
        self.seed = seed
        self.label = str(compressor) if label is None else label
        self.federation = Federation(experiment, compressor, task, seed, batched, folder)
        self.totals = Totals()
        warn_of_noise(self.federation.algorithm, compressor, self.layout.num_parameters)
        self._events = AsynchronousRounds(self.federation) if self.federation.algorithm.asynchronous else None

    @property
    def layout(self) -> Layout:
        """The model's layout."""
        return self.federation.layout

    @property
    def num_parameters(self) -> int:
        """Length of the updates."""
        return self.layout.d

    @property
    def model(self) -> NDArray[np.float32]:
        """(d,) float32, the global model."""
        return self.federation.model

    @property
    def batched(self) -> bool:
        """Whether clients are trained in one batch."""
        return self.federation.trainer.batched

    @property
    def clients(self) -> list[Client]:
        """Every client that took part so far, by number."""
        return [member.client for member in self.federation.members.all()]

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        stopped = self.experiment.stop_at_target and self.totals.target_round is not None
        return stopped or self.totals.rounds_done >= self.experiment.rounds

    def rounds(self) -> Iterator[RoundMetrics]:
        """Run the rounds that are left, giving each one's metrics; may be left after any of them."""
        while not self.finished:
            metrics = self._round(self.totals.rounds_done)
            self.totals.count(metrics, self.experiment.target_accuracy)
            yield metrics

    def _round(self, index: int) -> RoundMetrics:
        began, f = time.perf_counter(), self.federation
        f.traffic, f.watch = RoundTraffic(), Stopwatch()
        f.measures_residuals, f.residual_norms = self.experiment.evaluates(index), []
        trained = synchronous_round(f) if self._events is None else self._events.round()
        found = f.trainer.evaluate(f.model) if self.experiment.evaluates(index) else None
        norms = f.residual_norms
        return RoundMetrics(
            **vars(f.traffic),
            label=self.label,
            method=str(self.compressor),
            seed=self.seed,
            round=index,
            accuracy=None if found is None else found.accuracy,
            test_loss=found.loss if found is not None and math.isfinite(found.loss) else None,
            loss=trained.loss,
            update_norm=trained.update_norm,
            drift_norm=trained.drift_norm,
            num_trained=len(trained.losses),
            num_moved=f.num_moved,
            overlap=f.overlap,
            residual_norm=math.hypot(*norms) / math.sqrt(len(norms)) if norms else None,
            staleness=None if self._events is None else self._events.staleness,
            virtual_seconds=f.seconds,
            seconds=time.perf_counter() - began,
            compression_seconds=f.watch.seconds,
        )

    def summary(self) -> dict[str, Any]:
        """Return this run's entry of summary.json, of the rounds done so far."""
        t, e = self.totals, self.experiment
        dense_uplink_bytes = 4 * self.layout.d * t.num_sent
        return {
            "label": self.label,
            "method": str(self.compressor),
            "algorithm": e.algorithms[0],
            "links": e.links[0],
            "budget": e.budgets[0],
            "seed": self.seed,
            "clients": e.clients,
            "rounds": e.rounds,
            "final_accuracy": t.accuracy,
            "final_test_loss": t.test_loss,
            "uplink_bytes": t.uplink_bytes,
            "downlink_bytes": t.downlink_bytes,
            "other_bytes": t.other_bytes,
            "dense_uplink_bytes": dense_uplink_bytes,
            "compression_ratio": dense_uplink_bytes / t.uplink_bytes if t.uplink_bytes else None,
            "bits_per_parameter": 8 * t.uplink_bytes / (self.layout.d * t.num_sent) if t.num_sent else None,
            "model_sha256": hashlib.sha256(self.model.astype("<f4").tobytes()).hexdigest(),
            "seconds": t.seconds,
            "status": "complete" if self.finished else "partial",
            "rounds_done": t.rounds_done,
            "header_bytes": t.header_bytes,
            "support_bytes": t.support_bytes,
            "values_bytes": t.values_bytes,
            "again_bytes": t.again_bytes,
            "wan_uplink_bytes": t.wan_uplink_bytes,
            "wan_downlink_bytes": t.wan_downlink_bytes,
            "num_received": t.num_received,
            "num_late": t.num_late,
            "num_lost": t.num_lost,
            "num_idle": t.num_idle,
            "num_duplicates": t.num_duplicates,
            "num_clipped": t.num_clipped,
            "density": t.num_kept / (self.layout.d * t.num_sent) if t.num_sent else None,
            "channel_uses": self.federation.channel_uses,
            "drift_norm": t.drift_norm / t.rounds_done if t.rounds_done else None,
            "conservation_error": self.federation.conservation_error if e.audit else None,
            "virtual_seconds": self.federation.seconds,
            "target_accuracy": e.target_accuracy,
            "target_round": t.target_round,
            "target_virtual_seconds": t.target_virtual_seconds,
            "target_uplink_bytes": t.target_uplink_bytes,
            "target_total_bytes": t.target_total_bytes,
            "compression_seconds": t.compression_seconds,
            "client_rounds_per_second": t.num_sent / t.seconds if t.seconds else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything needed to go on after the last round done."""
        return {
            "label": self.label,
            "seed": self.seed,
            "totals": asdict(self.totals),
            **save_federation(self.federation),
            "events": None if self._events is None else self._events.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken: the rounds that follow are the same, byte for byte.

        Raises:
            StateError: on a state of something else, or one that no run can have left.
        """
        with reading_state():
            load_federation(self.federation, state)
            if self._events is not None:
                self._events.load_state_dict(state["events"])
            totals = Totals.of(state["totals"])
        if totals.rounds_done != self.federation.server.round:
            raise StateError(f"state's totals are of {totals.rounds_done} rounds, the server's of another number")
        self.totals = totals

    def forget(self) -> None:
        """Drop clients that an earlier process left on disk without a checkpoint."""
        self.federation.members.forget_after(0)

    def saved(self) -> None:
        """Say that the last ``state_dict`` is safe: what only older ones lean on may go."""
        self.federation.members.forget_before(self.totals.rounds_done)

    def close(self) -> None:
        """Let go of files."""
        self.federation.members.close()
