"""The four tasks the simulator trains on, read from the user's own files: nothing is downloaded.

| name | files, in the data folder or in its subfolder of that name | held-out set |
| --- | --- | --- |
| digits | none: scikit-learn carries it | held-out fifth |
| mnist | train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-... (plain or .gz) | test |
| cifar10 | data_batch_{1..5}.bin, perhaps test_batch.bin (plain or .xz) | test, or held-out batch 5 |
| shakespeare | input.txt | held-out tenth |

The data folder is ``data_dir``, else the environment variable ``GRADWIRE_DATA``.
"""

from __future__ import annotations

import gzip
import lzma
import math
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gradwire.errors import BackendUnavailable, ConfigError, nearest
from gradwire.federated.data.cifar_pickles import PICKLE_FILES, read_pickled_batch

if TYPE_CHECKING:
    import torch

__all__ = ["CONTEXT_CHARACTERS", "TASK_NAMES", "Task", "check_data", "load_task", "speaker_texts"]

TASK_NAMES = ("digits", "mnist", "cifar10", "shakespeare")
CONTEXT_CHARACTERS = 64

_FOLDERS = {
    "mnist": ("mnist", ".", "MNIST/raw"),
    "cifar10": tuple(a + b for b in ("", "/cifar-10-batches-bin", "/cifar-10-batches-py") for a in ("cifar10", ".")),
    "shakespeare": ("shakespeare", "."),
}
_MNIST_FILES = tuple(
    f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)
_CIFAR_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR_RECORD_BYTES = 1 + 3 * 32 * 32
_MAX_FILE_BYTES = 1 << 28

Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Task:
    """Hold one data set, ready to train on.

    Args:
        name: one of ``TASK_NAMES``.
        train_inputs: digits (n, 64) float32 in [0, 1]; images (n, channels, height, width) float32,
            normalised by the channel's published mean and standard deviation; shakespeare (n, 64) int64
            characters.
        train_targets: (n,) int64 labels; shakespeare (n, 64) int64, the next character after each.
        test_inputs: the held-out inputs, in the same form.
        test_targets: the held-out targets, in the same form.
        test_name: what the held-out set is, to be printed beside any accuracy on it.
        num_classes: labels are 0 <= label < num_classes.
        groups: (n,) int64, the natural client of each training example (shakespeare's speaker), or None.
        default_model: the name of the model meant for it.

    Source: none.

    Deviations: none.
    """

    name: str
    train_inputs: torch.Tensor
    train_targets: torch.Tensor
    test_inputs: torch.Tensor
    test_targets: torch.Tensor
    test_name: str
    num_classes: int
    groups: Labels | None
    default_model: str


def load_task(name: str, data_dir: Path | None = None) -> Task:
    """Load the task called ``name``.

    Args:
        name: one of ``TASK_NAMES``.
        data_dir: the data folder; None means the environment variable ``GRADWIRE_DATA``. digits needs none.

    Returns:
        The whole data set in memory (CIFAR-10: about 600 MB).

    Raises:
        ConfigError: the name is unknown, the folder or a file is missing, or a file is damaged.
        BackendUnavailable: torch or scikit-learn is not installed.

    Example:
        >>> load_task("digits").train_inputs.shape
        torch.Size([1442, 64])

    Source: digits: scikit-learn's copy of UCI ML hand-written digits; mnist: LeCun, Cortes and Burges;
    cifar10: Krizhevsky 2009; shakespeare: Karpathy's tinyshakespeare, and a speaker a client as in
    arXiv:1602.05629.

    Deviations: digits has no official split: every fifth example of each class is held out. cifar10 without
    its test batch trains on batches 1 to 4 and holds out batch 5. shakespeare holds out the last tenth of
    each speaker's text.
    """
    check_data(name, data_dir)
    if name == "digits":
        return _load_digits()
    folder = _find_folder(name, data_dir)
    return {"mnist": _load_mnist, "cifar10": _load_cifar10, "shakespeare": _load_shakespeare}[name](folder)


def check_data(name: str, data_dir: Path | None = None) -> None:
    """Check that a task can be loaded here, without reading it.

    Args:
        name: as for ``load_task``.
        data_dir: as for ``load_task``.

    Raises:
        ConfigError: on an unknown name, or files that are not there.
        BackendUnavailable: torch is not installed.
    """
    if name not in TASK_NAMES:
        raise ConfigError(f"data must be one of {', '.join(TASK_NAMES)}, got {name!r}{nearest(name, TASK_NAMES)}")
    _import_torch()
    if name != "digits":
        _find_folder(name, data_dir)


