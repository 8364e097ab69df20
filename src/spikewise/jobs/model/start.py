"""The labels that a sort starts from: given ones, those that Spikewise finds, or those of another sorter."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeinterface.core import BaseRecording, BaseSorting, NumpyFolderSorting, NumpySorting

from spikewise.core import expected_time
from spikewise.core.config import BootstrapConfig, Config, LabelsConfig
from spikewise.core.errors import BootstrapError
from spikewise.core.files import sync_tree, writing
from spikewise.core.progress import CLEANING, FINDING_UNITS, PartOf, ProgressCallback, finding_with
from spikewise.core.threads import num_threads
from spikewise.core.untrusted import safe_name
from spikewise.core.version import __version__
from spikewise.data.labels.label_set import (
    LabelSet,
    make_label_set,
    relabelled,
    segment_starts,
    split_labels_by_group,
)
from spikewise.data.opening import Inputs
from spikewise.discovery.discover import discover_units
from spikewise.discovery.event_search import FirstLook
from spikewise.discovery.label_cleaning import clean_labels
from spikewise.jobs.state.unfinished import Unfinished
from spikewise.learning.training_loop import Start
from spikewise.learning.transfer import open_pretrained, start_from
from spikewise.models.neighbourhood import Backbone
from spikewise.output.store import BOOTSTRAP_FOLDER
from spikewise.sorting.groups import Group

_INTERVAL = ("start_frame", "stop_frame", "source", "segment_starts", "stretches")

OWN_DISCOVERY = "spikewise"
"""The setting `bootstrap` with which Spikewise finds the units itself."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingPoint:
    """What learning starts from.

    Attributes
    ----------
    label_sets : dict of str to LabelSet
        The labels of each group that has any.
    label_facts : dict
        Where the labels came from; JSON types only.
    weights : dict of str to (Start or Backbone)
        For each group the weights or filters that training starts from; empty: from scratch.
    pretrained_hash : str or None
        Hash of the model or filters that the weights came from.
    seconds : float
        How long finding the labels took.
    """

    label_sets: dict[str, LabelSet]
    label_facts: dict[str, Any]
    weights: Mapping[str, Start | Backbone]
    pretrained_hash: str | None
    seconds: float


def find_start(
    groups: Sequence[Group],
    inputs: Inputs,
    config: Config,
    state: Unfinished,
    progress: ProgressCallback,
    looks: dict[str, FirstLook],
) -> StartingPoint:
    """Return the labels of each group, and the weights that training starts from.

    Parameters
    ----------
    groups : sequence of Group
    inputs : Inputs
        Recording and labels; without labels the units are found (:attr:`BootstrapConfig.bootstrap`).
    config : Config
    state : Unfinished
        Keeps the labels of the units that are found.
    progress : callable
        Called with the progress of each stage.
    looks : dict of str to FirstLook
        Traces of groups in which their units are searched; taken out. Those of other groups are read.
    """
    started = time.perf_counter()
    pretrained = open_pretrained(config.transfer, config.design)
    weights = {} if pretrained is None else start_from(pretrained, groups, config.network, config.transfer)
    label_sets, facts = label_groups(groups, inputs, config, state, progress, looks)
    pretrained_hash = None if pretrained is None else pretrained.hash()
    return StartingPoint(label_sets, facts, weights, pretrained_hash, time.perf_counter() - started)


def label_groups(
    groups: Sequence[Group],
    inputs: Inputs,
    config: Config,
    state: Unfinished,
    progress: ProgressCallback,
    looks: dict[str, FirstLook],
) -> tuple[dict[str, LabelSet], dict[str, Any]]:
    """Return the labels of each group, and the facts about their source: given labels, or discovered ones."""
    if inputs.labels is not None:
        return given_labels(groups, inputs.recording, inputs.labels, inputs.label_source, config.labels)
    return discovered_labels(groups, config, state, progress, looks)


def given_labels(
    groups: Sequence[Group], recording: BaseRecording, labels: BaseSorting, source: str, config: LabelsConfig
) -> tuple[dict[str, LabelSet], dict[str, Any]]:
    """Give each labelled unit to the group of channels on which its mean waveform is largest."""
    label_set = make_label_set(labels, recording, config, source)
    by_group = split_labels_by_group(label_set, {group.name: group.reader for group in groups})
    return by_group, {"source": source, "interval_s": list(label_set.seconds())}


