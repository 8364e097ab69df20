"""Short excerpts of the traces with the spikes found in them.

The first excerpt is the one in which the most units fire. Each further one is the one with the most units
that no earlier excerpt shows, so that a few excerpts show many units. When all units were shown, the choice
starts again with all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spikewise.data.recordings.reader import Traces
from spikewise.output.measures import UnitMeasures
from spikewise.output.result import StoredResult
from spikewise.output.samples import sampled_seconds

# All of these were chosen by hand.
EXCERPT_MS = 50.0
"""Length of an excerpt."""
MAX_CHANNELS = 12
"""Most channels that an excerpt shows."""
MAX_EXCERPTS = 16
"""Most excerpts in a report."""


@dataclass(frozen=True)
class Excerpt:
    """Traces of a short time on some channels, and the spikes in it.

    Attributes
    ----------
    start_s : float
        Start of the excerpt, from the start of the recording, segments laid end to end.
    sampling_frequency : float
    traces : ndarray, shape (num_samples, num_channels)
        Traces preprocessed as for the network, in standard deviations of the noise.
    group : str
        The group of channels.
    channel_index : tuple of int
        Indices of the channels in the group.
    channel_ids : tuple of str
        The channels: the main channels of the largest units that fire, from the top of the probe.
    spikes : list of (int, int, int)
        For each spike its sample in the excerpt, the index of its unit's main channel in `channel_ids`, and
        its unit index.
    num_spikes : int
        Number of all spikes of the group in this time. `spikes` lacks those on other main channels.
    """

    start_s: float
    sampling_frequency: float
    traces: np.ndarray
    group: str
    channel_index: tuple[int, ...]
    channel_ids: tuple[str, ...]
    spikes: list[tuple[int, int, int]]
    num_spikes: int


def choose_excerpts(
    result: StoredResult,
    units: list[UnitMeasures],
    readers: Mapping[str, Traces],
    interval_s: tuple[float, float] | None = None,
) -> list[Excerpt]:
    """Choose excerpts that show many units, and read their traces.

    Parameters
    ----------
    result : StoredResult
    units : list of UnitMeasures
        The measures, with waveforms.
    readers : mapping of str to Traces
        The preprocessed traces of each group.
    interval_s : (float, float), optional
        Time to choose from, in seconds from the start of the recording, segments laid end to end; by default
        the whole recording.

    Returns
    -------
    list of Excerpt
        At most :data:`MAX_EXCERPTS`, in order of time; empty if no unit fires.

    Raises
    ------
    RecordingError
        If the traces cannot be read.
    """
    drawable = np.array([unit.main_channel is not None for unit in units], dtype=bool)
    spikes, windows = _find_windows(result, drawable, interval_s)
    offsets, rate = np.cumsum([0, *result.num_samples]), result.sorting.sampling_frequency
    excerpts = []
    for name, segment, start, stop, rows in windows:
        traces = readers[name].read(segment, start, stop)
        found = [(int(spike["sample_index"]) - start, int(spike["unit_index"])) for spike in spikes[rows]]
        start_s = (int(offsets[segment]) + start) / rate
        excerpts.append(_with_main_channels(found, traces, units, rate, start_s))
    return excerpts


def excerpt_windows(
    result: StoredResult, interval_s: tuple[float, float] | None = None
) -> dict[str, list[tuple[int, int, int]]]:
    """Return segment, start and end of the excerpts of each group, if all units can be drawn."""
    drawable = np.ones(result.sorting.get_num_units(), dtype=bool)
    windows: dict[str, list[tuple[int, int, int]]] = {group.name: [] for group in result.model.groups}
    for name, *window, _ in _find_windows(result, drawable, interval_s)[1]:
        windows[name].append((window[0], window[1], window[2]))
    return windows


_Window = tuple[str, int, int, int, np.ndarray]
"""Group, segment, start, end, and the rows of the spikes."""


def _find_windows(
    result: StoredResult, drawable: np.ndarray, interval_s: tuple[float, float] | None
) -> tuple[np.ndarray, list[_Window]]:
    """Return spikes, and the windows that are chosen, in order of time; `drawable` is (num_units,)."""
    spikes = result.sorting.to_spike_vector()
    rate = result.sorting.sampling_frequency
    length = round(EXCERPT_MS / 1000 * rate)
    offsets = np.cumsum([0, *result.num_samples])
    segment, step = spikes["segment_index"].astype(np.int64), spikes["sample_index"] // length
    inside = (step + 1) * length <= np.asarray(result.num_samples)[segment]
    if interval_s is not None:
        start = offsets[segment] + step * length
        inside &= (start >= interval_s[0] * rate) & (start + length <= interval_s[1] * rate)
    inside &= drawable[spikes["unit_index"]]
    inside &= _in_read_seconds(result, spikes, inside)
    spikes, segment, step = spikes[inside], segment[inside], step[inside]
    if len(spikes) == 0:
        return spikes, []
    names = [group.name for group in result.model.groups]
    units_of = [len(group.unit_ids) for group in result.model.groups]
    group = np.repeat(np.arange(len(names)), units_of)[spikes["unit_index"]]
    window = (segment * (1 + step.max()) + step) * (1 + group.max()) + group
    windows: list[_Window] = []
    for chosen in sorted(_choose_windows(window, spikes["unit_index"].astype(np.int64))):
        rows = np.flatnonzero(window == chosen)
        start = int(step[rows[0]]) * length
        windows.append((names[group[rows[0]]], int(segment[rows[0]]), start, start + length, rows))
    return spikes, windows


def _in_read_seconds(result: StoredResult, spikes: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return which spikes lie in seconds that are read anyway, or are of units that do not fire there."""
    seconds = sampled_seconds(result)
    width = round(result.sorting.sampling_frequency)
    number = spikes["sample_index"] // width
    most = 1 + int(number.max(initial=0))
    read = [segment * most + start // width for segment, start, _ in seconds]
    is_read = np.isin(spikes["segment_index"] * most + number, read)
    without = np.bincount(spikes["unit_index"][inside & is_read], minlength=result.sorting.get_num_units())
    return is_read | (without == 0)[spikes["unit_index"]]


def _choose_windows(window: np.ndarray, unit_index: np.ndarray) -> list[int]:
    """Choose windows in which many units fire that no earlier window shows.

    Of equally good windows the one with the most spikes is chosen, and of these the first.

    Parameters
    ----------
    window, unit_index : ndarray of int
        (num_spikes,) number of the window that each spike lies in, and its unit.

    Returns
    -------
    list of int
        Numbers of the chosen windows, in the order of the choice.
    """
    windows, index = np.unique(window, return_inverse=True)
    num_units = int(unit_index.max()) + 1
    pairs = np.unique(index * num_units + unit_index)
    pair_window, pair_unit = pairs // num_units, pairs % num_units
    num_spikes = np.bincount(index)
    chosen: list[int] = []
    free = np.ones(len(windows), dtype=bool)
    unseen = np.ones(num_units, dtype=bool)
    while len(chosen) < min(MAX_EXCERPTS, len(windows)):
        new = np.bincount(pair_window[unseen[pair_unit]], minlength=len(windows))
        if not new[free].any():
            unseen[:] = True
            continue
        best = int(np.where(free, new * (1 + num_spikes.max()) + num_spikes, -1).argmax())
        chosen.append(best)
        free[best] = False
        unseen[pair_unit[pair_window == best]] = False
    return [int(windows[best]) for best in chosen]


def _with_main_channels(
    spikes: list[tuple[int, int]],
    traces: np.ndarray,
    units: list[UnitMeasures],
    rate: float,
    start_s: float,
) -> Excerpt:
    """Return an excerpt of the main channels of the largest units that fire, ordered by depth.

    `spikes` are (sample, unit index); `traces` hold all channels of the group.
    """
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
    return Excerpt(
        start_s=start_s,
        sampling_frequency=rate,
        traces=traces[:, kept],
        group=group.name,
        channel_index=tuple(kept),
        channel_ids=tuple(group.channel_ids[channel] for channel in kept),
        spikes=[(f, kept.index(main[unit]), unit) for f, unit in spikes if main.get(unit) in kept],
        num_spikes=len(spikes),
    )
