"""The documents: their Python blocks run, their links lead somewhere, versions agree."""

from __future__ import annotations

import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

import gradwire
from gradwire.aggregation import Aggregation
from gradwire.federated.algorithms import Algorithm
from gradwire.federated.network.budgets import Budget
from gradwire.federated.network.links import Links

ROOT = Path(__file__).parent.parent
PAPERS = [f"docs/papers/{page.name}" for page in (ROOT / "docs" / "papers").glob("*.md")]
WITH_CODE = [
    "README.md",
    "docs/tutorial.md",
    "docs/files.md",
    "docs/federated.md",
    "docs/flower.md",
    "docs/ddp.md",
    "docs/security.md",
    "docs/adding-an-algorithm.md",
]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", [*WITH_CODE, *sorted(PAPERS)])
def test_python_blocks_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for base in (gradwire.Compressor, Algorithm, Aggregation, Budget, Links):
        monkeypatch.setattr(base, "registry", dict(base.registry))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert blocks
    module = types.ModuleType("document")
    monkeypatch.setitem(sys.modules, "document", module)
    monkeypatch.chdir(ROOT)  # and back, where a page goes elsewhere
    for number, block in enumerate(blocks):
        exec(compile(block, f"{name}, block {number + 1}", "exec"), module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_versions_agree() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    release = gradwire.__version__.split(".dev")[0]
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE).group(1) == release
    assert f"version: {gradwire.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[<>=\[ ]", d)[0].lower() for d in wanted} - {"gradwire"}
    assert names <= pinned
