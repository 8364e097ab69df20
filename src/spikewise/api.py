"""The Python interface: train, sort, evaluate, report, simulate. It takes and returns SpikeInterface objects.

Each function takes its settings as a :class:`spikewise.Config`, or as keyword options with the names
of the command's options: ``sort(recording, labels=truth, labels_per_unit=30, seed=1)``.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from pathlib import Path
from typing import Any, get_args

from spikeinterface.core import BaseRecording, BaseSorting

from spikewise.core.config import Bootstrap, EvaluationConfig, RecordingConfig, SimulationConfig
from spikewise.core.devices import describe_device
from spikewise.core.version import __version__
from spikewise.data.labels.label_files import LABEL_FORMATS
from spikewise.data.opening import open_recording, open_sorting
from spikewise.data.recordings import formats as recordings
from spikewise.data.recordings.preprocessing import split_groups
from spikewise.data.recordings.probes import catalogue_names
from spikewise.data.simulation.simulate import Simulation, simulate_recording
from spikewise.jobs.provenance import PACKAGES, describe_recording
from spikewise.jobs.sort import sort, train
from spikewise.jobs.validation import validate
from spikewise.output.matching import Performance, compare_sortings
from spikewise.output.report.reporting import Report, report
from spikewise.output.results.sorting_result import SortingResult, load_result
from spikewise.single_channel.files import SNIPPET_FORMATS

__all__ = ["Report", "SortingResult", "describe", "describe_installation", "evaluate", "load_recording"]
__all__ += ["load_result", "report", "simulate", "sort", "train", "validate"]

logger = logging.getLogger(__name__)


def load_recording(path: str | Path, config: RecordingConfig | None = None, **options: Any) -> BaseRecording:
    """Read a recording of any format, with its probe.

    Parameters
    ----------
    path : str or Path
        File or folder.
    config : RecordingConfig, optional
        Settings that the file does not contain, for example its sampling frequency or probe; or give single
        settings as keyword options.

    Returns
    -------
    BaseRecording

    Raises
    ------
    RecordingError, ProbeError
        If the recording cannot be read, or its channels have no positions.
    """
    config = config or RecordingConfig.from_dict(options)
    return open_recording(path, config)[0]


def evaluate(
    truth: BaseSorting | str | Path,
    sorting: BaseSorting | str | Path,
    *,
    recording: BaseRecording | str | Path | None = None,
    config: EvaluationConfig | None = None,
    **options: Any,
) -> Performance:
    """Compare a sorting with the true spikes.

    Parameters
    ----------
    truth, sorting : BaseSorting, str or Path
        The true spikes and the sorting to evaluate, or their paths.
    recording : BaseRecording, str or Path, optional
        The recording of both; needed only for formats that do not store the sampling frequency.
    config : EvaluationConfig, optional
        All settings; or give single ones as keyword options.

    Returns
    -------
    Performance
        Scores of each unit and pooled scores.
    """
    settings = config or EvaluationConfig.from_dict(options)
    opened = None if recording is None else open_recording(recording, RecordingConfig())[0]
    return compare_sortings(open_sorting(truth, opened), open_sorting(sorting, opened), settings)


def simulate(*, config: SimulationConfig | None = None, **options: Any) -> Simulation:
    """Simulate a recording with known spikes.

    Parameters
    ----------
    config : SimulationConfig, optional
        All settings; or give single ones as keyword options.

    Returns
    -------
    Simulation
        The recording, its true sorting, and facts about the simulation.
    """
    return simulate_recording(config or SimulationConfig.from_dict(options))


def describe_installation() -> dict[str, Any]:
    """Return what is installed, which device is used, and which formats can be read."""
    from spikeinterface.sorters import installed_sorters  # only here: it takes a second

    installed = {}
    for name in (
        *PACKAGES,
        "MEArec",
        "pynwb",
        "plotly",
        "spikeinterface-gui",
        "matplotlib",
        "PyWavelets",
        "scikit-fuzzy",
    ):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return {
        "spikewise": __version__,
        "python": platform.python_version(),
        **describe_device("auto"),
        "packages": installed,
        "bootstrap sorters": {
            name: "installed" if name in installed_sorters() else "not installed"
            for name in get_args(Bootstrap)
        },
        "recordings": recordings.readable_formats(),
        "labels": LABEL_FORMATS,
        "waveforms": SNIPPET_FORMATS,
        "probes": ", ".join(catalogue_names()),
    }


def describe(recording: BaseRecording | str | Path, config: RecordingConfig | None = None) -> dict[str, Any]:
    """Return facts about a recording: channels, duration, sampling frequency, groups."""
    opened, path = open_recording(recording, config or RecordingConfig())
    groups = split_groups(opened, "auto")
    return {
        **describe_recording(opened, path),
        "duration_s": round(opened.get_total_duration(), 3),
        "groups": {name: f"{part.get_num_channels()} channels" for name, part in groups.items()},
    }
