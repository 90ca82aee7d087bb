"""Adaptive strategies and sparse updates: what is lost, and which settings win it back.

In one process: model, images and training of examples/flower-mnist, gradwire's ``Client`` and ``Server``, and the
simulator's strategies, which tests/federated/algorithms compares with Flower's.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from statistics import mean, stdev
from types import ModuleType
from typing import Any

import gradwire as gw
from benchmarks.flower.kept import Run, run_left
from benchmarks.flower.net import EXAMPLE
from benchmarks.markdown import cell, code, table
from gradwire.federated.algorithms import parse_algorithm

SEEDS = (0, 1, 2)
CLIENTS = 3
ROUNDS = 25
SETTINGS = {"num-clients": 25, "batch-size": 64, "learning-rate": 0.2}  # 2,400 images a client
DENSE, SPARSE, SHORT = "dense()", "ef(topk(0.01))", "ef(topk(0.02) | fractional(16))"


def _adam(eta: float, tau: float, beta_1: float = 0.9) -> str:
    """Flower's: its squares start at 0, and the bias is corrected."""
    settings = f"server_learning_rate={eta}, beta_1={beta_1}, tau={tau}, initial=0.0, bias_correction=True"
    return f"fedadam({settings})"


# what a row is called -> (algorithm, methods)
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "FedAvg": ("fedavg()", (DENSE, SPARSE)),
    "FedAdam, eta 0.03, tau 0.001": (_adam(0.03, 0.001), (DENSE, SPARSE, "ef(topk(0.05))", "ef(uniform(4))")),
    "FedAdam, eta 0.1, tau 0.1": (_adam(0.1, 0.1), (SPARSE,)),
    "FedAdam, eta 0.1, tau 0.01": (_adam(0.1, 0.01), (DENSE, SPARSE)),
    "FedAdam, eta 0.1, tau 0.01, beta_1 0": (_adam(0.1, 0.01, 0.0), (DENSE, SPARSE, SHORT)),
    "FedYogi, eta 0.03, tau 0.001": ("fedyogi(server_learning_rate=0.03, initial=0.0)", (DENSE, SPARSE)),
    "FedYogi, eta 0.03, tau 0.01, beta_1 0": (
        "fedyogi(server_learning_rate=0.03, beta_1=0.0, tau=0.01, initial=0.0)",
        (SPARSE,),
    ),
    "FedAdagrad, eta 0.1, tau 0.01": (
        "fedadagrad(server_learning_rate=0.1, tau=0.01, initial=0.0)",
        (DENSE, SPARSE),
    ),
    "FedAvgM, momentum 0.9, rate 0.3": ("fedavgm(server_learning_rate=0.3)", (DENSE, SPARSE)),
}


def measure(data_dir: str | None, done: Callable[[list[Run]], None]) -> None:
    """Run what is left, one after the other."""
    runs = {
        f"{number}-{index}-{seed}": partial(run, row, method, seed, data_dir)
        for seed in SEEDS
        for number, (row, (_, methods)) in enumerate(ROWS.items())
        for index, method in enumerate(methods)
    }
    run_left("adam", runs, 1, done)


def key(run: Run) -> tuple[int, int, int]:
    """Tell which run it is, and its place among the others."""
    row = list(ROWS).index(run["row"])
    return row, ROWS[run["row"]][1].index(run["method"]), run["seed"]


def run(row: str, method: str, seed: int, data_dir: str | None, **settings: Any) -> Run:
    """Train with one strategy and spec; ``settings`` are the app's, ``_`` for ``-``."""
    import torch

    task, config = _example()
    config |= {"data-dir": data_dir or "-", "seed": seed, **SETTINGS}
    config |= {name.replace("_", "-"): value for name, value in settings.items()}
    net = task.make_net(config)
    arrays = {name: tensor.numpy() for name, tensor in net.state_dict().items()}  # they change as the tensors do
    layout = gw.Layout.from_arrays(arrays)
    model, compressor = layout.flatten(arrays), gw.parse(method)
    clients = [gw.Client(compressor, layout, i, seed, ROUNDS) for i in range(CLIENTS)]
    server = gw.Server(compressor, layout, seed, step=parse_algorithm(ROWS[row][0]).make_step(layout))
    uplink_bytes = 0
    for index in range(ROUNDS):
        for client in clients:
            net.load_state_dict({name: torch.as_tensor(a) for name, a in layout.unflatten(model).items()})
            weight, _ = task.train(net, config, client.client_id, index + 1)
            blob = client.compress(layout.flatten(arrays) - model, weight, index)
            server.receive(blob, client.client_id, weight)
            uplink_bytes += len(blob)
        result = server.close_round()
        for client in clients:
            client.end_round(result.blob)
        model = model + result.applied
    net.load_state_dict({name: torch.as_tensor(a) for name, a in layout.unflatten(model).items()})
    return {
        "row": row,
        "method": method,
        "seed": seed,
        "final_accuracy": task.accuracy(net, config),
        "uplink_bytes": uplink_bytes,
        "compression_ratio": 4 * layout.d * CLIENTS * ROUNDS / uplink_bytes,
    }


def _example() -> tuple[ModuleType, dict[str, Any]]:
    """The example's module of data and training, and a copy of its settings."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        task = importlib.import_module("flower_mnist.task")
    finally:
        sys.path.remove(str(EXAMPLE))
    config = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    return task, dict(config)


def document(runs: list[Run]) -> str:
    """The table, with what is there."""
    rows = []
    for row, (_, methods) in ROWS.items():
        for method in methods:
            mine = [run for run in runs if run["row"] == row and run["method"] == method]
            if not mine:
                continue
            accuracies = [100 * run["final_accuracy"] for run in mine]
            spread = f" ± {stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
            ratio = mean(run["compression_ratio"] for run in mine)
            rows.append([cell(row), code(method), f"{mean(accuracies):.1f}{spread} %", f"{ratio:.1f}x"])
    return table(["strategy", "spec", "accuracy", "fewer bytes up"], rows)
