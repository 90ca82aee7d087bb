"""Kernels side by side: ranges of a vector on a few threads, which the kernels let run since they hold no lock.

What an op gives never depends on how many ranges there are. As many threads run as torch is set to use, or without
torch as ``OMP_NUM_THREADS`` or the processors allow; the caller is one of them. A forked child starts its own.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

__all__ = ["ALIGNED", "FEW", "MOST", "num_threads", "over", "run", "split"]

T = TypeVar("T")

ALIGNED = 1 << 16
"""Ranges start at multiples of this."""
MOST = 1 << 31
"""No range is longer, so that kernels may keep places in it as uint32."""
FEW = 1 << 16
"""Elements that are worth a thread's waking up where each takes some nanoseconds: a search, a place anywhere."""
_LEAST = 1 << 18  # elements that are worth it where they are read one after the other

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_here = threading.local()


def num_threads() -> int:
    """Return how many threads to use: torch's setting, else ``OMP_NUM_THREADS``, else the processors at hand."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told):
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split(size: int, least: int = _LEAST) -> list[slice]:
    """Cut ``size`` elements into as many ranges as there are threads; fewer where they would be short, more if long."""
    if size < 2 * least:
        return [slice(0, size)] if size else []
    number = min(num_threads(), size // least)
    step = min(MOST, -(-size // number // ALIGNED) * ALIGNED or 1)
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def run(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Call each task, all at once, and return what they give, in order; inside of another task one after the other.

    When this fails, or is interrupted, none of them runs any more.
    """
    if len(tasks) == 1 or num_threads() == 1 or hasattr(_here, "working"):
        return [task() for task in tasks]
    others: list[Future[T]] = [Future() for _ in tasks[1:]]
    try:
        for other, task in zip(others, tasks[1:], strict=True):
            _submit(other, task)
        first = [task() for task in tasks[:1]]
        return first + [other.result() for other in others]
    except BaseException:  # an interrupt, say: nothing runs on behind the caller's back
        wait([other for other in others if not other.cancel()])
        raise


def over(size: int, task: Callable[[slice], T], least: int = _LEAST) -> list[T]:
    """Call a task with each of the ranges that ``split`` cuts, all at once, and return what they give, in order."""
    ranges = split(size, least)
    return [task(r) for r in ranges] if len(ranges) < 2 else run([partial(task, r) for r in ranges])


def _submit(future: Future[T], task: Callable[[], T]) -> None:
    """Have a task run for a future that is there already, so that no interrupt can lose sight of it."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count() or 1, "gradwire", lambda: setattr(_here, "working", True))
        try:
            _pool.submit(_fulfil, future, task)
            return
        except RuntimeError:  # the interpreter is shutting down
            pass
    _fulfil(future, task)


def _fulfil(future: Future[T], task: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            result = task()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)


def _forget() -> None:
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
