"""The federated system's experiments: every file of experiments/, as tables of docs/federated.md.

    python -m benchmarks federated --data-dir DIR

Takes about an hour on two cores; goes on where runs/federated-NAME was left.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import resource
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import cell, table
from benchmarks.results import Found, describe
from gradwire.errors import ConfigError
from gradwire.federated.data.tasks import load_task
from gradwire.federated.experiment import Experiment, read_settings
from gradwire.federated.folder import RunFolder
from gradwire.federated.runs import run_experiment
from gradwire.federated.simulation import Simulation
from gradwire.report.tables import format_bytes

FOLDER = Path(__file__).parent.parent / "experiments"
MANY = "many-clients"
PARTS = ("mixed-links", "drift", "participation", "noise", "packet-loss", "over-the-air", "regions", "continuous", MANY)
Run = dict[str, Any]


def measure(data_dir: str | None, parts: Sequence[str]) -> Found | None:
    """Run what is left of some of the experiments."""
    try:
        load_task("mnist", Path(data_dir) if data_dir else None)
    except ConfigError as error:
        print(f"federated is left out: {error}")
        return None
    where = str(Path(data_dir).resolve()) if data_dir else None
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        names = [name for name in parts if name != MANY]
        found = dict(zip(names, pool.starmap(_run, [(name, where) for name in names], chunksize=1), strict=True))
    if MANY in parts:
        many = Experiment.read(FOLDER / f"{MANY}.toml")
        jobs = [(number, seed) for number in range(len(many.variants())) for seed in many.seeds]
        with context.Pool(1, maxtasksperchild=1) as pool:
            found[MANY] = {"runs": pool.starmap(_run_alone, jobs, chunksize=1)}
    return found


def _run(name: str, data_dir: str | None) -> dict[str, Any]:
    """One experiment, in a process of its own with one torch thread."""
    import torch

    torch.set_num_threads(1)
    path = Path("runs") / f"federated-{name}"
    settings = read_settings(FOLDER / f"{name}.toml")
    if settings.get("data") != "digits" and data_dir is not None:
        settings["data_dir"] = data_dir
    experiment = Experiment.build(settings, name)
    folder = RunFolder.open(path) if path.exists() else RunFolder.create(path, experiment)
    if folder.experiment != experiment:
        raise ConfigError(f"{path} is of other settings than {name}.toml: move it away")
    run_experiment(folder, lambda *_: None, lambda *_: None, lambda: False)
    found: dict[str, Any] = json.loads((path / "summary.json").read_text())
    found["experiment"].pop("data_dir", None)
    return found


def _run_alone(number: int, seed: int) -> Run:
    """One variant of many-clients.toml, and the most memory this process ever took over what it began with."""
    import tempfile

    import torch

    torch.set_num_threads(1)
    variant = Experiment.read(FOLDER / f"{MANY}.toml").variants()[number]
    task = load_task(variant.experiment.data)
    few = variant.experiment.model_copy(update={"clients": 10, "participation": 1.0, "rounds": 5})
    for _ in Simulation(few.model_copy(update={"clients_on_disk": False}), variant.compressor, task, 0).rounds():
        pass  # what is loaded and compiled once is no matter of clients
    before = _peak_bytes()
    with tempfile.TemporaryDirectory() as name:
        simulation = Simulation(variant.experiment, variant.compressor, task, seed, None, variant.label, Path(name))
        for metrics in simulation.rounds():
            if (metrics.round + 1) % 20 == 0:
                simulation.state_dict()  # commits what is on disk, as a run's checkpoints do
                simulation.saved()
        num_members = len(simulation.federation.members)
        on_disk = sum(file.stat().st_size for file in Path(name).iterdir())
        simulation.close()
    more = _peak_bytes() - before
    facts = {"peak_more_bytes": more, "num_members": num_members, "disk_bytes": on_disk, "d": simulation.layout.d}
    return {**simulation.summary(), **facts}


def _peak_bytes() -> int:
    """The most memory this process had; on Linux ``ru_maxrss`` counts what the process that started it had, too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def document(found: Found) -> dict[str, str]:
    """The tables, one an experiment."""
    tables = {f"docs/federated.md#{name}": make(_in_order(name, found[name]["runs"])) for name, make in _TABLES.items()}
    return {**tables, "docs/federated.md#machine": describe(found)}


