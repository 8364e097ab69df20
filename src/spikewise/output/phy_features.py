"""Features, sizes and templates of all spikes, in one pass over the recording.

A spike is projected on the rough shape of its unit and on principal components. Where a group has many
channels, filtering them all would take longer than everything else, and a spike is on few of them. A
band-pass is linear and the same in both directions, so that the product of a filtered waveform with a shape
is that of the raw waveform, with a margin, and the filtered shape: shapes are filtered, once, instead of the
recording. The common median, which is not linear, is taken of a part of the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from spikeinterface.core import BaseRecording

from spikewise.compiling import compiled
from spikewise.data.conditioning import bandpass, reference_and_scale
from spikewise.data.labels import segment_starts
from spikewise.data.recordings import reading_errors
from spikewise.export_config import PhyConfig
from spikewise.output.phy_units import PlacedUnits, window_samples
from spikewise.output.sorted_group import SortedGroup, Unfiltered
from spikewise.progress import ProgressCallback
from spikewise.threads import on_all_cores

REFERENCE_CHANNELS = 64
"""Groups of more channels are not filtered; the common median is that over so many of theirs."""
_CHUNK_S = 1.0
_SPIKES_AT_ONCE = 256
_LEAST_FIT = 0.1  # of the square of a rough shape, that the template has in its direction


@dataclass(frozen=True)
class Projected:
    """What the pass gives.

    Attributes
    ----------
    templates : ndarray of float32
        (num_units, num_samples, num_near) mean waveforms in units of noise.
    sizes : ndarray
        (num_spikes,) each spike relative to its unit's template.
    """

    templates: np.ndarray
    sizes: np.ndarray


class _Source(Protocol):
    """Traces from which waveforms are cut, ``margin`` samples longer at either end than these are."""

    margin: int
    gains: np.ndarray

    def read(self, segment: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return traces with the margin, and what is subtracted of each channel, (stop - start,)."""

    def shapes_for(self, shapes: np.ndarray) -> np.ndarray:
        """Return (margin + num_samples + margin, n) whose products with the traces those of `shapes` are."""

    def waveforms_of(self, windows: np.ndarray) -> np.ndarray:
        """Return (num_samples, n) waveforms from windows of the traces with the margin."""


