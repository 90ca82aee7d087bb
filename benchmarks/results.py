"""Result files: benchmarks/results/NAME.json, each with the machine that its figures were measured on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradwire.bench.machine import machine

ROOT = Path(__file__).parent.parent

Found = dict[str, Any]
_MACHINES = ("machine", "apart")


def save(name: str, found: Found, parts: Sequence[str] = ()) -> None:
    """Write a result with the machine that measured it: all of it here, or ``parts`` of it alone."""
    here = machine()
    whole, apart = here, {}
    if parts:
        before = load(name) if is_there(name) else {"machine": here}
        whole, apart = before["machine"], before.get("apart", {}) | dict.fromkeys(parts, here)
        apart = {part: there for part, there in apart.items() if there != whole}
    machines = {"machine": whole, **({"apart": apart} if apart else {})}
    _path(name).parent.mkdir(exist_ok=True)
    _path(name).write_text(text_of({**machines, **{key: found[key] for key in found if key not in _MACHINES}}))


def load(name: str) -> Found:
    """Read a result."""
    loaded: Found = json.loads(_path(name).read_text())
    return loaded


def is_there(name: str) -> bool:
    """Whether it was ever measured."""
    return _path(name).is_file()


def text_of(found: Found) -> str:
    """A result as its file holds it."""
    return json.dumps(found, indent=1) + "\n"


def describe(found: Found) -> str:
    """What it was measured on, in one sentence, and in one more for each part that was measured elsewhere."""
    whole = f"Measured on {_machine(found['machine'])}."
    return " ".join([whole, *(f"`{part}`: on {_machine(m)}." for part, m in found.get("apart", {}).items())])


def _machine(m: dict[str, Any]) -> str:
    return (
        f"{m['cores']} {'core' if m['cores'] == 1 else 'cores'} of {m['processor']}, Python {m['python']}, "
        f"NumPy {m['numpy']}, torch {m['torch']}, gradwire {m['gradwire']}"
    )


def _path(name: str) -> Path:
    return ROOT / "benchmarks" / "results" / f"{name}.json"
