"""The experiments of Li et al. 2020, run again: sets, divisions, methods, tables and studies.

A set of labelled waveforms is divided at random into spikes that train and spikes that test, six times with
more that train (E1 to E6). Every method gets the same divisions, learns and is scored; each score is a row of
``results.csv``, written as soon as it is known, so that a run that was stopped goes on where it was.

The paper used the 20 public simulations of Wave_Clus and 28 channels of CRCNS pvc-5. Those of the 20 that are
not at hand are simulated in their manner, and so are all channels. Such sets are marked ``generated``: other
units at other times, so that their scores stand beside the published ones without being the same measurement.

Conventions: a file whose name is that of a public set (``C_Easy1_noise015``) is taken for that set, cut at
the true times; any other file is a set of its own. Spikes without a unit are left out, and so are units with
less than 0.5 % of the spikes or fewer than 4. Scores are in percent. `seed` counts the divisions of a set.

References
----------
Li, Wang, Zhang, Li 2020, Brain Sci. 10:835.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed, parallel_config
from scipy.interpolate import CubicSpline
from threadpoolctl import threadpool_limits

from spikewise.data.wave_clus import save_wave_clus, simulate_wave_clus
from spikewise.data.waveform_files import SNIPPET_FORMATS, load_wave_clus_signal
from spikewise.data.waveform_windows import shift_into_silence
from spikewise.data.waveforms import Snippets, load_snippets
from spikewise.errors import Interrupted, OutputError, SettingError, WaveformsError
from spikewise.evaluation.baselines import BASELINES
from spikewise.evaluation.classification import assign_clusters, classification_accuracy, confusion, macro_f
from spikewise.models.waveform_classifier import WaveformClassifier, train_classifier
from spikewise.progress import ProgressCallback, silent
from spikewise.seeds import stage_generator, stage_seed
from spikewise.sorting.store import save_json, writing
from spikewise.waveform_config import (
    WAVEFORM_PRESETS,
    PapersConfig,
    SnippetsConfig,
    WaveClusConfig,
    WaveformTrainingConfig,
)

logger = logging.getLogger(__name__)

SHARES = {1: 0.05, 2: 0.10, 3: 0.20, 4: 0.30, 5: 0.40, 6: 0.50}
"""Share of the spikes that trains, for each experiment."""
PRESETS: tuple[Literal["default", "paper"], ...] = ("default", "paper")
METHODS = (*PRESETS, *BASELINES)
STUDY_SETS = ("C_Easy1_noise015", "C_Difficult1_noise015")
"""The sets that the paper chose its network on, and shows figures of."""
COLUMNS = (
    "set", "source", "dataset", "noise_level", "experiment", "method", "seed",
    "num_train", "num_test", "accuracy", "macro_f", "seconds",
)  # fmt: skip
CHANNEL_NOISE = (0.05, 0.25)
"""Range that the noise level of a generated channel is drawn from."""

_KEY = ["set", "experiment", "method", "seed"]
_PUBLISHED = Path(__file__).with_name("published")
_PUBLIC_NAME = re.compile(r"(C_(?:Easy|Difficult)[12])_noise(0\d+)")
_KEY_PAIRS = ((None, None), ("spikes_thr_unaligned", "labels_thr"))
_FEWEST_LABELS = 2
_FEWEST_SPIKES = 2 * _FEWEST_LABELS
_LEAST_SHARE = 0.005
_CHANNEL_LEAST_SHARE = 0.015
_CHANNEL_RATE_HZ = 60.0
_CHANNEL_HZ, _CHANNEL_SAMPLES = 24_400.0, 12
_SETTINGS_FILE, _RESULTS_FILE, _PAGE_FILE = "settings.json", "results.csv", "papers.html"
_FOLDERS = ("sets", "tables", "studies", "figures")
_RIVALS_EXPERIMENT = 2

_LABEL_COUNTS = (5, 10, 20, 40, 80, 160)
_POINTS = (64, 48, 32, 24, 16)
_PUBLISHED_POINTS = {
    ("C_Easy1_noise015", 64): 99.77,
    ("C_Easy1_noise015", 16): 99.14,
    ("C_Difficult1_noise015", 64): 99.42,
    ("C_Difficult1_noise015", 16): 87.91,
}
_FEW_LABEL_METHODS = ("default", "paper", "wmsorting_f10", "fusion_svm_f10")
_LAG_EDGES = tuple(range(0, 65, 8))
_RATIO_EDGES = (0.5, 0.75, 1.0)
_PAIRS_PER_CELL = 200


@dataclass(frozen=True)
class PaperSet:
    """A set of labelled waveforms, in a file that is there or will be made.

    Attributes
    ----------
    name : str
    source : "real" or "generated"
    kind : "wave_clus", "channel" or "other"
        Of table 1 and 2, of table 3, or of no published table.
    path : Path
    dataset : str
        As in the published table, such as ``C_Easy1``; for others the name.
    noise_level : float or None
        Where it is known.
    reading : SnippetsConfig
    simulation : WaveClusConfig or None
        What a generated set is made with.
    """

    name: str
    source: Literal["real", "generated"]
    kind: Literal["wave_clus", "channel", "other"]
    path: Path
    dataset: str
    noise_level: float | None
    reading: SnippetsConfig
    simulation: WaveClusConfig | None = None


@dataclass(frozen=True)
class PaperResults:
    """What a run measured, and where it lies.

    Attributes
    ----------
    output : Path
        The folder: ``results.csv``, ``tables/``, ``studies/``, ``figures/``, ``papers.html``.
    page : Path
    config : PapersConfig
    sets : tuple of PaperSet
    rows : DataFrame
        All scores, columns as in :data:`COLUMNS`.
    num_new : int
        Rows that this run measured; the others were there.
    tables : dict of str to DataFrame
        ``table1`` to ``table3``: a row for each cell, see :func:`compare`; ``means``; ``real_sets``.
    studies : dict of str to DataFrame
        By the names in :data:`STUDIES`; only those that the chosen sets and methods allow.
    """

    output: Path
    page: Path
    config: PapersConfig
    sets: tuple[PaperSet, ...]
    rows: pd.DataFrame
    num_new: int
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    studies: dict[str, pd.DataFrame] = field(default_factory=dict)


def run_cnn_paper(
    output: Path | str,
    data: Path | str | None = None,
    config: PapersConfig | None = None,
    progress: ProgressCallback = silent,
) -> PaperResults:
    """Run the experiments, and write scores, tables, studies, figures and a page of them all.

    Parameters
    ----------
    output : path
        Folder to write: new, empty, or of an earlier run with the same settings, which is then completed.
    data : path, optional
        Folder that is searched for sets of labelled waveforms.
    config : PapersConfig, optional
    progress : callable
        Told how many jobs are done.

    Returns
    -------
    PaperResults

    Raises
    ------
    SettingError
        If a method or set is unknown.
    OutputError
        If the folder holds anything else, or a run with other settings, or cannot be written.
    WaveformsError
        If `data` is no folder, or the shapes cannot be used.
    MissingExtraError
        If matplotlib, or a package that a rival needs, is not installed.
    Interrupted
        If it was stopped; what was finished is kept.
    """
    from spikewise.output.figures import require_matplotlib
    from spikewise.output.papers_page import write_papers_page

    require_matplotlib()
    output, config = Path(output), config or PapersConfig()
    methods = choose_methods(config.methods)
    _check_folder(output)
    sets = find_sets(output, None if data is None else Path(data), config)
    _claim(output, _fingerprint(sets, config))
    try:
        _make_missing(sets, config.num_jobs, progress)
        rows, num_new = _run_missing(output / _RESULTS_FILE, sets, methods, config, progress)
        studies = _run_studies(output / "studies", sets, methods, config, progress)
    except KeyboardInterrupt as error:
        raise Interrupted(
            "the experiments were interrupted",
            f"{output} keeps what was finished",
            "run the same command again to go on from there",
        ) from error
    tables = make_tables(rows)
    _write_tables(tables, output / "tables")
    results = PaperResults(output, output / _PAGE_FILE, config, tuple(sets), rows, num_new, tables, studies)
    write_papers_page(results)
    return results


# What is run: methods and sets ------------------------------------------------------------------------------


def choose_methods(names: Iterable[str]) -> list[str]:
    """Return the methods that are named, ours first; raise :class:`SettingError` if one is unknown."""
    names = list(names)
    unknown = [name for name in names if name not in ("all", *METHODS)]
    if unknown or not names:
        raise SettingError(
            f"methods is {', '.join(unknown) or 'empty'}",
            f"allowed: all, {', '.join(METHODS)}",
            "change methods",
        )
    return [method for method in METHODS if "all" in names or method in names]


def uses_labels(method: str) -> bool:
    """Tell whether a method learns from labels; those that do not are fitted once for each seed."""
    return method in PRESETS or BASELINES[method](2, 0).is_supervised


def published_table(name: str) -> pd.DataFrame:
    """Return a table of the paper: ``cnn_table1``, ``cnn_table2`` or ``cnn_table3_macro_f``, in percent."""
    return pd.read_csv(_PUBLISHED / f"{name}.csv")


def find_sets(output: Path, data: Path | None, config: PapersConfig) -> list[PaperSet]:
    """Return the sets that the configuration asks for: those of a folder, and those to be generated.

    Parameters
    ----------
    output : Path
        Generated sets lie in its ``sets/``; nothing in it is taken for a real set.
    data : Path or None
        Searched with all folders in it. What is no set of labelled waveforms is left out, with a note.
    config : PapersConfig

    Raises
    ------
    WaveformsError
        If `data` is no folder.
    SettingError
        If a name fits no set.
    """
    real = [] if data is None else _real_sets(data, output)
    at_hand = {item.name for item in real if item.kind == "wave_clus"}
    public = published_table("cnn_table1")[["dataset", "noise_level"]].itertuples(index=False)
    generated = [_wave_clus_set(dataset, level, output / "sets", config) for dataset, level in public]
    generated += [
        _channel_set(channel, num_units, output / "sets", config)
        for channel, num_units in published_table("cnn_table3_macro_f")[["channel", "n_clusters"]].to_numpy()
    ]
    known = real + [item for item in generated if item.name not in at_hand]
    groups = ("all", "real", "generated")
    unknown = [
        name for name in config.sets if name not in groups and not any(s.name.startswith(name) for s in known)
    ]
    chosen = [
        item
        for item in known
        if any(name in ("all", item.source) or item.name.startswith(name) for name in config.sets)
    ]
    if unknown or not chosen:
        raise SettingError(
            f"sets is {', '.join(unknown or config.sets) or 'empty'}"
            + ("" if unknown else ", and there is no such set"),
            f"allowed: {', '.join(groups)}, or beginnings of {', '.join(item.name for item in known)}",
            "change sets, or the folder of data",
        )
    return chosen


def public_name(dataset: str, noise_level: float) -> str:
    """Return the file name of a public set, without its ending: C_Easy1 at 0.1 is C_Easy1_noise01."""
    return f"{dataset}_noise{f'{noise_level:.2f}'.replace('.', '').rstrip('0')}"


def _real_sets(data: Path, output: Path) -> list[PaperSet]:
    if not data.is_dir():
        raise WaveformsError(
            f"there is no folder {data}",
            "a folder with files of waveforms",
            "check the path, or leave it out",
        )
    found: dict[str, PaperSet] = {}
    for path in sorted(data.rglob("*")):
        is_readable = path.is_file() and path.suffix.lower() in SNIPPET_FORMATS
        if is_readable and not path.resolve().is_relative_to(output.resolve()):
            name = path.stem if path.stem not in found else path.relative_to(data).as_posix()
            item = _real_set(path, name)
            if item is not None:
                found[name] = item
    return list(found.values())


def _real_set(path: Path, name: str) -> PaperSet | None:
    """Return the labelled waveforms of a file as a set, or None with a note why it is none."""
    reasons = []
    for waveforms_key, labels_key in _KEY_PAIRS:
        reading = SnippetsConfig(waveforms_key=waveforms_key, labels_key=labels_key)
        try:
            spikes = _kept_spikes(load_snippets(path, reading))
        except WaveformsError as error:
            reasons.append(error.given)
            continue
        if len(np.unique(spikes.labels)) < 2:
            reasons.append("it has no labelled spikes of two units")
            continue
        public = _PUBLIC_NAME.fullmatch(name)
        named = _PUBLIC_NAME.search(name)
        level = None if named is None else int(named[2]) / 10 ** (len(named[2]) - 1)
        dataset = named[1] if named else name
        return PaperSet(name, "real", "wave_clus" if public else "other", path, dataset, level, reading)
    logger.info("%s is left out: %s", path, reasons[0])
    return None


def _wave_clus_set(dataset: str, noise_level: float, folder: Path, config: PapersConfig) -> PaperSet:
    """Return a stand-in for a public set; all noise levels of a dataset have the same units."""
    simulation = WaveClusConfig.from_dict(
        {
            "shapes": config.shapes,
            "difficulty": dataset.removeprefix("C_").lower(),
            "noise_level": noise_level,
            "duration_s": config.duration_s,
            "seed": _small_seed(config.seed, f"set {dataset}"),
        }
    )
    name = public_name(dataset, noise_level)
    reading = SnippetsConfig(num_samples=simulation.num_samples)
    return PaperSet(
        name, "generated", "wave_clus", folder / f"{name}.mat", dataset, noise_level, reading, simulation
    )


def _channel_set(channel: int, num_units: int, folder: Path, config: PapersConfig) -> PaperSet:
    """Return a set in the manner of a channel of pvc-5: short waveforms, units that fire unequally often.

    Rates are drawn from a Dirichlet distribution, and none is below 1.5 % of all; the noise level is drawn
    from :data:`CHANNEL_NOISE`.
    """
    name = f"channel_{channel}"
    generator = stage_generator(config.seed, f"set {name}")
    shares = generator.dirichlet(np.ones(num_units)) * (1 - num_units * _CHANNEL_LEAST_SHARE)
    noise_level = round(float(generator.uniform(*CHANNEL_NOISE)), 3)
    simulation = WaveClusConfig(
        shapes=config.shapes,
        num_units=int(num_units),
        noise_level=noise_level,
        duration_s=config.duration_s,
        firing_rates_hz=tuple((_CHANNEL_RATE_HZ * (shares + _CHANNEL_LEAST_SHARE)).tolist()),
        sampling_frequency=_CHANNEL_HZ,
        num_samples=_CHANNEL_SAMPLES,
        seed=_small_seed(config.seed, f"set {name}"),
    )
    reading = SnippetsConfig(num_samples=_CHANNEL_SAMPLES)
    path = folder / f"{name}.mat"
    return PaperSet(name, "generated", "channel", path, name, noise_level, reading, simulation)


def _small_seed(seed: int, stage: str) -> int:
    """Return the seed of a stage, below 2**31 as settings want it."""
    return stage_seed(seed, stage) >> 1


class Spikes(NamedTuple):
    """The spikes of a set that have a unit.

    ``waveforms`` (num_spikes, num_samples) float32, ``labels`` (num_spikes,) int64 from 0, ``is_overlap``
    (num_spikes,) bool: whether another spike overlaps, where the set tells it.
    """

    waveforms: np.ndarray
    labels: np.ndarray
    is_overlap: np.ndarray


@lru_cache(maxsize=4)
def load_set(paper_set: PaperSet) -> Spikes:
    """Read a set: its labelled spikes, without units that have hardly any."""
    return _kept_spikes(load_snippets(paper_set.path, paper_set.reading))


def _kept_spikes(snippets: Snippets) -> Spikes:
    snippets = snippets.select(snippets.is_labelled)
    labels = np.empty(0, np.int64) if snippets.labels is None else snippets.labels
    _, unit_index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    is_kept = (counts >= max(_FEWEST_SPIKES, _LEAST_SHARE * len(labels)))[unit_index]
    overlaps = np.zeros(len(snippets), bool) if snippets.is_overlap is None else snippets.is_overlap
    unit_index = np.unique(unit_index[is_kept], return_inverse=True)[1]
    return Spikes(snippets.waveforms[is_kept], unit_index, overlaps[is_kept])


# The folder -------------------------------------------------------------------------------------------------


def _check_folder(output: Path) -> None:
    """Raise unless the folder is new, empty, or of an earlier run."""
    with writing(output):
        if not output.exists():
            return
        names = sorted(item.name for item in output.iterdir()) if output.is_dir() else [output.name]
    ours = {_SETTINGS_FILE, _RESULTS_FILE, _PAGE_FILE, *_FOLDERS}
    foreign = [name for name in names if name.removesuffix(".partial") not in ours]
    if foreign or (names and _SETTINGS_FILE not in names):
        raise OutputError(
            f"{output} holds {', '.join((foreign or names)[:5])}",
            "a new or empty folder, or one of an earlier run of these experiments",
            "choose another folder",
        )


def _fingerprint(sets: list[PaperSet], config: PapersConfig) -> dict[str, Any]:
    """Return what decides the scores: settings, version, and the contents of the files that are read."""
    from spikewise import __version__

    settings = {name: value for name, value in config.to_dict().items() if name != "num_jobs"}
    files = {item.name: _hash_of(item.path) for item in sets if item.source == "real"}
    if config.shapes is not None:
        settings["shapes"] = _hash_of(Path(config.shapes))
    return {
        "experiments_of": "Li et al. 2020",
        "version": __version__,
        **settings,
        "files": files,
        "networks": json.loads(json.dumps(WAVEFORM_PRESETS)),
    }


def _hash_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WaveformsError(
            f"{path} cannot be read: {error.strerror}", "a file that can be read", "check the path"
        ) from error


def _claim(output: Path, fingerprint: dict[str, Any]) -> None:
    """Note in the folder what it is made with, or raise if it was made with anything else."""
    path = output / _SETTINGS_FILE
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        save_json(fingerprint, path)
    with writing(output):
        for name in _FOLDERS:
            (output / name).mkdir(exist_ok=True)
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    if not isinstance(earlier, dict) or earlier.get("experiments_of") != fingerprint["experiments_of"]:
        raise OutputError(f"{path} is no settings of these experiments", "its own", "choose another folder")
    changed = _differences(earlier, fingerprint)
    if changed:
        raise OutputError(
            f"{output} was made with other settings ({'; '.join(changed)})",
            "the same settings, with which a run goes on",
            "choose another folder, or give the settings of the earlier run",
        )


def _differences(earlier: dict[str, Any], now: dict[str, Any], within: str = "") -> list[str]:
    """Return in words what differs between two dictionaries of JSON types."""
    found = []
    for name in dict.fromkeys([*now, *earlier]):
        before, after = earlier.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{within}{name} ")
        elif before != after:
            found.append(f"{within}{name}: {_short(before)}, now {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        frame.to_csv(partial, index=False, float_format="%.6g")
        partial.replace(path)


# The runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One method on one division of a set, or on all of one seed where it does not use labels."""

    paper_set: PaperSet
    method: str
    seed: int
    experiments: tuple[int, ...]
    base_seed: int


