"""What each thing that text can name still lacks, in one list: docs/adding-an-algorithm.md says how to mend it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cases
import gradwire as gw
import gradwire.aggregation
import gradwire.federated.algorithms
from gradwire.aggregation import Aggregation
from gradwire.federated.algorithms import Algorithm
from gradwire.federated.network.budgets import Budget
from gradwire.federated.network.links import Links
from gradwire.named import Named

ROOT = Path(__file__).parent.parent
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
METHODS = (ROOT / "docs" / "methods.md").read_text()
FEDERATED = (ROOT / "docs" / "federated.md").read_text()
MEASURED = {m["name"] for m in json.loads((ROOT / "src" / "gradwire" / "methods.json").read_text())["methods"]}
Lacks = Iterator[tuple[str, bool]]


def code_in(folder: str) -> str:
    return "".join(path.read_text() for path in sorted((ROOT / "tests" / folder).rglob("*.py")))


def doc_of(cls: type) -> str:
    """Its own docstring; what @dataclass writes where there is none does not count."""
    doc = vars(cls).get("__doc__") or ""
    return "" if doc.startswith(f"{cls.__name__}(") else doc


def as_every_kind(name: str, cls: type[Named]) -> Lacks:
    parameters = vars(cls).get("__dataclass_params__")
    yield "@dataclass(frozen=True, repr=False) above the class", not (parameters and parameters.frozen)
    yield "repr=False in its @dataclass: its text is its repr", cls.__repr__ is not cls.__str__
    yield f"a docstring that begins with what {name} does", not doc_of(cls)


def as_published(name: str, cls: type[Named]) -> Lacks:
    yield from as_every_kind(name, cls)
    doc = doc_of(cls)
    yield "'Example:' with a line that runs in its docstring", ">>> " not in doc.partition("Example:")[2]
    yield "'Source:' and 'Deviations:' in its docstring", "Source:" not in doc or "Deviations:" not in doc


def as_stage(name: str, cls: type[gw.Compressor]) -> Lacks:
    yield from as_published(name, cls)
    yield "a row in COMPRESSORS of tests/cases.py", not any(f"{name}(" in row.spec for row in cases.COMPRESSORS)
    exported = name in gw.__all__ and getattr(gw, name, None) is cls
    yield "its import and its name in __all__ of src/gradwire/__init__.py", not exported
    yield f"`{name}` in CHANGELOG.md", f"`{name}`" not in CHANGELOG
    spec = cls.typical or f"{name}()"
    try:
        fine = str(gw.parse(spec)) == spec and f"{name}(" in spec
    except gw.ConfigError:
        fine = False
    yield f"`typical`, a spec that its figures are measured with ({spec} is none)", not fine
    told = f"| `{name}(" in METHODS and name in MEASURED
    yield f"its figures: python -m benchmarks methods --only {name}", not told


def as_algorithm(name: str, cls: type[Algorithm]) -> Lacks:
    yield from as_published(name, cls)
    yield "its name in __all__ of gradwire.federated.algorithms", name not in gradwire.federated.algorithms.__all__
    yield (
        "a default for each of its parameters",
        any(p.default is p.empty for p in inspect.signature(cls).parameters.values()),
    )
    yield f"`{name}(...)` in the table of docs/federated.md", f"`{name}(" not in FEDERATED
    yield "a test in tests/federated/algorithms", f"{name}(" not in code_in("federated/algorithms")


def as_aggregation(name: str, cls: type[Aggregation]) -> Lacks:
    yield from as_published(name, cls)
    yield "its name in __all__ of gradwire.aggregation", name not in gradwire.aggregation.__all__
    yield f"{name}(...) in docs/federated.md", f"{name}(" not in FEDERATED
    yield "a test in tests/aggregation", f"{name}(" not in code_in("aggregation")


def as_budget(name: str, cls: type[Budget]) -> Lacks:
    yield from as_every_kind(name, cls)
    yield f"{name}(...) in docs/federated.md", f"{name}(" not in FEDERATED
    yield "a test in tests/federated/network", f"{name}(" not in code_in("federated/network")


def as_link(name: str, cls: type[Links]) -> Lacks:
    yield from as_every_kind(name, cls)
    yield f"`{name}(...)` in docs/federated.md", f"`{name}(" not in FEDERATED


KINDS: dict[type[Named], Callable[[str, type], Lacks]] = {
    gw.Compressor: as_stage,
    Algorithm: as_algorithm,
    Aggregation: as_aggregation,
    Budget: as_budget,
    Links: as_link,
}
OURS = [
    pytest.param(kind, name, id=f"{kind.kind}-{name}")
    for kind in KINDS
    for name, cls in sorted(kind.registry.items())
    if cls.__module__.startswith("gradwire.")
]


def lacking(kind: type[Named], name: str) -> list[str]:
    return [what for what, is_lacking in KINDS[kind](name, kind.registry[name]) if is_lacking]


@pytest.mark.parametrize(("kind", "name"), OURS)
def test_nothing_is_lacking(kind, name):
    assert not (missing := lacking(kind, name)), "\n".join(
        [f"{kind.kind} {name} is there and still lacks", *(f"- {what}" for what in missing)]
    )


def test_every_kind_is_looked_at():
    assert set(KINDS) == {kind for kind in Named.__subclasses__() if kind.__module__.startswith("gradwire.")}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_all_that_is_lacking_is_listed_at_once(kind, monkeypatch):
    """Meta: a class that has nothing but what it cannot be made without."""
    monkeypatch.setattr(kind, "registry", dict(kind.registry))
    said = dict.fromkeys(kind.must_say, "said") | {"typical": "new_one(1.0)", "__doc__": None}
    methods = dict.fromkeys(getattr(kind, "__abstractmethods__", ()), lambda self, *_: None)
    type(kind)("new_one", (kind,), {"__module__": "gradwire.new", "__qualname__": "new_one", **said, **methods})
    told = [what for what, _ in KINDS[kind]("new_one", kind.registry["new_one"])]
    fine = {"a default for each of its parameters", "repr=False in its @dataclass: its text is its repr"}
    assert set(told) - set(lacking(kind, "new_one")) <= fine
    assert len(told) >= 4
