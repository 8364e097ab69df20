"""Shards: the spikes of stretches of a recording, each on disk whole or not at all.

A recording is cut on a fixed grid of ``shard_s`` seconds, group by group and segment by segment. The spikes
of one stretch are written to a file of their own: under a temporary name, flushed to the disk, renamed, and
only then recorded as a line of the manifest, with the SHA-256 of the file. So a shard in the manifest is
complete, whenever the work was interrupted. An incomplete last line is ignored, and a file that differs from
its record counts as missing. Only one process writes. Sample indices count from the start of the segment.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikewise.core.errors import OutputError
from spikewise.core.files import sync_folder, writing
from spikewise.data.recordings.damage import STRETCH
from spikewise.sorting.damaged import Damage, Found

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.jsonl"
_MAX_HEADER_BYTES = 4096
"""Longest header of a .npy file that is accepted. Chosen by hand."""
SPIKE_DTYPE = np.dtype([("sample_index", "<i8"), ("unit_index", "<i4"), ("response", "<f4")])


@dataclass(frozen=True, order=True)
class Shard:
    """A stretch of one group of channels, ``start <= sample_index < stop``."""

    group_index: int
    segment_index: int
    start: int
    stop: int

    @property
    def file_name(self) -> str:
        """Name of the file of its spikes."""
        return f"{self.group_index}-{self.segment_index}-{self.start}-{self.stop}.npy"


def plan_shards(
    num_groups: int, num_samples: Sequence[int], length: int, period: int | None = None
) -> list[list[Shard]]:
    """Cut a recording: the shards of each period, in the order of group, segment, time.

    Parameters
    ----------
    num_groups : int
    num_samples : sequence of int
        Length of each segment.
    length : int
        Samples of a shard; the last of a segment or of a period may be shorter.
    period : int, optional
        Samples of a period, counted through all segments; default: there is one period.
    """
    starts = [sum(num_samples[:index]) for index in range(len(num_samples))]
    period = period or max(1, sum(num_samples))
    planned: list[list[Shard]] = [[] for _ in range(max(1, -(-sum(num_samples) // period)))]
    for group_index in range(num_groups):
        for segment_index, (first, total) in enumerate(zip(starts, num_samples, strict=True)):
            cuts = {*range(0, total, length), *range(-first % period, total, period), total}
            for start, stop in itertools.pairwise(sorted(cuts)):
                planned[(first + start) // period].append(Shard(group_index, segment_index, start, stop))
    return planned


class ShardStore:
    """The shards of one sort, in a folder of their own.

    Parameters
    ----------
    folder : Path
        It is made if it is missing. Shards that an earlier process left there are checked.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        with writing(folder):
            folder.mkdir(exist_ok=True)
        self._entries: dict[Shard, dict[str, Any]] = {}
        for shard, entry in self._read_manifest():
            if self._is_whole(shard, entry):
                self._entries[shard] = entry
            else:
                logger.warning("the shard %s differs from its record: it is found again", shard.file_name)

    def __contains__(self, shard: Shard) -> bool:
        """Return whether a shard is finished."""
        return shard in self._entries

    def __len__(self) -> int:
        """Return how many shards are finished."""
        return len(self._entries)

    def num_spikes(self, shard: Shard) -> int:
        """Return the number of spikes of a finished shard."""
        return self._entries[shard]["num_spikes"]

    @property
    def seconds(self) -> float:
        """Seconds that the finished shards took in all."""
        return sum(entry["seconds"] for entry in self._entries.values())

    def damage(self, shard: Shard) -> Damage:
        """Return the damage of a finished shard."""
        entry = self._entries[shard]
        stretches = np.array([tuple(stretch) for stretch in entry["damage"]], STRETCH)
        return Damage((stretches,), entry["num_dropped"])

    def write(self, shard: Shard, found: Found, seconds: float) -> None:
        """Write the spikes of a shard; when they are on the disk, record the shard and its damage.

        Raises
        ------
        OutputError
            If they cannot be written; shards that are recorded stay valid.
        """
        spikes, damage = found.spikes, found.damage
        table = np.empty(len(spikes), SPIKE_DTYPE)
        for name in SPIKE_DTYPE.names or ():
            table[name] = getattr(spikes, name)
        buffer = io.BytesIO()
        np.save(buffer, table, allow_pickle=False)
        content = buffer.getvalue()
        path = self.folder / shard.file_name
        partial = path.with_name(path.name + ".partial")
        entry = {
            "num_spikes": len(spikes),
            "seconds": round(seconds, 4),
            "num_dropped": damage.num_dropped,
            "damage": damage.stretches[0].tolist(),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        with writing(self.folder):
            try:
                _write_through(partial, content, "wb")
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
            sync_folder(self.folder)
            line = json.dumps({**asdict(shard), **entry})
            # The previous line may be incomplete; a newline separates it from this one.
            _write_through(self.folder / MANIFEST_FILE, f"\n{line}\n".encode(), "ab")
        self._entries[shard] = entry

    def read(self, shard: Shard) -> np.ndarray:
        """Return the spikes of a finished shard, as an array of :data:`SPIKE_DTYPE`."""
        return np.load(self.folder / shard.file_name, allow_pickle=False)

    def _read_manifest(self) -> list[tuple[Shard, dict[str, Any]]]:
        path = self.folder / MANIFEST_FILE
        if not path.exists():
            return []
        found = []
        for line in path.read_bytes().splitlines():
            entry = _entry(line)
            if entry is not None:
                found.append(entry)
        return found

    def _is_whole(self, shard: Shard, entry: dict[str, Any]) -> bool:
        """Return whether the file of a shard is the one that was recorded."""
        path = self.folder / shard.file_name
        size = entry["num_spikes"] * SPIKE_DTYPE.itemsize
        try:
            if not size <= path.stat().st_size <= size + _MAX_HEADER_BYTES:  # checked before it is read
                return False
            content = path.read_bytes()
        except OSError:
            return False
        return hashlib.sha256(content).hexdigest() == entry["sha256"]


def _entry(line: bytes) -> tuple[Shard, dict[str, Any]] | None:
    """Parse a line of the manifest; None if it is incomplete or not valid."""
    try:
        facts = json.loads(line)
        indices = [facts[name] for name in ("group_index", "segment_index", "start", "stop")]
        entry = {name: facts[name] for name in ("num_spikes", "seconds", "num_dropped", "damage", "sha256")}
        np.array([tuple(stretch) for stretch in entry["damage"]], STRETCH)
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    counts = [*indices, entry["num_spikes"], entry["num_dropped"]]
    if not all(type(count) is int and count >= 0 for count in counts):
        return None
    if not isinstance(entry["seconds"], int | float) or not isinstance(entry["sha256"], str):
        return None
    return Shard(*indices), entry


def _write_through(path: Path, content: bytes, mode: str) -> None:
    """Write to a file and wait until the content is on the disk."""
    with open(path, mode) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def check_whole(store: ShardStore, shards: Sequence[Shard]) -> None:
    """Raise unless all shards are finished."""
    missing = [shard for shard in shards if shard not in store]
    if missing:
        raise OutputError(
            f"{len(missing)} of {len(shards)} shards are missing in {store.folder}",
            "every stretch of the recording",
            "go on with --resume",
        )
