"""Three processes for all tests of this folder."""

import pytest
from ddp_ranks import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    started = Ranks(3, tmp_path_factory.mktemp("ranks"))
    yield started
    started.close()
