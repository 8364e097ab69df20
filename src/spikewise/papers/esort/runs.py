"""The runs of the experiments of Han & Wang: each method on each recording, each score a row of a file.

A row is written as soon as its run ends, so that a run that was stopped goes on where it was. A run that
fails leaves a row with a note instead of a score, and is tried again by the next call. A recording is made
when its first run comes, and removed after its last; what filters are carried over from is kept as a model.
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
from spikewise.data.simulation.simulate import save_simulation
from spikewise.discovery.other_sorters import last_line, run_quietly, sorter_parameters
from spikewise.learning.examples.training_set import Block
from spikewise.learning.thresholds import find_in_block
from spikewise.models.checkpoint import save_model
from spikewise.papers.cnn1d.sets import small_seed
from spikewise.papers.esort.plan import (
    KEY,
    METHOD_NAMES,
    RIVALS,
    EsortPaperConfig,
    Recipe,
    Run,
    Scale,
    simulation_options,
)
from spikewise.papers.esort.scores import THRESHOLDS, Score, score_as_published, score_sorting
from spikewise.sorting.detect import Spikes, make_detector
from spikewise.sorting.groups import prepare_groups

logger = logging.getLogger(__name__)

_FACTS = ("source", "num_channels", "duration_s")
_SECONDS = ("learning_s", "sorting_s", "sorted_s")
COLUMNS = (*KEY, *_FACTS, *(field.name for field in dataclasses.fields(Score)), *_SECONDS, "note")
"""Columns of the results: the run, the recording, its score in percent, seconds, and why there is no score.

`sorting_s` is what finding the spikes of `sorted_s` recorded seconds took; other sorters learn as they sort.
"""


@dataclass(frozen=True)
class Made:
    """A recording and its truth; labels lie before `middle_s`, the test after it."""

    recording: BaseRecording
    truth: BaseSorting
    middle_s: float
    end_s: float

    @property
    def test(self) -> tuple[float, float]:
        """Start and end of the test in seconds."""
        return self.middle_s, self.end_s


@dataclass(frozen=True)
class Workshop:
    """What all runs of a folder have in common.

    Attributes
    ----------
    folder : Path
        Where recordings and models are made.
    config : EsortPaperConfig
    scale : Scale
    templates : dict of str to Path
        Template files by probe.
    """

    folder: Path
    config: EsortPaperConfig
    scale: Scale
    templates: dict[str, Path]

    @contextlib.contextmanager
    def recording(self, recipe: Recipe) -> Iterator[Made]:
        """Lend a recording, which is removed afterwards."""
        place = self.folder / recipe.name
        options = simulation_options(recipe, self.config.seed, self.templates, self.folder)
        try:
            save_simulation(simulate(**options), place, overwrite=place.exists())
            recording = spikeinterface.load(place / "recording")
            truth = spikeinterface.load(place / "truth")
            yield Made(recording, truth, recipe.duration_s / 2, recipe.duration_s)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def pretrained(self, recipe: Recipe) -> Path:
        """Return the model whose filters are carried over; it is trained at the first call."""
        path = self.folder / f"{recipe.name}.safetensors"
        if path.exists():
            return path
        with self.recording(recipe) as made:
            model = train(
                made.recording,
                made.truth,
                label_interval=(0.0, made.middle_s),
                design="esort-paper",
                preset=self.scale.preset,
                seed=small_seed(self.config.seed, recipe.name),
            )
        if model.facts["interrupted"]:
            raise KeyboardInterrupt
        save_model(model, path)
        return path


def missing_sorters(runs: Iterable[Run]) -> dict[str, str]:
    """Return the other sorters of the runs that cannot run here, each with the reason."""
    wanted = {run.method for run in runs if run.method in RIVALS}
    there = set(installed_sorters()) if wanted else set()
    return {
        name: f"{RIVALS[name][1]} is not installed"
        for name in RIVALS
        if name in wanted and RIVALS[name][1] not in there
    }


def run_missing(
    path: Path, runs: list[Run], workshop: Workshop, progress: ProgressCallback
) -> tuple[pd.DataFrame, int]:
    """Run what is missing from a file of results.

    Parameters
    ----------
    path : Path
        The file; each row is added to it at once.
    runs : list of Run
        Those of one recording must follow one another.
    workshop : Workshop
    progress : callable
        Told how many runs are done.

    Returns
    -------
    rows : DataFrame
        All rows, columns as in :data:`COLUMNS`, the latest of each run.
    num_new : int
        How many of them were measured now.

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
        for count, row in enumerate(_rows(missing, workshop), 1):
            writer.writerow(row)
            file.flush()
            told = row["note"] or f"{row['accuracy']:.2f} %"
            progress("experiments", count, len(missing), f"{METHOD_NAMES[row['method']]}: {told}")
    return read_rows(path), len(missing)


def read_rows(path: Path) -> pd.DataFrame:
    """Return the rows of a file, the latest of each run; a last line that was cut short is taken away."""
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


def _rows(runs: list[Run], workshop: Workshop) -> Iterator[dict[str, Any]]:
    """Yield the row of each run; a recording that cannot be made fails all of its runs."""
    for recipe, part in groupby(runs, key=lambda run: run.recipe):
        mine = list(part)
        place = 0
        try:
            with workshop.recording(recipe) as made:
                for run in mine:
                    row = _row(run, made, workshop)
                    place += 1
                    yield row
        except (Interrupted, OutputError, MissingExtraError):
            raise
        except SpikewiseError as error:
            yield from (_facts(run) | {"note": f"no recording: {error}"} for run in mine[place:])


