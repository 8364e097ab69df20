"""Open the inputs of the public functions: each is an object or a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeinterface.core import BaseRecording, BaseSorting

from spikewise.core.config import Config, RecordingConfig
from spikewise.core.devices import choose_device
from spikewise.core.errors import LabelsError, RecordingError, SettingError
from spikewise.data.labels.label_files import load_labels, load_sorting
from spikewise.data.labels.label_set import check_labels
from spikewise.data.recordings.clock import with_checked_clock
from spikewise.data.recordings.formats import load_recording
from spikewise.data.recordings.probes import attach_probe


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


def open_sorting(sorting: BaseSorting | str | Path, recording: BaseRecording | None) -> BaseSorting:
    """Return a sorting; a path is read."""
    if isinstance(sorting, BaseSorting):
        return sorting
    return load_sorting(sorting, recording)
