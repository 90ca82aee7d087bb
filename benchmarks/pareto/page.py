"""docs/pareto.md and its picture, of all the runs there are, and of how many are to come."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.markdown import code, table
from benchmarks.pareto.curves import Needed, Point, bytes_for
from benchmarks.pareto.methods import DENSE, MOMENTA, PLAIN, STEPS, Entry, Setting, entries
from benchmarks.pareto.plan import (
    NUM_SECOND,
    NUM_THIRD,
    REPORT_SEEDS,
    SETUPS,
    TUNED,
    TUNING_SEEDS,
    Job,
    Run,
    Setup,
    found_of,
    halving,
    num_runs,
    report,
)
from benchmarks.results import Found, describe
from gradwire.report.tables import format_bytes

_LESS = (0.0025, 0.005, 0.01, 0.02)


class Judged(NamedTuple):
    """A method that is tuned and has all its runs on the test set."""

    entry: Entry
    setting: Setting
    runs: list[Run]

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """By seed; of a run that failed, 0."""
        return np.array([run["accuracy"] or 0.0 for run in self.runs])

    def mean(self, name: str) -> float:
        """The mean over seeds of a number of the runs."""
        return statistics.mean(run[name] for run in self.runs)

    @property
    def all_bytes(self) -> float:
        """Everything that travelled, either way."""
        return self.mean("uplink_bytes") + self.mean("downlink_bytes") + self.mean("other_bytes")

    @property
    def point(self) -> Point:
        """Accuracy against uplink bytes."""
        uplink = np.array([run["uplink_bytes"] for run in self.runs], np.float64)
        return Point(self.entry.level, uplink, self.accuracy)


def judged(found: dict[Job, Run], setup: Setup) -> list[Judged]:
    """Methods that are through, plain dense among them, in the table's order."""
    rows = []
    for entry in entries():
        jobs = report(found, setup, entry)
        for setting in dict.fromkeys(job.setting for job in jobs):
            runs = [found[job] for job in jobs if job.setting == setting and job in found]
            if len(runs) == len(REPORT_SEEDS):
                rows.append(Judged(entry, setting, runs))
    return rows


def document(result: Found) -> dict[str, str]:
    """The page's generated part, and the picture."""
    found = found_of(result["runs"])
    counts = [num_runs(found, setup, entry) for setup in SETUPS for entry in entries()]
    done, planned = (sum(column) for column in zip(*counts, strict=True))
    hours = sum(run["seconds"] for run in found.values()) / 3600
    so_far = f"So far {done:,} of {planned:,} runs" if done < planned else f"All {planned:,} runs are done"
    parts = [f"{so_far}, in {hours:.1f} hours of one thread. {describe(result)}", _tuning_text()]
    for setup in SETUPS:
        counts = [num_runs(found, setup, entry) for entry in entries()]
        if any(done for done, _ in counts):
            parts += _setup(found, setup, counts)
    return {"docs/pareto.md#pareto": "\n\n".join(parts), "docs/pareto.svg": _picture(found)}


def _tuning_text() -> str:
    first, second = TUNING_SEEDS
    momenta = ", ".join(
        kind if kind == "none" else f"{kind} {mu:g}" + ("" if gain is None else f" with gain {gain:g}")
        for kind, mu, gain in MOMENTA
    )
    return (
        f"Every method is tuned over the same settings: server steps {', '.join(f'{s:g}' for s in STEPS)}, each with "
        f"every momentum of: {momenta} (correction only in the place of `ef`; what needs the clients' mean as it is "
        f"takes step 1 alone and no momentum at the server). On {TUNED.title} all of them run for a quarter of the "
        f"rounds with seed {first}; {NUM_SECOND} of them, the best of every kind of momentum among these, to the end; "
        f"the best {NUM_THIRD} with seed {second} too. Other tasks choose among the settings that were best there. All "
        "of that is judged on every tenth training example, which is not trained on; the figures below are of the "
        f"test set and of seeds {', '.join(map(str, REPORT_SEEDS))}, which tuning never saw, after training on all "
        "examples. The accuracy of a run is the mean of those 5, 3, 1 and 0 rounds before its end."
    )


def _setup(found: dict[Job, Run], setup: Setup, counts: Sequence[tuple[int, int]]) -> list[str]:
    rows = judged(found, setup)
    done, planned = (sum(column) for column in zip(*counts, strict=True))
    runs = [run for job, run in found.items() if job.setup == setup.name]
    hours = sum(run["seconds"] for run in runs) / 3600
    d = runs[0]["num_parameters"]
    text = f"{d:,} parameters, {setup.rounds} rounds. {done} of {planned} runs, {hours:.1f} hours."
    if missing := [entry.spec(PLAIN) for entry in entries() if entry not in {row.entry for row in rows}]:
        text += f" Not through yet: {', '.join(f'`{spec}`' for spec in missing)}."
    parts = [f"### {setup.title}", text]
    if rows:
        parts += [_results(rows), *_targets(rows)]
    return [*parts, "What tuning cost, and what it found on the validation split:", _tuning(found, setup, counts)]