def discovered_labels(
    groups: Sequence[Group],
    config: Config,
    state: Unfinished,
    progress: ProgressCallback,
    looks: dict[str, FirstLook],
) -> tuple[dict[str, LabelSet], dict[str, Any]]:
    """Find the units of each group, or let another sorter find them; unit ids count through all groups.

    The labels are written to the output folder. A group whose labels are there is not sorted again.

    Raises
    ------
    BootstrapError
        If no unit is found in any group.
    """
    label_sets: dict[str, LabelSet] = {}
    sorter = config.bootstrap.bootstrap
    facts: dict[str, Any] = {"source": f"bootstrap {sorter}", "groups": {}}
    next_id = 0
    for index, group in enumerate(groups):
        told = _part(progress, (index, len(groups)), group, config)
        try:
            kept = _kept_labels(state, index, group)
            look = looks.pop(group.name, None)
            kept = kept or _bootstrap_group(state, index, group, config, (next_id, look), told)
        except BootstrapError as error:
            if len(groups) == 1:
                raise _with_log_kept(error, state.output / f"bootstrap_{sorter}.log") from error
            logger.info("group %s gives no labels: %s", group.name, error)  # the warning is that of learning
            facts["groups"][group.name] = {"error": str(error)}
            continue
        label_sets[group.name], facts["groups"][group.name] = kept
        next_id += label_sets[group.name].sorting.get_num_units()
        facts["interval_s"] = list(label_sets[group.name].seconds())
    if not label_sets:
        raise BootstrapError(
            f"{sorter} found no unit in any of the {len(groups)} groups",
            "at least one unit in one group",
            "give labels with --labels, or try another sorter with --bootstrap",
        )
    return label_sets, facts


def finds_own_units(inputs: Inputs, config: Config) -> bool:
    """Return whether Spikewise finds the units itself, in traces of the whole recording."""
    return inputs.labels is None and config.bootstrap.bootstrap == OWN_DISCOVERY


def size_of(recording: BaseRecording, num_units: int | None, labelled_s: float) -> expected_time.Size:
    """Return the size of the work on a recording, or on one of its groups."""
    rate = recording.get_sampling_frequency()
    return expected_time.Size(
        recording.get_num_channels(),
        recording.get_total_samples() / rate,
        rate,
        num_units,
        labelled_s,
        num_threads(),
    )


def _part(
    progress: ProgressCallback, place: tuple[int, int], group: Group, config: Config
) -> ProgressCallback:
    """Return the progress of finding the units of one of several groups; a single one has its own stages."""
    if place[1] == 1:
        return progress
    inner = expected_time.discovery_seconds(size_of(group.recording, None, 0), config)
    return PartOf(progress, FINDING_UNITS, place, f"group {group.name}", inner)


def _bootstrap_group(
    state: Unfinished,
    index: int,
    group: Group,
    config: Config,
    given: tuple[int, FirstLook | None],
    progress: ProgressCallback,
) -> tuple[LabelSet, dict[str, Any]]:
    """Find the units of a group, keep their labels, and return them as they are kept."""
    (first_id, look), seed = given, config.training.seed
    found, facts = (
        _own_labels(group, seed, progress, look)
        if config.bootstrap.bootstrap == OWN_DISCOVERY
        else _labels_of_sorter(state, group, config.bootstrap, seed, progress)
    )
    label_set = _renumber(found, first_id)
    folder = _labels_folder(state, group)
    partial = folder.with_name(f"{folder.name}.partial")
    with writing(state.output):
        for left in (partial, folder):  # left by a process that was ended
            shutil.rmtree(left, ignore_errors=True)
        label_set.sorting.save(folder=partial)
        sync_tree(partial)
        partial.rename(folder)
    interval = {name: getattr(label_set, name) for name in _INTERVAL}
    state.save({**interval, "facts": facts}, state.labels_name(index))
    return _kept_labels(state, index, group) or (label_set, facts)


def _labels_folder(state: Unfinished, group: Group) -> Path:
    """Return the folder of the bootstrap labels of a group; its name may come from an untrusted file."""
    return state.output / BOOTSTRAP_FOLDER / safe_name(group.name)


