"""From a recording and its labels to a model: group by group, labels, training set, training, thresholds."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikeinterface.core import BaseRecording, BaseSorting

from spikewise.config import Config, NetworkConfig, TrainingConfig
from spikewise.data.bootstrap import bootstrap_labels
from spikewise.data.labels import KeptSpikes, LabelSet, kept_spikes, make_label_set, split_labels_by_group
from spikewise.data.preprocessing import Preprocessed, TraceReader, preprocess_recording, split_groups
from spikewise.data.training_set import Block, TrainingSet, split_interval
from spikewise.errors import BootstrapError, LabelsError, RecordingError, SettingError
from spikewise.models.checkpoint import GroupModel, Model
from spikewise.models.esort import EsortNetwork, window_samples
from spikewise.models.training import Start, TrainingHistory, train_network
from spikewise.progress import ProgressCallback
from spikewise.sorting.detect import SpikeDetector, choose_device, label_radius_samples
from spikewise.sorting.store import BOOTSTRAP_FOLDER, writing
from spikewise.sorting.thresholds import DEFAULT_THRESHOLD, choose_thresholds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """The channels of one probe, shank or tetrode, ready to be read.

    Attributes
    ----------
    name : str
    recording : BaseRecording
        As it came in.
    preprocessed : Preprocessed
    reader : TraceReader
        Preprocessed traces.
    """

    name: str
    recording: BaseRecording
    preprocessed: Preprocessed
    reader: TraceReader


def prepare_groups(recording: BaseRecording, config: Config, model: Model | None = None) -> list[Group]:
    """Split a recording into groups and preprocess each, as a model was trained if one is given."""
    settings = config.preprocessing if model is None else model.preprocessing_config
    _check_length(recording, config.network if model is None else model.network_config)
    recordings = split_groups(recording, settings.group_by)
    known = {} if model is None else {group.name: group for group in model.groups}
    groups = []
    for name, part in recordings.items():
        if model is not None and name not in known:
            logger.warning("the model knows no group %s: its channels are not sorted", name)
            continue
        silenced = known[name].silenced_channel_ids if model is not None else None
        preprocessed = preprocess_recording(
            part, settings, silenced_channel_ids=silenced, seed=config.training.seed
        )
        for step in preprocessed.steps:
            logger.info("group %s: %s", name, step)
        groups.append(Group(name, part, preprocessed, TraceReader(preprocessed.recording)))
    return groups


def _check_length(recording: BaseRecording, network: NetworkConfig) -> None:
    """Raise where no segment is as long as a window of the network."""
    window = window_samples(network, recording.get_sampling_frequency())
    longest = max(recording.get_num_samples(index) for index in range(recording.get_num_segments()))
    if longest < window:
        raise RecordingError(
            f"the recording has {longest} samples"
            + (" in its longest segment" if recording.get_num_segments() > 1 else ""),
            f"at least {window}, since the network's window lasts {network.window_ms:g} ms",
            "give a longer recording",
        )


def label_groups(
    groups: list[Group],
    recording: BaseRecording,
    labels: BaseSorting | None,
    source: str,
    config: Config,
    folder: Path,
) -> tuple[dict[str, LabelSet], dict[str, Any]]:
    """Return the labels of each group, and the facts about where they came from.

    Given labels are shared out by where their mean waveforms are largest; without labels each group is sorted
    by the bootstrap sorter, and unit ids count on from group to group; its labels are written to ``folder``.
    """
    if labels is not None:
        label_set = make_label_set(labels, recording, config.labels, source)
        shared_out = split_labels_by_group(label_set, {group.name: group.reader for group in groups})
        return shared_out, {"source": source, "interval_s": list(label_set.seconds())}
    label_sets: dict[str, LabelSet] = {}
    facts: dict[str, Any] = {"source": f"bootstrap {config.bootstrap.bootstrap}", "groups": {}}
    next_id = 0
    for group in groups:
        try:
            bootstrap = bootstrap_labels(
                group.recording,
                config.bootstrap,
                group.preprocessed.recording,
                seed=config.training.seed,
                folder=folder,
                silenced_channel_ids=group.preprocessed.silenced_channel_ids,
            )
        except BootstrapError as error:
            if len(groups) == 1:
                raise _with_log_kept(error, folder / f"bootstrap_{config.bootstrap.bootstrap}.log") from error
            logger.warning("group %s gives no labels: %s", group.name, error)
            facts["groups"][group.name] = {"error": str(error)}
            continue
        num_units = bootstrap.label_set.sorting.get_num_units()
        label_sets[group.name] = _renumber(bootstrap.label_set, next_id)
        with writing(folder):
            label_sets[group.name].sorting.save(folder=folder / BOOTSTRAP_FOLDER / group.name)
        next_id += num_units
        facts["interval_s"] = list(bootstrap.label_set.seconds())
        facts["groups"][group.name] = {
            "sorter": bootstrap.sorter,
            "sorter_version": bootstrap.sorter_version,
            "seconds": round(bootstrap.seconds, 3),
            "num_units_found": bootstrap.num_found,
            "num_units_kept": num_units,
            "dropped": bootstrap.dropped,
        }
    if not label_sets:
        raise BootstrapError(
            f"{config.bootstrap.bootstrap} found no unit in any of the {len(groups)} groups",
            "at least one unit in one group",
            "give labels with --labels, or try another sorter with --bootstrap",
        )
    return label_sets, facts


def _with_log_kept(error: BootstrapError, log_file: Path) -> BootstrapError:
    """Copy the sorter's log to where it outlives the output folder, and let the error name the copy."""
    if not log_file.exists():  # the sorter never ran
        return error
    try:
        kept = Path(tempfile.mkdtemp(prefix="spikewise-")) / log_file.name
        shutil.copy(log_file, kept)
    except OSError:
        logger.exception("the log of the sorter could not be kept")
        return error
    return BootstrapError(error.given, error.allowed, error.remedy.replace(str(log_file), str(kept)))