def _in_order(name: str, runs: list[Run]) -> list[Run]:
    """As the experiment's file lists them, whatever was run first."""
    labels = [variant.label for variant in Experiment.read(FOLDER / f"{name}.toml").variants()]
    return sorted(runs, key=lambda r: (labels.index(r["label"]), r["seed"]))


def _of(runs: list[Run], label: str) -> list[Run]:
    return [r for r in runs if r["label"] == label]


def _labels(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(r["label"] for r in runs))


def _mean(runs: list[Run], value: str | Callable[[Run], float]) -> float:
    return statistics.mean(r[value] if isinstance(value, str) else value(r) for r in runs)


def _accuracy(runs: list[Run]) -> str:
    values = [100 * r["final_accuracy"] for r in runs]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} %"


def _code(label: str) -> str:
    """A label with its specs as code."""
    spec = re.compile(r"[a-z_0-9]+\(.*\)")
    return cell(" · ".join(f"`{part}`" if spec.fullmatch(part) else part for part in label.split(" · ")))


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _mixed_links(runs: list[Run]) -> str:
    rows, seconds = [], {}
    for label in _labels(runs):
        mine = _of(runs, label)
        reached = [r for r in mine if r["target_virtual_seconds"] is not None]
        if len(reached) < len(mine):
            took, made = _mean(mine, "virtual_seconds"), _mean(mine, "rounds_done")
            uplink = format_bytes(_mean(mine, "uplink_bytes"))
            seeds = f"{len(reached)} of {len(mine)} seeds in {_seconds(took)}"
            rows.append([_code(label), seeds, f"({made:,.0f})", uplink, ""])
            continue
        times = [r["target_virtual_seconds"] for r in mine]
        seconds[label] = statistics.mean(times)
        rows.append(
            [
                _code(label),
                f"{_seconds(seconds[label])} ({_seconds(min(times))} to {_seconds(max(times))})",
                f"{_mean(mine, 'target_round') + 1:,.0f}",
                format_bytes(_mean(mine, "target_uplink_bytes")),
                format_bytes(_mean(mine, "target_total_bytes")),
            ]
        )
    own = seconds["a budget for each, deadline 4 s"]
    waited, cut_off = (
        min(taken for label, taken in seconds.items() if label.startswith(start)) / own
        for start in ("one density for all ·", "one density for all, deadline")
    )
    facts = (
        f"Budgets are {waited:.1f} times as fast as the best of the densities common to all, and {cut_off:.2f} times "
        "as fast as the best of them under the same deadline; of less than a tenth these seeds tell nothing."
    )
    headings = ["run", "virtual time to 95 % (least to most)", "rounds", "uplink", "all that travelled"]
    return table(headings, rows) + "\n\n" + facts


def _drift(runs: list[Run]) -> str:
    rows = [
        [
            _code(label),
            _accuracy(mine),
            format_bytes(_mean(mine, "uplink_bytes")),
            format_bytes(_mean(mine, "downlink_bytes")),
            format_bytes(_mean(mine, "other_bytes")),
            f"{_mean(mine, 'drift_norm'):.3f}",
        ]
        for label in _labels(runs)
        for mine in [_of(runs, label)]
    ]
    return table(["method · algorithm", "accuracy", "uplink", "downlink", "other", "drift norm"], rows)


def _spread(runs: list[Run]) -> str:
    rows = [
        [_code(label), _accuracy(mine), f"{_mean(mine, 'drift_norm'):.3f}"]
        for label in _labels(runs)
        for mine in [_of(runs, label)]
    ]
    return table(["run · method · algorithm", "accuracy", "drift norm"], rows)


