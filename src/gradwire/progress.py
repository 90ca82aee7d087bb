"""What the command shows on a terminal: live progress, tables, facts."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from gradwire.compressors.compressor import Compressor
from gradwire.errors import GradwireError, visible
from gradwire.report import tables
from gradwire.report.verdict import verdict

if TYPE_CHECKING:
    from gradwire.federated.simulation import RoundMetrics, Simulation

__all__ = [
    "BenchProgress",
    "FileProgress",
    "ReproductionDisplay",
    "RunDisplay",
    "format_bandwidth",
    "print_bench",
    "print_compressed",
    "print_differing",
    "print_facts",
    "print_methods",
    "print_scaling",
    "signature_of",
]

_CELL_SECONDS = 0.25  # between two pictures of bars in a notebook

# the report has every column; a terminal of 80 characters has room for these
_SHOWN = {
    "accuracy": "accuracy",
    "uplink_bytes": "uplink",
    "downlink_bytes": "downlink",
    "compression_ratio": "ratio",
    "compression_share": "codec time",
}


class _Cell:
    """Bars below a notebook's cell, drawn again in their place: rich does so with ipywidgets alone."""

    def __init__(self, progress: Progress) -> None:
        from IPython.display import display

        self._progress = progress
        self._shown = time.monotonic()
        self._handle = display(progress, display_id=True)

    def show(self, at_most_every: float = 0.0) -> None:
        """Draw them, where the last time is some seconds ago."""
        if time.monotonic() - self._shown >= at_most_every:
            self._handle.update(self._progress)
            self._shown = time.monotonic()


class _Bars:
    """Bars that are shown inside ``with``, in a terminal or below a notebook's cell, and lines beside them."""

    def __init__(self, progress: Progress) -> None:
        self._console = progress.console
        self._progress = progress
        self._cell: _Cell | None = None

    def __enter__(self) -> Self:
        if self._console.is_jupyter and not self._progress.disable:
            self._cell = _Cell(self._progress)
        else:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cell is None:
            self._progress.stop()
        else:
            self._cell.show()

    def _update(self, bar: TaskID, **changed: Any) -> None:
        """Change what a bar shows."""
        self._progress.update(bar, **changed)
        if self._cell is not None:
            self._cell.show(at_most_every=_CELL_SECONDS)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(_plain(text))


