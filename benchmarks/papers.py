"""The papers' experiments at cpu scale, as pages of docs/papers: what `gradwire reproduce PAPER --scale cpu` gives.

    python -m benchmarks adaptopk regtopk tcs [--workers N] --data-dir DIR

Takes about two hours on two cores; goes on where runs/PAPER-cpu was left, or from the result file: pieces of work that
a configuration still has are not done again. Ctrl-C ends it early, and what is done by then is kept.
"""

from __future__ import annotations

import io
import json
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.markdown import cell, table
from benchmarks.results import Found, describe
from gradwire.errors import ConfigError
from gradwire.federated.data.tasks import load_task
from gradwire.files.atomic import write_atomically
from gradwire.report.series import styles_of
from gradwire.reproduce.blocks import Block, Chart, Heading, Table
from gradwire.reproduce.run import find_config, load_paper, reproduce

_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "cross": "P",
    "x": "X",
}
_LINES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdashdot": (0, (8, 2, 1, 2))}


def measure(paper: str, data_dir: str | None, parts: Sequence[str], workers: int) -> Found | None:
    """Run what is left of a paper's experiments; the figures with fewer digits."""
    try:
        for name in ("mnist", "cifar10"):
            load_task(name, Path(data_dir) if data_dir else None)
    except ConfigError as error:
        print(f"{paper} is left out: {error}")
        return None
    out = Path("runs") / f"{paper}-cpu"
    there: set[str] = set()
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        if results.is_there(paper):
            there = set(_lay_out(results.load(paper), out))
        reproduce(
            paper,
            "cpu",
            out,
            Path(data_dir).resolve() if data_dir else None,
            workers,
            lambda _: None,
            lambda unit, share: print(f"{unit}: done") if share == 1.0 else None,
            lambda: bool(asked),
        )
    finally:
        signal.signal(signal.SIGINT, before)
    found: Found = _rounded(json.loads((out / "results.json").read_text()))
    return found | {"measured": sorted(set(found["results"]) - there)}


def _lay_out(found: Found, out: Path) -> list[str]:
    """Put results into a folder for ``reproduce`` to go on with, where settings are what they were; name them."""
    paper, config = load_paper(found["paper"]), find_config(found["paper"], "cpu")
    before = {unit.name: unit for unit in paper.units(found["config"])}
    kept = [
        unit.name for unit in paper.units(config) if before.get(unit.name) == unit and unit.name in found["results"]
    ]
    described = {"paper": found["paper"], "scale": "cpu", "config": config}
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "reproduction.json").exists():
        write_atomically(out / "reproduction.json", (json.dumps(described, indent=1) + "\n").encode())
    (out / "units").mkdir(exist_ok=True)
    for name in kept:
        if not (file := out / "units" / f"{name}.json").exists():
            write_atomically(file, json.dumps(found["results"][name]).encode())
    print(f"{paper.name}: {len(kept)} pieces of work are there")
    return kept


def document(found: Found) -> dict[str, str]:
    """A paper's section of its page, and its charts."""
    paper = found["paper"]
    blocks = load_paper(paper).report(found["config"], found["results"])
    done = f"{len(found['results'])} of {found['num_units']} pieces of work of scale `{found['scale']}` are done."
    text = "\n\n".join([*(_markdown(block) for block in blocks), f"{done} {_made_with(found)}", describe(found)])
    charts = {f"docs/papers/{block.name}.svg": _draw(block) for block in blocks if isinstance(block, Chart)}
    return {f"docs/papers/{paper}.md#{paper}": text, **charts}


def _made_with(found: Found) -> str:
    """The commits that pieces of work were made with, or, where that was not noted, came into the repository with."""
    commits = Counter(found.get("commits", {}).get(name) or found.get("commit") for name in found["results"])
    told = (f"{commit[:7] if commit else 'not noted'} ({count})" for commit, count in commits.most_common())
    return f"Commits they were made with: {', '.join(told)}."


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"### {block.text}"
    if isinstance(block, Table):
        return table(list(block.headings), [[cell(text) for text in row] for row in block.rows])
    if isinstance(block, Chart):
        return f"![{block.title}]({block.name}.svg)"
    return block.text


def _draw(chart: Chart) -> str:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "gradwire"
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    styles = styles_of(series.name for series in chart.series)
    for series in chart.series:
        style = styles[series.name]
        marker = _MARKERS.get(style.symbol, "o") if len(series.x) < 40 else None
        axis.plot(series.x, series.y, _LINES[style.dash], color=style.color, marker=marker, ms=4, label=series.name)
        if len(series.spread):
            low, high = zip(*((y - s, y + s) for y, s in zip(series.y, series.spread, strict=True)), strict=True)
            axis.fill_between(series.x, low, high, color=style.color, alpha=0.15, linewidth=0)
    axis.set(xlabel=chart.x_label, ylabel=chart.y_label, title=chart.title)
    axis.set_xscale("log" if chart.log_x else "linear")
    axis.set_yscale("log" if chart.log_y else "linear")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    picture = io.StringIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return picture.getvalue()


def _rounded(value: Any) -> Any:
    """Floats to six digits: more say nothing here and make the file large; of models, which are compared, all."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: item if key == "theta" else _rounded(item) for key, item in value.items()}
    return value
