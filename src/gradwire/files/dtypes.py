"""Tensors in files: their dtypes, in safetensors' names, and what the float ones are as float32."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradwire.kernels import ops

__all__ = ["DTYPES", "FLOATS", "TensorInfo", "can_take", "from_float32", "to_float32"]

# name -> bytes of an element; the order is that of the codes in docs/format.md
DTYPES = {
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F64": 8,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
FLOATS = ("F32", "F16", "BF16", "F64")  # what is compressed and averaged; all else travels as it is
_BITS = {name: 8 * width for name, width in DTYPES.items()} | {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "C64": 64,
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        name: its key.
        dtype: safetensors' name, one that is not known here included.
        shape: its dimensions.
        num_bytes: bytes in a safetensors file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def as_dtype(self, dtype: str) -> TensorInfo:
        """Return this tensor in another dtype of ``DTYPES``."""
        return replace(self, dtype=dtype, num_bytes=self.num_elements * DTYPES[dtype])


def can_take(info: TensorInfo) -> bool:
    """Tell whether a tensor can take its bytes: as many as its shape and dtype say, where the dtype is known here."""
    return info.dtype not in _BITS or info.num_elements * _BITS[info.dtype] == 8 * info.num_bytes


def to_float32(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Read little-endian bytes of a dtype of ``FLOATS`` as float32, what lies beyond it as Inf."""
    if dtype == "F32":
        return data.view("<f4").astype(np.float32, copy=False)
    if dtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):
        return data.view("<f8" if dtype == "F64" else "<f2").astype(np.float32)


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[np.uint8]:
    """Write float32 as little-endian bytes of a dtype of ``FLOATS``, rounding to nearest even."""
    if dtype == "BF16":
        return ops.bfloat16_bits(values).astype("<u2", copy=False).view(np.uint8)
    if dtype == "F16":
        return np.clip(values, -65504, 65504).astype("<f2").view(np.uint8)
    return values.astype("<f8" if dtype == "F64" else "<f4", copy=False).view(np.uint8)