class RunDisplay(_Bars):
    """Live progress of an experiment: one bar a method with accuracy, bytes so far and time left."""

    def __init__(self, folder: Path) -> None:
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[accuracy]}"),
            TextColumn("{task.fields[num_bytes]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        ]
        super().__init__(Progress(*columns, console=Console(highlight=False)))
        self._folder = folder
        self._bar = self._progress.add_task("loading data", total=None, accuracy="", num_bytes="")
        self._fresh = True

    def started(self, simulation: Simulation, number: int, num_runs: int) -> None:
        """Show a new run."""
        if self._fresh:
            self._progress.remove_task(self._bar)
            self._fresh = False
        e = simulation.experiment
        seed = f" seed {simulation.seed}" if len(e.seeds) > 1 else ""
        self._bar = self._progress.add_task(
            _plain(f"{number + 1}/{num_runs} {simulation.label}{seed}"),
            total=e.rounds,
            completed=simulation.totals.rounds_done,
            accuracy="",
            num_bytes="",
        )
        if not (self._console.is_terminal or self._console.is_jupyter):
            self.say(f"{number + 1}/{num_runs} {simulation.label}{seed}: {e.rounds} rounds, {e.clients} clients")

    def progressed(self, simulation: Simulation, metrics: RoundMetrics) -> None:
        """Show a round."""
        totals = simulation.totals
        accuracy = "" if totals.accuracy is None else f"{100 * totals.accuracy:.1f} %"
        self._update(
            self._bar,
            completed=totals.rounds_done,
            total=totals.rounds_done if simulation.finished else simulation.experiment.rounds,
            accuracy=accuracy,
            num_bytes=f"{tables.format_bytes(totals.uplink_bytes)} up",
        )

    def finish(self, report: Path, complete: bool) -> None:
        """Print the table and where the files are."""
        from gradwire.report.load import read_summary

        rows = tables.summary_rows(read_summary(self._folder))
        self._console.print(_results(rows))
        self.say(verdict(rows))
        if not complete:
            self.say(f"Stopped early; go on with: gradwire run --resume {self._folder}")
        self._console.print(f"Report: {_plain(report)}", soft_wrap=True)


class ReproductionDisplay(_Bars):
    """One bar for all units of a reproduction, and a line for each that is done."""

    def __init__(self) -> None:
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=40),
            TextColumn("{task.percentage:.1f} %"),
            TimeRemainingColumn(elapsed_when_finished=True),
        ]
        super().__init__(Progress(*columns, console=Console(highlight=False)))
        self._bar = self._progress.add_task("starting", total=1.0)
        self._shares: dict[str, float] = {}

    def started(self, units: dict[str, bool]) -> None:
        """Show how many units there are and how many were done before."""
        self._shares = {name: float(done) for name, done in units.items()}
        self._show()

    def progressed(self, name: str, share: float) -> None:
        """Show how far a unit is."""
        if share == 1.0 and self._shares[name] < 1.0:
            self.say(f"{name}: done")
        self._shares[name] = share
        self._show()

    def finish(self, report: Path, complete: bool) -> None:
        """Print where the report is."""
        if not complete:
            self.say("Stopped early; the same command goes on from here.")
        self._console.print(f"Report: {_plain(report)}", soft_wrap=True)

    def _show(self) -> None:
        done = sum(share == 1.0 for share in self._shares.values())
        self._update(
            self._bar,
            description=f"{done}/{len(self._shares)} units",
            completed=sum(self._shares.values()),
            total=len(self._shares) or 1.0,
        )


class BenchProgress(_Bars):
    """A bar of how much is measured, on stderr and gone afterwards."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        super().__init__(
            Progress(
                TextColumn("measuring"),
                BarColumn(bar_width=40),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=console,
                transient=True,
                disable=not console.is_terminal,
                refresh_per_second=1,
            )
        )
        self._bar = self._progress.add_task("", total=1.0)

    def advance(self, share: float) -> None:
        """Show the share that is done."""
        self._update(self._bar, completed=share)


class FileProgress(_Bars):
    """A bar that advances with the tensors of a file, on stderr and gone afterwards.

    Attributes:
        num_bytes: bytes of the tensors that were worked through.
    """

    def __init__(self, path: Path) -> None:
        console = Console(stderr=True)
        super().__init__(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                DownloadColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=console,
                transient=True,
                disable=not console.is_terminal,
            )
        )
        self._path = path
        self._bar = self._progress.add_task(_plain(path.name), total=None)
        self.num_bytes = 0

    def advance(self, name: str, num_bytes: int) -> None:
        """Count a tensor that was worked through."""
        if not self._progress.disable:
            total = _num_tensor_bytes(self._path) if self.num_bytes == 0 else None
            self._update(self._bar, advance=num_bytes, total=total, description=_plain(name))
        self.num_bytes += num_bytes


def _plain(text: object) -> str:
    """Text of a file as it may be printed."""
    return escape(visible(str(text)))


def _num_tensor_bytes(path: Path) -> int | None:
    """Bytes of a file's tensors when they are whole, or None where the file does not say."""
    from gradwire.files.gwfile import GwReader
    from gradwire.files.shards import open_update

    for reader in (open_update, GwReader):
        try:
            with reader(path) as file:
                return sum(info.num_bytes for info in file.tensors)
        except GradwireError:
            continue
    return None


def print_compressed(source_bytes: int, num_bytes: int, output: Path) -> None:
    """Print what a compressed file came to."""
    ratio = f"{source_bytes / num_bytes:.1f}x smaller" if num_bytes else ""
    text = f"{output}: {tables.format_bytes(num_bytes)} instead of {tables.format_bytes(source_bytes)}, {ratio}"
    Console(highlight=False).print(_plain(text), soft_wrap=True)


