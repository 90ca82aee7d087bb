"""Task mnist: 70,000 hand-written digits of 28 x 28 pixels, from its four idx files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gradwire.errors import ConfigError
from gradwire.federated.data.files import DataFiles, read_packed
from gradwire.federated.data.images import Pixels, check_labels, normalised
from gradwire.federated.data.task import Labels, Task, TaskRow, make_task

__all__ = ["MNIST"]

_FILES = tuple(f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))


def _load(files: Mapping[str, Path]) -> Task:
    def part(name: str) -> tuple[npt.NDArray[np.float32], Labels]:
        where, labelled = files[f"{name}-images-idx3-ubyte"], files[f"{name}-labels-idx1-ubyte"]
        pixels, labels = _read_idx(where, 3), _read_idx(labelled, 1)
        if pixels.shape[1:] != (28, 28):
            raise ConfigError(f"{str(where)!r} must hold images of 28 x 28, got {pixels.shape[1]} x {pixels.shape[2]}")
        if len(pixels) != len(labels):
            raise ConfigError(f"{str(where)!r} must have an image a label, got {len(pixels)}, expected {len(labels)}")
        return normalised(pixels[:, None], (0.1307,), (0.3081,)), check_labels(str(labelled), labels)

    return make_task(MNIST, part("train"), part("t10k"), "test")


def _read_idx(path: Path, num_dims: int) -> Pixels:
    """Read one idx file of unsigned bytes: magic 0x0000080N, N big-endian sizes, the bytes."""
    data = read_packed(path)
    header_bytes = 4 + 4 * num_dims
    magic = 0x0800 + num_dims
    if len(data) < header_bytes or int.from_bytes(data[:4], "big") != magic:
        raise ConfigError(
            f"{str(path)!r} is not idx, got a start of {data[:4].hex() or 'nothing'}, expected {magic:08x}"
        )
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, header_bytes, 4)]
    num_bytes = header_bytes + math.prod(shape)
    if num_bytes == header_bytes:
        raise ConfigError(f"{str(path)!r} is empty, got shape {tuple(shape)}, expected one item or more")
    if len(data) != num_bytes:
        raise ConfigError(
            f"{str(path)!r} is damaged, got {len(data)} bytes, expected {num_bytes} for shape {tuple(shape)}"
        )
    return np.frombuffer(data, np.uint8, offset=header_bytes).reshape(shape)


MNIST = TaskRow(
    "mnist",
    _load,
    DataFiles(choices=(_FILES,), folders=("mnist", "mnist/raw", "raw", "mnist_dataset")),
    default_model="cnn",
    learning_rate=0.1,
)
