"""Several folders on one page: names, differences, whom a run is measured against, where the page goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fabricated_runs import PARAMETERS, dense, run, timed, write
from page_reader import Page, cells

from gradwire.errors import ConfigError
from gradwire.report import build_report
from gradwire.report.folders import names_of

DIGITS: dict[str, Any] = {
    "data": "digits",
    "test_name": "held-out fifth",
    "clients": 4,
    "batch_size": 32,
    "num_parameters": PARAMETERS,
}


def folder(path: Path, runs: list[dict[str, Any]], **experiment: Any) -> Path:
    path.mkdir(parents=True)
    return write(path, runs, experiment={**DIGITS, **experiment})


def compared(*paths: Path) -> Page:
    return Page(build_report(*paths, out=paths[0].parent / "both.html").read_text(encoding="utf-8"))


def test_runs_are_named_by_their_folder_and_share_one_table(tmp_path: Path) -> None:
    plain = folder(tmp_path / "plain", [dense(), run("topk(0.01)")])
    tuned = folder(tmp_path / "tuned", [run("topk(0.01)", uplink_bytes=1200, values_bytes=0)])
    found = compared(plain, tuned)
    assert list(cells(found)) == ["plain: dense()", "plain: topk(0.01)", "tuned: topk(0.01)"]
    lines = {trace["name"]: trace["x"][-1] for trace in found.figures()["accuracy_bytes"]["data"]}
    assert (lines["plain: topk(0.01)"], lines["tuned: topk(0.01)"]) == (2400, 1200)
    assert "plain, tuned: the same settings" in " ".join(found.text.split())
    assert "tuned: topk(0.01) reaches 90.0 % against 91.0 % dense with 80x fewer" in found.text


def test_settings_that_differ_are_told_with_the_values_of_each_folder(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", [run("a")], batch_size=8, links=["lte()", "fibre()"], mtu=1200)
    two = folder(tmp_path / "two", [run("a")], links=["lte()"])
    found = compared(one, two)
    rows = {row[0]: row[1:] for row in found.cells if row[0] in ("batch_size", "links", "mtu", "clients")}
    assert rows == {"batch_size": ["8", "32"], "links": ["lte(), fibre()", "lte()"], "mtu": ["1200", "–"]}  # noqa: RUF001
    assert "batch size" not in found.text
    assert "4 clients" in found.text


def test_a_run_is_measured_against_the_dense_run_of_its_own_folder(tmp_path: Path) -> None:
    easy = folder(tmp_path / "easy", [dense(final_accuracy=0.99), run("topk(0.01)", final_accuracy=0.5)])
    hard = folder(tmp_path / "hard", [dense(final_accuracy=0.6), run("topk(0.01)", final_accuracy=0.59)])
    assert "hard: topk(0.01) reaches 59.0 % against 60.0 % of hard: dense()" in compared(easy, hard).text


def test_different_data_is_not_ranked(tmp_path: Path) -> None:
    digits = folder(tmp_path / "digits", [dense(), run("topk(0.01)")])
    mnist = folder(tmp_path / "mnist", [dense(), run("topk(0.01)")], data="mnist")
    found = compared(digits, mnist)
    assert "none is ranked" in found.text
    assert "(best)" not in found.text
    assert "(best)" in compared(digits, folder(tmp_path / "again", [run("topk(0.02)")])).text


def test_the_page_lies_here_unless_it_is_said_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "a", [run("a")])
    folder(tmp_path / "b b", [run("a")])
    monkeypatch.chdir(tmp_path)
    assert build_report("a", "b b") == Path("comparison.html")
    links = [attrs["href"] for tag, attrs in Page(Path("comparison.html").read_text()).tags if tag == "a"]
    assert links == ["a/summary.json", "a/metrics.jsonl", "b%20b/summary.json", "b%20b/metrics.jsonl"]
    assert build_report("a") == Path("a/report.html")
    first = Path("a/report.html").read_bytes()
    assert build_report("a", out="a/report.html").read_bytes() == first
    Path("pages").mkdir()
    moved = Page(build_report("a", out="pages/a.html").read_text())
    assert [attrs["href"] for tag, attrs in moved.tags if tag == "a"] == ["../a/summary.json", "../a/metrics.jsonl"]


def test_folders_are_named_by_what_tells_them_apart() -> None:
    paths = [Path(p) for p in ("/r/tuned/0", "/r/plain/0", "/q/plain/0")]
    assert names_of(paths) == ["r/tuned/0", "r/plain/0", "q/plain/0"]
    assert names_of(paths[:2]) == ["tuned/0", "plain/0"]
    assert names_of(paths[:1]) == ["0"]
    assert names_of([Path("/r/a"), Path("/r/b")]) == ["a", "b"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", [run("a")])
    with pytest.raises(ConfigError, match="is there twice"):
        build_report(one, tmp_path / "x" / ".." / "one")
    with pytest.raises(ConfigError, match=r"two does not exist"):
        build_report(one, tmp_path / "two", out=tmp_path / "c.html")
    with pytest.raises(ConfigError, match="needs the folder of a run"):
        build_report()
    assert not (tmp_path / "c.html").exists()


def test_clocks_and_targets_are_compared_across_folders(tmp_path: Path) -> None:
    slow = folder(tmp_path / "slow", [timed("TCS", "tcs(0.01, 0.001)", 60.0, 60.0)])
    fast = folder(tmp_path / "fast", [timed("TCS", "tcs(0.01, 0.001)", 30.0, 20.0)])
    assert "fast: TCS is the first to reach 95 %, after 20.0 s" in compared(slow, fast).text
