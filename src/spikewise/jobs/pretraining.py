"""Learning temporal filters from many recordings, for the units of other recordings.

Each recording gives patches of its labelled units. The filters are learnt from all patches together, with a
small network for each unit that is discarded afterwards. Recordings may differ in probe, noise and sampling
frequency: patches are interpolated to one number of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from spikeinterface.core import BaseRecording, BaseSorting
from torch.nn import functional

from spikewise.core.config import Config, LabelsConfig
from spikewise.core.errors import LabelsError, RecordingError, SettingError
from spikewise.core.files import check_output_file
from spikewise.core.progress import ProgressCallback, silent
from spikewise.core.version import __version__
from spikewise.data.labels.label_set import kept_spikes, make_label_set, split_labels_by_group
from spikewise.data.opening import open_labels, open_recording, settings_from
from spikewise.learning.backbone_training import PatchSet, train_backbone
from spikewise.learning.examples.training_set import Block, split_interval
from spikewise.learning.rounds import UnitLearner, by_unit, make_patch_set
from spikewise.learning.settings import LearningSettings
from spikewise.models.backbone_file import FEATURES, Pretrained, save_pretrained
from spikewise.models.esort import window_samples
from spikewise.sorting.groups import Preparation, prepare_groups

WINDOW_SAMPLES = 60
"""Samples of a window while filters are learnt: 1.875 ms at 32 kHz."""
FEWEST_PATCHES = 50
"""Smallest number of patches of a unit. Chosen by hand."""
FEWEST_STEPS = 10
"""Smallest number of training steps. Chosen by hand."""


def pretrain(
    recordings: Sequence[tuple[BaseRecording | str | Path, BaseSorting | str | Path]],
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    patches_per_unit: int = 1000,
    steps: int = 4000,
    config: Config | None = None,
    progress: ProgressCallback = silent,
    **options: Any,
) -> Pretrained:
    """Learn temporal filters from labelled recordings, for :func:`train` to start from.

    Parameters
    ----------
    recordings : sequence of (recording, labels)
        Each an object or its path; the labels hold all spikes of their units. Probes, noise and sampling
        frequencies may differ: the more they differ, the more recordings the filters fit.
    output : str or Path, optional
        File to write the filters to.
    overwrite : bool
        Whether a file there may be replaced.
    patches_per_unit : int
        Patches of each unit; at least 50.
    steps : int
        Steps of training; at least 10.
    config : Config, optional
        All settings; or give single ones as keyword options.
    progress : callable, optional
        Called with the progress.

    Returns
    -------
    Pretrained

    Raises
    ------
    SpikewiseError
        If recordings, labels or settings cannot be used; the message says what to do.
    """
    config = settings_from(config, options)
    for name, value, least in (
        ("patches_per_unit", patches_per_unit, FEWEST_PATCHES),
        ("steps", steps, FEWEST_STEPS),
    ):
        if value < least:
            raise SettingError(f"{name} is {value}", f"at least {least}", f"raise {name}")
    if config.design != "neighbourhood":
        raise SettingError(
            f"pretrain with the design {config.design}",
            "the design neighbourhood",
            "leave design out; for esort-paper, train a model on a recording, and give this model as "
            "pretrained",
        )
    if not recordings:
        raise RecordingError("no recording is given", "at least one", "name recordings with labels")
    if output is not None:
        output = check_output_file(output, overwrite, ending=".safetensors")
    opened = []
    for recording, labels in recordings:
        known, _ = open_recording(recording, config.recording)
        opened.append((known, cast(BaseSorting, open_labels(labels, known)[0])))
    pretrained = _learn(opened, config, patches_per_unit, steps, progress)
    if output is not None:
        save_pretrained(pretrained, output)
    return pretrained


def pair_recordings(recordings: Sequence[Path], labels: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pair recordings with their labels; without labels, each recording is a folder of a simulation.

    Raises
    ------
    LabelsError
        If there are fewer or more labels than recordings, or a folder holds no truth.
    """
    if labels:
        if len(labels) != len(recordings):
            raise LabelsError(
                f"there are {len(labels)} labels for {len(recordings)} recordings",
                "one for each, in the same order",
                "repeat --labels for each recording",
            )
        return list(zip(recordings, labels, strict=True))
    for folder in recordings:
        if not (folder / "recording").exists() or not (folder / "truth").exists():
            raise LabelsError(
                f"the folder {folder} holds no recording with its truth",
                "folders of `spikewise simulate`, or labels for each recording",
                "name the labels of each recording with --labels",
            )
    return [(folder / "recording", folder / "truth") for folder in recordings]


