"""Moments of the recording: a few milliseconds of traces with the spikes found in them.

The first that is chosen is where the most units fire, each further one where the most units fire that were
not seen yet, so that a few moments show many units; when all were seen, it starts anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spikewise.data.recordings.reader import TraceReader
from spikewise.output.measures import UnitMeasures
from spikewise.output.result import StoredResult

MOMENT_MS = 50.0
MAX_CHANNELS = 12
MAX_MOMENTS = 16


@dataclass(frozen=True)
class Moment:
    """Traces of a short time and the spikes in it.

    Attributes
    ----------
    start_s : float
        Start, from the start of the recording, segments laid end to end.
    sampling_frequency : float
    traces : ndarray, shape (num_samples, num_channels)
        As the network sees them, in standard deviations of the noise.
    channel_ids : tuple of str
        The channels drawn: the main channels of the largest units that fire, from the top of the probe.
    spikes : list of (int, int, int)
        Sample of the stretch, position in `channel_ids` of the unit's main channel, and unit index.
    num_spikes : int
        Spikes of the group in this time; those whose main channel is not drawn are not in `spikes`.
    """

    start_s: float
    sampling_frequency: float
    traces: np.ndarray
    channel_ids: tuple[str, ...]
    spikes: list[tuple[int, int, int]]
    num_spikes: int


def choose_moments(
    result: StoredResult,
    units: list[UnitMeasures],
    readers: Mapping[str, TraceReader],
    interval_s: tuple[float, float] | None = None,
) -> list[Moment]:
    """Choose moments that show many units, and read them.

    Parameters
    ----------
    result : StoredResult
    units : list of UnitMeasures
        With waveforms.
    readers : mapping of str to TraceReader
        The preprocessed traces of each group.
    interval_s : (float, float), optional
        Where to look, from the start of the recording, segments laid end to end; default: everywhere.

    Returns
    -------
    list of Moment
        At most :data:`MAX_MOMENTS`, in order of time; empty if no unit fires there.

    Raises
    ------
    RecordingError
        If the traces cannot be read.
    """
    spikes = result.sorting.to_spike_vector()
    rate = result.sorting.sampling_frequency
    length = round(MOMENT_MS / 1000 * rate)
    offsets = np.cumsum([0, *result.num_samples])
    segment, step = spikes["segment_index"].astype(np.int64), spikes["sample_index"] // length
    inside = (step + 1) * length <= np.asarray(result.num_samples)[segment]
    if interval_s is not None:
        start = offsets[segment] + step * length
        inside &= (start >= interval_s[0] * rate) & (start + length <= interval_s[1] * rate)
    drawable = np.array([unit.main_channel is not None for unit in units], dtype=bool)
    inside &= drawable[spikes["unit_index"]]
    spikes, segment, step = spikes[inside], segment[inside], step[inside]
    if len(spikes) == 0:
        return []
    group = _group_index(units)[spikes["unit_index"]]
    place = (segment * (1 + step.max()) + step) * (1 + group.max()) + group
    moments = []
    for chosen in sorted(_choose_places(place, spikes["unit_index"].astype(np.int64))):
        rows = np.flatnonzero(place == chosen)
        first = rows[0]
        start = int(step[first]) * length
        reader = readers[units[spikes["unit_index"][first]].group.name]
        traces = reader.read(int(segment[first]), start, start + length)
        found = [(int(spike["sample_index"]) - start, int(spike["unit_index"])) for spike in spikes[rows]]
        start_s = (int(offsets[segment[first]]) + start) / rate
        moments.append(_with_main_channels(found, traces, units, rate, start_s))
    return moments


def _choose_places(place: np.ndarray, unit_index: np.ndarray) -> list[int]:
    """Return the places, each where the most units fire that no earlier one shows.

    Of equal places the one with the most spikes is taken, of these the first.
    """
    places, index = np.unique(place, return_inverse=True)
    num_units = int(unit_index.max()) + 1
    pairs = np.unique(index * num_units + unit_index)
    where, who = pairs // num_units, pairs % num_units
    num_spikes = np.bincount(index)
    chosen: list[int] = []
    free = np.ones(len(places), dtype=bool)
    unseen = np.ones(num_units, dtype=bool)
    while len(chosen) < min(MAX_MOMENTS, len(places)):
        new = np.bincount(where[unseen[who]], minlength=len(places))
        if not new[free].any():
            unseen[:] = True
            continue
        best = int(np.where(free, new * (1 + num_spikes.max()) + num_spikes, -1).argmax())
        chosen.append(best)
        free[best] = False
        unseen[who[where == best]] = False
    return [int(places[best]) for best in chosen]


def _with_main_channels(
    spikes: list[tuple[int, int]],
    traces: np.ndarray,
    units: list[UnitMeasures],
    rate: float,
    start_s: float,
) -> Moment:
    """Keep the main channels of the units that fire, the largest units first, in the order of the probe."""
    main: dict[int, int] = {}
    size: dict[int, float] = {}
    for index in sorted({unit for _, unit in spikes}):
        channel = units[index].main_channel
        if channel is not None:
            main[index] = channel
            size[index] = units[index].snr or 0.0
    by_size = sorted(main, key=lambda index: -size[index])
    kept = list(dict.fromkeys(main[index] for index in by_size))[:MAX_CHANNELS]
    group = units[by_size[0]].group
    depth = np.asarray(group.channel_positions_um)[:, -1]
    kept.sort(key=lambda channel: (-depth[channel], channel))
    return Moment(
        start_s=start_s,
        sampling_frequency=rate,
        traces=traces[:, kept],
        channel_ids=tuple(group.channel_ids[channel] for channel in kept),
        spikes=[(f, kept.index(main[unit]), unit) for f, unit in spikes if main.get(unit) in kept],
        num_spikes=len(spikes),
    )


def _group_index(units: list[UnitMeasures]) -> np.ndarray:
    """Return the position of each unit's group among the groups, shape (num_units,)."""
    names = list(dict.fromkeys(unit.group.name for unit in units))
    return np.array([names.index(unit.group.name) for unit in units], dtype=np.int64)
