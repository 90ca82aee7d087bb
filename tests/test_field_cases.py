"""Scripts that reproduce faults people met, beside the repository, if at all: each exits 0 where it is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(os.environ.get("GRADWIRE_CASES") or Path(__file__).parents[2] / "shared" / "cases")
SCRIPTS = sorted(CASES.glob("*.py"))


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPTS, reason="no scripts found: set GRADWIRE_CASES")
@pytest.mark.parametrize("script", SCRIPTS or [None], ids=lambda path: path and path.stem)
def test_the_fault_is_gone(script, tmp_path):
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
