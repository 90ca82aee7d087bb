"""Pages that hold their own script and style, open offline and load nothing."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import html
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from gradwire.errors import BackendUnavailable, ConfigError

__all__ = ["PLOTLY", "packed", "render", "replace_file", "resource"]

# its bundle of lines, points, bars and pies: a quarter of the whole, and of the time until a chart is there
PLOTLY = "vendored/plotly-basic.min.js"


def render(template: str, figures: Mapping[str, Any], sheets: Mapping[str, str] | None = None, **values: Any) -> str:
    """Render a page that holds its own script and style.

    Args:
        template: a file beside this module that extends ``base.html.j2``.
        figures: name -> plotly figure, for elements whose ``data-figure`` is the name.
        sheets: name -> columns, packed, for buttons whose ``data-sheet`` is the name.
        values: what the template shows.

    Returns:
        The HTML.

    Raises:
        BackendUnavailable: jinja2 is not installed.
    """
    made, markup = environment()
    library = resource(PLOTLY) if figures else ""
    own = resource("page.js")
    return str(
        made.get_template(template).render(
            figures=figures,
            policy=policy(library, own),
            css=markup(resource("page.css")),
            figures_json=markup(script_json(figures)),
            sheets={} if sheets is None else sheets,
            plotly_js=_packed_once(library) if figures else "",
            page_js=markup(own),
            **values,
        )
    )


def packed(text: str) -> str:
    """Return a text compressed by gzip, in base64: equal texts give equal ones."""
    return base64.b64encode(gzip.compress(text.encode("utf-8", "backslashreplace"), 6, mtime=0)).decode()


_packed_once = lru_cache(maxsize=1)(packed)  # plotly is large, and the same for every page of a process


def _with_code(text: str) -> str:
    """The HTML of a text whose code stands between backquotes."""
    pieces = [html.escape(piece) for piece in text.split("`")]
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))


def environment() -> tuple[Any, Any]:
    """Return jinja2's environment of pages and what marks text as HTML already, or raise BackendUnavailable."""
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise BackendUnavailable(
            "building a report needs jinja2, which is not installed; pip install 'gradwire[report]'"
        ) from error
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("gradwire", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["code"] = lambda text: markupsafe.Markup(_with_code(text))
    return made, markupsafe.Markup


def resource(name: str) -> str:
    """Return the text of a file beside this module."""
    text = resources.files("gradwire.report").joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def script_json(value: object) -> str:
    """Return JSON that cannot end or comment out the ``<script>`` it stands in."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def policy(*scripts: str) -> str:
    """Return a Content-Security-Policy: these inline scripts, by their hash, and nothing from the network at all."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def replace_file(path: Path, contents: bytes) -> None:
    """Write a file beside its place and move it there in one step, or raise ConfigError."""
    if not path.name:
        raise ConfigError(f"{path} cannot be written: it is a folder, expected a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(contents)
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
