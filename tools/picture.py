"""The rooms as a picture: python -m tools.picture writes docs/rooms.svg.

Floors are rows, the ground at the bottom. Arrows that skip floors go through an unseen stop on each, so that they bend
round the boxes; rows are ordered by the mean place of their neighbours, which keeps crossings few, and then moved
sideways until arrows are as straight as the boxes let them be.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from xml.sax.saxutils import escape

from tools.rooms import ROOT, imports_of_rooms, rooms, sizes, without_detours

PICTURE = ROOT / "docs" / "rooms.svg"

BOX_HEIGHT, ROW = 44, 78
GAP, LANE = 22, 18  # between boxes, and the width of an unseen stop
MARGIN, PAD = 28, 14  # round the picture, and round the rooms of a room
LABEL = 24  # the name of a room of rooms
SWEEPS = 300
CHARACTER, SMALL = 8.0, 6.3  # widths in the two sizes of text

STYLE = """
  text { font-family: ui-sans-serif, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
  .name { font-size: 14px; font-weight: 600; fill: #1f2328; }
  .size { font-size: 11px; fill: #59636e; }
  .floor { font-size: 11px; fill: #818b98; }
  .line { stroke: #818b98; stroke-opacity: .22; stroke-dasharray: 2 5; }
  .arrow { fill: none; stroke: #6e7781; stroke-width: 1.4; stroke-opacity: .85; }
  .head { fill: #6e7781; }
  .box { stroke-width: 1.2; }
  .ground { fill: #f3f1ec; stroke: #a89f8d; }
  .core { fill: #e4effb; stroke: #5b94cf; }
  .house { fill: #e5f4ea; stroke: #57a773; }
  .top { fill: #fbeee0; stroke: #cf9350; }
  .around { fill-opacity: .35; stroke-opacity: .55; stroke-dasharray: 5 4; }
  @media (prefers-color-scheme: dark) {
    .name { fill: #f0f6fc; } .size { fill: #a8b3bf; } .floor { fill: #7d8590; }
    .arrow { stroke: #9198a1; } .head { fill: #9198a1; }
    .ground { fill: #2b2924; stroke: #8f8672; }
    .core { fill: #14263b; stroke: #4f87c2; }
    .house { fill: #142a1c; stroke: #4c9466; }
    .top { fill: #33240f; stroke: #b97f3e; }
  }
"""


@dataclass
class Stop:
    """A box, or where an arrow passes a floor.

    Attributes:
        name: the room's, or of the arrow.
        floor: its row.
        width: in pixels.
        around: the room of rooms it is in, or "".
        side: -1 or 1: on which side of a room of rooms on its floor it stands; 0 for one inside.
        x: its middle.
    """

    name: str
    floor: int
    width: float
    around: str = ""
    side: int = 0
    x: float = 0.0
    above: list[Stop] = field(default_factory=list)
    below: list[Stop] = field(default_factory=list)

    @property
    def is_box(self) -> bool:
        return self.width > LANE


# ---- what stands where


def label_of(name: str) -> str:
    last = name.rsplit("/", 1)[-1]
    return last if last.endswith(".py") else f"{last}/"


def size_of(files: int, lines: int) -> str:
    """``9 files, 1,600 lines``: to the hundred, so that the picture outlives small edits."""
    told = f"{max(round(lines, -2), 100):,} lines"
    return told if files == 1 else f"{files} files, {told}"


@cache
def groups() -> dict[str, list[str]]:
    """Rooms of rooms: the inner ones, with the room itself where it holds modules of its own."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in rooms():
        if "/" in name:
            found[name.split("/")[0]].append(name)
    for outer, inner in found.items():
        if outer in rooms():
            inner.insert(0, outer)
    return dict(found)


def stops_of(arrows: dict[str, set[str]], sides: dict[tuple[str, str], int]) -> list[list[Stop]]:
    """Every floor's stops, joined by the arrows."""
    inside = {name: outer for outer, names in groups().items() for name in names}
    measured = sizes()
    boxes = {
        room.name: Stop(
            room.name,
            room.floor,
            max(len(label_of(room.name)) * CHARACTER, len(size_of(*measured[room.name])) * SMALL) + 26,
            inside.get(room.name, ""),
        )
        for room in rooms().values()
    }
    rows: list[list[Stop]] = [[] for _ in range(1 + max(room.floor for room in rooms().values()))]
    for box in boxes.values():
        rows[box.floor].append(box)
    for start, ends in sorted(arrows.items()):
        for end in sorted(ends):
            last = boxes[start]
            for floor in range(boxes[start].floor - 1, boxes[end].floor, -1):
                stop = Stop(f"{start} > {end}", floor, LANE)
                outer = outer_on(floor)
                if outer and outer in (boxes[start].around, boxes[end].around):
                    stop.around = outer
                elif outer:
                    stop.side = sides.get((start, end), 1)
                rows[floor].append(stop)
                join(last, stop)
                last = stop
            join(last, boxes[end])
    for row in rows:
        for stop in row:
            if not stop.around and stop.is_box and outer_on(stop.floor):
                stop.side = sides.get((stop.name, ""), 1)
    return rows


def join(upper: Stop, lower: Stop) -> None:
    upper.below.append(lower)
    lower.above.append(upper)


@cache
def outer_on(floor: int) -> str:
    """The room of rooms that a floor passes through, or ""."""
    for outer, names in groups().items():
        floors = [rooms()[name].floor for name in names]
        if min(floors) <= floor <= max(floors):
            return outer
    return ""


# ---- order within the floors


def crossings(rows: list[list[Stop]]) -> int:
    total = 0
    for row in rows[1:]:
        places = {id(stop): place for place, stop in enumerate(rows[row[0].floor - 1])} if row else {}
        further_left: list[int] = []
        for stop in row:
            ends = [places[id(lower)] for lower in stop.below]
            total += sum(len(further_left) - bisect_right(further_left, end) for end in ends)
            further_left = sorted(further_left + ends)
    return total


def ordered(rows: list[list[Stop]]) -> list[list[Stop]]:
    """The best order that sweeps up and down come by."""
    rows = [sorted(row, key=lambda s: (s.side, s.name)) for row in rows]
    best, least = [list(row) for row in rows], crossings(rows)
    places = {id(s): i for row in rows for i, s in enumerate(row)}

    def mean(near: list[Stop], stop: Stop) -> float:
        return sum(places[id(s)] for s in near) / len(near) if near else places[id(stop)]

    still = 0
    for sweep in range(24):
        moved = False
        for row in rows if sweep % 2 else reversed(rows):
            before = list(row)
            row.sort(key=lambda s: (s.side, mean(s.below if sweep % 2 else s.above, s)))
            if any(now is not then for now, then in zip(row, before, strict=True)):
                moved = True
                places.update({id(s): i for i, s in enumerate(row)})
        still = 0 if moved else still + 1
        if still == 2:
            break
        if moved and (fewer := crossings(rows)) < least:
            best, least = [list(row) for row in rows], fewer
    return best


# ---- places


def spread(row: list[Stop], wanted: list[float], walls: tuple[float, float] | None) -> None:
    """Move a row's stops as near to where they want to be as widths and walls let them, in least squares."""
    parts = [[(s, w) for s, w in zip(row, wanted, strict=True) if s.side == side] for side in (-1, 0, 1)]
    for side, part in zip((-1, 0, 1), parts, strict=True):
        offsets, at = [], 0.0
        for number, (stop, _) in enumerate(part):
            if number:
                before = part[number - 1][0]
                at += (before.width + stop.width) / 2 + (GAP if before.is_box or stop.is_box else 4)
            offsets.append(at)
        blocks: list[list[float]] = []  # [sum, count], of neighbours that touch
        for (_, want), offset in zip(part, offsets, strict=True):
            blocks.append([want - offset, 1])
            while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
                total, count = blocks.pop()
                blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
        bases = [total / count for total, count in blocks for _ in range(int(count))]
        for (stop, _), offset, base in zip(part, offsets, bases, strict=True):
            stop.x = base + offset
        if walls and side:
            beside([stop for stop, _ in part][::side], walls[0] if side < 0 else walls[1], side)


def beside(stops: list[Stop], edge: float, side: int) -> None:
    """Move stops away from a room of rooms that they would reach into, and from each other; the nearest comes first."""
    gap = GAP
    for number, stop in enumerate(stops):
        if number:
            gap = GAP if stop.is_box or stops[number - 1].is_box else 4
        stop.x = side * max(side * stop.x, side * edge + gap + stop.width / 2)
        edge = stop.x + side * stop.width / 2


def placed(rows: list[list[Stop]]) -> None:
    """Give every stop its x: near its neighbours, most of all those of the same arrow, so that arrows run straight."""
    for row in rows:
        spread(row, [0.0] * len(row), None)
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 else reversed(rows):
            wanted = []
            for stop in row:
                near = [(s.x, 2 ** (2 - stop.is_box - s.is_box)) for s in (*stop.above, *stop.below)]
                total = sum(weight for _, weight in near)
                wanted.append(sum(x * weight for x, weight in near) / total if near else stop.x)
            outer = outer_on(row[0].floor) if row else ""
            spread(row, wanted, bounds(rows, outer)[:2] if outer else None)
    for chain in chains(rows):
        straighten(rows, chain)


def chains(rows: list[list[Stop]]) -> list[list[Stop]]:
    """The unseen stops of each arrow, downwards; the longest first."""
    found = []
    for first in (lower for row in rows for stop in row if stop.is_box for lower in stop.below if not lower.is_box):
        found.append([first])
        while not found[-1][-1].below[0].is_box:
            found[-1].append(found[-1][-1].below[0])
    return sorted(found, key=len, reverse=True)


def straighten(rows: list[list[Stop]], chain: list[Stop]) -> None:
    """Let an arrow pass as many floors as it can without a bend."""
    runs: list[tuple[list[Stop], float, float]] = []
    for stop in chain:
        low, high = between(rows, stop)
        if runs and max(runs[-1][1], low) <= min(runs[-1][2], high):
            run, before, after = runs[-1]
            runs[-1] = [*run, stop], max(before, low), min(after, high)
        else:
            runs.append(([stop], low, high))
    ends = chain[0].above[0].x, chain[-1].below[0].x
    for number, (run, low, high) in enumerate(runs):
        wanted = sum(stop.x for stop in run) / len(run)
        if len(runs) == 1 or number in (0, len(runs) - 1):
            near = [x for x, at in zip(ends, (0, len(runs) - 1), strict=True) if at == number and low <= x <= high]
            wanted = near[0] if near else wanted
        for stop in run:
            stop.x = min(max(wanted, low), high)


def between(rows: list[list[Stop]], stop: Stop) -> tuple[float, float]:
    """How far to the left and to the right a stop could move."""
    row = rows[stop.floor]
    at, low, high = row.index(stop), -math.inf, math.inf
    if at:
        low = row[at - 1].x + (row[at - 1].width + stop.width) / 2 + (GAP if row[at - 1].is_box else 4)
    if at + 1 < len(row):
        high = row[at + 1].x - (row[at + 1].width + stop.width) / 2 - (GAP if row[at + 1].is_box else 4)
    if outer := outer_on(stop.floor):
        left, right, *_ = bounds(rows, outer)
        edge = PAD + stop.width / 2
        if stop.side == 0:
            low, high = max(low, left + edge), min(high, right - edge)
        elif stop.side < 0:
            high = min(high, left - edge)
        else:
            low = max(low, right + edge)
    return low, high


def bounds(rows: list[list[Stop]], outer: str) -> tuple[float, float, int, int]:
    """Left, right, lowest and highest floor of a room of rooms."""
    inner = [s for row in rows for s in row if s.around == outer]
    left, right = min(s.x - s.width / 2 for s in inner) - PAD, max(s.x + s.width / 2 for s in inner) + PAD
    floors = [s.floor for s in inner if s.is_box]
    return left, right, min(floors), max(floors)


def length(rows: list[list[Stop]]) -> float:
    return sum(abs(stop.x - lower.x) for row in rows for stop in row for lower in stop.below)


def layout() -> list[list[Stop]]:
    """The best of all choices of sides."""
    arrows = without_detours(imports_of_rooms())
    inside = {name: outer for outer, names in groups().items() for name in names}
    free: list[tuple[str, str]] = []
    for start, ends in sorted(arrows.items()):
        for end in sorted(ends):
            passed = {outer_on(f) for f in range(rooms()[end].floor + 1, rooms()[start].floor)} - {""}
            if passed - {inside.get(start), inside.get(end)}:
                free.append((start, end))
    choices = itertools.product((-1, 1), repeat=len(free))
    tried = [ordered(stops_of(arrows, dict(zip(free, choice, strict=True)))) for choice in choices]
    least = min(map(crossings, tried))
    best = [rows for rows in tried if crossings(rows) == least]
    for rows in best:
        placed(rows)
    return min(best, key=length)


# ---- drawing


def kind_of(name: str) -> str:
    """The tint: the ground, the core, the simulator, what people look at."""
    floor = rooms()[name].floor
    if name.startswith("federated"):
        return "house"
    if floor < rooms()["kernels"].floor or (name.endswith(".py") and floor == rooms()["kernels"].floor):
        return "ground"
    return "core" if floor <= rooms()["ends"].floor else "top"


def draw() -> str:
    """The picture, as SVG."""
    rows = layout()
    top_floor = len(rows) - 1
    every = [stop for row in rows for stop in row]
    left = min(s.x - s.width / 2 for s in every) - PAD - MARGIN - 24
    shift = -left
    width = max(s.x + s.width / 2 for s in every) + PAD + MARGIN + shift
    tops = {bounds(rows, outer)[3] for outer in groups()}
    height = 2 * MARGIN + top_floor * ROW + BOX_HEIGHT + LABEL * len(tops)

    def y(floor: int) -> float:
        """The top edge of a floor's boxes."""
        return MARGIN + (top_floor - floor) * ROW + LABEL * sum(floor <= top for top in tops)

    def gate(stop: Stop) -> float:
        """Where an arrow comes in from above: beside a room of rooms, at its upper edge."""
        return y(stop.floor) - ((LABEL + PAD) if stop.side and stop.floor in tops else 0) - stop.is_box

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="The rooms of src/gradwire and who imports whom">',
        f"<style>{STYLE}</style>",
        '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0,1 L10,5 L0,9 z"/></marker>',
    ]
    for floor in range(top_floor + 1):
        middle = y(floor) + BOX_HEIGHT / 2
        out.append(f'<line class="line" x1="{MARGIN + 12}" x2="{width - MARGIN:.0f}" y1="{middle}" y2="{middle}"/>')
        out.append(f'<text class="floor" x="{MARGIN}" y="{middle + 4}" text-anchor="middle">{floor}</text>')
    for outer, names in groups().items():
        start, end, low, high = bounds(rows, outer)
        upper, lower = y(high) - PAD - (0 if outer in rooms() else LABEL), y(low) + BOX_HEIGHT + PAD
        out.append(
            f'<rect class="box around {kind_of(names[0])}" x="{start + shift:.1f}" y="{upper:.1f}" '
            f'width="{end - start:.1f}" height="{lower - upper:.1f}" rx="12"/>'
        )
        if outer not in rooms():
            out.append(f'<text class="name" x="{start + shift + PAD:.1f}" y="{upper + 22:.1f}">{outer}/</text>')
    ports = ports_of(rows)
    for stop in every:
        if stop.is_box:
            out += [arrow(stop, lower, ports, y, gate, shift) for lower in stop.below]
    measured = sizes()
    for stop in every:
        if stop.is_box:
            top, middle = y(stop.floor), stop.x + shift
            out.append(
                f'<g><title>{escape(rooms()[stop.name].duty)}</title><rect class="box {kind_of(stop.name)}" '
                f'x="{middle - stop.width / 2:.1f}" y="{top:.1f}" width="{stop.width:.1f}" height="{BOX_HEIGHT}" '
                f'rx="7"/><text class="name" x="{middle:.1f}" y="{top + 19:.1f}" text-anchor="middle">'
                f'{label_of(stop.name)}</text><text class="size" x="{middle:.1f}" y="{top + 35:.1f}" '
                f'text-anchor="middle">{size_of(*measured[stop.name])}</text></g>'
            )
    return "\n".join([*out, "</svg>"]) + "\n"


def ports_of(rows: list[list[Stop]]) -> dict[tuple[int, int], float]:
    """Where on a stop's lower and upper edge each arrow is, by the ids of the stops it joins: side by side in order."""
    found = {}
    for stop in (s for row in rows for s in row):
        room = stop.width - 30 if stop.is_box else 0
        for near, down in ((stop.below, True), (stop.above, False)):
            step = min(26.0, room / max(len(near) - 1, 1))
            for place, other in enumerate(sorted(near, key=lambda s: s.x)):
                key = (id(stop), id(other)) if down else (id(other), -id(stop))
                found[key] = stop.x + (place - (len(near) - 1) / 2) * step
    return found


def arrow(
    start: Stop,
    first: Stop,
    ports: dict[tuple[int, int], float],
    y: Callable[[int], float],
    gate: Callable[[Stop], float],
    shift: float,
) -> str:
    """One arrow, down through its unseen stops to its box."""
    x, at = ports[id(start), id(first)] + shift, y(start.floor) + BOX_HEIGHT
    path = f"M{x:.1f},{at:.1f}"
    above, stop = start, first
    while True:
        into = ports[id(above), -id(stop)] + shift
        upper = gate(stop)
        middle = (at + upper) / 2
        path += f" C{x:.1f},{middle:.1f} {into:.1f},{middle:.1f} {into:.1f},{upper:.1f}"
        if stop.is_box:
            return f'<path class="arrow" marker-end="url(#head)" d="{path}"/>'
        x, at = into, y(stop.floor) + BOX_HEIGHT
        path += f" L{x:.1f},{at:.1f}"
        above, stop = stop, stop.below[0]


if __name__ == "__main__":
    PICTURE.write_text(draw())
