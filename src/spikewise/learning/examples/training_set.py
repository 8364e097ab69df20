"""Windows and labels for training, and the time that is held out of it.

The label interval is cut into blocks of about a second, and every few blocks one is held out. Its windows do
not train; they decide when training stops, and choose the thresholds. Since the blocks alternate, both parts
stay representative if rates or signals change over the interval.

A *span* is a stretch of traces around a sample, long enough for a window centred on any sample within the
label radius. Spans around labelled spikes and spans of noise are read once; windows are cut from them anew
in each epoch.

Conventions: global frames count from 0 over all segments laid end to end. Within the label interval the
first K spikes of a unit are positive: they are examples of the unit. Its later spikes are neither positive
nor noise: a window that holds one is not drawn as noise, and does not count in the loss of that unit.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikewise.core.config import TrainingConfig, given
from spikewise.core.seeds import stage_generator
from spikewise.data.labels.label_set import KeptSpikes
from spikewise.data.recordings.reader import Traces
from spikewise.learning.examples.superposition import Superposer

logger = logging.getLogger(__name__)

# Chosen by hand, all of the following.
BLOCK_S = 1.0  # length of a block that trains or is held out
MEMORY_BYTES = 2 * 2**30  # of all spans
_MIN_NOISE_SPANS = 500  # with far fewer, spans near unknown spikes are taken too
_MAX_HELD_OUT_PER_UNIT = 50  # held-out spikes of a unit


@dataclass(frozen=True)
class Block:
    """A stretch of the label interval, in global frames, inside one segment."""

    segment_index: int
    start: int
    stop: int
    held_out: bool


@dataclass(frozen=True)
class Batch:
    """Windows with their labels.

    Attributes
    ----------
    windows : Tensor
        (num_windows, window_samples, num_channels) float32
    targets, weights : Tensor
        (num_windows, num_units): 1 where the unit fires at the window's centre; weight 0 where unknown.
    """

    windows: Tensor
    targets: Tensor
    weights: Tensor


def split_interval(
    traces: Traces, parts: Sequence[tuple[int, int]], spikes: KeptSpikes, held_out_fraction: float
) -> list[Block]:
    """Cut the parts of the label interval (global frames, half open) into blocks, and hold some out.

    Every n-th block is held out, where n is the inverse of `held_out_fraction`. The phase is chosen so that
    as few units as possible have no positive spike in the other blocks. A block that holds all positive
    spikes of a unit is always used for training.
    """
    blocks = [
        block
        for start, stop in parts
        for block in _cut_blocks(traces, start, stop, held_out_fraction, len(parts))
    ]
    frames, units = spikes.global_frame[spikes.is_positive], spikes.unit_index[spikes.is_positive]
    block_of_spike = np.searchsorted([b.start for b in blocks], frames, side="right") - 1
    inside = (block_of_spike >= 0) & (frames < np.array([b.stop for b in blocks])[block_of_spike])
    counts = np.zeros((len(spikes.unit_ids), len(blocks)), dtype=int)
    np.add.at(counts, (units[inside], block_of_spike[inside]), 1)

    period = round(1 / held_out_fraction)
    choices = [np.arange(len(blocks)) % period == phase for phase in reversed(range(period))]
    held_out = min(choices, key=lambda choice: int((counts[:, ~choice].sum(axis=1) == 0).sum()))
    for unit_counts in counts:
        if unit_counts.sum() and not unit_counts[~held_out].sum():
            held_out[np.argmax(unit_counts)] = False
    return [
        Block(block.segment_index, block.start, block.stop, bool(flag))
        for block, flag in zip(blocks, held_out, strict=True)
    ]


def _cut_blocks(
    traces: Traces, start_frame: int, stop_frame: int, held_out_fraction: float, num_parts: int
) -> list[Block]:
    """Cut into blocks of about a second; into shorter ones if these are needed for two of each kind."""
    fewest = max(1, 2 * round(1 / held_out_fraction) // num_parts)
    length = int(min(BLOCK_S * traces.sampling_frequency, max(1, (stop_frame - start_frame) // fewest)))
    blocks, offset = [], 0
    for segment_index in range(traces.num_segments):
        end = offset + traces.num_samples(segment_index)
        low, high = max(start_frame, offset), min(stop_frame, end)
        if low < high:
            edges = np.linspace(low, high, max(1, round((high - low) / length)) + 1).astype(int)
            blocks += [Block(segment_index, int(a), int(b), False) for a, b in itertools.pairwise(edges)]
        offset = end
    return blocks


class TrainingSet:
    """Spans of one part of the label interval, from which windows are cut.

    Parameters
    ----------
    traces : Traces
        Preprocessed traces of one group of channels.
    spikes : KeptSpikes
    blocks : list of Block
        The blocks to take spans from.
    window_samples, label_radius : int
        In samples.
    config : TrainingConfig
        Resolved settings.
    """

    def __init__(
        self,
        traces: Traces,
        spikes: KeptSpikes,
        blocks: list[Block],
        window_samples: int,
        label_radius: int,
        config: TrainingConfig,
    ):
        self.spikes = spikes
        self.window_samples = window_samples
        self.label_radius = label_radius
        self.num_units = len(spikes.unit_ids)
        self.config = config
        self._left = (window_samples - 1) // 2
        self._span_samples = window_samples + 2 * label_radius
        stage = "held-out windows" if blocks and blocks[0].held_out else "training windows"
        self._random = stage_generator(config.seed, stage)
        self._spans_that_fit = MEMORY_BYTES // (2 * self._span_samples * traces.num_channels)

        chosen = self._choose_spikes(blocks)
        positive = spikes.global_frame[chosen]
        noise = self._choose_noise(blocks, max(_MIN_NOISE_SPANS, len(positive)))
        self.num_positive_spans, self.num_noise_spans = len(positive), len(noise)
        self._centres = np.concatenate([positive, noise])
        self._spans = self._read_spans(traces, blocks)
        self._neighbours = self._find_neighbours()
        duration = sum(block.stop - block.start for block in blocks)
        density = np.count_nonzero(self._inside(blocks, spikes.global_frame)) / max(1, duration)
        self._mean_added = given(config.superpositions) * density * self._span_samples
        self._superposer = Superposer(
            self._spans[: len(positive)], spikes.unit_index[chosen], self.num_units, self._reach()[0]
        )

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Yield the batches of one epoch: windows of each labelled spike, as many of noise, shuffled."""
        random = np.random.default_rng(seed)
        radius = self.label_radius
        if self.config.windows_per_spike:
            span = np.resize(random.permutation(self.num_positive_spans), self._positive_windows())
            shift = random.integers(-radius, radius + 1, len(span))
        else:
            span = np.repeat(np.arange(self.num_positive_spans), 2 * radius + 1)
            shift = np.tile(np.arange(-radius, radius + 1), self.num_positive_spans)
        if self.num_noise_spans:
            noise = self.num_positive_spans + random.integers(0, self.num_noise_spans, len(span))
            span = np.concatenate([span, noise])
            shift = np.concatenate([shift, random.integers(-radius, radius + 1, len(noise))])
        order = random.permutation(len(span))
        for batch in self._batches(span[order], shift[order]):
            if self._mean_added:
                self._superposer.add(batch.windows, batch.targets, radius, self._mean_added, random)
            yield batch

    def all_centres(self) -> Iterator[Batch]:
        """Yield the window at the centre of every span, in order: the same windows at each call."""
        span = np.arange(len(self._centres))
        yield from self._batches(span, np.zeros_like(span))

    def num_batches(self) -> int:
        """Return how many batches an epoch has."""
        num_windows = self._positive_windows() * (2 if self.num_noise_spans else 1)
        return -(-num_windows // given(self.config.batch_size))

    def _positive_windows(self) -> int:
        """Return how many windows of labelled spikes an epoch has, within the bounds on steps."""
        if not self.config.windows_per_spike:
            return self.num_positive_spans * (2 * self.label_radius + 1)
        windows_per_step = given(self.config.batch_size) / (2 * given(self.config.epochs))
        wanted = self.num_positive_spans * self.config.windows_per_spike
        wanted = min(wanted, int(given(self.config.max_steps) * windows_per_step))
        return max(1, wanted, int(given(self.config.min_steps) * windows_per_step))

    def _batches(self, span: np.ndarray, shift: np.ndarray) -> Iterator[Batch]:
        """Cut into batches of nearly one size: a last batch of one window could not be normalised."""
        num_batches = max(1, -(-len(span) // given(self.config.batch_size)))
        for part in np.array_split(np.arange(len(span)), num_batches):
            yield self._batch(span[part], shift[part])

    def _batch(self, span: np.ndarray, shift: np.ndarray) -> Batch:
        """Cut the windows whose centres lie `shift` samples from those of the spans, and label them."""
        num_spans, span_samples, num_channels = self._spans.shape
        every_window = self._spans.as_strided(
            (num_spans, 2 * self.label_radius + 1, self.window_samples * num_channels),
            (span_samples * num_channels, num_channels, 1),
        )
        windows = every_window[torch.from_numpy(span), torch.from_numpy(shift + self.label_radius)].float()
        targets = torch.zeros(len(span), self.num_units)
        weights = torch.ones(len(span), self.num_units)
        distance = np.abs(self._neighbours["offset"][span] - shift[:, None])
        unit, positive = self._neighbours["unit"][span], self._neighbours["positive"][span]
        unknown = ~positive & (unit >= 0) & (distance <= self._left + self.label_radius)
        row, column = np.nonzero(unknown)
        weights[row, unit[row, column]] = 0
        row, column = np.nonzero(positive & (distance <= self.label_radius))
        targets[row, unit[row, column]] = 1
        weights[row, unit[row, column]] = 1
        return Batch(windows.view(len(span), self.window_samples, num_channels), targets, weights)

    def _reach(self) -> tuple[int, int]:
        """Samples of a span before and after its centre."""
        before = self._left + self.label_radius
        return before, self._span_samples - before

    def _inside(self, blocks: list[Block], frames: np.ndarray) -> np.ndarray:
        """Return which frames have their whole span inside one of the blocks."""
        if not blocks:
            return np.zeros(len(frames), dtype=bool)
        before, after = self._reach()
        starts = np.array([block.start for block in blocks])
        stops = np.array([block.stop for block in blocks])
        index = np.searchsorted(starts, frames, side="right") - 1
        return (index >= 0) & (frames - before >= starts[index]) & (frames + after <= stops[index])

    def _choose_spikes(self, blocks: list[Block]) -> np.ndarray:
        """Return which spikes to take: of each unit evenly over time, if there are too many."""
        if not blocks:
            return np.empty(0, np.int64)
        spikes = self.spikes
        usable = spikes.is_positive & self._inside(blocks, spikes.global_frame)
        limit = _MAX_HELD_OUT_PER_UNIT if blocks[0].held_out else self.config.max_spikes_per_unit
        limit = max(1, min(limit, self._spans_that_fit // (2 * max(1, len(spikes.unit_ids)))))
        chosen = []
        for unit_index in range(len(spikes.unit_ids)):
            of_unit = np.flatnonzero(usable & (spikes.unit_index == unit_index))
            if len(of_unit) > limit:
                of_unit = of_unit[np.linspace(0, len(of_unit) - 1, limit).round().astype(int)]
            chosen.append(of_unit)
        return np.concatenate(chosen)

    def _choose_noise(self, blocks: list[Block], count: int) -> np.ndarray:
        """Draw the global frames of noise spans.

        ``spike-free`` spans hold no spike at all. ``anywhere`` spans hold no labelled spike at their centre
        and no spike that is neither positive nor noise. If these are too few, spans with such spikes are
        added; the units of these spikes are left out of the loss.
        """
        length = sum(block.stop - block.start for block in blocks)
        if not length:
            return np.empty(0, np.int64)
        starts = np.array([block.start for block in blocks])
        lengths = np.array([block.stop - block.start for block in blocks])
        offset = self._random.integers(0, length, 30 * count)
        index = np.searchsorted(np.cumsum(lengths), offset, side="right")
        frames = starts[index] + offset - (np.cumsum(lengths) - lengths)[index]
        frames = frames[self._inside(blocks, frames)]
        positive = self.spikes.global_frame[self.spikes.is_positive]
        unknown = self.spikes.global_frame[~self.spikes.is_positive]
        whole_span = max(self._reach())
        off_centre = _distance_to_nearest(positive, frames) > self.label_radius
        if self.config.noise_windows == "spike-free":
            off_centre = _distance_to_nearest(positive, frames) > whole_span
        strict = frames[off_centre & (_distance_to_nearest(unknown, frames) > whole_span)]
        if len(strict) < count:
            logger.info(
                "only %d of %d noise windows lie clear of spikes; taking what there is", len(strict), count
            )
        if len(strict) < min(count, _MIN_NOISE_SPANS) // 5:
            loose = _distance_to_nearest(self.spikes.global_frame, frames) > self.label_radius
            strict = np.concatenate([strict, frames[loose]])
        return strict[:count]

    def _read_spans(self, traces: Traces, blocks: list[Block]) -> Tensor:
        """Read all spans in order of time: (num_spans, span_samples, num_channels) float16."""
        before, after = self._reach()
        spans = torch.empty(len(self._centres), self._span_samples, traces.num_channels, dtype=torch.float16)
        offsets = np.cumsum([0] + [traces.num_samples(s) for s in range(traces.num_segments)])
        for index in np.argsort(self._centres, kind="stable"):
            centre = self._centres[index]
            segment_index = int(np.searchsorted(offsets, centre, side="right") - 1)
            frame = int(centre - offsets[segment_index])
            spans[index] = torch.tensor(traces.read(segment_index, frame - before, frame + after))
        return spans

    def _find_neighbours(self) -> dict[str, np.ndarray]:
        """List the spikes around each span: arrays (num_spans, most_neighbours), unit -1 if there is none."""
        reach = self._left + 2 * self.label_radius + 1
        frames = self.spikes.global_frame
        first = np.searchsorted(frames, self._centres - reach, side="left")
        last = np.searchsorted(frames, self._centres + reach, side="right")
        most = max(1, int((last - first).max(initial=0)))
        index = first[:, None] + np.arange(most)
        there = index < last[:, None]
        index = np.where(there, index, 0)
        if not len(frames):
            empty = np.zeros(index.shape, np.int64)
            return {"unit": empty - 1, "offset": empty, "positive": empty.astype(bool)}
        return {
            "unit": np.where(there, self.spikes.unit_index[index], -1),
            "offset": frames[index] - self._centres[:, None],
            "positive": there & self.spikes.is_positive[index],
        }


def _distance_to_nearest(sorted_frames: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Return how far each frame is from the nearest of the sorted ones (a huge number if there is none)."""
    if not len(sorted_frames):
        return np.full(len(frames), np.iinfo(np.int64).max)
    right = np.searchsorted(sorted_frames, frames).clip(0, len(sorted_frames) - 1)
    left = (right - 1).clip(0)
    return np.minimum(np.abs(sorted_frames[right] - frames), np.abs(sorted_frames[left] - frames))
