"""One sort from a recording to its result: start reading here.

:func:`run_sort` calls all stages: prepare the groups of channels once, start from labels, learn, find the
spikes, resolve them to one sorting, write it, report. Each stage saves what it finished in the output folder
(:mod:`spikewise.jobs.state.unfinished`) and continues what an earlier process saved there. So a sort gives
the same spikes however often it was interrupted.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spikeinterface.core import BaseRecording, BaseSorting

from spikewise.core.config import Config
from spikewise.core.errors import SettingError
from spikewise.core.expected_time import preparing_seconds, sort_seconds, sorting_seconds
from spikewise.core.files import check_output_file, save_json
from spikewise.core.progress import PREPARING, WRITING, ProgressCallback, expect
from spikewise.core.progress_bars import shown
from spikewise.data.opening import Inputs, open_inputs, settings_from
from spikewise.data.recordings.preprocessing import split_groups
from spikewise.discovery.discover import LEARNT_S
from spikewise.jobs.cluster import check_cluster
from spikewise.jobs.finding import find_spikes
from spikewise.jobs.merge import in_memory, merge_shards, responses_file
from spikewise.jobs.model.learn import keep_model, kept_model, learn_model, learning_seconds
from spikewise.jobs.model.motion import follow_motion
from spikewise.jobs.model.placing import place_model
from spikewise.jobs.model.start import find_start, finds_own_units, size_of
from spikewise.jobs.new_units import SecondSort
from spikewise.jobs.provenance import Seconds, add_seconds, describe_sort
from spikewise.jobs.state.fingerprint import FileWatch, check_same_job, describe_job
from spikewise.jobs.state.log import log_to
from spikewise.jobs.state.unfinished import Unfinished
from spikewise.learning.transfer import open_pretrained
from spikewise.models.checkpoint import Model, check_model_fits, load_model, save_model
from spikewise.output.motions import load_uncertainty_um
from spikewise.output.report.reporting import report_of_sort
from spikewise.output.result import StoredResult, load_result
from spikewise.output.results.sorting_result import SortingResult
from spikewise.output.store import (
    MODEL_FILE,
    PROVENANCE_FILE,
    UNFINISHED_FOLDER,
    check_output,
    is_finished_result,
    load_sorting_folder,
    output_folder,
    save_sorting,
)
from spikewise.output.trust.accepting import JOINING, accept_suggestions
from spikewise.output.trust.validating import units_of_sort
from spikewise.output.unexplained import UnexplainedEvents
from spikewise.sorting.damaged import summarise_damage
from spikewise.sorting.groups import Preparation, keep_traces, prepare_groups

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SortRequest:
    """The inputs of a sort, opened and checked.

    Attributes
    ----------
    inputs : Inputs
        Recording and labels.
    model : Model or None
        The model, if one was given.
    config : Config
    job : dict
        All that the spikes depend on: two sorts with the same job give the same spikes.
    watch : FileWatch
        Notices when the recording's files change.
    progress : callable
        Called with the progress of each stage.
    started : float
        ``time.perf_counter()`` before the inputs were opened.
    """

    inputs: Inputs
    model: Model | None
    config: Config
    job: dict[str, Any]
    watch: FileWatch
    progress: ProgressCallback
    started: float


def run_sort(request: SortRequest, state: Unfinished, folder: Path | None) -> SortingResult:
    """Run all stages of a sort.

    Parameters
    ----------
    request : SortRequest
    state : Unfinished
        What is finished so far.
    folder : Path or None
        Folder to write the result into, with a report; None: nothing is written.
    """
    inputs, config, progress = request.inputs, request.config, request.progress
    _expect(inputs, request.model, config, progress)
    progress(PREPARING, 0, 1, "")
    groups = prepare_groups(inputs.recording, Preparation.of(config, request.model))
    for group in groups:
        if group.note:
            logger.warning("%s%s", f"group {group.name}: " if len(groups) > 1 else "", group.note)

    are_kept = keep_traces(groups)
    model = request.model or kept_model(state)
    finds_units = are_kept and model is None and finds_own_units(inputs, config)
    followed = follow_motion(groups, config, state, progress, finds_units)
    motion, still = followed.facts, followed.groups
    if request.model is not None:
        placed = place_model(request.model, groups, still, config, state, progress)
        groups, finds = placed.groups, placed.model
        motion = {name: facts | {"offset": placed.facts.get(name)} for name, facts in motion.items()}
    prepare_s = time.perf_counter() - request.started

    if request.model is None:
        groups = still
        if model is None:
            start = find_start(groups, inputs, config, state, progress, followed.looks)
            model = learn_model(groups, start, config, state, progress)
            keep_model(model, state)
        finds = model
    assert model is not None
    learning_s = learning_seconds(model) if request.model is None else 0.0

    started = time.perf_counter()
    expect(progress, _seconds_after(inputs, model, config))
    found = find_spikes(groups, finds, inputs.recording, config, state, request.watch, progress)
    second = SecondSort(groups, inputs, config, state, request.watch, progress, is_moved=finds is not model)
    more, found, unexplained = second.run(finds, found, is_given=request.model is not None)
    model = more if unexplained["num_new_units"] else model
    progress(WRITING, 0, 1, "")
    for group in groups:
        group.reader.release()  # the spikes are mapped into the memory that the traces held
    spikes = state.folder / "spikes.npy"
    sorting = merge_shards(found, model, inputs.recording, spikes)
    if request.model is not None or unexplained["num_new_units"]:
        save_model(model, state.output / MODEL_FILE)  # only now: before, an error left nothing worth keeping
    if folder is not None:
        save_sorting(sorting, folder)
    seconds = Seconds(prepare_s, learning_s, found.earlier_s + time.perf_counter() - started)

    provenance = {
        **describe_sort(inputs, config, model, request.model is not None, found, sorting, seconds),
        "job": request.job,
        "preprocessing": {group.name: list(group.preprocessed.steps) for group in groups},
        "motion": motion,
        "unexplained": unexplained,
        "noise_ratio": {group.name: round(group.noise_ratio, 4) for group in groups},
    }
    if note := summarise_damage(provenance["damage"]):
        logger.warning(note)
    if (events := UnexplainedEvents.of(unexplained)) is not None:
        logger.info("%s", events.summary())
    motions = {group.name: group.motion for group in groups if group.motion is not None}
    if folder is not None:
        save_json(provenance, folder / PROVENANCE_FILE)
        uncertainty = load_uncertainty_um(folder, motions)
        stored = StoredResult(sorting, model, provenance, motions=motions, motion_uncertainty_um=uncertainty)
        if config.sorting.trust:
            readers = {group.name: group.reader for group in groups}
            with _timed(provenance, "trust", folder):
                trust = units_of_sort(stored, readers, responses_file(spikes), folder, config, progress)
            if trust is not None:
                stored = replace(stored, units=trust.table, suggestions=trust.suggestions)
                if config.sorting.auto_merge:
                    accept_suggestions(folder, JOINING)
        if config.sorting.report:
            with _timed(provenance, "report", folder):
                report_of_sort(stored, groups, folder, progress)
    return SortingResult(sorting, model, provenance, folder, inputs.recording, motions)


@contextmanager
def _timed(provenance: dict[str, Any], name: str, folder: Path) -> Iterator[None]:
    """Add the time that a step after the sort takes to its seconds, and write these."""
    started = time.perf_counter()
    yield
    add_seconds(provenance, name, time.perf_counter() - started)
    save_json(provenance, folder / PROVENANCE_FILE)


def sort(
    recording: BaseRecording | str | Path,
    *,
    labels: BaseSorting | str | Path | None = None,
    model: Model | str | Path | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    config: Config | None = None,
    progress: ProgressCallback | bool | None = None,
    **options: Any,
) -> SortingResult:
    """Sort a recording: with a model, or with one learnt from labels, or without either.

    With an output folder, all that is finished is saved there during the sort. An interrupted sort continues
    with `resume`, and gives exactly the same spikes.

    Parameters
    ----------
    recording : BaseRecording, str or Path
        The recording, with a probe, or its path.
    labels : BaseSorting, str, Path or None
        Labelled spikes of any interval; without labels and model, the units are found in the recording.
    model : Model, str, Path or None
        A trained model, or its path.
    output : str or Path, optional
        Folder to write the result into, with a report (``report=False``: without).
    overwrite : bool
        Whether an earlier result there may be replaced.
    resume : bool
        Whether to continue an unfinished sort there. If there is none, a new one begins. If the sort is
        finished, its result is returned.
    config : Config, optional
        All settings; or give single ones as keyword options.
    progress : callable or bool, optional
        Called with the progress of each stage. By default a terminal or a notebook shows bars; False: nothing
        is shown.

    Returns
    -------
    SortingResult

    Raises
    ------
    SpikewiseError
        If an input cannot be used; the message says what to do.
    Interrupted
        If Ctrl-C ended the training; the model is in the output folder.
    """
    config = settings_from(config, options)
    _check_together(labels, model, output, resume, config)
    is_finished = resume and is_finished_result(Path(output or ""))
    if output is not None and not is_finished:
        check_output(output, overwrite, resume)
    with shown(progress) as told:
        request = _open_request(recording, labels, model, config, told)
        if is_finished:
            return _finished(Path(output or ""), request)
        if output is None:
            with tempfile.TemporaryDirectory(prefix="spikewise-") as folder:
                result = run_sort(request, Unfinished(Path(folder)), None)
                return replace(result, sorting=in_memory(result.sorting))
        with _unfinished_in(Path(output), overwrite, resume, request.job) as state:
            result = run_sort(request, state, state.output)
    Unfinished(Path(output)).remove()
    return replace(result, sorting=load_sorting_folder(Path(output)), folder=Path(output))


def train(
    recording: BaseRecording | str | Path,
    labels: BaseSorting | str | Path | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    config: Config | None = None,
    progress: ProgressCallback | bool | None = None,
    **options: Any,
) -> Model:
    """Learn the units of a recording from labels.

    Parameters
    ----------
    recording : BaseRecording, str or Path
        The recording, with a probe, or its path.
    labels : BaseSorting, str, Path or None
        Labelled spikes, or their path; None: the units are found in the recording.
    output : str or Path, optional
        File to write the model to.
    overwrite : bool
        Whether a file there may be replaced.
    config : Config, optional
        All settings; or give single ones as keyword options.
    progress : callable or bool, optional
        Called with the progress of each stage. By default a terminal or a notebook shows bars; False: nothing
        is shown.

    Returns
    -------
    Model
        Ctrl-C ends training early and gives the best model so far; then ``model.facts["interrupted"]`` is
        True.

    Raises
    ------
    SpikewiseError
        If recording, labels or settings cannot be used; the message says what to do.
    """
    config = settings_from(config, options)
    if output is not None:
        output = check_output_file(output, overwrite, ending=".safetensors")
    with shown(progress) as told, tempfile.TemporaryDirectory(prefix="spikewise-") as folder:
        inputs = open_inputs(recording, labels, config.recording)
        _expect(inputs, None, config, told, is_sort=False)
        told(PREPARING, 0, 1, "")
        groups = prepare_groups(inputs.recording, Preparation.of(config))
        state = Unfinished(Path(folder))
        finds_units = keep_traces(groups) and finds_own_units(inputs, config)
        followed = follow_motion(groups, config, state, told, finds_units)
        start = find_start(followed.groups, inputs, config, state, told, followed.looks)
        model = learn_model(followed.groups, start, config, state, told)
    if output is not None:
        save_model(model, output)
    return model


def _expect(
    inputs: Inputs, model: Model | None, config: Config, progress: ProgressCallback, is_sort: bool = True
) -> None:
    """Tell how long the stages will probably take, as far as it is known ahead."""
    labels = inputs.labels
    interval_s = config.labels.label_interval or (0.0, LEARNT_S if labels is None else float("inf"))
    labelled_s = min(interval_s[1] - interval_s[0], inputs.recording.get_total_duration())
    size = size_of(inputs.recording, None if labels is None else labels.get_num_units(), labelled_s)
    expected = preparing_seconds(size)
    if model is None:
        num_groups = len(split_groups(inputs.recording, config.preprocessing.group_by))
        expected |= sort_seconds(size, num_groups, config, is_labelled=labels is not None)
    if is_sort and model is None:
        expected |= sorting_seconds(size, config.sorting.report, config.sorting.trust)
    expect(progress, expected)
    if is_sort and model is not None:
        expect(progress, _seconds_after(inputs, model, config))


def _seconds_after(inputs: Inputs, model: Model, config: Config) -> dict[str, float]:
    """Return the expected seconds of the stages of a sort after learning."""
    size = size_of(inputs.recording, len(model.unit_ids), 0.0)
    return sorting_seconds(size, config.sorting.report, config.sorting.trust)


def _check_together(
    labels: object | None, model: object | None, output: object | None, resume: bool, config: Config
) -> None:
    """Raise if the inputs contradict each other, or the name of the cluster cannot be used."""
    if labels is not None and model is not None:
        raise SettingError("both labels and a model are given", "one of them, or none", "leave one out")
    if resume and output is None:
        raise SettingError(
            "resume is given without output", "the folder to go on in", "name it, or leave it out"
        )
    if config.sorting.auto_merge and (output is None or not config.sorting.trust):
        raise SettingError(
            "auto_merge is given " + ("without output" if output is None else "with no_trust"),
            "an output folder, and the estimates that tell which units to merge",
            "give both, or leave auto_merge out",
        )
    if config.sorting.cluster is not None:
        check_cluster(config.sorting.cluster)


def _open_request(
    recording: BaseRecording | str | Path,
    labels: BaseSorting | str | Path | None,
    model: Model | str | Path | None,
    config: Config,
    progress: ProgressCallback,
) -> SortRequest:
    """Open the inputs of a sort, and check that they fit together."""
    started = time.perf_counter()
    inputs = open_inputs(recording, labels, config.recording)
    if model is not None:
        model = model if isinstance(model, Model) else load_model(model)
        check_model_fits(model, split_groups(inputs.recording, model.preprocessing_config.group_by))
    pretrained = open_pretrained(config.transfer, config.design) if model is None else None
    model_hash, filters_hash = (None if one is None else one.hash() for one in (model, pretrained))
    watch = FileWatch(inputs.recording)
    job = describe_job(inputs.recording, inputs.labels, model_hash, filters_hash, config)
    return SortRequest(inputs, model, config, job, watch, progress, started)


@contextmanager
def _unfinished_in(output: Path, overwrite: bool, resume: bool, job: dict[str, Any]) -> Iterator[Unfinished]:
    """Yield the state of a sort in its output folder; the folder is complete if no error occurs."""
    with output_folder(output, overwrite, resume) as folder, log_to(folder):
        state = Unfinished(folder)
        with state.locked():
            state.begin(job)
            yield state


def _finished(folder: Path, request: SortRequest) -> SortingResult:
    """Return the finished result in a folder; raise if it is of another job."""
    stored = load_result(folder)
    check_same_job(stored.provenance.get("job"), request.job, folder)
    if (folder / UNFINISHED_FOLDER).exists():  # left by a process that was ended during the removal
        Unfinished(folder).remove()
    logger.warning("%s is finished already", folder)
    recording = request.inputs.recording
    return SortingResult(stored.sorting, stored.model, stored.provenance, folder, recording, stored.motions)
