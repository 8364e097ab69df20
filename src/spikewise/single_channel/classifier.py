"""A trained classifier of single-channel waveforms, and the file that keeps it.

For each waveform the classifier returns the unit of the spike that the waveform is aligned to, with a
calibrated probability. If it was trained with overlaps, it also returns a second unit that fired within the
same waveform. :mod:`spikewise.single_channel.classifier_training` trains it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from spikewise.core.config import given
from spikewise.core.errors import SettingError, WaveformsError
from spikewise.core.untrusted import parsing
from spikewise.models.tensor_file import damaged, fill, read_tensors, write_tensors
from spikewise.single_channel.config import WaveformTrainingConfig
from spikewise.single_channel.network import MIN_SAMPLES, SingleWaveform, WaveformNetwork

FORMAT_VERSION = 1
UNSORTED = -1
"""The label of a waveform that is given to no unit."""
_BATCH = 64
"""Waveforms in a block: small enough that the values between two layers stay in the processor's cache."""
_SECOND_UNIT_PROBABILITY = 0.5
"""A second unit is named if it is more probable than this; chosen by hand."""
_REMOVED_SETTINGS = ("label_smoothing",)
"""Training settings that older files hold and that no longer exist; they do not change a trained network."""


@dataclass(frozen=True)
class Classification:
    """The units that a classifier gives to waveforms, in the order of the waveforms.

    Attributes
    ----------
    unit_ids : tuple
        Ids of the units that the indices refer to.
    unit_index : ndarray
        (num_spikes,) index of the unit, -1 for an unsorted waveform.
    probability : ndarray
        (num_spikes,) probability of that unit; of the most probable unit for an unsorted waveform.
    second_index : ndarray
        (num_spikes,) index of a second unit in the waveform, -1 if there is none.
    """

    unit_ids: tuple[int | str, ...]
    unit_index: np.ndarray
    probability: np.ndarray
    second_index: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Unit id of each waveform, (num_spikes,); ``UNSORTED`` (-1) for an unsorted waveform."""
        return self._ids(self.unit_index)

    @property
    def second_labels(self) -> np.ndarray:
        """Id of the second unit of each waveform, (num_spikes,); -1 if there is none."""
        return self._ids(self.second_index)

    def _ids(self, index: np.ndarray) -> np.ndarray:
        return np.array([*self.unit_ids, UNSORTED])[index]  # index -1 is the last entry


@dataclass(frozen=True)
class WaveformClassifier:
    """A trained classifier.

    Attributes
    ----------
    network : WaveformNetwork
        In evaluation mode.
    unit_ids : tuple of int or str
        Unit ids in the order of the network's outputs. If the network was also trained on background, it has
        one more output, the last.
    scale : float
        Waveforms are divided by it before they enter the network.
    temperature : float
        Logits are divided by it, which calibrates the probabilities.
    sampling_frequency : float or None
        Sampling frequency of the training waveforms in Hz, if known.
    config : WaveformTrainingConfig
        Resolved training settings.
    facts : dict
        How the classifier was trained; JSON types only.
    """

    network: WaveformNetwork
    unit_ids: tuple[int | str, ...]
    scale: float
    temperature: float
    sampling_frequency: float | None
    config: WaveformTrainingConfig
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Length of the waveforms in samples."""
        return self.network.num_samples

    @cached_property
    def _single(self) -> SingleWaveform:
        return SingleWaveform(self.network)

    def probabilities(self, waveforms: np.ndarray, one_by_one: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of each unit for each waveform.

        Parameters
        ----------
        waveforms : ndarray
            (num_spikes, num_samples)
        one_by_one : bool
            Whether the network computes each waveform alone, as a stream does: the last bits of the numbers
            depend on how many waveforms it computes together.

        Returns
        -------
        own : ndarray
            (num_spikes, num_outputs) probability that the spike belongs to the unit; rows sum to 1.
        present : ndarray
            (num_spikes, num_outputs) probability that the unit fired within the waveform; equal to `own` if
            the classifier was trained without overlaps.

        Raises
        ------
        WaveformsError
            If the waveforms have another length than those it learnt from, or are not finite.
        """
        waveforms = check_waveforms(waveforms)
        if waveforms.shape[1] != self.num_samples:
            raise WaveformsError(
                f"the waveforms have {waveforms.shape[1]} samples",
                f"the model was trained on waveforms of {self.num_samples}",
                "cut them to the same length, or train a model on waveforms of this length",
            )
        if not len(waveforms):
            return (np.zeros((0, self.network.num_units), np.float32),) * 2
        scaled = waveforms / np.float32(self.scale)
        if one_by_one:
            logits = np.array([self._single.logits(one) for one in scaled])
        else:
            logits = compute_logits(self.network, scaled).numpy()
        own = _softmax(logits[:, 0] / np.float32(self.temperature))
        present = _sigmoid(logits[:, 1]) if self.network.num_heads == 2 else own
        return own, present

    def classify(
        self, waveforms: np.ndarray, min_probability: float = 0.0, one_by_one: bool = False
    ) -> Classification:
        """Give each waveform to a unit.

        Parameters
        ----------
        waveforms : ndarray
            (num_spikes, num_samples)
        min_probability : float
            Leave a waveform unsorted if its most probable unit is less probable than this.
        one_by_one : bool
            See :meth:`probabilities`.

        Returns
        -------
        Classification

        Raises
        ------
        WaveformsError
            If the waveforms have another length than those it learnt from, or are not finite.
        """
        own, present = self.probabilities(waveforms, one_by_one)
        num_units, rows = len(self.unit_ids), np.arange(len(own))
        best = own.argmax(axis=1) if len(own) else np.zeros(0, np.int64)
        probability = own[rows, best]
        unit_index = np.where((best < num_units) & (probability >= min_probability), best, -1)
        second_index = np.full(len(own), -1)
        if self.network.num_heads == 2 and len(own):
            others = present[:, :num_units].copy()
            others[rows[best < num_units], best[best < num_units]] = 0
            second = others.argmax(axis=1)
            second_index = np.where(
                (others[rows, second] > _SECOND_UNIT_PROBABILITY) & (unit_index >= 0), second, -1
            )
        return Classification(self.unit_ids, unit_index, probability, second_index)

    def hash(self) -> str:
        """Return the SHA-256 of weights and settings, without the facts."""
        description = {**_describe(self), "facts": {}, "spikewise_version": ""}
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()


def check_waveforms(waveforms: np.ndarray) -> np.ndarray:
    """Return the waveforms as float32 (num_spikes, num_samples), or raise :class:`WaveformsError`."""
    waveforms = np.asarray(waveforms)
    if waveforms.ndim != 2 or waveforms.dtype.kind not in "iuf" or waveforms.shape[1] < MIN_SAMPLES:
        raise WaveformsError(
            f"the waveforms have the shape {waveforms.shape} and the type {waveforms.dtype}",
            f"numbers of the shape (num_spikes, num_samples), with {MIN_SAMPLES} samples or more",
            "give one row for each spike",
        )
    bad = ~np.isfinite(waveforms).all(axis=1)
    if bad.any():
        raise WaveformsError(
            f"{int(bad.sum())} of {len(waveforms)} waveforms hold NaN or infinite samples, "
            f"the first of them number {int(np.flatnonzero(bad)[0])}",
            "finite numbers",
            "leave out these spikes",
        )
    return waveforms.astype(np.float32)


def save_classifier(classifier: WaveformClassifier, path: Path | str) -> None:
    """Write a classifier to one file, whole or not at all.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in classifier.network.state_dict().items()}
    write_tensors(path, tensors, _describe(classifier))


