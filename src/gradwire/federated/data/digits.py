"""Task digits: 1,797 hand-written digits of 8 x 8 pixels that scikit-learn carries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gradwire.errors import BackendUnavailable
from gradwire.federated.data.task import Task, TaskRow, make_task

__all__ = ["DIGITS"]


def _load(files: Mapping[str, Path]) -> Task:
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
    return make_task(DIGITS, train, (inputs[held_out], labels[held_out]), "held-out fifth")


DIGITS = TaskRow("digits", _load, None, default_model="mlp", learning_rate=0.2, evaluations=None)
