"""How the cost of a parameter changes with their number, and what a second core gains."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwire.bench.machine import available_bytes
from gradwire.bench.measure import Operation, measure, seconds_of
from gradwire.bench.ours import TOPK, Payloads
from gradwire.bench.updates import windows
from gradwire.layout import Layout

__all__ = ["BASE", "scaling"]

BASE = 25_000_000
_MULTIPLES = (1, 4, 16, 40)
_VECTORS = 2.4  # update and residual, and a fifth more of each
_WARM_UP = 1

Vector = NDArray[np.float32]


def scaling(base: int, rounds: int, progressed: Callable[[float], None]) -> dict[str, Any]:
    """Measure ``ef(topk(0.01))``, payload only, at several sizes; at the first also on one thread.

    Args:
        base: the smallest size; the others are 4, 16 and 40 times as large, as memory allows.
        rounds: rounds that count.
        progressed: called with the share that is done.

    Returns:
        ``method``, ``sizes`` (nanoseconds a parameter of it and of ``torch.add_``, and their ratio), ``flatness``
        (the largest of these costs over the smallest), ``second_core`` and ``notes`` on what was left out.
    """
    notes: list[str] = []
    found: list[dict[str, Any]] = []
    for number, d in enumerate(base * m for m in _MULTIPLES):
        if (note := _too_large(d, base)) is None:
            found.append(_at_size(d, rounds))
        else:
            notes.append(note)
        progressed((number + 1) / (len(_MULTIPLES) + 1))
    second_core, left_out = _second_core(base, rounds)
    progressed(1.0)
    costs = [row["compress_nanoseconds"] for row in found]
    return {
        "method": TOPK,
        "sizes": found,
        "flatness": max(costs) / min(costs),
        "second_core": second_core,
        "notes": [*notes, *left_out],
    }


def _too_large(d: int, base: int) -> str | None:
    needed, available = int(_VECTORS * 4 * d), available_bytes()
    if d == base or (available is not None and needed <= available):
        return None
    have = "the system does not say how much there is" if available is None else f"{available / 1e9:.1f} GB are free"
    return f"{d:,} parameters were left out: they need {needed / 1e9:.1f} GB, {have}"


def _pair(d: int) -> tuple[Callable[[int], object], Payloads]:
    """Addition of the update into the residual, and compression, on the same two vectors."""
    import torch

    updates = windows(d)
    payloads = Payloads(TOPK, updates, Layout.flat(d))

    def add(number: int) -> torch.Tensor:
        residual: torch.Tensor = torch.from_numpy(payloads.state.memory["residual"])
        return residual.add_(torch.from_numpy(updates[number % len(updates)]))

    return add, payloads


def _at_size(d: int, rounds: int) -> dict[str, Any]:
    add, payloads = _pair(d)
    samples = measure(add, [Operation("ours", TOPK, payloads.run)], rounds, _WARM_UP)
    return {
        "d": d,
        "add_nanoseconds": 1e9 * samples.floor / d,
        "compress_nanoseconds": 1e9 * samples.median(TOPK) / d,
        "ratio": samples.ratio(TOPK),
    }


def _second_core(d: int, rounds: int) -> tuple[dict[str, Any], list[str]]:
    """Seconds on one thread over seconds on all, of medians, for the addition and for compression."""
    import torch

    threads = torch.get_num_threads()
    if threads == 1:
        return {}, ["the gain of more cores was left out: there is one thread"]
    add, payloads = _pair(d)
    seconds: dict[tuple[int, str], list[float]] = {}
    try:
        for number in range(_WARM_UP + rounds):
            for n in (1, threads):
                torch.set_num_threads(n)
                add(number)  # the threads start outside of the measurement
                for name, run in (("add", add), ("compress", payloads.run)):
                    taken = seconds_of(run, number)
                    if number >= _WARM_UP:
                        seconds.setdefault((n, name), []).append(taken)
    finally:
        torch.set_num_threads(threads)
    add_gain, compress_gain = (_gain(seconds[1, name], seconds[threads, name]) for name in ("add", "compress"))
    return {"d": d, "threads": threads, "add_gain": add_gain, "compress_gain": compress_gain}, []


def _gain(one: Sequence[float], many: Sequence[float]) -> float:
    return statistics.median(one) / statistics.median(many)
