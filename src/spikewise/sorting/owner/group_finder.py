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
        self.thresholds, self._rule, lowest = decision_of(part, model, sorting.explain, threshold)
        rate = model.sampling_frequency
        self.detector = make_detector(part.network, lowest, rate, model.detection_config, sorting)

    def search(self, traces: Traces, segment_index: int, read_ahead: bool = True) -> SegmentSearch:
        """Begin a search of a segment; see :meth:`spikewise.sorting.detector.Detector.search`."""
        search = self.detector.search(traces, segment_index, read_ahead)
        return search if self._rule is None else OwnerSearch(search, self._rule, traces, segment_index)

    def find(self, traces: Traces, segment_index: int, start: int, stop: int) -> Spikes:
        """Find the spikes of one stretch of a segment, ``start <= sample_index < stop``."""
        return self.search(traces, segment_index, read_ahead=False).find(start, stop)


def decision_of(
    part: GroupModel, model: Model, explain: bool, threshold: float | None = None
) -> tuple[np.ndarray, OwnerRule | None, np.ndarray]:
    """Return what decides which responses of a group's network are spikes.

    Parameters
    ----------
    part, model, threshold
        See :class:`GroupFinder`.
    explain : bool
        Whether the traces decide, if the model holds waveforms.

    Returns
    -------
    thresholds : ndarray
        (num_units,) response from which on the network finds a spike.
    rule : OwnerRule or None
        By which the traces decide; None: they do not.
    lowest : ndarray
        (num_units,) response from which on the network must report a peak.
    """
    thresholds = part.thresholds
    if threshold is not None:
        thresholds = np.full_like(part.thresholds, threshold)
        thresholds[part.thresholds >= SILENT] = SILENT
    if not explain or part.waveforms is None:
        return thresholds, None, thresholds
    is_live = model.preprocessing_config.filter == "live"
    rule = OwnerRule(part.waveforms, thresholds, model.sampling_frequency, part.residual_noise, is_live)
    return thresholds, rule, rule.lowest
