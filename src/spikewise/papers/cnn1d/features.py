"""Features of waveforms that the rivals of the waveform network cluster or classify.

Each is a transformer of scikit-learn: ``fit`` takes waveforms ``(num_spikes, num_samples)``, ``transform``
returns ``(num_spikes, num_features)``. Features of different kinds are scaled to variance 1; principal
components and correlations keep their scale, which is their weight.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler, normalize

from spikewise.core.errors import MissingExtraError

WAVELET = "db2"
"""Short enough for two levels of 12 samples and for four of 64."""
_MOST_LEVELS = 4
"""Most levels of the wavelet packets; chosen by hand."""


class PrincipalComponents(TransformerMixin, BaseEstimator):
    """The first principal components, unscaled; at most as many as there are samples or spikes.

    Parameters
    ----------
    num_features : int
        Number of components.
    seed : int
        Seed of the decomposition, which is random for many spikes.
    """

    def __init__(self, num_features: int, seed: int):
        self.num_features = num_features
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray | None = None) -> Self:
        """Find the components."""
        self.pca_ = PCA(min(self.num_features, *X.shape), random_state=self.seed).fit(X)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Return ``(num_spikes, num_features)`` in the waveforms' unit of amplitude."""
        return self.pca_.transform(X)


def derivative_extrema(waveforms: np.ndarray) -> np.ndarray:
    """Return the extrema of the first and second differences of waveforms.

    Of the four extrema, the method uses three; the paper does not say which. Here they are the largest first
    difference, and the largest and the smallest second difference. The smallest first difference is left out,
    because the second differences also show the fall of a spike after its peak.

    Parameters
    ----------
    waveforms : np.ndarray
        ``(num_spikes, num_samples)``, at least 3 samples.

    Returns
    -------
    np.ndarray
        ``(num_spikes, 3)``, in the waveforms' unit of amplitude.

    References
    ----------
    Paraskevopoulou et al. 2013, J. Neurosci. Methods 215:29.
    """
    first = np.diff(waveforms, axis=1)
    second = np.diff(waveforms, n=2, axis=1)
    return np.column_stack([first.max(axis=1), second.max(axis=1), second.min(axis=1)])


def scaled_derivative_extrema() -> BaseEstimator:
    """Return the transformer of :func:`derivative_extrema`, each scaled to variance 1."""
    return make_pipeline(FunctionTransformer(derivative_extrema), StandardScaler())


class Correlations(TransformerMixin, BaseEstimator):
    """Correlation coefficients of a waveform with reference waveforms.

    The definition in the paper is not public. Here the references are the first principal components of the
    waveforms, each with mean 0 and norm 1, since a correlation depends only on the shape. On real spikes they
    gave the rival better scores than the means of clusters.

    Parameters
    ----------
    num_features : int
        Number of references; at most as many as there are samples or spikes.
    seed : int
        Seed of the decomposition.
    """

    def __init__(self, num_features: int, seed: int):
        self.num_features = num_features
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray | None = None) -> Self:
        """Find the references."""
        components = PrincipalComponents(self.num_features, self.seed).fit(_shapes(X))
        self.references_ = _shapes(components.pca_.components_)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Return ``(num_spikes, num_features)`` coefficients between -1 and 1."""
        return _shapes(X) @ self.references_.T


def _shapes(waveforms: np.ndarray) -> np.ndarray:
    """Return each waveform with mean 0 and norm 1; a constant one becomes 0."""
    return normalize(waveforms - waveforms.mean(axis=1, keepdims=True))


def fused_features(num_features: int, seed: int) -> BaseEstimator:
    """Return the three kinds of features of the other rivals side by side, each scaled to variance 1.

    The fusion in the paper is not public. Of the `num_features`, three are extrema of the differences, three
    correlations, and the rest, at least one, principal components.
    """
    components = PrincipalComponents(max(1, num_features - 6), seed)
    union = make_union(components, FunctionTransformer(derivative_extrema), Correlations(3, seed))
    return make_pipeline(union, StandardScaler())


def wavelet_packets(waveforms: np.ndarray) -> np.ndarray:
    """Return the wavelet packet coefficients of waveforms at the deepest level.

    The wavelet is that of Daubechies with two vanishing moments; the level is 4, or the deepest that the
    samples allow. The signal is continued periodically, so that an even number of samples gives as many
    coefficients, which are a rotation of the waveform.

    Parameters
    ----------
    waveforms : np.ndarray
        ``(num_spikes, num_samples)``.

    Returns
    -------
    np.ndarray
        ``(num_spikes, num_coefficients)``, from low to high frequencies.

    Raises
    ------
    MissingExtraError
        If PyWavelets is not installed.
    """
    try:
        import pywt
    except ImportError as error:
        raise MissingExtraError("PyWavelets", "papers", "the rival WMsorting") from error
    level = max(1, min(_MOST_LEVELS, pywt.dwt_max_level(waveforms.shape[1], WAVELET)))
    packet = pywt.WaveletPacket(waveforms, WAVELET, mode="periodization", maxlevel=level, axis=1)
    return np.hstack([node.data for node in packet.get_level(level, order="freq")])
