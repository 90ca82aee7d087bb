"""Three processes for all tests of this folder that follow each other."""

from pathlib import Path

import pytest
from ddp_ranks import Ranks

STARTED = []


@pytest.fixture
def ranks(tmp_path_factory):
    if not STARTED:
        STARTED.append(Ranks(3, tmp_path_factory.mktemp("ranks")))
    return STARTED[0]


def pytest_runtest_teardown(nextitem):
    """End them when other folders' tests come: each process group they made looks at its sockets all the time."""
    if STARTED and (nextitem is None or Path(__file__).parent not in nextitem.path.parents):
        STARTED.pop().close()
