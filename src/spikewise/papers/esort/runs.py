"""The runs of the experiments of Han & Wang: each method on each recording; each score is a row of a file.

A row is written as soon as its run ends, so that interrupted experiments can be resumed. A failed run leaves
a row with a note instead of a score; the next call tries it again. A recording is simulated for its first run
and removed after its last. Models from which filters are transferred are kept.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import spikeinterface
from spikeinterface.core import BaseRecording, BaseSorting, NumpySorting
from spikeinterface.sorters import installed_sorters

from spikewise.api import SortingResult, simulate, sort, train
from spikewise.core.config import Config, SortingConfig
from spikewise.core.errors import Interrupted, MissingExtraError, OutputError, SpikewiseError
from spikewise.core.files import writing
from spikewise.core.progress import ProgressCallback
from spikewise.data.simulation.saving import save_simulation
from spikewise.discovery.other_sorters import last_line, run_quietly, sorter_parameters
from spikewise.learning.examples.training_set import Block
from spikewise.learning.thresholds import find_in_block
from spikewise.models.checkpoint import save_model
from spikewise.papers.cnn1d.sets import small_seed
from spikewise.papers.esort.config import EsortPaperConfig, Scale
from spikewise.papers.esort.methods import METHOD_NAMES, RIVALS
from spikewise.papers.esort.plan import KEY, Recipe, Run, simulation_options
from spikewise.papers.esort.scores import THRESHOLDS, Score, score_as_published, score_sorting
from spikewise.sorting.detectors import make_detector
from spikewise.sorting.groups import Preparation, prepare_groups
from spikewise.sorting.spikes import Spikes

logger = logging.getLogger(__name__)

_FACTS = ("source", "num_channels", "duration_s")
_SECONDS = ("learning_s", "sorting_s", "sorted_s")
COLUMNS = (*KEY, *_FACTS, *(field.name for field in dataclasses.fields(Score)), *_SECONDS, "note")
"""Columns of the results: the run, the recording, the score in percent, seconds, and why a score is missing.

