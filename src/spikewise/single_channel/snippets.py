"""Waveforms of single-channel spikes: their container, and its readers, which recognise what a file holds.

Conventions: waveforms are ``(num_spikes, num_samples)``; ``sample_index`` counts from 0. A spike that belongs
to no unit has a negative label, or an empty one if labels are text. The waveforms of a simulation are cut at
its true spike times, which are those of the spikes' first samples.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from spikewise.core.errors import WaveformsError
from spikewise.single_channel.config import SnippetsConfig
from spikewise.single_channel.files import (
    SIGNAL_KEYS,
    SNIPPET_FORMATS,
    RawChannel,
    as_labels,
    as_whole,
    checked_frequency,
    frequency_of,
    from_matlab,
    load_arrays,
    missing,
    reading,
    with_truth,
)

logger = logging.getLogger(__name__)

_FEWEST_SAMPLES = 8
"""Shortest waveform in samples; the network needs as many."""
_TABLES = (".csv", ".tsv", ".txt")
_WAVEFORMS_KEYS = ("waveforms", "spikes", "array")
_LABEL_COLUMNS = ("label", "labels", "unit_id", "unit", "cluster")
_OTHER_COLUMNS = (*_LABEL_COLUMNS, "sample_index", "time_s", "index", "unnamed: 0")


@dataclass(frozen=True, eq=False)
class Snippets:
    """Waveforms of single-channel spikes, with what is known about them. All arrays are checked.

    Parameters
    ----------
    waveforms : ndarray
        (num_spikes, num_samples) float32, finite, at least 8 samples.
    labels : ndarray, optional
        (num_spikes,) int64 or text: the unit of each spike; a negative number or an empty text: no unit.
    sampling_frequency : float, optional
        In Hz.
    sample_index : ndarray, optional
        (num_spikes,) int64: sample of the spike in its recording, counted from 0.
    is_overlap : ndarray, optional
        (num_spikes,) bool: whether another spike overlaps it.
    name : str
        Name in messages and tables.

    Raises
    ------
    WaveformsError
        If the waveforms are not a finite table of numbers, or another array has not one value per waveform.
    """

    waveforms: np.ndarray
    labels: np.ndarray | None = None
    sampling_frequency: float | None = None
    sample_index: np.ndarray | None = None
    is_overlap: np.ndarray | None = None
    name: str = "waveforms"

    def __post_init__(self) -> None:
        """Check all arrays and convert them to their types."""
        waveforms = _checked_waveforms(self.waveforms, self.name)
        set_ = object.__setattr__
        set_(self, "waveforms", waveforms)
        if self.labels is not None:
            set_(self, "labels", as_labels(self.labels, self.name))
        if self.sample_index is not None:
            set_(self, "sample_index", as_whole(self.sample_index, f"the sample indices of {self.name}"))
        if self.is_overlap is not None:
            set_(self, "is_overlap", np.ravel(self.is_overlap).astype(bool))
        if self.sampling_frequency is not None:
            set_(self, "sampling_frequency", checked_frequency(self.sampling_frequency, self.name))
        for what in ("labels", "sample_index", "is_overlap"):
            values = getattr(self, what)
            if values is not None and len(values) != len(waveforms):
                raise WaveformsError(
                    f"{self.name} has {len(waveforms)} waveforms, but its {what} has {len(values)} values",
                    "one for each spike",
                    f"correct {what} or leave it out",
                )

    def __len__(self) -> int:
        """Return the number of spikes."""
        return len(self.waveforms)

    @property
    def is_labelled(self) -> np.ndarray:
        """(num_spikes,) bool: whether the spike has a unit."""
        if self.labels is None:
            return np.zeros(len(self), dtype=bool)
        return self.labels != "" if self.labels.dtype.kind == "U" else self.labels >= 0

    def select(self, mask_or_index: np.ndarray | Sequence[int] | slice) -> Snippets:
        """Return the spikes of a mask or of indices, in their order."""
        chosen = np.arange(len(self))[mask_or_index]

        def of(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[chosen]

        return Snippets(
            self.waveforms[chosen],
            of(self.labels),
            self.sampling_frequency,
            of(self.sample_index),
            of(self.is_overlap),
            self.name,
        )


def load_snippets(path: str | Path, config: SnippetsConfig | None = None) -> Snippets:
    """Read waveforms from any of :data:`SNIPPET_FORMATS`; the arrays of the file show which it is.

    From a simulation with true spike times, waveforms of ``config.num_samples`` are cut, beginning with the
    first sample of each spike. Spikes whose waveform would extend beyond the signal are left out.

    Parameters
    ----------
    path : str or Path
        The file.
    config : SnippetsConfig, optional
        What the file does not hold itself; the sampling frequency in the file takes precedence over the one
        here. For a table, `labels_key` is the name of a column or, without a header, its position from 0.

    Raises
    ------
    WaveformsError
        If the file is missing, empty, damaged or of an unknown kind, or holds no valid waveforms.
    """
    path, config = Path(path), config or SnippetsConfig()
    with reading(path):
        if path.suffix.lower() in _TABLES:
            snippets = _read_table(path, config)
        else:
            snippets = _snippets_of(load_arrays(path), path, config)
    if not len(snippets):
        raise WaveformsError(f"the file {path} holds no spikes", "at least one", "check how it was written")
    return snippets


def _snippets_of(arrays: dict[str, Any], path: Path, config: SnippetsConfig) -> Snippets:
    """Return the waveforms among the arrays of a file."""
    frequency = frequency_of(arrays, config.sampling_frequency)
    key = config.waveforms_key or next((name for name in _WAVEFORMS_KEYS if name in arrays), None)
    if key is None and any(name in arrays for name in SIGNAL_KEYS):
        return _cut(with_truth(arrays, path, config.sampling_frequency), path, config.num_samples)
    if key is None:
        matrices = {name: value for name, value in arrays.items() if isinstance(value, np.ndarray)}
        tables = [name for name, value in matrices.items() if value.ndim == 2 and min(value.shape) > 1]
        key = tables[0] if len(tables) == 1 else None
    if key is None or key not in arrays:
        raise missing(arrays, path, config.waveforms_key or SNIPPET_FORMATS[path.suffix.lower()])
    if config.labels_key and config.labels_key not in arrays:
        raise missing(arrays, path, config.labels_key)
    labels, index = arrays.get(config.labels_key or "labels"), None
    if "cluster_class" in arrays and config.labels_key is None:
        classes, times_ms = _checked_classes(arrays["cluster_class"], path)
        labels = np.where(classes == 0, -1, classes)
        if frequency is not None:
            index = from_matlab(np.rint(times_ms * frequency / 1000.0), f"the spike times of {path}")
    else:
        index = _index_of(arrays, len(arrays[key]), path)
    return Snippets(arrays[key], labels, frequency, index, arrays.get("is_overlap"), path.stem)


def _checked_classes(classes: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the class and the time in ms that wave_clus assigned to each spike."""
    if np.ndim(classes) != 2 or np.shape(classes)[1] < 2:
        raise WaveformsError(
            f"cluster_class of {path} has the shape {np.shape(classes)}",
            "a row for each spike: its class and its time in ms",
            "write it again with wave_clus",
        )
    return as_labels(classes[:, 0], str(path)), classes[:, 1]


