"""From shards to one sorting: read a stretch of time of all groups, order its spikes, write them, go on.

The spikes go to a file in SpikeInterface's order and type, which the sorting maps into memory, so that memory
holds one shard of each group and never all spikes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.core import BaseSorting
from spikeinterface.core.base import minimum_spike_dtype

from spikewise.data.labels import make_ordered_sorting
from spikewise.models.checkpoint import Model
from spikewise.sorting.shards import Shard, ShardStore, check_whole
from spikewise.sorting.store import writing


def merge_shards(
    store: ShardStore, shards: Sequence[Shard], model: Model, num_segments: int, file: Path
) -> BaseSorting:
    """Join the shards of all groups to one sorting, in order of segment, time, then unit.

    Parameters
    ----------
    store : ShardStore
    shards : sequence of Shard
        All shards of the sort, cut alike in every group.
    model : Model
        Gives the units, group after group.
    num_segments : int
    file : Path
        Where the spikes are written, as .npy; the sorting reads from it.
    """
    check_whole(store, shards)
    spikes = np.empty(0, minimum_spike_dtype)
    if count := sum(map(store.num_spikes, shards)):  # nothing cannot be mapped
        with writing(file), open(file, "wb") as opened:
            np.lib.format.write_array_header_1_0(opened, _header(count))
            for part in _in_order(store, shards, model):
                opened.write(part.tobytes())
        spikes = np.load(file, mmap_mode="r", allow_pickle=False)
    sorting = make_ordered_sorting(
        spikes, model.sampling_frequency, np.arange(len(model.unit_ids)), num_segments
    ).rename_units(model.unit_ids)
    sorting.set_property("threshold", np.concatenate([group.thresholds for group in model.groups]))
    names = [name for group in model.groups for name in [group.name] * len(group.unit_ids)]
    sorting.set_property("group", np.array(names))
    return sorting


def in_memory(sorting: BaseSorting) -> BaseSorting:
    """Return a sorting that needs no file, with the same units and properties."""
    copied = make_ordered_sorting(
        np.array(sorting.to_spike_vector()),
        sorting.sampling_frequency,
        sorting.unit_ids,
        sorting.get_num_segments(),
    )
    sorting.copy_metadata(copied)
    return copied


def _in_order(store: ShardStore, shards: Sequence[Shard], model: Model) -> Iterator[np.ndarray]:
    """Yield the spikes of one stretch of time after the other, of all groups together."""
    first_units = np.cumsum([0] + [len(group.unit_ids) for group in model.groups])
    by_time = sorted(shards, key=lambda shard: (shard.segment_index, shard.start, shard.group_index))
    for (segment_index, _), parts in itertools.groupby(by_time, lambda s: (s.segment_index, s.start)):
        found = [(store.read(shard), first_units[shard.group_index]) for shard in parts]
        sample_index = np.concatenate([table["sample_index"] for table, _ in found])
        unit_index = np.concatenate([table["unit_index"] + first for table, first in found])
        order = np.lexsort((unit_index, sample_index))
        spikes = np.empty(len(order), minimum_spike_dtype)
        spikes["sample_index"], spikes["unit_index"] = sample_index[order], unit_index[order]
        spikes["segment_index"] = segment_index
        yield spikes


def _header(count: int) -> dict[str, Any]:
    descr = np.lib.format.dtype_to_descr(np.dtype(minimum_spike_dtype))
    return {"descr": descr, "fortran_order": False, "shape": (count,)}
