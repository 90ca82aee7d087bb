"""What a round's training came to, and what a model is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwire.compressors.compressor import Vector

__all__ = ["Evaluated", "Trained"]


@dataclass(frozen=True)
class Evaluated:
    """What a model does on the held-out examples.

    Attributes:
        accuracy: or the task's metric, in [0, 1].
        loss: the task's, the mean over the examples; not finite where a model is lost.
    """

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Trained:
    """Updates of some clients, before compression.

    Attributes:
        updates: (n, d) float32.
        losses: (n,) float32, mean training losses.
        weights: (n,) float64.
    """

    updates: Vector
    losses: NDArray[np.float32]
    weights: NDArray[np.float64]

    @property
    def loss(self) -> float | None:
        """The weighted mean loss; None where nobody trained."""
        return float(np.average(self.losses, weights=self.weights)) if self.losses.size else None

    @property
    def update_norm(self) -> float:
        """Root of the mean over clients of |u_i|^2."""
        return _rms([_norm(update) for update in self.updates])

    @property
    def drift_norm(self) -> float:
        """Root of the mean over clients of |u_i - u|^2, u their weighted mean: how far apart clients went."""
        if not self.losses.size:
            return 0.0
        shares = (self.weights / self.weights.sum()).astype(np.float32)
        mean = np.einsum("i,ij->j", shares, self.updates)  # its threads would cost BLAS more than the sum
        return _rms([_norm(update - mean) for update in self.updates])


def _norm(vector: Vector) -> float:
    with np.errstate(over="ignore", invalid="ignore"):  # squares beyond float32 are looked at again
        norm = float(np.linalg.norm(vector))
    return norm if np.isfinite(norm) else float(np.linalg.norm(vector.astype(np.float64)))


def _rms(norms: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(norms)))) if norms else 0.0