def _row(run: Run, made: Made, workshop: Workshop) -> dict[str, Any]:
    facts = _facts(run) | {"num_channels": made.recording.get_num_channels()}
    seed = small_seed(workshop.config.seed, f"{run.method} {run.recipe.seed}")
    try:
        if run.method in RIVALS:
            score, seconds = _run_rival(run, made, workshop, seed)
        else:
            score, seconds = _run_ours(run, made, workshop, seed)
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


def _run_ours(run: Run, made: Made, workshop: Workshop, seed: int) -> tuple[Score, dict[str, float]]:
    result = sort(made.recording, **_options_of(run, made, workshop), seed=seed)
    told = result.provenance["seconds"]
    seconds = {"learning_s": told["learning"], "sorting_s": told["sorting"], "sorted_s": told["recorded"]}
    if workshop.config.as_published and run.labels_per_unit:
        peaks = _peaks_of_test(result, made)
        return score_as_published(made.truth, peaks, result.model.unit_ids, made.test), seconds
    score = score_sorting(made.truth, result.sorting, made.test, workshop.config.as_published)
    return score, seconds


def _options_of(run: Run, made: Made, workshop: Workshop) -> dict[str, Any]:
    """Return the options of :func:`spikewise.sort` that a method is."""
    effort = {"patches_per_unit": workshop.scale.patches_per_unit}
    if not run.labels_per_unit:
        return {"bootstrap_s": made.middle_s, **effort}
    options: dict[str, Any] = {
        "labels": made.truth,
        "label_interval": (0.0, made.middle_s),
        "labels_per_unit": run.labels_per_unit,
        "design": "neighbourhood" if run.method.startswith("spikewise") else "esort-paper",
    }
    options |= {"preset": workshop.scale.preset} if options["design"] == "esort-paper" else effort
    if run.method == "spikewise_scratch":
        options["pretrained"] = "none"
    if run.pretraining is not None:
        options["pretrained"] = str(workshop.pretrained(run.pretraining))
    return options


def _peaks_of_test(result: SortingResult, made: Made) -> Spikes:
    """Find all peaks of the test above the lowest threshold of the sweep, as the published code has them.

    A sample no lower than its two neighbours is a peak, so that merging reaches one sample. Units count on
    from group to group.
    """
    model, parts, first = result.model, [], 0
    detection = dataclasses.replace(model.detection_config, merge_ms=0.0)
    readers = {group.name: group.reader for group in prepare_groups(made.recording, Config(), model)}
    start, stop = (round(second * model.sampling_frequency) for second in made.test)
    step = round(4.0 * model.sampling_frequency)
    for part in model.groups:
        lowest = part.thresholds * 0 + THRESHOLDS[0]
        detector = make_detector(part.network, lowest, model.sampling_frequency, detection, SortingConfig())
        for begin in range(start, stop, step):
            block = Block(0, begin, min(begin + step, stop), held_out=False)
            found = find_in_block(detector, readers[part.name], block)
            parts.append(dataclasses.replace(found, unit_index=found.unit_index + first))
        first += len(part.unit_ids)
    return Spikes.concatenate(parts)


def _run_rival(run: Run, made: Made, workshop: Workshop, seed: int) -> tuple[Score, dict[str, float]]:
    """Run another sorter on the test interval alone, with its defaults but for :func:`rival_parameters`."""
    rate = made.recording.get_sampling_frequency()
    start, stop = (round(second * rate) for second in made.test)
    part = made.recording.frame_slice(start, stop)
    parameters = rival_parameters(run.method, part, seed)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sorter_", dir=workshop.folder) as place:
        found = quietly(RIVALS[run.method][1], part, Path(place), parameters, seed)
    seconds = time.perf_counter() - started
    vector = found.to_spike_vector()
    moved = NumpySorting.from_samples_and_labels(
        [vector["sample_index"] + start], [vector["unit_index"]], rate, unit_ids=range(len(found.unit_ids))
    )
    score = score_sorting(made.truth, moved, made.test, workshop.config.as_published)
    return score, {"learning_s": 0.0, "sorting_s": seconds, "sorted_s": made.end_s - made.middle_s}


def rival_parameters(method: str, recording: BaseRecording, seed: int) -> dict[str, Any]:
    """Return what differs from a sorter's defaults: seeds, and what the recording is too small for."""
    _, sorter, own = RIVALS[method]
    usual = {} if sorter == "mountainsort5" else sorter_parameters(sorter, recording, seed)
    return {**usual, **own}


def quietly(
    sorter: str, recording: BaseRecording, place: Path, parameters: dict[str, Any], seed: int
) -> NumpySorting:
    """Run a sorter with what it prints in a file, and return its spikes in memory."""
    with (place / "log").open("w", encoding="utf-8") as log:
        try:
            return run_quietly(sorter, recording, place / "sorter", parameters, seed, log)
        except Exception as error:  # a sorter can fail in any way
            raise SpikewiseError(
                f"{sorter} failed: {last_line(error)}",
                "a recording that it can sort",
                "see what it needs, then run the experiments again",
            ) from error