def _index_of(arrays: dict[str, Any], num_spikes: int, path: Path) -> np.ndarray | None:
    """Return the sample index of each spike, if an array holds it."""
    for name in ("sample_index", "times"):
        values = np.ravel(arrays.get(name, ()))
        if name == "times" and values.dtype.kind == "f" and (values % 1 != 0).any():
            logger.warning("%s: times are ignored, since they are not sample indices", path)
        elif len(values) == num_spikes:
            return values
    return None


def _cut(channel: RawChannel, path: Path, num_samples: int) -> Snippets:
    """Return the waveforms, cut at the true first samples."""
    assert channel.sample_index is not None
    assert channel.labels is not None
    first = channel.sample_index
    inside = (first >= 0) & (first <= len(channel.signal) - num_samples)
    if not inside.all():
        logger.info("%s: %d spikes are too near its ends and are left out", path, (~inside).sum())
    return Snippets(
        channel.signal[first[inside, None] + np.arange(num_samples)],
        channel.labels[inside],
        channel.sampling_frequency,
        first[inside],
        None if channel.is_overlap is None else channel.is_overlap[inside],
        path.stem,
    )


def _read_table(path: Path, config: SnippetsConfig) -> Snippets:
    """Read a table of text with a row for each spike."""
    if config.waveforms_key:
        raise WaveformsError(
            f"waveforms_key is {config.waveforms_key}, and {path} is a table",
            "no waveforms_key for a table: all columns except labels and times are samples",
            "leave out waveforms_key",
        )
    separator, has_header = _layout(path, config.labels_key)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the first
        table = pd.read_csv(
            path,
            sep=separator,
            header=0 if has_header else None,
            index_col=False,
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    table.columns = [str(name).strip() for name in table]
    names = {name.lower(): name for name in map(str, table)}
    labels, index = _label_column(table, path, config), None
    if "sample_index" in names:
        index = table[names["sample_index"]].to_numpy()
    elif "time_s" in names and config.sampling_frequency is not None:
        index = np.rint(table[names["time_s"]].to_numpy(float) * config.sampling_frequency)
    samples = table.drop(
        columns=list({names[name] for name in _OTHER_COLUMNS if name in names} | ({labels} - {None}))
    )
    for name, cells in samples.items():
        wrong = cells[pd.to_numeric(cells, errors="coerce").isna() & cells.notna()]
        if len(wrong):
            raise WaveformsError(
                f"spike {wrong.index[0]} of {path} (from 0) has {wrong.iloc[0]!r} in the column {name}",
                "numbers, except in columns called " + ", ".join(_LABEL_COLUMNS),
                "correct it, or name the column of the labels (labels_key)",
            )
    return Snippets(
        samples.to_numpy(), _cells(table, labels), config.sampling_frequency, index, name=path.stem
    )


def _layout(path: Path, labels_key: str | None) -> tuple[str, bool]:
    """Return the separator of the columns of a table, and whether its first line holds their names.

    The first line holds names if some cell is not a number, unless `labels_key` is a position that is not
    among the cells.
    """
    with path.open(encoding="utf-8-sig") as lines:
        first = next((line.strip() for line in lines if line.strip()), "")
    separator = next((mark for mark in "\t;," if mark in first), r"\s+")
    cells = [cell.strip() for cell in re.split(separator, first)]
    named = pd.to_numeric(
        pd.Series([cell for cell in cells if cell.lower() not in ("", "nan")]), errors="coerce"
    )
    at_position = labels_key is not None and labels_key.isdigit() and labels_key not in cells
    return separator, bool(named.isna().any()) and not at_position


def _label_column(table: pd.DataFrame, path: Path, config: SnippetsConfig) -> str | None:
    """Return the name of the column of labels, or None."""
    if config.labels_key is not None:
        if config.labels_key in table:
            return config.labels_key
        raise missing(dict.fromkeys(map(str, table)), path, f"a column called {config.labels_key}")
    found = [name for name in map(str, table) if name.lower() in _LABEL_COLUMNS]
    if len(found) > 1:
        raise WaveformsError(
            f"the file {path} has the columns {', '.join(found)}",
            "one column of labels",
            "choose it with labels_key",
        )
    return found[0] if found else None


def _cells(table: pd.DataFrame, column: str | None) -> np.ndarray | None:
    """Return the labels in a column; an empty cell gives an empty label."""
    if column is None:
        return None
    cells = table[column]
    return cells.to_numpy() if is_numeric_dtype(cells) else cells.fillna("").to_numpy(str)


def _checked_waveforms(values: Any, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or values.dtype.kind not in "iuf":
        raise WaveformsError(
            f"the waveforms of {name} are an array of {values.dtype} of the shape {values.shape}",
            "numbers in two dimensions, (num_spikes, num_samples)",
            "save a row for each spike; for a raw signal, find its spikes first",
        )
    if values.shape[1] < _FEWEST_SAMPLES:
        raise WaveformsError(
            f"the waveforms of {name} have {values.shape[1]} samples",
            f"at least {_FEWEST_SAMPLES}",
            "cut longer waveforms; each spike is a row",
        )
    with np.errstate(over="ignore"):
        waveforms = values.astype(np.float32, copy=False)
    bad = ~np.isfinite(waveforms).all(axis=1)
    if bad.any():
        raise WaveformsError(
            f"{bad.sum()} of {len(bad)} waveforms of {name} hold NaN or infinite values, first row "
            f"{np.flatnonzero(bad)[0]} (from 0)",
            "finite numbers",
            "remove or repair them",
        )
    return waveforms
