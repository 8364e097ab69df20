"""From a recording and its labels to a model: group by group, labels, training set, training, thresholds."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikeinterface.core import BaseRecording, BaseSorting, NumpyFolderSorting

from spikewise.config import Config, NetworkConfig, TrainingConfig
from spikewise.data.bootstrap import bootstrap_labels
from spikewise.data.device_reader import make_reader
from spikewise.data.files import sync_tree
from spikewise.data.label_cleaning import clean_labels
from spikewise.data.labels import KeptSpikes, LabelSet, kept_spikes, make_label_set, split_labels_by_group
from spikewise.data.preprocessing import Preprocessed, TraceReader, preprocess_recording, split_groups
from spikewise.data.training_set import Block, TrainingSet, split_interval
from spikewise.data.untrusted import safe_name
from spikewise.errors import BootstrapError, LabelsError, RecordingError, SettingError
from spikewise.models.checkpoint import GroupModel, Model, check_model_fits
from spikewise.models.esort import EsortNetwork, window_samples
from spikewise.models.neighbourhood import Backbone
from spikewise.models.training import Start, train_network
from spikewise.models.windowed import WindowedNetwork
from spikewise.output.result import StoredResult
from spikewise.progress import ProgressCallback
from spikewise.sorting.damaged import drop_damaged_labels
from spikewise.sorting.detect import choose_device, label_radius_samples, make_detector
from spikewise.sorting.store import BOOTSTRAP_FOLDER, writing
from spikewise.sorting.thresholds import DEFAULT_THRESHOLD, choose_thresholds
from spikewise.sorting.unfinished import Unfinished
from spikewise.threads import one_thread_each
from spikewise.unit_learning import UnitLearner

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
    device = choose_device(config.sorting.device)
    groups = []
    for name, part in recordings.items():
        if model is not None and name not in known:
            logger.warning("the model knows no group %s: its channels are not sorted", name)
            continue
        silenced = known[name].silenced_channel_ids if model is not None else None
        preprocessed = preprocess_recording(
            part,
            settings,
            silenced_channel_ids=silenced,
            seed=config.training.seed,
            damage=config.sorting,
        )
        for step in preprocessed.steps:
            logger.info("group %s: %s", name, step)
        reader = make_reader(preprocessed.recording, device, preprocessed.repaired)
        groups.append(Group(name, part, preprocessed, reader))
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


def groups_of(result: StoredResult, recording: BaseRecording) -> list[Group]:
    """Return the groups of the recording that was sorted, preprocessed as for the result's model.

    Raises
    ------
    RecordingError, CheckpointError
        If it is another recording: of another length, or with other channels.
    """
    lengths = [recording.get_num_samples(index) for index in range(recording.get_num_segments())]
    if lengths != result.num_samples:
        raise RecordingError(
            f"the recording has segments of {lengths} samples",
            f"the result is of a recording with segments of {result.num_samples}",
            "give the recording that was sorted",
        )
    check_model_fits(result.model, split_groups(recording, result.model.preprocessing_config.group_by))
    return prepare_groups(recording, Config(), result.model)


def label_groups(
    groups: list[Group],
    recording: BaseRecording,
    labels: BaseSorting | None,
    source: str,
    config: Config,
    state: Unfinished,
) -> tuple[dict[str, LabelSet], dict[str, Any]]:
    """Return the labels of each group, and the facts about where they came from.

    Given labels are shared out by where their mean waveforms are largest; without labels each group is sorted
    by the bootstrap sorter, and unit ids count on from group to group; its labels are written to the output
    folder, and a group that has them there is not sorted again.
    """
    if labels is not None:
        label_set = make_label_set(labels, recording, config.labels, source)
        shared_out = split_labels_by_group(label_set, {group.name: group.reader for group in groups})
        return shared_out, {"source": source, "interval_s": list(label_set.seconds())}
    label_sets: dict[str, LabelSet] = {}
    facts: dict[str, Any] = {"source": f"bootstrap {config.bootstrap.bootstrap}", "groups": {}}
    next_id = 0
    for index, group in enumerate(groups):
        try:
            kept = _kept_labels(state, index, group) or _bootstrap_group(state, index, group, config, next_id)
        except BootstrapError as error:
            if len(groups) == 1:
                raise _with_log_kept(
                    error, state.output / f"bootstrap_{config.bootstrap.bootstrap}.log"
                ) from error
            logger.warning("group %s gives no labels: %s", group.name, error)
            facts["groups"][group.name] = {"error": str(error)}
            continue
        label_sets[group.name], facts["groups"][group.name] = kept
        next_id += label_sets[group.name].sorting.get_num_units()
        facts["interval_s"] = list(label_sets[group.name].seconds())
    if not label_sets:
        raise BootstrapError(
            f"{config.bootstrap.bootstrap} found no unit in any of the {len(groups)} groups",
            "at least one unit in one group",
            "give labels with --labels, or try another sorter with --bootstrap",
        )
    return label_sets, facts


def _bootstrap_group(
    state: Unfinished, index: int, group: Group, config: Config, first_id: int
) -> tuple[LabelSet, dict[str, Any]]:
    """Let the bootstrap sorter make the labels of a group, keep them, and return them as they are kept."""
    repaired = group.preprocessed.repaired
    bootstrap = bootstrap_labels(
        group.recording if repaired is None else repaired,
        config.bootstrap,
        group.preprocessed.recording,
        seed=config.training.seed,
        folder=state.output,
        silenced_channel_ids=group.preprocessed.silenced_channel_ids,
    )
    cleaned, mended = clean_labels(bootstrap.label_set, group.reader)
    label_set = _renumber(cleaned, first_id)
    facts = {
        "sorter": bootstrap.sorter,
        "sorter_version": bootstrap.sorter_version,
        "seconds": round(bootstrap.seconds, 3),
        "num_units_found": bootstrap.num_found,
        "num_units_kept": label_set.sorting.get_num_units(),
        "num_units_split": mended["split"],
        "num_units_merged": mended["merged"],
        "dropped": bootstrap.dropped,
    }
    place = _labels_place(state, group)
    partial = place.with_name(f"{place.name}.partial")
    with writing(state.output):
        for left in (partial, place):  # of a process that was ended
            shutil.rmtree(left, ignore_errors=True)
        label_set.sorting.save(folder=partial)
        sync_tree(partial)
        partial.rename(place)
    interval = {name: getattr(label_set, name) for name in _INTERVAL}
    state.save({**interval, "facts": facts}, state.labels_name(index))
    return _kept_labels(state, index, group) or (label_set, facts)


def _labels_place(state: Unfinished, group: Group) -> Path:
    """Return where the bootstrap labels of a group are kept; its name may come from a stranger's file."""
    return state.output / BOOTSTRAP_FOLDER / safe_name(group.name)


