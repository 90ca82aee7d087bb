"""Model: the one vector that both ends hold, and what it takes to make the app's ArrayRecord of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from gradwire.compressors.compressor import Vector
from gradwire.errors import ConfigError, GradwireError, UpdateError
from gradwire.flower.carrier import NAME
from gradwire.layout import Layout
from gradwire.saved import reading_state
from gradwire.tensors import check_tensor

__all__ = ["Model"]


@dataclass(frozen=True)
class Model:
    """A model as both ends know it.

    The vector holds what the arrays hold, no more: where they are float16, it is rounded as they are.

    Attributes:
        layout: of the vector.
        forms: key, shape and dtype of each array of the record, in its order.
        fixed: arrays that do not travel in updates, integers for instance: they stay as the server first sent them.
        vector: (d,) float32.

    Example:
        >>> import numpy as np
        >>> from flwr.app import ArrayRecord
        >>> from gradwire.flower.model import Model
        >>> model = Model.from_record(ArrayRecord([np.float32([1, 2]), np.int64([7])]))
        >>> moved = model.moved(np.float32([1, 0]))
        >>> [array.tolist() for array in moved.record().to_numpy_ndarrays()]
        [[2.0, 2.0], [7]]
    """

    layout: Layout
    forms: tuple[tuple[str, tuple[int, ...], str], ...]
    fixed: dict[str, NDArray[Any]]
    vector: Vector

    @classmethod
    def from_record(cls, record: ArrayRecord) -> Model:
        """Read a model.

        Args:
            record: NumPy arrays by name, not modified.

        Returns:
            The model.

        Raises:
            ConfigError: on arrays that are none of numbers, or one named ``gradwire``.
            UpdateError: on NaN or Inf.
        """
        if NAME in record:
            raise ConfigError(f"no array of the model may be named {NAME!r}: that one carries compressed updates")
        arrays = _numpy(record, ConfigError)
        layout = Layout.from_arrays(arrays)
        if not layout.d:
            raise ConfigError(f"a model needs an array of floats, got {list(arrays)}")
        forms = tuple((key, array.shape, array.dtype.str) for key, array in arrays.items())
        fixed = {key: arrays[key] for key in layout.skipped}
        return cls(layout, forms, fixed, layout.flatten(arrays))

    def record(self, vector: Vector | None = None) -> ArrayRecord:
        """Make the app's record.

        Args:
            vector: (d,) float32, the model's own when None.

        Returns:
            The arrays under the names, in the order and of the dtypes they first had.
        """
        arrays = self.layout.unflatten(self.vector if vector is None else vector)
        return ArrayRecord({k: Array(np.asarray(arrays[k] if k in arrays else self.fixed[k])) for k, *_ in self.forms})

    def flatten(self, record: ArrayRecord) -> Vector:
        """Lay out another record of the same arrays, in any order.

        Args:
            record: every float array of the model; those that stay fixed may be left out.

        Returns:
            (d,) float32, newly made.

        Raises:
            UpdateError: on other names or shapes, NaN or Inf, naming the array.
        """
        flat: Vector = self.layout.flatten(_numpy(record, UpdateError))
        return flat

    def moved(self, applied: Vector) -> Model:
        """Return the model after a round: with ``applied``, (d,) float32, added."""
        return replace(self, vector=self.rounded(self.vector + applied))

    def rounded(self, vector: Vector) -> Vector:
        """Return what is left of a vector, (d,) float32, once it went through arrays of the model's dtypes."""
        if all(t.dtype in ("float32", "float64") for t in self.layout.tensors):
            return vector
        flat: Vector = self.layout.flatten(self.layout.unflatten(vector))
        return flat

    def difference(self, other: Model) -> str | None:
        """Say what first tells the arrays of this model ("here") from those of another ("there"); None for nothing."""
        if (said := self.layout.difference(other.layout)) is not None:
            return said
        pairs = zip(self.forms, other.forms, strict=False)
        first = next(((here, there) for here, there in pairs if here != there), None)
        if first is not None:
            return f"array {first[0][0]!r} is {first[0][1:]} here, and there {first[1][0]!r} is {first[1][1:]}"
        if len(self.forms) != len(other.forms):
            return f"{len(self.forms)} arrays here and {len(other.forms)} there"
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return a copy, as arrays and plain values."""
        forms = [[key, list(shape), dtype] for key, shape, dtype in self.forms]
        fixed = {key: array.copy() for key, array in self.fixed.items()}
        return {"forms": forms, "fixed": list(fixed.values()), "vector": self.vector.copy()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Model:
        """Read what ``state_dict`` gave, or raise StateError."""
        with reading_state():
            forms = tuple((str(key), tuple(map(int, shape)), str(dtype)) for key, shape, dtype in state["forms"])
            layout = Layout.from_arrays({key: np.empty(shape, dtype) for key, shape, dtype in forms})
            fixed = dict(zip(layout.skipped, map(np.array, state["fixed"]), strict=True))
            vector = np.array(state["vector"], np.float32)
            if vector.shape != (layout.d,):
                raise ValueError(f"the vector must have shape ({layout.d},), got {vector.shape}")
        return cls(layout, forms, fixed, vector)


def _numpy(record: ArrayRecord, error: type[GradwireError]) -> dict[str, NDArray[Any]]:
    """Read a record's arrays; pickled ones are refused by Flower itself."""
    arrays: dict[str, NDArray[Any]] = {}
    for key, array in record.items():
        try:
            arrays[key] = array.numpy()
        except (TypeError, ValueError, EOFError) as why:
            raise error(f"array {key!r} cannot be read: {why}") from None
        check_tensor(key, arrays[key], error)
    return arrays
