"""What tasks of images share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gradwire.errors import ConfigError
from gradwire.federated.data.task import Labels

__all__ = ["Pixels", "check_labels", "normalised"]

Pixels = npt.NDArray[np.uint8]


def check_labels(path: str, labels: Pixels) -> Labels:
    """Return ten classes' labels as int64, or raise ConfigError."""
    if labels.max() > 9:
        raise ConfigError(f"{path!r} is damaged, got label {labels.max()}, expected labels from 0 to 9")
    return labels.astype(np.int64)


def normalised(pixels: Pixels, mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Return (pixels / 255 - mean) / std by channel, (n, channels, height, width)."""
    images = pixels.astype(np.float32)
    images /= np.float32(255)
    images -= np.array(mean, np.float32)[:, None, None]
    images /= np.array(std, np.float32)[:, None, None]
    return images
