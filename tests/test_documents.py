"""Every generated table and picture is what its result file gives, and one part can be measured anew."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from benchmarks import documents, methods, nnc, papers, results
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.documents import DOCUMENTS, Document, current

matplotlib = pytest.importorskip("matplotlib")

PINNED = re.search(r"^matplotlib==(\S+)", (results.ROOT / "constraints.txt").read_text(), re.M).group(1)


@cache
def texts_of(document: Document) -> dict[str, str]:
    return document.texts()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: " ".join(document.sources))
def test_documents_follow_from_their_results(document):
    """Text by text; pictures where matplotlib is the one that drew them."""
    for place, text in texts_of(document).items():
        if not place.endswith(".svg") or matplotlib.__version__ == PINNED:
            assert current(place) == text, f"{place}: python -m benchmarks --document {' '.join(document.sources)}"


def test_nothing_marked_as_generated_is_left_out():
    """Every section between marks and every picture of docs/ is some document's, and every result file is shown."""
    places = {place for document in DOCUMENTS for place in texts_of(document)}
    pages = [results.ROOT / "README.md", *sorted((results.ROOT / "docs").rglob("*.md"))]
    marked = {
        f"{page.relative_to(results.ROOT)}#{name}"
        for page in pages
        for name in re.findall(r"^<!-- (?!end )(\S+) -->$", page.read_text(), re.M)
    }
    assert marked == {place for place in places if "#" in place}
    drawn = {str(picture.relative_to(results.ROOT)) for picture in (results.ROOT / "docs").rglob("*.svg")}
    assert drawn - {"docs/rooms.svg"} == {place for place in places if place.endswith(".svg")}
    shown = {source for document in DOCUMENTS for source in document.sources}
    assert {path.stem for path in (results.ROOT / "benchmarks" / "results").glob("*.json*")} == shown


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """A repository of results and pages alone."""
    for folder in ("docs", "benchmarks/results"):
        shutil.copytree(results.ROOT / folder, tmp_path / folder)
    (tmp_path / "src" / "gradwire").mkdir(parents=True)
    shutil.copy(results.ROOT / "README.md", tmp_path)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    return tmp_path


def test_a_stale_page_is_noticed_and_mended(copy):
    page = copy / "docs" / "performance.md"
    right = page.read_text()
    stale = re.sub(r"\| torch.add_ \| [\d.]+ \|", "| torch.add_ | 0.01 |", right, count=1)
    assert stale != right
    page.write_text(stale)
    [document] = [d for d in DOCUMENTS if d.sources == ("speed",)]
    [(place, text)] = document.texts().items()
    assert current(place) != text
    main(["--document", "speed"])
    assert page.read_text() == right


def test_only_measures_one_stage_and_leaves_the_others(copy, monkeypatch):
    """The result file, the page, the package's copy and what else leans on them."""
    monkeypatch.setattr(methods, "resnet20_shapes", lambda: [(40, 50), (7,)])
    before = results.load("methods")
    main(["methods", "--only", "fp16"])
    after = results.load("methods")
    assert [m["name"] for m in after["methods"]] == [m["name"] for m in before["methods"]]
    changed = [a["name"] for a, b in zip(after["methods"], before["methods"], strict=True) if a != b]
    assert changed == ["fp16"]
    assert after["machine"] == before["machine"]
    assert "| `fp16()` |" in current("docs/methods.md#methods")
    assert json.loads(current("src/gradwire/methods.json")) == after


def test_a_part_measured_elsewhere_says_so(copy, monkeypatch):
    there = {**results.load("methods")["machine"], "processor": "Another", "cores": 1}
    monkeypatch.setattr(results, "machine", lambda: there)
    monkeypatch.setattr(methods, "resnet20_shapes", lambda: [(40, 50), (7,)])
    main(["methods", "--only", "fp16", "--only", "sign"])
    assert set(results.load("methods")["apart"]) == {"fp16", "sign"}
    assert "`fp16`, `sign`: on 1 core of Another," in current("docs/methods.md#methods")
    monkeypatch.setattr(results, "machine", lambda: results.load("methods")["machine"])
    main(["methods", "--only", "fp16"])
    assert set(results.load("methods")["apart"]) == {"sign"}


def test_results_carry_the_commit_they_were_made_with(copy, monkeypatch):
    monkeypatch.setattr(methods, "resnet20_shapes", lambda: [(40, 50), (7,)])
    monkeypatch.setattr(results, "commit", lambda: "one")
    results.save("methods", results.load("methods"))
    monkeypatch.setattr(results, "commit", lambda: "two")
    main(["methods", "--only", "fp16"])
    assert (results.load("methods")["commit"], results.load("methods")["commits"]) == ("one", {"fp16": "two"})
    results.save("methods", results.load("methods"))
    assert results.load("methods")["commit"] == "two"
    assert "commits" not in results.load("methods")
    monkeypatch.setattr(results, "commit", lambda: "three")
    results.save("methods", results.load("methods"), [])
    assert results.load("methods")["commit"] == "two", "nothing was measured"