def _kept_labels(state: Unfinished, index: int, group: Group) -> tuple[LabelSet, dict[str, Any]] | None:
    """Return the labels of a group that an earlier process made with the bootstrap sorter, or None."""
    kept = state.read(state.labels_name(index))
    if kept is None:
        return None
    sorting = NumpyFolderSorting(_labels_folder(state, group))
    parts = kept.get("stretches")  # labels that an older version kept have none
    stretches = parts and tuple((start, stop) for start, stop in parts)
    lists = {"segment_starts": tuple(kept["segment_starts"]), "stretches": stretches}
    interval = {name: kept.get(name) for name in _INTERVAL} | lists
    return LabelSet(sorting=sorting, **interval), kept["facts"]


def _own_labels(
    group: Group, seed: int, progress: ProgressCallback, look: FirstLook | None
) -> tuple[LabelSet, dict[str, Any]]:
    """Find the units of a group in its traces; also return the facts.

    Raises
    ------
    BootstrapError
        If there is none.
    """
    started = time.perf_counter()
    positions = group.recording.get_channel_locations()
    found = discover_units(group.reader, positions, seed, progress, group.reader.motion, look)
    if not found.trains:
        raise BootstrapError(
            f"no unit was found in {found.facts['looked_at_s']:g} s of the recording",
            "a recording with units that fire",
            "check filter and channels with `spikewise info`, give labels with --labels, or try another "
            "sorter with --bootstrap",
        )
    seconds = round(time.perf_counter() - started, 3)
    facts = {"sorter": OWN_DISCOVERY, "sorter_version": __version__, "seconds": seconds, **found.facts}
    source = f"Spikewise on {found.facts['looked_at_s']:g} s of the whole recording"
    nothing = NumpySorting.from_unit_dict({}, group.recording.get_sampling_frequency())
    starts = segment_starts(group.recording)
    whole = LabelSet(nothing, 0, group.recording.get_total_samples(), source, starts, found.stretches)
    return relabelled(whole, found.trains), facts | {"num_units_kept": len(found.trains)}


def _labels_of_sorter(
    state: Unfinished, group: Group, config: BootstrapConfig, seed: int, progress: ProgressCallback
) -> tuple[LabelSet, dict[str, Any]]:
    """Let another sorter find the units of a group, and repair them; also return the facts."""
    from spikewise.discovery.bootstrap import bootstrap_labels  # only here: its imports take a second

    repaired = group.preprocessed.repaired
    progress(finding_with(config.bootstrap), 0, 1, f"in the first {config.bootstrap_s:g} s")
    bootstrap = bootstrap_labels(
        group.recording if repaired is None else repaired,
        config,
        group.preprocessed.recording,
        seed=seed,
        folder=state.output,
        silenced_channel_ids=group.preprocessed.silenced_channel_ids,
    )
    progress(CLEANING, 0, 1, f"of {bootstrap.num_found} units")
    cleaned, changes = clean_labels(bootstrap.label_set, group.reader)
    progress(CLEANING, 1, 1, f"{cleaned.sorting.get_num_units()} units")
    return cleaned, {
        "sorter": bootstrap.sorter,
        "sorter_version": bootstrap.sorter_version,
        "seconds": round(bootstrap.seconds, 3),
        "num_units_found": bootstrap.num_found,
        "num_units_kept": cleaned.sorting.get_num_units(),
        "num_units_split": changes["split"],
        "num_units_merged": changes["merged"],
        "dropped": bootstrap.dropped,
    }


def _with_log_kept(error: BootstrapError, log_file: Path) -> BootstrapError:
    """Copy the sorter's log out of the output folder, which may be removed; name the copy in the error."""
    if not log_file.exists():  # the sorter never ran
        return error
    try:
        kept = Path(tempfile.mkdtemp(prefix="spikewise-")) / log_file.name
        shutil.copy(log_file, kept)
    except OSError:
        logger.exception("the log of the sorter could not be kept")
        return error
    return BootstrapError(error.given, error.allowed, error.remedy.replace(str(log_file), str(kept)))


def _renumber(label_set: LabelSet, first_id: int) -> LabelSet:
    """Renumber the unit ids of a bootstrap, from `first_id` on."""
    if first_id == 0:
        return label_set
    ids = [first_id + index for index in range(label_set.sorting.get_num_units())]
    return dataclasses.replace(label_set, sorting=label_set.sorting.rename_units(ids))
