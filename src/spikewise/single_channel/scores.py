"""Scores of the assignment of spikes to units: accuracy and Macro_F, as in Li et al. 2020.

The numbers of clusters are arbitrary, so :func:`assign_clusters` assigns clusters to units before they are
scored. Conventions: labels are ``(num_spikes,)`` int64; a predicted -1 counts as wrong; the caller leaves out
spikes whose true unit is unknown.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from sklearn.metrics.cluster import contingency_matrix

from spikewise.core.errors import LabelsError


def classification_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the fraction of spikes that were assigned to their true unit.

    Raises
    ------
    LabelsError
        If the two differ in length, or are empty.
    """
    _check_pairs(true, predicted)
    return float(accuracy_score(true, predicted))


def macro_f(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F1 score, 2PR / (P + R), over the true units; it is 0 for a unit never predicted.

    Raises
    ------
    LabelsError
        If the two differ in length, or are empty.
    """
    _check_pairs(true, predicted)
    return float(f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0.0))


def confusion(true: np.ndarray, predicted: np.ndarray, unit_ids: np.ndarray) -> np.ndarray:
    """Return the confusion matrix: how many spikes of each true unit were assigned to each unit.

    Parameters
    ----------
    true, predicted : np.ndarray
        ``(num_spikes,)`` labels.
    unit_ids : np.ndarray
        The units, in the order of rows and columns. Spikes of other units, or assigned to other units, are
        not counted.

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
    """Replace clusters by units, one unit for each cluster, so that as many spikes as possible agree.

    If there are more clusters than units, the remaining clusters get the label -1. Outliers, which have the
    cluster -1, keep it.

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
