"""Features, sizes and templates of all spikes, in one pass over the recording.

A spike is projected on the rough shape of its unit and on principal components.
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
from spikewise.output.export.phy_units import PlacedUnits, window_samples
from spikewise.output.export.sorted_group import SortedGroup

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


class _Pass:
    """One group on its way through the recording."""

    def __init__(self, group: SortedGroup, units: PlacedUnits):
        self.row_of = np.full(len(units.near), -1)
        self.row_of[group.unit_index] = np.arange(len(group.unit_index))
        near = units.near[group.unit_index]
        self.is_there = near >= 0
        self.near = np.maximum(near, 0)
        self.components = np.ascontiguousarray(units.components)
        self.rough = np.ascontiguousarray(units.rough[group.unit_index])
        self.sums = np.zeros(self.rough.shape)
        self.counts = np.zeros(len(self.rough))

    def project(
        self, traces: np.ndarray, first: np.ndarray, rows: np.ndarray, chosen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return features (num_spikes, num_components, num_near) and products with the rough shapes.

        `first` is where the window of each spike begins, `rows` its unit; those that are `chosen` make
        templates.
        """
        features = np.empty((len(first), self.components.shape[1], self.near.shape[1]), dtype=np.float32)
        products = np.empty(len(first), dtype=np.float32)

        def run(start: int) -> None:
            part = slice(start, start + _SPIKES_AT_ONCE)
            _project(
                traces,
                first[part],
                rows[part],
                self.near,
                self.components,
                self.rough,
                features[part],
                products[part],
            )

        on_all_cores(run, range(0, len(first), _SPIKES_AT_ONCE))
        features *= self.is_there[rows][:, None, :]
        _add_windows(traces, first[chosen], rows[chosen], self.near, self.sums)
        np.add.at(self.counts, rows[chosen], 1)
        return features, products

    def templates(self) -> np.ndarray:
        """Return the mean waveforms (num_units, num_samples, num_near) of the chosen spikes."""
        return self.sums / np.maximum(self.counts, 1)[:, None, None] * self.is_there[:, None]


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
        of_group, went = np.flatnonzero(np.isin(unit_index, group.unit_index)), _Pass(group, units)
        for segment, origin in enumerate(segment_starts(recording)):
            num_samples = recording.get_num_samples(segment)
            within = np.searchsorted(frames[of_group], (origin, origin + num_samples))
            mine = of_group[slice(*within)]
            begins = frames[mine] - origin - before
            for low, high, start, stop in _stretches(num_samples, chunk, length):
                some = slice(*np.searchsorted(begins, (low, high)))
                spikes = mine[some]
                if len(spikes):
                    traces = group.traces.read(segment, start, stop)
                    if isinstance(group.traces, TraceReader):
                        group.traces.read_ahead(segment, stop, stop + chunk)
                    rows = went.row_of[unit_index[spikes]]
                    found = went.project(traces, begins[some] - start, rows, chosen[spikes])
                    features[spikes], products[spikes] = found
                done += high - max(0, low)
                progress("phy", done / rate, total / rate, "")
        templates[group.unit_index] = went.templates()
    features.flush()
    return Projected(templates, products / _fit(templates, units)[unit_index])


def _stretches(num_samples: int, chunk: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a segment: windows that begin from `low` to before `high` lie from `start` to before `stop`.

    Those within a block of the reader are read as they lie there; those across its end are read apart.
    """
    yield -length, 0, -length, length
    for start in range(0, num_samples, chunk):
        stop = min(start + chunk, num_samples)
        across = max(start, stop - length + 1)
        yield start, across, start, stop
        yield across, stop, across, stop + length


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
    features: np.ndarray,
    products: np.ndarray,
) -> None:
    """Multiply the window of each spike with the basis, for each channel, and with its unit's shape."""
    length, num_components = basis.shape
    width = near.shape[1]
    values = np.empty(width, np.float32)
    product, sums = np.empty(width, np.float32), np.empty((num_components, width), np.float32)
    for spike in range(len(first)):
        start, row = np.uint64(first[spike]), rows[spike]
        product[:], sums[:] = 0, 0
        for sample in range(np.uint64(length)):
            for index in range(width):
                values[index] = traces[start + sample, near[row, index]]
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
    sums: np.ndarray,
) -> None:
    """Add the window of each spike to that of its unit."""
    _, length, width = sums.shape
    for spike in range(len(first)):
        start, row = np.uint64(first[spike]), rows[spike]
        for index in range(width):
            channel = near[row, index]
            for sample in range(np.uint64(length)):
                sums[row, sample, index] += traces[start + sample, channel]
