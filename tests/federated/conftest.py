import os
from pathlib import Path

import pytest

_BESIDE_THE_REPOSITORY = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: GRADWIRE_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("GRADWIRE_DATA") or _BESIDE_THE_REPOSITORY)
    if not folder.is_dir():
        pytest.skip("real data not found: set GRADWIRE_DATA")
    return folder
