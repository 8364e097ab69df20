import os
from pathlib import Path

import pytest
from commands import QUICK, Simulated

import spikewise

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real and benchmark data; tests that ask for it skip where it is absent."""
    folder = Path(os.environ.get("SPIKEWISE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the data folder {folder} is absent; set SPIKEWISE_DATA")
    return folder


@pytest.fixture(scope="session")
def tetrode(tmp_path_factory) -> Simulated:
    """A simulated recording of a tetrode; no test changes it."""
    return Simulated(tmp_path_factory.mktemp("tetrode") / "made")


@pytest.fixture(scope="session")
def trained(tetrode) -> Path:
    """A model of the tetrode."""
    file = tetrode.folder.parent / "trained.safetensors"
    settings = {name.strip("-").replace("-", "_"): value for name, value in QUICK.items()}
    spikewise.train(tetrode.recording, tetrode.truth, output=file, **settings)
    return file
