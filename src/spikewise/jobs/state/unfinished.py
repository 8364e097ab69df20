"""What an unfinished sort saves in its output folder, below ``unfinished/``, until the result is complete.

- ``job.json``: recording, labels, model and settings of the sort (:mod:`spikewise.jobs.state.fingerprint`).
- ``labels-<group>.json``: the labels that another sorter made; their spikes are in ``bootstrap/``.
- ``training-<group>.safetensors``: the state of a training.
- ``group-<group>.safetensors``: a network that is learnt.
- ``refreshed-<period>.safetensors``: a model whose units were relearnt.
- ``shards/``: the spikes found.

Groups are numbered in their order. Each file is written whole or not at all, so the work can be interrupted
at any time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spikewise.core.errors import OutputError
from spikewise.core.files import save_json, writing
from spikewise.jobs.state.fingerprint import check_same_job
from spikewise.jobs.state.shards import ShardStore
from spikewise.output.store import UNFINISHED_FOLDER

logger = logging.getLogger(__name__)

JOB_FILE = "job.json"


class Unfinished:
    """The state of one sort.

    Parameters
    ----------
    output : Path
        The output folder.
    """

    def __init__(self, output: Path):
        self.output = output
        self.folder = output / UNFINISHED_FOLDER
        with writing(output):
            self.folder.mkdir(exist_ok=True)

    @property
    def job_file(self) -> Path:
        """The file that describes the job of the sort."""
        return self.folder / JOB_FILE

    @property
    def is_begun(self) -> bool:
        """Whether an earlier process began this sort."""
        return self.job_file.exists()

    def begin(self, job: dict[str, Any]) -> None:
        """Record the job of the sort, or compare it with the recorded one.

        Raises
        ------
        OutputError
            If it was begun with another recording, labels, model or settings.
        """
        if self.is_begun:
            check_same_job(self.read(JOB_FILE), job, self.output)
            logger.info("an unfinished sort is continued")
        else:
            save_json(job, self.job_file)

    def read(self, name: str) -> Any:
        """Return the content of a JSON file; None if it is missing or damaged."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def save(self, facts: dict[str, Any], name: str) -> None:
        """Write a JSON file, whole or not at all."""
        save_json(facts, self.folder / name)

    def labels_name(self, group_index: int) -> str:
        """Return the name of the file of a group's labels."""
        return f"labels-{group_index}.json"

    def training_file(self, group_index: int) -> Path:
        """Return the path of the state of a group's training."""
        return self.folder / f"training-{group_index}.safetensors"

    def group_file(self, group_index: int) -> Path:
        """Return the path of a group's finished network."""
        return self.folder / f"group-{group_index}.safetensors"

    def shards(self) -> ShardStore:
        """Open the store of the spikes found."""
        return ShardStore(self.folder / "shards")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock this sort against other processes; the lock ends with the process, even if it is killed.

        Raises
        ------
        OutputError
            If another process works on it.
        """
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        with writing(self.folder):
            file = open(self.folder / "lock", "w", encoding="utf-8")  # noqa: SIM115
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"another process is sorting into {self.output}",
                    "one process for each output folder",
                    "wait for it, or choose another folder",
                ) from error
            except OSError as error:  # some network file systems have no locks
                logger.info("%s cannot be locked: %s", self.folder, error)
            yield

    def remove(self) -> None:
        """Remove everything when the result is complete; first the job, so that no sort continues it."""
        with contextlib.suppress(OSError):
            self.job_file.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            logger.warning(
                "the folder of the unfinished sort could not be removed: %s", os.fspath(self.folder)
            )
