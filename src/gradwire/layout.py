"""Layout: a model's named tensors <-> one flat float32 vector."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.errors import ConfigError, UpdateError, nearest

__all__ = ["Layout", "TensorSpec", "as_update"]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_RUNNING_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a layout.

    Attributes:
        name: the key it has in the model.
        shape: its dimensions; ``()`` is a scalar.
        dtype: ``float16``, ``bfloat16``, ``float32`` or ``float64``, restored by ``unflatten``.
        offset: where it starts in the flat vector, in elements.
        buffer: whether it is a running statistic, which is never sparsified or quantized.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    buffer: bool = False

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """Offset one past its last element."""
        return self.offset + self.num_elements


@dataclass(frozen=True)
class Layout:
    """The names, shapes, dtypes and offsets that turn a model into a flat vector and back.

    Parameters come first, in the order given; running statistics (``buffers="dense"``) come last, so
    that a sparsifier works on the leading ``num_parameters`` elements and the rest travels whole.

    Attributes:
        tensors: the tensors in flat order.
        skipped: names that do not travel in the vector (integers, and buffers when skipped).

    Example:
        >>> import numpy as np, gradwire as gw
        >>> arrays = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)}
        >>> layout = gw.Layout.from_arrays(arrays)
        >>> layout.d, layout.flatten(arrays).shape
        (9, (9,))
        >>> sorted(layout.unflatten(layout.flatten(arrays)))
        ['b', 'w']
    """

    tensors: tuple[TensorSpec, ...]
    skipped: tuple[str, ...] = ()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], buffers: str = "dense") -> Layout:
        """Describe a model given as named NumPy arrays or torch tensors.

        Args:
            arrays: name -> array, for instance ``model.state_dict()``. Float tensors enter the flat
                vector; integers are remembered as skipped and stay the host's to send as they are.
            buffers: ``"dense"`` puts running statistics (names ending in ``running_mean`` or
                ``running_var``) last, always sent whole; ``"skip"`` leaves them out.

        Returns:
            The layout.

        Raises:
            ConfigError: on an unknown ``buffers`` or a dtype that is neither float nor integer.
        """
        if buffers not in ("dense", "skip"):
            raise ConfigError(
                f"buffers must be 'dense' or 'skip', got {buffers!r}{nearest(str(buffers), ('dense', 'skip'))}"
            )
        parameters: list[tuple[str, tuple[int, ...], str]] = []
        statistics: list[tuple[str, tuple[int, ...], str]] = []
        skipped: list[str] = []
        for name, array in arrays.items():
            dtype = _dtype_name(array)
            if dtype not in _FLOATS:
                if "int" not in dtype and dtype != "bool":
                    raise ConfigError(
                        f"tensor {name!r}: dtype must be one of {', '.join(_FLOATS)} or an integer, got {dtype}"
                    )
                skipped.append(name)
            elif name.rsplit(".", 1)[-1] in _RUNNING_STATISTICS:
                if buffers == "skip":
                    skipped.append(name)
                else:
                    statistics.append((name, tuple(map(int, array.shape)), dtype))
            else:
                parameters.append((name, tuple(map(int, array.shape)), dtype))
        tensors: list[TensorSpec] = []
        offset = 0
        for group, buffer in ((parameters, False), (statistics, True)):
            for name, shape, dtype in group:
                tensors.append(TensorSpec(name, shape, dtype, offset, buffer))
                offset = tensors[-1].stop
        return cls(tuple(tensors), tuple(skipped))

    @classmethod
    def flat(cls, d: int) -> Layout:
        """Describe one nameless vector.

        Args:
            d: number of elements, 0 or more.

        Returns:
            A layout of a single tensor of shape ``(d,)``.
        """
        if isinstance(d, bool) or not isinstance(d, (int, np.integer)) or d < 0:
            raise ConfigError(f"d must be an integer of 0 or more, got {d!r}")
        return cls((TensorSpec("", (int(d),), "float32", 0),))

    @cached_property
    def d(self) -> int:
        """Number of elements of the flat vector."""
        return self.tensors[-1].stop if self.tensors else 0

    @cached_property
    def num_parameters(self) -> int:
        """Number of leading elements that are parameters; the rest are running statistics."""
        return next((t.offset for t in self.tensors if t.buffer), self.d)

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Where one parameter tensor ends and the next begins: offsets inside (0, num_parameters), increasing."""
        return tuple(sorted({t.stop for t in self.tensors if 0 < t.stop < self.num_parameters}))

    @cached_property
    def digest(self) -> bytes:
        """Four bytes that tell layouts apart: SHA-256 of the names, shapes and buffer marks, in order."""
        text = json.dumps([[t.name, list(t.shape), t.buffer] for t in self.tensors], separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()[:4]

    def flatten(self, arrays: Mapping[str, Any]) -> Any:
        """Lay named arrays out as one vector.

        Args:
            arrays: every tensor of the layout by name; names the layout skipped may be present and are ignored.

        Returns:
            (d,) float32, newly made; a torch tensor on the same device when given torch tensors, else NumPy.

        Raises:
            UpdateError: on a missing or unknown name, or a wrong shape.
        """
        known = {t.name for t in self.tensors}
        for name in arrays:
            if name not in known and name not in self.skipped:
                raise UpdateError(f"tensor {name!r} is not in the layout{nearest(name, known)}")
        for t in self.tensors:
            if t.name not in arrays:
                raise UpdateError(f"tensor {t.name!r} is missing, expected shape {t.shape}")
            if tuple(arrays[t.name].shape) != t.shape:
                raise UpdateError(f"tensor {t.name!r}: shape must be {t.shape}, got {tuple(arrays[t.name].shape)}")
        first = next((arrays[t.name] for t in self.tensors), None)
        if first is not None and _is_torch(first):
            torch = sys.modules["torch"]
            out = torch.empty(self.d, dtype=torch.float32, device=first.device)
            for t in self.tensors:
                out[t.offset : t.stop] = arrays[t.name].detach().reshape(-1)
            return out
        flat = np.empty(self.d, np.float32)
        for t in self.tensors:
            flat[t.offset : t.stop] = np.asarray(arrays[t.name]).reshape(-1)
        return flat

    def unflatten(self, update: Any) -> dict[str, Any]:
        """Cut a vector back into named arrays of the layout's shapes and dtypes.

        Args:
            update: (d,) float32, NumPy or torch; not modified.

        Returns:
            name -> array of the kind given; float32 tensors are views of ``update``. NumPy has no
            bfloat16: such tensors come back as float32 there.

        Raises:
            UpdateError: on a wrong shape.
        """
        if tuple(update.shape) != (self.d,):
            raise UpdateError(f"update must have shape ({self.d},), got {tuple(update.shape)}")
        arrays: dict[str, Any] = {}
        for t in self.tensors:
            piece = update[t.offset : t.stop].reshape(t.shape)
            if _is_torch(piece):
                arrays[t.name] = piece.to(getattr(sys.modules["torch"], t.dtype))
            else:
                arrays[t.name] = piece.astype("float32" if t.dtype == "bfloat16" else t.dtype, copy=False)
        return arrays


def as_update(update: Any, d: int, check: bool = True) -> NDArray[np.float32]:
    """Check an update and give it as NumPy float32, without a copy where that is possible.

    Args:
        update: (d,) float16, bfloat16, float32 or float64; NumPy array or torch tensor; not modified.
        d: the expected length.
        check: whether to look for NaN and Inf.

    Returns:
        (d,) float32 C-contiguous; shares memory with a float32 input on the CPU.

    Raises:
        UpdateError: on a wrong shape or dtype, NaN or Inf.
    """
    if _is_torch(update):
        torch = sys.modules["torch"]
        flat = update.detach()
        if not flat.is_floating_point():
            raise UpdateError(f"update must be a float vector, got {flat.dtype}")
        array: NDArray[Any] = flat.to(device="cpu", dtype=torch.float32).numpy()
    else:
        array = np.asarray(update)
        if array.dtype.kind != "f":
            raise UpdateError(f"update must be a float vector, got {array.dtype}")
    if array.shape != (d,):
        raise UpdateError(f"update must have shape ({d},), got {array.shape}")
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, order="C")
    if check:
        check_finite(array, "update")
    return array


def check_finite(array: NDArray[np.float32], what: str) -> None:
    """Raise UpdateError naming the first NaN or Inf in ``array``, if there is one."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.dot(array, array))
    if math.isfinite(square):  # else some may just be large: look at each
        return
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise UpdateError(
            f"{what} must be finite, got {array[bad[0]]} at index {bad[0]} ({bad.size} such entries of {array.size})"
        )


def _is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _dtype_name(array: Any) -> str:
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        raise ConfigError(f"a layout is made of NumPy arrays or torch tensors, got {type(array).__name__}")
    return str(dtype).removeprefix("torch.")
