"""Training the dense network of Han & Wang (arXiv 2409.13067) on the labels of one group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spikewise.core.devices import choose_device
from spikewise.core.progress import ProgressCallback
from spikewise.data.labels.label_set import KeptSpikes
from spikewise.learning.examples.training_set import Block, TrainingSet
from spikewise.learning.settings import LearningSettings
from spikewise.learning.training_loop import Start, TrainingTask, train_network
from spikewise.models.esort import EsortNetwork, window_samples
from spikewise.models.windowed import WindowedNetwork
from spikewise.sorting.detector import label_radius_samples
from spikewise.sorting.groups import Group


def learn_dense(
    group: Group,
    spikes: KeptSpikes,
    blocks: list[Block],
    settings: LearningSettings,
    progress: ProgressCallback,
    start: Start | None,
) -> tuple[WindowedNetwork | None, dict[str, Any]]:
    """Train the dense network of Han & Wang on windows of all channels.

    Returns
    -------
    WindowedNetwork or None
        None if no label leaves a window to learn from.
    dict
        The facts of its training.
    """
    training = settings.training.resolved()
    window = window_samples(settings.network, group.reader.sampling_frequency)
    radius = label_radius_samples(settings.detection, group.reader.sampling_frequency)
    parts = {}
    for held_out in (False, True):
        part = [block for block in blocks if block.held_out == held_out]
        parts[held_out] = TrainingSet(group.reader, spikes, part, window, radius, training)
    if not parts[False].num_positive_spans:
        return None, {}
    network = EsortNetwork(
        group.reader.num_channels,
        len(spikes.unit_ids),
        window,
        settings.network.temporal_features,
        settings.network.spatial_features,
    )
    device = choose_device(settings.sorting.device)
    history = train_network(
        network, TrainingTask(parts[False], parts[True]), training, device, progress, start
    )
    return network, {
        "num_training_spikes": parts[False].num_positive_spans,
        "num_held_out_spikes": parts[True].num_positive_spans,
        "train_loss": losses_as_json(history.train_loss),
        "held_out_loss": losses_as_json(history.held_out_loss),
        "best_epoch": history.best_epoch,
        "interrupted": history.interrupted,
    }


def losses_as_json(values: Sequence[float]) -> list[float | None]:
    """Return losses as JSON types; NaN (nothing was held out) becomes None."""
    return [None if np.isnan(value) else round(value, 6) for value in values]
