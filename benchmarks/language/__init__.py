"""Language models, really trained: loss against bytes, docs/language.md.

    python -m benchmarks language [--only char|lora] --data-dir DIR

About two and a half hours of one core in all. Every run that is done is a line of benchmarks/results/language.jsonl, so
that it may be stopped at any moment, in any way, and goes on with the next run; ``--document language`` makes the page
of what there is. ``lora`` needs transformers and peft, and keeps the model it begins from in runs/language.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks import results
from benchmarks.language.page import document
from benchmarks.language.plan import KINDS, PARTS, Kind, Run, due, found_of
from benchmarks.results import Found
from gradwire.errors import ConfigError
from gradwire.federated.data.tasks import check_data

__all__ = ["NAME", "PARTS", "document", "measure"]

NAME = "language"


def measure(data_dir: str | None, parts: Sequence[str], workers: int = 1) -> Found | None:
    """Make the runs that are missing, one after the other, and return all there are."""
    from benchmarks.language import runs

    kinds = _possible(data_dir, [kind for kind in KINDS if kind.part in parts])
    found = found_of(results.load(NAME)["runs"]) if results.is_there(NAME) else {}
    while (job := due(found, kinds)) is not None:
        found[job] = runs.run(job, data_dir)
        results.append(NAME, found[job])
        _tell(found[job])
    return results.load(NAME) if results.is_there(NAME) else None


def _possible(data_dir: str | None, kinds: list[Kind]) -> list[Kind]:
    """The kinds of which everything is there; what lacks is said."""
    try:
        check_data("shakespeare", Path(data_dir) if data_dir else None)
    except ConfigError as error:
        print(f"language is left out: {error}")
        return []
    missing = [name for name in ("peft", "transformers") if find_spec(name) is None]
    if missing and any(kind.part == "lora" for kind in kinds):
        print(f"language's lora is left out: {' and '.join(missing)} missing: pip install 'gradwire[language]'")
        return [kind for kind in kinds if kind.part != "lora"]
    return kinds


def _tell(run: Run) -> None:
    loss = "overflowed" if run["loss"] is None else f"loss {run['loss']:.4f}"
    print(
        f"{run['kind']} {run['method']} seed {run['seed']}, rate {run['learning_rate']:g}, {run['rounds']} rounds: "
        f"{loss}, {run['uplink_bytes']:,} bytes up, {run['seconds']} s",
        flush=True,
    )
