"""A trained classifier of single-channel waveforms: learnt from labelled spikes, kept in one file.

What it answers for each waveform: the unit of the spike that the waveform is aligned to, with a calibrated
probability, and, where it was trained with overlaps, a second unit that fired within the same waveform.

Probabilities are calibrated by temperature scaling (Guo et al. 2017, arXiv 1706.04599): a first network
learns without the last labels of each unit, which then set the temperature; the final one learns from all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

from spikewise.core.config import given
from spikewise.core.errors import LabelsError, SettingError, WaveformsError
from spikewise.core.progress import ProgressCallback, silent
from spikewise.core.untrusted import parsing
from spikewise.learning.examples.training_set import Batch
from spikewise.learning.training_loop import TrainingHistory, train_network
from spikewise.models.tensor_file import damaged, fill, read_tensors, write_tensors
from spikewise.single_channel.config import WaveformTrainingConfig
from spikewise.single_channel.network import MIN_SAMPLES, WaveformNetwork
from spikewise.single_channel.training_windows import WaveformWindows, fit_spike_model

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
UNSORTED = -1
"""The label of a waveform that is left to no unit."""
_BATCH = 64
"""Waveforms in a block: so few that what a layer passes to the next stays in the processor's cache."""
_MIN_LABELS = 2
_MIN_CALIBRATION = 10


@dataclass(frozen=True)
class Classification:
    """What a classifier says of waveforms, in their order.

    Attributes
    ----------
    unit_ids : tuple
        Ids that the indices point to.
    unit_index : ndarray
        (num_spikes,) index of the unit, -1 where it is left unsorted.
    probability : ndarray
        (num_spikes,) of that unit, or of the likeliest where it is left unsorted.
    second_index : ndarray
        (num_spikes,) index of a second unit in the waveform, -1 where there is none.
    """

    unit_ids: tuple[int | str, ...]
    unit_index: np.ndarray
    probability: np.ndarray
    second_index: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Unit id of each waveform, (num_spikes,); ``UNSORTED`` (-1) where it is left to none."""
        return self._ids(self.unit_index)

    @property
    def second_labels(self) -> np.ndarray:
        """Id of the second unit of each waveform, (num_spikes,); -1 where there is none."""
        return self._ids(self.second_index)

    def _ids(self, index: np.ndarray) -> np.ndarray:
        # index -1 is the last entry
        return np.array([*self.unit_ids, UNSORTED])[index]


@dataclass(frozen=True)
class WaveformClassifier:
    """A trained classifier.

    Attributes
    ----------
    network : WaveformNetwork
        In evaluation mode.
    unit_ids : tuple of int or str
        Ids of the labels, in the order of the network's outputs; where it learnt what is no unit, the network
        has one output more.
    scale : float
        Waveforms are divided by it.
    temperature : float
        Logits are divided by it.
    sampling_frequency : float or None
        Of the waveforms it learnt from, in Hz, where that is known.
    config : WaveformTrainingConfig
        Resolved.
    facts : dict
        How it was made; JSON types only.
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
        """Length of the waveforms that it takes."""
        return self.network.num_samples

    def probabilities(self, waveforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how likely each unit is.

        Parameters
        ----------
        waveforms : ndarray
            (num_spikes, num_samples)

        Returns
        -------
        own : ndarray
            (num_spikes, num_outputs) probability of being the spike's unit; rows sum to 1.
        present : ndarray
            (num_spikes, num_outputs) probability of having fired within the waveform; the same as `own` where
            it was not trained with overlaps.

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
                "cut them alike, or train a model on waveforms of this length",
            )
        if not len(waveforms):
            return (np.zeros((0, self.network.num_units), np.float32),) * 2
        logits = _answer(self.network, waveforms / np.float32(self.scale))
        own = torch.softmax(logits[:, 0] / self.temperature, dim=1)
        present = torch.sigmoid(logits[:, 1]) if self.network.num_answers == 2 else own
        return own.numpy(), present.numpy()

    def classify(self, waveforms: np.ndarray, min_probability: float = 0.0) -> Classification:
        """Give each waveform to a unit.

        Parameters
        ----------
        waveforms : ndarray
            (num_spikes, num_samples)
        min_probability : float
            A waveform whose likeliest unit is less probable is left unsorted.

        Returns
        -------
        Classification

        Raises
        ------
        WaveformsError
            If the waveforms have another length than those it learnt from, or are not finite.
        """
        own, present = self.probabilities(waveforms)
        num_units, rows = len(self.unit_ids), np.arange(len(own))
        best = own.argmax(axis=1) if len(own) else np.zeros(0, np.int64)
        probability = own[rows, best]
        unit_index = np.where((best < num_units) & (probability >= min_probability), best, -1)
        second_index = np.full(len(own), -1)
        if self.network.num_answers == 2 and len(own):
            others = present[:, :num_units].copy()
            others[rows[best < num_units], best[best < num_units]] = 0
            second = others.argmax(axis=1)
            second_index = np.where((others[rows, second] > 0.5) & (unit_index >= 0), second, -1)
        return Classification(self.unit_ids, unit_index, probability, second_index)

    def hash(self) -> str:
        """Return the SHA-256 of weights and settings; facts do not count."""
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
            "leave those spikes out",
        )
    return waveforms.astype(np.float32)


