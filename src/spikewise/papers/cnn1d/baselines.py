"""The rivals of the waveform network in Li et al. 2020, with one interface: fit and predict.

Each rival gets the waveforms of all spikes and the labels of some. Clusterings use only the number of units;
the supervised rivals learn from the labelled spikes, and WMsorting also from the others. The docstrings say
how details are chosen that the papers leave open, in favour of each rival: every clustering starts ten times
and keeps its best objective; parameters are tuned if that is possible without labels, or by cross-validation
on the given labels.

Conventions: waveforms are ``(num_spikes, num_samples)``, labels ``(num_spikes,)`` int64, -1 where unknown.

References
----------
Li, Wang, Zhang, Li 2020, Brain Sci. 10:835, tables 1 to 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import mutual_info_classif
from sklearn.metrics import pairwise_distances_argmin
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from spikewise.core.errors import LabelsError, MissingExtraError, SettingError, WaveformsError
from spikewise.core.seeds import stage_generator, stage_seed
from spikewise.papers.cnn1d.features import (
    Correlations,
    PrincipalComponents,
    fused_features,
    scaled_derivative_extrema,
    wavelet_packets,
)

_STARTS = 10
"""Starts of each clustering; chosen by hand."""
_WMSORTING_LABELS = 180
"""Most labelled spikes of WMsorting (Huang et al. 2019: about 180)."""
_MLP_FRACTION = 0.1
"""Fraction of each cluster, nearest to its centre, on which the MLP is trained, as published."""


class Baseline(ABC):
    """The interface of all rivals.

    Parameters
    ----------
    num_units : int
        Number of units; supervised rivals take it from the labels instead.
    seed : int
        Seed of everything random.

    Attributes
    ----------
    name : str
        Name in the paper.
    is_supervised : bool
        Whether it uses labels. If so it predicts labels; if not, clusters from 0.
    """

    name: str
    is_supervised: ClassVar[bool]

    def __init__(self, num_units: int, seed: int):
        if num_units < 1:
            raise SettingError(f"num_units is {num_units}", "it must be at least 1", "change it")
        self.num_units = num_units
        self.seed = seed

    def fit(self, waveforms: np.ndarray, labels: np.ndarray) -> Self:
        """Fit the rival to all waveforms and the labels of some.

        Parameters
        ----------
        waveforms : np.ndarray
            ``(num_spikes, num_samples)``, at least 3 samples.
        labels : np.ndarray
            ``(num_spikes,)`` int64, -1 if unknown. Clusterings ignore them.

        Raises
        ------
        WaveformsError
            If the waveforms have another shape, are not finite, or are fewer than the units.
        LabelsError
            If there is not one label for each waveform, or a supervised rival gets fewer than two units.
        MissingExtraError
            If the package that the rival needs is not installed.
        """
        waveforms, labels = _checked_waveforms(waveforms), np.asarray(labels)
        if labels.shape != waveforms.shape[:1]:
            raise LabelsError(
                f"there are labels of shape {labels.shape} for {len(waveforms)} waveforms",
                "one label for each waveform",
                "give -1 if the unit is not known",
            )
        num_labelled_units = len(np.unique(labels[labels >= 0]))
        if self.is_supervised and num_labelled_units < 2:
            raise LabelsError(
                f"{self.name} got labels of {num_labelled_units} units",
                "a supervised rival needs labelled spikes of at least two",
                "label more spikes",
            )
        if not self.is_supervised and len(waveforms) < self.num_units:
            raise WaveformsError(
                f"there are {len(waveforms)} waveforms for {self.num_units} units",
                f"{self.name} needs at least as many waveforms as units",
                "give more spikes",
            )
        self._fit(waveforms, labels)
        self._num_samples = waveforms.shape[1]
        return self

    def predict(self, waveforms: np.ndarray) -> np.ndarray:
        """Return the unit, or the cluster, of each waveform: ``(num_spikes,)`` int64.

        Raises
        ------
        WaveformsError
            If the waveforms do not have the shape of those that were fitted, or are not finite.
        """
        waveforms = _checked_waveforms(waveforms)
        if waveforms.shape[1] != self._num_samples:
            raise WaveformsError(
                f"the waveforms have {waveforms.shape[1]} samples",
                f"{self._num_samples}, as those that were fitted",
                "cut them to the same length",
            )
        return self._predict(waveforms).astype(np.int64)

    @abstractmethod
    def _fit(self, waveforms: np.ndarray, labels: np.ndarray) -> None: ...

    @abstractmethod
    def _predict(self, waveforms: np.ndarray) -> np.ndarray: ...


def _checked_waveforms(waveforms: np.ndarray) -> np.ndarray:
    waveforms = np.asarray(waveforms, dtype=np.float64)
    finite = bool(np.isfinite(waveforms).all())
    if waveforms.ndim != 2 or waveforms.shape[0] < 1 or waveforms.shape[1] < 3 or not finite:
        raise WaveformsError(
            f"the waveforms have the shape {waveforms.shape} and are {'finite' if finite else 'not finite'}",
            "(num_spikes, num_samples), at least one spike and 3 samples, all finite",
            "cut the waveforms again",
        )
    return waveforms


class FuzzyCMeans:
    """Fuzzy c-means: each point belongs to every centre to some degree.

    With the usual exponent m = 2, all centres become equal in 10 features. So the exponent is that of
    Schwämmle & Jensen 2010 (Bioinformatics 26:2841), the largest at which random points show no clusters, but
    at most 2; it depends only on the numbers of points and features. The starts are centres of k-means++.

    Parameters
    ----------
    num_clusters : int
        Number of centres.
    seed : int
        Seed of the starts.
    """

    def __init__(self, num_clusters: int, seed: int):
        self.num_clusters = num_clusters
        self.seed = seed

    def fit(self, features: np.ndarray) -> Self:
        """Find the centres of ``(num_spikes, num_features)`` points; the best of ten starts counts."""
        try:
            from skfuzzy.cluster import cmeans
        except ImportError as error:
            raise MissingExtraError("scikit-fuzzy", "papers", "fuzzy c-means") from error
        exponent = fuzzy_exponent(*features.shape)
        results = []
        for start in range(_STARTS):
            seed = stage_seed(self.seed, f"fuzzy c-means start {start}")
            centres, _ = kmeans_plusplus(features, self.num_clusters, random_state=seed)
            memberships = np.eye(self.num_clusters)[pairwise_distances_argmin(features, centres)].T
            results.append(cmeans(features.T, self.num_clusters, exponent, 1e-4, 300, init=memberships))
        self.centres_ = min(results, key=lambda result: result[4][-1])[0]
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the centre to which each point belongs most: the nearest one."""
        return pairwise_distances_argmin(features, self.centres_)


