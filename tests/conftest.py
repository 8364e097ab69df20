import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real and benchmark data; tests that ask for it skip where it is absent."""
    folder = Path(os.environ.get("SPIKEWISE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the data folder {folder} is absent; set SPIKEWISE_DATA")
    return folder