def train_classifier(
    waveforms: np.ndarray,
    labels: np.ndarray,
    config: WaveformTrainingConfig | None = None,
    *,
    sampling_frequency: float | None = None,
    background: np.ndarray | None = None,
    progress: ProgressCallback = silent,
) -> WaveformClassifier:
    """Learn the units of labelled waveforms.

    Parameters
    ----------
    waveforms : ndarray
        (num_spikes, num_samples), in order of time.
    labels : ndarray
        (num_spikes,) unit id of each, whole numbers or text.
    config : WaveformTrainingConfig, optional
    sampling_frequency : float, optional
        Of the waveforms, in Hz; kept with the model.
    background : ndarray, optional
        (num_events, num_samples) waveforms of events that are no unit's spikes; what looks like them is left
        unsorted.
    progress : callable
        Told how far it is.

    Returns
    -------
    WaveformClassifier

    Raises
    ------
    WaveformsError, LabelsError
        If waveforms or labels cannot be used.
    """
    waveforms = check_waveforms(waveforms)
    unit_ids, unit_index = _check_labels(np.asarray(labels), len(waveforms))
    config = (config or WaveformTrainingConfig()).resolved()
    num_outputs = len(unit_ids)
    if background is not None and len(background):
        waveforms = np.concatenate([waveforms, _check_background(background, waveforms.shape[1])])
        unit_index = np.concatenate([unit_index, np.full(len(background), num_outputs)])
        num_outputs += 1
    scale = float(np.abs(waveforms).max(axis=1).mean())
    if scale == 0:
        raise WaveformsError("all waveforms are zero", "waveforms of spikes", "check how they were cut")
    waveforms = waveforms / np.float32(scale)
    with threadpool_limits(1):  # the layers are so small that threads only wait for each other
        temperature, calibration = _calibrate(waveforms, unit_index, num_outputs, config, progress)
        network, history = _train(waveforms, unit_index, num_outputs, config, progress, "train")
    facts = {
        "num_labels": {str(u): int(c) for u, c in zip(unit_ids, np.bincount(unit_index), strict=False)},
        "num_background": 0 if background is None else len(background),
        "calibration": calibration,
        "train_loss": [round(loss, 6) for loss in history.train_loss],
        "training_s": round(history.seconds, 3),
        "interrupted": history.interrupted,
    }
    return WaveformClassifier(network, unit_ids, scale, temperature, sampling_frequency, config, facts)


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
        If the file is missing, damaged, no waveform classifier of Spikewise, or of a later version.
    """
    description, tensors = read_tensors(path, "waveforms", FORMAT_VERSION)
    with parsing(lambda reason: damaged(path, reason)):
        try:
            return _rebuild(description, tensors)
        except SettingError as error:
            raise damaged(path, str(error)) from error


def _check_background(background: np.ndarray, num_samples: int) -> np.ndarray:
    background = check_waveforms(background)
    if background.shape[1] != num_samples:
        raise WaveformsError(
            f"the waveforms have {num_samples} samples, those of the background {background.shape[1]}",
            "a background whose waveforms are as long as the spikes'",
            "cut them alike",
        )
    return background


def _check_labels(labels: np.ndarray, num_spikes: int) -> tuple[tuple[int | str, ...], np.ndarray]:
    """Return the unit ids in order and the index of each spike's."""
    if labels.shape != (num_spikes,):
        raise LabelsError(
            f"there are {num_spikes} waveforms and labels of the shape {labels.shape}",
            "one label for each waveform",
            "check that waveforms and labels belong together",
        )
    if labels.dtype.kind not in "iuSU":
        raise LabelsError(
            f"the labels are of the type {labels.dtype}", "whole numbers or text", "convert the unit ids"
        )
    unit_ids, unit_index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(unit_ids) < 2:
        what = f"only the unit {unit_ids[0]}" if len(unit_ids) else "none at all"
        raise LabelsError(
            f"the labels name {what}",
            "two units or more, since a classifier tells units apart",
            "label others",
        )
    few = [str(unit_id) for unit_id, count in zip(unit_ids, counts, strict=True) if count < _MIN_LABELS]
    if few:
        raise LabelsError(
            f"there is only one labelled spike of the unit{'s' * (len(few) > 1)} {', '.join(few[:10])}",
            f"{_MIN_LABELS} or more of each",
            "label more of its spikes, or take its label away",
        )
    return tuple(unit_id.item() for unit_id in unit_ids), unit_index


