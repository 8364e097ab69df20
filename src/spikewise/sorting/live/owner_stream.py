"""Decide by the traces which candidates of a stream are spikes, as soon as no later candidate can change it.

The rule is that of files (:mod:`spikewise.sorting.owner.search`). A decision depends on the candidates within
its margins, so the last candidates wait, and as many before them are kept as the next decisions need.
"""

from __future__ import annotations

import numpy as np

from spikewise.sorting.owner.search import OwnerRule
from spikewise.sorting.sparse import Tile
from spikewise.sorting.spikes import Spikes


class OwnerStream:
    """Candidates of one group of channels, from the first sample on.

    Parameters
    ----------
    rule : OwnerRule

    Attributes
    ----------
    certain : int
        Candidates before this sample are decided.
    """

    def __init__(self, rule: OwnerRule):
        self._rule = rule
        self._waiting = Spikes.concatenate([])
        self._products = np.empty((0, rule.num_lags), np.float32)
        self.certain = 0

    def add(self, found: Spikes, traces: np.ndarray, begin: int) -> None:
        """Take the next candidates.

        Parameters
        ----------
        found : Spikes
        traces : ndarray of float32
            (num_channels, num_samples) with contiguous samples; `before` samples of the rule before each
            candidate, and `after` after it.
        begin : int
            Their first sample.
        """
        if not len(found):
            return
        products = np.empty((len(found), self._rule.num_lags), np.float32)
        self._rule.multiply(found.sample_index, found.unit_index, (begin, Tile.of(traces.T)), products)
        self._waiting = Spikes.concatenate([self._waiting, found])
        self._products = np.concatenate([self._products, products])

    def decide(self, stop: int) -> Spikes:
        """Return the spikes before a sample; all candidates within the margin after it must be known."""
        start, self.certain = self.certain, max(self.certain, stop)
        low, high = np.searchsorted(self._waiting.sample_index, (start, self.certain))
        spikes = Spikes.concatenate([])
        if low < high:
            is_spike = self._rule.decide(self._waiting, self._products)
            is_spike[:low] = is_spike[high:] = False
            spikes = self._waiting.chosen(is_spike)
        is_kept = self._waiting.sample_index >= self.certain - self._rule.margins[0]
        if not is_kept.all():
            self._waiting, self._products = self._waiting.chosen(is_kept), self._products[is_kept]
        return spikes

    def state(self) -> dict[str, np.ndarray]:
        """Return all that the next spikes depend on."""
        waiting = self._waiting
        return {
            "waiting_sample": waiting.sample_index,
            "waiting_unit": waiting.unit_index,
            "waiting_response": waiting.response,
            "waiting_products": self._products,
            "decided": np.array(self.certain, np.int64),
        }

    def restore(self, state: dict[str, np.ndarray], known: int) -> None:
        """Go on from a state of :meth:`state`; raise ValueError or KeyError if it does not fit.

        Candidates before the sample `known` are known.
        """
        own = self.state()
        for name, value in own.items():
            found = state[name]
            if found.dtype != value.dtype or found.ndim != value.ndim or found.shape[1:] != value.shape[1:]:
                raise ValueError(f"its {name} do not fit the model")
        samples, units, response, products, decided = (state[name] for name in own)
        is_sound = len({len(samples), len(units), len(response), len(products)}) == 1
        is_sound &= not len(samples) or 0 <= samples[0] <= samples[-1] < known
        is_sound &= bool((np.diff(samples) >= 0).all()) and 0 <= int(decided) <= max(known, 0)
        if not is_sound or not ((units >= 0) & (units < len(self._rule.thresholds))).all():
            raise ValueError("its candidates contradict each other")
        self._waiting, self._products, self.certain = Spikes(samples, units, response), products, int(decided)
