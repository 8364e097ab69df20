"""The runs: every method on every division of every set; each score is a row of a file.

A set is divided at random into training and test spikes, with six sizes of the training part (E1 to E6).
Every method gets the same divisions, is fitted and scored. A row is written as soon as its run ends, so that
interrupted experiments can be resumed. Scores are in percent; `seed` is the number of the division of a set.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_limits

from spikewise.core.files import writing
from spikewise.core.progress import ProgressCallback
from spikewise.core.seeds import stage_generator
from spikewise.papers.cnn1d.baselines import BASELINES
from spikewise.papers.cnn1d.config import PapersConfig
from spikewise.papers.cnn1d.methods import METHODS, classify, uses_labels
from spikewise.papers.cnn1d.sets import FEWEST_LABELS, PaperSet, load_set, make_set, small_seed
from spikewise.single_channel.scores import assign_clusters, classification_accuracy, macro_f

SHARES = {1: 0.05, 2: 0.10, 3: 0.20, 4: 0.30, 5: 0.40, 6: 0.50}
"""Fraction of the spikes that train, for each experiment."""
COLUMNS = (
    "set", "source", "dataset", "noise_level", "experiment", "method", "seed",
    "num_train", "num_test", "accuracy", "macro_f", "seconds",
)  # fmt: skip
_KEY = ["set", "experiment", "method", "seed"]


@dataclass(frozen=True)
class Job:
    """One method on one division of a set; without labels, on all divisions of one seed."""

    paper_set: PaperSet
    method: str
    seed: int
    experiments: tuple[int, ...]
    base_seed: int


def divide(labels: np.ndarray, share: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the training and the test spikes.

    The training spikes are the first of a random order; at least the first 2 of each unit are added. With the
    same state of the generator, a larger training part contains the smaller ones.

    Parameters
    ----------
    labels : ndarray
        (num_spikes,)
    share : float
        Fraction of the spikes that train, rounded to whole spikes.
    generator : Generator

    Returns
    -------
    train, test : ndarray
        Ascending indices; together all spikes.
    """
    order = generator.permutation(len(labels))
    is_train = np.zeros(len(labels), dtype=bool)
    is_train[order[: round(share * len(labels))]] = True
    for unit in np.unique(labels):
        is_train[order[labels[order] == unit][:FEWEST_LABELS]] = True
    return np.flatnonzero(is_train), np.flatnonzero(~is_train)