def fuzzy_exponent(num_points: int, num_features: int) -> float:
    """Return the exponent m of fuzzy c-means for these numbers of points and features."""
    slope = -0.0406 * np.log(num_points) - 0.1134
    exponent = 1 + (1418 / num_points + 22.05) / num_features**2
    exponent += (12.33 / num_points + 0.243) * num_features**slope
    return float(min(exponent, 2.0))


class ClusteringBaseline(Baseline):
    """Features, then a clustering: PCA+FCM, FSDE+k-means and CORR+FCM."""

    is_supervised = False

    def __init__(self, num_units: int, seed: int, *, name: str, features: Any, clustering: Any):
        super().__init__(num_units, seed)
        self.name, self.features, self.clustering = name, features, clustering

    def _fit(self, waveforms: np.ndarray, labels: np.ndarray) -> None:
        self.clustering.fit(self.features.fit_transform(waveforms))

    def _predict(self, waveforms: np.ndarray) -> np.ndarray:
        return self.clustering.predict(self.features.transform(waveforms))


class FusionSvm(Baseline):
    """Several kinds of features and a support vector machine.

    The kernel is Gaussian; its width and the penalty are those with the best accuracy in up to five folds of
    the labelled spikes. If a unit has only one label, there are no folds, and fixed values are used.
    """

    name = "Fusion+SVM"
    is_supervised = True

    def __init__(self, num_units: int, seed: int, *, num_features: int):
        super().__init__(num_units, seed)
        self.features = fused_features(num_features, stage_seed(seed, "fused features"))

    def _fit(self, waveforms: np.ndarray, labels: np.ndarray) -> None:
        features = self.features.fit_transform(waveforms)
        labelled = labels >= 0
        self._machine = SVC(C=10.0, gamma=0.03, random_state=stage_seed(self.seed, "support vectors"))
        num_folds = min(5, np.unique(labels[labelled], return_counts=True)[1].min())
        if num_folds >= 2:
            shuffle = stage_seed(self.seed, "support vector folds")
            self._machine = GridSearchCV(
                self._machine,
                {"C": [1.0, 10.0, 100.0], "gamma": [0.01, 0.03, 0.1, 0.3]},
                cv=StratifiedKFold(num_folds, shuffle=True, random_state=shuffle),
            )
        self._machine.fit(features[labelled], labels[labelled])

    def _predict(self, waveforms: np.ndarray) -> np.ndarray:
        return self._machine.predict(self.features.transform(waveforms))


