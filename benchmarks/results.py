"""Result files: benchmarks/results/NAME.json, each with the machine and the commit that its figures were measured on.

Figures from before that was noted have the commit that they came into the repository with.

What takes hours is NAME.jsonl, a line a run, appended when the run is done: a process may be killed at any moment.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradwire.bench.machine import machine

ROOT = Path(__file__).parent.parent

Found = dict[str, Any]
_NAMED = 6
_MACHINES = ("machine", "apart", "commit", "commits")


def save(name: str, found: Found, parts: Sequence[str] | None = None) -> None:
    """Write a result with the machine and the commit that measured it: all of it here, or ``parts`` of it alone."""
    here, now = machine(), commit()
    whole, apart, made, commits = here, {}, now, {}
    if parts is not None:
        before = load(name) if is_there(name) else {"machine": here}
        whole, apart = before["machine"], before.get("apart", {}) | dict.fromkeys(parts, here)
        apart = {part: there for part, there in apart.items() if there != whole}
        made, commits = before.get("commit"), before.get("commits", {}) | dict.fromkeys(parts, now)
    machines = {"machine": whole, "apart": apart, "commit": made, "commits": commits}
    machines = {key: value for key, value in machines.items() if value}
    _path(name).parent.mkdir(exist_ok=True)
    _path(name).write_text(text_of({**machines, **{key: found[key] for key in found if key not in _MACHINES}}))


def load(name: str) -> Found:
    """Read a result."""
    if (lines := _lines(name)).is_file():
        rows = [json.loads(line) for line in lines.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        machines = [row["machine"] for row in rows if "machine" in row]
        runs = [{key: row[key] for key in row if key != "commit"} for row in rows if "machine" not in row]
        return {"machine": machines[0], "runs": runs}
    loaded: Found = json.loads(_path(name).read_text())
    return loaded


def append(name: str, run: dict[str, Any]) -> None:
    """Add a run to a result of lines, with the commit that it was made with; the end of one that was cut off goes."""
    path = _lines(name)
    path.parent.mkdir(exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
        now = commit()
        line = {**run, "commit": now} if now else run
        rows = [{"machine": machine()}, line] if b"\n" not in whole else [line]
        file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def commit() -> str | None:
    """The commit that is measured, with ``+`` where code differs from it; None where this is no git repository."""
    git = ["git", "-C", str(ROOT)]
    try:
        said = subprocess.run([*git, "rev-parse", "--show-prefix", "HEAD"], capture_output=True, text=True, check=True)
        prefix, made = said.stdout.splitlines()
        same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "src", "*.py", "*.toml"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    if prefix:  # another repository, in which this one's files lie
        return None
    return made if same.returncode == 0 else made + "+"


def is_there(name: str) -> bool:
    """Whether it was ever measured."""
    return _path(name).is_file() or _lines(name).is_file()


def text_of(found: Found) -> str:
    """A result as its file holds it."""
    return json.dumps(found, indent=1) + "\n"


def describe(found: Found) -> str:
    """What it was measured on, in one sentence, and in one more for each part that was measured elsewhere."""
    whole = f"Measured on {_machine(found['machine'])}."
    elsewhere: dict[str, list[str]] = {}
    for part, there in found.get("apart", {}).items():
        elsewhere.setdefault(_machine(there), []).append(f"`{part}`")
    return " ".join([whole, *(f"{_few(parts)}: on {there}." for there, parts in elsewhere.items())])


def _few(parts: list[str]) -> str:
    return ", ".join(parts) if len(parts) <= _NAMED else f"{len(parts)} parts"


def _machine(m: dict[str, Any]) -> str:
    return (
        f"{m['cores']} {'core' if m['cores'] == 1 else 'cores'} of {m['processor']}, Python {m['python']}, "
        f"NumPy {m['numpy']}, torch {m['torch']}, gradwire {m['gradwire']}"
    )


def _path(name: str) -> Path:
    return ROOT / "benchmarks" / "results" / f"{name}.json"


def _lines(name: str) -> Path:
    return _path(name).with_suffix(".jsonl")
