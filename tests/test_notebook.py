"""A run shown in a notebook, by a real kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

CELL = """
import torch
from gradwire.federated import own_task, simulate

torch.manual_seed(0)
x = torch.randn(200, 4)
y = (x.sum(1) > 0).long()
task = own_task(torch.nn.Linear(4, 2), (x, y), (x, y))
simulate(task, ["dense()", "ef(topk(0.25))"], clients=4, rounds=20, out={out!r})
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the kernel's own packages
def test_bars_stand_in_one_place_below_the_cell_and_no_warnings(tmp_path: Path) -> None:
    client = pytest.importorskip("nbclient", reason="nbclient is not installed (extra: notebook)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra: notebook)")
    nbformat = pytest.importorskip("nbformat.v4")
    notebook = nbformat.new_notebook(cells=[nbformat.new_code_cell(CELL.format(out=str(tmp_path / "run")))])

    client.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()

    *shown, result = notebook.cells[0].outputs
    assert [output.output_type for output in shown] == ["display_data"] * 4
    bars, table, verdict, report = (output["data"]["text/plain"] for output in shown)
    assert "1/2 dense()" in bars
    assert "2/2 ef(topk(0.25))" in bars
    assert bars.count("20/20") == 2  # as of the end, not of the last quarter of a second
    assert "accuracy" in table
    assert "fewer uplink bytes" in verdict
    assert report.startswith("Report: ")
    assert result.output_type == "execute_result"
