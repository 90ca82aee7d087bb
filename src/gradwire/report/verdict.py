"""What a comparison comes to, in one sentence."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from gradwire.report.tables import Row, format_bytes, format_seconds, misses, ranked, target, whole_percent

__all__ = ["verdict"]

_CLOSE_ENOUGH = 0.02


def verdict(rows: Sequence[Row]) -> str:
    """Say in one sentence which run pays.

    Args:
        rows: what ``summary_rows`` gave.

    Returns:
        Plain text: which run was the first at the target accuracy where the runs had one and a virtual clock;
        else which sent the fewest uplink bytes within two points of dense, or why nobody can say.
    """
    if not rows:
        return "No run has finished a round yet, so there is nothing to compare."
    goal = target(rows)
    if goal is not None and any(row.virtual_seconds for row in rows):
        return _first_at(rows, whole_percent(goal))
    return _cheapest(rows)


def _first_at(rows: Sequence[Row], goal: str) -> str:
    key = "target_virtual_seconds"
    times = {row.method: time for row in rows if (time := ranked(row, key)) is not None}
    if not times:
        return f"No complete run reached {goal} with every seed, so none was the first."
    first = min(times, key=times.__getitem__)
    winner = next(row for row in rows if row.method == first)
    said = f"{first} is the first to reach {goal}, after {format_seconds(times[first])} of virtual time"
    dense = [row for row in rows if row.is_dense and row.status == "complete"]
    beside = _dense_beside(winner, [row for row in dense if row.method in times or misses(row, key)])
    if beside is not None and beside.method not in times:
        missed = "does not reach it" if beside.target_virtual_seconds is None else "does not with every seed"
        return f"{said}; {beside.method} {missed}."
    if beside is not None and beside is not winner:
        other, who = beside.method, beside.method
    else:
        other = max(times, key=times.__getitem__)
        who = f"the slowest, {other}"
    if other == first:
        return f"{said}."
    took = format_seconds(times[other])
    if not 0 < times[first] < times[other]:
        return f"{said} ({who}: {took})."
    return f"{said}, {_times(times[other] / times[first])} sooner than {who} ({took})."


def _cheapest(rows: Sequence[Row]) -> str:
    dense = [row for row in rows if row.is_dense]
    others = [row for row in rows if not row.is_dense and row.status == "complete"]
    unknown = "so nothing says what compression costs in accuracy."
    if not dense:
        return f"There is no dense() run here, {unknown}"
    if len(dense) == 1:
        if dense[0].status != "complete":
            return f"The dense() run is only partial, {unknown}"
        if dense[0].accuracy is None:
            return f"The dense() run has no final accuracy, {unknown}"
        if not others:
            return "Only dense() ran to its end, so there is no compressed run to compare it with."
    pairs = [
        (row, beside, beside.accuracy.mean)
        for row in others
        if (beside := _dense_beside(row, dense)) and beside.status == "complete" and beside.accuracy
    ]
    if not pairs:
        return f"No compressed run has one dense() run of the same algorithm and links beside it, {unknown}"
    reference = "what the dense() run beside it reaches"
    if len(dense) == 1:
        reference = f"the {_percent(pairs[0][2])} that dense() reaches"
    close = [
        (row, beside, row.accuracy.mean, reached)
        for row, beside, reached in pairs
        if row.accuracy and row.accuracy.mean >= reached - _CLOSE_ENOUGH - 1e-9
    ]
    if not close:
        return f"No method comes within 2 points of {reference}."
    paying = [
        (beside.uplink_bytes.mean / row.uplink_bytes.mean, row, beside, accuracy, reached)
        for row, beside, accuracy, reached in close
        if 0 < row.uplink_bytes.mean < beside.uplink_bytes.mean
    ]
    if not paying:
        return f"No method within 2 points of {reference} sends fewer uplink bytes."
    gain, row, beside, accuracy, reached = max(paying, key=operator.itemgetter(0))
    against = f"{_percent(reached)} dense" if len(dense) == 1 else f"{_percent(reached)} of {beside.method}"
    return (
        f"{row.method} reaches {_percent(accuracy)} against {against} with {_times(gain)} fewer uplink bytes "
        f"({format_bytes(row.uplink_bytes.mean)} instead of {format_bytes(beside.uplink_bytes.mean)})."
    )


def _dense_beside(row: Row, dense: Sequence[Row]) -> Row | None:
    """The uncompressed run to compare with: the only one, or the only one that differs in nothing else we know of.

    One of the same folder goes before one of another.
    """
    dense = [other for other in dense if other.folder == row.folder] or dense
    same = [other for other in dense if (other.algorithm, other.links) == (row.algorithm, row.links)]
    for found in (dense, same, [other for other in same if other.budget == row.budget]):
        if len(found) == 1:
            return found[0]
    return None


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _times(ratio: float) -> str:
    if ratio < 9.95:
        return f"{ratio:.1f}x" if ratio >= 1.1 else f"{ratio:.2f}x"
    return f"{ratio:,.0f}x"
