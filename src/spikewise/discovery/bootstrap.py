"""Labels where none are given: a sorter runs on the initial interval, and its doubtful units are dropped.

Rules, in this order; a unit is dropped by the first that it breaks, and the reason is kept:

1. too few spikes: fewer than ``bootstrap_min_spikes``;
2. refractory violations: more than ``bootstrap_max_violations`` of its inter-spike intervals are < 1.5 ms;
3. low amplitude: its mean waveform, over at most 200 spikes, peaks under ``bootstrap_min_amplitude``;
4. duplicate: it shares more than ``bootstrap_max_agreement`` of its spikes (tp / (tp + fp + fn), spikes match
   within 0.4 ms) with a unit of more spikes that is kept, or more than 0.8 of its own.

Between 3 and 4 each unit is aligned: where the main peak of its mean waveform (mostly the trough) lies within
1 ms of the sorter's spike times, all are moved by that distance, so that labels sit on the main peak.

Conventions: the sorter sees one segment, the initial interval, in which a sample index is a global frame.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import traceback
import typing
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.comparison.comparisontools import make_match_count_matrix
from spikeinterface.core import BaseRecording, BaseSorting, NumpySorting, concatenate_recordings
from spikeinterface.core.base import minimum_spike_dtype
from spikeinterface.sorters import installed_sorters, sorter_dict

from spikewise.core.config import Bootstrap as BootstrapSorter
from spikewise.core.config import BootstrapConfig
from spikewise.core.errors import BootstrapError
from spikewise.data.labels.label_set import (
    LabelSet,
    kept_spikes,
    make_sorting,
    mean_waveforms,
    segment_starts,
)
from spikewise.data.recordings.reader import TraceReader, Traces
from spikewise.discovery.other_sorters import last_line, run_quietly, sorter_parameters

logger = logging.getLogger(__name__)

MIN_INTERVAL_S = 2.0
REFRACTORY_MS = 1.5
COINCIDENCE_MS = 0.4
MAX_CONTAINED = 0.8
MAX_OFFSET_MS = 1.0
_WAVEFORM_SPIKES = 200
_WAVEFORM_RADIUS_MS = 2.0


@dataclass(frozen=True)
class Bootstrap:
    """Labels that a sorter made.

    Attributes
    ----------
    label_set : LabelSet
        The units that were kept, with ids 0 to n - 1 in the order of the position of their main channel (y,
        then x, then the sorter's order); the interval is the one that was sorted, from frame 0.
    sorter, sorter_version : str
        What made them.
    dropped : dict of str to dict
        Unit id of the sorter -> ``reason`` and the numbers behind it.
    num_found : int
        Number of units that the sorter found.
    seconds : float
        Wall time that the sorter took.
    """

    label_set: LabelSet
    sorter: str
    sorter_version: str
    dropped: dict[str, dict[str, Any]]
    num_found: int
    seconds: float


@dataclass(frozen=True)
class CleanedUnits:
    """Units after the rules, by their index in the sorter's result.

    Attributes
    ----------
    trains : dict of int to ndarray
        Global frames of each unit that is kept, aligned to its main peak.
    main_channels : dict of int to int
        Index of the channel on which each kept unit peaks.
    dropped : dict of str to dict
        Unit id of the sorter -> ``reason`` and the numbers behind it.
    """

    trains: dict[int, np.ndarray]
    main_channels: dict[int, int]
    dropped: dict[str, dict[str, Any]]


def bootstrap_labels(
    recording: BaseRecording,
    config: BootstrapConfig,
    preprocessed_recording: BaseRecording,
    seed: int,
    folder: str | Path,
    silenced_channel_ids: Sequence[str] = (),
) -> Bootstrap:
    """Sort the initial interval of a recording with another sorter, and keep its good units as labels.

    The sorter preprocesses by itself. Its parameters are its defaults but for :func:`sorter_parameters`.

    Parameters
    ----------
    recording : BaseRecording
        Raw recording of one group, with its probe.
    config : BootstrapConfig
        The sorter, the length of the interval, the limits of the rules.
    preprocessed_recording : BaseRecording
        The same channels and samples in units of the noise standard deviation.
    seed : int
        Seed of the sorter. Lupin, Tridesclous2 and SpyKING CIRCUS 2 give the same units at each run.
    folder : str or Path
        Where the sorter works, in a folder that is removed; ``bootstrap_<sorter>.log`` stays.
    silenced_channel_ids : sequence of str
        Channels that the sorter does not get.

    Raises
    ------
    BootstrapError
        If the sorter is not installed, fails or finds nothing, if the rules drop all that it found, or if
        the recording is shorter than 2 s.
    """
    sorter = config.bootstrap
    _check_installed(sorter)
    stop_frame = _interval_frames(recording, config.bootstrap_s)
    log_file = Path(folder) / f"bootstrap_{sorter}.log"
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=".bootstrap-", dir=folder) as scratch:
        interval = initial_interval(recording, stop_frame, silenced_channel_ids)
        if not interval.check_serializability("json"):  # the sorter reads it anew
            interval = interval.save(
                folder=Path(scratch) / "recording", n_jobs=1, progress_bar=False, verbose=False
            )
        found = _run_logged(sorter, interval, seed, Path(scratch) / "sorter", log_file)
    seconds = time.perf_counter() - started
    logger.info("%s found %d units in %.0f s", sorter, len(found.unit_ids), seconds)

    source = f"{sorter} on the first {stop_frame / recording.sampling_frequency:g} s"
    found_labels = _to_segments(found, recording, stop_frame, source)
    cleaned = clean_units(found_labels, TraceReader(preprocessed_recording), config)
    if not cleaned.trains:
        _refuse_nothing_left(sorter, cleaned.dropped, log_file)
    return Bootstrap(
        label_set=_renumber(cleaned, found_labels, preprocessed_recording),
        sorter=sorter,
        sorter_version=str(sorter_dict[sorter].get_sorter_version()),
        dropped=cleaned.dropped,
        num_found=len(found.unit_ids),
        seconds=seconds,
    )


def initial_interval(
    recording: BaseRecording, stop_frame: int, silenced_channel_ids: Sequence[str] = ()
) -> BaseRecording:
    """Return global frames 0 to `stop_frame` as one segment, without the silenced channels.

    Raises
    ------
    BootstrapError
        If every channel is silenced.
    """
    channel_ids = [
        channel_id for channel_id in recording.channel_ids if str(channel_id) not in silenced_channel_ids
    ]
    if not channel_ids:
        raise BootstrapError(
            "every channel of the recording is silenced", "at least one channel to sort", "keep some channels"
        )
    pieces: list[BaseRecording] = []
    left = stop_frame
    for segment_index in range(recording.get_num_segments()):
        length = min(left, recording.get_num_samples(segment_index))
        if length:
            pieces.append(recording.select_segments([segment_index]).frame_slice(0, length))
        left -= length
    whole = pieces[0] if len(pieces) == 1 else concatenate_recordings(pieces)
    return whole.select_channels(channel_ids)


def clean_units(found: LabelSet, traces: Traces, config: BootstrapConfig) -> CleanedUnits:
    """Apply the rules of this module to the units that a sorter found.

    Parameters
    ----------
    found : LabelSet
        The sorter's units over the interval.
    traces : Traces
        Preprocessed traces in noise standard deviations.
    config : BootstrapConfig
        The limits.
    """
    kept = kept_spikes(found, None)
    trains = {index: kept.global_frame[kept.unit_index == index] for index in range(len(kept.unit_ids))}
    dropped: dict[str, dict[str, Any]] = {}

    def drop(reasons: dict[int, dict[str, Any]]) -> None:
        for index, reason in reasons.items():
            dropped[str(kept.unit_ids[index])] = reason
            del trains[index]

    drop(_too_few_spikes(trains, config.bootstrap_min_spikes))
    drop(_refractory_violations(trains, traces.sampling_frequency, config.bootstrap_max_violations))
    if not trains:
        return CleanedUnits({}, {}, dropped)
    channels, offsets, peaks = _main_peaks(found, list(trains), traces)
    drop(_low_amplitude(trains, peaks, config.bootstrap_min_amplitude))
    for index, train in trains.items():
        trains[index] = _move(train, offsets[index], found)
    for reason in (duplicates := _duplicates(trains, traces.sampling_frequency, config)).values():
        reason["of"] = str(kept.unit_ids[reason["of"]])
    drop(duplicates)
    return CleanedUnits(trains, {index: channels[index] for index in trains}, dropped)


def _too_few_spikes(trains: dict[int, np.ndarray], least: int) -> dict[int, dict[str, Any]]:
    return {
        index: {"reason": "too few spikes", "num_spikes": len(train), "limit": least}
        for index, train in trains.items()
        if len(train) < least
    }


def _refractory_violations(
    trains: dict[int, np.ndarray], sampling_frequency: float, limit: float
) -> dict[int, dict[str, Any]]:
    fractions = {
        index: float(np.mean(np.diff(train) < REFRACTORY_MS * sampling_frequency / 1000))
        for index, train in trains.items()
    }
    return {
        index: {"reason": "refractory violations", "fraction": fraction, "limit": limit}
        for index, fraction in fractions.items()
        if fraction > limit
    }


def _low_amplitude(
    trains: dict[int, np.ndarray], peaks: dict[int, float], limit: float
) -> dict[int, dict[str, Any]]:
    return {
        index: {"reason": "low amplitude", "amplitude": peaks[index], "limit": limit}
        for index in trains
        if peaks[index] < limit
    }


def _duplicates(
    trains: dict[int, np.ndarray], sampling_frequency: float, config: BootstrapConfig
) -> dict[int, dict[str, Any]]:
    """Return the units that share their spikes with a larger unit that is kept."""
    indices = sorted(trains, key=lambda index: (-len(trains[index]), index))
    sorting = NumpySorting.from_unit_dict({index: trains[index] for index in indices}, sampling_frequency)
    delta = int(COINCIDENCE_MS * sampling_frequency / 1000)
    shared = make_match_count_matrix(sorting, sorting, delta, ensure_symmetry=True).to_numpy()
    sizes = np.array([len(trains[index]) for index in indices])
    reasons: dict[int, dict[str, Any]] = {}
    for small, index in enumerate(indices):
        for large, larger in enumerate(indices[:small]):
            common = min(int(shared[small, large]), sizes[small])
            agreement = common / (sizes[small] + sizes[large] - common)
            contained = common / sizes[small]
            if larger not in reasons and (
                agreement > config.bootstrap_max_agreement or contained > MAX_CONTAINED
            ):
                reasons[index] = {
                    "reason": "duplicate",
                    "of": larger,
                    "agreement": float(agreement),
                    "limit": config.bootstrap_max_agreement,
                    "contained": float(contained),
                }
                break
    return reasons


def _main_peaks(
    found: LabelSet, indices: list[int], traces: Traces
) -> tuple[dict[int, int], dict[int, int], dict[int, float]]:
    """Return main channel, samples from the sorter's time to the main peak, and amplitude, of some units.

    The distance is 0 where the peak lies further than 1 ms away.
    """
    some = replace(found, sorting=found.sorting.select_units(found.sorting.unit_ids[indices]))
    sizes = np.abs(mean_waveforms(some, traces, _WAVEFORM_SPIKES, _WAVEFORM_RADIUS_MS))
    centre = sizes.shape[1] // 2
    farthest = round(MAX_OFFSET_MS * traces.sampling_frequency / 1000)
    channels, offsets, peaks = {}, {}, {}
    for index, size in zip(indices, sizes, strict=True):
        sample, channel = np.unravel_index(size.argmax(), size.shape)
        offset = int(sample) - centre
        channels[index], peaks[index] = int(channel), float(size.max())
        offsets[index] = offset if abs(offset) <= farthest else 0
    return channels, offsets, peaks


def _segment_of(frames: np.ndarray, starts: tuple[int, ...]) -> np.ndarray:
    return np.searchsorted(starts, frames, side="right") - 1


def _move(train: np.ndarray, offset: int, found: LabelSet) -> np.ndarray:
    """Move spikes by an offset; those that leave their segment or the interval are left out."""
    moved = train + offset
    stays = _segment_of(moved, found.segment_starts) == _segment_of(train, found.segment_starts)
    return moved[stays & (moved >= found.start_frame) & (moved < found.stop_frame)]


def _to_segments(found: BaseSorting, recording: BaseRecording, stop_frame: int, source: str) -> LabelSet:
    """Place the sorter's spikes, whose sample indices are global frames, in the recording's segments."""
    starts = segment_starts(recording)
    spikes = found.to_spike_vector()
    inside = (spikes["sample_index"] >= 0) & (spikes["sample_index"] < stop_frame)
    frames, units = spikes["sample_index"][inside], spikes["unit_index"][inside]
    sorting = _sorting_of(frames, units, found.unit_ids, starts, found.sampling_frequency)
    return LabelSet(sorting, 0, stop_frame, source, starts)


def _renumber(cleaned: CleanedUnits, found: LabelSet, recording: BaseRecording) -> LabelSet:
    """Return the kept units with ids from 0 in the order of the position of their main channel."""
    places = np.arange(recording.get_num_channels())[:, np.newaxis]
    if recording.has_channel_location():
        places = np.round(recording.get_channel_locations(), 3)  # so that equal heights are equal
    order = sorted(cleaned.trains, key=lambda index: (*places[cleaned.main_channels[index]][::-1], index))
    trains = [cleaned.trains[index] for index in order]
    units = np.repeat(np.arange(len(trains)), [len(train) for train in trains])
    frequency = found.sorting.sampling_frequency
    sorting = _sorting_of(
        np.concatenate(trains), units, np.arange(len(trains)), found.segment_starts, frequency
    )
    return replace(found, sorting=sorting)


def _sorting_of(
    frames: np.ndarray,
    unit_index: np.ndarray,
    unit_ids: np.ndarray,
    starts: tuple[int, ...],
    sampling_frequency: float,
) -> BaseSorting:
    spikes = np.zeros(len(frames), dtype=minimum_spike_dtype)
    spikes["segment_index"] = _segment_of(frames, starts)
    spikes["sample_index"] = frames - np.array(starts)[spikes["segment_index"]]
    spikes["unit_index"] = unit_index
    return make_sorting(spikes, sampling_frequency, unit_ids, len(starts))


def _check_installed(sorter: str) -> None:
    installed = [name for name in typing.get_args(BootstrapSorter) if name in installed_sorters()]
    if sorter not in installed:
        raise BootstrapError(
            f"the sorter {sorter} is not installed",
            f"installed: {', '.join(installed) or 'none'}",
            f"install {sorter}, choose another with bootstrap, or give labels",
        )


def _interval_frames(recording: BaseRecording, bootstrap_s: float) -> int:
    total = recording.get_total_samples()
    if total < MIN_INTERVAL_S * recording.sampling_frequency:
        raise BootstrapError(
            f"the recording lasts {total / recording.sampling_frequency:.3f} s",
            f"at least {MIN_INTERVAL_S:g} s, better 60 s, for a sorter to find units",
            "give a longer recording, or give labels",
        )
    return min(total, round(bootstrap_s * recording.sampling_frequency))


def _run_logged(
    sorter: str, recording: BaseRecording, seed: int, folder: Path, log_file: Path
) -> NumpySorting:
    """Run the sorter with its output in the log file."""
    parameters = sorter_parameters(sorter, recording, seed)
    version = sorter_dict[sorter].get_sorter_version()
    with log_file.open("a", encoding="utf-8") as log:
        log.write(f"{sorter} {version}, {recording}, parameters {json.dumps(parameters)}\n")
        try:
            found = run_quietly(sorter, recording, folder, parameters, seed, log)
        except Exception as error:  # a sorter can fail in any way
            log.write(traceback.format_exc())
            raise BootstrapError(
                f"{sorter} failed on the initial interval: {last_line(error)}",
                "a recording that the sorter can sort",
                f"read {log_file}, choose another sorter with bootstrap, or give labels",
            ) from error
    if not found.count_total_num_spikes():
        raise BootstrapError(
            f"{sorter} found no unit in the initial interval ({recording.get_total_duration():g} s)",
            "an interval with spikes",
            f"read {log_file}, sort a longer interval (bootstrap_s), choose another sorter, or give labels",
        )
    return found


def _refuse_nothing_left(sorter: str, dropped: dict[str, dict[str, Any]], log_file: Path) -> None:
    counts = Counter(reason["reason"] for reason in dropped.values())
    raise BootstrapError(
        f"all {len(dropped)} units that {sorter} found were dropped: "
        + ", ".join(f"{count} for {reason}" for reason, count in counts.items()),
        "at least one unit that keeps the rules",
        f"sort a longer interval (bootstrap_s), relax its limits, or give labels; the log is {log_file}",
    )
