"""examples/simulator: the three scripts as they are, some rounds long."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "examples" / "simulator"


def run(monkeypatch, script: str, *words: object) -> list[dict]:
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    return runpy.run_path(str(SCRIPTS / script))["results"].runs


def test_a_perceptron_on_a_table(monkeypatch, tmp_path):
    dense, sparse, coded = run(monkeypatch, "tabular_mlp.py", "--rounds", 20, "--out", tmp_path / "run")
    assert dense["final_accuracy"] > 0.9
    assert sparse["final_accuracy"] > 0.85
    assert coded["uplink_bytes"] < sparse["uplink_bytes"] < dense["uplink_bytes"] / 10
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000


@pytest.mark.slow
def test_a_cnn_with_batch_norm(monkeypatch, data_dir):
    folder = data_dir / "cifar10"
    dense, sparse = run(monkeypatch, "cifar10_cnn.py", folder, "--rounds", 3, "--examples", 600)
    assert sparse["uplink_bytes"] < dense["uplink_bytes"] / 10
    assert dense["status"] == sparse["status"] == "complete"


@pytest.mark.slow
def test_a_transformer(monkeypatch, data_dir):
    file = data_dir / "shakespeare" / "input.txt"
    dense, sparse = run(monkeypatch, "shakespeare_transformer.py", file, "--rounds", 2, "--rows", 100)
    assert sparse["uplink_bytes"] < dense["uplink_bytes"] / 10
    assert dense["final_accuracy"] > 0.01
