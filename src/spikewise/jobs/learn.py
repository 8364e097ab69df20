"""From the prepared groups of a recording to its model, group by group, continued where it was interrupted."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

from spikewise.core.config import Config
from spikewise.core.errors import Interrupted
from spikewise.core.progress import ProgressCallback
from spikewise.data.opening import Inputs
from spikewise.jobs.start import label_groups
from spikewise.jobs.state.unfinished import Unfinished
from spikewise.learning.group_learning import learn_group
from spikewise.learning.settings import LearningSettings
from spikewise.learning.transfer import open_pretrained, start_from
from spikewise.models.checkpoint import Model, load_model, save_model
from spikewise.output.store import MODEL_FILE
from spikewise.sorting.groups import Group

logger = logging.getLogger(__name__)


def learn_model(
    inputs: Inputs,
    groups: Sequence[Group],
    config: Config,
    state: Unfinished,
    progress: ProgressCallback,
    prepare_s: float,
) -> Model:
    """Label all groups, and train a network for each that has units; continue what is finished.

    Parameters
    ----------
    inputs : Inputs
        Recording and labels; without labels another sorter makes them.
    groups : sequence of Group
    config : Config
    state : Unfinished
        Keeps labels and networks that are finished.
    progress : callable
    prepare_s : float
        Seconds that preparing the groups took; they count with the labels.
    """
    started = time.perf_counter()
    pretrained = open_pretrained(config.transfer, config.design)
    starts = {} if pretrained is None else start_from(pretrained, groups, config.network, config.transfer)
    label_sets, label_facts = label_groups(groups, inputs, config, state)
    labels_s = prepare_s + time.perf_counter() - started
    common: dict[str, Any] = {
        "sampling_frequency": float(inputs.recording.get_sampling_frequency()),
        "network_config": dataclasses.replace(config.network, design=config.design),
        "preprocessing_config": config.preprocessing,
        "detection_config": config.detection,
    }
    models, facts = [], []
    for index, group in enumerate(groups):
        if group.name not in label_sets:
            logger.warning("group %s has no units and is not sorted", group.name)
            continue
        file = state.group_file(index)
        if file.exists():
            kept = load_model(file)
            model, group_facts = kept.groups[0], kept.facts
        else:
            model, group_facts = learn_group(
                group,
                label_sets[group.name],
                LearningSettings.of(config),
                progress,
                starts.get(group.name),
                state.training_file(index),
            )
        models.append(model)
        facts.append(group_facts)
        if group_facts["interrupted"]:
            break
        if len(label_sets) > 1 and not file.exists():  # the model of one group is saved at once
            save_model(Model(groups=(model,), facts=group_facts, **common), file)
    return Model(
        groups=tuple(models),
        **common,
        facts={
            "labels": {**label_facts, "labels_per_unit": config.labels.labels_per_unit},
            "labels_s": round(labels_s, 3),
            "training": config.training.resolved().to_dict(),
            "units": config.units.to_dict(),
            "transfer": config.transfer.to_dict(),
            "pretrained_hash": None if pretrained is None else pretrained.hash(),
            "groups": facts,
            "interrupted": any(group_facts["interrupted"] for group_facts in facts),
        },
    )


def learnt_or_kept(
    inputs: Inputs,
    groups: Sequence[Group],
    config: Config,
    state: Unfinished,
    progress: ProgressCallback,
    prepare_s: float,
) -> Model:
    """Return the model that an earlier process kept in the output folder, or learn it and keep it there.

    Raises
    ------
    Interrupted
        If Ctrl-C ended the training; the best model so far is kept.
    """
    file = state.output / MODEL_FILE
    if file.exists() and not (kept := load_model(file)).facts["interrupted"]:
        return kept
    model = learn_model(inputs, groups, config, state, progress, prepare_s)
    save_model(model, file)
    if model.facts["interrupted"]:
        raise Interrupted(
            "training was interrupted",
            f"the best model so far is {file}",
            "sort with --model and that file, or go on training with --resume",
        )
    return model


def learning_seconds(model: Model) -> float:
    """Return how long learning took, over all processes."""
    groups = model.facts["groups"]
    return model.facts["labels_s"] + sum(group["training_s"] + group["thresholds_s"] for group in groups)
