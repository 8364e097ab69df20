"""Units of spikes without labels: clusters of their waveforms, whose number is found from the data.

Noise is coloured, so principal components show where waveforms vary most, which is often noise, and not where
units differ. The covariance of the noise is therefore estimated from pairs of nearest neighbours, which
mostly belong to one unit (Art, Gnanadesikan & Kettenring 1982, Utilitas Math. 21A:75). If the noise is
smooth, waveforms cut on whole samples differ by more than noise: a spike begins between two samples, which
shifts its waveform along its slope. This jitter is added to the noise. The directions in which the spikes
vary clearly more than this noise are kept. In these directions:

1. A Gaussian mixture is fitted to the spikes, without isolated ones. The Bayesian information criterion
chooses
   its number of components.
2. Components far wider than the others hold overlaps and artefacts; their spikes get no label.
3. A unit whose spikes are jittered or vary in amplitude is not Gaussian and takes several components. Two
   components are merged if the density of their spikes, projected on the line that separates them best, has
   no clear valley.
4. Spikes far from the waveform of their unit, and spikes of units with too few spikes, get no label.

Conventions: waveforms are ``(num_spikes, num_samples)``; points are waveforms in directions in which the
noise has variance 1, sorted by how much the units differ in them; a label of -1 means "not labelled".
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.stats import chi2, gaussian_kde
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from spikewise.core.errors import SettingError, WaveformsError
from spikewise.core.seeds import stage_generator, stage_seed

# All chosen by hand, unless a source stands beside them.
_LARGEST_FIT = 5000
"""Most spikes that are fitted; of more, so many are drawn."""
_FEWEST_SPIKES = 20
"""Fewest spikes of a unit, and fewest spikes to cluster."""
_MOST_COMPONENTS = 20
"""Most principal components that are kept before the noise is estimated."""
_SEPARATING_VARIANCE = 1.8
"""A direction is kept if the spikes vary in it by more than this, relative to the noise."""
_MOST_DIRECTIONS = 5
"""Most directions that are kept."""
_ISOLATED = 2.0
"""A spike farther from its nearest neighbour than this many median distances is not fitted."""
_BACKGROUND_WIDTH = 2.5
"""A component wider than this many typical widths holds overlaps and artefacts."""
_VALLEY = 0.6
"""Two components are merged if the lowest density between them exceeds this part of the lower peak."""
_OUTLIERS = 1e-4
"""Fraction of the spikes of a Gaussian unit that would be called outliers."""
_NOISE_ROUNDS = 6
"""Rounds in which neighbours and noise are found in turn."""
_LEAST_VARIANCE = 1e-3
"""Added to variances, in units of the noise, because spikes may be identical."""
_JITTER_VARIANCE = 1 / 12
"""Variance of the position of a spike between two samples: that of a uniform distribution."""
_NEAREST_PAIRS = 0.8
"""Fraction of the spikes, those with the nearest neighbours, that show the noise; overlaps have none near."""
_PATIENCE = 3
"""The search for the number of components ends after this many fits in a row that are not better."""


@dataclass(frozen=True)
class WaveformClusters:
    """The clusters that were found.

    Attributes
    ----------
    labels : np.ndarray
        ``(num_spikes,)`` int64: 0 for the unit with the most spikes, and so on; -1: not labelled.
    num_units : int
        Number of units.
    facts : dict of str to int
        Numbers of spikes, of fitted spikes, of directions, of components, of units, of spikes without a
        label.
    """

    labels: np.ndarray
    num_units: int
    facts: dict[str, int]


def cluster_waveforms(waveforms: np.ndarray, seed: int, max_units: int = 10) -> WaveformClusters:
    """Find the units of waveforms without labels.

    Parameters
    ----------
    waveforms : np.ndarray
        ``(num_spikes, num_samples)``, aligned, in any unit of amplitude.
    seed : int
        Seed of the fit and, with more than 5000 spikes, of the draw of those that are fitted.
    max_units : int
        Largest number of units; those with the most spikes are kept.

    Returns
    -------
    WaveformClusters

    Raises
    ------
    WaveformsError
        If the waveforms are not a finite array of at least 20 spikes with at least two samples.
    SettingError
        If `max_units` is below 1.
    """
    waveforms = _checked(waveforms, max_units)
    fitted = _near_others(waveforms, _draw(len(waveforms), seed))
    points, num_directions = _noise_units(waveforms, fitted, seed)
    num_components = 1
    labels = np.zeros(len(waveforms), dtype=np.int64)
    if num_directions > 0:
        separating = points[:, :num_directions]
        mixture = _fit_mixture(separating[fitted], seed, 2 * max_units)
        num_components = mixture.n_components
        components = mixture.predict(separating)
        components[np.isin(components, _background(mixture))] = -1
        groups = _merge(separating[fitted], components[fitted], num_components)
        labels = _without_outliers(points, np.append(groups, -1)[components])
        labels = _largest_first(labels, max_units)
    num_units = int(labels.max()) + 1
    facts = {
        "num_spikes": len(waveforms),
        "num_fitted": len(fitted),
        "num_directions": num_directions,
        "num_components": num_components,
        "num_units": num_units,
        "num_unlabelled": int(np.sum(labels < 0)),
    }
    return WaveformClusters(labels, num_units, facts)


def _checked(waveforms: np.ndarray, max_units: int) -> np.ndarray:
    waveforms = np.asarray(waveforms, dtype=np.float64)
    if waveforms.ndim != 2 or waveforms.shape[0] < _FEWEST_SPIKES or waveforms.shape[1] < 2:
        raise WaveformsError(
            f"the waveforms to cluster have the shape {waveforms.shape}",
            f"(num_spikes, num_samples), with at least {_FEWEST_SPIKES} spikes and 2 samples",
            "give more spikes, or labels",
        )
    if not np.isfinite(waveforms).all():
        raise WaveformsError(
            f"{np.sum(~np.isfinite(waveforms).all(axis=1))} waveforms hold values that are not finite",
            "finite numbers",
            "leave these spikes out",
        )
    if max_units < 1:
        raise SettingError(f"max_units is {max_units}", "it must be at least 1", "change it")
    return waveforms


def _draw(num_spikes: int, seed: int) -> np.ndarray:
    """Return the indices of the spikes that are fitted."""
    if num_spikes <= _LARGEST_FIT:
        return np.arange(num_spikes)
    drawn = stage_generator(seed, "cluster draw").choice(num_spikes, _LARGEST_FIT, replace=False)
    return np.sort(drawn)


def _near_others(waveforms: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the drawn spikes without isolated ones, which are artefacts or overlaps."""
    distances, _ = NearestNeighbors(n_neighbors=1).fit(waveforms[drawn]).kneighbors()
    return drawn[distances[:, 0] <= _ISOLATED * np.median(distances)]


