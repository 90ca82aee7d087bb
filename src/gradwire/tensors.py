"""Tensors: what one array of a model is, NumPy or torch, and its numbers as float32 and back."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.containers import describe
from gradwire.errors import GradwireError

__all__ = ["FLOATS", "byte_order_of", "cast", "check_tensor", "is_torch", "unreadable"]

FLOATS = ("float16", "bfloat16", "float32", "float64")
_INTEGER = re.compile(r"bool|u?int\d+")
# the beginning of a dtype's name -> what to pass in its place
_INSTEAD = {
    "complex": "pass its real and imaginary parts as floats: array.view(float), or torch.view_as_real(tensor)",
    "q": "it is quantized: pass tensor.dequantize()",
    "float8": "pass it as bfloat16",
    "float4": "pass it as bfloat16",
    "float": "pass it as float64",
    "longdouble": "pass it as float64",
    "object": "pass an array of numbers",
}


def is_torch(value: Any) -> bool:
    """Return whether a value is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def unreadable(value: Any) -> str | None:
    """Say why a torch tensor has no numbers to read and what to pass instead; None where it has, or is none."""
    if is_torch(value) and value.is_meta:
        return "is on the meta device, where there are no numbers: pass one of another device"
    return _without_shape(value)


def _without_shape(value: Any) -> str | None:
    """The same of tensors that have no shape to lay out either."""
    if not is_torch(value):
        return None
    torch = sys.modules["torch"]
    if torch.nn.parameter.is_lazy(value):
        return "has no shape yet: run the module once first"
    if value.layout is not torch.strided or value.is_nested:
        return "is sparse or nested: pass tensor.to_dense(), or its padded form"
    return None


def check_tensor(name: str, value: Any, error: type[GradwireError]) -> str:
    """Check that a container's entry is an array of floats or integers.

    Args:
        name: its name, for the error.
        value: anything.
        error: what to raise.

    Returns:
        Its dtype's name, without byte order: one of ``FLOATS``, ``bool`` or an integer's.

    Raises:
        GradwireError: of the class given, on anything else; the message says what to pass instead.
    """
    if (why := _without_shape(value)) is not None:
        raise error(f"tensor {name!r} {why}")
    dtype = getattr(value, "dtype", None)
    if dtype is None or not hasattr(value, "shape"):
        instead = "leave it out"
        if isinstance(value, (int, float)):
            instead += ", or pass np.float32 of it"
        elif isinstance(value, (list, tuple)):
            instead = "pass np.array(..., np.float32) of it"
        raise error(
            f"entry {name!r}: a layout is made of NumPy arrays or torch tensors, got {describe(value)}; {instead}"
        )
    found = str(getattr(dtype, "name", None) or dtype).removeprefix("torch.")
    if found not in FLOATS and not _INTEGER.fullmatch(found):
        instead = next((text for start, text in _INSTEAD.items() if found.startswith(start)), "leave it out")
        raise error(f"tensor {name!r}: dtype must be one of {', '.join(FLOATS)} or an integer, got {found}; {instead}")
    return found


def byte_order_of(value: Any) -> str:
    """Return an array's byte order: ``<`` or ``>`` where it is not the machine's, else ``=``."""
    dtype = getattr(value, "dtype", None)
    return dtype.byteorder if isinstance(dtype, np.dtype) and not dtype.isnative else "="


def cast(numbers: Any, dtype: str, byte_order: str) -> Any:
    """Turn floats into those of another dtype; finite ones stay finite, at the largest number there is.

    Args:
        numbers: NumPy array or torch tensor of floats; not modified.
        dtype: one of ``FLOATS``; NumPy has no bfloat16 and gives float32.
        byte_order: as from ``byte_order_of``; torch has the machine's only.

    Returns:
        What was given where it is of that dtype already, else a new array or tensor of the same kind.
    """
    if is_torch(numbers):
        torch = sys.modules["torch"]
        target = getattr(torch, dtype)
        limit = torch.finfo(target).max
        if torch.finfo(numbers.dtype).max > limit:
            numbers = torch.where(numbers.isinf(), numbers, numbers.clamp(-limit, limit))
        return numbers.to(target)
    own: np.dtype[Any] = np.dtype("float32" if dtype == "bfloat16" else dtype)
    largest = np.finfo(own).max
    if np.finfo(numbers.dtype.newbyteorder("=")).max > largest:
        bounds = numbers.dtype.type(largest)
        numbers = np.where(np.isinf(numbers), numbers, np.clip(numbers, -bounds, bounds))
    out: NDArray[Any] = numbers.astype(byte_order + own.str[1:], copy=False)
    return out