class _FilteredSource:
    """Preprocessed traces."""

    margin = 0

    def __init__(self, group: SortedGroup):
        self._traces = group.traces
        self.gains = np.ones(len(group.channel_index), dtype=np.float32)

    def read(self, segment: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return self._traces.read(segment, start, stop), np.zeros(stop - start, dtype=np.float32)

    def shapes_for(self, shapes: np.ndarray) -> np.ndarray:
        return shapes

    def waveforms_of(self, windows: np.ndarray) -> np.ndarray:
        return windows


class _RawSource:
    """Raw traces; the median over some of the channels stands for that over all."""

    def __init__(self, unfiltered: Unfiltered):
        self._recording = unfiltered.recording
        self._sections = unfiltered.sections
        self.margin = unfiltered.margin
        self.gains = unfiltered.gains
        averaged = unfiltered.averaged
        few = np.linspace(0, len(averaged) - 1, min(len(averaged), REFERENCE_CHANNELS))
        self._averaged = averaged[np.rint(few).astype(np.int64)]

    def read(self, segment: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        low, high = start - self.margin, stop + self.margin
        first, last = max(0, low), min(high, self._recording.get_num_samples(segment))
        with reading_errors(f"the recording from {first / self._recording.sampling_frequency:.3f} s on"):
            raw = self._recording.get_traces(segment, first, last)
        if first > low or high > last:
            raw = np.pad(raw, ((first - low, high - last), (0, 0)), mode="edge")
        if not len(self._averaged):
            return raw, np.zeros(stop - start, dtype=np.float32)
        filtered = self._inner(np.ascontiguousarray(raw[:, self._averaged]))
        ones, zeros = np.ones(filtered.shape[1], np.float32), np.zeros(filtered.shape[1], np.float32)
        referenced = reference_and_scale(filtered, np.arange(filtered.shape[1]), ones, zeros)
        return raw, filtered[:, 0] - referenced[:, 0]

    def shapes_for(self, shapes: np.ndarray) -> np.ndarray:
        # Two margins: the filter begins as if the first sample had been there for ever.
        padded = np.pad(np.asarray(shapes, dtype=np.float32), ((2 * self.margin, 2 * self.margin), (0, 0)))
        filtered = self._inner(padded)
        return filtered - filtered.mean(axis=0)  # what a band-pass does to a constant

    def waveforms_of(self, windows: np.ndarray) -> np.ndarray:
        return self._inner(windows)

    def _inner(self, traces: np.ndarray) -> np.ndarray:
        """Return filtered traces without the margin."""
        return bandpass(traces, self._sections)[self.margin : len(traces) - self.margin]


class _Pass:
    """One group on its way through the recording."""

    def __init__(self, group: SortedGroup, units: PlacedUnits):
        raw = group.unfiltered if len(group.channel_index) > REFERENCE_CHANNELS else None
        self.source: _Source = _FilteredSource(group) if raw is None else _RawSource(raw)
        self.row_of = np.full(len(units.near), -1)
        self.row_of[group.unit_index] = np.arange(len(group.unit_index))
        near = units.near[group.unit_index]
        self.near = np.maximum(near, 0)
        self.gains = np.where(near >= 0, self.source.gains[self.near], 0).astype(np.float32)
        rough = units.rough[group.unit_index] * self.gains[:, None]
        num_units, self.length, width = rough.shape
        self.components = units.components
        self.basis = np.ascontiguousarray(self.source.shapes_for(units.components))
        folded = self.source.shapes_for(rough.transpose(1, 0, 2).reshape(self.length, -1))
        self.rough = np.ascontiguousarray(folded.reshape(-1, num_units, width).transpose(1, 0, 2))
        self.rough_of_median = rough.sum(axis=2)
        self.sums = np.zeros((num_units, len(self.basis), width))
        self.median_sums = np.zeros((num_units, self.length))
        self.counts = np.zeros(num_units)

    def project(
        self, traces: np.ndarray, median: np.ndarray, first: np.ndarray, rows: np.ndarray, chosen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return features (num_spikes, num_components, num_near) and products with the rough shapes.

        `first` is where the window of each spike begins, `rows` its unit; those that are `chosen` make
        templates.
        """
        features = np.empty((len(first), self.basis.shape[1], self.near.shape[1]), dtype=np.float32)
        products = np.empty(len(first), dtype=np.float32)

        def run(start: int) -> None:
            part = slice(start, start + _SPIKES_AT_ONCE)
            _project(
                traces,
                first[part],
                rows[part],
                self.near,
                self.basis,
                self.rough,
                self.source.margin > 0,
                features[part],
                products[part],
            )

        on_all_cores(run, range(0, len(first), _SPIKES_AT_ONCE))
        medians = median[first[:, None] + np.arange(self.length)]
        features -= (medians @ self.components)[:, :, None]
        features *= self.gains[rows][:, None, :]
        products -= (medians * self.rough_of_median[rows]).sum(axis=1)
        _add_windows(traces, first[chosen], rows[chosen], self.near, self.source.margin > 0, self.sums)
        np.add.at(self.median_sums, rows[chosen], medians[chosen])
        np.add.at(self.counts, rows[chosen], 1)
        return features, products

    def templates(self) -> np.ndarray:
        """Return the mean waveforms (num_units, num_samples, num_near) of the chosen spikes."""
        counts = np.maximum(self.counts, 1)[:, None, None]
        num_units, window, width = self.sums.shape
        means = (self.sums / counts).transpose(1, 0, 2).reshape(window, -1)
        waveforms = self.source.waveforms_of(np.ascontiguousarray(means))
        waveforms = waveforms.reshape(self.length, num_units, width).transpose(1, 0, 2)
        return (waveforms - self.median_sums[:, :, None] / counts) * self.gains[:, None]


def project_spikes(
    features_file: Path,
    frames: np.ndarray,
    unit_index: np.ndarray,
    recording: BaseRecording,
    groups: Sequence[SortedGroup],
    units: PlacedUnits,
    config: PhyConfig,
    progress: ProgressCallback,
) -> Projected:
    """Write the features of all spikes, and return templates and sizes.

    Parameters
    ----------
    features_file : Path
        File to write: .npy of (num_spikes, num_components, num_near).
    frames, unit_index : ndarray
        (num_spikes,) frame, segments laid end to end, and unit of each spike, in order of time.
    recording : BaseRecording
        The recording as it came in.
    groups : sequence of SortedGroup
    units : PlacedUnits
    config : PhyConfig
    progress : callable
        Told the seconds done, of the seconds in all.
    """
    rate = recording.sampling_frequency
    before, length = window_samples(rate, config)
    shape = (len(frames), units.components.shape[1], units.near.shape[1])
    features = np.lib.format.open_memmap(features_file, "w+", dtype=np.float32, shape=shape)
    chosen = _chosen_for_templates(unit_index, config.template_spikes)
    templates, products = units.rough.copy(), np.zeros(len(frames))
    chunk = round(_CHUNK_S * rate)
    done, total = 0, recording.get_total_samples() * len(groups)
    for group in groups:
        mine = np.flatnonzero(np.isin(unit_index, group.unit_index))
        of_group, went = frames[mine], _Pass(group, units)
        for segment, origin in enumerate(segment_starts(recording)):
            num_samples = recording.get_num_samples(segment)
            for start in range(0, num_samples, chunk):
                stop = min(start + chunk, num_samples)
                spikes = mine[slice(*np.searchsorted(of_group, (origin + start, origin + stop)))]
                if len(spikes):
                    traces, median = went.source.read(segment, start - before, stop + length)
                    first, rows = frames[spikes] - origin - start, went.row_of[unit_index[spikes]]
                    found = went.project(traces, median, first, rows, chosen[spikes])
                    features[spikes], products[spikes] = found
                done += stop - start
                progress("phy", done / rate, total / rate, "")
        templates[group.unit_index] = went.templates()
    features.flush()
    return Projected(templates, products / _fit(templates, units)[unit_index])


def _chosen_for_templates(unit_index: np.ndarray, max_spikes: int) -> np.ndarray:
    """Tell for each spike whether it is one of `max_spikes` of its unit, evenly spread, at most."""
    chosen = np.zeros(len(unit_index), dtype=bool)
    order = np.argsort(unit_index, kind="stable")
    for spikes in np.split(order, np.flatnonzero(np.diff(unit_index[order])) + 1):
        spread = np.linspace(0, len(spikes) - 1, min(len(spikes), max_spikes))
        chosen[spikes[np.rint(spread).astype(np.int64)]] = True
    return chosen


def _fit(templates: np.ndarray, units: PlacedUnits) -> np.ndarray:
    """Return the product of each template with the rough shape on which spikes were projected."""
    square = (units.rough**2).sum(axis=(1, 2))
    return np.maximum((templates * units.rough).sum(axis=(1, 2)), np.maximum(_LEAST_FIT * square, 1e-12))


@compiled(fastmath={"contract", "reassoc"})
def _project(
    traces: np.ndarray,
    first: np.ndarray,
    rows: np.ndarray,
    near: np.ndarray,
    basis: np.ndarray,
    shapes: np.ndarray,
    is_raw: bool,
    features: np.ndarray,
    products: np.ndarray,
) -> None:
    """Multiply the window of each spike with the basis, for each channel, and with its unit's shape.

    Raw windows are taken relative to their first sample, so that large values keep their digits.
    """
    length, num_components = basis.shape
    width = near.shape[1]
    values, origin = np.empty(width, np.float32), np.zeros(width, np.float32)
    product, sums = np.empty(width, np.float32), np.empty((num_components, width), np.float32)
    for spike in range(len(first)):
        start, row = np.uint64(first[spike]), rows[spike]
        product[:], sums[:] = 0, 0
        if is_raw:
            for index in range(width):
                origin[index] = traces[start, near[row, index]]
        for sample in range(np.uint64(length)):
            for index in range(width):
                values[index] = np.float32(traces[start + sample, near[row, index]]) - origin[index]
            for component in range(num_components):
                weight = basis[sample, component]
                for index in range(width):
                    sums[component, index] += weight * values[index]
            for index in range(width):
                product[index] += shapes[row, sample, index] * values[index]
        features[spike] = sums
        products[spike] = product.sum()


@compiled()
def _add_windows(
    traces: np.ndarray,
    first: np.ndarray,
    rows: np.ndarray,
    near: np.ndarray,
    is_raw: bool,
    sums: np.ndarray,
) -> None:
    """Add the window of each spike to that of its unit, raw ones relative to their first sample."""
    _, length, width = sums.shape
    for spike in range(len(first)):
        start, row = np.uint64(first[spike]), rows[spike]
        for index in range(width):
            channel = near[row, index]
            origin = np.float64(traces[start, channel]) if is_raw else 0.0
            for sample in range(np.uint64(length)):
                sums[row, sample, index] += traces[start + sample, channel] - origin
