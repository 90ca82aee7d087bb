"""Flower: what gradwire's mod and strategy save and cost over real processes, and which settings go with them.

    python -m benchmarks flower --data-dir DIR [--only PART]

Takes about two hours on two cores, most of it waiting. Each run is kept in the result file when it is finished; where
the rest is interrupted, ``python -m benchmarks --document flower`` shows what there is, and the next call goes on where
runs/flower was left. ``link`` needs Linux and root.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

from benchmarks import results
from benchmarks.flower import adam, link, mnist, net, slow_link
from benchmarks.flower.kept import Run
from benchmarks.results import Found, describe
from gradwire.errors import ConfigError
from gradwire.federated.data.tasks import check_data

_MODULES: dict[str, ModuleType] = {"mnist": mnist, "adam": adam, "link": link}
_PLACES = {
    "mnist": "docs/flower.md#flower-mnist",
    "adam": "docs/flower.md#flower-adam",
    "link": "docs/performance.md#flower-link",
}
PARTS = tuple(_MODULES)


def measure(data_dir: str | None, parts: Sequence[str]) -> Found:
    """Run what is left of some parts."""
    found: Found = {}
    for part in parts:
        if (why := _why_not(part, data_dir)) is not None:
            print(f"flower's {part} is left out: {why}")
            found[part] = {"left_out": why}
            continue
        _MODULES[part].measure(data_dir, partial(_keep, found, part))
    return found


def merge(old: Found, new: Found) -> Found:
    """Put each new run in the place of an older one of the same."""
    merged = dict(old)
    for part in new.keys() & _MODULES.keys():
        before = old.get(part, {}).get("runs", [])
        if "left_out" in new[part]:
            merged[part] = old.get(part, new[part])
            continue
        key = _MODULES[part].key
        runs = {key(run): run for run in [*before, *new[part]["runs"]]}
        merged[part] = {"runs": [runs[k] for k in sorted(runs)]}
    return merged


def document(found: Found) -> dict[str, str]:
    """The tables, one a part."""
    return {place: _section(found, part) for part, place in _PLACES.items()}


def _section(found: Found, part: str) -> str:
    of_part = found.get(part, {})
    if "runs" not in of_part:
        return f"Not measured: {of_part.get('left_out', 'it was not run yet')}."
    return f"{_MODULES[part].document(of_part['runs'])}\n\n{describe(found)}"


def _keep(found: Found, part: str, runs: list[Run]) -> None:
    """Take what is finished into the result file, so that nothing is lost where the rest is not finished."""
    found[part] = {"runs": runs}
    if runs:
        results.save("flower", merge(results.load("flower") if results.is_there("flower") else {}, found), [part])


def _why_not(part: str, data_dir: str | None) -> str | None:
    try:
        if part != "link":
            check_data("mnist", Path(data_dir) if data_dir else None)
    except ConfigError as error:
        return str(error)
    if part == "adam":
        return None
    return net.why_not() or (slow_link.why_not() if part == "link" else None)
