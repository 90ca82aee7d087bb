"""Paths in settings, written out, so that a run can be resumed from anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gradwire.errors import ConfigError
from gradwire.federated.network.links import parse_links

__all__ = ["with_whole_paths"]


def with_whole_paths(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write out the paths in settings: the data folder, and those of trace files.

    Args:
        settings: of an experiment, not checked yet; what is no text is left as it is.
        folder: where paths that are not whole begin: the settings file's folder, or the working directory.

    Returns:
        The settings with whole paths, newly made.

    Example:
        >>> with_whole_paths({"links": ["lte()", "trace('wifi.csv')"]}, Path("/home/me"))
        {'links': ['lte()', "trace('/home/me/wifi.csv')"]}
    """

    def whole(path: str) -> str:
        return os.path.abspath(folder / os.path.expanduser(path))

    def link(text: object) -> object:
        try:
            return str(parse_links(text).rooted(folder)) if isinstance(text, str) else text
        except ConfigError:
            return text  # refused with all other settings

    found = dict(settings)
    if isinstance(found.get("data_dir"), str):
        found["data_dir"] = whole(found["data_dir"])
    if isinstance(found.get("links"), list):
        found["links"] = [link(text) for text in found["links"]]
    if "region_link" in found:
        found["region_link"] = link(found["region_link"])
    if isinstance(found.get("runs"), list):
        found["runs"] = [with_whole_paths(run, folder) if isinstance(run, dict) else run for run in found["runs"]]
    return found
