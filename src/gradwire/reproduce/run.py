"""Running a reproduction: units in a pool of processes, each kept when it is done, and the report."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import gradwire
from gradwire.errors import ConfigError, nearest
from gradwire.files.atomic import write_atomically
from gradwire.report.offline import replace_file
from gradwire.reproduce.page import render
from gradwire.reproduce.units import Paper, Unit, thinned

__all__ = ["PAPERS", "SCALES", "find_config", "load_paper", "read_results", "rebuild_report", "reproduce"]

PAPERS = ("tcs", "adaptopk", "regtopk")
SCALES = ("smoke", "cpu", "paper")
_POLL_SECONDS = 0.2


def load_paper(name: str) -> Paper:
    """Return how a paper is reproduced.

    Raises:
        ConfigError: on a name that is not one of ``PAPERS``.
    """
    if name not in PAPERS:
        raise ConfigError(f"paper must be one of {', '.join(PAPERS)}, got {name!r}{nearest(name, PAPERS)}")
    paper: Paper = import_module(f"gradwire.reproduce.{name}").PAPER
    return paper


def find_config(paper: str, scale: str) -> dict[str, Any]:
    """Read reproductions/<paper>/<scale>.toml, from the checkout or the installed package.

    Raises:
        ConfigError: on an unknown scale, or where the file is missing.
    """
    if scale not in SCALES:
        raise ConfigError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}{nearest(scale, SCALES)}")
    package = Path(gradwire.__file__).parent
    for folder in (package / "reproductions", package.parents[1] / "reproductions"):
        file = folder / paper / f"{scale}.toml"
        if file.is_file():
            return tomllib.loads(file.read_text(encoding="utf-8"))
    raise ConfigError(f"reproductions/{paper}/{scale}.toml was not found beside the package")


def reproduce(
    name: str,
    scale: str,
    out: Path,
    data_dir: Path | None,
    num_workers: int,
    started: Callable[[dict[str, bool]], None],
    progressed: Callable[[str, float], None],
    stop: Callable[[], bool],
) -> bool:
    """Run what is left of a reproduction and write OUT/results.json and OUT/report.html.

    Args:
        name: the paper.
        scale: which configuration.
        out: the folder; one that holds the same reproduction is gone on with.
        data_dir: folder of the data files, or None for ``GRADWIRE_DATA``.
        num_workers: how many units run at a time, each in a process with one torch thread.
        started: called with each unit's name and whether it was done before.
        progressed: called with a unit's name and the share of it that is done, in [0, 1].
        stop: asked a few times a second whether to end early; what is under way is saved then.

    Returns:
        True when every unit is done, False when stopped early.

    Raises:
        ConfigError: on a folder of something else, or data that is not there.
        GradwireError: where a unit failed.
    """
    from gradwire.federated.data.tasks import check_data

    paper, config = load_paper(name), find_config(name, scale)
    for data in sorted({unit.settings["data"] for unit in paper.units(config) if "data" in unit.settings}):
        _check_needs(config, data, check_data(data, data_dir))
    _open(out, {"paper": name, "scale": scale, "config": config})
    units = paper.units(config)
    started({unit.name: _file(out, unit).is_file() for unit in units})
    left = [unit for unit in units if not _file(out, unit).is_file()]
    try:
        complete = _run_all(name, left, out, data_dir, num_workers, progressed, stop)
    finally:
        write_report(paper, scale, config, out)
    return complete


def _check_needs(config: dict[str, Any], data: str, files: Mapping[str, Path]) -> None:
    """Refuse what a configuration's numbers of examples do not hold for."""
    there = {name.partition(".")[0] for name in files}
    for setting in config.get("settings", ()):
        missing = [file for file in setting.get("needs", ()) if file not in there]
        if missing and setting["shared"]["data"] == data:
            raise ConfigError(f"{data}: this scale needs {missing[0]}, which is not beside {', '.join(sorted(there))}")


def read_results(out: Path, units: list[Unit]) -> dict[str, dict[str, Any]]:
    """Return the results of the units that are done, by name."""
    return {
        unit.name: json.loads(_file(out, unit).read_text(encoding="utf-8"))
        for unit in units
        if _file(out, unit).is_file()
    }


def rebuild_report(out: Path) -> Path:
    """Write OUT/results.json and OUT/report.html again, from the units that are done.

    Args:
        out: a reproduction's folder.

    Returns:
        The path of the page.

    Raises:
        ConfigError: on a folder that holds no reproduction.
    """
    try:
        described = json.loads((out / "reproduction.json").read_text(encoding="utf-8"))
        paper, scale, config = load_paper(described["paper"]), described["scale"], described["config"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{out}: holds no reproduction: {error}") from None
    write_report(paper, scale, config, out)
    return out / "report.html"


def write_report(paper: Paper, scale: str, config: dict[str, Any], out: Path) -> None:
    """Write OUT/results.json and OUT/report.html from the units that are done."""
    units = paper.units(config)
    results = read_results(out, units)
    found = {"paper": paper.name, "scale": scale, "config": config, "num_units": len(units), "results": results}
    write_atomically(out / "results.json", (json.dumps(found, indent=1) + "\n").encode())
    settings = [f"scale {scale}", f"{len(results)} of {len(units)} units done", f"gradwire {gradwire.__version__}"]
    page = render(f"Reproduction: {paper.title}", settings, paper.report(config, results))
    replace_file(out / "report.html", page.encode())


def _open(out: Path, described: dict[str, Any]) -> None:
    """Make the folder, or check that it holds this very reproduction."""
    file = out / "reproduction.json"
    text = json.dumps(described, indent=1) + "\n"
    if file.is_file():
        if file.read_text(encoding="utf-8") != text:
            raise ConfigError(f"--out {out}: holds a reproduction with other settings; choose another folder")
        return
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"--out {out}: exists and is not an empty folder; choose another")
        (out / "units").mkdir(parents=True, exist_ok=True)
        write_atomically(file, text.encode())
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from None