def learn_group(
    group: Group,
    label_set: LabelSet,
    config: Config,
    progress: ProgressCallback,
    start: Start | None = None,
) -> tuple[GroupModel, dict[str, Any]]:
    """Train the network of one group, from `start` if it is given, and choose its thresholds.

    Returns
    -------
    GroupModel
    dict
        The facts of its training.
    """
    rate = group.reader.sampling_frequency
    spikes = kept_spikes(label_set, config.labels.labels_per_unit)
    training = config.training.resolved()
    window, radius = window_samples(config.network, rate), label_radius_samples(config.detection, rate)
    blocks = split_interval(
        group.reader, label_set.start_frame, label_set.stop_frame, spikes, training.held_out_fraction
    )
    started = time.perf_counter()
    parts = {}
    for held_out in (False, True):
        part = [block for block in blocks if block.held_out == held_out]
        parts[held_out] = TrainingSet(group.reader, spikes, part, window, radius, training)
    _check_examples(group, label_set, parts[False], window)
    reading_s = time.perf_counter() - started
    device = choose_device(config.sorting.device)
    network = EsortNetwork(
        group.reader.num_channels,
        len(spikes.unit_ids),
        window,
        config.network.temporal_features,
        config.network.spatial_features,
    )
    history = train_network(network, parts[False], parts[True], training, device, progress, start=start)
    _check_finite(network, training)
    started = time.perf_counter()
    thresholds = _thresholds(group, network, spikes, [b for b in blocks if b.held_out], config, progress)
    facts = {
        "name": group.name,
        "num_units": len(spikes.unit_ids),
        "num_labels": int(spikes.is_positive.sum()),
        "num_training_spikes": parts[False].num_positive_spans,
        "num_held_out_spikes": parts[True].num_positive_spans,
        "preprocessing": list(group.preprocessed.steps),
        "reading_s": round(reading_s, 3),
        "training_s": round(history.seconds, 3),
        "thresholds_s": round(time.perf_counter() - started, 3),
        **_history_facts(history),
    }
    model = GroupModel(
        name=group.name,
        network=network.cpu().eval(),
        channel_ids=tuple(str(channel_id) for channel_id in group.recording.channel_ids),
        channel_positions_um=group.recording.get_channel_locations(),
        silenced_channel_ids=group.preprocessed.silenced_channel_ids,
        unit_ids=tuple(_plain(unit_id) for unit_id in spikes.unit_ids),
        thresholds=thresholds,
    )
    return model, facts


def _check_examples(group: Group, label_set: LabelSet, training_set: TrainingSet, window: int) -> None:
    """Raise where no label leaves a window to learn from."""
    if training_set.num_positive_spans:
        return
    start_s, stop_s = label_set.seconds()
    raise LabelsError(
        f"no label of group {group.name} can be learnt from: all lie at the edges of the label interval, "
        f"{start_s:g} to {stop_s:g} s, or of the parts it is cut into",
        f"labels with {window} samples around them inside the interval",
        "label more spikes, or widen the interval with --label-interval if the labels in it are complete",
    )


def _check_finite(network: EsortNetwork, training: TrainingConfig) -> None:
    """Raise where training ran away, since such a network finds nothing."""
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise SettingError(
            f"training with a learning rate of {training.learning_rate} gave numbers that are not finite",
            "a learning rate such as 0.005, at which the loss falls",
            "lower --learning-rate",
        )


def _thresholds(
    group: Group,
    network: EsortNetwork,
    spikes: KeptSpikes,
    held_out: list[Block],
    config: Config,
    progress: ProgressCallback,
) -> np.ndarray:
    num_units = len(spikes.unit_ids)
    if config.detection.threshold is not None:
        return np.full(num_units, config.detection.threshold, dtype=np.float32)
    detector = SpikeDetector(
        network,
        np.full(num_units, DEFAULT_THRESHOLD),
        group.reader.sampling_frequency,
        config.detection,
        choose_device(config.sorting.device),
    )
    try:
        return choose_thresholds(detector, group.reader, spikes, held_out, progress)
    except KeyboardInterrupt:
        logger.warning("interrupted while choosing thresholds; all are %g", DEFAULT_THRESHOLD)
        return np.full(num_units, DEFAULT_THRESHOLD, dtype=np.float32)


def _history_facts(history: TrainingHistory) -> dict[str, Any]:
    def losses(values: tuple[float, ...]) -> list[float | None]:
        return [None if np.isnan(value) else round(value, 6) for value in values]

    return {
        "train_loss": losses(history.train_loss),
        "held_out_loss": losses(history.held_out_loss),
        "best_epoch": history.best_epoch,
        "interrupted": history.interrupted,
    }


def _renumber(label_set: LabelSet, first_id: int) -> LabelSet:
    """Let the unit ids of a bootstrap count from `first_id`."""
    if first_id == 0:
        return label_set
    ids = [first_id + index for index in range(label_set.sorting.get_num_units())]
    return dataclasses.replace(label_set, sorting=label_set.sorting.rename_units(ids))


def _plain(unit_id: Any) -> int | str:
    """Return a unit id as a JSON type."""
    return int(unit_id) if isinstance(unit_id, int | np.integer) else str(unit_id)


def threads_and_device(config: Config) -> dict[str, Any]:
    """Return what the computation ran on, for the provenance."""
    device = choose_device(config.sorting.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads()}