def load_classifier(path: Path | str) -> WaveformClassifier:
    """Read a classifier that :func:`save_classifier` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, not a waveform classifier of Spikewise, or of a later version.
    """
    description, tensors = read_tensors(path, "waveforms", FORMAT_VERSION)
    with parsing(lambda reason: damaged(path, reason)):
        try:
            return _rebuild(description, tensors)
        except SettingError as error:
            raise damaged(path, str(error)) from error


def make_network(config: WaveformTrainingConfig, num_samples: int, num_outputs: int) -> WaveformNetwork:
    """Return an untrained network; PyTorch's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):  # training draws the weights again, or they are loaded
        return WaveformNetwork(
            num_samples,
            num_outputs,
            config.features or (),
            config.hidden or (1, 1),
            given(config.dropout),
            num_heads=2 if config.overlaps else 1,
        )


@torch.inference_mode()
def compute_logits(network: WaveformNetwork, waveforms: np.ndarray) -> Tensor:
    """Return the logits (num_spikes, num_heads, num_outputs) of scaled waveforms, computed on one thread."""
    folded = network.folded()
    with threadpool_limits(1):
        return torch.cat([folded(block) for block in torch.from_numpy(waveforms).split(_BATCH)])


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of each row; for one row NumPy takes a fraction of the time of PyTorch."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)); exp of the absolute value never overflows."""
    power = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, power) / (1 + power)


def _describe(classifier: WaveformClassifier) -> dict[str, Any]:
    from spikewise.core.version import __version__

    return {
        "kind": "waveforms",
        "format_version": FORMAT_VERSION,
        "spikewise_version": __version__,
        "num_samples": classifier.num_samples,
        "num_outputs": classifier.network.num_units,
        "unit_ids": list(classifier.unit_ids),
        "has_background": classifier.network.num_units > len(classifier.unit_ids),
        "scale": classifier.scale,
        "temperature": classifier.temperature,
        "sampling_frequency": classifier.sampling_frequency,
        "config": classifier.config.to_dict(),
        "facts": classifier.facts,
    }


def _rebuild(description: dict[str, Any], tensors: dict[str, Tensor]) -> WaveformClassifier:
    """Build the classifier that the header describes; raise if header and weights do not match."""
    settings = {name: v for name, v in description["config"].items() if name not in _REMOVED_SETTINGS}
    config = WaveformTrainingConfig.from_dict(settings)
    unit_ids = tuple(description["unit_ids"])
    num_samples, num_outputs = int(description["num_samples"]), int(description["num_outputs"])
    outputs = tensors["classifier.6.bias"].shape[0] // (2 if config.overlaps else 1)
    if tensors["front"].shape != (num_samples, num_samples) or outputs != num_outputs:
        raise ValueError("its header and its weights disagree about samples or units")
    if not isinstance(description["unit_ids"], list) or not all(
        isinstance(unit_id, int | str) for unit_id in unit_ids
    ):
        raise ValueError("its unit ids are not a list of whole numbers or texts")
    if len(unit_ids) + bool(description["has_background"]) != num_outputs:
        raise ValueError("its header and its weights disagree about units")
    scale, temperature = float(description["scale"]), float(description["temperature"])
    if not (scale > 0 and temperature > 0):
        raise ValueError("its scale or temperature is not above zero")
    network = fill(partial(make_network, config, num_samples, num_outputs), tensors)
    rate = description["sampling_frequency"]
    return WaveformClassifier(
        network.eval(),
        unit_ids,
        scale,
        temperature,
        None if rate is None else float(rate),
        config,
        dict(description["facts"]),
    )
