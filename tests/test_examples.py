"""The examples that hypothesis draws depend on the test, and on nothing else."""

from __future__ import annotations

import importlib.util
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from examples import up_to


def drawn() -> list[str]:
    found = []

    @settings(max_examples=up_to(200), derandomize=True, database=None, deadline=None)
    @given(st.floats())
    def collect(x: float) -> None:
        found.append(repr(x))

    collect()
    return found


def test_examples_do_not_depend_on_what_is_loaded(tmp_path, monkeypatch):
    """A module of three hundred constants, as hypothesis would mix them in, changes no example."""
    before = drawn()
    path = tmp_path / "constants_of_mine.py"
    path.write_text(f"NUMBERS = {[0.123 + i for i in range(300)]}\n")
    spec = importlib.util.spec_from_file_location("constants_of_mine", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "constants_of_mine", module)
    spec.loader.exec_module(module)
    assert drawn() == before
