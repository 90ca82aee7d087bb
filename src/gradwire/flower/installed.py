"""Installed: refuse to load without a flwr that this package was tested with, before anything of it is imported."""

from __future__ import annotations

import re
from importlib import metadata

from gradwire.errors import BackendUnavailable

__all__ = ["check_flower"]

_OLDEST = (1, 41)


def check_flower(version: str | None) -> None:
    """Check that Flower is there and not too old.

    Args:
        version: of the installed flwr, None where there is none.

    Raises:
        BackendUnavailable: on none or an older one than was tested.

    Example:
        >>> from gradwire.flower.installed import check_flower
        >>> check_flower("1.42.0")
    """
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _OLDEST:
        raise BackendUnavailable(
            f"gradwire.flower needs flwr 1.41 or 1.42, got {version or 'none'}: pip install 'gradwire[flower]'"
        )


def _installed() -> str | None:
    try:
        return metadata.version("flwr")
    except metadata.PackageNotFoundError:
        return None


check_flower(_installed())
