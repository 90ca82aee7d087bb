"""Steps of data-parallel training beside torch's own ways of exchanging gradients, over links of a chosen speed.

python -m benchmarks ddp [--only PART]

Methods take turns in the same processes, a block of steps each, so that whatever else the machine does meets all of
them. Throttled links are two network namespaces joined by a pair of interfaces, which needs root, ``ip`` and ``tc``;
where that cannot be, a part says why it was skipped.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ddp_methods import METHODS
from benchmarks.markdown import cell, table
from benchmarks.results import Found, describe
from gradwire.report.tables import format_bytes


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        link: megabit/s, or None for the loopback interface.
        workers: processes; on a throttled link half of them are on either side.
        model: ``mlp`` (4.8 million parameters) or ``cnn`` (25 million).
        methods: names of ``METHODS``.
        rounds: how often each has its turn.
        steps: in each turn.
        seeds: runs from the beginning.
        tested: whether the accuracy on the test examples is measured at the end.
    """

    link: int | None
    workers: int = 2
    model: str = "mlp"
    methods: tuple[str, ...] = ()
    rounds: int = 12
    steps: int = 16
    seeds: int = 1
    tested: bool = False


_FEW = ("noop", "powersgd 1", "powersgd 4", "sparse", "denser", "dithered", "local")
_LARGE = ("noop", "powersgd 1", "powersgd 4", "sparse", "denser", "thinner", "local")
_ALL = ("none", "fp16", *_FEW, "chosen")
_COST = ("noop", "passes", "sparse kernels", "sparse", "denser kernels", "denser")
PARTS = {
    "cost": Part(None, methods=_COST, rounds=150, steps=1),
    "loopback": Part(None, methods=_ALL, rounds=8),
    "1000": Part(1000, methods=_ALL, rounds=8),
    "100": Part(100, methods=_FEW),
    "100 whole": Part(100, methods=("none", "fp16", "chosen"), rounds=2, steps=4),
    "100 cnn": Part(100, model="cnn", methods=_LARGE, rounds=4, steps=8),
    "100 cnn whole": Part(100, model="cnn", methods=("none", "fp16"), rounds=1, steps=3),
    "100 four": Part(100, workers=4, methods=_FEW, rounds=6),
    "100 loss": Part(100, methods=("powersgd 1", "sparse", "denser", "dithered", "local"), rounds=30, seeds=3),
    "mnist two": Part(None, methods=("none", "sparse", "denser"), rounds=40, tested=True),
    "mnist four": Part(None, workers=4, methods=("none", "sparse", "denser"), rounds=40, tested=True),
}


def measure(data_dir: str | None, parts: Sequence[str]) -> Found:
    """Measure each part in processes of its own."""
    return {"parts": {name: _part(PARTS[name], data_dir) for name in parts}}


def merge(old: Found, new: Found) -> Found:
    """The parts measured anew among the others."""
    return {**old, "parts": {**old["parts"], **new["parts"]}}


def _part(part: Part, data_dir: str | None) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _hosts(part.link) as hosts:
                runs = [_run(part, hosts, Path(folder) / str(seed), seed, data_dir) for seed in range(part.seeds)]
        except _NoLink as reason:
            print(f"skipped: {reason}", file=sys.stderr)
            return {"skipped": str(reason)}
    return {"link": part.link, "workers": part.workers, "model": part.model, "runs": runs}


