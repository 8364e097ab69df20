"""Sources of single-channel sorting: the signal or the waveforms, and the labels that belong to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from spikeinterface.core import BaseSorting, NumpyRecording

from spikewise.core.config import RecordingConfig
from spikewise.core.errors import LabelsError, RecordingError, WaveformsError
from spikewise.data.labels.label_files import load_labels
from spikewise.data.labels.label_set import check_labels
from spikewise.data.recordings.clock import with_checked_clock
from spikewise.data.recordings.formats import load_recording
from spikewise.single_channel.config import SnippetsConfig
from spikewise.single_channel.files import RawChannel
from spikewise.single_channel.labelling import is_unit
from spikewise.single_channel.raw_channel import load_raw_channel
from spikewise.single_channel.snippets import Snippets, load_snippets

Source = str | Path | RawChannel | Snippets

_ARRAY_FILES = (".mat", ".npz", ".npy", ".csv", ".tsv", ".txt")
"""Endings of files that hold a signal or waveforms as plain arrays."""
_MOST_NAMED = 20
"""Channel ids that an error message lists at most."""


def open_source(source: Source, reading: RecordingConfig, channel: str | None) -> RawChannel | Snippets:
    """Open a signal or waveforms.

    Parameters
    ----------
    source : str, Path, RawChannel or Snippets
        A file of arrays or any recording; what is already open is returned.
    reading : RecordingConfig
        What the file does not hold itself.
    channel : str or None
        Id of the channel of a recording; None for its only one.

    Raises
    ------
    WaveformsError, RecordingError
        If the file cannot be read, or the recording has several channels and none of them was chosen.
    """
    if isinstance(source, RawChannel | Snippets):
        return source
    path = Path(source)
    arrays = SnippetsConfig(sampling_frequency=reading.sampling_frequency)
    if path.is_file() and path.suffix.lower() in _ARRAY_FILES and channel is None:
        try:
            return load_raw_channel(path, arrays)
        except WaveformsError as not_a_channel:
            try:
                return load_snippets(path, arrays)
            except WaveformsError:
                if path.suffix.lower() not in (".npz", ".npy"):
                    raise not_a_channel from None
    return _channel_of_recording(path, reading, channel)


def _channel_of_recording(path: Path, reading: RecordingConfig, chosen: str | None) -> RawChannel:
    """Return the chosen channel of a recording, or its only one."""
    recording = with_checked_clock(load_recording(path, reading), reading.clock)
    names = [str(channel_id) for channel_id in recording.channel_ids]
    is_only = chosen is None and len(names) == 1
    if recording.get_num_segments() > 1 or not (is_only or chosen in names):
        requested = "" if chosen is None else f", and channel {chosen!r} was requested"
        raise RecordingError(
            f"the recording has {recording.get_num_segments()} segments and the channels "
            f"{', '.join(names[:_MOST_NAMED])}{' ...' if len(names) > _MOST_NAMED else ''}{requested}",
            "one segment, and one of its channels",
            "choose one with --channel, or sort them together with: spikewise sort",
        )
    channel_id = recording.channel_ids[0 if chosen is None else names.index(chosen)]
    signal = recording.get_traces(channel_ids=[channel_id])[:, 0].astype(np.float32)
    return RawChannel(signal, float(recording.get_sampling_frequency()), recording=recording)


def read_labels(
    source: Source, labels: BaseSorting | str | Path, channel: RawChannel
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sample index and the unit id of each label.

    Labels with the path of the source are the spikes that its file holds.

    Raises
    ------
    LabelsError
        If the labels cannot be used, or the file holds no spikes.
    """
    both_are_paths = isinstance(labels, str | Path) and isinstance(source, str | Path)
    if both_are_paths and Path(str(labels)).absolute() == Path(str(source)).absolute():
        if channel.sample_index is None or channel.labels is None:
            raise LabelsError(
                f"the file {source} holds a signal without spikes",
                "a file that holds both",
                "give labels in a file of their own",
            )
        known = is_unit(channel.labels)
        return channel.sample_index[known], channel.labels[known]
    recording = channel.recording or NumpyRecording([channel.signal[:, None]], channel.sampling_frequency)
    sorting = (
        check_labels(labels, recording) if isinstance(labels, BaseSorting) else load_labels(labels, recording)
    )
    vector = sorting.to_spike_vector()
    return vector["sample_index"].astype(np.int64), np.asarray(sorting.unit_ids)[vector["unit_index"]]