def _file(out: Path, unit: Unit) -> Path:
    return out / "units" / f"{unit.name}.json"


def _run_all(
    paper: str,
    units: list[Unit],
    out: Path,
    data_dir: Path | None,
    num_workers: int,
    progressed: Callable[[str, float], None],
    stop: Callable[[], bool],
) -> bool:
    if not units:
        return True
    context = multiprocessing.get_context("spawn")
    with _one_thread_each(), context.Manager() as manager:
        messages, stopping = manager.Queue(), manager.Event()
        workers = min(num_workers, len(units))
        with ProcessPoolExecutor(workers, context, _prepare_worker, (messages, stopping)) as pool:
            waiting: set[Future[bool]] = {pool.submit(_run_unit, paper, unit, out, data_dir) for unit in units}
            try:
                while waiting:
                    finished, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
                    for future in finished:
                        if not future.cancelled():
                            future.result()
                    _drain(messages, progressed)
                    if stop() and not stopping.is_set():
                        stopping.set()
                        waiting = {future for future in waiting if not future.cancel()}
            except BaseException:
                stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            _drain(messages, progressed)
    return all(_file(out, unit).is_file() for unit in units)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started inside load NumPy and torch with one thread, unless the user said otherwise."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]


def _drain(messages: queue.Queue[tuple[str, float]], progressed: Callable[[str, float], None]) -> None:
    while True:
        try:
            progressed(*messages.get_nowait())
        except queue.Empty:
            return


# --- in a worker process ---------------------------------------------------------------------------

_worker: dict[str, Any] = {}


class _Stopped(Exception):
    """Raised inside a unit that was told to stop; it starts again next time."""


def _prepare_worker(messages: Any, stopping: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    _worker.update(messages=messages, stopping=stopping)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _run_unit(paper: str, unit: Unit, out: Path, data_dir: Path | None) -> bool:
    """Run one unit to its end or until told to stop; True when its file is there."""

    def progress(share: float) -> None:
        _worker["messages"].put((unit.name, share))

    if _worker["stopping"].is_set():
        return False
    if unit.function == "train":
        result = _train(unit, out / "runs" / unit.name, data_dir, progress)
    else:

        def step(share: float) -> None:
            if _worker["stopping"].is_set():
                raise _Stopped
            progress(share)

        found = {"data_dir": str(data_dir)} if data_dir and "data" in unit.settings else {}
        try:
            result = load_paper(paper).functions[unit.function]({**unit.settings, **found}, step)
        except _Stopped:
            return False
    if result is None:
        return False
    write_atomically(_file(out, unit), (json.dumps(result) + "\n").encode())
    progress(1.0)
    return True


def _train(unit: Unit, folder: Path, data_dir: Path | None, progress: Callable[[float], None]) -> dict[str, Any] | None:
    """Train one method with one seed, from where it was left."""
    import torch

    from gradwire.federated.experiment import Experiment
    from gradwire.federated.folder import RunFolder
    from gradwire.federated.runs import run_experiment

    torch.set_num_threads(1)
    experiment = Experiment.build(unit.settings, unit.name)
    run = RunFolder(folder, experiment) if folder.is_dir() else RunFolder.create(folder, experiment)
    complete = run_experiment(
        run,
        lambda *_: None,
        lambda simulation, _: progress(simulation.totals.rounds_done / experiment.rounds),
        _worker["stopping"].is_set,
        _task(experiment.data, data_dir),
    )
    if not complete:
        return None
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "summary": summary["runs"][0],
        "experiment": summary["experiment"],
        "accuracy": [[r["round"], r["accuracy"]] for r in rounds if r["accuracy"] is not None],
        "loss": thinned([[r["round"], r["loss"]] for r in rounds]),
        "square_norm": thinned([[r["round"], r["update_norm"] ** 2] for r in rounds]),
        "uplink_bytes": thinned([[r["round"], r["uplink_bytes"]] for r in rounds]),
        "downlink_bytes": thinned([[r["round"], r["downlink_bytes"]] for r in rounds]),
        "distinct": thinned([[r["round"], r["num_moved"] / r["num_kept"]] for r in rounds if r["num_kept"]]),
    }


@lru_cache(maxsize=1)
def _task(name: str, data_dir: Path | None) -> Any:
    from gradwire.federated.data.tasks import load_task

    return load_task(name, data_dir)
