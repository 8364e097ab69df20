"""The Python interface: train, sort, evaluate, simulate. SpikeInterface objects in and out.

Each function takes its settings either as a :class:`spikewise.core.config.Config` or as keyword options by their
flat names, which are those of the command: ``sort(recording, labels=truth, labels_per_unit=30, seed=1)``.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from spikeinterface.core import BaseRecording, BaseSorting
from spikeinterface.sorters import installed_sorters

from spikewise.core.config import Bootstrap, Config, EvaluationConfig, RecordingConfig, SimulationConfig
from spikewise.core.devices import threads_and_device
from spikewise.core.errors import SettingError
from spikewise.core.files import check_output_file, save_json
from spikewise.core.progress import ProgressCallback, silent
from spikewise.core.version import __version__
from spikewise.data.labels.label_files import LABEL_FORMATS
from spikewise.data.opening import open_labels, open_recording, open_sorting, settings_from
from spikewise.data.recordings import formats as recordings
from spikewise.data.recordings.preprocessing import split_groups
from spikewise.data.recordings.probes import attach_probe, catalogue_names
from spikewise.data.simulation.simulate import Simulation, simulate_recording
from spikewise.jobs.cluster import check_cluster
from spikewise.jobs.fingerprint import FileWatch, check_same_job, describe_job
from spikewise.jobs.log import log_to
from spikewise.jobs.merge import in_memory
from spikewise.jobs.sort_job import PACKAGES, Work, describe_recording, learn_model, run_sort
from spikewise.jobs.unfinished import Unfinished
from spikewise.learning.transfer import open_pretrained
from spikewise.models.checkpoint import Model, check_model_fits, load_model, save_model
from spikewise.output.matching import Performance, compare_sortings
from spikewise.output.report.reporting import Report, report, report_of_sort
from spikewise.output.result import load_result
from spikewise.output.store import (
    PROVENANCE_FILE,
    UNFINISHED_FOLDER,
    check_output,
    is_finished_result,
    load_sorting_folder,
    output_folder,
    save_sorting,
)
from spikewise.single_channel.files import SNIPPET_FORMATS

__all__ = ["Report", "SortingResult", "describe", "describe_installation", "evaluate", "load_recording"]
__all__ += ["report", "simulate", "sort", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SortingResult:
    """What a sort gives.

    Attributes
    ----------
    sorting : BaseSorting
        The spikes; unit ids are those of the labels.
    model : Model
        The model that found them.
    provenance : dict
        Settings, versions, hashes, seeds and timings; JSON types only.
    folder : Path or None
        Where it was written, if it was.
    """

    sorting: BaseSorting
    model: Model
    provenance: dict[str, Any]
    folder: Path | None = None


def load_recording(path: str | Path, config: RecordingConfig | None = None, **options: Any) -> BaseRecording:
    """Read a recording of any format, with its probe.

    Parameters
    ----------
    path : str or Path
        File or folder.
    config : RecordingConfig, optional
        What the file does not tell by itself; or give single settings as keyword options.

    Returns
    -------
    BaseRecording

    Raises
    ------
    RecordingError, ProbeError
        If it cannot be read, or its channels have no positions.
    """
    config = config or RecordingConfig.from_dict(options)
    return attach_probe(recordings.load_recording(path, config), config.probe)


def train(
    recording: BaseRecording | str | Path,
    labels: BaseSorting | str | Path | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    config: Config | None = None,
    progress: ProgressCallback = silent,
    **options: Any,
) -> Model:
    """Learn the units of a recording from labels.

    Parameters
    ----------
    recording : BaseRecording, str or Path
        The recording, with a probe, or where it is.
    labels : BaseSorting, str, Path or None
        Labelled spikes, or where they are; None lets a sorter of SpikeInterface make them from the first
        ``bootstrap_s`` seconds.
    output : str or Path, optional
        File to write the model to.
    overwrite : bool
        Whether a file there may be replaced.
    config : Config, optional
        All settings; or give single ones as keyword options.
    progress : callable, optional
        Told how far it is.

    Returns
    -------
    Model
        Ctrl-C ends training early and gives the best model so far; ``model.facts["interrupted"]`` tells.

    Raises
    ------
    SpikewiseError
        If recording, labels or settings cannot be used; the message says what to do.
    """
    config = settings_from(config, options)
    if output is not None:
        output = check_output_file(output, overwrite, ending=".safetensors")
    recording, _ = open_recording(recording, config.recording)
    labels, source = open_labels(labels, recording)
    with tempfile.TemporaryDirectory(prefix="spikewise-") as folder:
        model, _ = learn_model(recording, labels, source, config, Unfinished(Path(folder)), progress)
    if output is not None:
        save_model(model, output)
    return model


def sort(
    recording: BaseRecording | str | Path,
    *,
    labels: BaseSorting | str | Path | None = None,
    model: Model | str | Path | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    config: Config | None = None,
    progress: ProgressCallback = silent,
    **options: Any,
) -> SortingResult:
    """Sort a recording: with a model, or with one learnt from labels, or without either.

    With an output folder all that is finished is kept there while the work goes on: a sort that ended before
    its end goes on with `resume`, and gives the same spikes to the bit.

    Parameters
    ----------
    recording : BaseRecording, str or Path
        The recording, with a probe, or where it is.
    labels : BaseSorting, str, Path or None
        Labelled spikes of any interval; without labels and model a sorter makes them.
    model : Model, str, Path or None
        A trained model, or where it is.
    output : str or Path, optional
        Folder to write the result into, with a report (``report=False``: without).
    overwrite : bool
        Whether an earlier result there may be replaced.
    resume : bool
        Whether to go on with a sort that was not finished there; where there is none, it begins, and where it
        is finished, its result is returned.
    config : Config, optional
        All settings; or give single ones as keyword options.
    progress : callable, optional
        Told how far it is.

    Returns
    -------
    SortingResult

    Raises
    ------
    SpikewiseError
        If something that was given cannot be used; the message says what to do.
    Interrupted
        If Ctrl-C ended the training; the model is in the output folder.
    """
    config = settings_from(config, options)
    if labels is not None and model is not None:
        raise SettingError("both labels and a model are given", "one of them, or none", "leave one out")
    if resume and output is None:
        raise SettingError(
            "resume is given without output", "the folder to go on in", "name it, or leave it out"
        )
    if config.sorting.cluster is not None:
        check_cluster(config.sorting.cluster)
    is_finished = resume and is_finished_result(Path(output or ""))
    if output is not None and not is_finished:
        check_output(output, overwrite, resume)
    recording, source_path = open_recording(recording, config.recording)
    labels, label_source = open_labels(labels, recording)
    if model is not None:
        model = model if isinstance(model, Model) else load_model(model)
        check_model_fits(model, split_groups(recording, model.preprocessing_config.group_by))
    pretrained = open_pretrained(config) if model is None else None
    model_hash, filters_hash = (None if one is None else one.hash() for one in (model, pretrained))
    watch = FileWatch(recording)
    work = Work(
        recording,
        labels,
        label_source,
        model,
        config,
        describe_job(recording, labels, model_hash, filters_hash, config),
        watch,
        {"recording": describe_recording(recording, source_path)},
        progress,
    )
    if is_finished:
        return _finished(Path(output or ""), work.job)
    if output is None:
        with tempfile.TemporaryDirectory(prefix="spikewise-") as folder:
            sorting, used, provenance = run_sort(work, Unfinished(Path(folder)))
            return SortingResult(in_memory(sorting), used, provenance)
    with output_folder(Path(output), overwrite, resume) as place, log_to(place):
        unfinished = Unfinished(place)
        with unfinished.locked():
            unfinished.begin(work.job)
            sorting, used, provenance = run_sort(work, unfinished)
            save_sorting(sorting, place)
            save_json(provenance, place / PROVENANCE_FILE)
            if config.sorting.report:
                report_of_sort(recording, sorting, used, provenance, place, progress)
    Unfinished(Path(output)).remove()
    stored = load_sorting_folder(Path(output))
    return SortingResult(stored, used, provenance, Path(output))


def evaluate(
    truth: BaseSorting | str | Path,
    sorting: BaseSorting | str | Path,
    *,
    recording: BaseRecording | str | Path | None = None,
    config: EvaluationConfig | None = None,
    **options: Any,
) -> Performance:
    """Compare a sorting with the truth.

    Parameters
    ----------
    truth, sorting : BaseSorting, str or Path
        The true spikes and those to judge, or where they are.
    recording : BaseRecording, str or Path, optional
        The recording of both; needed only to read formats that do not tell the sampling frequency.
    config : EvaluationConfig, optional
        All settings; or give single ones as keyword options.

    Returns
    -------
    Performance
        Per-unit table and pooled scores.
    """
    settings = config or EvaluationConfig.from_dict(options)
    opened = None if recording is None else open_recording(recording, RecordingConfig())[0]
    return compare_sortings(open_sorting(truth, opened), open_sorting(sorting, opened), settings)


def simulate(*, config: SimulationConfig | None = None, **options: Any) -> Simulation:
    """Make a recording whose spikes are known.

    Parameters
    ----------
    config : SimulationConfig, optional
        All settings; or give single ones as keyword options.

    Returns
    -------
    Simulation
        Recording, sorting and facts.
    """
    return simulate_recording(config or SimulationConfig.from_dict(options))


def describe_installation() -> dict[str, Any]:
    """Return what is installed, which device is used, and what can be read."""
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
        **threads_and_device(Config()),
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
    """Return what a recording is: channels, length, rate, groups."""
    opened, path = open_recording(recording, config or RecordingConfig())
    groups = split_groups(opened, "auto")
    return {
        **describe_recording(opened, path),
        "duration_s": round(opened.get_total_duration(), 3),
        "groups": {name: f"{part.get_num_channels()} channels" for name, part in groups.items()},
    }


def _finished(folder: Path, job: dict[str, Any]) -> SortingResult:
    """Return the result that is there already, if it is the one that is asked for."""
    stored = load_result(folder)
    check_same_job(stored.provenance.get("job"), job, folder)
    if (folder / UNFINISHED_FOLDER).exists():  # of a process that was ended while it tidied up
        Unfinished(folder).remove()
    logger.warning("%s is finished already", folder)
    return SortingResult(stored.sorting, stored.model, stored.provenance, folder)