class WmSorting(Baseline):
    """WMsorting: wavelet packet coefficients chosen by mutual information, and a semi-supervised mixture.

    Published are the coefficients, their choice and the about 180 labelled spikes (Huang et al. 2019,
    10.1109/TNB.2019.2909010). Chosen here: of more labelled spikes 180 are drawn, at least one of each unit.
    The mixture has one Gaussian for each labelled unit; it starts at the mean of its labelled spikes with the
    covariance within units, shrunk (Ledoit & Wolf 2004), and is refined on all spikes. Overlaps may move a
    Gaussian away from its unit. If the mixture then separates the labelled spikes less well than a linear
    discriminant that was fitted to them, the discriminant is used.
    """

    name = "WMsorting"
    is_supervised = True

    def __init__(self, num_units: int, seed: int, *, num_features: int):
        super().__init__(num_units, seed)
        self.num_features = num_features

    def _fit(self, waveforms: np.ndarray, labels: np.ndarray) -> None:
        labelled = _draw_labelled(labels, _WMSORTING_LABELS, stage_generator(self.seed, "WMsorting labels"))
        coefficients = wavelet_packets(waveforms)
        information = self._information(coefficients[labelled], labels[labelled])
        self._chosen = np.argsort(-information, kind="stable")[: self.num_features]
        features = coefficients[:, self._chosen]
        self._scale = features.std() or 1.0
        self._fit_mixture(features / self._scale, labels, labelled)

    def _information(self, coefficients: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the mutual information of coefficients and units; the variance if units have one label."""
        counts = np.unique(labels, return_counts=True)[1]
        if np.sum(counts >= 2) < 2:
            return coefficients.var(axis=0)
        neighbours = int(min(3, len(labels) - 1))
        seed = stage_seed(self.seed, "mutual information")
        return mutual_info_classif(coefficients, labels, n_neighbors=neighbours, random_state=seed)

    def _fit_mixture(self, features: np.ndarray, labels: np.ndarray, labelled: np.ndarray) -> None:
        self._units, members = np.unique(labels[labelled], return_inverse=True)
        known = features[labelled]
        means = np.stack([known[members == unit].mean(axis=0) for unit in range(len(self._units))])
        residuals = known - means[members]
        covariance = ledoit_wolf(residuals, assume_centered=True)[0] + 1e-4 * np.eye(len(residuals.T))
        mixture = GaussianMixture(
            len(self._units),
            weights_init=np.bincount(members) / len(members),
            means_init=means,
            precisions_init=np.tile(np.linalg.inv(covariance), (len(self._units), 1, 1)),
            reg_covar=1e-4,
            max_iter=300,
            random_state=stage_seed(self.seed, "WMsorting mixture"),
        ).fit(features)
        self._model = mixture
        if len(known) > len(self._units):
            start = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(known, members)
            if start.score(known, members) > np.mean(mixture.predict(known) == members):
                self._model = start

    def _predict(self, waveforms: np.ndarray) -> np.ndarray:
        features = wavelet_packets(waveforms)[:, self._chosen] / self._scale
        return self._units[self._model.predict(features)]


def _draw_labelled(labels: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """Return the indices of at most `most` labelled spikes, at least one of each unit."""
    shuffled = generator.permutation(np.flatnonzero(labels >= 0))
    first_of_units = np.unique(labels[shuffled], return_index=True)[1]
    order = np.concatenate([first_of_units, np.setdiff1d(np.arange(len(shuffled)), first_of_units)])
    return shuffled[order[: max(most, len(first_of_units))]]


class Mlp(Baseline):
    """A multilayer perceptron trained on pseudo-labels from k-means.

    Published are k-means on principal components, and training on the tenth of each cluster that is nearest
    to its centre. Chosen here: 10 components, one hidden layer of 100 units, one scale for all waveforms.
    """

    name = "MLP"
    is_supervised = False

    def _fit(self, waveforms: np.ndarray, labels: np.ndarray) -> None:
        components = PrincipalComponents(10, stage_seed(self.seed, "MLP components"))
        features = components.fit_transform(waveforms)
        k_means = KMeans(self.num_units, n_init=_STARTS, random_state=stage_seed(self.seed, "MLP k-means"))
        clusters = k_means.fit_predict(features)
        distances = np.linalg.norm(features - k_means.cluster_centers_[clusters], axis=1)
        nearest = [
            members[np.argsort(distances[members])[: int(np.ceil(_MLP_FRACTION * len(members)))]]
            for members in (np.flatnonzero(clusters == unit) for unit in range(self.num_units))
        ]
        learnt = np.concatenate(nearest)
        self._mean, self._scale = waveforms.mean(axis=0), waveforms.std() or 1.0
        self._network = MLPClassifier((100,), max_iter=500, random_state=stage_seed(self.seed, "MLP"))
        self._network.fit((waveforms[learnt] - self._mean) / self._scale, clusters[learnt])

    def _predict(self, waveforms: np.ndarray) -> np.ndarray:
        return self._network.predict((waveforms - self._mean) / self._scale)


def _pca_fcm(num_units: int, seed: int, *, num_features: int) -> Baseline:
    features = PrincipalComponents(num_features, stage_seed(seed, "principal components"))
    fuzzy = FuzzyCMeans(num_units, seed)
    return ClusteringBaseline(num_units, seed, name="PCA+FCM", features=features, clustering=fuzzy)


def _corr_fcm(num_units: int, seed: int, *, num_features: int) -> Baseline:
    features = Correlations(num_features, stage_seed(seed, "correlations"))
    fuzzy = FuzzyCMeans(num_units, seed)
    return ClusteringBaseline(num_units, seed, name="CORR+FCM", features=features, clustering=fuzzy)


def _fsde_k_means(num_units: int, seed: int) -> Baseline:
    features = scaled_derivative_extrema()
    k_means = KMeans(max(1, num_units), n_init=_STARTS, random_state=stage_seed(seed, "k-means"))
    return ClusteringBaseline(num_units, seed, name="FSDE+k-means", features=features, clustering=k_means)


BASELINES: dict[str, Callable[[int, int], Baseline]] = {
    "pca_fcm_f3": partial(_pca_fcm, num_features=3),
    "pca_fcm_f10": partial(_pca_fcm, num_features=10),
    "fsde_kmeans_f3": _fsde_k_means,
    "corr_fcm_f3": partial(_corr_fcm, num_features=3),
    "corr_fcm_f10": partial(_corr_fcm, num_features=10),
    "fusion_svm_f10": partial(FusionSvm, num_features=10),
    "wmsorting_f3": partial(WmSorting, num_features=3),
    "wmsorting_f10": partial(WmSorting, num_features=10),
    "mlp": Mlp,
}
"""The rivals, by their columns in the tables of the paper; built from the number of units and a seed."""