def _run(part: Part, hosts: list[Host], folder: Path, seed: int, data_dir: str | None) -> Found:
    folder.mkdir()
    processes = []
    for rank in range(part.workers):
        host = hosts[rank * len(hosts) // part.workers]
        told = {"part": vars(part), "rank": rank, "folder": str(folder), "seed": seed, "interface": host.interface}
        told["data_dir"] = data_dir
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": host.interface}
        command = [*host.prefix, sys.executable, "-m", "benchmarks.ddp_link", json.dumps(told)]
        processes.append(subprocess.Popen(command, env=environment))
    for process in processes:
        if process.wait():
            for other in processes:
                other.kill()
            raise SystemExit("a worker failed")
    found: Found = json.loads((folder / "found.json").read_text())
    return found


# --- hosts ----------------------------------------------------------------------------------------


class _NoLink(Exception):
    """Why no throttled link can be made here."""


@dataclass(frozen=True)
class Host:
    """Where a process runs: what its command begins with, and the interface it talks over."""

    prefix: list[str]
    interface: str


@contextmanager
def _hosts(megabits: int | None) -> Iterator[list[Host]]:
    """This machine, or two hosts on it, each sending at most so many megabit/s."""
    if megabits is None:
        yield [Host([], "lo")]
        return
    if os.geteuid() or not (shutil.which("ip") and shutil.which("tc")):
        raise _NoLink(f"a link of {megabits} Mbit/s needs root, ip and tc")
    tag = f"gw{os.getpid() % 100000}"
    names = [f"{tag}a", f"{tag}b"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for number, name in enumerate(names):
            _ip("-n", name, "address", "add", f"10.77.1.{number + 1}/24", "dev", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", name, "up")
            # what passes at once must be small beside a step's bytes: about a millisecond of the rate
            burst = "16kb" if megabits <= 200 else "128kb"
            limit = ["tbf", "rate", f"{megabits}mbit", "burst", burst, "latency", "50ms"]
            _command("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", name, "root", *limit)
        yield [Host(["ip", "netns", "exec", name], name) for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)


def _ip(*arguments: str) -> None:
    _command("ip", *arguments)


def _command(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _NoLink(f"{' '.join(command)}: {done.stderr.strip()}")


# --- one worker -----------------------------------------------------------------------------------


def _worker(told: Found) -> None:
    import torch
    import torch.distributed as dist

    part, rank, folder = Part(**told["part"]), told["rank"], Path(told["folder"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=part.workers)
    torch.manual_seed(told["seed"])
    module = _model(part.model)
    images, labels, tests, source = _data(told["data_dir"])
    turns = {name: METHODS[name].start(copy.deepcopy(module)) for name in part.methods}
    rows: dict[str, dict[str, Any]] = {
        name: {"seconds": [], "cpu_seconds": [], "bytes": 0, "losses": []} for name in turns
    }
    counter = Path(f"/sys/class/net/{told['interface']}/statistics/tx_bytes")
    sharing = part.workers if told["interface"] == "lo" else part.workers // 2
    generator = torch.Generator().manual_seed(1000 * told["seed"] + rank)
    chosen = torch.randint(len(images), (part.rounds + 1, part.steps, 8), generator=generator)
    for number in range(part.rounds + 1):  # in the first turns kernels are compiled and buckets made
        for name, (model, optimizer) in turns.items():
            dist.barrier()
            sent, row = int(counter.read_text()), rows[name]
            for at in chosen[number]:
                wall, cpu = time.perf_counter(), time.process_time()
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(images[at]), labels[at]).backward()
                optimizer.step()
                if number:
                    row["seconds"].append(time.perf_counter() - wall)
                    row["cpu_seconds"].append(time.process_time() - cpu)
            dist.barrier()
            if number:
                row["bytes"] += (int(counter.read_text()) - sent) / sharing
                row["losses"].append([sum(row["seconds"]), _loss(model, images, labels)])
    if rank == 0:
        d = sum(p.numel() for p in module.parameters())
        if part.tested:
            for name, row in rows.items():
                row["accuracy"] = _accuracy(turns[name][0], *tests)
        found = {"d": d, "data": source, "rows": {name: _figures(row) for name, row in rows.items()}}
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _figures(row: dict[str, Any]) -> Found:
    """Milliseconds a step; bytes a step that left an interface, of one worker's; loss by the method's own seconds."""
    ms = [1000 * s for s in row["seconds"]]
    cuts = statistics.quantiles(ms, n=20, method="inclusive")
    return {
        "min": min(ms),
        "p10": cuts[1],
        "p25": cuts[4],
        "median": statistics.median(ms),
        "mean": statistics.fmean(ms),
        "cpu_min": 1000 * min(row["cpu_seconds"]),
        "cpu_mean": 1000 * statistics.fmean(row["cpu_seconds"]),
        "bytes": row["bytes"] / len(ms),
        "losses": row["losses"],
        **({"accuracy": row["accuracy"]} if "accuracy" in row else {}),
    }


def _model(name: str) -> Any:
    from torch import nn

    if name == "mlp":
        layers = [nn.Flatten(), nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 1536), nn.ReLU(), nn.Linear(1536, 10)]
        return nn.Sequential(*layers)
    convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(3136, 7900), nn.ReLU(), nn.Linear(7900, 10))


def _data(data_dir: str | None) -> tuple[Any, Any, tuple[Any, Any], str]:
    """MNIST where it is there, else noise: the time of a step does not depend on it."""
    import torch

    from gradwire.errors import GradwireError
    from gradwire.federated.data.tasks import load_task

    try:
        task = load_task("mnist", None if data_dir is None else Path(data_dir))
    except GradwireError:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2000, 1, 28, 28, generator=generator)
        labels = torch.randint(10, (2000,), generator=generator)
        return images, labels, (images, labels), "noise"
    return task.train_inputs, task.train_targets, (task.test_inputs, task.test_targets), "mnist"


def _loss(model: Any, images: Any, labels: Any) -> float:
    import torch

    module = getattr(model, "module", model)
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(module(images[:1000]), labels[:1000]))


def _accuracy(model: Any, inputs: Any, targets: Any) -> float:
    import torch

    module = getattr(model, "module", model)
    with torch.no_grad():
        right = [(module(x).argmax(1) == y).sum() for x, y in zip(inputs.split(1000), targets.split(1000), strict=True)]
    return float(sum(right)) / len(targets)


