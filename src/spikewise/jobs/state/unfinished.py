"""What an unfinished sort keeps in its output folder, below ``unfinished/``, until the result is whole.

``job.json`` tells what the sort is of; ``labels-<group>.json`` the labels that a sorter made, whose spikes
are in ``bootstrap/``; ``training-<group>.safetensors`` how far a training is; ``group-<group>.safetensors`` a
network that is learnt; ``shards/`` the spikes found. Groups are numbered in their order. Each file is written
whole or not at all, so that the work can end at any moment.
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
        """What the sort is of."""
        return self.folder / JOB_FILE

    @property
    def is_begun(self) -> bool:
        """Whether an earlier process began this sort."""
        return self.job_file.exists()

    def begin(self, job: dict[str, Any]) -> None:
        """Record what the sort is of, or check it against what was recorded.

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
        """Return what a file of JSON holds, None where it is not there or damaged."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def save(self, facts: dict[str, Any], name: str) -> None:
        """Write a file of JSON, whole or not at all."""
        save_json(facts, self.folder / name)

    def labels_name(self, group_index: int) -> str:
        """Return the name of the file of a group's labels."""
        return f"labels-{group_index}.json"

    def training_file(self, group_index: int) -> Path:
        """Return where a training says how far it is."""
        return self.folder / f"training-{group_index}.safetensors"

    def group_file(self, group_index: int) -> Path:
        """Return where the network of a group is kept."""
        return self.folder / f"group-{group_index}.safetensors"

    def shards(self) -> ShardStore:
        """Open the spikes that are found."""
        return ShardStore(self.folder / "shards")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working on this sort; the lock goes with the process, however it ends.

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
        """Remove everything, now that the result is whole; first what tells of a sort to be continued."""
        with contextlib.suppress(OSError):
            self.job_file.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            logger.warning("what is left of the work could not be removed: %s", os.fspath(self.folder))