def speaker_texts(text: str) -> dict[str, str]:
    r"""Gather what each speaker of a play says.

    A block is what stands between blank lines; one whose first line is ``NAME:`` opens a turn of that
    speaker, any other continues the turn before it. What precedes the first speaker belongs to nobody and is
    left out. A speaker's text is the turns, without the names, joined by a newline.

    Args:
        text: the play.

    Returns:
        Text by speaker, in the order of first appearance; empty when no block names a speaker.

    Example:
        >>> speaker_texts("A:\nOne.\n\nB:\nTwo.\n\nA:\nThree.")
        {'A': 'One.\nThree.', 'B': 'Two.'}

    Source: arXiv:1602.05629 (a client a role).

    Deviations: tinyshakespeare does not name its plays, so roles of one name in several plays are one client.
    """
    turns: dict[str, list[str]] = {}
    current: list[str] | None = None
    for block in text.strip("\n").split("\n\n"):
        first, _, rest = block.lstrip("\n").partition("\n")
        if len(first) > 1 and first.find(":") == len(first) - 1:
            current = turns.setdefault(first[:-1], [])
            current.append(rest)
        elif current is not None:
            current.append(block)
    return {speaker: "\n".join(spoken) for speaker, spoken in turns.items()}


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailable(f"tasks need torch, got {error}: pip install 'gradwire[sim]'") from error
    return torch


def _make_task(
    name: str,
    train: tuple[npt.NDArray[Any], Labels],
    test: tuple[npt.NDArray[Any], Labels],
    test_name: str,
    default_model: str,
    num_classes: int = 10,
    groups: Labels | None = None,
) -> Task:
    torch = _import_torch()
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (*train, *test)]
    inputs, targets, held_out, held_out_targets = tensors
    return Task(name, inputs, targets, held_out, held_out_targets, test_name, num_classes, groups, default_model)


def _find_folder(name: str, data_dir: Path | None) -> Path:
    """Return the folder that holds the task's files, or say what was looked for."""
    files = {"mnist": _MNIST_FILES, "cifar10": _CIFAR_FILES, "shakespeare": ("input.txt",)}[name]
    expected = f"expected --data-dir DIR or GRADWIRE_DATA with {', '.join(files)} in DIR or DIR/{name}"
    chosen = data_dir if data_dir is not None else os.environ.get("GRADWIRE_DATA")
    if not chosen:
        raise ConfigError(f"{name} needs a data folder, got none, {expected}")
    root = Path(chosen).expanduser()
    if not root.is_dir():
        raise ConfigError(f"the data folder of {name} must be a folder, got {str(root)!r}, {expected}")
    folders = [root / sub for sub in _FOLDERS[name]]
    for folder in folders:
        missing = [file for file in files if _find_file(folder, file) is None]
        if len(missing) < len(files):
            if missing:
                raise ConfigError(f"{name} in {str(folder)!r} is incomplete, got no {', '.join(missing)}, {expected}")
            return folder
    if name == "cifar10":
        for folder in folders:
            if all((folder / file).is_file() for file in PICKLE_FILES):
                return folder
    raise ConfigError(f"{name} was not found, got no such file in {str(root)!r}, {expected}")


def _find_file(folder: Path, file: str) -> Path | None:
    candidates = (folder / (file + suffix) for suffix in ("", ".gz", ".xz"))
    return next((path for path in candidates if path.is_file()), None)


