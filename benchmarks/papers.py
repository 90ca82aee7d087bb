"""The papers' experiments at cpu scale, as pages of docs/papers: what `gradwire reproduce PAPER --scale cpu` gives.

    python -m benchmarks papers --data-dir DIR

Takes about two hours on two cores; goes on where runs/PAPER-cpu was left.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.machine import DOCS, describe, load, save, table, write_section
from gradwire.errors import ConfigError
from gradwire.federated.data.tasks import load_task
from gradwire.report.plots import styles_of
from gradwire.reproduce.blocks import Block, Chart, Heading, Table
from gradwire.reproduce.run import PAPERS, load_paper, reproduce

PAGES = DOCS / "papers"
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


def run(data_dir: str | None) -> None:
    """Run what is left of each and write benchmarks/results/PAPER.json, then the pages."""
    try:
        for name in ("mnist", "cifar10"):
            load_task(name, Path(data_dir) if data_dir else None)
    except ConfigError as error:
        print(f"papers are left out: {error}")
        return
    for name in PAPERS:
        out = Path("runs") / f"{name}-cpu"
        done = reproduce(
            name,
            "cpu",
            out,
            Path(data_dir).resolve() if data_dir else None,
            os.cpu_count() or 1,
            lambda _: None,
            lambda unit, share: print(f"{unit}: done") if share == 1.0 else None,
            lambda: False,
        )
        assert done
        keep(name, out / "results.json")
    document()


def keep(name: str, results: Path) -> None:
    """Write benchmarks/results/PAPER.json from a reproduction's results.json, with the machine and fewer digits."""
    save(name, _rounded(json.loads(results.read_text())))


def document() -> None:
    """Write each paper's section in docs/papers/PAPER.md and its charts."""
    for name in PAPERS:
        if not (Path(__file__).parent / "results" / f"{name}.json").is_file():
            print(f"{name}: no results yet")
            continue
        found = load(name)
        blocks = load_paper(name).report(found["config"], found["results"])
        done = f"{len(found['results'])} of {found['num_units']} pieces of work of scale `{found['scale']}` are done."
        text = [_markdown(block) for block in blocks]
        write_section(PAGES / f"{name}.md", name, "\n\n".join([*text, done, describe(found)]))


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"### {block.text}"
    if isinstance(block, Table):
        return table(list(block.headings), [[cell.replace("|", "\\|") for cell in row] for row in block.rows])
    if isinstance(block, Chart):
        _draw(block)
        return f"![{block.title}]({block.name}.svg)"
    return block.text


def _draw(chart: Chart) -> None:
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
    figure.savefig(PAGES / f"{chart.name}.svg", metadata={"Date": None})
    pyplot.close(figure)


def _rounded(value: Any) -> Any:
    """Floats to six digits: more say nothing here and make the file large."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