_INTERVAL = ("start_frame", "stop_frame", "source", "segment_starts")


def _kept_labels(state: Unfinished, index: int, group: Group) -> tuple[LabelSet, dict[str, Any]] | None:
    """Return the labels that the bootstrap sorter made of a group before; None if it did not."""
    kept = state.read(state.labels_name(index))
    if kept is None:
        return None
    sorting = NumpyFolderSorting(_labels_place(state, group))
    interval = {name: kept[name] for name in _INTERVAL} | {"segment_starts": tuple(kept["segment_starts"])}
    return LabelSet(sorting=sorting, **interval), kept["facts"]


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
    start: Start | Backbone | None = None,
    checkpoint: Path | None = None,
) -> tuple[GroupModel, dict[str, Any]]:
    """Train the network of one group, from `start` if it is given, and choose its thresholds.

    What training starts from are the weights of another dense network, or temporal filters. With the design
    neighbourhood it goes on from `checkpoint`, where that is there, and writes it.

    Returns
    -------
    GroupModel
    dict
        The facts of its training.
    """
    rate = group.reader.sampling_frequency
    window = window_samples(config.network, rate)
    label_set = drop_damaged_labels(label_set, group.reader, window)
    spikes = kept_spikes(label_set, config.labels.labels_per_unit)
    held_out_fraction = config.training.held_out_fraction
    blocks = split_interval(
        group.reader, label_set.start_frame, label_set.stop_frame, spikes, held_out_fraction
    )
    started = time.perf_counter()
    if config.design == "neighbourhood":
        backbone = start if isinstance(start, Backbone) else None
        learner = UnitLearner(
            group.reader, group.recording.get_channel_locations(), window, config, checkpoint
        )
        with one_thread_each():
            network, facts = _learn_units(learner, group, label_set, spikes, blocks, progress, backbone)
    else:
        weights = start if isinstance(start, Start) else None
        network, facts = _learn_dense(group, label_set, spikes, blocks, window, config, progress, weights)
    _check_finite(network, config.training.resolved())
    learnt = time.perf_counter()
    held_out = [block for block in blocks if block.held_out]
    thresholds = _thresholds(group, network, spikes, held_out, config, progress)
    model = GroupModel(
        name=group.name,
        network=network.cpu().eval(),
        channel_ids=tuple(str(channel_id) for channel_id in group.recording.channel_ids),
        channel_positions_um=group.recording.get_channel_locations(),
        silenced_channel_ids=group.preprocessed.silenced_channel_ids,
        unit_ids=tuple(_plain(unit_id) for unit_id in spikes.unit_ids),
        thresholds=thresholds,
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


def _learn_units(
    learner: UnitLearner,
    group: Group,
    label_set: LabelSet,
    spikes: KeptSpikes,
    blocks: list[Block],
    progress: ProgressCallback,
    backbone: Backbone | None,
) -> tuple[WindowedNetwork, dict[str, Any]]:
    """Learn each unit on its own, on filters that fit any probe."""
    learnt = learner.learn(spikes, blocks, backbone, progress)
    if learnt is None:
        raise _nothing_to_learn(group, label_set, learner.shape.window_samples)
    return learnt.network, {
        "num_training_spikes": learnt.num_labelled,
        "num_confident_spikes": learnt.num_confident,
        "train_loss": _losses(learnt.train_loss),
        "held_out_loss": _losses(learnt.held_out_loss),
        "best_epoch": len(learnt.train_loss) - 1,
        "interrupted": learnt.interrupted,
    }


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


def _check_finite(network: WindowedNetwork, training: TrainingConfig) -> None:
    """Raise where training ran away, since such a network finds nothing."""
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise SettingError(
            f"training with a learning rate of {training.learning_rate} gave numbers that are not finite",
            "a learning rate such as 0.005, at which the loss falls",
            "lower --learning-rate",
        )


def _thresholds(
    group: Group,
    network: WindowedNetwork,
    spikes: KeptSpikes,
    held_out: list[Block],
    config: Config,
    progress: ProgressCallback,
) -> np.ndarray:
    num_units = len(spikes.unit_ids)
    if config.detection.threshold is not None:
        return np.full(num_units, config.detection.threshold, dtype=np.float32)
    if config.design == "neighbourhood" and config.labels.labels_per_unit is not None:
        # A few spikes in the held-out time choose no better than the network's own probability.
        return np.full(num_units, DEFAULT_THRESHOLD, dtype=np.float32)
    rate = group.reader.sampling_frequency
    initial = np.full(num_units, DEFAULT_THRESHOLD)
    detector = make_detector(network, initial, rate, config.detection, config.sorting)
    try:
        return choose_thresholds(detector, group.reader, spikes, held_out, progress)
    except KeyboardInterrupt:
        logger.warning("interrupted while choosing thresholds; all are %g", DEFAULT_THRESHOLD)
        return np.full(num_units, DEFAULT_THRESHOLD, dtype=np.float32)


def _losses(values: Sequence[float]) -> list[float | None]:
    return [None if np.isnan(value) else round(value, 6) for value in values]


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
