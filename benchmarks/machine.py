"""What a figure was measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gradwire.bench.machine import machine

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"


def save(name: str, results: dict[str, Any]) -> None:
    """Write benchmarks/results/NAME.json with the machine beside the results."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")


def load(name: str) -> dict[str, Any]:
    """Read benchmarks/results/NAME.json."""
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return loaded


def write_section(path: Path, name: str, body: str) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- end NAME -->`` in a document."""
    text = path.read_text()
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    before, rest = text.split(start, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{start}\n{body.strip()}\n{end}{after}")


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def describe(found: dict[str, Any]) -> str:
    """The machine in one sentence."""
    m = found["machine"]
    return (
        f"Measured on {m['cores']} cores of {m['processor']}, Python {m['python']}, NumPy {m['numpy']}, "
        f"torch {m['torch']}, gradwire {m['gradwire']}."
    )
