"""Estimate how the tissue moves along the probe, over the whole recording, without knowing the units.

1. Parts of the recording, evenly spread, are searched for events, a few at a time, so that the memory does
   not grow with the recording (:mod:`spikewise.discovery.event_search`).
2. Each event gets a depth (:mod:`locating`).
3. The depths and sizes of all times are registered with each other: DREDge of SpikeInterface, non-rigid
   (Windolf et al., Nature Methods 2025).
4. Each half of the events is registered alone. Where the halves disagree, there is no motion to follow.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from spikeinterface.core import NumpyRecording
from spikeinterface.core.motion import Motion

from spikewise.core.progress import MOTION, ProgressCallback, silent
from spikewise.core.threads import one_thread_each
from spikewise.data.recordings.reader import TraceReader
from spikewise.discovery.event_search import Events, EventSearch, FirstLook
from spikewise.discovery.held_traces import HeldTraces, Part, cut_traces
from spikewise.discovery.motion.locating import locate_events
from spikewise.discovery.neighbours import distances
from spikewise.discovery.spike_shapes import load_shapes

logger = logging.getLogger(__name__)

# Chosen by hand on the scenes `drift60` and `jump40` of seed 1.
PART_S = 0.5
"""Length of a part that is searched."""
SHARE = 0.5, 0.125
"""Largest share of a recording that is searched: of a short one, and of a long one."""
SHORT_S = 90.0
"""A share may always be so long, for 128 channels; with more channels it is shorter."""
THRESHOLD = 6.0
"""Smallest response of an event, in noise standard deviations."""
MIN_SIZE = 6.0
"""Smallest size of an event, from its lowest to its highest value, in noise standard deviations."""
MIN_CHANNELS = 32
"""With fewer channels nothing is estimated."""
MIN_SPAN_UM = 200.0
"""On a shorter probe nothing is estimated."""
MIN_BINS = 20
"""In a shorter recording nothing is estimated."""
MIN_EVENTS = 20
"""Fewest events for each bin of time, in the mean."""
BIN_UM = 5.0
"""Bins of depth of the registration."""
MOST_BINS = 1000
"""Most bins of time: the registration compares each with each."""
MIN_RANGE_UM = 4.0
"""A smaller motion is not followed: networks tolerate it."""
MIN_AGREEMENT = 0.8
"""Smallest correlation of the motions of the halves."""
_MEMORY_BYTES = 2**28
"""Traces of the parts that are searched together."""


@dataclass(frozen=True)
class MotionEstimate:
    """A motion, and whether it is real.

    Attributes
    ----------
    motion : Motion or None
        None: there is nothing to follow.
    uncertainty_um : list of ndarray
        For each segment half of the difference of the two halves, of the shape of the displacement.
    facts : dict
        Why, and in numbers; JSON types only.
    """

    motion: Motion | None
    uncertainty_um: list[np.ndarray]
    facts: dict[str, Any]


def may_move(reader: TraceReader, positions: np.ndarray, is_silent: np.ndarray) -> str | None:
    """Return why the motion of a recording cannot be estimated; None if it can."""
    good = positions[~is_silent]
    span = float(np.ptp(good[:, 1])) if len(good) else 0.0
    if len(good) < MIN_CHANNELS or span < MIN_SPAN_UM:
        return f"the probe has {len(good)} channels over {span:.0f} um, too few to see motion"
    if round(_total_s(reader) / _plan(reader)[1]) < MIN_BINS:
        return f"the recording has {_total_s(reader):.0f} s, too few to see motion"
    return None


def estimate_motion(
    reader: TraceReader,
    positions: np.ndarray,
    is_silent: np.ndarray,
    progress: ProgressCallback = silent,
    look: FirstLook | None = None,
) -> MotionEstimate:
    """Estimate the motion of a recording.

    Parameters
    ----------
    reader : TraceReader
        Preprocessed traces, in noise standard deviations.
    positions : ndarray, shape (num_channels, 2 or 3)
        Positions of the contacts in um; motion is along the second coordinate.
    is_silent : ndarray of bool, shape (num_channels,)
        Channels that are silenced.
    progress : callable
        Called after each batch of parts.
    look : FirstLook, optional
        The events of the whole recording; default: parts are searched now.
    """
    if reason := may_move(reader, positions, is_silent):
        return _none(reason)
    with one_thread_each():
        parts, bin_s = _plan(reader)
        if look is None:
            events = _find_events(reader, parts, positions, progress)
            searched_s = len(parts) * PART_S
        else:
            chosen = look.events.above(THRESHOLD)
            events = _located(look.held, chosen, distances(positions), positions)
            searched_s = look.held.seconds
        facts = {"bin_s": bin_s, "num_events": len(events), "searched_s": round(searched_s, 3)}
        if len(events) < MIN_EVENTS * round(_total_s(reader) / bin_s):
            return _none("too few events to see motion", **facts)
        whole, first, second = (
            _register(reader, positions, events[chosen], bin_s)
            for chosen in (slice(None), slice(0, None, 2), slice(1, None, 2))
        )
    return _decide(reader, whole, first, second, facts)


def _none(reason: str, **facts: Any) -> MotionEstimate:
    logger.info("motion is not followed: %s", reason)
    return MotionEstimate(None, [], {"followed": False, "reason": reason, **facts})


def _total_s(reader: TraceReader) -> float:
    samples = sum(reader.num_samples(index) for index in range(reader.num_segments))
    return samples / reader.sampling_frequency


def _plan(reader: TraceReader) -> tuple[list[Part], float]:
    """Return the parts that are searched, evenly spread, and the length of a bin of time in s."""
    total_s = _total_s(reader)
    longest = max(SHARE[1] * total_s, SHORT_S * min(1.0, 128 / reader.num_channels))
    share = min(SHARE[0], longest / total_s)
    bin_s = max(PART_S / share, total_s / MOST_BINS)
    parts = cut_traces(reader, max(1, round(PART_S * reader.sampling_frequency)))
    count = min(len(parts), max(1, round(total_s / bin_s)))
    chosen = (np.arange(count) + 0.5) * len(parts) / count
    return [parts[index] for index in np.unique(chosen.astype(int))], bin_s


def _find_events(
    reader: TraceReader, parts: list[Part], positions: np.ndarray, progress: ProgressCallback
) -> np.ndarray:
    """Return the events (num_events, 5) of some parts: global frame, channel, x, depth, size."""
    distance = distances(positions)
    shapes = load_shapes(reader.sampling_frequency)
    size = 2 * reader.num_channels * PART_S * reader.sampling_frequency
    batch = max(1, int(_MEMORY_BYTES / size))
    found, search = [], None
    traces = reader.with_blocks_of(PART_S)
    for start in range(0, len(parts), batch):
        held = HeldTraces(traces, parts=parts[start : start + batch])
        search = EventSearch(held, distance, shapes) if search is None else search.in_other(held)
        events = search.find(THRESHOLD)
        found.append(_located(held, events, distance, positions))
        progress(MOTION, min(start + batch, len(parts)), len(parts), f"{sum(map(len, found))} events")
    return np.concatenate(found)


def _located(held: HeldTraces, events: Events, distance: np.ndarray, positions: np.ndarray) -> np.ndarray:
    x, depth, size = locate_events(held, events, distance, positions)
    frames, inside = held.frames_of(np.rint(events.column).astype(np.int64))
    table = np.column_stack([frames, events.channel, x, depth, size])
    return table[inside & (size >= MIN_SIZE)]


def _register(reader: TraceReader, positions: np.ndarray, events: np.ndarray, bin_s: float) -> Motion:
    """Return the motion that SpikeInterface finds in events, its median over time subtracted."""
    from spikeinterface.sortingcomponents.motion import estimate_motion as register

    peaks = np.zeros(
        len(events),
        [("sample_index", "i8"), ("channel_index", "i8"), ("amplitude", "f8"), ("segment_index", "i8")],
    )
    peaks["sample_index"], peaks["channel_index"] = events[:, 0], events[:, 1]
    peaks["amplitude"] = -events[:, 4]
    places = np.zeros(len(events), [("x", "f8"), ("y", "f8")])
    places["x"], places["y"] = events[:, 2], events[:, 3]
    samples = sum(reader.num_samples(index) for index in range(reader.num_segments))
    # All segments, one after the other; nothing is read from it.
    nothing = np.broadcast_to(np.zeros(1, np.int16), (samples, len(positions)))
    recording = NumpyRecording([nothing], reader.sampling_frequency)
    recording.set_dummy_probe_from_locations(positions[:, :2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        motion = register(
            recording,
            peaks,
            places,
            method="dredge_ap",
            direction="y",
            rigid=False,
            bin_um=BIN_UM,
            bin_s=bin_s,
            progress_bar=False,
            device="cpu",
        )
    motion.displacement[0] = motion.displacement[0] - np.median(motion.displacement[0], axis=0)
    return motion


def _decide(
    reader: TraceReader, whole: Motion, first: Motion, second: Motion, facts: dict[str, Any]
) -> MotionEstimate:
    """Return the motion if it is large enough and both halves show it."""
    count = min(len(motion.displacement[0]) for motion in (whole, first, second))
    one, other, all_of = (motion.displacement[0][:count] for motion in (first, second, whole))
    moved = np.median([one, other, all_of], axis=0)
    spread = np.percentile(moved, 98, axis=0) - np.percentile(moved, 2, axis=0)
    agreement = _correlation(one, other)
    facts |= {"range_um": round(float(spread.max()), 1), "agreement": round(agreement, 3)}
    if spread.max() < MIN_RANGE_UM:
        return _none(f"the tissue moves by {spread.max():.1f} um, which networks tolerate", **facts)
    if agreement < MIN_AGREEMENT:
        return _none("two halves of the events move differently, so the motion is chance", **facts)
    uncertainty = np.abs(one - other) / 2
    times = whole.temporal_bins_s[0][:count]
    displacements, bin_times, uncertainties, start_s = [], [], [], 0.0
    for segment in range(reader.num_segments):
        stop_s = start_s + reader.num_samples(segment) / reader.sampling_frequency
        inside = np.flatnonzero((times >= start_s) & (times < stop_s))
        if not len(inside):
            inside = np.array([np.argmin(np.abs(times - (start_s + stop_s) / 2))])
        displacements.append(moved[inside].astype(np.float64))
        bin_times.append(times[inside] - start_s)
        uncertainties.append(uncertainty[inside])
        start_s = stop_s
    motion = Motion(displacements, bin_times, np.asarray(whole.spatial_bins_um, float), "y")
    logger.info(
        "motion: the tissue moves by %.1f um; halves of the events agree by %.2f", spread.max(), agreement
    )
    return MotionEstimate(motion, uncertainties, {"followed": True, "reason": "it moves", **facts})


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two motions over times and depths, each depth without its mean."""
    a, b = one - one.mean(axis=0), other - other.mean(axis=0)
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size > 0 else 0.0