def test_many_parts_measured_elsewhere_are_counted():
    here = results.load("methods")["machine"]
    found = {"machine": here, "apart": {part: {**here, "processor": "Another"} for part in "abcdefg"}}
    assert " 7 parts: on " in results.describe(found)


def test_a_papers_pieces_carry_their_own_commits():
    found = {"results": dict.fromkeys("abc"), "commit": "1234567890", "commits": {"b": "abcdefghij"}}
    assert papers._made_with(found) == "Commits they were made with: 1234567 (2), abcdefg (1)."


def test_commit_is_that_of_the_code(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments], capture_output=True, text=True, check=True
        )

    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.commit() is None
    git("init", "-q")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1\n")
    (tmp_path / "results.json").write_text("{}")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    made = git("rev-parse", "HEAD").stdout.strip()
    assert results.commit() == made
    (tmp_path / "results.json").write_text("{1}")  # which a benchmark writes
    assert results.commit() == made
    (tmp_path / "src" / "a.py").write_text("2\n")
    assert results.commit() == made + "+"
    monkeypatch.setattr(results, "ROOT", tmp_path / "src")
    assert results.commit() is None


def test_parts_of_other_benchmarks_merge():
    """An older figure of the same part goes; the order stays."""
    for name in ("budget", "mnist"):
        whole = results.load(name)
        part = json.loads(json.dumps(whole))
        if name == "budget":
            part["measured"] = [{**whole["measured"][1], "compress_seconds": 7.0}]
            merged = BENCHMARKS[name].merge(whole, part)
            expected = [m["compress_seconds"] for m in whole["measured"]]
            expected[1] = 7.0
            assert [m["compress_seconds"] for m in merged["measured"]] == expected
        else:
            for partition in ("iid", "shards:2"):
                part[partition]["runs"] = [{**whole[partition]["runs"][4], "seconds": 7.0}]
            merged = BENCHMARKS[name].merge(whole, part)
            assert [r["method"] for r in merged["iid"]["runs"]].count(part["iid"]["runs"][0]["method"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speeed"], "unknown benchmark speeed; known: accuracy, budget"),
        (["methods", "wire", "--only", "fp16"], "--only takes parts of one benchmark"),
        (["--only", "fp16"], "--only takes parts of one benchmark"),
        (["methods", "--only", "fp61"], "methods has no part fp61; known: adaptopk"),
        (["speed", "--only", "x"], "speed has no part x; known: none"),
    ],
)
def test_unknown_names_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_sections_are_cut_where_they_are_marked(copy):
    (copy / "docs" / "x.md").write_text("a\n<!-- n -->\nold\n<!-- end n -->\nb\n")
    documents.write("docs/x.md#n", "new | text")
    assert (copy / "docs" / "x.md").read_text() == "a\n<!-- n -->\nnew | text\n<!-- end n -->\nb\n"
    assert current("docs/x.md#n") == "new | text"
    (copy / "docs" / "x.md").write_text("<!-- n -->\n<!-- end n -->")
    documents.write("docs/x.md#n", "text")
    assert (copy / "docs" / "x.md").read_text() == "<!-- n -->\ntext\n<!-- end n -->"
    with pytest.raises(SystemExit, match="no section m"):
        documents.write("docs/x.md#m", "text")


def test_what_the_readme_says_of_indices_was_measured():
    """Within 0.4 % at 25.6 million parameters; below that, by the number of entries."""
    above = {(r["d"], r["num_kept"]): r["above_floor_percent"] for r in results.load("wire")["uniform"]}
    assert "within 0.4 % of\n  log2 C(d, k)" in (results.ROOT / "README.md").read_text()
    assert max(percent for (d, _), percent in above.items() if d == 25_557_032) <= 0.4
    assert all(2.9 <= percent <= 4 for (_, kept), percent in above.items() if kept == 100)
    assert all(25 <= percent <= 34 for (_, kept), percent in above.items() if kept == 10)


def test_bytes_at_an_error_lie_between_the_points_of_the_front():
    """Halfway between two errors, the geometric mean of their bytes; points that others beat count for nothing."""
    points = [(100, 0.9), (400, 0.5), (150, 0.95), (1000, 0.6)]
    found = dict(zip(nnc.TARGETS, nnc.bytes_at(points), strict=True))
    assert found[0.9] == pytest.approx(100)
    assert found[0.7] == pytest.approx(200)
    assert found[0.5] == pytest.approx(400)
    assert found[0.3] is found[0.1] is found[0.03] is None


def test_nnc_says_where_its_updates_were_looked_for(tmp_path, capsys):
    assert nnc.measure(str(tmp_path), ()) is None
    assert str(tmp_path / "updates.npz") in capsys.readouterr().out


def test_nnc_beats_its_peer_in_the_result_that_is_shown():
    """At each error rd takes fewer bytes than NNCodec, of every update."""
    for update in results.load("nnc")["updates"].values():
        assert all(ours < theirs for ours, theirs in zip(update["rd"]["bytes"], update["nnc_bytes"], strict=True))
