from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fabricated_runs import dense, run, timed, write
from rich.console import Console

from gradwire import progress
from gradwire.progress import RunDisplay


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(progress, "Console", lambda **options: Console(width=80, **options))

    def finish(*runs: dict[str, Any]) -> list[str]:
        RunDisplay(write(tmp_path, list(runs))).finish(tmp_path / "report.html", complete=True)
        return capsys.readouterr().out.splitlines()

    return finish


def test_codec_time_gives_way_to_the_target(shown: Any) -> None:
    lines = shown(dense(), run("ef(topk(0.01))"))
    assert lines[1].split()[-2:] == ["codec", "time"]
    lines = shown(timed("dense FedAvg", "dense()", 748.0, 748.0), timed("TCS · [4g]", "a", 900.0, None))
    assert lines[1].split("  ")[-2].strip() == "time to 95 %"
    assert "codec time" not in lines[1]
    assert lines[3].split()[:2] == ["dense", "FedAvg"]
    assert lines[3].rstrip().endswith("12.5 min")
    assert "TCS · [4g]" in lines[4]
    assert lines[4].rstrip().endswith("not reached")
    assert max(map(len, lines[:6])) <= 80
    still = {"virtual_seconds": 0.0, "target_virtual_seconds": 0.0}
    lines = shown(timed("a", "a", 1.0, 1.0, **still), timed("b", "b", 1.0, None, **still))
    assert "bytes to 95 %" in lines[1]
    assert [line.split()[-2:] for line in lines[3:5]] == [["5.00", "kB"], ["not", "reached"]]


def test_bar_of_a_run_stopped_at_its_target_is_full(tmp_path: Path) -> None:
    display = RunDisplay(tmp_path)
    totals = SimpleNamespace(rounds_done=3, accuracy=0.95, uplink_bytes=10)
    experiment = SimpleNamespace(seeds=[0], rounds=8, clients=2)
    simulation: Any = SimpleNamespace(experiment=experiment, totals=totals, seed=0, label="a", finished=False)
    display.started(simulation, 0, 1)
    display.progressed(simulation, None)  # type: ignore[arg-type]
    (bar,) = display._progress.tasks
    assert (bar.completed, bar.total, bar.finished) == (3, 8, False)
    simulation.finished = True
    display.progressed(simulation, None)  # type: ignore[arg-type]
    assert (bar.completed, bar.total, bar.finished) == (3, 3, True)