def _learn(
    recordings: Sequence[tuple[BaseRecording, BaseSorting]],
    config: Config,
    patches_per_unit: int,
    steps: int,
    progress: ProgressCallback,
) -> Pretrained:
    """Make patches of all units and learn filters from them; see :func:`pretrain`."""
    patch_sets, facts = [], []
    for number, (recording, labels) in enumerate(recordings):
        progress("making patches", number, len(recordings), "")
        of_recording = _patches_of(recording, labels, config, patches_per_unit, number)
        patch_sets += of_recording
        facts.append(
            {
                "num_channels": recording.get_num_channels(),
                "sampling_frequency": float(recording.get_sampling_frequency()),
                "duration_s": round(recording.get_total_duration(), 3),
                "num_units": sum(len(part.patches) for part in of_recording),
            }
        )
    progress("making patches", len(recordings), len(recordings), "")
    if not patch_sets:
        raise LabelsError(
            f"no unit of the {len(recordings)} recordings can be learnt from",
            "labelled spikes away from the ends of the recordings",
            "give more or longer recordings",
        )
    backbones = {
        name: train_backbone(patch_sets, features, steps, config.training.seed, progress=progress)
        for name, features in FEATURES.items()
    }
    described: dict[str, Any] = {
        "recordings": facts,
        "num_units": sum(part["num_units"] for part in facts),
        "patches_per_unit": patches_per_unit,
        "steps": steps,
        "seed": config.training.seed,
        "spikewise_version": __version__,
    }
    return Pretrained(backbones, config.network.window_ms, "learnt", described)


def _patches_of(
    recording: BaseRecording, labels: BaseSorting, config: Config, count: int, number: int
) -> list[PatchSet]:
    """Make patches of the units of each group of a recording."""
    label_set = make_label_set(labels, recording, LabelsConfig(), "labels")
    groups = prepare_groups(recording, Preparation.of(config))
    parts = split_labels_by_group(label_set, {group.name: group.reader for group in groups})
    window = window_samples(config.network, recording.get_sampling_frequency())
    patch_sets = []
    for group in groups:
        if group.name not in parts:
            continue
        spikes = kept_spikes(parts[group.name], None)
        used, fraction = parts[group.name].parts(), config.training.held_out_fraction
        blocks = [
            Block(block.segment_index, block.start, block.stop, False)
            for block in split_interval(group.reader, used, spikes, fraction)
        ]
        learner = UnitLearner(
            group.reader, group.recording.get_channel_locations(), window, LearningSettings.of(config)
        )
        frames = by_unit(spikes)
        maker = learner.patches(learner.store(blocks), frames, frames)
        if any(len(columns) for columns in maker.columns):
            patch_set = make_patch_set(maker, count, config.training.seed + number)
            patch_sets.append(PatchSet(_resampled(patch_set.patches), patch_set.targets))
    return patch_sets


def _resampled(patches: torch.Tensor) -> torch.Tensor:
    """Interpolate windows (units, count, M, W) to :data:`WINDOW_SAMPLES` samples."""
    if patches.shape[-1] == WINDOW_SAMPLES:
        return patches
    resampled = [
        functional.interpolate(of_unit.float(), size=WINDOW_SAMPLES, mode="linear").half()
        for of_unit in patches
    ]
    return torch.stack(resampled)
