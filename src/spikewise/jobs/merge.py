"""Joins shards to one sorting: stretch by stretch, the spikes of all groups are read, ordered and written.

The spikes go to a file in SpikeInterface's order and type. The sorting maps this file into memory, so memory
holds one shard of each group and never all spikes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.recfunctions import repack_fields
from spikeinterface.core import BaseRecording, BaseSorting
from spikeinterface.core.base import minimum_spike_dtype

from spikewise.core.files import writing
from spikewise.data.labels.label_set import make_ordered_sorting, with_rate
from spikewise.jobs.finding import FoundShards
from spikewise.jobs.state.shards import Shard, ShardStore, check_whole
from spikewise.models.checkpoint import Model

_RESPONSE = np.dtype("<f4")
_SPIKE = np.dtype([*minimum_spike_dtype, ("response", _RESPONSE)])
"""A spike of SpikeInterface, with its response."""


def merge_shards(found: FoundShards, model: Model, recording: BaseRecording, file: Path) -> BaseSorting:
    """Join the shards of all groups to one sorting, in order of segment, time, then unit.

    Two periods have different weights, so both may find the same spike at the seam between them. If a unit
    has a spike on each side of the seam, at most ``merge_ms`` apart, only the first is kept.

    Parameters
    ----------
    found : FoundShards
        All shards of the sort; every group is cut at the same samples.
    model : Model
        Its units, group after group.
    recording : BaseRecording
        The recording that was sorted: its segments, and its sampling frequency, are those of the sorting.
    file : Path
        Where the spikes are written, as .npy; the sorting reads from it. Their responses are written beside
        it, in the same order: see :func:`responses_file`.
    """
    store, periods, shards = found.store, found.periods, found.shards
    check_whole(store, shards)
    seams = {min((shard.segment_index, shard.start) for shard in period) for period in periods[1:] if period}
    together = round(model.detection_config.merge_ms * model.sampling_frequency / 1000)
    spikes = np.empty(0, minimum_spike_dtype)
    if sum(map(store.num_spikes, shards)):  # an empty file cannot be mapped
        names = list(np.dtype(minimum_spike_dtype).names)
        responses = responses_file(file)
        with (
            writing(file),
            _ArrayFile(file, np.dtype(minimum_spike_dtype)) as of_spikes,
            _ArrayFile(responses, _RESPONSE) as of_responses,
        ):
            for part in _found_once(_in_order(store, shards, model), seams, together):
                of_spikes.add(repack_fields(part[names]))
                of_responses.add(part["response"])
        spikes = np.load(file, mmap_mode="r", allow_pickle=False)
    sorting = make_ordered_sorting(
        spikes,
        recording.get_sampling_frequency(),
        np.arange(len(model.unit_ids)),
        recording.get_num_segments(),
    ).rename_units(model.unit_ids)
    sorting.set_property("threshold", np.concatenate([group.thresholds for group in model.groups]))
    names = [name for group in model.groups for name in [group.name] * len(group.unit_ids)]
    sorting.set_property("group", np.array(names))
    return sorting


def responses_file(file: Path) -> Path:
    """Return the file of the responses (num_spikes,) of the spikes in a file."""
    return file.with_name(f"{file.stem}-responses.npy")


class _ArrayFile:
    """A .npy file to which rows are added, so that memory never holds all of them.

    Parameters
    ----------
    path : Path
    dtype : dtype
        Type of a row.
    """

    def __init__(self, path: Path, dtype: np.dtype):
        self._dtype, self._count = dtype, 0
        self._opened = open(path, "wb")  # noqa: SIM115
        self._write_header()
        self._begin = self._opened.tell()

    def add(self, rows: np.ndarray) -> None:
        """Write further rows."""
        self._opened.write(rows.astype(self._dtype, copy=False).tobytes())
        self._count += len(rows)

    def __enter__(self) -> _ArrayFile:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Write the number of rows, and close the file."""
        with self._opened:
            if kind is None:
                self._opened.seek(0)
                self._write_header()  # padded for any count
                if self._opened.tell() != self._begin:
                    raise RuntimeError(f"the header of {self._count} rows is longer than that of none")

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._opened, header)


def in_memory(sorting: BaseSorting) -> BaseSorting:
    """Return a sorting that needs no file, with the same units and properties."""
    return with_rate(sorting, sorting.sampling_frequency)


def _found_once(
    parts: Iterator[tuple[tuple[int, int], np.ndarray]], seams: set[tuple[int, int]], together: int
) -> Iterator[np.ndarray]:
    """Yield the spikes of stretches, without those that were also found on the other side of a seam."""
    before = np.empty(0, _SPIKE)
    for (segment_index, start), spikes in parts:
        if (segment_index, start) in seams:
            is_same_segment = before["segment_index"] == segment_index
            near = before[is_same_segment & (before["sample_index"] >= start - together)]
            new = spikes[: np.searchsorted(spikes["sample_index"], start + together)]
            gap = new["sample_index"][:, None] - near["sample_index"]
            is_twice = ((gap <= together) & (new["unit_index"][:, None] == near["unit_index"])).any(axis=1)
            spikes = np.concatenate((new[~is_twice], spikes[len(new) :]))
        yield spikes
        before = spikes


def _in_order(
    store: ShardStore, shards: Sequence[Shard], model: Model
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Yield stretch by stretch, in order of time, (segment, start) and the spikes of all groups."""
    first_units = np.cumsum([0] + [len(group.unit_ids) for group in model.groups])
    by_time = sorted(shards, key=lambda shard: (shard.segment_index, shard.start, shard.group_index))
    for (segment_index, start), parts in itertools.groupby(by_time, lambda s: (s.segment_index, s.start)):
        found = [(store.read(shard), first_units[shard.group_index]) for shard in parts]
        sample_index = np.concatenate([table["sample_index"] for table, _ in found])
        unit_index = np.concatenate([table["unit_index"] + first for table, first in found])
        order = np.lexsort((unit_index, sample_index))
        spikes = np.empty(len(order), _SPIKE)
        spikes["response"] = np.concatenate([table["response"] for table, _ in found])[order]
        spikes["sample_index"], spikes["unit_index"] = sample_index[order], unit_index[order]
        spikes["segment_index"] = segment_index
        yield (segment_index, start), spikes
