"""Read labels from a table: a .csv, .tsv or .txt with a row for each spike."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from spikeinterface.core import BaseRecording, BaseSorting
from spikeinterface.core.base import minimum_spike_dtype

from spikewise.core.errors import LabelsError
from spikewise.data.labels.label_set import make_sorting
from spikewise.data.recordings.clock import read_times, samples_at

logger = logging.getLogger(__name__)

CSV_COLUMNS = "sample_index,unit_id or time_s,unit_id, and optionally segment_index"
_OTHER_NAMES = {
    "sample_index": (
        "sample",
        "samples",
        "sample_ind",
        "spike_sample",
        "spike_samples",
        "frame",
        "frame_index",
    ),
    "time_s": ("time", "time_sec", "times_s", "spike_time_s", "seconds"),
    "unit_id": ("unit", "unit_ids", "cluster", "cluster_id", "spike_cluster", "label"),
    "segment_index": ("segment", "segment_ind"),
}
"""Names of the columns in tables of other programs."""
_MOST_OUTSIDE = 0.9
"""If a larger fraction of the times lies behind the end, they have another unit. Chosen by hand."""
_LARGEST_TIME = 1e15
"""Upper limit of times and samples: above it 64-bit integers could overflow; no recording is that long."""


def read_table(file: Path, recording: BaseRecording | None) -> BaseSorting:
    """Read the labels of a table; times in seconds become the nearest samples of the recording.

    Raises
    ------
    LabelsError
        If it cannot be used: the line that is wrong is told.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
        text = pd.read_csv(
            file,
            dtype=str,
            sep=_delimiter_of(file),
            keep_default_na=False,
            index_col=False,
            skip_blank_lines=False,
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    text.columns = _usual_names([str(name).strip() for name in text.columns])
    column = _check_header(file, list(text.columns))
    table = text.fillna("").apply(lambda cells: cells.str.strip())
    table = table[(table != "").any(axis=1)]

    cells = table[column]
    if _delimiter_of(file) == ";":
        cells = cells.str.replace(",", ".", regex=False)  # of programs that write 0,5 for a half
    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(float)
    _check_lines(file, table[column], np.isfinite(numbers), "a number")
    _check_unit(file, column, numbers, required(recording, file))
    if column == "sample_index":
        _check_lines(file, table[column], numbers == np.rint(numbers), "a whole number")
    named = ~table["unit_id"].str.lower().isin(["", "nan"]).to_numpy()
    _check_lines(file, table["unit_id"], named, "a unit id")
    spikes = np.zeros(len(table), dtype=minimum_spike_dtype)
    recording = required(recording, file)
    num_segments = recording.get_num_segments()
    if "segment_index" in table:
        segments = pd.to_numeric(table["segment_index"], errors="coerce")
        allowed = segments.isin(range(num_segments)).to_numpy()
        _check_lines(
            file, table["segment_index"], allowed, f"a segment of the recording, 0 to {num_segments - 1}"
        )
        spikes["segment_index"] = segments
    for segment_index in range(num_segments):
        here = spikes["segment_index"] == segment_index
        first = read_times(recording, segment_index, 0, 1)[0] if column == "time_s" else 0
        possible = (numbers[here] >= first) & (numbers[here] < _LARGEST_TIME)
        _check_lines(file, table[column][here], possible, f"at least {first:g}, the segment's start")
        samples = numbers if column == "sample_index" else samples_at(recording, numbers, segment_index)
        spikes["sample_index"][here] = samples[here]
    names = table["unit_id"].to_numpy(str)
    whole = table["unit_id"].str.fullmatch(r"[+-]?\d+(\.0*)?").all()  # pandas writes 12.0 for 12
    unit_ids, spikes["unit_index"] = np.unique(
        np.array([int(name.partition(".")[0]) for name in names]) if whole else names, return_inverse=True
    )
    return make_sorting(spikes, recording.sampling_frequency, unit_ids, num_segments)


def _delimiter_of(file: Path) -> str:
    """Return the sign that separates the columns: a comma, or a tab, semicolon or space."""
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        header = lines.readline()
    if "," in header:
        return ","
    return next((sign for sign in "\t; " if sign in header.strip()), ",")


def _check_header(file: Path, columns: list[str]) -> str:
    """Return the name of the column with the times; warn about unused columns."""
    times = [name for name in ("sample_index", "time_s") if name in columns]
    if not times or "unit_id" not in columns:
        raise LabelsError(
            f"the header of {file} is {','.join(columns)!r}",
            f"allowed: {CSV_COLUMNS}",
            "correct the first line",
        )
    ignored = [name for name in columns if name not in (times[0], "unit_id", "segment_index")]
    if ignored:
        logger.warning("%s: the columns %s are not used", file, ", ".join(ignored))
    return times[0]


def _check_lines(file: Path, cells: pd.Series, good: np.ndarray, allowed: str) -> None:
    """Raise for the first cell that is not good; the index of the cells counts lines after the header."""
    if good.all():
        return
    bad = cells[~good]
    raise LabelsError(
        f"line {bad.index[0] + 2} of {file} has the {cells.name} {bad.iloc[0]!r}",
        allowed,
        f"correct the line ({len(bad)} in all)" if len(bad) > 1 else "correct the line",
    )


def _usual_names(names: list[str]) -> list[str]:
    """Return the names of the columns as Spikewise writes them; each of its names is given once."""
    found = list(names)
    for usual, others in _OTHER_NAMES.items():
        if usual not in found:
            plain = [name.lower() for name in names]
            place = next((plain.index(name) for name in (usual, *others) if name in plain), None)
            if place is not None:
                found[place] = usual
    return found


def seem_seconds(times: np.ndarray, recording: BaseRecording) -> bool:
    """Return whether times that should be samples are seconds, most likely: none lies beyond the duration."""
    end = recording.get_total_duration() + 1
    return bool(
        len(times) > 1 and times.min() >= 0 and times.max() < end and (times.max() > 2 or (times % 1).any())
    )


def _check_unit(file: Path, column: str, numbers: np.ndarray, recording: BaseRecording) -> None:
    """Raise where the times seem to have another unit than their column says."""
    if not len(numbers):
        return
    duration, largest = recording.get_total_duration(), numbers.max()
    first = read_times(recording, 0, 0, 1)[0]
    if column == "sample_index":
        if seem_seconds(numbers, recording):
            raise LabelsError(
                f"the sample_index in {file} is {numbers[0]:.6g} and so on, and none lies beyond the "
                f"{duration:.6g} s of the recording",
                "samples; these seem to be seconds",
                "name the column time_s",
            )
    elif np.mean(numbers > first + duration) > _MOST_OUTSIDE and largest <= recording.get_total_samples():
        whole = bool((numbers == np.rint(numbers)).all())
        raise LabelsError(
            f"the largest time_s in {file} is {largest:.6g}, and the recording lasts {duration:.6g} s",
            f"seconds; these seem to be {'samples' if whole else 'milliseconds'}",
            "name the column sample_index" if whole else "divide them by 1000",
        )


def required(recording: BaseRecording | None, path: Path) -> BaseRecording:
    """Return the recording; raise if none is given for a file that needs one."""
    if recording is None:
        raise LabelsError(
            f"the file {path} does not contain the sampling frequency of its spikes",
            "the recording, which has it",
            "give the recording too (--recording)",
        )
    return recording
