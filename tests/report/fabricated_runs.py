"""Runs as ``gradwire run`` would have written them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PARAMETERS, CLIENTS, ROUNDS = 1000, 4, 6


def run(method: str, **changes: Any) -> dict[str, Any]:
    record = {
        "method": method,
        "seed": 0,
        "clients": CLIENTS,
        "rounds": ROUNDS,
        "final_accuracy": 0.9,
        "uplink_bytes": 2400,
        "downlink_bytes": 96_000,
        "other_bytes": 16_000,
        "dense_uplink_bytes": 4 * PARAMETERS * CLIENTS * ROUNDS,
        "compression_ratio": 40.0,
        "bits_per_parameter": 0.8,
        "model_sha256": "00" * 32,
        "seconds": 2.0,
        "status": "complete",
        "rounds_done": ROUNDS,
        "header_bytes": 600,
        "support_bytes": 600,
        "values_bytes": 1200,
        "compression_seconds": 0.5,
        "client_rounds_per_second": 12.0,
        "some_later_addition": {"ignored": True},
    }
    return {**record, **changes}


def dense(**changes: Any) -> dict[str, Any]:
    parts = {"header_bytes": 600, "support_bytes": 0, "values_bytes": 96_000, "uplink_bytes": 96_600}
    return run("dense()", **{"final_accuracy": 0.91, "compression_ratio": 0.994, **parts, **changes})


def timed(label: str, method: str, seconds: float, reached: float | None, **changes: Any) -> dict[str, Any]:
    """A run over links with a clock, which aimed at 95 %."""
    target = {"target_accuracy": 0.95, "target_virtual_seconds": reached}
    target["target_total_bytes"] = None if reached is None else 5000
    return run(method, **{"label": label, "virtual_seconds": seconds, **target, **changes})


def lines_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            **({"label": record["label"]} if "label" in record else {}),
            "method": record["method"],
            "seed": record["seed"],
            "round": index,
            "accuracy": 0.1 * index if index % 2 else None,
            "loss": 1.0 / (index + 1),
            "test_loss": 1.5 / (index + 1),
            "uplink_bytes": record["uplink_bytes"] // ROUNDS,
            "virtual_seconds": record.get("virtual_seconds", 0.0) * (index + 1) / ROUNDS,
            "later": 1,
        }
        for index in range(ROUNDS)
    ]


def full_lines_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Rounds as the simulator writes them, with parts of clients, supports and residuals."""
    dense = record["method"] == "dense()"
    part = {"uplink": record["uplink_bytes"] // ROUNDS // CLIENTS, "downlink": 4000, "other": 20}
    return [
        {
            **line,
            "num_sent": CLIENTS,
            "num_late": 1,
            "num_lost": 0,
            "num_idle": 0,
            "num_kept": CLIENTS * (PARAMETERS if dense else 1 + line["round"]),
            "num_moved": PARAMETERS if dense else 20,
            "overlap": None if line["round"] == 0 else 0.5,
            "residual_norm": None if dense else 1.0 + line["round"],
            "update_norm": 2.0,
            "clients": {str(i): part | ({"late": 1} if i == 0 else {}) for i in range(CLIENTS)},
        }
        for line in lines_of(record)
    ]


def write(directory: Path, runs: list[dict[str, Any]], metrics: str | None = None, **top: Any) -> Path:
    (directory / "summary.json").write_text(json.dumps({"runs": runs, **top}), encoding="utf-8")
    if metrics is None:
        metrics = "".join(json.dumps(line) + "\n" for record in runs for line in lines_of(record))
    (directory / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    return directory
