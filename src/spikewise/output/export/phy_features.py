"""Features and sizes of all spikes, and the templates of their units, in one pass over the recording.

Each spike is projected on the rough shape of its unit and on principal components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from spikeinterface.core import BaseRecording

from spikewise.core.compiling import compiled
from spikewise.core.progress import ProgressCallback
from spikewise.core.threads import on_all_cores
from spikewise.data.labels.label_set import segment_starts
from spikewise.data.recordings.reader import TraceReader
from spikewise.output.export.config import PhyConfig
from spikewise.output.export.phy_units import LocatedUnits, window_samples
from spikewise.output.export.sorted_group import SortedGroup, SpikeList

# All of these were chosen by hand.
_CHUNK_S = 1.0
"""Length of the blocks of traces that are read at once."""
_SPIKES_AT_ONCE = 256
"""Spikes that one thread projects at once."""
_MIN_FIT = 0.1
"""Smallest product of a template with its rough shape, relative to the square of the rough shape."""


@dataclass(frozen=True)
class Projection:
    """The templates of all units, and the sizes of all spikes relative to them.

    Attributes
    ----------
    templates : ndarray of float32
        (num_units, num_samples, num_near) mean waveforms in units of noise.
    sizes : ndarray
        (num_spikes,) each spike relative to its unit's template.
    """

    templates: np.ndarray
    sizes: np.ndarray


class _GroupProjector:
    """Projects the spikes of one group, and averages the windows of some of them to templates."""

    def __init__(self, group: SortedGroup, units: LocatedUnits):
        self.row_of = np.full(len(units.near), -1)
        self.row_of[group.unit_index] = np.arange(len(group.unit_index))
        near = units.near[group.unit_index]
        self.has_channel = near >= 0
        self.near = np.maximum(near, 0)
        self.components = np.ascontiguousarray(units.components)
        self.rough = np.ascontiguousarray(units.rough[group.unit_index])
        self.sums = np.zeros(self.rough.shape)
        self.counts = np.zeros(len(self.rough))

    def project(
        self, traces: np.ndarray, first: np.ndarray, rows: np.ndarray, chosen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Project spikes whose windows lie in `traces`.

        Parameters
        ----------
        traces : ndarray
            (num_samples, num_channels)
        first : ndarray of int
            (num_spikes,) first sample of the window of each spike.
        rows : ndarray of int
            (num_spikes,) index within the group of the unit of each spike.
        chosen : ndarray of bool
            (num_spikes,) whether a spike counts for the template of its unit.

        Returns
        -------
        features : ndarray
            (num_spikes, num_components, num_near)
        products : ndarray
            (num_spikes,) products of the spikes with the rough shapes of their units.
        """
        features = np.empty((len(first), self.components.shape[1], self.near.shape[1]), dtype=np.float32)
        products = np.empty(len(first), dtype=np.float32)

        def run(start: int) -> None:
            part = slice(start, start + _SPIKES_AT_ONCE)
            features[part], products[part] = _project(
                traces, first[part], rows[part], self.near, self.components, self.rough
            )

        on_all_cores(run, range(0, len(first), _SPIKES_AT_ONCE))
        features *= self.has_channel[rows][:, None, :]
        _add_windows(traces, first[chosen], rows[chosen], self.near, self.sums)
        np.add.at(self.counts, rows[chosen], 1)
        return features, products

    def templates(self) -> np.ndarray:
        """Return the mean waveforms (num_units, num_samples, num_near) of the chosen spikes."""
        return self.sums / np.maximum(self.counts, 1)[:, None, None] * self.has_channel[:, None]


