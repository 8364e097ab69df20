"""Units of spikes that nobody labelled: clusters of their waveforms, found with no number given.

The idea: noise is coloured, so principal components show where waveforms vary most, which is often noise, and
not where units differ. The covariance of the noise is therefore estimated from pairs of neighbours, which
mostly belong to one unit whatever the units are (Art, Gnanadesikan & Kettenring 1982, Utilitas Math. 21A:75).
Where noise is smooth, waveforms cut on whole samples differ by more than noise: a spike's place between two
samples moves it along its slope, and that counts as noise too. The directions are kept in which all spikes
vary more than this. There:

1. a Gaussian mixture is fitted to the spikes that have others near, its number of components chosen by the
   Bayesian information criterion;
2. components far wider than the others hold overlaps and artefacts, so their spikes get no label;
3. a unit whose spikes are jittered or vary in amplitude is not Gaussian and takes several components: two are
   merged if the density of their spikes, projected on the line that separates them best, has no clear valley;
4. spikes far from the waveform of their unit, and those of units with too few spikes, get no label.

Conventions: waveforms are ``(num_spikes, num_samples)``; points are waveforms in directions in which the
noise has variance 1, those in which units differ first; a label of -1 means "not labelled".
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

_LARGEST_FIT = 5000  # spikes
_FEWEST_SPIKES = 20  # of a unit
_MOST_COMPONENTS = 20  # principal components, before the noise is known
_SEPARATING_VARIANCE = 1.8  # of a direction kept, in variances of the noise
_MOST_DIRECTIONS = 5
_ISOLATED = 2.0  # distance to the nearest spike, in usual ones: beyond it a spike is not fitted
_BACKGROUND_WIDTH = 2.5  # of a component, in widths of the usual one
_VALLEY = 0.6  # density between two components, relative to the lower peak: above it they are one
_OUTLIERS = 1e-4  # of the spikes of a unit, were they Gaussian
_NOISE_ROUNDS = 6
_LEAST_VARIANCE = 1e-3  # of a component, in variances of the noise: spikes may be alike
_JITTER_VARIANCE = 1 / 12  # of the place of a spike between two samples, in samples squared
_NEAREST_PAIRS = 0.8  # fraction of the spikes: overlaps have no near neighbour


@dataclass(frozen=True)
class WaveformClusters:
    """The units that were found.

    Attributes
    ----------
    labels : np.ndarray
        ``(num_spikes,)`` int64: 0 for the unit with the most spikes, and so on; -1: not labelled.
    num_units : int
        Number of units.
    facts : dict of str to int
        How they came about: spikes and mixture components used, spikes left without a label.
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
        Seed of the fit and, for more than 5000 spikes, of the draw of those that are fitted.
    max_units : int
        No more units than that: of more, those with the most spikes.

    Returns
    -------
    WaveformClusters

    Raises
    ------
    WaveformsError
        If the waveforms are not a finite array of at least 20 spikes with two samples each.
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
    """Return the spikes drawn without those far from all others, which are artefacts or overlaps."""
    distances, _ = NearestNeighbors(n_neighbors=1).fit(waveforms[drawn]).kneighbors()
    return drawn[distances[:, 0] <= _ISOLATED * np.median(distances)]


def _noise_units(waveforms: np.ndarray, fitted: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """Return the waveforms as points in noise units, and in how many of their directions units may differ.

    That number is 0 where nothing varies.

    The points have as many dimensions as there are principal components: 20, or fewer if the samples or a
    tenth of the spikes are fewer. Half of these directions, at least, are
    taken to show noise alone.
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
    """Return the covariances of the noise and of all spikes, both without those that have no near neighbour.

    Which spikes are neighbours depends on the noise, so the two are found in turn.
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
    """Return the mixture with the best criterion; the search ends once three in a row are not better."""
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
        if len(criteria) - np.argmin(criteria) > 3:
            break
    return mixtures[int(np.argmin(criteria))]


def _background(mixture: GaussianMixture) -> np.ndarray:
    """Return the components far wider than the usual one: the median, each spike with a vote.

    The width is the geometric mean over the directions, so a unit that is long in one of them is kept.
    """
    num_directions = mixture.means_.shape[1]
    widths = np.linalg.det(mixture.covariances_) ** (0.5 / num_directions)
    order = np.argsort(widths)
    usual = widths[order[np.searchsorted(np.cumsum(mixture.weights_[order]), 0.5)]]
    return np.flatnonzero(widths > _BACKGROUND_WIDTH * usual)


def _merge(points: np.ndarray, components: np.ndarray, num_components: int) -> np.ndarray:
    """Return the group of each component: the two with the least valley are merged until all have one."""
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

    The points are projected on the direction that separates the groups best (Fisher's), and the density is
    that of a kernel as wide as Silverman's rule says for the narrower group. It is 1 where there is no
    valley, and 0 between groups apart.
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
    """Take the label from spikes that are far from the waveform of their unit, in all directions together.

    The squared distances of a unit's spikes are scaled by their median, which outliers do not move, and
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
    """Number the units by their spikes, those with the most first, and drop those with too few."""
    units, counts = np.unique(labels[labels >= 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:max_units]
    kept = units[order][counts[order] >= _FEWEST_SPIKES]
    numbered = np.full(len(labels), -1, dtype=np.int64)
    for number, unit in enumerate(kept):
        numbered[labels == unit] = number
    return numbered
