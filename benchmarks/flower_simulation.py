"""Flower's simulation engine, dense and compressed, and gradwire's own simulator on the same app.

    python -m benchmarks flower-simulation --data-dir DIR

CLIENTS simulated nodes train a perceptron on MNIST, so many batches a round each: with one of LOCAL_STEPS a round is
the engine's own work, with the other training takes its share. One engine runs dense and compressed rounds in turns,
blocks of ROUNDS, so that both meet the same machine; the first round of a block, in which the model is sent whole, is
left out, and so is the first pair of blocks. gradwire's simulator runs the same model, data and steps before and after,
as many blocks each, on as many threads as the engine has workers. Takes some minutes; needs ray: pip install
'gradwire[flower-sim]'.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.markdown import code, table
from benchmarks.results import ROOT, Found, describe
from gradwire.errors import ConfigError
from gradwire.federated.data.models import build_model
from gradwire.federated.data.task import Task
from gradwire.federated.data.tasks import load_task
from gradwire.federated.experiment import Experiment
from gradwire.federated.folder import RunFolder
from gradwire.federated.runs import run_experiment

SPEC = "ef(topk(0.01))"
CLIENTS, ROUNDS, PAIRS = 30, 6, 5
LOCAL_STEPS, BATCH_SIZE, LEARNING_RATE = (1, 12), 32, 0.1
WAYS = ("dense", "compressed")
PLACE = "docs/performance.md#flower-simulation"


def measure(data_dir: str | None, parts: Sequence[str]) -> Found | None:
    """Run the engine in a process of its own, and the simulator around it."""
    try:
        task = load_task("mnist", Path(data_dir) if data_dir else None)
    except ConfigError as error:
        print(f"flower-simulation is left out: {error}")
        return None
    if importlib.util.find_spec("ray") is None:
        print("flower-simulation is left out: pip install 'gradwire[flower-sim]'")
        return None
    num_parameters = sum(p.numel() for p in build_model("mlp", task, seed=0).parameters())
    del task
    return measure_rounds(data_dir, num_parameters, PAIRS, ROUNDS)


def measure_rounds(data_dir: str | None, num_parameters: int, pairs: int, rounds: int) -> Found:
    """Run so many pairs of blocks of so many rounds."""
    _simulator(data_dir, 2, 1)  # what is done once a process
    parts = []
    for steps in LOCAL_STEPS:
        simulator = [_simulator(data_dir, 10 * rounds, steps) for _ in range(pairs)]
        blocks = _engine(data_dir, pairs, rounds, steps)
        simulator += [_simulator(data_dir, 10 * rounds, steps) for _ in range(pairs)]
        parts.append({"local_steps": steps, "blocks": blocks, "simulator": simulator})
    return {
        "about": {
            "spec": SPEC,
            "clients": CLIENTS,
            "rounds": rounds,
            "batch_size": BATCH_SIZE,
            "num_parameters": num_parameters,
        },
        "parts": parts,
    }


def _simulator(data_dir: str | None, rounds: int, local_steps: int) -> float:
    """Client-rounds a second of gradwire's own simulator, with its training and compression."""
    torch.set_num_threads(os.cpu_count() or 1)
    values: dict[str, Any] = {"data": "mnist", "model": "mlp", "methods": [SPEC], "clients": CLIENTS, "rounds": rounds}
    values |= {"local_steps": local_steps, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    values |= {"evaluate_every": rounds} | ({"data_dir": data_dir} if data_dir else {})
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder.create(Path(name) / "run", Experiment.build(values))
        run_experiment(folder, lambda *_: None, lambda *_: None, lambda: False)
        (found,) = json.loads((folder.path / "summary.json").read_text())["runs"]
        return float(found["client_rounds_per_second"])


def _engine(data_dir: str | None, pairs: int, rounds: int, local_steps: int) -> list[dict[str, float]]:
    """Client-rounds a second of each pair of blocks, by way."""
    with tempfile.TemporaryDirectory() as name:
        env = {
            **os.environ,
            "FLWR_HOME": name,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        }
        out = Path(name, "found.json")
        command = [sys.executable, "-c", "import sys; from benchmarks.flower_simulation import run; run(*sys.argv[1:])"]
        arguments = [str(out), data_dir or "-", str(pairs), str(rounds), str(local_steps)]
        subprocess.run([*command, *arguments], env=env, check=True, timeout=3600)
        seconds: list[dict[str, list[float]]] = json.loads(out.read_text())
    return [{way: CLIENTS / statistics.mean(pair[way]) for way in WAYS} for pair in seconds]


@lru_cache(maxsize=1)
def _task(data_dir: str) -> Task:
    return load_task("mnist", None if data_dir == "-" else Path(data_dir))


def run(out: str, data_dir: str, num_pairs: str, num_rounds: str, local_steps: str) -> None:
    """Run all blocks in this process, and write the seconds of their rounds, all but the first of each."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from gradwire.flower import CompressedStrategy, CompressionMod
    from gradwire.flower.carrier import find_carrier

    compress = CompressionMod()

    def unless_dense(message, context, call_next):
        return compress(message, context, call_next) if find_carrier(message.content) else call_next(message, context)

    client_app, server_app = ClientApp(mods=[unless_dense]), ServerApp()

    @client_app.train()
    def train(message, context):
        torch.set_num_threads(1)
        task = _task(data_dir)
        net = build_model("mlp", task, seed=0)
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
        partition = int(context.node_config["partition-id"])
        inputs, targets = task.train_inputs[partition::CLIENTS], task.train_targets[partition::CLIENTS]
        generator = torch.Generator().manual_seed(int(message.content["config"]["server-round"]))
        for batch in torch.randint(len(inputs), (int(local_steps), BATCH_SIZE), generator=generator):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": len(inputs)})
        return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)

    @server_app.main()
    def main(grid, context):
        arrays = ArrayRecord(build_model("mlp", _task(data_dir), seed=0).state_dict())
        pairs = []
        for number in range(int(num_pairs) + 1):
            pair = {}
            for way in WAYS if number % 2 else reversed(WAYS):
                strategy = FedAvg(min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, fraction_evaluate=0.0)
                if way == "compressed":
                    strategy = CompressedStrategy(strategy, SPEC, conversation=f"block-{number}")
                at = []
                strategy.start(
                    grid,
                    arrays,
                    int(num_rounds) + 1,
                    600.0,
                    evaluate_fn=lambda *_, at=at: at.append(time.perf_counter()),
                )
                pair[way] = [after - before for before, after in pairwise(at[1:])]
            pairs.append(pair)
        Path(out).write_text(json.dumps(pairs[1:]))

    backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, CLIENTS, backend_config=backend)


def document(found: Found) -> dict[str, str]:
    """The table for docs/performance.md."""
    if "parts" not in found:
        return {PLACE: "Not measured: it was not run yet."}
    about, rows, said = found["about"], [], []
    for part in found["parts"]:
        steps, blocks = part["local_steps"], part["blocks"]
        dense, compressed = (statistics.median(pair[way] for pair in blocks) for way in WAYS)
        kept = statistics.median(pair["compressed"] / pair["dense"] for pair in blocks)
        own = statistics.median(part["simulator"])
        rows.append([str(steps), f"{dense:.1f}", f"{compressed:.1f}", f"{100 * kept:.0f} %", f"{own:,.0f}"])
        said.append(f"{own / compressed:.1f} times as fast with {steps} local step{'s' if steps > 1 else ''}")
    spec = code(about["spec"])
    headings = ["local steps", "Flower, dense", f"Flower, {spec}", "speed the mod keeps", f"gradwire's own, {spec}"]
    parts = [
        f"Client-rounds a second: {about['clients']} clients, a perceptron of {about['num_parameters']:,} parameters "
        f"on MNIST, local steps of {about['batch_size']} images; {len(blocks)} pairs of blocks of {about['rounds']} "
        f"rounds, medians. {describe(found)}",
        table(headings, rows),
        f"Beside Flower's engine with the mod, gradwire's simulator, which trains all clients in one batch, is "
        f"{' and '.join(said)}.",
    ]
    return {PLACE: "\n\n".join(parts)}
