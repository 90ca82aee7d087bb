"""The tasks the simulator trains on, read from the user's own files: nothing is downloaded.

| name | files, in the data folder or in its subfolder of that name | held-out set |
| --- | --- | --- |
| digits | none: scikit-learn carries it | held-out fifth |
| mnist | train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-... | test |
| cifar10 | data_batch_{1..5}.bin, perhaps test_batch.bin; or the Python version's | test, or held-out batch 5 |
| shakespeare | input.txt | held-out tenth |

Files may be packed (.gz, .xz), and go by the other names they have in the world: see ``DataFiles``. The data folder is
``data_dir``, else the environment variable ``GRADWIRE_DATA``. A new task is a file beside this one and a row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gradwire.errors import ConfigError, nearest
from gradwire.federated.data.cifar10 import CIFAR10
from gradwire.federated.data.digits import DIGITS
from gradwire.federated.data.mnist import MNIST
from gradwire.federated.data.shakespeare import SHAKESPEARE
from gradwire.federated.data.task import Task, TaskRow, import_torch

__all__ = ["TASKS", "check_data", "find_row", "load_task"]

TASKS: Mapping[str, TaskRow] = {row.name: row for row in (DIGITS, MNIST, CIFAR10, SHAKESPEARE)}


def find_row(name: str) -> TaskRow:
    """Return the row of the task called ``name``, or of one of the user's own: ``package.module:function``.

    Raises:
        ConfigError: on an unknown name.
    """
    if ":" in name:
        from gradwire.federated.data.own import own_row  # torch, which settings can be read without

        return own_row(name)
    if name not in TASKS:
        raise ConfigError(f"data must be one of {', '.join(TASKS)}, got {name!r}{nearest(name, TASKS)}")
    return TASKS[name]


def load_task(name: str, data_dir: Path | None = None) -> Task:
    """Load the task called ``name``.

    Args:
        name: a key of ``TASKS``.
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
    return find_row(name).load(check_data(name, data_dir))


def check_data(name: str, data_dir: Path | None = None) -> Mapping[str, Path]:
    """Check that a task can be loaded here, without reading it.

    Args:
        name: as for ``load_task``.
        data_dir: as for ``load_task``.

    Returns:
        Its files, by the names its row calls them.

    Raises:
        ConfigError: on an unknown name, or files that are not there.
        BackendUnavailable: torch is not installed.
    """
    row = find_row(name)
    import_torch()
    return {} if row.files is None else row.files.find(name, data_dir)
