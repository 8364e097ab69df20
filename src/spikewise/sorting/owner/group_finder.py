"""The spikes of one group of a model: the network finds candidates, and the traces decide about them."""

from __future__ import annotations

import numpy as np

from spikewise.core.config import SortingConfig
from spikewise.data.recordings.reader import Traces
from spikewise.models.checkpoint import SILENT, GroupModel, Model
from spikewise.sorting.detector import SegmentSearch
from spikewise.sorting.detectors import make_detector
from spikewise.sorting.owner.search import OwnerRule, OwnerSearch
from spikewise.sorting.spikes import Spikes


class GroupFinder:
    """Finds the spikes of one group of a model, as a sort does.

    Parameters
    ----------
    part : GroupModel
        The group.
    model : Model
        The model that it is of.
    sorting : SortingConfig
        Its `explain`, `device`, `sparse` and `precision`.
    threshold : float or None
        One threshold for all units in place of those of the model; silent units stay silent.

    Attributes
    ----------
    thresholds : ndarray
        (num_units,) response from which on the network finds a spike.
    detector : Detector
    """

    def __init__(
        self, part: GroupModel, model: Model, sorting: SortingConfig, threshold: float | None = None
    ):
        self.thresholds = part.thresholds
        if threshold is not None:
            self.thresholds = np.full_like(part.thresholds, threshold)
            self.thresholds[part.thresholds >= SILENT] = SILENT
        rate = model.sampling_frequency
        # A stream would have to wait longer for each spike, so the live filter leaves the traces out.
        is_live = model.preprocessing_config.filter == "live"
        self._rule: OwnerRule | None = None
        if sorting.explain and part.waveforms is not None and not is_live:
            self._rule = OwnerRule(part.waveforms, self.thresholds, rate, part.residual_noise)
        lowest = self.thresholds if self._rule is None else self._rule.lowest
        self.detector = make_detector(part.network, lowest, rate, model.detection_config, sorting)

    def search(self, traces: Traces, segment_index: int, read_ahead: bool = True) -> SegmentSearch:
        """Begin a search of a segment; see :meth:`spikewise.sorting.detector.Detector.search`."""
        search = self.detector.search(traces, segment_index, read_ahead)
        return search if self._rule is None else OwnerSearch(search, self._rule, traces, segment_index)

    def find(self, traces: Traces, segment_index: int, start: int, stop: int) -> Spikes:
        """Find the spikes of one stretch of a segment, ``start <= sample_index < stop``."""
        return self.search(traces, segment_index, read_ahead=False).find(start, stop)
