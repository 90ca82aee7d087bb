"""Ledger: how many bytes went which way, by round and node, as Flower counts its records; and a run's two files."""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flwr.app import MetricRecord

from gradwire.errors import ConfigError
from gradwire.files.atomic import write_atomically
from gradwire.flower.model import Model

__all__ = ["Ledger", "RoundBytes"]

Way = Literal["uplink", "downlink", "other"]

_ACCURACY = ("accuracy", "eval_accuracy", "eval_acc", "test_accuracy", "acc")
_LOSS = ("loss", "eval_loss", "test_loss")


@dataclass
class RoundBytes:
    """The bytes of one round.

    Attributes:
        uplink: replies to train instructions.
        downlink: instructions whose model comes as blobs, train or evaluate.
        other: instructions with the whole model, replies to evaluation, and what asked for a model.
        by_node: node -> way -> bytes.
        num_counted: payloads counted.
        accuracy: the last one measured.
        loss: the last one measured.
    """

    uplink: int = 0
    downlink: int = 0
    other: int = 0
    by_node: dict[int, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    num_counted: int = 0
    accuracy: float | None = None
    loss: float | None = None


class Ledger:
    """Count what travels, and write it as ``gradwire report`` reads it.

    Args:
        method: the spec's text.
        seed: of the run.
        out: a folder for metrics.jsonl and summary.json; None for no files.

    Attributes:
        rounds: the bytes of each round so far, the one under way included.
        runs: the ids of Flower's runs that this is the ledger of: several where it was resumed.
    """

    def __init__(self, method: str, seed: int, out: Path | None) -> None:
        self.method = method
        self.seed = seed
        self.rounds: list[RoundBytes] = []
        self.runs: list[str] = []
        self._out = out
        self._num_written = 0
        self._began = time.monotonic()
        if out is not None:
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"out {out}: cannot be made: {error.strerror or error}") from None

    def ran(self, run_id: int) -> None:
        """Take note of which of Flower's runs this is."""
        if str(run_id) not in self.runs:
            self.runs.append(str(run_id))

    def begin(self) -> None:
        """Begin the next round."""
        self.rounds.append(RoundBytes())

    def add(self, node_id: int, way: Way, num_bytes: int) -> None:
        """Count a message of this round."""
        now = self.rounds[-1]
        setattr(now, way, getattr(now, way) + num_bytes)
        now.by_node[node_id][way] += num_bytes

    def measured(self, metrics: MetricRecord | None) -> None:
        """Take an accuracy and a loss from metrics of evaluation, by their usual names."""
        now = self.rounds[-1]
        for names, attribute in ((_ACCURACY, "accuracy"), (_LOSS, "loss")):
            found: Any = next((metrics[n] for n in names if metrics and isinstance(metrics.get(n), (int, float))), None)
            if found is not None and (attribute == "loss" or 0 <= found <= 1):
                setattr(now, attribute, float(found))

    def write_rounds(self, num_rounds: int, names: dict[int, str]) -> None:
        """Append to metrics.jsonl what it lacks of so many rounds; ``names`` says of nodes which client they are."""
        if self._out is None:
            return
        lines = [self._line(index, names) for index in range(self._num_written, num_rounds)]
        with (self._out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._num_written = max(self._num_written, num_rounds)

    def resume(self, num_rounds: int) -> None:
        """Go on after so many rounds, with the file of a process that may have been killed at any time.

        What it measured after it saved its state is taken from metrics.jsonl; rounds that are run again are taken out.
        """
        self._num_written = 0
        path = None if self._out is None else self._out / "metrics.jsonl"
        if path is None or not path.exists():
            return
        kept: list[str] = []
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                ours = line["method"] == self.method and line["seed"] == self.seed
                index = int(line["round"])
            except (ValueError, LookupError, TypeError):
                continue  # the end of a line that was being written
            if ours and index >= num_rounds:
                continue
            if ours:
                self._num_written = index + 1
                row = self.rounds[index]
                row.accuracy = line.get("accuracy") if row.accuracy is None else row.accuracy
                row.loss = line.get("loss") if row.loss is None else row.loss
            kept.append(text)
        write_atomically(path, "".join(text + "\n" for text in kept).encode())

    def _line(self, index: int, names: dict[int, str]) -> dict[str, Any]:
        """A round's line of metrics.jsonl."""
        now = self.rounds[index]
        clients: dict[str, dict[str, int]] = {}
        for node_id, ways in now.by_node.items():
            entry = clients.setdefault(names.get(node_id, f"node {node_id}"), {})
            for way, num_bytes in ways.items():
                entry[way] = entry.get(way, 0) + num_bytes
        return {
            "method": self.method,
            "seed": self.seed,
            "round": index,
            "accuracy": now.accuracy,
            "loss": now.loss,
            "uplink_bytes": now.uplink,
            "downlink_bytes": now.downlink,
            "other_bytes": now.other,
            "num_received": now.num_counted,
            "clients": clients,
        }

    def write_summary(self, model: Model, num_rounds: int | None, names: dict[int, str]) -> None:
        """Replace summary.json by one of the rounds so far."""
        if self._out is not None:
            entry = self.summary(model, num_rounds, names)
            text = json.dumps({"experiment": {"num_parameters": model.layout.d}, "runs": [entry]}, indent=1)
            write_atomically(self._out / "summary.json", (text + "\n").encode())

    def summary(self, model: Model, num_rounds: int | None, names: dict[int, str]) -> dict[str, Any]:
        """Return the run's entry of summary.json, of the rounds so far."""
        uplink = sum(r.uplink for r in self.rounds)
        num_counted = sum(r.num_counted for r in self.rounds)
        dense = 4 * model.layout.d * num_counted
        clients = {names.get(node_id, f"node {node_id}") for r in self.rounds for node_id in r.by_node}
        return {
            "method": self.method,
            "seed": self.seed,
            "clients": len(clients),
            "rounds": max(len(self.rounds), num_rounds or 0),
            "rounds_done": len(self.rounds),
            "final_accuracy": next((r.accuracy for r in reversed(self.rounds) if r.accuracy is not None), None),
            "uplink_bytes": uplink,
            "downlink_bytes": sum(r.downlink for r in self.rounds),
            "other_bytes": sum(r.other for r in self.rounds),
            "dense_uplink_bytes": dense,
            "compression_ratio": dense / uplink if uplink else None,
            "bits_per_parameter": 8 * uplink / (model.layout.d * num_counted) if num_counted else None,
            "model_sha256": hashlib.sha256(model.vector.astype("<f4").tobytes()).hexdigest(),
            "seconds": time.monotonic() - self._began,
            "flower_runs": self.runs,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return a copy, as plain values; of clients the sums are kept, not who they were."""
        rounds = [
            [r.uplink, r.downlink, r.other, r.num_counted, r.accuracy, r.loss, [str(node) for node in r.by_node]]
            for r in self.rounds
        ]
        return {"rounds": rounds, "runs": list(self.runs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        rounds: list[RoundBytes] = []
        for uplink, downlink, other, num_counted, accuracy, loss, nodes in state["rounds"]:
            row = RoundBytes(uplink, downlink, other, num_counted=num_counted, accuracy=accuracy, loss=loss)
            for node in nodes:
                row.by_node[int(node)] = defaultdict(int)
            rounds.append(row)
        self.rounds, self.runs = rounds, [str(run_id) for run_id in state["runs"]]
