"""The rooms of src/gradwire: their order, which docs/architecture.md tells, and who imports whom, which the code tells.

The table "Rooms" of docs/architecture.md is the order: a room's modules import from their own room and from lower
floors. tests/test_package.py holds the code to it, and ``python -m tools.picture`` draws it.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "gradwire"
FREE = ("gradwire", "gradwire.__main__")  # they hand names on, and may look anywhere


@dataclass(frozen=True)
class Room:
    """A folder or a lone module.

    Attributes:
        name: below src/gradwire: ``wire``, ``federated/data``, ``layout.py``.
        floor: 0 is the ground.
        duty: what the table says it does.
    """

    name: str
    floor: int
    duty: str


@cache
def rooms() -> dict[str, Room]:
    """The table of docs/architecture.md, from the ground up, by the rooms' names."""
    rows = re.findall(r"^\| (\d+) \| `([^`]+)` \| (.+) \|$", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    return {name.rstrip("/"): Room(name.rstrip("/"), int(floor), duty) for floor, name, duty in rows}


def module_of(path: Path) -> str:
    """``src/gradwire/wire/index.py`` -> ``gradwire.wire.index``."""
    return ".".join(("gradwire", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def room_of(module: str) -> Room | None:
    """The innermost room that a module stands in: ``gradwire.federated.data.tasks`` -> ``federated/data``."""
    parts = module.split(".")[1:]
    names = [name for n in range(len(parts), 0, -1) for name in ("/".join(parts[:n]), "/".join(parts[:n]) + ".py")]
    return next((rooms()[name] for name in names if name in rooms()), None)


def tree_of(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(source: ast.AST, types: bool = False) -> set[str]:
    """Names of gradwire's own modules that a syntax tree imports; those for type checkers only where asked for."""
    skipped = set()
    if not types:
        skipped = {id(child) for node in ast.walk(source) if _is_type_checking(node) for child in ast.walk(node)}
    found = set()
    for node in ast.walk(source):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError("relative imports hide the direction")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "gradwire":
                # of "from gradwire.wire import encode" the module is gradwire.wire
                found.add(name if name in MODULES or len(parts) == 1 else ".".join(parts[:-1]))
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports_of_rooms() -> dict[str, set[str]]:
    """Which other rooms each room imports, by their names; what only type checkers see counts."""
    found: dict[str, set[str]] = {name: set() for name in rooms()}
    for module, path in MODULES.items():
        here = room_of(module)
        if module in FREE or here is None:
            continue
        there = {room_of(imported) for imported in imports_of(tree_of(path), types=True) if imported not in FREE}
        found[here.name] |= {room.name for room in there if room is not None} - {here.name}
    return found


def without_detours(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out every arrow whose end a longer way reaches too."""

    @cache
    def below(name: str) -> frozenset[str]:
        return frozenset(graph[name]).union(*(below(other) for other in graph[name]))

    return {
        name: {other for other in others if not any(other in below(third) for third in others)}
        for name, others in graph.items()
    }


@cache
def sizes() -> dict[str, tuple[int, int]]:
    """Number of files and of lines of each room, those of rooms inside it apart."""
    found = dict.fromkeys(rooms(), (0, 0))
    for module, path in MODULES.items():
        room = room_of(module)
        if room is not None:
            files, lines = found[room.name]
            found[room.name] = files + 1, lines + len(path.read_text(encoding="utf-8").splitlines())
    return found