def print_differing(names: Sequence[str], first: Path) -> None:
    """Print which tensors could not be averaged and are not the same everywhere, on stderr."""
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        text = f"integers are not averaged: {', '.join(names[:3])}{more} differ between files and are those of {first}"
        Console(stderr=True, highlight=False).print(_plain(text), soft_wrap=True)


def print_methods() -> None:
    """Print every stage: parameters, what it does, its source, and what was measured at a typical setting."""
    console = Console(highlight=False)
    measured = {entry["name"]: entry for entry in _measured_methods()}
    for name, stage in sorted(Compressor.registry.items()):
        console.print(f"[bold]{escape(signature_of(stage))}[/bold]")
        console.print(f"    {escape(stage.summary)} [dim]({escape(stage.citation)})[/dim]", soft_wrap=True)
        if entry := measured.get(name):
            figures = (
                f"{entry['typical']}: {entry['bits_per_parameter']:.3f} bits a parameter, cosine "
                f"{entry['first_cosine']:.2f}, {entry['state_vectors']:.1f} vectors kept, "
                f"{entry['peak_vectors']:.1f} at peak, time of {entry['time_in_adds']:.0f} adds; {entry['guarantee']}"
            )
            console.print(f"    {escape(figures)}", soft_wrap=True)


def print_bench(found: dict[str, Any]) -> None:
    """Print what each operation took beside one addition, and what each method sends and when it pays."""
    console = Console(highlight=False)
    console.print(escape(_measured_on(found)))
    table = _right_table("operation", "ms", "x add_")
    before = "floor"
    for row in found["rows"]:
        if row["group"] != before:
            table.add_section()
        before = row["group"]
        table.add_row(escape(row["name"]), f"{1000 * row['seconds']:.3f}", f"{row['ratio']:.2f}")
    console.print(table)
    table = _right_table("method", "bytes", "pays below")
    for method in found["methods"][1:]:
        table.add_row(
            escape(method["method"]),
            tables.format_bytes(method["num_bytes"]),
            format_bandwidth(method["pays_below_bits_per_second"]),
        )
    console.print(table)
    facts: dict[str, Any] = {entry["name"]: f"{entry['ratio']:.2f}x" for entry in found["comparisons"]}
    for spec, extra in found["memory"]["compress_extra_percent"].items():
        facts[f"extra memory of Client.compress, {spec}"] = f"{extra['client']:.1f} % of the update"
    facts[f"memory of {found['memory']['aggregate_clients']} clients aggregated"] = (
        f"{found['memory']['aggregate_peak_vectors']:.2f} dense vectors"
    )
    facts["extra memory of Server.close_round, 1 %"] = (
        f"{found['memory']['close_round_extra_vectors']:.2f} dense vectors"
    )
    for spec, microseconds in found["small"]["microseconds"].items():
        facts[f"Client.compress of {found['small']['d']:,} parameters, {spec}"] = f"{microseconds:.0f} microseconds"
    for step in ("encode", "decode"):
        speed = found["codec"][f"{step}_entries_per_second"] / 1e6
        facts[f"{step} alone, {found['codec']['method']}"] = f"{speed:.1f} million entries a second"
    _print_bench_facts(console, facts, found["notes"])


def print_scaling(found: dict[str, Any]) -> None:
    """Print the cost of a parameter at each size, and the gain of more threads."""
    console = Console(highlight=False)
    console.print(escape(_measured_on(found)))
    scaling = found["scaling"]
    table = _right_table("parameters", "add_, ns each", f"{scaling['method']}, ns each", "x add_")
    for row in scaling["sizes"]:
        table.add_row(
            f"{row['d']:,}",
            f"{row['add_nanoseconds']:.3f}",
            f"{row['compress_nanoseconds']:.3f}",
            f"{row['ratio']:.2f}",
        )
    console.print(table)
    facts = {"largest cost over smallest": f"{scaling['flatness']:.2f}x"}
    if gain := scaling["second_core"]:
        facts[f"gain of {gain['threads']} threads over one"] = (
            f"{gain['compress_gain']:.2f}x, torch.add_ {gain['add_gain']:.2f}x"
        )
    _print_bench_facts(console, facts, scaling["notes"])


