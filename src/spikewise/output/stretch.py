"""A few milliseconds of traces with the spikes found in them, chosen where the most units fire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spikewise.data.preprocessing import TraceReader
from spikewise.output.measures import UnitMeasures
from spikewise.output.result import StoredResult

STRETCH_MS = 50.0
MAX_CHANNELS = 10


@dataclass(frozen=True)
class Stretch:
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


def choose_stretch(
    result: StoredResult,
    units: list[UnitMeasures],
    readers: Mapping[str, TraceReader],
    interval_s: tuple[float, float] | None = None,
) -> Stretch | None:
    """Find the time in which the most units fire, and read it.

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
    Stretch or None
        None if no unit fires there.

    Raises
    ------
    RecordingError
        If the traces cannot be read.
    """
    spikes = result.sorting.to_spike_vector()
    rate = result.sorting.sampling_frequency
    length = round(STRETCH_MS / 1000 * rate)
    offsets = np.cumsum([0, *result.num_samples])
    segment, step = spikes["segment_index"].astype(np.int64), spikes["sample_index"] // length
    inside = (step + 1) * length <= np.asarray(result.num_samples)[segment]
    if interval_s is not None:
        start = offsets[segment] + step * length
        inside &= (start >= interval_s[0] * rate) & (start + length <= interval_s[1] * rate)
    spikes, segment, step = spikes[inside], segment[inside], step[inside]
    if len(spikes) == 0:
        return None
    group = _group_index(units)[spikes["unit_index"]]
    place = (group * len(result.num_samples) + segment) * (1 + step.max()) + step
    best = np.flatnonzero(place == _busiest(place, spikes["unit_index"]))
    first = best[0]
    start = int(step[first]) * length
    reader = readers[units[spikes["unit_index"][first]].group.name]
    traces = reader.read(int(segment[first]), start, start + length)
    found = [(int(spike["sample_index"]) - start, int(spike["unit_index"])) for spike in spikes[best]]
    return _with_main_channels(found, traces, units, rate, (int(offsets[segment[first]]) + start) / rate)


def _busiest(place: np.ndarray, unit_index: np.ndarray) -> int:
    """Return the place where the most different units fire, of these the most spikes, of these the first."""
    places, index = np.unique(place, return_inverse=True)
    num_all = int(unit_index.max()) + 1
    pairs = np.unique(index * num_all + unit_index)
    num_units = np.bincount(pairs // num_all)
    return int(places[np.lexsort((-np.bincount(index), -num_units))[0]])


def _with_main_channels(
    spikes: list[tuple[int, int]],
    traces: np.ndarray,
    units: list[UnitMeasures],
    rate: float,
    start_s: float,
) -> Stretch | None:
    """Keep the main channels of the units that fire, the largest units first, in the order of the probe."""
    main: dict[int, int] = {}
    size: dict[int, float] = {}
    for index in sorted({unit for _, unit in spikes}):
        waveform = units[index].waveform
        if waveform is not None and waveform.peaks.any():
            main[index] = int(waveform.main_channels(1)[0])
            size[index] = float(waveform.peaks.max())
    if not main:
        return None
    by_size = sorted(main, key=lambda index: -size[index])
    kept = list(dict.fromkeys(main[index] for index in by_size))[:MAX_CHANNELS]
    group = units[by_size[0]].group
    depth = np.asarray(group.channel_positions_um)[:, -1]
    kept.sort(key=lambda channel: (-depth[channel], channel))
    return Stretch(
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
