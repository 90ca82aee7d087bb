"""Pieces of Markdown that the tables are made of."""

from __future__ import annotations

from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, from cells that ``cell`` or ``code`` made."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def cell(text: str) -> str:
    """Text that does not end a table's cell."""
    return text.replace("|", "\\|")


def code(spec: str) -> str:
    """A spec as code in a table's cell."""
    return f"`{cell(spec)}`"
