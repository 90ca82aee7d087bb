"""Installed: refuse to load without the two libraries that do the cryptography, before anything of them is imported."""

from __future__ import annotations

import re
from importlib import metadata

from gradwire.errors import BackendUnavailable

__all__ = ["check_installed"]

_OLDEST = {"cryptography": (42,), "pycryptodome": (3, 20)}


def check_installed(name: str, version: str | None) -> None:
    """Check that a library is there and not too old.

    Args:
        name: ``"cryptography"`` or ``"pycryptodome"``.
        version: of the one installed, None where there is none.

    Raises:
        BackendUnavailable: on none or one older than was tested.

    Example:
        >>> from gradwire.secagg.installed import check_installed
        >>> check_installed("cryptography", "50.0.2")
    """
    oldest = _OLDEST[name]
    if version is None or tuple(map(int, re.findall(r"\d+", version)[: len(oldest)])) < oldest:
        wanted = ".".join(map(str, oldest))
        raise BackendUnavailable(
            f"gradwire.secagg needs {name} {wanted} or newer, got {version or 'none'}: pip install 'gradwire[secagg]'"
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


for _name in _OLDEST:
    check_installed(_name, _version(_name))
