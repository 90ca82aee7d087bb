"""What a browser's tokenizer sees of a page."""

from __future__ import annotations

import base64
import gzip
import html.parser
import json
from typing import Any


class Page(html.parser.HTMLParser):
    """What a browser's tokenizer sees: tags with attributes, scripts, table cells and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self._in: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            (self.scripts if tag == "script" else self.styles).append("")
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in ("meta", "br", "img", "link"):
            self._in.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._in.pop() == tag

    def handle_data(self, data: str) -> None:
        where = self._in[-1] if self._in else ""
        if where == "script":
            self.scripts[-1] += data
        elif where == "style":
            self.styles[-1] += data
        else:
            self.text += data
            if "td" in self._in or "th" in self._in:
                self.cells[-1][-1] += data

    def figures(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def cells(found: Page) -> dict[str, list[str]]:
    return {" ".join(row[0].split()): [" ".join(cell.split()) for cell in row[1:]] for row in found.cells[1:]}


def sheet(found: Page, name: str) -> dict[str, list[Any]]:
    """The columns that a chart's CSV is made of."""
    scripts = [attrs.get("id") for tag, attrs in found.tags if tag == "script"]
    return json.loads(gzip.decompress(base64.b64decode(found.scripts[scripts.index(f"sheet-{name}")])))
