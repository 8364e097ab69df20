"""Training of a waveform classifier from labelled spikes.

Probabilities are calibrated by temperature scaling (Guo et al. 2017, arXiv 1706.04599). A first network is
trained without the last labels of each unit; these labels then set the temperature. The final network is
trained on all labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

from spikewise.core.errors import LabelsError, WaveformsError
from spikewise.core.progress import ProgressCallback, silent
from spikewise.learning.examples.training_set import Batch
from spikewise.learning.training_loop import TrainingHistory, TrainingTask, train_network
from spikewise.single_channel.classifier import (
    WaveformClassifier,
    check_waveforms,
    compute_logits,
    make_network,
)
from spikewise.single_channel.config import WaveformTrainingConfig
from spikewise.single_channel.network import WaveformNetwork
from spikewise.single_channel.training_windows import WaveformWindows, fit_spike_model

_MIN_LABELS = 2
"""Fewest labelled spikes of a unit: a single spike equals its own mean, so it shows no noise."""
_MIN_CALIBRATION = 10
"""Fewest held-out spikes that set the temperature; with fewer it stays 1. Chosen by hand."""
_TEMPERATURE_RANGE = (0.5, 10.0)
"""Range of the temperature: it keeps held-out spikes without an error from making every probability 1."""


def train_classifier(
    waveforms: np.ndarray,
    labels: np.ndarray,
    config: WaveformTrainingConfig | None = None,
    *,
    sampling_frequency: float | None = None,
    background: np.ndarray | None = None,
    progress: ProgressCallback = silent,
) -> WaveformClassifier:
    """Train a classifier on labelled waveforms.

    Parameters
    ----------
    waveforms : ndarray
        (num_spikes, num_samples), in order of time.
    labels : ndarray
        (num_spikes,) unit id of each waveform, whole numbers or text.
    config : WaveformTrainingConfig, optional
    sampling_frequency : float, optional
        Sampling frequency of the waveforms in Hz; stored with the model.
    background : ndarray, optional
        (num_events, num_samples) waveforms of events that belong to no unit. The classifier leaves similar
        waveforms unsorted.
    progress : callable
        Called with the progress.

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
    with threadpool_limits(1):  # the layers are so small that more threads only wait for each other
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


def _check_background(background: np.ndarray, num_samples: int) -> np.ndarray:
    background = check_waveforms(background)
    if background.shape[1] != num_samples:
        raise WaveformsError(
            f"the waveforms have {num_samples} samples, those of the background {background.shape[1]}",
            "a background whose waveforms are as long as the spikes'",
            "cut them to the same length",
        )
    return background


def _check_labels(labels: np.ndarray, num_spikes: int) -> tuple[tuple[int | str, ...], np.ndarray]:
    """Return the sorted unit ids, and the index of the unit of each spike."""
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
            "two units or more, since a classifier separates units",
            "label spikes of other units",
        )
    few = [str(unit_id) for unit_id, count in zip(unit_ids, counts, strict=True) if count < _MIN_LABELS]
    if few:
        raise LabelsError(
            f"there is only one labelled spike of the unit{'s' * (len(few) > 1)} {', '.join(few[:10])}",
            f"{_MIN_LABELS} or more of each",
            "label more of its spikes, or remove its label",
        )
    return tuple(unit_id.item() for unit_id in unit_ids), unit_index


def _calibrate(
    waveforms: np.ndarray,
    unit_index: np.ndarray,
    num_outputs: int,
    config: WaveformTrainingConfig,
    progress: ProgressCallback,
) -> tuple[float, dict[str, Any]]:
    """Return the temperature, and the facts of the calibration."""
    is_held_out = np.zeros(len(unit_index), bool)
    for unit in range(num_outputs):
        mine = np.flatnonzero(unit_index == unit)
        count = min(int(len(mine) * config.calibration_fraction), len(mine) - _MIN_LABELS)
        is_held_out[mine[len(mine) - max(count, 0) :]] = True
    num_held_out = int(is_held_out.sum())
    if num_held_out < _MIN_CALIBRATION:
        return 1.0, {"num_spikes": 0, "temperature": 1.0}
    kept = ~is_held_out
    network, _ = _train(waveforms[kept], unit_index[kept], num_outputs, config, progress, "calibrate")
    logits = compute_logits(network, waveforms[is_held_out])[:, 0].double()
    target = torch.from_numpy(unit_index[is_held_out])

    def loss(log_temperature: float) -> float:
        return float(functional.cross_entropy(logits / np.exp(log_temperature), target))

    bounds = tuple(np.log(_TEMPERATURE_RANGE))
    temperature = float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
    accuracy = float((logits.argmax(dim=1) == target).double().mean())
    return temperature, {
        "num_spikes": num_held_out,
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
    """Train one network; `stage` names it in the progress."""
    model = fit_spike_model(waveforms, unit_index, num_outputs)
    network = make_network(config, waveforms.shape[1], num_outputs)
    if config.whiten:
        network.front.copy_(torch.from_numpy(model.whitening()))

    def report(_: str, done: float, total: float, note: str = "") -> None:
        progress(stage, done, total, note)

    windows = WaveformWindows(waveforms, unit_index, model, config)
    return network, train_network(
        network, TrainingTask(windows, None, _loss), config, torch.device("cpu"), report
    )


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the weighted loss of the aligned unit, plus that of the present units if there are two heads."""
    own = functional.cross_entropy(logits[:, 0], batch.targets[:, 0], reduction="none")
    own = (own * batch.weights[:, 0, 0]).mean()
    if logits.shape[1] == 1:
        return own
    return own + functional.binary_cross_entropy_with_logits(
        logits[:, 1], batch.targets[:, 1], weight=batch.weights[:, 1]
    )
