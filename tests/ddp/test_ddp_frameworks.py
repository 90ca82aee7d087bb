"""The examples for frameworks that wrap DDP, between real processes."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "ddp-frameworks"
TOLD = re.compile(r"worker (\d): (\d+) steps, (\d+) bytes, parameters sum to (\S+)")
STEPS, D = 2 * 512 // (2 * 16), 64 * 32 + 32 + 32 * 10 + 10
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("pytorch_lightning", [sys.executable, EXAMPLES / "with_lightning.py"]),
        ("accelerate", [*TORCHRUN, EXAMPLES / "with_accelerate.py"]),
    ],
    ids=["lightning", "accelerate"],
)
def test_gradients_travel_compressed(module, command):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install 'gradwire[frameworks]'")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told = sorted(TOLD.findall(done.stdout))
    assert [number for number, *_ in told] == ["0", "1"], done.stdout
    (_, steps, sent, parameters), (_, *other) = told
    assert other == [steps, sent, parameters]  # the same at both workers
    assert int(steps) == STEPS
    assert 0 < int(sent) < STEPS * 4 * D / 30