# --- the page -------------------------------------------------------------------------------------


def document(found: Found) -> dict[str, str]:
    """The tables."""
    return {"docs/ddp.md#ddp": "\n\n".join([describe(found), *_tables(found["parts"])])}


def _tables(parts: Found) -> Iterator[str]:
    yield "\n".join(f"- {line}" for line in _compared(parts))
    for part in parts.values():
        if "skipped" in part:
            continue
        run = part["runs"][0]
        link = "the loopback interface" if part["link"] is None else f"{part['link']} Mbit/s"
        yield f"### {part['workers']} workers over {link}, {run['d']:,} parameters, {run['data']}"
        rows = [[cell(METHODS[name].title), *_cells(part, name)] for name in run["rows"]]
        yield table(["", "min ms", "p10", "p25", "median", "mean", "CPU min ms", "bytes a step", *_last(run)], rows)


def _last(run: Found) -> list[str]:
    rows = run["rows"].values()
    heads = ["loss after equal steps", "after equal seconds"]
    return [*heads, "accuracy"] if any("accuracy" in row for row in rows) else heads


def _cells(part: Found, name: str) -> list[str]:
    row = part["runs"][0]["rows"][name]
    times = [f"{row[key]:.1f}" for key in ("min", "p10", "p25", "median", "mean", "cpu_min")]
    ends = ", ".join(f"{run['rows'][name]['losses'][-1][1]:.3f}" for run in part["runs"])
    same = ", ".join(f"{_loss_after(run, name):.3f}" for run in part["runs"])
    accuracy = [f"{100 * row['accuracy']:.2f} %"] if "accuracy" in row else []
    return [*times, format_bytes(row["bytes"]), ends, same, *accuracy]


def _loss_after(run: Found, name: str) -> float:
    """The loss after the seconds that the fastest method took in all, between two that were measured."""
    seconds = min(row["losses"][-1][0] for other, row in run["rows"].items() if other != "noop")
    before, after = [0.0, run["rows"][name]["losses"][0][1]], run["rows"][name]["losses"][-1]
    for point in run["rows"][name]["losses"]:
        if point[0] >= seconds:
            after = point
            break
        before = point
    share = (seconds - before[0]) / max(after[0] - before[0], 1e-9)
    return float(before[1] + min(1.0, share) * (after[1] - before[1]))


def _compared(parts: Found) -> Iterator[str]:
    """What the tables are looked at for."""

    def of(part: str, name: str, key: str) -> Any:
        return parts.get(part, {}).get("runs", [{"rows": {}}])[0]["rows"].get(name, {}).get(key)

    for part in ("100", "100 cnn", "100 four"):
        for name, key in (("sparse", "p25"), ("dithered", "p25"), ("thinner", "p25"), ("local", "mean")):
            theirs, ours = of(part, "powersgd 1", key), of(part, name, key)
            if theirs and ours:
                fewer = of(part, "powersgd 1", "bytes") / of(part, name, "bytes")
                title = f"{METHODS[name].title}, {parts[part]['workers']} workers, {parts[part]['model']}"
                yield (
                    f"{title}: a step ({key}) is {theirs / ours:.2f} times as fast as PowerSGD's of rank 1, with "
                    f"1/{fewer:.1f} of its bytes."
                )
    for part, whole in (("loopback", "loopback"), ("1000", "1000"), ("100 whole", "100 whole")):
        theirs, ours = of(whole, "none", "p25"), of(part, "chosen", "p25")
        if theirs and ours:
            where = "the loopback interface" if parts[part]["link"] is None else f"{parts[part]['link']} Mbit/s"
            yield f"{METHODS['chosen'].title}: {ours / theirs:.2f} times the p25 of no hook over {where}."
    for name in ("denser", "sparse"):
        if of("cost", name, "cpu_min"):
            nothing, kernels = of("cost", "noop", "cpu_min"), of("cost", f"{name} kernels", "cpu_min")
            hook = of("cost", name, "cpu_min") - nothing
            line = f"{METHODS[name].title}: {hook:.1f} ms of CPU a step over a hook that does nothing"
            if kernels:
                passes = of("cost", "passes", "cpu_min") - nothing
                line += f", {hook / (kernels - nothing):.2f} times its kernels alone ({kernels - nothing:.1f}); "
                line += f"one addition to memory and zeros take {passes:.1f}"
            yield f"{line}."
    for part in ("mnist two", "mnist four"):
        for name in ("denser", "sparse"):
            if of(part, name, "accuracy"):
                points = 100 * (of(part, name, "accuracy") - of(part, "none", "accuracy"))
                workers = parts[part]["workers"]
                yield f"{METHODS[name].title}, {workers} workers: accuracy {points:+.2f} points from no hook's."


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's hooks, and of ours where it sends whole gradients
        _worker(json.loads(sys.argv[1]))