def division_of(
    paper_set: PaperSet, experiment: int, seed: int, base_seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the division of a set in an experiment: the same for all methods, nested from E1 to E6."""
    generator = stage_generator(base_seed, f"division {seed} of {paper_set.name}")
    return divide(load_set(paper_set).labels, SHARES[experiment], generator)


def run_job(job: Job) -> list[dict[str, Any]]:
    """Run a job and return its rows, one for each experiment, with the columns of :data:`COLUMNS`."""
    item = job.paper_set
    waveforms, labels, _ = load_set(item)
    seed = small_seed(job.base_seed, f"{job.method} {job.seed} {item.name}")
    divisions = {e: division_of(item, e, job.seed, job.base_seed) for e in job.experiments}
    started = time.perf_counter()
    if uses_labels(job.method):
        ((train, test),) = divisions.values()
        known = np.full(len(labels), -1)
        known[train] = labels[train]
        predictions = [classify(job.method, waveforms, known, test, seed)]
        num_train = len(train)
    else:
        rival, unknown = BASELINES[job.method](len(np.unique(labels)), seed), np.full(len(labels), -1)
        clusters = rival.fit(waveforms, unknown).predict(waveforms)
        predictions = [assign_clusters(labels[test], clusters[test]) for _, test in divisions.values()]
        num_train = 0
    seconds = time.perf_counter() - started
    return [
        {
            "set": item.name,
            "source": item.source,
            "dataset": item.dataset,
            "noise_level": item.noise_level,
            "experiment": experiment,
            "method": job.method,
            "seed": job.seed,
            "num_train": num_train,
            "num_test": len(test),
            "accuracy": round(100 * classification_accuracy(labels[test], predicted), 4),
            "macro_f": round(100 * macro_f(labels[test], predicted), 4),
            "seconds": round(seconds, 3),
        }
        for (experiment, (_, test)), predicted in zip(divisions.items(), predictions, strict=True)
    ]


def plan_jobs(
    sets: Iterable[PaperSet], methods: list[str], config: PapersConfig, done: set[tuple[str, int, str, int]]
) -> list[Job]:
    """Return the jobs of missing rows; `done` holds (set, experiment, method, seed) of finished ones."""
    experiments = sorted(set(config.experiments))
    jobs = []
    for item in sets:
        for seed in range(config.num_seeds):
            for method in methods:
                missing = [e for e in experiments if (item.name, e, method, seed) not in done]
                parts = [(e,) for e in missing] if uses_labels(method) else [tuple(missing)]
                jobs += [Job(item, method, seed, part, config.seed) for part in parts if part]
    return jobs


def run_missing(
    path: Path, sets: list[PaperSet], methods: list[str], config: PapersConfig, progress: ProgressCallback
) -> tuple[pd.DataFrame, int]:
    """Run the jobs whose rows are missing from a file of results.

    Parameters
    ----------
    path : Path
        The file; rows are added as soon as their job ends. An incomplete last line is removed.
    sets : list of PaperSet
    methods : list of str
        Names in :data:`~spikewise.papers.cnn1d.methods.METHODS`.
    config : PapersConfig
    progress : callable
        Called with the number of finished jobs.

    Returns
    -------
    rows : DataFrame
        All rows, sorted by set, experiment, method and seed; columns as in :data:`COLUMNS`.
    num_new : int
        Number of rows that were measured now.

    Raises
    ------
    OutputError
        If the file cannot be written.
    MissingExtraError
        If a package that a rival needs is not installed.
    """
    earlier = _read_rows(path)
    done = set(earlier[_KEY].itertuples(index=False, name=None))
    jobs = plan_jobs(sets, methods, config, done)
    new: list[dict[str, Any]] = []
    with writing(path), path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        for count, rows in enumerate(spread(run_job, [(job,) for job in jobs], config.num_jobs), 1):
            writer.writerows(rows)
            file.flush()
            new += rows
            last = rows[-1]
            note = f"{last['method']} on {last['set']}: {last['accuracy']:.2f} %"
            progress("experiments", count, len(jobs), note)
    order = {name: index for index, name in enumerate([*METHODS, *(item.name for item in sets)])}
    rows = _read_rows(path).sort_values(
        _KEY, key=lambda part: part.map(order) if part.dtype.kind == "O" else part
    )
    return rows.reset_index(drop=True), len(new)


def _read_rows(path: Path) -> pd.DataFrame:
    """Return the rows of a file of results; an incomplete last line is removed from the file."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    with writing(path):
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            path.write_bytes(whole)
    return pd.read_csv(path) if whole else pd.DataFrame(columns=COLUMNS)


def spread(function: Callable[..., Any], arguments: list[tuple], num_jobs: int) -> Iterator[Any]:
    """Run calls in parallel processes with one thread each; yield results in the order in which calls end."""
    if not arguments:
        return
    with parallel_config(backend="loky", inner_max_num_threads=1):
        yield from Parallel(n_jobs=num_jobs, return_as="generator_unordered")(
            delayed(_on_one_thread)(function, *call) for call in arguments
        )


def _on_one_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    with threadpool_limits(limits=1):
        return function(*arguments)


def make_missing(sets: list[PaperSet], num_jobs: int, progress: ProgressCallback) -> None:
    """Simulate the generated sets whose files are missing, see :func:`make_set`."""
    missing = [item for item in sets if item.simulation is not None and not item.path.exists()]
    for count, name in enumerate(spread(make_set, [(item,) for item in missing], num_jobs), 1):
        progress("sets", count, len(missing), name)
