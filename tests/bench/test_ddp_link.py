"""The benchmark of data-parallel steps: its figures and tables, and that it says why it cannot throttle."""

import numpy as np
import pytest
from benchmarks import ddp_link


def test_figures_are_of_the_steps_that_were_taken():
    seconds = (np.arange(101) / 1000).tolist()
    row = {"seconds": seconds, "cpu_seconds": [0.5, *seconds[1:]], "bytes": 101 * 7.0, "losses": [[1.0, 2.5]]}
    found = ddp_link._figures(row)
    expected = {"min": 0, "p10": 10, "p25": 25, "median": 50, "mean": 50, "cpu_min": 1, "bytes": 7}
    assert {name: pytest.approx(found[name]) for name in expected} == expected
    part = {
        "link": 100,
        "workers": 2,
        "model": "mlp",
        "runs": [{"d": 5000, "data": "digits", "rows": {"sparse": found}}],
    }
    compared, heading, table = ddp_link._tables({"100": part, "1000": {"skipped": "no root"}})
    assert compared == ""  # with nothing
    assert heading == "### 2 workers over 100 Mbit/s, 5,000 parameters, digits"
    assert "| 0.0 | 10.0 | 25.0 | 50.0 | 50.0 | 1.0 | 7 B | 2.500 | 2.500 |" in table


def test_where_nothing_can_be_throttled_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(ddp_link.os, "geteuid", lambda: 1000)
    assert ddp_link.measure(None, ["100"]) == {
        "parts": {"100": {"skipped": "a link of 100 Mbit/s needs root, ip and tc"}}
    }
    assert "skipped: a link of 100 Mbit/s" in capsys.readouterr().err


def test_parts_are_measured_anew_one_by_one():
    old = {"machine": "here", "parts": {"100": 1, "1000": 2}}
    assert ddp_link.merge(old, {"parts": {"100": 3}}) == {"machine": "here", "parts": {"100": 3, "1000": 2}}
    assert all(set(part.methods) <= set(ddp_link.METHODS) for part in ddp_link.PARTS.values())


def test_the_hook_is_measured_beside_its_kernels():
    """What is more than a hook that does nothing, and how often the kernels' own."""
    ms = {"noop": 20.0, "passes": 24.0, "sparse kernels": 26.0, "sparse": 29.0, "denser kernels": 30.0, "denser": 35.0}
    rows = {name: {"cpu_min": value} for name, value in ms.items()}
    denser, sparse = ddp_link._compared({"cost": {"runs": [{"rows": rows}]}})
    assert "15.0 ms of CPU a step over a hook that does nothing, 1.50 times its kernels alone (10.0)" in denser
    assert "9.0 ms of CPU a step over a hook that does nothing, 1.50 times its kernels alone (6.0)" in sparse
    assert denser.endswith("zeros take 4.0.")
    del rows["sparse kernels"]  # in a file that was made without
    assert list(ddp_link._compared({"cost": {"runs": [{"rows": rows}]}}))[1].endswith("a hook that does nothing.")