def _measured_on(found: dict[str, Any]) -> str:
    m = found["machine"]
    return (
        f"{found['d']:,} parameters, {found['threads']} threads, {found['rounds']} rounds, {m['processor']}, "
        f"torch {m['torch']}; medians"
    )


def _right_table(first: str, *headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(escape(first), overflow="fold", ratio=1)
    for heading in headings:
        table.add_column(escape(heading), justify="right")
    return table


def format_bandwidth(bits_per_second: float | None) -> str:
    """Write a bandwidth with the unit that fits; None is one without a limit."""
    if bits_per_second is None:
        return "any"
    unit, name = (1e9, "Gbit/s") if bits_per_second >= 1e9 else (1e6, "Mbit/s")
    return f"{bits_per_second / unit:.3g} {name}"


def _print_bench_facts(console: Console, facts: dict[str, str], notes: list[str]) -> None:
    table = Table(box=None, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for name, value in facts.items():
        table.add_row(escape(name), escape(value))
    console.print(table)
    for note in notes:
        console.print(escape(f"note: {note}"))


def signature_of(stage: type[Compressor]) -> str:
    """Return a stage as a spec writes it, with its parameters and defaults."""
    parts = [
        p.name
        if p.default is p.empty
        else f"{p.name}={p.default}"
        if isinstance(p.default, Compressor)
        else f"{p.name}={p.default!r}"
        for p in inspect.signature(stage).parameters.values()
    ]
    return f"{stage.__name__}({', '.join(parts)})"


def _measured_methods() -> list[dict[str, Any]]:
    """What ``python -m benchmarks methods`` measured, which is shipped with the package."""
    found: list[dict[str, Any]] = json.loads((files("gradwire") / "methods.json").read_text(encoding="utf-8"))[
        "methods"
    ]
    return found


def print_facts(facts: dict[str, Any]) -> None:
    """Print names and values as two columns."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in facts.items():
        if isinstance(value, list):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, float):
            value = f"{value:.6g}"
        table.add_row(name, _plain(value))
    console = Console(highlight=False)
    console.print(table)
    if facts.get("tensors"):
        console.print(_tensor_table(facts["tensors"]))


def _tensor_table(tensors: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("tensor", overflow="fold", ratio=1)
    for heading in ("shape", "kept", "bytes", "codec"):
        table.add_column(heading, justify="left" if heading == "codec" else "right", overflow="fold")
    for t in tensors:
        shape = "x".join(map(str, t["shape"])) or "scalar"
        codec = t.get("codec", {"support": "whole", "values": t["dtype"]})
        table.add_row(
            _plain(t["name"]),
            shape,
            str(t["num_kept"]),
            str(t["total_bytes"]),
            _plain(f"{codec['support']} {codec['values']}"),
        )
    return table


def _shown(rows: list[tables.Row]) -> dict[str, str]:
    """The columns that fit: what it took to get to the target, where there is one, for the time of the codec."""
    targets = [column for column in tables.columns_of(rows) if column.key.startswith("target_")]
    if not targets:
        return _SHOWN
    kept = {key: title for key, title in _SHOWN.items() if key != "compression_share"}
    return kept | {targets[0].key: targets[0].title.lower()}


def _results(rows: list[tables.Row]) -> Table:
    shown = _shown(rows)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("method", overflow="fold", ratio=1)
    for title in shown.values():
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        cells = [tables.cell_text(row, key) if key == "accuracy" else tables.cell_parts(row, key)[0] for key in shown]
        partial = f" ({row.rounds_done} of {row.rounds} rounds)" if row.status == "partial" else ""
        table.add_row(_plain(row.method) + partial, *map(escape, cells))
    return table
