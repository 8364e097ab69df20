"""Labels in damaged stretches are not used for training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spikewise.data.labels.label_set import LabelSet, relabelled
from spikewise.sorting.damaged import MOST, DamagedTraces, _count_damaged
from spikewise.sorting.spikes import Spikes


def drop_damaged_labels(label_set: LabelSet, traces: DamagedTraces, window_samples: int) -> LabelSet:
    """Leave out labels where most channels are damaged, except those of units that have no other label.

    Parameters
    ----------
    label_set : LabelSet
    traces : DamagedTraces
    window_samples : int
        Length of the network's window.
    """
    spikes = label_set.sorting.to_spike_vector()
    frames = spikes["sample_index"] + np.array(label_set.segment_starts)[spikes["segment_index"]]
    inside = (frames >= label_set.start_frame) & (frames < label_set.stop_frame)
    is_good = np.ones(len(spikes), bool)
    for segment_index in np.unique(spikes["segment_index"][inside]):
        of_segment = np.flatnonzero(inside & (spikes["segment_index"] == segment_index))
        samples = spikes["sample_index"][of_segment]
        radius = window_samples // 2
        here = traces.damage(int(segment_index), int(samples.min()) - radius, int(samples.max()) + radius + 1)
        if len(here):
            sees = np.ones((1, traces.num_channels), bool)
            as_spikes = Spikes(samples, np.zeros(len(samples), np.int64), np.zeros(len(samples), np.float32))
            counts = _count_damaged(as_spikes, here, sees, radius)
            is_good[of_segment] = counts < MOST * traces.num_channels
    if is_good.all():
        return label_set
    units = spikes["unit_index"]
    left = np.bincount(units[inside & is_good], minlength=len(label_set.sorting.unit_ids))
    is_good |= left[units] == 0
    kept = relabelled(label_set, [frames[is_good & (units == unit)] for unit in range(len(left))])
    return replace(kept, sorting=kept.sorting.rename_units(label_set.sorting.unit_ids))
