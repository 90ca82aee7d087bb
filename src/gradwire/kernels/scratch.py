"""Memory for what does not outlive a call: each thread keeps it, since asking the system for it every time is slow."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["borrow"]

_kept = threading.local()


def borrow(name: str, size: int, dtype: Any) -> NDArray[Any]:
    """Return memory that this thread's next call with the same name returns again.

    Args:
        name: what it is for.
        size: number of elements.
        dtype: their type.

    Returns:
        (size,) of that type, holding anything.
    """
    num_bytes = size * np.dtype(dtype).itemsize
    held: NDArray[np.uint8] | None = getattr(_kept, name, None)
    if held is None or held.size < num_bytes:
        held = np.empty(num_bytes + num_bytes // 8, np.uint8)
        setattr(_kept, name, held)
    return held[:num_bytes].view(dtype)