def _results(rows: Sequence[Judged]) -> str:
    lines = []
    for row in rows:
        per_step = row.mean("uplink_bytes") / np.mean(
            [run["num_parameters"] * run["num_sent"] * run["local_steps"] for run in row.runs]
        )
        failed = sum(run["accuracy"] is None for run in row.runs)
        lines.append(
            [
                code(row.runs[0]["spec"]),
                code(row.runs[0]["algorithm"]),
                f"{100 * row.accuracy.mean():.2f} ± {100 * row.accuracy.std(ddof=1):.2f} %"
                + (f" ({failed} overflowed)" if failed else ""),
                format_bytes(row.mean("uplink_bytes")),
                format_bytes(row.all_bytes),
                f"{per_step:.2g}",
            ]
        )
    return table(
        ["method", "server", "accuracy", "uplink", "all bytes", "uplink bytes per parameter and local step"], lines
    )


def _targets(rows: Sequence[Judged]) -> list[str]:
    """What each family needs to come near dense."""
    of_dense = {row.setting: row.accuracy for row in rows if row.entry == DENSE}
    tuned = next((accuracy for setting, accuracy in reversed(of_dense.items())), None)
    if tuned is None or PLAIN not in of_dense:
        return ["Dense is not through yet: there are no targets."]
    targets = [(f"best dense - {100 * less:g}", tuned, less) for less in _LESS] + [
        ("plain dense", of_dense[PLAIN], 0.0)
    ]
    families: dict[str, list[Point]] = {}
    for row in rows:
        if row.entry != DENSE:
            families.setdefault(row.entry.family, []).append(row.point)
    if not families:
        return []
    lines = [
        [family, *(_needed(bytes_for(points, reference, less)) for _, reference, less in targets)]
        for family, points in families.items()
    ]
    headings = [f"{name} ({100 * (reference.mean() - less):.2f} %)" for name, reference, less in targets]
    text = (
        "Uplink a method needs for a target, on the curve through its levels: straight lines over the logarithm of the "
        "bytes; in brackets the interval of 90 % of the resamples of the seeds, method and dense paired. `<=`: its "
        "cheapest level is there already."
    )
    return [text, table(["method", *headings], lines)]


def _needed(need: Needed) -> str:
    if need.num_bytes is None:
        often = f", in {100 * need.reached:.0f} % of the resamples" if need.reached else ""
        return f"not reached ({100 * need.best:+.2f}{often})"
    ends = ["never" if end is None else format_bytes(end) for end in (need.low, need.high)]
    return f"{'<= ' if need.at_most else ''}{format_bytes(need.num_bytes)} ({' to '.join(ends)})"


def _tuning(found: dict[Job, Run], setup: Setup, counts: Sequence[tuple[int, int]]) -> str:
    kinds = list(dict.fromkeys(kind for kind, *_ in MOMENTA))
    lines = []
    for entry, (done, planned) in zip(entries(), counts, strict=True):
        stages, best = halving(found, setup, entry)
        runs = [found[job] for stage in stages for job in stage if job in found]
        if not runs:
            continue
        full = [job for stage in stages for job in stage if job in found and job.stop == setup.rounds]
        of_kind = [
            max((found[job]["accuracy"] or 0.0 for job in full if job.setting.kind == kind), default=None)
            for kind in kinds
        ]
        lines.append(
            [
                code(entry.spec(PLAIN)),
                f"{done} of {planned}",
                f"{sum(run['seconds'] for run in runs) / 60:.0f}",
                *("" if accuracy is None else f"{100 * accuracy:.2f}" for accuracy in of_kind),
                str(best[0]) if best else "",
            ]
        )
    return table(["method", "runs", "minutes of tuning", *kinds, "chosen"], lines)


_MARKERS = "osD^v<>Pp*hX8dH"


def _picture(found: dict[Job, Run]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "gradwire"
    from matplotlib import pyplot

    shown = [(setup, rows) for setup in SETUPS if (rows := judged(found, setup))] or [(TUNED, [])]
    width = min(3, len(shown))
    height = -(-len(shown) // width)
    figure, axes = pyplot.subplots(height, width, figsize=(6.5 * width, 5.5 * height), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    for axis, (setup, rows) in zip(axes.flat, shown, strict=False):
        _draw(axis, rows)
        axis.set_title(setup.title)
    figure.tight_layout()
    picture = io.StringIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return picture.getvalue()


def _draw(axis: Any, rows: Sequence[Judged]) -> None:
    names = list(dict.fromkeys(entry.family for entry in entries()))
    for name in dict.fromkeys(row.entry.family for row in rows if row.entry != DENSE):
        mine = sorted((row for row in rows if row.entry.family == name), key=lambda row: row.mean("uplink_bytes"))
        number = names.index(name)
        axis.errorbar(
            [row.mean("uplink_bytes") / 1e3 for row in mine],
            [100 * row.accuracy.mean() for row in mine],
            yerr=[100 * row.accuracy.std(ddof=1) for row in mine],
            marker=_MARKERS[number % len(_MARKERS)],
            color=f"C{number % 10}",
            capsize=2,
            linewidth=1,
            label=name,
        )
    for row in rows:
        if row.entry == DENSE:
            style, label = ("-.", "plain dense") if row.setting == PLAIN else ("--", "best dense")
            axis.axhline(100 * row.accuracy.mean(), color="0.5", linewidth=1, linestyle=style, label=label)
    axis.set_xscale("log")
    axis.set_xlabel("uplink of all clients and rounds (kB, log scale)")
    axis.set_ylabel("test accuracy (%)")
    axis.grid(alpha=0.3)
    if rows:
        axis.legend(fontsize=8, loc="best")
