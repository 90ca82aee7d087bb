"""docs/rooms.svg: the rooms as the code has them, drawn without overlaps."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree

import pytest
from tools import picture, rooms

SIZE = re.compile(r">(?:(\d+) files, )?([\d,]+) lines<")


def test_picture_is_of_the_code_as_it_is():
    """Rooms, arrows and numbers of files as they are; numbers of lines to a quarter, as they change every day."""
    drawn, now = picture.PICTURE.read_text(), picture.draw()
    assert SIZE.sub("", drawn) == SIZE.sub("", now), "stale: make docs"
    for (files, lines), (files_now, lines_now) in zip(SIZE.findall(drawn), SIZE.findall(now), strict=True):
        old, new = (int(text.replace(",", "")) for text in (lines, lines_now))
        assert files == files_now, "stale: make docs"
        assert abs(old - new) <= max(100, new / 4), "stale: make docs"


def test_picture_shows_every_room_and_no_arrow_upwards():
    root = xml.etree.ElementTree.fromstring(picture.PICTURE.read_text())
    svg = "{http://www.w3.org/2000/svg}"
    boxes = {group.find(f"{svg}text").text: group.find(f"{svg}rect") for group in root.iter(f"{svg}g")}
    assert sorted(boxes) == sorted(picture.label_of(name) for name in rooms.rooms())
    arrows = [path.get("d") for path in root.iter(f"{svg}path") if path.get("class") == "arrow"]
    assert len(arrows) == sum(map(len, rooms.without_detours(rooms.imports_of_rooms()).values()))
    for arrow in arrows:
        heights = [float(y) for y in re.findall(r",(-?[\d.]+)", arrow)]
        assert heights == sorted(heights), "downwards only"
    places = [tuple(float(box.get(key)) for key in ("x", "y", "width", "height")) for box in boxes.values()]
    for (x, y, w, h), (u, v, a, b) in itertools.combinations(places, 2):
        assert x + w <= u or u + a <= x or y + h <= v or v + b <= y, "two boxes overlap"


def test_arrows_are_left_out_where_a_longer_way_leads():
    graph = {"top": {"middle", "ground"}, "middle": {"low"}, "low": {"ground"}, "ground": set(), "side": {"ground"}}
    kept = {"top": {"middle"}, "middle": {"low"}, "low": {"ground"}, "ground": set(), "side": {"ground"}}
    assert rooms.without_detours(graph) == kept


@pytest.mark.parametrize(
    ("module", "room"),
    [
        ("gradwire.wire.index", "wire"),
        ("gradwire.wire", "wire"),
        ("gradwire.compressors.papers.tcs", "compressors/papers"),
        ("gradwire.compressors.spec", "compressors"),
        ("gradwire.federated.runs", "federated/runs.py"),
        ("gradwire.errors", "errors.py"),
    ],
)
def test_room_of_a_module_is_the_innermost(module, room):
    assert rooms.room_of(module).name == room


def test_modules_without_a_room():
    assert rooms.room_of("gradwire") is None
    assert rooms.room_of("gradwire.federated") is None
