"""Open the inputs of the public functions: each is an object or a path."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeinterface.core import BaseRecording, BaseSorting
from spikeinterface.core.core_tools import extractor_dict_iterator

from spikewise.core.config import Config, RecordingConfig
from spikewise.core.devices import choose_device
from spikewise.core.errors import LabelsError, RecordingError, SettingError
from spikewise.data.labels.label_files import load_labels, load_sorting
from spikewise.data.labels.label_set import check_labels
from spikewise.data.recordings.channels import SilencedRecording
from spikewise.data.recordings.clock import TimedRecording, with_checked_clock
from spikewise.data.recordings.formats import load_recording
from spikewise.data.recordings.probes import attach_probe

_MAX_FILES = 1000
"""Most files of a recording that are looked at; chosen by hand."""


def settings_from(config: Config | None, options: dict[str, Any]) -> Config:
    """Return the settings, given as an object or one by one, and check that their device exists."""
    if config is not None and options:
        raise SettingError(
            f"both config and the options {', '.join(options)} are given", "one of them", "leave one out"
        )
    config = config if config is not None else Config.from_options(**options)
    choose_device(config.sorting.device)  # a missing device is reported before any work
    return config


def open_recording(
    recording: BaseRecording | str | Path, config: RecordingConfig
) -> tuple[BaseRecording, str | None]:
    """Return the recording with its probe, and its path; None for an object."""
    if isinstance(recording, str | Path):
        return _prepared(load_recording(recording, config), config), str(recording)
    if not isinstance(recording, BaseRecording):
        raise RecordingError(
            f"the recording is a {type(recording).__name__}",
            "a SpikeInterface recording, or a path",
            "read it with spikewise.load_recording or spikeinterface first",
        )
    return _prepared(recording, config), None


def _prepared(recording: BaseRecording, config: RecordingConfig) -> BaseRecording:
    """Return the recording with its probe and a clock that can be used."""
    return with_checked_clock(attach_probe(recording, config.probe), config.clock)


@dataclass(frozen=True)
class Inputs:
    """A recording and its labels, opened and checked.

    Attributes
    ----------
    recording : BaseRecording
        With its probe.
    path : str or None
        Its path, if it was read from one.
    labels : BaseSorting or None
    label_source : str
        Where the labels came from.
    """

    recording: BaseRecording
    path: str | None
    labels: BaseSorting | None
    label_source: str


def open_inputs(
    recording: BaseRecording | str | Path, labels: BaseSorting | str | Path | None, config: RecordingConfig
) -> Inputs:
    """Open a recording and its labels, if there are any.

    Raises
    ------
    SpikewiseError
        If one of them cannot be used.
    """
    opened, path = open_recording(recording, config)
    return Inputs(opened, path, *open_labels(labels, opened))


def open_labels(
    labels: BaseSorting | str | Path | None, recording: BaseRecording
) -> tuple[BaseSorting | None, str]:
    """Return the labels, checked against their recording, and their source in words."""
    if labels is None:
        return None, "none"
    if isinstance(labels, str | Path):
        return load_labels(labels, recording), str(labels)
    if not isinstance(labels, BaseSorting):
        raise LabelsError(
            f"the labels are a {type(labels).__name__}", "a SpikeInterface sorting, or a path", "convert them"
        )
    return check_labels(labels, recording), "sorting object"


def files_of(recording: BaseRecording) -> list[str]:
    """Return the files that a recording is read from, and those in its folders; none for one in memory."""
    if not recording.check_serializability("json"):
        return []
    files: set[str] = set()
    for element in extractor_dict_iterator(recording.to_dict(recursive=True)):
        value = element.value
        if not isinstance(value, str | Path) or not os.path.isabs(value):
            continue
        if os.path.isfile(value):
            files.add(str(value))
        elif os.path.isdir(value):
            files |= {entry.path for entry in os.scandir(value) if entry.is_file()}
    return sorted(files)[:_MAX_FILES]


def recording_in_file(recording: BaseRecording, file: Path) -> BaseRecording:
    """Return a recording as its file describes it, without the probe and the clock that were set later.

    A recording that is not read from the file comes back as it is.
    """
    if not any(file.samefile(one) for one in files_of(recording)):
        return recording
    while isinstance(recording, SilencedRecording | TimedRecording):
        recording = recording.get_parent()
    return recording


def open_sorting(sorting: BaseSorting | str | Path, recording: BaseRecording | None) -> BaseSorting:
    """Return a sorting; a path is read."""
    if isinstance(sorting, BaseSorting):
        return sorting
    return load_sorting(sorting, recording)