`sorting_s` is the time of finding the spikes of `sorted_s` recorded seconds. Other sorters learn while they
sort.
"""
_PEAK_BLOCK_S = 4.0
"""Length of the blocks in which the peaks for the published score are found."""


@dataclass(frozen=True)
class SplitRecording:
    """A recording with its true spikes: labels before `middle_s`, the test after it."""

    recording: BaseRecording
    truth: BaseSorting
    middle_s: float
    end_s: float

    @property
    def test(self) -> tuple[float, float]:
        """Start and end of the test in seconds."""
        return self.middle_s, self.end_s


@dataclass(frozen=True)
class RunContext:
    """What all runs of a folder share.

    Attributes
    ----------
    folder : Path
        Folder for recordings and models.
    config : EsortPaperConfig
    scale : Scale
    templates : dict of str to Path
        Template files, by probe.
    """

    folder: Path
    config: EsortPaperConfig
    scale: Scale
    templates: dict[str, Path]

    @contextlib.contextmanager
    def recording(self, recipe: Recipe) -> Iterator[SplitRecording]:
        """Simulate a recording for a ``with`` block, and remove it afterwards."""
        folder = self.folder / recipe.name
        options = simulation_options(recipe, self.config.seed, self.templates, self.folder)
        try:
            save_simulation(simulate(**options), folder, overwrite=folder.exists())
            recording = spikeinterface.load(folder / "recording")
            truth = spikeinterface.load(folder / "truth")
            yield SplitRecording(recording, truth, recipe.duration_s / 2, recipe.duration_s)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def pretrained(self, recipe: Recipe) -> Path:
        """Return the model from which filters are transferred; it is trained at the first call."""
        path = self.folder / f"{recipe.name}.safetensors"
        if path.exists():
            return path
        with self.recording(recipe) as split:
            model = train(
                split.recording,
                split.truth,
                label_interval=(0.0, split.middle_s),
                design="esort-paper",
                preset=self.scale.preset,
                seed=small_seed(self.config.seed, recipe.name),
            )
        if model.facts["interrupted"]:
            raise KeyboardInterrupt
        save_model(model, path)
        return path


def missing_sorters(runs: Iterable[Run]) -> dict[str, str]:
    """Return the other sorters that cannot run on this machine, each with the reason."""
    wanted = {run.method for run in runs if run.method in RIVALS}
    installed = set(installed_sorters()) if wanted else set()
    return {
        name: f"{RIVALS[name][1]} is not installed"
        for name in RIVALS
        if name in wanted and RIVALS[name][1] not in installed
    }


def run_missing(
    path: Path, runs: list[Run], context: RunContext, progress: ProgressCallback
) -> tuple[pd.DataFrame, int]:
    """Run the runs that have no score in a file of results.

    Parameters
    ----------
    path : Path
        The file; each row is added as soon as its run ends.
    runs : list of Run
        Runs of one recording must follow one another.
    context : RunContext
    progress : callable
        Called with the number of finished runs.

    Returns
    -------
    rows : DataFrame
        All rows, the latest of each run; columns as in :data:`COLUMNS`.
    num_new : int
        Number of rows that were measured now.

    Raises
    ------
    OutputError
        If the file cannot be written.
    MissingExtraError
        If MEArec is needed and not installed.
    """
    earlier = read_rows(path)
    scored = earlier[earlier["accuracy"].notna()]
    done = set(scored[list(KEY)].itertuples(index=False, name=None))
    missing = [run for run in runs if run.key not in done]
    with writing(path), path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        for count, row in enumerate(_rows(missing, context), 1):
            writer.writerow(row)
            file.flush()
            outcome = row["note"] or f"{row['accuracy']:.2f} %"
            progress("experiments", count, len(missing), f"{METHOD_NAMES[row['method']]}: {outcome}")
    return read_rows(path), len(missing)


def read_rows(path: Path) -> pd.DataFrame:
    """Return the rows of a file, the latest of each run; an incomplete last line is removed."""
    text = b""
    if path.exists():
        with writing(path):
            text = path.read_bytes()
            whole = text[: text.rfind(b"\n") + 1]
            if whole != text:
                path.write_bytes(whole)
    if not text.count(b"\n"):
        return pd.DataFrame(columns=COLUMNS)
    rows = pd.read_csv(path).fillna({"note": ""})
    return rows.drop_duplicates(list(KEY), keep="last", ignore_index=True)


def _rows(runs: list[Run], context: RunContext) -> Iterator[dict[str, Any]]:
    """Yield the row of each run; if a recording cannot be made, all of its runs fail."""
    for recipe, part in groupby(runs, key=lambda run: run.recipe):
        recipe_runs = list(part)
        num_done = 0
        try:
            with context.recording(recipe) as split:
                for run in recipe_runs:
                    row = _row(run, split, context)
                    num_done += 1
                    yield row
        except (Interrupted, OutputError, MissingExtraError):
            raise
        except SpikewiseError as error:
            yield from (_facts(run) | {"note": f"no recording: {error}"} for run in recipe_runs[num_done:])


def _row(run: Run, split: SplitRecording, context: RunContext) -> dict[str, Any]:
    facts = _facts(run) | {"num_channels": split.recording.get_num_channels()}
    seed = small_seed(context.config.seed, f"{run.method} {run.recipe.seed}")
    try:
        if run.method in RIVALS:
            score, seconds = _run_rival(run, split, context, seed)
        else:
            score, seconds = _run_ours(run, split, context, seed)
    except (Interrupted, OutputError, MissingExtraError):
        raise
    except SpikewiseError as error:
        logger.warning("%s: %s", METHOD_NAMES[run.method], error)
        return facts | {"note": str(error)}
    shares = {name: None if value is None else round(value, 4) for name, value in vars(score).items()}
    return facts | shares | {name: round(value, 3) for name, value in seconds.items()}


def _facts(run: Run) -> dict[str, Any]:
    return {
        **dict(zip(KEY, run.key, strict=True)),
        "source": run.recipe.source,
        "duration_s": run.recipe.duration_s,
        "note": "",
    }


def _run_ours(
    run: Run, split: SplitRecording, context: RunContext, seed: int
) -> tuple[Score, dict[str, float]]:
    result = sort(split.recording, **_options_of(run, split, context), seed=seed)
    taken = result.provenance["seconds"]
    seconds = {"learning_s": taken["learning"], "sorting_s": taken["sorting"], "sorted_s": taken["recorded"]}
    if context.config.as_published and run.labels_per_unit:
        peaks = _peaks_of_test(result, split)
        return score_as_published(split.truth, peaks, result.model.unit_ids, split.test), seconds
    score = score_sorting(split.truth, result.sorting, split.test, context.config.as_published)
    return score, seconds


def _options_of(run: Run, split: SplitRecording, context: RunContext) -> dict[str, Any]:
    """Return the options of :func:`spikewise.sort` that make up a method."""
    effort = {"patches_per_unit": context.scale.patches_per_unit}
    if not run.labels_per_unit:
        return {"bootstrap": "lupin", "bootstrap_s": split.middle_s, **effort}
    options: dict[str, Any] = {
        "labels": split.truth,
        "label_interval": (0.0, split.middle_s),
        "labels_per_unit": run.labels_per_unit,
        "design": "neighbourhood" if run.method.startswith("spikewise") else "esort-paper",
    }
    options |= {"preset": context.scale.preset} if options["design"] == "esort-paper" else effort
    if run.method == "spikewise_scratch":
        options["pretrained"] = "none"
    if run.pretraining is not None:
        options["pretrained"] = str(context.pretrained(run.pretraining))
    return options


def _peaks_of_test(result: SortingResult, split: SplitRecording) -> Spikes:
    """Find all peaks of the test above the lowest threshold of the sweep, as the published code does.

    A peak is a sample not lower than its two neighbours, so peaks are not merged any further. The unit index
    continues from group to group.
    """
    model, parts, first = result.model, [], 0
    detection = dataclasses.replace(model.detection_config, merge_ms=0.0)
    readers = {
        group.name: group.reader for group in prepare_groups(split.recording, Preparation.of(Config(), model))
    }
    start, stop = (round(second * model.sampling_frequency) for second in split.test)
    step = round(_PEAK_BLOCK_S * model.sampling_frequency)
    for part in model.groups:
        lowest = part.thresholds * 0 + THRESHOLDS[0]
        detector = make_detector(part.network, lowest, model.sampling_frequency, detection, SortingConfig())
        for begin in range(start, stop, step):
            block = Block(0, begin, min(begin + step, stop), held_out=False)
            found = find_in_block(detector, readers[part.name], block)
            parts.append(dataclasses.replace(found, unit_index=found.unit_index + first))
        first += len(part.unit_ids)
    return Spikes.concatenate(parts)


def _run_rival(
    run: Run, split: SplitRecording, context: RunContext, seed: int
) -> tuple[Score, dict[str, float]]:
    """Run another sorter on the test interval only, with its defaults and :func:`rival_parameters`."""
    rate = split.recording.get_sampling_frequency()
    start, stop = (round(second * rate) for second in split.test)
    part = split.recording.frame_slice(start, stop)
    parameters = rival_parameters(run.method, part, seed)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sorter_", dir=context.folder) as folder:
        found = run_in_folder(RIVALS[run.method][1], part, Path(folder), parameters, seed)
    seconds = time.perf_counter() - started
    vector = found.to_spike_vector()
    moved = NumpySorting.from_samples_and_labels(
        [vector["sample_index"] + start], [vector["unit_index"]], rate, unit_ids=range(len(found.unit_ids))
    )
    score = score_sorting(split.truth, moved, split.test, context.config.as_published)
    return score, {"learning_s": 0.0, "sorting_s": seconds, "sorted_s": split.end_s - split.middle_s}


def rival_parameters(method: str, recording: BaseRecording, seed: int) -> dict[str, Any]:
    """Return parameters that differ from a sorter's defaults: seeds, and limits for small recordings."""
    _, sorter, own = RIVALS[method]
    common = {} if sorter == "mountainsort5" else sorter_parameters(sorter, recording, seed)
    return {**common, **own}


def run_in_folder(
    sorter: str, recording: BaseRecording, folder: Path, parameters: dict[str, Any], seed: int
) -> NumpySorting:
    """Run a sorter, write its output to a file, and return its spikes in memory."""
    with (folder / "log").open("w", encoding="utf-8") as log:
        try:
            return run_quietly(sorter, recording, folder / "sorter", parameters, seed, log)
        except Exception as error:  # a sorter can fail in any way
            raise SpikewiseError(
                f"{sorter} failed: {last_line(error)}",
                "a recording that it can sort",
                "check what it needs, then give the command again",
            ) from error
