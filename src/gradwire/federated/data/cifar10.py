"""Task cifar10: 60,000 photographs of 32 x 32 pixels, from the binary version or the Python version."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gradwire.errors import ConfigError
from gradwire.federated.data.cifar_pickles import PICKLE_FILES, read_pickled_batch
from gradwire.federated.data.files import DataFiles, read_packed
from gradwire.federated.data.images import Pixels, check_labels, normalised
from gradwire.federated.data.task import Labels, Task, TaskRow, make_task

__all__ = ["CIFAR10"]

_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST_FILE = "test_batch.bin"
_RECORD_BYTES = 1 + 3 * 32 * 32


def _load(files: Mapping[str, Path]) -> Task:
    binary = _FILES[0] in files
    real_test = not binary or _TEST_FILE in files
    if binary:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            batches = list(pool.map(_read_batch, files.values()))
    else:
        batches = [read_pickled_batch(path) for path in files.values()]

    def join(chosen: list[Pixels]) -> tuple[npt.NDArray[np.float32], Labels]:
        records = np.concatenate(chosen)
        pixels = records[:, 1:].reshape(-1, 3, 32, 32)
        images = normalised(pixels, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
        return images, records[:, 0].astype(np.int64)

    return make_task(CIFAR10, join(batches[:-1]), join(batches[-1:]), "test" if real_test else "held-out batch 5")


def _read_batch(path: Path) -> Pixels:
    data = read_packed(path)
    if not data or len(data) % _RECORD_BYTES:
        expected = f"a positive multiple of {_RECORD_BYTES}"
        raise ConfigError(f"{str(path)!r} is damaged, got {len(data)} bytes, expected {expected}")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD_BYTES)
    check_labels(str(path), records[:, 0])
    return records


_NAMES = ("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py", "cifar-10-binary", "cifar-10-python")
_FOLDERS = (*_NAMES, *(f"{outer}/{inner}" for outer in _NAMES for inner in _NAMES[1:3]))

CIFAR10 = TaskRow(
    "cifar10",
    _load,
    DataFiles(choices=(_FILES, PICKLE_FILES), folders=_FOLDERS, optional=(_TEST_FILE,)),
    default_model="cnn",
    learning_rate=0.1,
)
