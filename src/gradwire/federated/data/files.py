"""Data files: found by any of the names they go by, and read, plain or packed."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwire.errors import ConfigError

__all__ = ["DataFiles", "read_packed"]

_MAX_FILE_BYTES = 1 << 28
_PACKED: dict[str, tuple[str, Callable[..., Any]]] = {
    "gz": ("a gzip file", gzip.open),
    "xz": ("an xz file", lzma.open),
}


@dataclass(frozen=True)
class DataFiles:
    """Say which files a task is read from, and where they may lie.

    Names are compared by their letters and digits, so that ``train-images.idx3-ubyte`` is also
    ``train-images-idx3-ubyte``, and without ``.gz`` or ``.xz``. A folder of a file's name that holds the file, as some
    archives unpack to, is the file.

    Args:
        choices: sets of file names; the first set of which all are there is taken.
        folders: where they may lie under the data folder, as ``"mnist/raw"``, besides in the data folder itself.
        optional: names that are taken as well, beside those of the first set.
    """

    choices: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def find(self, name: str, data_dir: Path | None) -> dict[str, Path]:
        """Find a task's files.

        Args:
            name: the task's, for messages and for the folder of that name.
            data_dir: the data folder; None means the environment variable ``GRADWIRE_DATA``.

        Returns:
            Path by name, of one of the sets of ``choices``.

        Raises:
            ConfigError: when there is no data folder, or files are not in it; the message says what was looked for.
        """
        expected = f"expected --data-dir DIR or GRADWIRE_DATA with {', '.join(self.choices[0])} in DIR or DIR/{name}"
        chosen = data_dir if data_dir is not None else os.environ.get("GRADWIRE_DATA")
        if not chosen:
            raise ConfigError(f"{name} needs a data folder, got none, {expected}")
        root = Path(chosen).expanduser()
        if not root.is_dir():
            raise ConfigError(f"the data folder of {name} must be a folder, got {str(root)!r}, {expected}")
        incomplete = ""
        for folder in [*(found for sub in self.folders for found in _folders(root, sub)), root]:
            there = _entries(folder)
            for wanted in self.choices:
                found = {file: path for file in wanted if (path := there.get(_key(file))) is not None}
                if len(found) == len(wanted):
                    more = self.optional if wanted == self.choices[0] else ()
                    return found | {file: there[_key(file)] for file in more if _key(file) in there}
                if found and not incomplete:
                    missing = ", ".join(file for file in wanted if file not in found)
                    incomplete = f"{name} in {str(folder)!r} is incomplete, got no {missing}, {expected}"
        raise ConfigError(incomplete or f"{name} was not found, got no such file in {str(root)!r}, {expected}")


def read_packed(path: Path) -> bytes:
    """Read a file, plain, gzip or xz by the end of its name, up to a bound on what it unpacks to.

    Raises:
        ConfigError: when it is damaged, unreadable or too long.
    """
    what, opener = _PACKED.get(path.suffix.lstrip(".").lower(), ("a plain file", open))
    try:
        with opener(path, "rb") as file:
            data: bytes = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ConfigError(f"{str(path)!r} is damaged or unreadable, got {error}, expected {what}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{str(path)!r} is too long, got more than {_MAX_FILE_BYTES} bytes, expected less")
    return data


def _key(name: str) -> str:
    """What of a name tells it from others: its letters and digits, packing left out."""
    stem, _, end = name.rpartition(".")
    return "".join(filter(str.isalnum, stem if stem and end.lower() in _PACKED else name)).lower()


def _entries(folder: Path) -> dict[str, Path]:
    """The files in a folder by their key; of several that share one, plain names first."""
    found: dict[str, Path] = {}
    for path in sorted(_listed(folder), key=lambda path: (path.suffix.lstrip(".").lower() in _PACKED, path.name)):
        inner = [p for p in _listed(path) if _key(p.name) == _key(path.name)] if path.is_dir() else [path]
        for file in inner[:1]:
            if file.is_file():
                found.setdefault(_key(path.name), file)
    return found


def _folders(root: Path, sub: str) -> list[Path]:
    """The folders below another whose names are those of a path, compared by their letters and digits."""
    found = [root]
    for part in sub.split("/"):
        found = [path for folder in found for path in _listed(folder) if _key(path.name) == _key(part)]
    return [path for path in found if path.is_dir()]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # no folder, or not ours to read
        return []
