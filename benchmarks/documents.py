"""What is generated from result files: sections of pages, pictures, and the package's own copy of a table.

``python -m benchmarks --document`` writes all of it again; a test compares all of it with its files. A new page is one
row of ``DOCUMENTS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import (
    accuracy,
    budget,
    ddp_link,
    federated,
    field,
    flower,
    flower_simulation,
    language,
    methods,
    mnist,
    nnc,
    page,
    papers,
    pareto,
    results,
    secagg,
    speed,
    supports,
    wire,
)
from gradwire.reproduce.run import PAPERS


@dataclass(frozen=True)
class Document:
    """Texts that follow from results.

    Attributes:
        sources: names of the results, as ``make`` takes them.
        make: results -> {place: text}. A place is a file below the repository, or ``page.md#name``: what stands between
            ``<!-- name -->`` and ``<!-- end name -->`` there.
    """

    sources: tuple[str, ...]
    make: Callable[..., dict[str, str]]

    def texts(self) -> dict[str, str]:
        """Make the texts from the result files."""
        return self.make(*map(results.load, self.sources))


DOCUMENTS = (
    Document(("accuracy",), accuracy.document),
    Document(("mnist",), mnist.document),
    Document(("mnist", "methods"), mnist.glossary),
    Document(("wire", "fuzz"), wire.document),
    Document(("budget",), budget.document),
    Document(("ddp",), ddp_link.document),
    Document(("federated",), federated.document),
    Document(("field",), field.document),
    Document(("flower-simulation",), flower_simulation.document),
    Document(("flower",), flower.document),
    Document(("language",), language.document),
    Document(("methods",), methods.document),
    Document(("nnc",), nnc.document),
    Document(("page",), page.document),
    Document(("pareto",), pareto.document),
    Document(("secagg",), secagg.document),
    Document(("speed",), speed.document),
    Document(("supports",), supports.document),
    *(Document((paper,), papers.document) for paper in PAPERS),
)


def current(place: str) -> str:
    """The text that stands at a place now."""
    file, _, name = place.partition("#")
    text = (results.ROOT / file).read_text()
    return _cut(text, name)[1] if name else text


def write(place: str, text: str) -> None:
    """Put a text in its place."""
    file, _, name = place.partition("#")
    path = results.ROOT / file
    if name:
        before, _, after = _cut(path.read_text(), name)
        text = before + text.strip() + after
    path.write_text(text)


def write_all(changed: set[str] | None = None) -> None:
    """Write what follows from some results, or from all there are."""
    for document in DOCUMENTS:
        if (changed is None or changed & set(document.sources)) and all(map(results.is_there, document.sources)):
            for place, text in document.texts().items():
                write(place, text)


def _cut(text: str, name: str) -> tuple[str, str, str]:
    """A page up to a section, the section, and what comes after it."""
    start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    if start not in text or end not in text:
        raise SystemExit(f"a page has no section {name}: write {start.strip()} and {end} where it belongs")
    before, rest = text.split(start, 1)
    section, after = rest.split(end, 1)
    return before + start, section.rstrip("\n"), f"\n{end}{after}"
