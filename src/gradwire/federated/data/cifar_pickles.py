"""CIFAR-10's Python pickles, read without unpickling: their opcodes are listed, nothing in them is run."""

from __future__ import annotations

import pickletools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import ConfigError

__all__ = ["PICKLE_FILES", "read_pickled_batch"]

PICKLE_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_PIXELS = 3 * 32 * 32


def read_pickled_batch(path: Path) -> NDArray[np.uint8]:
    """Read one batch of the Python version as records of the binary version.

    Args:
        path: ``data_batch_N`` or ``test_batch``.

    Returns:
        (n, 3073) uint8: label, then 1,024 R, 1,024 G, 1,024 B.

    Raises:
        ConfigError: when the file is not such a batch.
    """
    labels: list[int] = []
    pixels = b""
    reading_labels = False
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if isinstance(argument, (str, bytes)):
                text = argument.encode("latin-1", "replace") if isinstance(argument, str) else argument
                reading_labels = text == b"labels"
                if len(text) > len(pixels):
                    pixels = text
            elif reading_labels and opcode.name in ("BININT1", "BININT", "INT", "LONG1"):
                labels.append(int(argument or 0))
    except (OSError, ValueError, UnicodeError) as error:
        raise ConfigError(f"{str(path)!r} is damaged or unreadable, got {error}, expected a CIFAR-10 pickle") from None
    if not labels or len(pixels) != len(labels) * _PIXELS or not 0 <= min(labels) <= max(labels) < 10:
        raise ConfigError(
            f"{str(path)!r} is no CIFAR-10 batch, got {len(labels)} labels and {len(pixels)} bytes of pixels, "
            f"expected {_PIXELS} bytes a label"
        )
    images = np.frombuffer(pixels, np.uint8).reshape(-1, _PIXELS)
    return np.concatenate([np.array(labels, np.uint8)[:, None], images], axis=1)
