"""How well spikes were assigned to units: accuracy and Macro_F, as in Li et al. 2020.

A clustering names its clusters as it likes, so :func:`assign_clusters` gives each the unit that fits best
before it is scored. Conventions: labels are ``(num_spikes,)`` int64; -1 as a prediction is wrong, and spikes
whose true unit is not known are left out by the caller.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from sklearn.metrics.cluster import contingency_matrix

from spikewise.core.errors import LabelsError


def classification_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the fraction of spikes that got their true unit.

    Raises
    ------
    LabelsError
        If the two differ in length, or are empty.
    """
    _check_pairs(true, predicted)
    return float(accuracy_score(true, predicted))


def macro_f(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean over the true units of 2PR / (P + R), 0 for a unit that is never predicted.

    Raises
    ------
    LabelsError
        If the two differ in length, or are empty.
    """
    _check_pairs(true, predicted)
    return float(f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0.0))


def confusion(true: np.ndarray, predicted: np.ndarray, unit_ids: np.ndarray) -> np.ndarray:
    """Return how many spikes of each unit were assigned to each.

    Parameters
    ----------
    true, predicted : np.ndarray
        ``(num_spikes,)`` labels.
    unit_ids : np.ndarray
        The units, in the order of rows and columns. Spikes of other units, or assigned to them, are left
        out.

    Returns
    -------
    np.ndarray
        ``(num_units, num_units)`` int64: rows are true units, columns predicted ones.

    Raises
    ------
    LabelsError
        If the two differ in length, or are empty.
    """
    _check_pairs(true, predicted)
    known = np.isin(true, unit_ids)
    if not known.any():
        return np.zeros((len(unit_ids), len(unit_ids)), dtype=np.int64)
    return confusion_matrix(np.asarray(true)[known], np.asarray(predicted)[known], labels=unit_ids)


def assign_clusters(true: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Return the clusters renamed to units: one unit each, so that most spikes agree.

    A cluster without a partner, when there are more clusters than units, gets the label -1; so do spikes of
    the cluster -1, which are outliers and have no partner ever.

    Raises
    ------
    LabelsError
        If the two differ in length, or are empty.
    """
    _check_pairs(true, clusters)
    clusters = np.asarray(clusters)
    assigned = np.full(len(clusters), -1, dtype=np.int64)
    in_cluster = clusters >= 0
    if not in_cluster.any():
        return assigned
    unit_ids = np.unique(np.asarray(true)[in_cluster])
    cluster_ids = np.unique(clusters[in_cluster])
    counts = contingency_matrix(np.asarray(true)[in_cluster], clusters[in_cluster])
    for unit, cluster in zip(*linear_sum_assignment(counts, maximize=True), strict=True):
        assigned[clusters == cluster_ids[cluster]] = unit_ids[unit]
    return assigned


def _check_pairs(true: np.ndarray, predicted: np.ndarray) -> None:
    if np.shape(true) != np.shape(predicted) or np.ndim(true) != 1 or len(true) == 0:
        raise LabelsError(
            f"the true and the predicted labels have the shapes {np.shape(true)} and {np.shape(predicted)}",
            "two lists of the same length, not empty",
            "predict the spikes whose true units are given",
        )
