"""From the labels of one group of channels to its model: training and thresholds."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikewise.core.config import TrainingConfig
from spikewise.core.errors import LabelsError, SettingError
from spikewise.core.progress import ProgressCallback
from spikewise.core.threads import one_thread_each
from spikewise.data.labels.label_set import (
    KeptSpikes,
    LabelSet,
    kept_spikes,
)
from spikewise.data.recordings.preprocessing import known_gains
from spikewise.data.recordings.reader import TraceReader
from spikewise.learning.dense_learning import learn_dense, losses_as_json
from spikewise.learning.examples.damaged_labels import drop_damaged_labels
from spikewise.learning.examples.training_set import Block, split_interval
from spikewise.learning.rounds import UnitLearner
from spikewise.learning.settings import LearningSettings
from spikewise.learning.thresholds import DEFAULT_THRESHOLD, choose_thresholds, lowest_thresholds
from spikewise.learning.training_loop import Start
from spikewise.models.channel_noise import ChannelNoise
from spikewise.models.checkpoint import GroupModel
from spikewise.models.esort import window_samples
from spikewise.models.neighbourhood import Backbone
from spikewise.models.unit_waveforms import UnitWaveforms
from spikewise.models.windowed import WindowedNetwork
from spikewise.sorting.detectors import make_detector
from spikewise.sorting.groups import Group

logger = logging.getLogger(__name__)


def learn_group(
    group: Group,
    label_set: LabelSet,
    settings: LearningSettings,
    progress: ProgressCallback,
    start: Start | Backbone | None = None,
    checkpoint: Path | None = None,
) -> tuple[GroupModel, dict[str, Any]]:
    """Train the network of one group and choose its thresholds.

    Parameters
    ----------
    group : Group
    label_set : LabelSet
    settings : LearningSettings
    progress : callable
        Called with the progress of each stage.
    start : Start or Backbone, optional
        Weights of another dense network, or temporal filters, that training starts from.
    checkpoint : Path, optional
        File with the state of training (design neighbourhood): training continues from it and updates it.

    Returns
    -------
    GroupModel
    dict
        The facts of its training.
    """
    rate = group.reader.sampling_frequency
    window = window_samples(settings.network, rate)
    label_set = drop_damaged_labels(label_set, group.reader, window)
    spikes = kept_spikes(label_set, settings.labels_per_unit)
    fraction = settings.training.held_out_fraction
    blocks = split_interval(group.reader, label_set.parts(), spikes, fraction)
    started = time.perf_counter()
    if settings.design == "neighbourhood":
        backbone = start if isinstance(start, Backbone) else None
        learner = UnitLearner(
            group.reader, group.recording.get_channel_locations(), window, settings, checkpoint
        )
        with one_thread_each():
            network, facts, waveforms = _learn_units(learner, spikes, blocks, progress, backbone)
    else:
        weights = start if isinstance(start, Start) else None
        network, facts, waveforms = *learn_dense(group, spikes, blocks, settings, progress, weights), None
    if network is None:
        raise _nothing_to_learn(group, label_set, window)
    _check_finite(network, settings.training.resolved())
    learnt = time.perf_counter()
    held_out = [block for block in blocks if block.held_out]
    thresholds = _thresholds(group.reader, network, spikes, held_out, settings, progress)
    model = GroupModel(
        name=group.name,
        network=network.cpu().eval(),
        channel_ids=tuple(str(channel_id) for channel_id in group.recording.channel_ids),
        channel_positions_um=group.recording.get_channel_locations(),
        silenced_channel_ids=group.preprocessed.silenced_channel_ids,
        unit_ids=tuple(_plain(unit_id) for unit_id in spikes.unit_ids),
        thresholds=thresholds,
        noise=_noise_of(group),
        waveforms=waveforms,
    )
    return model, {
        "name": group.name,
        "num_units": len(spikes.unit_ids),
        "num_labels": int(spikes.is_positive.sum()),
        "num_labels_of_units": np.bincount(
            spikes.unit_index[spikes.is_positive], minlength=len(spikes.unit_ids)
        ).tolist(),
        "preprocessing": list(group.preprocessed.steps),
        "training_s": round(learnt - started, 3),
        "thresholds_s": round(time.perf_counter() - learnt, 3),
        **facts,
    }


def _noise_of(group: Group) -> ChannelNoise:
    """Return the noise by which the traces of a group were divided."""
    return ChannelNoise(np.nan_to_num(group.preprocessed.noise_levels), known_gains(group.recording))


def _learn_units(
    learner: UnitLearner,
    spikes: KeptSpikes,
    blocks: list[Block],
    progress: ProgressCallback,
    backbone: Backbone | None,
) -> tuple[WindowedNetwork | None, dict[str, Any], UnitWaveforms | None]:
    """Learn each unit separately, with filters that fit any probe; None if no label leaves a window."""
    learnt = learner.learn(spikes, blocks, backbone, progress)
    if learnt is None:
        return None, {}, None
    facts = {
        "num_training_spikes": learnt.num_labelled,
        "num_confident_spikes": learnt.num_confident,
        "train_loss": losses_as_json(learnt.train_loss),
        "held_out_loss": losses_as_json(learnt.held_out_loss),
        "best_epoch": len(learnt.train_loss) - 1,
        "interrupted": learnt.interrupted,
    }
    return learnt.network, facts, learnt.waveforms


def _nothing_to_learn(group: Group, label_set: LabelSet, window: int) -> LabelsError:
    """Return the error for labels of which none leaves a window to learn from."""
    start_s, stop_s = label_set.seconds()
    return LabelsError(
        f"no label of group {group.name} can be learnt from: all lie at the edges of the label interval, "
        f"{start_s:g} to {stop_s:g} s, or of the parts it is cut into",
        f"labels with {window} samples around them inside the interval",
        "label more spikes, or widen the interval with --label-interval if the labels in it are complete",
    )


def _check_finite(network: WindowedNetwork, training: TrainingConfig) -> None:
    """Raise if training diverged, since such a network finds nothing."""
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise SettingError(
            f"training with a learning rate of {training.learning_rate} gave numbers that are not finite",
            "a learning rate such as 0.005, at which the loss falls",
            "lower --learning-rate",
        )


def _thresholds(
    reader: TraceReader,
    network: WindowedNetwork,
    spikes: KeptSpikes,
    held_out: list[Block],
    settings: LearningSettings,
    progress: ProgressCallback,
) -> np.ndarray:
    num_units = len(spikes.unit_ids)
    if settings.detection.threshold is not None:
        return np.full(num_units, settings.detection.threshold, dtype=np.float32)
    if settings.design == "neighbourhood" and settings.labels_per_unit is not None:
        # A few held-out spikes choose no better threshold than the network's own probability.
        return np.full(num_units, DEFAULT_THRESHOLD, dtype=np.float32)
    lowest, rate = lowest_thresholds(num_units), reader.sampling_frequency
    detector = make_detector(network, lowest, rate, settings.detection, settings.sorting)
    try:
        return choose_thresholds(detector, reader, spikes, held_out, progress)
    except KeyboardInterrupt:
        logger.warning("interrupted while choosing thresholds; all are %g", DEFAULT_THRESHOLD)
        return np.full(num_units, DEFAULT_THRESHOLD, dtype=np.float32)


def _plain(unit_id: Any) -> int | str:
    """Return a unit id as a JSON type."""
    return int(unit_id) if isinstance(unit_id, int | np.integer) else str(unit_id)
