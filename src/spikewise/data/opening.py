"""What the public functions take: an object, or where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spikeinterface.core import BaseRecording, BaseSorting

from spikewise.core.config import Config, RecordingConfig
from spikewise.core.devices import choose_device
from spikewise.core.errors import LabelsError, RecordingError, SettingError
from spikewise.data.labels.label_files import load_labels, load_sorting
from spikewise.data.labels.label_set import check_labels
from spikewise.data.recordings.formats import load_recording
from spikewise.data.recordings.probes import attach_probe


def settings_from(config: Config | None, options: dict[str, Any]) -> Config:
    """Return the settings given as an object or one by one, and check that their device is there."""
    if config is not None and options:
        raise SettingError(
            f"both config and the options {', '.join(options)} are given", "one of them", "leave one out"
        )
    config = config if config is not None else Config.from_options(**options)
    choose_device(config.sorting.device)  # a device that is not there is told before any work
    return config


def open_recording(
    recording: BaseRecording | str | Path, config: RecordingConfig
) -> tuple[BaseRecording, str | None]:
    """Return the recording with its probe, and where it came from."""
    if isinstance(recording, str | Path):
        return attach_probe(load_recording(recording, config), config.probe), str(recording)
    if not isinstance(recording, BaseRecording):
        raise RecordingError(
            f"the recording is a {type(recording).__name__}",
            "a SpikeInterface recording, or a path",
            "read it with spikewise.load_recording or spikeinterface first",
        )
    return attach_probe(recording, config.probe), None


def open_labels(
    labels: BaseSorting | str | Path | None, recording: BaseRecording
) -> tuple[BaseSorting | None, str]:
    """Return the labels, checked against their recording, and where they came from."""
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
    """Return a sorting, read if it is a path."""
    if isinstance(sorting, BaseSorting):
        return sorting
    return load_sorting(sorting, recording)
