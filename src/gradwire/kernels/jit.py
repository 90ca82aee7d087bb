"""Compile a kernel at its first call, from an explicit signature, and keep it on disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import numba
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["array", "count_ones", "inline", "kernel", "leading_zeros", "maker", "pair", "plain", "trailing_zeros"]

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_UNCOUNTED: dict[str, Any] = {"_nrt": False}
_SLOW_SECONDS = 1.0
_log = logging.getLogger("gradwire.kernels")
_lock = threading.RLock()
_told = False


def array(dtype: Any, readonly: bool = True) -> Any:
    """Name the type of a contiguous one-dimensional array; arrays that are writable pass as read-only ones too."""
    return numba.types.Array(dtype, 1, "C", readonly=readonly)


def pair(dtype: Any) -> Any:
    """Name the type of a tuple of two."""
    types: Any = numba.types
    return types.UniTuple(dtype, 2)


def plain(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Make an array one a kernel takes: of this type, contiguous, aligned; itself where it is already."""
    flags = values.flags
    if values.dtype == dtype and flags.c_contiguous and flags.aligned:
        return values
    return values.astype(dtype, order="C")


def _emit_trailing_zeros(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.cttz(args[0], cgutils.false_bit)


def _type_trailing_zeros(context: Any, word: Any) -> Any:
    """Count the zeros below the lowest one of a uint64; 64 where there is none."""
    return numba.types.uint64(numba.types.uint64), _emit_trailing_zeros


trailing_zeros: Any = intrinsic(_type_trailing_zeros)


def _emit_count_ones(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.ctpop(args[0])


def _type_count_ones(context: Any, word: Any) -> Any:
    """Count the ones of a uint64."""
    return numba.types.uint64(numba.types.uint64), _emit_count_ones


count_ones: Any = intrinsic(_type_count_ones)


def _emit_leading_zeros(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.ctlz(args[0], cgutils.false_bit)


def _type_leading_zeros(context: Any, word: Any) -> Any:
    """Count the zeros above the highest one of a uint64; 64 where there is none."""
    return numba.types.uint64(numba.types.uint64), _emit_leading_zeros


leading_zeros: Any = intrinsic(_type_leading_zeros)


def kernel(result: Any, *arguments: Any, counted: bool = True) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Make a function a Numba kernel of one signature, without the global interpreter lock.

    Args:
        result: the Numba type of the result.
        *arguments: the Numba types of the arguments.
        counted: count references to arrays, which a kernel that makes arrays needs; one that hands arrays to many
            functions is twice as fast without.

    Returns:
        The decorator.
    """
    return lambda function: Kernel(function, result(*arguments), counted)


def inline(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function callable from kernels; it is compiled as part of each. It makes no arrays."""
    compiled: Callable[P, R] = numba.njit(**_OPTIONS, **_UNCOUNTED, forceinline=True)(function)
    return compiled


def maker(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function that makes arrays callable from kernels."""
    compiled: Callable[P, R] = numba.njit(**_OPTIONS)(function)
    return compiled


class Kernel(Generic[P, R]):
    """A function that is compiled, or loaded from Numba's cache, when it is first called.

    Where no cache directory can be written, it is compiled once a process.
    """

    def __init__(self, function: Callable[P, R], signature: Any, counted: bool) -> None:
        self._function = function
        self._options = _OPTIONS if counted else _OPTIONS | _UNCOUNTED
        self._signature = signature
        self._compiled: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the kernel."""
        compiled = self._compiled or self.compile()
        return compiled(*args, **kwargs)

    def compile(self) -> Callable[P, R]:
        """Compile, or load what an earlier process compiled, where this one did neither yet."""
        global _told
        with _lock:
            if self._compiled is not None:
                return self._compiled
            start = time.monotonic()
            compiled: Callable[P, R]
            try:
                compiled = numba.njit(self._signature, cache=True, **self._options)(self._function)
            except (RuntimeError, OSError):  # numba: "cannot cache function", no place to write
                compiled = numba.njit(self._signature, **self._options)(self._function)
            self._compiled = compiled
            if time.monotonic() - start > _SLOW_SECONDS and not _told:
                _told = True
                _log.info("compiling kernels; later processes load them from Numba's cache")
            return compiled