def _read(folder: Path, file: str) -> tuple[Path, bytes]:
    """Read a file, plain, gzip or xz, up to a bound on what it unpacks to."""
    path = _find_file(folder, file)
    if path is None:
        raise ConfigError(f"{file} is gone from {str(folder)!r}, got nothing, expected the file")
    kind = {".gz": "a gzip file", ".xz": "an xz file"}.get(path.suffix, "a plain file")
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with openers.get(path.suffix, open)(path, "rb") as file_object:
            data: bytes = file_object.read(_MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ConfigError(f"{str(path)!r} is damaged or unreadable, got {error}, expected {kind}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{str(path)!r} is too long, got more than {_MAX_FILE_BYTES} bytes, expected {file}")
    return path, data


def _read_idx(folder: Path, file: str, num_dims: int) -> Pixels:
    """Read one idx file of unsigned bytes: magic 0x0000080N, N big-endian sizes, the bytes."""
    path, data = _read(folder, file)
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


def _check_labels(path: str, labels: Pixels) -> Labels:
    if labels.max() > 9:
        raise ConfigError(f"{path!r} is damaged, got label {labels.max()}, expected labels from 0 to 9")
    return labels.astype(np.int64)


def _normalise(pixels: Pixels, mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Return (pixels / 255 - mean) / std by channel, (n, channels, height, width)."""
    images = pixels.astype(np.float32)
    images /= np.float32(255)
    images -= np.array(mean, np.float32)[:, None, None]
    images /= np.array(std, np.float32)[:, None, None]
    return images


def _load_digits() -> Task:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BackendUnavailable(f"digits needs scikit-learn, got {error}: pip install 'gradwire[sim]'") from error
    inputs, labels = load_digits(return_X_y=True)
    inputs = (inputs / 16).astype(np.float32)
    labels = labels.astype(np.int64)
    held_out = np.zeros(len(labels), np.bool_)
    for label in range(10):
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    train = (inputs[~held_out], labels[~held_out])
    return _make_task("digits", train, (inputs[held_out], labels[held_out]), "held-out fifth", "mlp")


def _load_mnist(folder: Path) -> Task:
    def load(part: str) -> tuple[npt.NDArray[np.float32], Labels]:
        pixels = _read_idx(folder, f"{part}-images-idx3-ubyte", 3)
        labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", 1)
        where = str(folder / f"{part}-images-idx3-ubyte")
        if pixels.shape[1:] != (28, 28):
            raise ConfigError(f"{where!r} must hold images of 28 x 28, got {pixels.shape[1]} x {pixels.shape[2]}")
        if len(pixels) != len(labels):
            raise ConfigError(f"{where!r} must have an image a label, got {len(pixels)}, expected {len(labels)}")
        images = _normalise(pixels[:, None], (0.1307,), (0.3081,))
        return images, _check_labels(str(folder / f"{part}-labels-idx1-ubyte"), labels)

    return _make_task("mnist", load("train"), load("t10k"), "test", "cnn")


def _load_cifar10(folder: Path) -> Task:
    binary = _find_file(folder, _CIFAR_FILES[0]) is not None
    real_test = not binary or _find_file(folder, "test_batch.bin") is not None
    files = [*_CIFAR_FILES, "test_batch.bin"] if real_test else list(_CIFAR_FILES)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        if binary:
            batches = list(pool.map(lambda file: _read_cifar_batch(folder, file), files))
        else:
            batches = [read_pickled_batch(folder / file) for file in PICKLE_FILES]

    def join(chosen: list[Pixels]) -> tuple[npt.NDArray[np.float32], Labels]:
        records = np.concatenate(chosen)
        pixels = records[:, 1:].reshape(-1, 3, 32, 32)
        images = _normalise(pixels, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
        return images, records[:, 0].astype(np.int64)

    test_name = "test" if real_test else "held-out batch 5"
    return _make_task("cifar10", join(batches[:-1]), join(batches[-1:]), test_name, "cnn")


def _read_cifar_batch(folder: Path, file: str) -> Pixels:
    path, data = _read(folder, file)
    if not data or len(data) % _CIFAR_RECORD_BYTES:
        expected = f"a positive multiple of {_CIFAR_RECORD_BYTES}"
        raise ConfigError(f"{str(path)!r} is damaged, got {len(data)} bytes, expected {expected}")
    records = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR_RECORD_BYTES)
    _check_labels(str(path), records[:, 0])
    return records


def _load_shakespeare(folder: Path) -> Task:
    """Cut each speaker's text into windows; the vocabulary is the whole file's sorted characters (65)."""
    path, data = _read(folder, "input.txt")
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(path)!r} is damaged, got {error}, expected UTF-8 text") from error
    number = {character: index for index, character in enumerate(sorted(set(text)))}
    speakers = speaker_texts(text)
    train: list[Labels] = []
    test: list[Labels] = []
    groups: list[int] = []
    for speaker, spoken in enumerate(speakers.values() if speakers else (text,)):
        symbols = np.array([number[character] for character in spoken], np.int64)
        cut = len(symbols) - len(symbols) // 10
        before = len(train)
        train.extend(_windows(symbols[:cut]))
        test.extend(_windows(symbols[cut:]))
        groups.extend([speaker] * (len(train) - before))
    if not train or not test:
        raise ConfigError(
            f"{str(path)!r} is too short, got {len(train)} training and {len(test)} held-out windows of "
            f"{CONTEXT_CHARACTERS} characters, expected one or more of each"
        )
    stacked, held_out = np.stack(train), np.stack(test)
    return _make_task(
        "shakespeare",
        (stacked[:, :-1], stacked[:, 1:]),
        (held_out[:, :-1], held_out[:, 1:]),
        "held-out tenth",
        "char_transformer",
        len(number),
        np.array(groups, np.int64) if speakers else None,
    )


def _windows(symbols: Labels) -> Iterator[Labels]:
    """Yield each context with the character after it: 65 symbols, of which the last opens the next window."""
    for start in range(0, len(symbols) - CONTEXT_CHARACTERS, CONTEXT_CHARACTERS):
        yield symbols[start : start + CONTEXT_CHARACTERS + 1]
