"""The stream of one group of channels: from raw samples to the spikes that are certain.

A spike is certain as soon as no later sample can change it. It depends on

- the samples within the reach of merging and of the triangle around it, at which its unit's probability is
  needed (`context`);
- the window of the network around these;
- and the two blocks after the block of the last of these, whose first outputs decide whether that block is
  computed, with the blocks that their gates look at.

So a peak is known some samples after it, or up to a block earlier, since blocks are decided as a whole. Where
the traces decide which peaks are spikes (:mod:`spikewise.sorting.live.owner_stream`), a spike waits for the
peaks within the margin of that rule, too. :attr:`GroupStream.look_ahead` is both together.
"""

from __future__ import annotations

import numpy as np

from spikewise.data.recordings.channels import MAD_TO_SD
from spikewise.data.recordings.conditioning_loops import LANES
from spikewise.data.recordings.live_conditioning import LiveConditioner
from spikewise.sorting import tiles
from spikewise.sorting.kernels import Samples
from spikewise.sorting.live.blocks import AHEAD, Pending, evaluate_blocks, join_blocks
from spikewise.sorting.live.owner_stream import OwnerStream
from spikewise.sorting.loops import peaks_of_units
from spikewise.sorting.owner.search import OwnerRule
from spikewise.sorting.sparse import Evaluated
from spikewise.sorting.sparse_detector import SparseDetector
from spikewise.sorting.spikes import Spikes

_MOST_BLOCKS = 64
"""Most blocks that are evaluated at once; chosen by hand."""
_NOISE_SAMPLES = 512
"""Samples of which the noise is measured; chosen by hand."""
_GATE_REACH = 2
"""Blocks after a block at which its gates look."""


