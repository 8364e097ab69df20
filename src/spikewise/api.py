"""The Python interface: train, sort, evaluate, simulate. SpikeInterface objects in and out.

Each function takes its settings either as a :class:`spikewise.config.Config` or as keyword options by their
flat names, which are those of the command: ``sort(recording, labels=truth, labels_per_unit=30, seed=1)``.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from spikeinterface.core import BaseRecording, BaseSorting, NumpySorting
from spikeinterface.sorters import installed_sorters

from spikewise import __version__
from spikewise.config import Bootstrap, Config, EvaluationConfig, RecordingConfig, SimulationConfig
from spikewise.data import recordings
from spikewise.data.label_files import LABEL_FORMATS
from spikewise.data.preprocessing import TraceReader, split_groups
from spikewise.data.probes import attach_probe, catalogue_names
from spikewise.data.simulate import Simulation, simulate_recording
from spikewise.data.waveform_files import SNIPPET_FORMATS
from spikewise.errors import Interrupted, RecordingError, SettingError
from spikewise.evaluation.matching import Performance, compare_sortings
from spikewise.learning import Group, label_groups, learn_group, prepare_groups, threads_and_device
from spikewise.models.checkpoint import Model, check_model_fits, load_model, save_model
from spikewise.opening import open_labels, open_recording, open_sorting, settings_from
from spikewise.output.figures import require_matplotlib
from spikewise.output.report import write_report
from spikewise.output.result import StoredResult, load_result
from spikewise.progress import ProgressCallback, silent
from spikewise.sorting.batch import detect_in_chunks
from spikewise.sorting.damaged import Damage, describe_damage, drop_damaged, tell_damage
from spikewise.sorting.detect import Spikes, make_detector
from spikewise.sorting.log import log_to
from spikewise.sorting.store import (
    MODEL_FILE,
    PROVENANCE_FILE,
    check_output,
    check_output_file,
    output_folder,
    save_json,
    save_sorting,
    spikes_hash,
)
from spikewise.transfer import open_pretrained, start_from

logger = logging.getLogger(__name__)

_PACKAGES = ("spikeinterface", "torch", "numpy", "scipy", "probeinterface", "neo")


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


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes
    ----------
    path : Path
        The HTML file.
    provenance : dict
        That of the result it tells of.
    performance : Performance or None
        The comparison with the truth, if that was given.
    """

    path: Path
    provenance: dict[str, Any]
    performance: Performance | None


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
        model, _ = _learn(recording, labels, source, config, Path(folder), progress)
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
    config: Config | None = None,
    progress: ProgressCallback = silent,
    **options: Any,
) -> SortingResult:
    """Sort a recording: with a model, or with one learnt from labels, or without either.

    Parameters
    ----------
    recording : BaseRecording, str or Path
        The recording, with a probe, or where it is.
    labels : BaseSorting, str, Path or None
        Labelled spikes of any interval; without labels and model a sorter makes them.
    model : Model, str, Path or None
        A trained model, or where it is.
    output : str or Path, optional
        Folder to write the result into.
    overwrite : bool
        Whether an earlier result there may be replaced.
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
    if output is not None:
        check_output(output, overwrite)
    recording, source_path = open_recording(recording, config.recording)
    labels, label_source = open_labels(labels, recording)
    if model is not None:
        model = model if isinstance(model, Model) else load_model(model)
        check_model_fits(model, split_groups(recording, model.preprocessing_config.group_by))
    facts = {"recording": _describe_recording(recording, source_path)}
    if output is None:
        with tempfile.TemporaryDirectory(prefix="spikewise-") as folder:
            return _sort(recording, (labels, label_source), model, config, Path(folder), progress, facts)
    with output_folder(Path(output), overwrite) as place, log_to(place):
        result = _sort(recording, (labels, label_source), model, config, place, progress, facts)
        save_sorting(result.sorting, place)
        save_json(result.provenance, place / PROVENANCE_FILE)
    return SortingResult(result.sorting, result.model, result.provenance, Path(output))


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


def report(
    result: SortingResult | str | Path,
    output: str | Path,
    *,
    recording: BaseRecording | str | Path | None = None,
    truth: BaseSorting | str | Path | None = None,
    overwrite: bool = False,
    config: EvaluationConfig | None = None,
    **options: Any,
) -> Report:
    """Write what a sort found as one HTML page.

    Parameters
    ----------
    result : SortingResult, str or Path
        What :func:`sort` gave, or its output folder.
    output : str or Path
        File to write, for example ``report.html``.
    recording : BaseRecording, str or Path, optional
        The recording that was sorted; without it no trace and no waveform is drawn.
    truth : BaseSorting, str or Path, optional
        True spikes to compare with; without them no score is shown.
    overwrite : bool
        Whether a file there may be replaced.
    config : EvaluationConfig, optional
        How to compare; or give single settings as keyword options.

    Returns
    -------
    Report
        The file, and the comparison with the truth.

    Raises
    ------
    SpikewiseError
        If the result is not whole, or something else that was given cannot be used.
    """
    require_matplotlib()
    output = check_output_file(output, overwrite)
    settings = config or EvaluationConfig.from_dict(options)
    stored = (
        StoredResult(result.sorting, result.model, result.provenance)
        if isinstance(result, SortingResult)
        else load_result(result)
    )
    opened = None if recording is None else open_recording(recording, RecordingConfig())[0]
    readers = None if opened is None else _readers_of(stored, opened)
    performance = None
    if truth is not None:
        true_spikes = open_sorting(truth, opened)
        performance = compare_sortings(true_spikes, stored.sorting, settings, stored.num_samples)
    path = write_report(
        stored,
        output,
        readers=readers,
        performance=performance,
        interval_s=settings.interval,
        overwrite=overwrite,
    )
    return Report(path, stored.provenance, performance)


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
    for name in (*_PACKAGES, "MEArec", "pynwb", "matplotlib", "PyWavelets", "scikit-fuzzy"):
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
        **_describe_recording(opened, path),
        "duration_s": round(opened.get_total_duration(), 3),
        "groups": {name: f"{part.get_num_channels()} channels" for name, part in groups.items()},
    }


def _learn(
    recording: BaseRecording,
    labels: BaseSorting | None,
    source: str,
    config: Config,
    folder: Path,
    progress: ProgressCallback,
) -> tuple[Model, list[Group]]:
    """Prepare all groups, label them, and train a network for each that has units."""
    started = time.perf_counter()
    groups = prepare_groups(recording, config)
    pretrained = open_pretrained(config)
    starts = {} if pretrained is None else start_from(pretrained, groups, config)
    label_sets, label_facts = label_groups(groups, recording, labels, source, config, folder)
    labels_s = time.perf_counter() - started
    models, facts = [], []
    for group in groups:
        if group.name not in label_sets:
            logger.warning("group %s has no units and is not sorted", group.name)
            continue
        start = starts.get(group.name)
        model, group_facts = learn_group(group, label_sets[group.name], config, progress, start)
        models.append(model)
        facts.append(group_facts)
        if group_facts["interrupted"]:
            break
    return Model(
        groups=tuple(models),
        sampling_frequency=float(recording.get_sampling_frequency()),
        network_config=dataclasses.replace(config.network, design=config.design),
        preprocessing_config=config.preprocessing,
        detection_config=config.detection,
        facts={
            "labels": {**label_facts, "labels_per_unit": config.labels.labels_per_unit},
            "labels_s": round(labels_s, 3),
            "training": config.training.resolved().to_dict(),
            "units": config.units.to_dict(),
            "transfer": config.transfer.to_dict(),
            "pretrained_hash": None if pretrained is None else pretrained.hash(),
            "groups": facts,
            "interrupted": any(group_facts["interrupted"] for group_facts in facts),
        },
    ), groups


def _sort(
    recording: BaseRecording,
    labels: tuple[BaseSorting | None, str],
    model: Model | None,
    config: Config,
    folder: Path,
    progress: ProgressCallback,
    facts: dict[str, Any],
) -> SortingResult:
    """Learn a model if there is none, then find the spikes of each group."""
    started, is_given = time.perf_counter(), model is not None
    if model is None:
        model, groups = _learn(recording, *labels, config, folder, progress)
        save_model(model, folder / MODEL_FILE)
        if model.facts["interrupted"]:
            raise Interrupted(
                "training was interrupted",
                f"the best model so far is {folder / MODEL_FILE}",
                "sort with --model and that file, or train again",
            )
    else:
        groups = prepare_groups(recording, config, model)
    learning_s = time.perf_counter() - started
    started = time.perf_counter()
    by_name = {group.name: group for group in groups}
    found = [_detect_group(by_name[part.name], part, model, config, progress) for part in model.groups]
    sorting = _merge_groups([spikes for spikes, _ in found], model)
    channel_ids = {part.name: part.channel_ids for part in model.groups}
    damage = dict(zip(channel_ids, (lost for _, lost in found), strict=True))
    sorting_s = time.perf_counter() - started
    damage_facts = describe_damage(damage, channel_ids, model.sampling_frequency)
    if note := tell_damage(damage_facts):
        logger.warning(note)
    if is_given:  # only now, since an error before leaves nothing that is worth keeping
        save_model(model, folder / MODEL_FILE)
    recorded_s = recording.get_total_duration()
    provenance = {
        "spikewise_version": __version__,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "machine": {"processor": platform.processor() or platform.machine(), **threads_and_device(config)},
        **facts,
        "config": _effective_config(config, model),
        "preprocessing": {name: list(group.preprocessed.steps) for name, group in by_name.items()},
        "damage": damage_facts,
        "labels": model.facts.get("labels"),
        "model": {"given": is_given, "hash": model.hash(), "facts": model.facts},
        "result": {
            "num_units": sorting.get_num_units(),
            "num_spikes": int(sorting.count_total_num_spikes()),
            "spikes_hash": spikes_hash(sorting),
        },
        "seconds": {
            "recorded": round(recorded_s, 3),
            "learning": round(learning_s, 3),
            "sorting": round(sorting_s, 3),
            "total": round(learning_s + sorting_s, 3),
        },
        "real_time_factor": round(recorded_s / sorting_s, 3),
    }
    return SortingResult(sorting, model, provenance)


def _detect_group(
    group: Group, part: Any, model: Model, config: Config, progress: ProgressCallback
) -> tuple[list[Spikes], Damage]:
    thresholds = part.thresholds
    if config.detection.threshold is not None:
        thresholds = np.full_like(thresholds, config.detection.threshold)
    detector = make_detector(
        part.network, thresholds, model.sampling_frequency, model.detection_config, config.sorting
    )
    stage = "sort" if len(model.groups) == 1 else f"sort group {group.name}"
    found = detect_in_chunks(detector, group.reader, config.sorting.chunk_s, progress, stage)
    return drop_damaged(found, group.reader, part.network)


def _merge_groups(found: list[list[Spikes]], model: Model) -> BaseSorting:
    """Join the spikes of all groups in one sorting, in order of time, then unit."""
    first_units = np.cumsum([0] + [len(group.unit_ids) for group in model.groups])
    samples, units = [], []
    for segments in zip(*found, strict=True):
        sample_index = np.concatenate([spikes.sample_index for spikes in segments])
        unit_index = np.concatenate(
            [spikes.unit_index + first for spikes, first in zip(segments, first_units, strict=False)]
        )
        order = np.lexsort((unit_index, sample_index))
        samples.append(sample_index[order])
        units.append(unit_index[order])
    sorting = NumpySorting.from_samples_and_labels(
        samples, units, model.sampling_frequency, unit_ids=np.arange(len(model.unit_ids))
    ).rename_units(model.unit_ids)
    sorting.set_property("threshold", np.concatenate([group.thresholds for group in model.groups]))
    names = [name for group in model.groups for name in [group.name] * len(group.unit_ids)]
    sorting.set_property("group", np.array(names))
    return sorting


def _effective_config(config: Config, model: Model) -> dict[str, Any]:
    """Return the settings that were in force: a model brings its own for the network and the traces."""
    return {
        **config.to_dict(),
        "network": model.network_config.to_dict(),
        "preprocessing": model.preprocessing_config.to_dict(),
        "training": model.facts.get("training"),
    }


def _readers_of(result: StoredResult, recording: BaseRecording) -> dict[str, TraceReader]:
    """Return the traces of each group of a result, preprocessed as for its model."""
    lengths = [recording.get_num_samples(index) for index in range(recording.get_num_segments())]
    if lengths != result.num_samples:
        raise RecordingError(
            f"the recording has segments of {lengths} samples",
            f"the result is of a recording with segments of {result.num_samples}",
            "give the recording that was sorted, or none",
        )
    check_model_fits(result.model, split_groups(recording, result.model.preprocessing_config.group_by))
    return {group.name: group.reader for group in prepare_groups(recording, Config(), result.model)}


def _describe_recording(recording: BaseRecording, path: str | None) -> dict[str, Any]:
    return {
        "path": path,
        "sampling_frequency": float(recording.get_sampling_frequency()),
        "num_channels": recording.get_num_channels(),
        "num_segments": recording.get_num_segments(),
        "num_samples": [recording.get_num_samples(index) for index in range(recording.get_num_segments())],
        "dtype": str(recording.get_dtype()),
    }
