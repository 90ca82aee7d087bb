"""Locking: one call at a time where an end may be used by many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["Lock", "locked"]

P = ParamSpec("P")
T = TypeVar("T")


class Lock:
    """A lock that its holder may take again; a copy of it is a new one, so that what holds it can be copied.

    Example:
        >>> import copy
        >>> lock = Lock()
        >>> with lock, copy.deepcopy(lock):
        ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


def locked(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Let a method run while no other one of its object does: all wait for the object's ``_lock``."""

    @wraps(method)
    def alone(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            return method(self, *args, **kwargs)

    return alone
