"""Whitening: weighted sums of near channels, after which the noise of the channels is not correlated.

Noise that near channels share looks like a weak spike far from the probe. Whitened traces hold less of it, so
wide and weak units stand out (ZCA; Pachitariu et al., Nature Methods 2024, do the same on each channel's
neighbours).
"""

from __future__ import annotations

import numpy as np

# Chosen by hand on the scene `jump40` of seed 1, held still.
REACH_UM = 120.0
"""Channels farther apart are not correlated."""
FLOOR = 0.1
"""Added to the eigenvalues of the covariance: what is hardly there is not made large."""
LARGEST = 4.0
"""Values are cut off here, in noise standard deviations, so that spikes count little."""
MIN_CORRELATION = 0.1
"""Traces of channels whose neighbours are less correlated, in the median, stay as they are."""
MOST_NEAR = 32
"""Most channels of a sum."""


def noise_covariance(parts: list[np.ndarray]) -> np.ndarray:
    """Return the covariance (C, C) of parts (C, num_samples) of traces in noise standard deviations."""
    total, count = np.zeros((len(parts[0]), len(parts[0]))), 0
    for part in parts:
        values = np.clip(part[:, ::3], -LARGEST, LARGEST).astype(np.float64)
        total += values @ values.T
        count += values.shape[1]
    return total / max(1, count)


def noise_correlation(covariance: np.ndarray, distance: np.ndarray) -> np.ndarray | None:
    """Return the correlation (C, C) of the noise of near channels; None if the noise is white.

    Parameters
    ----------
    covariance : ndarray, shape (C, C)
        Of the noise. Channels without noise are silent, and correlated with none.
    distance : ndarray, shape (C, C)
        Distances of the channels in um.
    """
    deviation = np.sqrt(np.diag(covariance))
    good = np.flatnonzero(deviation > 0)
    if len(good) < 2:
        return None
    size = np.where(deviation > 0, deviation, np.inf)
    correlation = np.where(distance <= REACH_UM, covariance / np.outer(size, size), 0)
    np.fill_diagonal(correlation, 1)
    apart = distance[np.ix_(good, good)] + np.where(np.eye(len(good)) > 0, np.inf, 0)
    of_nearest = correlation[good, good[apart.argmin(axis=1)]]
    return None if np.median(np.abs(of_nearest)) < MIN_CORRELATION else correlation


def whitening_weights(covariance: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return channels (C, K) and weights (C, K) of the sums; None if the noise is white already.

    Parameters
    ----------
    covariance, distance : ndarray
        As for :func:`noise_correlation`; silent channels stay as they are.
    """
    of_all = noise_correlation(covariance, distance)
    if of_all is None:
        return None
    good = np.flatnonzero(np.diag(covariance) > 0)
    apart, correlation = distance[np.ix_(good, good)], of_all[np.ix_(good, good)]
    values, vectors = np.linalg.eigh(correlation)
    whitening = (vectors / np.sqrt(np.maximum(values, 0) + FLOOR)) @ vectors.T
    whitening[apart > REACH_UM] = 0
    variance = np.einsum("ij,jk,ik->i", whitening, correlation, whitening)
    whitening /= np.sqrt(np.maximum(variance, FLOOR))[:, None]
    num_near = min(MOST_NEAR, len(good))
    order = np.argsort(-np.abs(whitening), axis=1, kind="stable")[:, :num_near]
    channels = np.repeat(np.arange(len(covariance))[:, None], num_near, axis=1)
    weights = np.zeros(channels.shape, np.float32)
    weights[:, 0] = 1
    channels[good] = good[order]
    weights[good] = np.take_along_axis(whitening, order, axis=1)
    return channels, weights
