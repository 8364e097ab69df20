"""Training the dense network of Han & Wang (arXiv 2409.13067) on the labels of one group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spikewise.core.config import Config
from spikewise.core.devices import choose_device
from spikewise.core.errors import LabelsError
from spikewise.core.progress import ProgressCallback
from spikewise.data.labels.label_set import (
    KeptSpikes,
    LabelSet,
)
from spikewise.learning.examples.training_set import Block, TrainingSet
from spikewise.learning.training_loop import Start, train_network
from spikewise.models.esort import EsortNetwork
from spikewise.models.windowed import WindowedNetwork
from spikewise.sorting.detect import label_radius_samples
from spikewise.sorting.groups import Group


def _learn_dense(
    group: Group,
    label_set: LabelSet,
    spikes: KeptSpikes,
    blocks: list[Block],
    window: int,
    config: Config,
    progress: ProgressCallback,
    start: Start | None,
) -> tuple[WindowedNetwork, dict[str, Any]]:
    """Train the dense network of Han & Wang on windows of all channels."""
    training = config.training.resolved()
    radius = label_radius_samples(config.detection, group.reader.sampling_frequency)
    parts = {}
    for held_out in (False, True):
        part = [block for block in blocks if block.held_out == held_out]
        parts[held_out] = TrainingSet(group.reader, spikes, part, window, radius, training)
    if not parts[False].num_positive_spans:
        raise _nothing_to_learn(group, label_set, window)
    network = EsortNetwork(
        group.reader.num_channels,
        len(spikes.unit_ids),
        window,
        config.network.temporal_features,
        config.network.spatial_features,
    )
    device = choose_device(config.sorting.device)
    history = train_network(network, parts[False], parts[True], training, device, progress, start=start)
    return network, {
        "num_training_spikes": parts[False].num_positive_spans,
        "num_held_out_spikes": parts[True].num_positive_spans,
        "train_loss": _losses(history.train_loss),
        "held_out_loss": _losses(history.held_out_loss),
        "best_epoch": history.best_epoch,
        "interrupted": history.interrupted,
    }


def _nothing_to_learn(group: Group, label_set: LabelSet, window: int) -> LabelsError:
    """Return the error that no label leaves a window to learn from."""
    start_s, stop_s = label_set.seconds()
    return LabelsError(
        f"no label of group {group.name} can be learnt from: all lie at the edges of the label interval, "
        f"{start_s:g} to {stop_s:g} s, or of the parts it is cut into",
        f"labels with {window} samples around them inside the interval",
        "label more spikes, or widen the interval with --label-interval if the labels in it are complete",
    )


def _losses(values: Sequence[float]) -> list[float | None]:
    return [None if np.isnan(value) else round(value, 6) for value in values]
