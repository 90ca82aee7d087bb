"""RegTop-k's report: classification at 0.1 %, beside Top-k on the same seeds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from gradwire.reproduce.blocks import Block, Chart, Heading, Table, Text
from gradwire.reproduce.statistics import accuracies, compare, curve, gain_at_the_end, show

__all__ = ["report_classification", "training_name"]

Config = dict[str, Any]
Result = dict[str, Any]
Results = dict[str, dict[str, Any]]

CLAIMED_POINTS = 8
_LAST = 5  # evaluations of which the mean is taken


def training_name(section: Config, partition: str, method: str) -> str:
    """Return what a training's units are called, but for the seed."""
    return re.sub(r"[^a-z0-9.]+", "-", f"train {section['data']} {partition} {method}".lower()).strip("-")


def report_classification(config: Config, results: Results) -> list[Block]:
    """Return the section.

    Args:
        config: of ``reproductions/regtopk``, with ``classification``.
        results: by unit's name; some may be missing.

    Returns:
        Blocks.
    """
    blocks: list[Block] = [
        Heading("Classification at 0.1 %"),
        Text(
            f"The paper: ResNet-18 on CIFAR-10, 8 workers, 0.1 %: up to {CLAIMED_POINTS} points more accuracy than "
            f"Top-k. Accuracy in per cent, the mean of a run's last {_LAST} evaluations: mean ± standard deviation "
            "(number of seeds). The difference is to `ef(topk(...))` on the same seeds, in points with its 95 % "
            "interval (Student's t, each interval for itself); better or worse is claimed only where the interval "
            "leaves out 0. The gain is what accuracy rises by over the last fifth of the rounds: what still gains "
            "has not converged. How alike supports are: of the coordinates that all workers send in a round so "
            "many are *different*, as a share and in the mean over rounds: 1 where no two workers send the same, "
            "one over the number of workers where all do."
        ),
    ]
    for section in config["classification"]:
        for partition in section["partitions"]:
            blocks += _report_training(section, partition, results)
    return blocks


def _report_training(section: Config, partition: str, results: Results) -> list[Block]:
    found: dict[str, dict[int, Result]] = {}
    for method in section["methods"]:
        names = {seed: f"{training_name(section, partition, method)}-seed{seed}" for seed in section["seeds"]}
        found[method] = {seed: results[name] for seed, name in names.items() if name in results}
    topk = next((method for method in found if method.startswith("ef(topk")), "")
    rows, told = [], []
    for method, runs in found.items():
        points, order = ("-", "-") if method == topk else compare(runs, found.get(topk, {}), _LAST)
        if "regtopk" in method and runs:
            told.append(f"`{method}`: {points}, {order}")
        alike = _distinct(list(runs.values()))
        gain = f"{gain_at_the_end(list(runs.values())):+.2f}" if runs else "-"
        ours = show(accuracies(list(runs.values()), _LAST))
        rows.append((f"`{method}`", ours, points, order, gain, *_traffic(runs), alike))
    where = f"{section['data']}, {partition}"
    setup = f"{section.get('model', 'default model')}, {section['clients']} workers, {section['rounds']} rounds"
    blocks: list[Block] = [
        Text(f"{where}: {setup}."),
        Table(
            [
                "method",
                "accuracy",
                "points against Top-k",
                "order",
                "gain at the end",
                "uplink",
                "bits per parameter",
                "different",
            ],
            rows,
        ),
    ]
    if told:
        blocks.append(
            Text(f"RegTop-k against Top-k, where the paper has up to +{CLAIMED_POINTS} points: {'; '.join(told)}.")
        )
    lines = [curve(method, list(runs.values())) for method, runs in found.items() if runs]
    if lines:
        name = re.sub(r"[^a-z0-9]+", "-", f"regtopk-{where}".lower())
        blocks.append(Chart(name, f"Accuracy over rounds, {where}", "round", "accuracy in %", lines))
    return blocks


def _traffic(runs: dict[int, Result]) -> tuple[str, str]:
    if not runs:
        return "-", "-"
    uplink, bits = (
        np.mean([run["summary"][key] for run in runs.values()]) for key in ("uplink_bytes", "bits_per_parameter")
    )
    return f"{uplink / 1e6:.2f} MB", f"{bits:.4f}"


def _distinct(runs: list[Result]) -> str:
    shares = [np.mean([share for _, share in run["distinct"]]) for run in runs if run.get("distinct")]
    return f"{np.mean(shares):.3f}" if shares else "-"
