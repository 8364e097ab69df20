"""Labels where none are given: another sorter sorts the initial interval, and its good units are kept.

:mod:`spikewise.discovery.unit_rules` drops the doubtful units. The sorter sees the initial interval as one
segment, in which a sample index is a global frame.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.core import BaseRecording, BaseSorting, NumpySorting, concatenate_recordings
from spikeinterface.sorters import installed_sorters, sorter_dict

from spikewise.core.config import Bootstrap as BootstrapSorter
from spikewise.core.config import BootstrapConfig
from spikewise.core.errors import BootstrapError
from spikewise.data.labels.label_set import LabelSet, relabelled, segment_starts, sorting_of_frames
from spikewise.data.recordings.reader import TraceReader
from spikewise.discovery.other_sorters import last_line, run_quietly, sorter_parameters
from spikewise.discovery.unit_rules import CleanedUnits, clean_units

logger = logging.getLogger(__name__)

MIN_INTERVAL_S = 2.0
"""Shortest recording that is given to a sorter; chosen by hand."""


_PEAK_NOISE = 5.0
"""Height of a peak that may be a spike, in standard deviations of the noise."""
_FEWEST_PEAKS_HZ = 1.0
"""With fewer such peaks per second, a failure of the sorter is one for lack of spikes; chosen by hand."""


@dataclass(frozen=True)
class Bootstrap:
    """Labels that another sorter made.

    Attributes
    ----------
    label_set : LabelSet
        The units that were kept. Their ids are 0 to n - 1 in the order of the position of their main channel
        (y, then x, then the sorter's order). The interval is the sorted one, from frame 0.
    sorter, sorter_version : str
        Name and version of the sorter.
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


def bootstrap_labels(
    recording: BaseRecording,
    config: BootstrapConfig,
    preprocessed_recording: BaseRecording,
    seed: int,
    folder: str | Path,
    silenced_channel_ids: Sequence[str] = (),
) -> Bootstrap:
    """Sort the initial interval of a recording with another sorter, and keep its good units as labels.

    The sorter does its own preprocessing. Its parameters are its defaults, except those of
    :func:`sorter_parameters`.

    Parameters
    ----------
    recording : BaseRecording
        Raw recording of one group, with its probe.
    config : BootstrapConfig
        The sorter, the length of the interval, and the limits of the rules.
    preprocessed_recording : BaseRecording
        The same channels and samples in units of the noise standard deviation.
    seed : int
        Seed of the sorter. Lupin, Tridesclous2 and SpyKING CIRCUS 2 give the same units at each run.
    folder : str or Path
        The sorter works in a temporary folder here; its log ``bootstrap_<sorter>.log`` stays.
    silenced_channel_ids : sequence of str
        Channels that are hidden from the sorter.

    Raises
    ------
    BootstrapError
        If the sorter is not installed, fails or finds nothing, if the rules drop all its units, or if the
        recording is shorter than MIN_INTERVAL_S.
    """
    sorter = config.bootstrap
    _check_installed(sorter)
    stop_frame = _interval_frames(recording, config.bootstrap_s)
    log_file = Path(folder) / f"bootstrap_{sorter}.log"
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=".bootstrap-", dir=folder) as scratch:
        interval = initial_interval(recording, stop_frame, silenced_channel_ids)
        if not interval.check_serializability("json"):  # the sorter loads it again from its description
            interval = interval.save(
                folder=Path(scratch) / "recording", n_jobs=1, progress_bar=False, verbose=False
            )
        try:
            found = _run_logged(sorter, interval, seed, Path(scratch) / "sorter", log_file)
        except BootstrapError as error:
            _refuse_silence(preprocessed_recording, stop_frame, log_file, error)
            raise
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


def _to_segments(found: BaseSorting, recording: BaseRecording, stop_frame: int, source: str) -> LabelSet:
    """Move the sorter's spikes, whose sample indices are global frames, to the recording's segments."""
    starts = segment_starts(recording)
    spikes = found.to_spike_vector()
    inside = (spikes["sample_index"] >= 0) & (spikes["sample_index"] < stop_frame)
    frames, units = spikes["sample_index"][inside], spikes["unit_index"][inside]
    sorting = sorting_of_frames(frames, units, found.unit_ids, starts, found.sampling_frequency)
    return LabelSet(sorting, 0, stop_frame, source, starts)


def _renumber(cleaned: CleanedUnits, found: LabelSet, recording: BaseRecording) -> LabelSet:
    """Return the kept units with ids from 0 in the order of the position of their main channel."""
    positions = np.arange(recording.get_num_channels())[:, np.newaxis]
    if recording.has_channel_location():
        positions = np.round(recording.get_channel_locations(), 3)  # no order by rounding errors
    order = sorted(cleaned.trains, key=lambda index: (*positions[cleaned.main_channels[index]][::-1], index))
    return relabelled(found, [cleaned.trains[index] for index in order])


def _check_installed(sorter: str) -> None:
    others = [name for name in typing.get_args(BootstrapSorter) if name != "spikewise"]
    installed = [name for name in others if name in installed_sorters()]
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


def _refuse_silence(recording: BaseRecording, stop_frame: int, log_file: Path, error: BootstrapError) -> None:
    """Raise, where hardly a peak rises above the noise; else a sorter failed for another reason."""
    reader = TraceReader(recording)
    num_peaks, num_samples = 0, 0
    for segment_index in range(recording.get_num_segments()):
        stop = min(stop_frame - num_samples, recording.get_num_samples(segment_index))
        for start in range(0, stop, round(recording.sampling_frequency)):
            end = min(stop, start + round(recording.sampling_frequency))
            over = (np.abs(reader.read(segment_index, start, end)) > _PEAK_NOISE).any(axis=1)
            num_peaks += int(np.count_nonzero(np.diff(over.astype(np.int8), prepend=0) == 1))
        num_samples += max(0, stop)
    seconds = num_samples / recording.sampling_frequency
    if num_peaks < _FEWEST_PEAKS_HZ * seconds:
        raise BootstrapError(
            f"there are hardly any spikes in the initial interval: in {seconds:.3g} s, {num_peaks} peaks are "
            f"higher than {_PEAK_NOISE:g} standard deviations of the noise",
            f"an interval in which neurons fire, at least {_FEWEST_PEAKS_HZ:g} such peaks per second",
            "check channels, stream and filter; sort a longer interval (bootstrap_s), or give labels; "
            f"the log is {log_file}",
        ) from error


def _refuse_nothing_left(sorter: str, dropped: dict[str, dict[str, Any]], log_file: Path) -> None:
    counts = Counter(reason["reason"] for reason in dropped.values())
    raise BootstrapError(
        f"all {len(dropped)} units that {sorter} found were dropped: "
        + ", ".join(f"{count} for {reason}" for reason, count in counts.items()),
        "at least one unit that fulfils the rules",
        f"sort a longer interval (bootstrap_s), relax its limits, or give labels; the log is {log_file}",
    )
