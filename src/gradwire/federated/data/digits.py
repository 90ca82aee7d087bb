"""Task digits: 1,797 hand-written digits of 8 x 8 pixels that scikit-learn carries."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import BackendUnavailable
from gradwire.federated.data.task import Task, TaskRow, make_task

__all__ = ["DIGITS"]


def _load(files: Mapping[str, Path]) -> Task:
    rows = _read()
    inputs, labels = (rows[:, :-1] / 16).astype(np.float32), rows[:, -1].astype(np.int64)
    held_out = np.zeros(len(labels), np.bool_)
    for label in range(10):
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    train = (inputs[~held_out], labels[~held_out])
    return make_task(DIGITS, train, (inputs[held_out], labels[held_out]), "held-out fifth")


def _read() -> NDArray[np.float64]:
    """The file that scikit-learn's ``load_digits`` reads: importing it and scipy takes longer than a short run."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise BackendUnavailable("digits needs scikit-learn: pip install 'gradwire[sim]'")
    return np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")


DIGITS = TaskRow("digits", _load, None, default_model="mlp", learning_rate=0.2, evaluations=None)