def divide(labels: np.ndarray, share: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the spikes that train and those that test.

    Those that train are the first of a random order; where these hold fewer than 2 of a unit, the first 2 of
    that unit train too. From one state of the generator a larger share thus holds the smaller ones.

    Parameters
    ----------
    labels : ndarray
        (num_spikes,)
    share : float
        Of the spikes that train, rounded to whole spikes.
    generator : Generator

    Returns
    -------
    train, test : ndarray
        Indices, ascending; together all spikes.
    """
    order = generator.permutation(len(labels))
    is_train = np.zeros(len(labels), dtype=bool)
    is_train[order[: round(share * len(labels))]] = True
    for unit in np.unique(labels):
        is_train[order[labels[order] == unit][:_FEWEST_LABELS]] = True
    return np.flatnonzero(is_train), np.flatnonzero(~is_train)


def division_of(
    paper_set: PaperSet, experiment: int, seed: int, base_seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the division of a set in an experiment: the same for all methods, nested from E1 to E6."""
    generator = stage_generator(base_seed, f"division {seed} of {paper_set.name}")
    return divide(load_set(paper_set).labels, SHARES[experiment], generator)


def answer(method: str, waveforms: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Let a method learn, and return what it says of some of the spikes.

    Parameters
    ----------
    method : str
        Of :data:`METHODS`.
    waveforms : ndarray
        (num_spikes, num_samples)
    labels : ndarray
        (num_spikes,) from 0, -1 where the method may not know; it may use the waveforms of all spikes.
    test : ndarray
        Indices of the spikes to answer for.
    seed : int

    Returns
    -------
    ndarray
        (num_test,) units, or numbers of clusters.
    """
    known = labels >= 0
    if method in PRESETS:
        classifier = _train(method, waveforms[known], labels[known], seed)
        return classifier.classify(waveforms[test]).labels
    rival = BASELINES[method](len(np.unique(labels[known])), seed)
    return rival.fit(waveforms, labels).predict(waveforms[test])


def _train(preset: str, waveforms: np.ndarray, labels: np.ndarray, seed: int) -> WaveformClassifier:
    config = WaveformTrainingConfig.from_dict({"preset": preset, "seed": seed, "calibration_fraction": 0.0})
    classifier = train_classifier(waveforms, labels, config)
    if classifier.facts["interrupted"]:
        raise KeyboardInterrupt  # training ends early then, and its score would be none
    return classifier


def run_job(job: Job) -> list[dict[str, Any]]:
    """Run a job and return its rows, one for each experiment, with the columns of :data:`COLUMNS`."""
    item = job.paper_set
    waveforms, labels, _ = load_set(item)
    seed = _small_seed(job.base_seed, f"{job.method} {job.seed} {item.name}")
    divisions = {e: division_of(item, e, job.seed, job.base_seed) for e in job.experiments}
    started = time.perf_counter()
    if uses_labels(job.method):
        ((train, test),) = divisions.values()
        known = np.full(len(labels), -1)
        known[train] = labels[train]
        answers = [answer(job.method, waveforms, known, test, seed)]
        num_train = len(train)
    else:
        rival, unknown = BASELINES[job.method](len(np.unique(labels)), seed), np.full(len(labels), -1)
        clusters = rival.fit(waveforms, unknown).predict(waveforms)
        answers = [assign_clusters(labels[test], clusters[test]) for _, test in divisions.values()]
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
        for (experiment, (_, test)), predicted in zip(divisions.items(), answers, strict=True)
    ]


def plan_jobs(
    sets: Iterable[PaperSet], methods: list[str], config: PapersConfig, done: set[tuple[str, int, str, int]]
) -> list[Job]:
    """Return the jobs whose rows are missing; `done` holds set, experiment, method and seed of the others."""
    experiments = sorted(set(config.experiments))
    jobs = []
    for item in sets:
        for seed in range(config.num_seeds):
            for method in methods:
                missing = [e for e in experiments if (item.name, e, method, seed) not in done]
                parts = [(e,) for e in missing] if uses_labels(method) else [tuple(missing)]
                jobs += [Job(item, method, seed, part, config.seed) for part in parts if part]
    return jobs


def _run_missing(
    path: Path, sets: list[PaperSet], methods: list[str], config: PapersConfig, progress: ProgressCallback
) -> tuple[pd.DataFrame, int]:
    """Run what is missing; return all rows, and how many are new."""
    earlier = _read_rows(path)
    done = set(earlier[_KEY].itertuples(index=False, name=None))
    jobs = plan_jobs(sets, methods, config, done)
    new: list[dict[str, Any]] = []
    with writing(path), path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        for count, rows in enumerate(_spread(run_job, [(job,) for job in jobs], config.num_jobs), 1):
            writer.writerows(rows)
            file.flush()
            new += rows
            last = rows[-1]
            note = f"{last['method']} on {last['set']}: {last['accuracy']:.2f} %"
            progress("experiments", count, len(jobs), note)
    order = {name: place for place, name in enumerate([*METHODS, *(item.name for item in sets)])}
    rows = _read_rows(path).sort_values(
        _KEY, key=lambda part: part.map(order) if part.dtype.kind == "O" else part
    )
    return rows.reset_index(drop=True), len(new)


def _read_rows(path: Path) -> pd.DataFrame:
    """Return the rows of a file of results; a last line that was cut short is taken away from it."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    with writing(path):
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            path.write_bytes(whole)
    return pd.read_csv(path) if whole else pd.DataFrame(columns=COLUMNS)


def _spread(function: Callable[..., Any], arguments: list[tuple], num_jobs: int) -> Iterator[Any]:
    """Yield the results of calls in the order in which they end, from processes with a thread each."""
    if not arguments:
        return
    with parallel_config(backend="loky", inner_max_num_threads=1):
        yield from Parallel(n_jobs=num_jobs, return_as="generator_unordered")(
            delayed(_on_one_thread)(function, *given) for given in arguments
        )


def _on_one_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    with threadpool_limits(limits=1):
        return function(*arguments)


def _make_missing(sets: list[PaperSet], num_jobs: int, progress: ProgressCallback) -> None:
    missing = [item for item in sets if item.simulation is not None and not item.path.exists()]
    for count, name in enumerate(_spread(_make_set, [(item,) for item in missing], num_jobs), 1):
        progress("sets", count, len(missing), name)


def _make_set(item: PaperSet) -> str:
    assert item.simulation is not None
    save_wave_clus(simulate_wave_clus(item.simulation), item.path)
    return item.name


# The tables -------------------------------------------------------------------------------------------------


def make_tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the paper's tables beside what was measured, from the rows alone.

    Parameters
    ----------
    rows : DataFrame
        Columns as in :data:`COLUMNS`.

    Returns
    -------
    dict of str to DataFrame
        ``table1``, ``table2``, ``table3`` from :func:`compare`, ``means`` from :func:`mean_scores`, and
        ``real_sets`` with mean and standard deviation over the seeds.
    """
    experiments = sorted(rows["experiment"].unique())
    rivals_at = _RIVALS_EXPERIMENT if _RIVALS_EXPERIMENT in experiments else experiments[0]
    tables = {}
    for name, file, keys, score in (
        ("table1", "cnn_table1", ["dataset", "noise_level"], "accuracy"),
        ("table2", "cnn_table2", ["dataset", "noise_level"], "accuracy"),
        ("table3", "cnn_table3_macro_f", ["channel", "n_clusters"], "macro_f"),
    ):
        published = published_table(file)
        columns = _cells_of(list(published), experiments, rivals_at)
        names = (
            [f"channel_{channel}" for channel in published["channel"]]
            if "channel" in keys
            else [public_name(*row) for row in published[keys].itertuples(index=False)]
        )
        tables[name] = compare(published.assign(set=names), rows, columns, [*keys], score)
    tables["means"] = mean_scores(rows, experiments, rivals_at)
    tables["real_sets"] = _real_scores(rows)
    return tables


def _cells_of(
    published: list[str], experiments: list[int], rivals_at: int
) -> dict[str, list[tuple[str, int]]]:
    """Return, for each published column, the methods and the experiment that it stands beside."""
    cells: dict[str, list[tuple[str, int]]] = {}
    for column in published:
        if column in BASELINES:
            cells[column] = [(column, rivals_at)]
        elif re.fullmatch(r"cnn_e\d", column) and int(column[-1]) in experiments:
            cells[column] = [(preset, int(column[-1])) for preset in PRESETS]
    return cells


def compare(
    published: pd.DataFrame,
    rows: pd.DataFrame,
    columns: dict[str, list[tuple[str, int]]],
    keys: list[str],
    score: str,
) -> pd.DataFrame:
    """Return the cells of a published table beside what was measured.

    Parameters
    ----------
    published : DataFrame
        A row for each set, in percent; the column `set` holds the set's name.
    rows : DataFrame
        Columns as in :data:`COLUMNS`.
    columns : dict
        For each published column the methods and experiments that it is compared with.
    keys : list of str
        Columns of `published` that name its rows.
    score : "accuracy" or "macro_f"

    Returns
    -------
    DataFrame
        Long: `keys`, `set`, `source`, `column`, `method` ("published" or one of :data:`METHODS`),
        `experiment`, `mean`, `sd` (NaN for one seed), `num_seeds`. Only sets that were run.
    """
    source = rows.drop_duplicates("set").set_index("set")["source"]
    scores = rows.groupby(["set", "method", "experiment"])[score].agg(["mean", "std", "count"])
    measured = {key: tuple(values) for key, values in zip(scores.index, scores.to_numpy(), strict=True)}
    cells = []
    for row in published[published["set"].isin(source.index)].to_dict("records"):
        place = {**{key: row[key] for key in keys}, "set": row["set"], "source": source[row["set"]]}
        for column, methods in columns.items():
            beside = [
                (method, e, *measured[key])
                for method, e in methods
                if (key := (row["set"], method, e)) in measured
            ]
            told = ("published", methods[0][1], row[column], np.nan, 0)
            for method, experiment, mean, sd, count in [told, *beside]:
                cells.append(
                    {**place, "column": column, "method": method, "experiment": experiment,
                     "mean": mean, "sd": sd, "num_seeds": int(count)}
                )  # fmt: skip
    names = [*keys, "set", "source", "column", "method", "experiment", "mean", "sd", "num_seeds"]
    return pd.DataFrame(cells, columns=names)


def mean_scores(rows: pd.DataFrame, experiments: list[int], rivals_at: int) -> pd.DataFrame:
    """Return the mean accuracy over the Wave_Clus sets, the figure by which the paper compares methods.

    Returns
    -------
    DataFrame
        `method`, `experiment`, `num_sets` and `num_generated` that were run and have a published score,
        `mean` over them, `sd` over the seeds of that mean, `published_mean` over the same sets and
        `published_mean_all` over all 20.
    """
    tables = [published_table(name) for name in ("cnn_table1", "cnn_table2")]
    published = tables[0].merge(tables[1].drop(columns="cnn_e2"), on=["dataset", "noise_level"])
    names = [public_name(*row) for row in published[["dataset", "noise_level"]].itertuples(index=False)]
    published = published.set_index(pd.Index(names, name="set"))
    means = []
    for column, methods in _cells_of(list(published), experiments, rivals_at).items():
        told = published[column].dropna()
        for method, experiment in methods:
            mine = rows[
                (rows["method"] == method) & (rows["experiment"] == experiment) & rows["set"].isin(told.index)
            ]
            if mine.empty:
                continue
            sources = mine.drop_duplicates("set")["source"]
            of_seeds = mine.groupby("seed")["accuracy"].mean()
            means.append(
                {
                    "method": method,
                    "experiment": experiment,
                    "num_sets": len(sources),
                    "num_generated": int((sources == "generated").sum()),
                    "mean": of_seeds.mean(),
                    "sd": of_seeds.std(),
                    "published_mean": told[told.index.isin(mine["set"])].mean(),
                    "published_mean_all": told.mean(),
                }
            )
    names = [
        "method",
        "experiment",
        "num_sets",
        "num_generated",
        "mean",
        "sd",
        "published_mean",
        "published_mean_all",
    ]
    return pd.DataFrame(means, columns=names)


def _real_scores(rows: pd.DataFrame) -> pd.DataFrame:
    groups = rows[rows["source"] == "real"].groupby(["set", "experiment", "method"], sort=False)
    return groups.agg(
        num_train=("num_train", "first"),
        num_test=("num_test", "first"),
        num_seeds=("seed", "count"),
        accuracy_mean=("accuracy", "mean"),
        accuracy_sd=("accuracy", "std"),
        macro_f_mean=("macro_f", "mean"),
        macro_f_sd=("macro_f", "std"),
        seconds=("seconds", "mean"),
    ).reset_index()


def widen(cells: pd.DataFrame) -> pd.DataFrame:
    """Return what :func:`compare` made in wide form: each published column, then what was measured."""
    keys = list(cells.columns[: list(cells.columns).index("source") + 1])
    table: dict[str, dict[str, Any]] = {}
    for cell in cells.to_dict("records"):
        row = table.setdefault(cell["set"], {key: cell[key] for key in keys})
        if cell["method"] == "published":
            row[f"published_{cell['column']}"] = cell["mean"]
        else:
            name = f"{cell['method']}_e{cell['experiment']}"
            row |= {f"{name}_mean": cell["mean"], f"{name}_sd": cell["sd"]}
    return pd.DataFrame(list(table.values()))


def _write_tables(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    for name, table in tables.items():
        _write_csv(widen(table) if "column" in table else table, folder / f"{name}.csv")


# The studies ------------------------------------------------------------------------------------------------


def _run_studies(
    folder: Path, sets: list[PaperSet], methods: list[str], config: PapersConfig, progress: ProgressCallback
) -> dict[str, pd.DataFrame]:
    """Run the studies on the sets of :data:`STUDY_SETS` that were chosen; those that are there are read."""
    chosen = [item for name in STUDY_SETS for item in sets if item.name == name]
    missing = [name for name in STUDIES if chosen and not (folder / f"{name}.csv").exists()]
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in missing}
    calls = [(name, item, methods, config.seed) for name in missing for item in chosen]
    for count, (name, frame) in enumerate(_spread(_run_study, calls, config.num_jobs), 1):
        path = folder / f"{name}.csv"
        parts[name].append(frame)
        if len(parts[name]) == len(chosen):
            frame = pd.concat(parts[name])
            _write_csv(
                frame.sort_values("set", key=lambda names: names.map(STUDY_SETS.index), kind="stable"), path
            )
        progress("studies", count, len(calls), name.replace("_", " "))
    if not chosen:
        return {}
    found = {name: pd.read_csv(folder / f"{name}.csv") for name in STUDIES}
    return {name: frame for name, frame in found.items() if len(frame)}


def _run_study(name: str, item: PaperSet, methods: list[str], base_seed: int) -> tuple[str, pd.DataFrame]:
    frame = STUDIES[name](item, methods, base_seed)
    frame.insert(0, "set", item.name)
    frame.insert(1, "source", item.source)
    return name, frame


def _trained_on_half(item: PaperSet, preset: str, base_seed: int) -> tuple[WaveformClassifier, np.ndarray]:
    """Return the network of E6, first division, and the spikes that test it."""
    spikes, (train, test) = load_set(item), division_of(item, 6, 0, base_seed)
    seed = _small_seed(base_seed, f"{preset} 0 {item.name}")
    return _train(preset, spikes.waveforms[train], spikes.labels[train], seed), test


def study_confusion(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Count how often each unit is taken for each: our default in E6."""
    rows: list[tuple] = []
    if "default" in methods:
        spikes = load_set(item)
        classifier, test = _trained_on_half(item, "default", base_seed)
        said = classifier.classify(spikes.waveforms[test]).labels
        counts = confusion(spikes.labels[test], said, np.unique(spikes.labels))
        rows = [(*true_and_said, count) for true_and_said, count in np.ndenumerate(counts)]
    return pd.DataFrame(rows, columns=["true_unit", "predicted_unit", "count"])


def study_misclassified(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Collect the spikes that our default gets wrong in E6, and the mean waveform of each unit.

    `kind` is "mean" or "wrong"; the waveform is in the columns ``sample_0`` and so on.
    """
    spikes = load_set(item)
    rows: list[tuple] = []
    if "default" in methods:
        classifier, test = _trained_on_half(item, "default", base_seed)
        said = classifier.classify(spikes.waveforms[test]).labels
        rows = [("mean", unit, unit, False, *mean) for unit, mean in enumerate(_unit_means(spikes))]
        rows += [
            ("wrong", spikes.labels[spike], unit, spikes.is_overlap[spike], *spikes.waveforms[spike])
            for spike, unit in zip(test, said, strict=True)
            if spikes.labels[spike] != unit
        ]
    samples = [f"sample_{sample}" for sample in range(spikes.waveforms.shape[1])]
    return pd.DataFrame(rows, columns=["kind", "true_unit", "predicted_unit", "is_overlap", *samples])


def study_losses(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Tell the training loss of each epoch in E6. The default's loss has a second part, so levels differ."""
    rows = [
        (preset, epoch, loss)
        for preset in PRESETS
        if preset in methods
        for epoch, loss in enumerate(_trained_on_half(item, preset, base_seed)[0].facts["train_loss"], 1)
    ]
    return pd.DataFrame(rows, columns=["method", "epoch", "loss"])


def study_labels(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Measure accuracy against the number of labelled spikes of each unit.

    The labelled spikes are the first of each unit in a random order. Those that any number could take are
    left out of the test, so that all numbers are tested on the same spikes; numbers above half of the
    smallest unit are left out.
    """
    waveforms, labels, _ = load_set(item)
    counts = [count for count in _LABEL_COUNTS if count <= np.bincount(labels).min() // 2]
    place = _place_in_unit(labels, stage_generator(base_seed, f"labels of {item.name}"))
    test = np.flatnonzero(place >= max(counts, default=0))
    rows = []
    for method in (name for name in _FEW_LABEL_METHODS if name in methods):
        for count in counts:
            seed = _small_seed(base_seed, f"{method} with {count} labels of {item.name}")
            said = answer(method, waveforms, np.where(place < count, labels, -1), test, seed)
            rows.append((method, count, len(test), 100 * classification_accuracy(labels[test], said)))
    return pd.DataFrame(rows, columns=["method", "labels_per_unit", "num_test", "accuracy"])


def _place_in_unit(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the place of each spike among those of its unit, in a random order: (num_spikes,) from 0."""
    order = generator.permutation(len(labels))
    place = np.empty(len(labels), dtype=np.int64)
    for unit in np.unique(labels):
        mine = order[labels[order] == unit]
        place[mine] = np.arange(len(mine))
    return place


def study_points(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Measure accuracy in E6 with fewer sampling points, beside what is published for 64 and 16."""
    waveforms, labels, _ = load_set(item)
    train, test = division_of(item, 6, 0, base_seed)
    rows = []
    for preset in (preset for preset in PRESETS if preset in methods):
        for num_points in _POINTS:
            fewer = take_points(waveforms, num_points)
            seed = _small_seed(base_seed, f"{preset} at {num_points} points of {item.name}")
            said = _train(preset, fewer[train], labels[train], seed).classify(fewer[test]).labels
            accuracy = 100 * classification_accuracy(labels[test], said)
            rows.append((preset, num_points, accuracy, _PUBLISHED_POINTS.get((item.name, num_points))))
    return pd.DataFrame(rows, columns=["method", "num_points", "accuracy", "published"])


def take_points(waveforms: np.ndarray, num_points: int) -> np.ndarray:
    """Return waveforms at fewer, evenly spaced points: every second, every fourth, or by a cubic spline."""
    num_samples = waveforms.shape[1]
    places = np.arange(num_points) * (num_samples / num_points)
    if num_samples % num_points == 0:
        return waveforms[:, places.astype(np.int64)]
    return CubicSpline(np.arange(num_samples), waveforms, axis=1)(places).astype(np.float32)


def study_pairs(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Measure what is said of two spikes in one waveform, by lag and size of the second.

    Pairs are two mean waveforms on noise from where the signal has no spikes; a row with the ratio 0 tells of
    single spikes. `both_right` is the share in which unit and second unit are the two, in either order;
    `one_right` that in which the unit is one of the two; `second_named` that in which a second unit is named
    at all. The paper's network has one answer, so that it never gets both.
    """
    means = _unit_means(load_set(item))
    channel = load_wave_clus_signal(item.path)
    assert channel.sample_index is not None
    generator = stage_generator(base_seed, f"pairs of {item.name}")
    ratios = [*itertools.pairwise(_RATIO_EDGES), (0.0, 0.0)]
    cells = [(*lags, *ratio) for ratio in ratios for lags in itertools.pairwise(_LAG_EDGES)]
    low, high, least, most = np.repeat(np.array(cells), _PAIRS_PER_CELL, axis=0).T
    noise = draw_noise(channel.signal, channel.sample_index, means.shape[1], len(low), generator)
    lag, ratio = generator.uniform(low, high), generator.uniform(least, most)
    waveforms, first, second = make_pairs(means, noise, lag, ratio, generator)
    rows = []
    for preset in (preset for preset in PRESETS if preset in methods):
        said = _trained_on_half(item, preset, base_seed)[0].classify(waveforms)
        is_one = (said.labels == first) | ((said.labels == second) & (ratio > 0))
        is_same = np.sort([said.labels, said.second_labels], axis=0) == np.sort([first, second], axis=0)
        answers = np.stack([is_same.all(axis=0) & (ratio > 0), is_one, said.second_labels >= 0])
        shares = 100 * answers.reshape(3, len(cells), _PAIRS_PER_CELL).mean(axis=2)
        rows += [(preset, *cell, _PAIRS_PER_CELL, *of) for cell, of in zip(cells, shares.T, strict=True)]
    columns = ["method", "lag_from", "lag_to", "ratio_from", "ratio_to", "num_pairs"]
    return pd.DataFrame(rows, columns=[*columns, "both_right", "one_right", "second_named"])


def _unit_means(spikes: Spikes) -> np.ndarray:
    """Return the mean waveform of each unit's spikes that overlap no other: (num_units, num_samples)."""
    means = []
    for unit in np.unique(spikes.labels):
        mine = spikes.labels == unit
        alone = mine & ~spikes.is_overlap
        means.append(spikes.waveforms[alone if alone.any() else mine].mean(axis=0))
    return np.stack(means)


def draw_noise(
    signal: np.ndarray, sample_index: np.ndarray, num_samples: int, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw stretches of a signal that share no sample with a spike.

    Parameters
    ----------
    signal : ndarray
        (num_samples_of_signal,)
    sample_index : ndarray
        (num_spikes,) first samples of the spikes, which are `num_samples` long.
    num_samples, count : int
    generator : Generator

    Returns
    -------
    ndarray
        (count, num_samples); a stretch may be drawn more than once.

    Raises
    ------
    WaveformsError
        If the signal has no such stretch.
    """
    is_open = np.ones(len(signal) - num_samples + 1, dtype=bool)
    reach = np.arange(1 - num_samples, num_samples)
    taken = (np.asarray(sample_index)[:, None] + reach).ravel()
    is_open[taken[(taken >= 0) & (taken < len(is_open))]] = False
    starts = np.flatnonzero(is_open)
    if not len(starts):
        raise WaveformsError(
            f"the signal has no {num_samples} samples without a spike", "one at least", "take another signal"
        )
    return signal[generator.choice(starts, count)[:, None] + np.arange(num_samples)]


def make_pairs(
    means: np.ndarray, noise: np.ndarray, lag: np.ndarray, ratio: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make waveforms in which a second spike follows the first.

    Parameters
    ----------
    means : ndarray
        (num_units, num_samples), two units or more.
    noise : ndarray
        (num_pairs, num_samples)
    lag, ratio : ndarray
        (num_pairs,) how many samples the second spike is later, and the factor of its mean waveform.
    generator : Generator
        Draws the units, which differ.

    Returns
    -------
    waveforms : ndarray
        (num_pairs, num_samples) float32
    first, second : ndarray
        (num_pairs,) units from 0.
    """
    first = generator.integers(len(means), size=len(lag))
    second = (first + generator.integers(1, len(means), size=len(lag))) % len(means)
    later = shift_into_silence(means[second], lag)
    return (means[first] + ratio[:, None] * later + noise).astype(np.float32), first, second


STUDIES: dict[str, Callable[[PaperSet, list[str], int], pd.DataFrame]] = {
    "confusion": study_confusion,
    "losses": study_losses,
    "misclassified": study_misclassified,
    "labels_per_unit": study_labels,
    "sampling_points": study_points,
    "overlapping_pairs": study_pairs,
}
"""The studies, by the names of their files; each takes a set, the chosen methods and the seed."""
