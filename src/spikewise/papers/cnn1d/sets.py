"""The sets of Li et al. 2020: read from a folder, or simulated if they are not there.

The paper used the 20 public simulations of Wave_Clus and 28 channels of CRCNS pvc-5. Public simulations that
are not in the folder, and all channels, are replaced by simulations with similar properties. Such sets are
marked ``generated``: they have other units and spike times, so their scores are not measurements on the sets
of the paper, even next to the published scores.

Conventions: a file with the name of a public set (``C_Easy1_noise015``) is that set, cut at the true times;
any other file is a set of its own. Spikes without a unit are left out, and so are units with fewer than 0.5 %
of the spikes or fewer than 4 spikes.

References
----------
Li, Wang, Zhang, Li 2020, Brain Sci. 10:835.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from spikewise.core.errors import SettingError, WaveformsError
from spikewise.core.seeds import stage_generator, stage_seed
from spikewise.papers.cnn1d.config import PapersConfig
from spikewise.single_channel.config import SnippetsConfig, WaveClusConfig
from spikewise.single_channel.files import SNIPPET_FORMATS
from spikewise.single_channel.snippets import Snippets, load_snippets
from spikewise.single_channel.wave_clus import save_wave_clus, simulate_wave_clus

logger = logging.getLogger(__name__)

CHANNEL_NOISE = (0.05, 0.25)
"""Range of the noise level of generated channels; chosen by hand."""
FEWEST_LABELS = 2
"""Fewest training spikes of each unit."""
_PUBLISHED = Path(__file__).with_name("published")
_PUBLIC_NAME = re.compile(r"(C_(?:Easy|Difficult)[12])_noise(0\d+)")
_KEY_PAIRS = ((None, None), ("spikes_thr_unaligned", "labels_thr"))
"""Names of waveforms and labels that are tried in a file; None for the usual ones."""
_FEWEST_SPIKES = 2 * FEWEST_LABELS
"""Fewest spikes of a unit: enough for training and test."""
_LEAST_SHARE = 0.005
"""Smallest unit, as a fraction of the spikes of a set; chosen by hand."""
_CHANNEL_LEAST_SHARE = 0.015
"""Smallest unit of a generated channel, as a fraction of the spikes: above _LEAST_SHARE. Chosen by hand."""
_CHANNEL_RATE_HZ = 60.0
"""Firing rate of a generated channel, all units together; chosen by hand."""
_CHANNEL_HZ, _CHANNEL_SAMPLES = 24_400.0, 12
"""Sampling frequency and length of the waveforms of pvc-5."""


@dataclass(frozen=True)
class PaperSet:
    """A set of labelled waveforms, in a file that exists or will be simulated.

    Attributes
    ----------
    name : str
    source : "real" or "generated"
    kind : "wave_clus", "channel" or "other"
        Set of tables 1 and 2, of table 3, or of no published table.
    path : Path
    dataset : str
        Name in the published table, such as ``C_Easy1``; for other sets, `name`.
    noise_level : float or None
        None if unknown.
    reading : SnippetsConfig
    simulation : WaveClusConfig or None
        Settings of a generated set.
    """

    name: str
    source: Literal["real", "generated"]
    kind: Literal["wave_clus", "channel", "other"]
    path: Path
    dataset: str
    noise_level: float | None
    reading: SnippetsConfig
    simulation: WaveClusConfig | None = None


def published_table(name: str) -> pd.DataFrame:
    """Return a published table: ``cnn_table1``, ``cnn_table2`` or ``cnn_table3_macro_f``, in percent."""
    return pd.read_csv(_PUBLISHED / f"{name}.csv")


def find_sets(output: Path, data: Path | None, config: PapersConfig) -> list[PaperSet]:
    """Return the chosen sets: those of a folder, and those to be generated.

    Parameters
    ----------
    output : Path
        Generated sets are in its ``sets/``; no file in it is a real set.
    data : Path or None
        Folder that is searched, with all folders in it. Files without labelled waveforms are left out; the
        log says why.
    config : PapersConfig

    Raises
    ------
    WaveformsError
        If `data` is not a folder.
    SettingError
        If a name matches no set.
    """
    public = published_table("cnn_table1")[["dataset", "noise_level"]].itertuples(index=False)
    generated = [_wave_clus_set(dataset, level, output / "sets", config) for dataset, level in public]
    generated += [
        _channel_set(channel, num_units, output / "sets", config)
        for channel, num_units in published_table("cnn_table3_macro_f")[["channel", "n_clusters"]].to_numpy()
    ]
    real = [] if data is None else _real_sets(data, output, {item.name for item in generated})
    real_names = {item.name for item in real}
    known = real + [item for item in generated if item.name not in real_names]
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
            "change sets, or the data folder",
        )
    return chosen


def public_name(dataset: str, noise_level: float) -> str:
    """Return the file name of a public set, without its ending: C_Easy1 at 0.1 is C_Easy1_noise01."""
    return f"{dataset}_noise{f'{noise_level:.2f}'.replace('.', '').rstrip('0')}"


def _real_sets(data: Path, output: Path, reserved: set[str]) -> list[PaperSet]:
    """Return the sets of a folder, each with a unique name.

    A name in `reserved` is used only for the .mat file of that public set.
    """
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
            is_public = _PUBLIC_NAME.fullmatch(path.stem) and path.suffix.lower() == ".mat"
            is_free = path.stem not in found and (is_public or path.stem not in reserved)
            name = path.stem if is_free else path.relative_to(data).as_posix()
            item = _real_set(path, name)
            if item is not None:
                found[name] = item
    return list(found.values())


def _real_set(path: Path, name: str) -> PaperSet | None:
    """Return the labelled waveforms of a file as a set, or None; the log then says why."""
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
    """Return the replacement of a public set; all noise levels of a dataset have the same units."""
    simulation = WaveClusConfig.from_dict(
        {
            "shapes": config.shapes,
            "difficulty": dataset.removeprefix("C_").lower(),
            "noise_level": noise_level,
            "duration_s": config.duration_s,
            "seed": small_seed(config.seed, f"set {dataset}"),
        }
    )
    name = public_name(dataset, noise_level)
    reading = SnippetsConfig(num_samples=simulation.num_samples)
    return PaperSet(
        name, "generated", "wave_clus", folder / f"{name}.mat", dataset, noise_level, reading, simulation
    )


def _channel_set(channel: int, num_units: int, folder: Path, config: PapersConfig) -> PaperSet:
    """Return the replacement of a channel of pvc-5: short waveforms, units with unequal firing rates.

    Rates are drawn from a Dirichlet distribution; none is below 1.5 % of their sum. The noise level is drawn
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
        seed=small_seed(config.seed, f"set {name}"),
    )
    reading = SnippetsConfig(num_samples=_CHANNEL_SAMPLES)
    path = folder / f"{name}.mat"
    return PaperSet(name, "generated", "channel", path, name, noise_level, reading, simulation)


