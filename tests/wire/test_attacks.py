"""Every script of attacks/: each attack is refused with the error it must get, in little memory and time."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ATTACKS = Path(__file__).parents[2] / "attacks"
SCRIPTS = sorted(p.stem for p in ATTACKS.glob("*.py") if p.stem not in ("forge", "fuzz"))
sys.path.insert(0, str(ATTACKS))
import forge  # noqa: E402


@pytest.mark.parametrize("name", SCRIPTS)
def test_attack_is_refused(name, capsys):
    forge.run(importlib.import_module(name).attacks)
    assert capsys.readouterr().out.count("\n") >= 10, "it says what it tries"


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_says_what_it_tries(name):
    text = ast.get_docstring(ast.parse((ATTACKS / f"{name}.py").read_text()))
    assert "ust get" in text or "may" in text, "and which error it must get"


def test_a_script_runs_alone():
    done = subprocess.run([sys.executable, ATTACKS / "bad_codes.py"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "Malformed" in done.stdout


def test_an_attack_that_gets_through_is_noticed(capsys):
    def accepted() -> None:
        forge.refused("nothing at all", lambda: None, ValueError)
        forge.refused("another error", lambda: [][0], ValueError)
        forge.refused("too much memory", lambda: int(bytes(10**6) + b"x"), ValueError, max_bytes=1000)

    with pytest.raises(forge.Escaped, match=r"(?s)nothing at all.*another error.*too much memory"):
        forge.run(accepted)
    forge.ESCAPES.clear()