def _calibrate(
    waveforms: np.ndarray,
    unit_index: np.ndarray,
    num_outputs: int,
    config: WaveformTrainingConfig,
    progress: ProgressCallback,
) -> tuple[float, dict[str, Any]]:
    """Return the temperature, and how it was found."""
    is_left_out = np.zeros(len(unit_index), bool)
    for unit in range(num_outputs):
        mine = np.flatnonzero(unit_index == unit)
        count = min(int(len(mine) * config.calibration_fraction), len(mine) - _MIN_LABELS)
        is_left_out[mine[len(mine) - max(count, 0) :]] = True
    num_left_out = int(is_left_out.sum())
    if num_left_out < _MIN_CALIBRATION:
        return 1.0, {"num_spikes": 0, "temperature": 1.0}
    kept = ~is_left_out
    network, _ = _train(waveforms[kept], unit_index[kept], num_outputs, config, progress, "calibrate")
    logits = _answer(network, waveforms[is_left_out])[:, 0].double()
    target = torch.from_numpy(unit_index[is_left_out])

    def loss(log_temperature: float) -> float:
        return float(functional.cross_entropy(logits / np.exp(log_temperature), target))

    # the bounds keep a set without a mistake from making every probability 1
    temperature = float(np.exp(minimize_scalar(loss, bounds=(np.log(0.5), np.log(10)), method="bounded").x))
    accuracy = float((logits.argmax(dim=1) == target).double().mean())
    return temperature, {
        "num_spikes": num_left_out,
        "temperature": round(temperature, 4),
        "accuracy": round(accuracy, 5),
    }


def _train(
    waveforms: np.ndarray,
    unit_index: np.ndarray,
    num_outputs: int,
    config: WaveformTrainingConfig,
    progress: ProgressCallback,
    stage: str,
) -> tuple[WaveformNetwork, TrainingHistory]:
    model = fit_spike_model(waveforms, unit_index, num_outputs)
    network = _network(config, waveforms.shape[1], num_outputs)
    if config.whiten:
        network.front.copy_(torch.from_numpy(model.whitening()))

    def loss_of(logits: Tensor, batch: Batch) -> Tensor:
        own = functional.cross_entropy(
            logits[:, 0],
            batch.targets[:, 0],
            label_smoothing=given(config.label_smoothing),
            reduction="none",
        )
        own = (own * batch.weights[:, 0, 0]).mean()
        if logits.shape[1] == 1:
            return own
        return own + functional.binary_cross_entropy_with_logits(
            logits[:, 1], batch.targets[:, 1], weight=batch.weights[:, 1]
        )

    def told(_: str, done: float, total: float, note: str = "") -> None:
        progress(stage, done, total, note)

    windows = WaveformWindows(waveforms, unit_index, model, config)
    return network, train_network(network, windows, None, config, torch.device("cpu"), told, loss_of)


def _network(config: WaveformTrainingConfig, num_samples: int, num_outputs: int) -> WaveformNetwork:
    with torch.random.fork_rng(devices=[]):  # the weights are drawn anew, or loaded
        return WaveformNetwork(
            num_samples,
            num_outputs,
            config.features or (),
            config.hidden or (1, 1),
            given(config.dropout),
            num_answers=2 if config.overlaps else 1,
        )


@torch.inference_mode()
def _answer(network: WaveformNetwork, waveforms: np.ndarray) -> Tensor:
    folded = network.folded()
    with threadpool_limits(1):
        return torch.cat([folded(block) for block in torch.from_numpy(waveforms).split(_BATCH)])


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
    """Make the classifier that the header describes; any mismatch raises."""
    config = WaveformTrainingConfig.from_dict(description["config"])
    unit_ids = tuple(description["unit_ids"])
    num_samples, num_outputs = int(description["num_samples"]), int(description["num_outputs"])
    outputs = tensors["classifier.6.bias"].shape[0] // (2 if config.overlaps else 1)
    if tensors["front"].shape != (num_samples, num_samples) or outputs != num_outputs:
        raise ValueError("its header and its weights disagree about samples or units")
    if not isinstance(description["unit_ids"], list) or not all(
        isinstance(unit_id, int | str) for unit_id in unit_ids
    ):
        raise ValueError("its unit ids are not a list of numbers or text")
    if len(unit_ids) + bool(description["has_background"]) != num_outputs:
        raise ValueError("its header and its weights disagree about units")
    scale, temperature = float(description["scale"]), float(description["temperature"])
    if not (scale > 0 and temperature > 0):
        raise ValueError("its scale or temperature is not above zero")
    network = fill(partial(_network, config, num_samples, num_outputs), tensors)
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