def small_seed(seed: int, stage: str) -> int:
    """Return the seed of a named random stage, below 2**31 as the settings require."""
    return stage_seed(seed, stage) >> 1


def make_set(item: PaperSet) -> str:
    """Simulate a generated set into its file, and return its name.

    Raises
    ------
    WaveformsError
        If the file of shapes cannot be used.
    OutputError
        If the file cannot be written.
    """
    assert item.simulation is not None
    save_wave_clus(simulate_wave_clus(item.simulation), item.path)
    return item.name


class Spikes(NamedTuple):
    """The spikes of a set with a unit.

    ``waveforms`` (num_spikes, num_samples) float32, ``labels`` (num_spikes,) int64 from 0, ``is_overlap``
    (num_spikes,) bool: whether another spike overlaps; False if the set does not say.
    """

    waveforms: np.ndarray
    labels: np.ndarray
    is_overlap: np.ndarray


@lru_cache(maxsize=4)
def load_set(paper_set: PaperSet) -> Spikes:
    """Read the labelled spikes of a set, without units of very few spikes."""
    return _kept_spikes(load_snippets(paper_set.path, paper_set.reading))


def _kept_spikes(snippets: Snippets) -> Spikes:
    snippets = snippets.select(snippets.is_labelled)
    labels = np.empty(0, np.int64) if snippets.labels is None else snippets.labels
    _, unit_index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    is_kept = (counts >= max(_FEWEST_SPIKES, _LEAST_SHARE * len(labels)))[unit_index]
    overlaps = np.zeros(len(snippets), bool) if snippets.is_overlap is None else snippets.is_overlap
    unit_index = np.unique(unit_index[is_kept], return_inverse=True)[1]
    return Spikes(snippets.waveforms[is_kept], unit_index, overlaps[is_kept])
