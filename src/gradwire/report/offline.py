"""Pages that hold their own script and style, open offline and load nothing."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from gradwire.errors import BackendUnavailable, ConfigError

__all__ = ["environment", "policy", "replace_file", "resource", "script_json"]


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(contents)
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