class GroupStream:
    """Sorts the channels of one group from the first sample that it is given.

    Parameters
    ----------
    detector : SparseDetector
    conditioner : LiveConditioner
        Of the detector's channels; it must be at its first sample.
    rule : OwnerRule, optional
        By which the traces decide about the peaks; the detector's thresholds are then its lowest ones.
        Default: all peaks are spikes.

    Attributes
    ----------
    look_ahead : int
        Samples after a spike that must be known before it is certain, at most.
    most_samples : int
        Most samples that may be pushed at once.
    num_samples : int
        Samples pushed so far.
    known : int
        Peaks before this sample are known.
    """

    def __init__(self, detector: SparseDetector, conditioner: LiveConditioner, rule: OwnerRule | None = None):
        self._detector, self._conditioner = detector, conditioner
        self._owner = None if rule is None else OwnerStream(rule)
        network, block = detector.network, detector.block
        # What the traces are compared with, around a peak, and the peaks after it that count.
        self._around = (0, 0) if rule is None else (rule.before, rule.after)
        self._margin = 0 if rule is None else rule.margins[1]
        self._wait = max(self._samples_needed(0), self._around[1] - 1)
        self.look_ahead = self._wait + self._margin
        self.most_samples = _MOST_BLOCKS * block
        # Before the next block lie the windows of two pending blocks, and the samples that wait for a block.
        history = network.left_margin + (AHEAD + _GATE_REACH + 2) * block + network.right_margin
        room = 4 * (history + self.most_samples + self._wait + block + self._around[0]) + LANES
        self._step = LANES * (-(-room // LANES) | 1)  # rows a power of two apart share few lines of a cache
        self._traces = np.zeros((conditioner.width, self._step), np.float32)
        # The first block from which on probabilities reach the first sample, and those that it depends on.
        self._next_block = -(detector.context // block) - 2 - 2 * AHEAD
        self.num_samples = self.known = 0
        self._first = self._first_needed(self._next_block, 0)  # sample of column 0
        self._length = -self._first  # columns that are known; zeros before the first sample
        self._pending = Pending.none(network.num_units)
        self._spaces: dict[int, tiles.Space] = {}
        self._found = _none_found(detector.sparse.num_outputs)
        self._first_entry = np.zeros(network.num_units + 1, np.int64)

    def push(self, raw: np.ndarray) -> Spikes:
        """Take the next samples (num_samples, num_columns); return the spikes that are certain now."""
        found = []
        for begin in range(0, len(raw), self.most_samples):
            part = raw[begin : begin + self.most_samples]
            self._make_room(len(part))
            self._conditioner.push(part, self._traces[:, self._length :])
            self._length += len(part)
            self.num_samples += len(part)
            self._evaluate()
            known = self._known_peaks()
            found.append(self._spikes(known, known - self._margin))
        return found[0] if len(found) == 1 else Spikes.concatenate(found)

    def end(self) -> Spikes:
        """Return the rest of the spikes, with traces of zero after the last sample; push nothing then."""
        count = self._wait + self._detector.block
        self._make_room(count)
        self._traces[:, self._length : self._length + count] = 0
        self._length += count
        self._evaluate()
        return self._spikes(self.num_samples, self.num_samples)

    def warm_up(self, zeros: np.ndarray) -> None:
        """Compile all loops with samples of zeros (num_samples, num_columns); push nothing then."""
        self.push(zeros)
        if self._owner is not None:  # zeros have no peak
            peak = Spikes(np.array([self.known]), np.zeros(1, np.int64), np.ones(1, np.float32))
            self._owner.add(peak, self._traces[:, : self._length], self._first)
            self._owner.decide(self.known + 1)
        self.end()

    def noise(self, channels: np.ndarray) -> float:
        """Return the median noise of some channels over the last samples: 1 where it is that of the training.

        NaN where there are not enough samples yet.
        """
        last = self._traces[channels, max(0, self._length - _NOISE_SAMPLES) : self._length]
        if self.num_samples < _NOISE_SAMPLES or not last.size:
            return float("nan")
        return float(np.median(np.median(np.abs(last), axis=1)) * MAD_TO_SD)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of all that the next spikes depend on."""
        numbers = self._first, self._length, self._next_block, self.num_samples, self.known
        return {
            "numbers": np.array(numbers, np.int64),
            "traces": self._traces[:, : self._length].copy(),
            **{name: value.copy() for name, value in self._pending._asdict().items()},
            "found_unit": self._found.unit_index,
            "found_block": self._found.block,
            "found": self._found.probabilities,
            **{f"filter_{name}": value for name, value in self._conditioner.state().items()},
            **({} if self._owner is None else self._owner.state()),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a state of :meth:`state`; raise ValueError or KeyError if it does not fit."""
        owner = self._owner
        others = () if owner is None else owner.state()
        for name, value in self.state().items():
            if name in others:
                continue
            found = state[name]
            varies = name == "traces" or name.startswith("found")
            fits = found.shape[1:] == value.shape[1:] if varies and name != "traces" else True
            if found.dtype != value.dtype or not (fits if varies else found.shape == value.shape):
                raise ValueError(f"its {name} do not fit the model")
        first, length, next_block, num_samples, known = state["numbers"].tolist()
        if state["traces"].shape != (len(self._traces), length) or length > self._step - LANES:
            raise ValueError("its traces do not fit the model")
        first_needed = self._first_needed(next_block, known)
        counts = {len(state[name]) for name in ("found_unit", "found_block", "found")}
        units = state["found_unit"]
        is_sound = first <= first_needed and first + length == num_samples and 0 <= known <= num_samples
        if not is_sound or len(counts) > 1 or not ((units >= 0) & (units < len(self._first_entry) - 1)).all():
            raise ValueError("its numbers contradict each other")
        if owner is not None:
            owner.restore(state, known)
        self._conditioner.restore({name: state[f"filter_{name}"] for name in self._conditioner.state()})
        self._first, self._length, self._next_block = first, length, next_block
        self.num_samples, self.known = num_samples, known
        self._traces[:, :length] = state["traces"]
        self._pending = Pending(*(state[name].copy() for name in Pending._fields))
        self._found = Evaluated(state["found_unit"], state["found_block"], state["found"])
        self._add(_none_found(self._detector.sparse.num_outputs))

    def _samples_needed(self, sample: int) -> int:
        """Return how many samples after a sample must be known for its spikes, at most over all places."""
        detector, block = self._detector, self._detector.block
        most = 0
        for at in range(sample, sample + block):
            last = at + detector.context  # the last sample whose probability is needed
            output = -(-last // detector.stride) * detector.stride
            decides = output // block + AHEAD
            known = max(
                decides * block + detector.network.right_margin, (decides + 1 + _GATE_REACH) * block - 1
            )
            most = max(most, known - at)
        return most

    def _known_peaks(self) -> int:
        """Return the sample before which all peaks are known."""
        decided = self._next_block - AHEAD  # the first block that is not decided
        last_output = decided * self._detector.block - self._detector.stride
        by_traces = self._first + self._length + 1 - self._around[1]
        return min(last_output + 1 - self._detector.context, by_traces, self.num_samples)

    def _first_needed(self, next_block: int, known: int) -> int:
        """Return the first sample that later windows and peaks need."""
        window = (next_block - AHEAD) * self._detector.block - self._detector.network.left_margin
        return min(window, known - self._around[0])

    def _make_room(self, count: int) -> None:
        """Move what is still needed of the traces to the front, if `count` columns do not fit behind them."""
        if self._length + count + LANES <= self._step:
            return
        start = self._first_needed(self._next_block, self.known)
        offset = start - self._first
        self._traces[:, : self._length - offset] = self._traces[:, offset : self._length].copy()
        self._first, self._length = start, self._length - offset

    def _evaluate(self) -> None:
        """Compute the network on all blocks whose gates and first windows are known."""
        detector, block = self._detector, self._detector.block
        end = self._first + self._length
        by_gates = end // block - _GATE_REACH
        by_window = (end - 1 - detector.network.right_margin) // block + 1
        stop = min(by_gates, by_window)
        while self._next_block < stop:
            count = min(_MOST_BLOCKS, stop - self._next_block)
            self._add(self._evaluate_blocks(count))
            self._next_block += count

    def _add(self, new: Evaluated) -> None:
        """Add blocks, and drop those that no later spike depends on."""
        first = (self.known - self._detector.context) // self._detector.block - 1
        old = self._found
        units, blocks, found, self._first_entry = join_blocks(
            (old.unit_index, old.block, old.probabilities),
            (new.unit_index, new.block, new.probabilities),
            first,
            self._detector.network.num_units,
        )
        self._found = Evaluated(units, blocks, found)

    def _evaluate_blocks(self, count: int) -> Evaluated:
        detector, sparse = self._detector, self._detector.sparse
        if count not in self._spaces:
            self._spaces[count] = _space(detector, count)
        space = self._spaces[count]
        first_block = self._next_block - AHEAD
        start = first_block * detector.block - detector.network.left_margin - self._first
        samples = Samples(self._traces.ravel()[start:], self._step)
        place = first_block % sparse.num_blocks, sparse.num_blocks
        evaluate_blocks(samples, sparse.weights, sparse.grid, place, self._pending, space)
        units, blocks, found = tiles.evaluated_of(space.is_open, space.probabilities, sparse.row_of_unit)
        return Evaluated(units, blocks + first_block, found)

    def _spikes(self, known: int, certain: int) -> Spikes:
        """Find the peaks before the sample `known`; return the spikes that are new before `certain`."""
        peaks = self._new_peaks(known)
        if self._owner is None:
            return peaks
        self._owner.add(peaks, self._traces[:, : self._length], self._first)
        return self._owner.decide(certain)

    def _new_peaks(self, stop: int) -> Spikes:
        """Return the peaks from those that are known up to a sample."""
        start, detector, found = self.known, self._detector, self._found
        if stop <= start:
            return Spikes.concatenate([])
        peaks = Spikes(
            *peaks_of_units(
                self._first_entry,
                found.block,
                found.probabilities,
                detector.thresholds,
                (start, stop),
                detector.rule,
            )
        )
        self.known = stop
        if len(peaks) < 2:
            return peaks
        return peaks.chosen(np.lexsort((peaks.unit_index, peaks.sample_index)))


def _space(detector: SparseDetector, count: int) -> tiles.Space:
    """Return memory for `count` new blocks and the two before them."""
    space = detector.sparse.new_space(count + AHEAD)
    return space._replace(extremes=space.extremes[:, :, : count + 2 * _GATE_REACH].copy())


def _none_found(num_outputs: int) -> Evaluated:
    return Evaluated(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, num_outputs), np.float32))