def _packet_loss(runs: list[Run]) -> str:
    bases = {start: _mean(_of(runs, start + "no loss"), "final_accuracy") for start in ("", "dense, ")}
    rows = [
        [
            label,
            _accuracy(mine),
            f"{100 * (_mean(mine, 'final_accuracy') - bases['dense, ' if label.startswith('dense') else '']):+.2f}",
            f"{_mean(mine, lambda r: r['num_received'] / (r['clients'] * r['rounds'])):.0%}",
            format_bytes(_mean(mine, "uplink_bytes")),
            format_bytes(_mean(mine, "again_bytes")),
            f"{_mean(mine, 'num_duplicates'):,.0f}",
            "" if label.startswith("dense") else f"{max(r['conservation_error'] for r in mine):.0e}",
        ]
        for label in _labels(runs)
        for mine in [_of(runs, label)]
    ]
    headings = [
        "packets",
        "accuracy",
        "points",
        "heard",
        "uplink",
        "of it sent again",
        "duplicates refused",
        "missing mass, most",
    ]
    return table(headings, rows)


def _over_the_air(runs: list[Run]) -> str:
    rows = [
        [
            _code(label),
            _accuracy(mine),
            format_bytes(_mean(mine, "uplink_bytes")) if mine[0]["channel_uses"] is None else "",
            "" if mine[0]["channel_uses"] is None else f"{_mean(mine, 'channel_uses'):,.0f}",
            f"{_mean(mine, lambda r: r['num_received'] / (r['clients'] * r['rounds'])):.0%}",
        ]
        for label in _labels(runs)
        for mine in [_of(runs, label)]
    ]
    return table(["channel · method", "accuracy", "digital uplink", "channel uses, all clients", "heard"], rows)


def _regions(runs: list[Run]) -> str:
    rows = [
        [
            _code(label),
            _accuracy(mine),
            format_bytes(_mean(mine, "uplink_bytes")),
            format_bytes(_mean(mine, "downlink_bytes")),
            format_bytes(_mean(mine, "wan_uplink_bytes")),
            format_bytes(_mean(mine, "wan_downlink_bytes")),
        ]
        for label in _labels(runs)
        for mine in [_of(runs, label)]
    ]
    return table(["run", "accuracy", "uplink", "downlink", "WAN uplink", "WAN downlink"], rows)


def _continuous(runs: list[Run]) -> str:
    rows = [
        [
            _code(label),
            _accuracy(mine),
            format_bytes(_mean(mine, lambda r: r["uplink_bytes"] / r["num_received"])),
            format_bytes(_mean(mine, "uplink_bytes")),
            f"{_mean(mine, 'virtual_seconds') / 3600:.1f} h",
        ]
        for label in _labels(runs)
        for mine in [_of(runs, label)]
    ]
    return table(["method", "accuracy", "bytes an update", "uplink", "virtual time"], rows)


def _many_clients(runs: list[Run]) -> str:
    rows = [
        [
            label,
            f"{_mean(mine, 'num_members'):,.0f}",
            _accuracy(mine),
            format_bytes(_mean(mine, lambda r: 4 * r["d"] * r["num_members"])),
            format_bytes(max(r["peak_more_bytes"] for r in mine)),
            format_bytes(_mean(mine, "disk_bytes")),
            f"{statistics.median(r['client_rounds_per_second'] for r in mine):,.0f}",
        ]
        for label in _labels(runs)
        for mine in [_of(runs, label)]
    ]
    headings = [
        "clients",
        "took part",
        "accuracy",
        "their residuals",
        "peak memory, more",
        "on disk",
        "client-rounds/s",
    ]
    return table(headings, rows)


_TABLES: dict[str, Callable[[list[Run]], str]] = {
    "mixed-links": _mixed_links,
    "drift": _drift,
    "participation": _spread,
    "noise": _spread,
    "packet-loss": _packet_loss,
    "over-the-air": _over_the_air,
    "regions": _regions,
    "continuous": _continuous,
    MANY: _many_clients,
}