def _noise_units(waveforms: np.ndarray, fitted: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """Return the waveforms as points in noise units, and the number of directions in which units may differ.

    That number is 0 if nothing varies. The points have as many dimensions as there are principal components:
    20, or fewer if the samples or a tenth of the spikes are fewer. The variance of the noise is the median
    variance of the directions, so at least half of them are assumed to show only noise.
    """
    if not waveforms[fitted].var(axis=0).sum() > np.finfo(np.float32).eps * np.square(waveforms).mean():
        return waveforms, 0
    num_components = min(_MOST_COMPONENTS, waveforms.shape[1], max(2, len(fitted) // 10))
    pca = PCA(num_components, random_state=stage_seed(seed, "cluster components")).fit(waveforms[fitted])
    pca_scores = pca.transform(waveforms)
    noise, total = _noise_covariance(pca_scores[fitted])
    slopes = np.gradient(waveforms[fitted], axis=1) @ pca.components_.T
    noise += _JITTER_VARIANCE * slopes.T @ slopes / len(slopes)
    variances, directions = (np.flip(part, -1) for part in eigh(total, noise))
    noise_variance = np.median(variances)
    points = pca_scores @ directions / np.sqrt(noise_variance)
    separating = np.sum(variances > _SEPARATING_VARIANCE * noise_variance)
    num_directions = np.clip(separating, 2, _MOST_DIRECTIONS)
    return points, int(num_directions)


def _noise_covariance(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariances of the noise and of the spikes, both without spikes that have no near neighbour.

    Which spikes are neighbours depends on the noise, so both are estimated in turn.
    """
    ridge = 1e-9 * np.trace(np.cov(points.T)) * np.eye(points.shape[1])
    noise = np.cov(points.T) + ridge
    for _ in range(_NOISE_ROUNDS):
        whitened = points @ np.linalg.cholesky(np.linalg.inv(noise))
        distances, neighbours = NearestNeighbors(n_neighbors=1).fit(whitened).kneighbors()
        near = distances[:, 0] <= np.quantile(distances, _NEAREST_PAIRS)
        differences = points[near] - points[neighbours[near, 0]]
        noise = differences.T @ differences / (2 * len(differences)) + ridge
    return noise, np.cov(points[near].T) + ridge


def _fit_mixture(points: np.ndarray, seed: int, most: int) -> GaussianMixture:
    """Return the mixture with the best criterion; stop after three fits in a row that are not better."""
    mixtures: list[GaussianMixture] = []
    criteria: list[float] = []
    for num_components in range(1, max(1, min(most, len(points) // _FEWEST_SPIKES)) + 1):
        mixture = GaussianMixture(
            num_components,
            n_init=3,
            reg_covar=_LEAST_VARIANCE,
            max_iter=300,
            random_state=stage_seed(seed, f"cluster mixture {num_components}"),
        ).fit(points)
        mixtures.append(mixture)
        criteria.append(mixture.bic(points))
        if len(criteria) - np.argmin(criteria) > _PATIENCE:
            break
    return mixtures[int(np.argmin(criteria))]


def _background(mixture: GaussianMixture) -> np.ndarray:
    """Return the components far wider than the typical one, which is the median over the spikes.

    The width is the geometric mean over the directions, so a unit that is long in one of them is kept.
    """
    num_directions = mixture.means_.shape[1]
    widths = np.linalg.det(mixture.covariances_) ** (0.5 / num_directions)
    order = np.argsort(widths)
    typical = widths[order[np.searchsorted(np.cumsum(mixture.weights_[order]), 0.5)]]
    return np.flatnonzero(widths > _BACKGROUND_WIDTH * typical)


def _merge(points: np.ndarray, components: np.ndarray, num_components: int) -> np.ndarray:
    """Return the group of each component; merge the pair with the shallowest valley until none is shallow."""
    groups = np.arange(num_components)
    valleys: dict[tuple[int, int], float] = {}
    while True:
        labels = np.append(groups, -1)[components]
        present = np.unique(labels[labels >= 0])
        for first, second in itertools.combinations(present, 2):
            if (first, second) not in valleys:
                valleys[first, second] = _valley(points[labels == first], points[labels == second])
        if not valleys or max(valleys.values()) < _VALLEY:
            return groups
        first, second = max(valleys, key=valleys.__getitem__)
        groups[groups == second] = first
        valleys = {pair: depth for pair, depth in valleys.items() if not {first, second} & set(pair)}


def _valley(first: np.ndarray, second: np.ndarray) -> float:
    """Return the lowest density between two groups of points, relative to the lower of their two peaks.

    The points are projected on the direction that separates the groups best (Fisher's discriminant). The
    density is a kernel estimate whose bandwidth follows Silverman's rule for the narrower group. The result
    is 1 if there is no valley, and 0 between groups that are far apart.
    """
    if min(len(first), len(second)) <= first.shape[1]:
        return 0.0
    within = np.cov(first.T) + np.cov(second.T) + _LEAST_VARIANCE * np.eye(first.shape[1])
    direction = np.linalg.solve(within, second.mean(axis=0) - first.mean(axis=0))
    scores = [first @ direction, second @ direction]
    ends = [np.median(part) for part in scores]
    bandwidth = min(part.std(ddof=1) * (0.75 * len(part)) ** -0.2 for part in scores)
    together = np.concatenate(scores)
    width = together.std(ddof=1)
    density = gaussian_kde(together, bw_method=max(bandwidth / width, 1e-3))
    values = density(np.linspace(ends[0], ends[1], 60))
    lowest = int(np.argmin(values))
    return float(values[lowest] / min(values[: lowest + 1].max(), values[lowest:].max()))


def _without_outliers(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Remove the label of spikes that are far from the waveform of their unit, over all directions.

    The squared distances of a unit's spikes are divided by their median, which outliers hardly change, and
    compared with those of Gaussian noise.
    """
    labels = labels.copy()
    num_directions = points.shape[1]
    limit = chi2.isf(_OUTLIERS, num_directions) / chi2.median(num_directions)
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        distances = np.square(points[members] - np.median(points[members], axis=0)).sum(axis=1)
        labels[members[distances > limit * max(np.median(distances), _LEAST_VARIANCE)]] = -1
    return labels


def _largest_first(labels: np.ndarray, max_units: int) -> np.ndarray:
    """Number the units by their spike counts, largest first, and drop those with too few spikes."""
    units, counts = np.unique(labels[labels >= 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:max_units]
    kept = units[order][counts[order] >= _FEWEST_SPIKES]
    numbered = np.full(len(labels), -1, dtype=np.int64)
    for number, unit in enumerate(kept):
        numbered[labels == unit] = number
    return numbered
