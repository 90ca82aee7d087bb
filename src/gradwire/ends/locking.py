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
    """Holds a lock that its owner may take again; a copy holds a new one, so that what has it can be copied.

    The lock itself is what ``with`` is given: an interrupt cannot come between the end of a call and its release.

    Attributes:
        alone: the lock.

    Example:
        >>> import copy
        >>> lock = Lock()
        >>> with lock.alone, copy.deepcopy(lock).alone:
        ...     pass
    """

    def __init__(self) -> None:
        self.alone = threading.RLock()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


def locked(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Let a method run while no other one of its object does: all wait for the object's ``_lock``."""

    @wraps(method)
    def alone(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock.alone:
            return method(self, *args, **kwargs)

    return alone
