"""From the prepared groups of a recording to its model, group by group; interrupted training continues."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikewise.core import expected_time
from spikewise.core.config import Config
from spikewise.core.errors import Interrupted
from spikewise.core.progress import LEARNING, PartOf, ProgressCallback, expect
from spikewise.jobs.model.start import StartingPoint, size_of
from spikewise.jobs.state.unfinished import Unfinished
from spikewise.learning.group_learning import learn_group
from spikewise.learning.settings import LearningSettings
from spikewise.models.checkpoint import Model, load_model, save_model
from spikewise.output.store import MODEL_FILE
from spikewise.sorting.groups import Group, named_groups

logger = logging.getLogger(__name__)


def learn_model(
    groups: Sequence[Group],
    start: StartingPoint,
    config: Config,
    state: Unfinished,
    progress: ProgressCallback,
) -> Model:
    """Train a network for each group that has labels; finished networks are reused.

    Parameters
    ----------
    groups : sequence of Group
    start : StartingPoint
        Labels, and weights to start from.
    config : Config
    state : Unfinished
        Keeps networks that are finished.
    progress : callable
        Called with the progress of each stage.
    """
    common: dict[str, Any] = {
        "sampling_frequency": float(groups[0].recording.get_sampling_frequency()),
        "network_config": dataclasses.replace(config.network, design=config.design),
        "preprocessing_config": config.preprocessing,
        "detection_config": config.detection,
    }
    models, facts = [], []
    if without := [group.name for group in groups if group.name not in start.label_sets]:
        verb = "has no units and is" if len(without) == 1 else "have no units and are"
        logger.warning("%s %s not sorted", named_groups(without), verb)
    expected = _expected(groups, start, config)
    parts = [name for name in expected if len(expected) > 1]
    if parts:
        expect(progress, {LEARNING: sum(sum(seconds.values()) for seconds in expected.values())})
    else:
        expect(progress, *expected.values())
    for index, group in enumerate(groups):
        if group.name not in start.label_sets:
            continue
        file = state.group_file(index)
        if file.exists():
            kept = load_model(file)
            model, group_facts = kept.groups[0], kept.facts
        else:
            told = progress
            if parts:
                place = parts.index(group.name), len(parts)
                told = PartOf(progress, LEARNING, place, f"group {group.name}", expected[group.name])
            model, group_facts = learn_group(
                group,
                start.label_sets[group.name],
                LearningSettings.of(config),
                told,
                start.weights.get(group.name),
                state.training_file(index),
            )
        models.append(model)
        facts.append(group_facts)
        if group_facts["interrupted"]:
            break
        if len(start.label_sets) > 1 and not file.exists():  # the model of one group is saved at once
            save_model(Model(groups=(model,), facts=group_facts, **common), file)
    return Model(
        groups=tuple(models),
        **common,
        facts={
            "labels": {**start.label_facts, "labels_per_unit": config.labels.labels_per_unit},
            "labels_s": round(start.seconds, 3),
            "training": config.training.resolved().to_dict(),
            "units": config.units.to_dict(),
            "transfer": config.transfer.to_dict(),
            "pretrained_hash": start.pretrained_hash,
            "groups": facts,
            "interrupted": any(group_facts["interrupted"] for group_facts in facts),
        },
    )


def _expected(groups: Sequence[Group], start: StartingPoint, config: Config) -> dict[str, dict[str, float]]:
    """Return the expected seconds of the stages of learning of each group with labels."""
    expected = {}
    for group in groups:
        if (labels := start.label_sets.get(group.name)) is not None:
            samples = sum(last - first for first, last in labels.parts())
            seconds = samples / group.recording.get_sampling_frequency()
            size = size_of(group.recording, labels.sorting.get_num_units(), seconds)
            expected[group.name] = expected_time.learning_seconds(size, config)
    return expected


def kept_model(state: Unfinished) -> Model | None:
    """Return the model that an earlier process learnt and kept in the output folder, or None."""
    if known_file(state).exists():
        return load_model(known_file(state))
    file = state.output / MODEL_FILE
    if file.exists() and not (kept := load_model(file)).facts["interrupted"]:
        return kept
    return None


def known_file(state: Unfinished) -> Path:
    """Return the file of the model that was learnt, where one with new units takes its place."""
    return state.folder / "known-units.safetensors"


def keep_model(model: Model, state: Unfinished) -> None:
    """Keep a model in the output folder.

    Raises
    ------
    Interrupted
        If Ctrl-C ended the training; the best model so far is kept.
    """
    file = state.output / MODEL_FILE
    save_model(model, file)
    if model.facts["interrupted"]:
        raise Interrupted(
            "training was interrupted",
            f"the best model so far is {file}",
            "sort with --model and that file, or go on training with --resume",
        )


def learning_seconds(model: Model) -> float:
    """Return how long finding units and learning them took, over all processes."""
    groups = model.facts["groups"]
    return model.facts["labels_s"] + sum(group["training_s"] + group["thresholds_s"] for group in groups)
