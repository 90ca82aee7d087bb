"""The page in a browser: both themes, wide and narrow, with the keyboard, its files, and nothing from outside."""

from __future__ import annotations

import csv
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Shown, chromium, overlapping
from fabricated_runs import PARAMETERS, full_lines_of, run, timed, write

from gradwire.report import build_report
from gradwire.reproduce.blocks import Chart, Heading, Series, Table, Text
from gradwire.reproduce.page import render

NAMES = ["dense FedAvg", "one density for all, deadline 4 s · ef(topk(0.01))", "TCS", 'odd, "quoted" <b>name</b>']


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every chart there is."""
    folder = tmp_path_factory.mktemp("page")
    runs = [
        timed(NAMES[0], "dense()", 700.0, 600.0, uplink_bytes=96_600, header_bytes=600, values_bytes=96_000),
        timed(NAMES[1], "ef(topk(0.01))", 60.0, 50.0, uplink_bytes=2400),
        timed(NAMES[2], "ef(tcs(0.01, 0.001))", 80.0, None, wan_uplink_bytes=500, wan_downlink_bytes=700),
        timed(NAMES[3], "ef(topk(0.1))", 90.0, 80.0, final_accuracy=0.93),
    ]
    metrics = "".join(json.dumps(line) + "\n" for record in runs for line in full_lines_of(record))
    experiment = {"data": "digits", "num_parameters": PARAMETERS}
    return build_report(write(folder, runs, metrics, experiment=experiment))


@pytest.fixture(scope="module")
def opened(browser: Any, path: Path) -> Iterator[Shown]:
    shown = Shown(browser, path)
    shown.draw_all()
    yield shown
    shown.page.close()


@pytest.fixture(scope="module", params=["wide", "narrow"])
def shown(request: pytest.FixtureRequest, opened: Shown) -> Shown:
    """The page, wide in the light theme or narrow in the dark one: the same, which has to follow."""
    opened.page.set_viewport_size({"width": 1440 if request.param == "wide" else 390, "height": 900})
    opened.page.emulate_media(color_scheme="light" if request.param == "wide" else "dark")
    opened.draw_all()
    return opened


only_wide = pytest.mark.parametrize("shown", ["wide"], indirect=True)


def test_nothing_is_said_and_nothing_is_asked_for(shown: Shown, path: Path) -> None:
    assert shown.said == []
    outside = [url for url in shown.asked if not url.startswith(("data:", "blob:"))]
    assert outside == [path.resolve().as_uri()]


def test_nothing_scrolls_sideways(shown: Shown) -> None:
    assert shown.page.evaluate("document.documentElement.scrollWidth") == shown.page.viewport_size["width"]


def test_the_theme_is_the_system_s_and_text_stands_out(shown: Shown) -> None:
    back, fore, ticks = shown.page.evaluate(
        """[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
            getComputedStyle(document.querySelector('.xtick text')).fill]"""
    )
    assert (luminance(back) > 0.5) == (shown.page.viewport_size["width"] == 1440)
    for text in (fore, ticks):
        light, dark = sorted((luminance(back), luminance(text)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 7


@only_wide
def test_every_chart_has_axes_with_titles_and_units(shown: Shown) -> None:
    charts = shown.page.evaluate(
        """[...document.querySelectorAll('[data-figure]')].map(box => [box.dataset.figure,
            box.querySelector('.xtitle')?.textContent, box.querySelector('.ytitle')?.textContent])"""
    )
    titles = {name: (x, y) for name, x, y in charts}
    assert titles == {
        "accuracy_bytes": ("uplink bytes so far (log scale)", "test accuracy (%)"),
        "accuracy_rounds": ("round", "test accuracy (%)"),
        "loss_test_by_bytes": ("uplink bytes so far (log scale)", "test loss"),
        "accuracy_final": ("uplink bytes of the whole run (log scale)", "final test accuracy (%)"),
        "accuracy_time": ("virtual time (s)", "test accuracy (%)"),
        "direction": ("bytes of a run", None),
        "clients_uplink": ("client", "uplink bytes of the run"),
        "missing_late": ("client", "payloads late in the run"),
        "missing_rounds": ("round", "payloads and turns in a round"),
        "upload_bytes": ("bytes per upload (mean)", None),
        "density_of_an_upload": ("round", "share of the coordinates (%, log scale)"),
        "overlap": ("round", "coordinates of the round before (%)"),
        "residual_residual": ("round", "norm of a residual (root mean square)"),
        "time": ("seconds per run", None),
    }


def test_legends_titles_and_ticks_cover_nothing(shown: Shown) -> None:
    plots = shown.boxes(".plot")
    assert len(plots) == 14
    assert overlapping(shown.boxes("figure")) == []
    assert overlapping(shown.boxes(".svg-container"), shown.boxes("figcaption, .files, h2, h3, .switch")) == []
    assert overlapping(shown.boxes(".legend"), shown.boxes("figure")) == []
    assert overlapping(shown.boxes(".legend button")) == []
    assert overlapping(shown.boxes(".files, figcaption .key"), plots) == []
    assert overlapping(shown.boxes("figure > h3"), plots) == []
    for number in range(len(plots)):
        shown.page.evaluate(
            "n => document.querySelectorAll('.plot').forEach((box, i) => box.classList.toggle('looked-at', i === n))",
            number,
        )
        texts = shown.boxes(".looked-at :is(.xtick, .ytick, .xtitle, .ytitle, .annotation-text)")
        assert overlapping(texts) == []
        assert (
            overlapping(shown.boxes(".looked-at :is(.xtitle, .ytitle)"), shown.boxes(".looked-at .plot-container .bg"))
            == []
        )
        (plot,) = shown.boxes(".looked-at")
        assert all(plot["x"] - 1 <= text["x"] and text["right"] <= plot["right"] + 1 for text in texts)


@only_wide
def test_everything_that_can_be_pressed_is_reached_by_the_keyboard(shown: Shown) -> None:
    page = shown.page
    wanted = page.evaluate("document.querySelectorAll('button, a[href], [tabindex=\"0\"]').length")
    reached = set()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        number, outline = page.evaluate(
            """[[...document.querySelectorAll('button, a, [tabindex]')].indexOf(document.activeElement),
                getComputedStyle(document.activeElement).outlineStyle]"""
        )
        reached.add(number)
        assert outline == "solid"
    assert len(reached) == wanted
    page.locator("[data-show=upload_shares]").focus()
    page.keyboard.press("Enter")
    assert page.locator("#plot-upload").get_attribute("data-figure") == "upload_shares"
    assert page.locator("[data-show=upload_shares]").get_attribute("aria-pressed") == "true"
    second = page.locator(".legend button").nth(1)
    second.focus()
    page.keyboard.press("Space")
    assert second.get_attribute("aria-pressed") == "false"
    visible = "document.getElementById('plot-accuracy_bytes').data.map(t => t.visible)"
    assert page.evaluate(visible) == [True, True, False, False, True, True, True, True]
    page.keyboard.press("Space")
    assert all(page.evaluate(visible))


@pytest.mark.slow
def test_the_page_of_a_reproduction_has_legends_that_cover_nothing_and_files(browser: Any, tmp_path: Path) -> None:
    lines = [
        Series(f"ef(tcs(0.0{n}, 0.001) | fractional(16))", [1, 10, 100], [0.1, 0.5, 0.9], [0.1] * 3) for n in range(7)
    ]
    chart = Chart("bits", "Accuracy", "bits a parameter", "accuracy (%)", lines, log_x=True)
    path = tmp_path / "page.html"
    path.write_text(render("Reproduction", [], [Heading("Figure 1"), Table(["a"], [["b"]]), chart, Text("So it is.")]))
    for width in (390, 1440):
        shown = Shown(browser, path, width=width)
        shown.draw_all()
        assert overlapping(shown.boxes(".legend button")) == []
        assert overlapping(shown.boxes(".legend, .files"), shown.boxes(".plot")) == []
        assert overlapping(shown.boxes(".plot :is(.xtick, .ytick, .xtitle, .ytitle)")) == []
        assert shown.page.evaluate("document.documentElement.scrollWidth") == width
        with shown.page.expect_download() as waiting:
            shown.page.locator("[data-csv=bits]").click()
        rows = list(csv.reader(io.StringIO(Path(waiting.value.path()).read_text(), newline="")))
        assert rows[:2] == [
            ["series", "bits a parameter", "accuracy (%)", "spread"],
            [lines[0].name, "1", "0.1", "0.1"],
        ]
        assert len(rows) == 1 + 7 * 3
        assert shown.said == []
        shown.page.close()


@pytest.mark.slow
def test_what_is_far_below_is_drawn_when_it_comes_near(browser: Any, path: Path) -> None:
    shown = Shown(browser, path, width=390)
    shown.wait("document.querySelector('#plot-time') !== null")
    assert not shown.page.evaluate("!!document.querySelector('#plot-time .main-svg')")
    shown.page.locator("#plot-time").scroll_into_view_if_needed()
    shown.wait("!!document.querySelector('#plot-time .main-svg')")
    shown.page.close()


@only_wide
def test_csv_svg_and_png_of_a_chart(shown: Shown) -> None:
    def saved(press: str) -> tuple[str, bytes]:
        with shown.page.expect_download() as waiting:
            shown.page.locator(press).click()
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()

    name, data = saved("[data-csv=accuracy_bytes]")
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert name == "accuracy_bytes.csv"
    assert rows[0] == ["method", "seed", "round", "accuracy", "uplink_bytes_so_far"]
    assert [row[0] for row in rows[1::6]] == NAMES
    assert rows[1:3] == [[NAMES[0], "0", "1", "", "16100"], [NAMES[0], "0", "2", "0.1", "32200"]]
    assert len(rows) == 1 + 4 * 6
    name, data = saved("[data-csv=missing]")
    assert data.decode().splitlines()[1] == "dense FedAvg,0,0,6,0,0"
    name, data = saved("[data-image=svg][data-of=plot-accuracy_bytes]")
    assert (name, data[:4]) == ("accuracy_bytes.svg", b"<svg")
    assert b"uplink bytes so far" in data
    name, data = saved("[data-image=png][data-of=plot-time]")
    assert (name, data[:8]) == ("time.png", b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">I", data[16:20]) == (800,)
    assert shown.page.locator("[data-csv]").count() == 14
    assert shown.said == []


@pytest.mark.slow
def test_many_points_are_drawn_few_and_the_csv_has_them_all(browser: Any, tmp_path: Path) -> None:
    record = run("topk(0.01)", rounds=20_000, uplink_bytes=20_000 * 100)
    lines = (
        {"method": "topk(0.01)", "seed": 0, "round": i, "accuracy": (i * 7919 % 1000) / 1000, "uplink_bytes": 100}
        for i in range(20_000)
    )
    path = build_report(write(tmp_path, [record], "".join(json.dumps(line) + "\n" for line in lines)))
    shown = Shown(browser, path)
    shown.wait("!!document.querySelector('#plot-accuracy_rounds .main-svg')")
    with shown.page.expect_download() as waiting:
        shown.page.locator("[data-csv=accuracy_rounds]").click()
    rows = Path(waiting.value.path()).read_text().splitlines()
    assert len(rows) == 20_001
    assert rows[-1] == "topk(0.01),0,20000,0.081"
    assert shown.page.evaluate("document.getElementById('plot-accuracy_rounds').data[0].x.length") <= 2000
    shown.page.close()


def luminance(color: str) -> float:
    """Relative luminance of a CSS colour, as WCAG 2 has it."""
    parts = [float(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