def project_spikes(
    features_file: Path,
    spikes: SpikeList,
    recording: BaseRecording,
    groups: Sequence[SortedGroup],
    units: LocatedUnits,
    config: PhyConfig,
    progress: ProgressCallback,
) -> Projection:
    """Write the features of all spikes, and return their sizes and the templates.

    Parameters
    ----------
    features_file : Path
        File to write: .npy of (num_spikes, num_components, num_near).
    spikes : SpikeList
        All spikes.
    recording : BaseRecording
        The raw recording.
    groups : sequence of SortedGroup
    units : LocatedUnits
    config : PhyConfig
    progress : callable
        Called with the seconds of the recording that are done, and all of them.

    Returns
    -------
    Projection
    """
    rate = recording.sampling_frequency
    before, length = window_samples(rate, config)
    shape = (len(spikes), units.components.shape[1], units.near.shape[1])
    features = np.lib.format.open_memmap(features_file, "w+", dtype=np.float32, shape=shape)
    frames, unit_index = spikes.frames, spikes.unit_index
    chosen = _chosen_for_templates(unit_index, config.template_spikes)
    templates, products = units.rough.copy(), np.zeros(len(spikes))
    chunk = round(_CHUNK_S * rate)
    done, total = 0, recording.get_total_samples() * len(groups)
    for group in groups:
        of_group = np.flatnonzero(np.isin(unit_index, group.unit_index))
        projector = _GroupProjector(group, units)
        for segment, origin in enumerate(segment_starts(recording)):
            num_samples = recording.get_num_samples(segment)
            within = np.searchsorted(frames[of_group], (origin, origin + num_samples))
            of_segment = of_group[slice(*within)]
            starts = frames[of_segment] - origin - before
            for low, high, start, stop in _stretches(num_samples, chunk, length):
                part = slice(*np.searchsorted(starts, (low, high)))
                index = of_segment[part]
                if len(index):
                    traces = group.traces.read(segment, start, stop)
                    if isinstance(group.traces, TraceReader):
                        group.traces.read_ahead(segment, stop, stop + chunk)
                    rows = projector.row_of[unit_index[index]]
                    projected = projector.project(traces, starts[part] - start, rows, chosen[index])
                    features[index], products[index] = projected
                done += high - max(0, low)
                progress("measuring spikes", done / rate, total / rate, "")
        templates[group.unit_index] = projector.templates()
    features.flush()
    return Projection(templates, products / _fit(templates, units)[unit_index])


def _stretches(num_samples: int, chunk: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Divide a segment into stretches to read, so that each window lies within one of them.

    Windows within a block of `chunk` samples are read with the block. Windows across the end of a block are
    read separately.

    Yields
    ------
    low, high, start, stop : int
        Windows that begin in [low, high) lie in [start, stop), the samples to read.
    """
    yield -length, 0, -length, length
    for start in range(0, num_samples, chunk):
        stop = min(start + chunk, num_samples)
        across = max(start, stop - length + 1)
        yield start, across, start, stop
        yield across, stop, across, stop + length


def _chosen_for_templates(unit_index: np.ndarray, max_spikes: int) -> np.ndarray:
    """Choose at most `max_spikes` spikes of each unit, evenly spread; return a bool for each spike."""
    chosen = np.zeros(len(unit_index), dtype=bool)
    order = np.argsort(unit_index, kind="stable")
    for of_unit in np.split(order, np.flatnonzero(np.diff(unit_index[order])) + 1):
        spread = np.linspace(0, len(of_unit) - 1, min(len(of_unit), max_spikes))
        chosen[of_unit[np.rint(spread).astype(np.int64)]] = True
    return chosen


def _fit(templates: np.ndarray, units: LocatedUnits) -> np.ndarray:
    """Return the product of each template with its unit's rough shape, bounded from below."""
    square = (units.rough**2).sum(axis=(1, 2))
    return np.maximum((templates * units.rough).sum(axis=(1, 2)), np.maximum(_MIN_FIT * square, 1e-12))


@compiled(fastmath={"contract", "reassoc"})
def _project(
    traces: np.ndarray,
    first: np.ndarray,
    rows: np.ndarray,
    near: np.ndarray,
    components: np.ndarray,
    shapes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the products of spikes with the components, on each channel, and with their units' shapes.

    Shapes are (num_spikes, num_components, num_near) and (num_spikes,).
    """
    length, num_components = components.shape
    width = near.shape[1]
    features = np.empty((len(first), num_components, width), np.float32)
    products = np.empty(len(first), np.float32)
    values = np.empty(width, np.float32)
    product, sums = np.empty(width, np.float32), np.empty((num_components, width), np.float32)
    for spike in range(len(first)):
        start, row = np.uint64(first[spike]), rows[spike]
        product[:], sums[:] = 0, 0
        for sample in range(np.uint64(length)):
            for index in range(width):
                values[index] = traces[start + sample, near[row, index]]
            for component in range(num_components):
                weight = components[sample, component]
                for index in range(width):
                    sums[component, index] += weight * values[index]
            for index in range(width):
                product[index] += shapes[row, sample, index] * values[index]
        features[spike] = sums
        products[spike] = product.sum()
    return features, products


@compiled()
def _add_windows(
    traces: np.ndarray,
    first: np.ndarray,
    rows: np.ndarray,
    near: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Add the window of each spike to the sum of its unit."""
    _, length, width = sums.shape
    for spike in range(len(first)):
        start, row = np.uint64(first[spike]), rows[spike]
        for index in range(width):
            channel = near[row, index]
            for sample in range(np.uint64(length)):
                sums[row, sample, index] += traces[start + sample, channel]
