"""Sort a running stream with a model: the same spikes as those of the offline sort, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spikewise.core.errors import CheckpointError, SettingError
from spikewise.core.files import replacing
from spikewise.core.untrusted import load_npz, parsing
from spikewise.data.recordings.conditioning import LiveBand
from spikewise.data.recordings.live_conditioning import LiveConditioner
from spikewise.data.recordings.preprocessing import (
    MAX_OF_SAMPLING_FREQUENCY,
    gains_of_noise,
    referenced_channels,
)
from spikewise.models.checkpoint import GroupModel, Model, load_model
from spikewise.sorting.live.block_sorter import SPIKE, BlockSorter, StreamLatency, check_gain
from spikewise.sorting.live.group_stream import GroupStream
from spikewise.sorting.owner.group_finder import decision_of
from spikewise.sorting.owner.search import OwnerRule
from spikewise.sorting.sparse_detector import SparseDetector, network_with_gates
from spikewise.sorting.spikes import Spikes

STATE_VERSION = 2
_NOISE_CHANNELS = 32
"""Most channels of which the noise is measured; chosen by hand."""


class StreamSorter(BlockSorter):
    """Sorts a running stream of raw samples.

    The spikes are exactly those of ``spikewise.sort(recording, model=model)`` for a recording of the same
    samples, for any cut into blocks. A gap, where samples are missing, ends a stretch: the samples before and
    after it are sorted as two segments of a recording are. So a gap adds no spike.

    Parameters
    ----------
    model : Model, str or Path
        A model that was trained with ``filter="live"``, or its path.
    channel_ids : sequence of str, optional
        Names of the columns that are pushed; columns that the model does not know are ignored. Default: the
        columns are the model's channels, group after group.
    gain_to_uV : float, optional
        Microvolts for one unit of the samples, if it differs from that of the recording of the training.
        Negative: the samples are inverted. Default: the samples have the units of that recording.
    threshold : float, optional
        One threshold for all units in place of those of the model.
    explain : bool
        Let the traces decide where several units may have fired, as in a sort; a spike is then certain later.

    Attributes
    ----------
    model : Model
    unit_ids : list
        Id of each unit: ``unit_ids[unit_index]``.
    num_columns : int
        Columns of a block.
    num_samples : int
        Samples so far, missing ones included: the index of the next sample.
    latency : StreamLatency

    Raises
    ------
    CheckpointError
        If the model cannot sort a stream, or its channels are not among the names.
    SettingError
        If the gain or the threshold is not allowed.
    """

    def __init__(
        self,
        model: Model | str | Path,
        *,
        channel_ids: Sequence[str] | None = None,
        gain_to_uV: float | None = None,
        threshold: float | None = None,
        explain: bool = True,
    ):
        self.model = model if isinstance(model, Model) else load_model(model)
        _check_is_live(self.model)
        check_gain(gain_to_uV)
        if threshold is not None and not 0 < threshold < 1:
            raise SettingError(
                f"the setting threshold is {threshold!r}", "it must lie between 0 and 1", "change it"
            )
        self.unit_ids = self.model.unit_ids
        self._names = (
            [name for group in self.model.groups for name in group.channel_ids]
            if channel_ids is None
            else [str(name) for name in channel_ids]
        )
        self.num_columns = len(self._names)
        self._columns = _columns_of_groups(self.model, self._names, channel_ids is None)
        self._used = np.unique(
            np.concatenate([_used(*pair) for pair in zip(self.model.groups, self._columns, strict=True)])
        )
        self._gain_to_uV = gain_to_uV
        parts = [_finders(group, self.model, explain, threshold) for group in self.model.groups]
        self._detectors, self._rules = [part[0] for part in parts], [part[1] for part in parts]
        self._first_units = np.cumsum([0] + [len(group.unit_ids) for group in self.model.groups])
        self._begin_stretch(0)
        one = self._streams[0]
        self.latency = StreamLatency(
            one.look_ahead,
            round(1000 * one.look_ahead / self.model.sampling_frequency, 3),
            self._detectors[0].block,
        )

    @property
    def num_samples(self) -> int:
        """Samples so far, missing ones included: the index of the next sample."""
        return self._start + self._streams[0].num_samples

    @property
    def main_columns(self) -> np.ndarray:
        """Column (num_units,) of the channel that is nearest to each unit."""
        return np.concatenate(
            [
                columns[detector.network.channel_index[:, 0].numpy()]
                for detector, columns in zip(self._detectors, self._columns, strict=True)
            ]
        )

    def warm_up(self, dtype: str) -> None:
        """Compile all that :meth:`push` needs for a type of samples, which takes seconds the first time."""
        for stream in self._new_streams():
            stream.warm_up(self._checked(np.zeros((1000, self.num_columns), dtype)))

    def flush(self) -> np.ndarray:
        """Return the rest of the spikes, as at the end of a recording; a later block begins a new stretch."""
        rest = self._joined([stream.end() for stream in self._streams])
        self._begin_stretch(self.num_samples)
        return rest

    def noise(self) -> float:
        """Return the noise of the last samples as a multiple of that of the training; NaN if it is not known.

        It is the median over at most 32 channels. A value far from 1 is a sign of samples in another unit.
        """
        ratios = []
        for stream, group in zip(self._streams, self.model.groups, strict=True):
            used = np.flatnonzero(~np.isin(group.channel_ids, group.silenced_channel_ids))
            step = -(-len(used) * len(self._streams) // _NOISE_CHANNELS)
            ratios.append(stream.noise(used[:: max(1, step)]))
        return float(np.median(ratios))

    def save_state(self, path: str | Path) -> None:
        """Write all that the next spikes depend on into a file (.npz), so that another process can go on.

        Raises
        ------
        OutputError
            If the file cannot be written.
        """
        arrays = {
            f"{index}.{name}": value
            for index, stream in enumerate(self._streams)
            for name, value in stream.state().items()
        }
        with replacing(Path(path)) as partial, open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, start=self._start, made_for=self._made_for(), **arrays)

    def load_state(self, path: str | Path) -> None:
        """Go on from a file of :meth:`save_state`: the next block is the one that would have followed there.

        Raises
        ------
        CheckpointError
            If the file is damaged, or was written with another model or other settings.
        """
        path = Path(path)
        with parsing(lambda reason: _wrong_state(path, reason)):
            arrays = load_npz(path)
            if str(arrays["made_for"]) != str(self._made_for()):
                raise ValueError("it belongs to another model, or to other settings")
            streams = self._new_streams()
            for index, stream in enumerate(streams):
                prefix = f"{index}."
                stream.restore({n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)})
            self._start, self._streams = int(arrays["start"]), streams

    def _made_for(self) -> np.ndarray:
        """Return what a state belongs to, as text."""
        thresholds = [detector.thresholds.tobytes().hex() for detector in self._detectors]
        explained = [rule is not None for rule in self._rules]
        facts = STATE_VERSION, self.model.hash(), self._names, self._gain_to_uV, thresholds, explained
        return np.array(repr(facts))

    def _begin_stretch(self, start: int) -> None:
        """Begin anew at a sample."""
        self._start, self._streams = start, self._new_streams()

    def _new_streams(self) -> list[GroupStream]:
        parts = zip(self._detectors, self._rules, self.model.groups, self._columns, strict=True)
        return [
            GroupStream(detector, self._conditioner(group, columns), rule)
            for detector, rule, group, columns in parts
        ]

    def _conditioner(self, group: GroupModel, columns: np.ndarray) -> LiveConditioner:
        config, rate, noise = self.model.preprocessing_config, self.model.sampling_frequency, group.noise
        if noise is None:  # checked before
            raise ValueError("the model has no noise")
        gains_to_uV = None if self._gain_to_uV is None else np.full(len(columns), self._gain_to_uV)
        is_good = ~np.isin(group.channel_ids, group.silenced_channel_ids)
        band_hz = config.freq_min_hz, min(config.freq_max_hz, MAX_OF_SAMPLING_FREQUENCY * rate)
        return LiveConditioner(
            LiveBand.of(band_hz, rate),
            columns,
            is_good,
            referenced_channels(is_good, config.common_reference),
            gains_of_noise(noise.in_units_of(gains_to_uV), is_good),
        )

    def _push(self, block: np.ndarray) -> np.ndarray:
        return self._joined([stream.push(block) for stream in self._streams])

    def _joined(self, of_groups: list[Spikes]) -> np.ndarray:
        """Join the spikes of the groups, in order of time, then unit."""
        joined = np.empty(sum(map(len, of_groups)), SPIKE)
        at = 0
        for spikes, first_unit in zip(of_groups, self._first_units, strict=False):
            part = joined[at : at + len(spikes)]
            part["sample_index"] = spikes.sample_index + self._start
            part["unit_index"] = spikes.unit_index + first_unit
            part["response"] = spikes.response
            at += len(spikes)
        if len(of_groups) > 1:
            joined = joined[np.lexsort((joined["unit_index"], joined["sample_index"]))]
        return joined


def _check_is_live(model: Model) -> None:
    """Raise unless a model can sort a stream."""
    is_live = model.preprocessing_config.filter == "live"
    if not is_live or any(group.noise is None for group in model.groups):
        raise CheckpointError(
            "the model was trained with the zero-phase filter, which needs later samples",
            "a model of the live filter",
            "train one with --filter live (in Python: filter='live')",
        )
    for group in model.groups:
        if network_with_gates(group.network, model.sampling_frequency, model.detection_config) is None:
            raise CheckpointError(
                f"the model has the design {model.network_config.design}, and its window is "
                f"{model.network_config.window_ms:g} ms long",
                "the design neighbourhood with a window of 1.1 ms or more",
                "train a model with the default design and window",
            )


def _columns_of_groups(model: Model, names: Sequence[str], is_default: bool) -> list[np.ndarray]:
    """Return the columns (num_channels,) of the channels of each group."""
    if is_default:
        ends = np.cumsum([len(group.channel_ids) for group in model.groups])
        return [
            np.arange(end - len(group.channel_ids), end)
            for group, end in zip(model.groups, ends, strict=True)
        ]
    places = {name: index for index, name in enumerate(names)}
    missing = [name for group in model.groups for name in group.channel_ids if name not in places]
    if missing or len(places) < len(names):
        raise CheckpointError(
            f"{len(missing)} channels of the model are not in the stream: {', '.join(missing[:10])}"
            if missing
            else "two columns of the stream have the same name",
            f"all {sum(len(group.channel_ids) for group in model.groups)} channels of the model, each once",
            "send these channels, or give their names in channel_ids in the order of the columns",
        )
    return [np.array([places[name] for name in group.channel_ids]) for group in model.groups]


def _used(group: GroupModel, columns: np.ndarray) -> np.ndarray:
    return columns[~np.isin(group.channel_ids, group.silenced_channel_ids)]


def _finders(
    group: GroupModel, model: Model, explain: bool, threshold: float | None
) -> tuple[SparseDetector, OwnerRule | None]:
    """Return what finds the peaks of a group, and by which rule the traces decide about them."""
    network = network_with_gates(group.network, model.sampling_frequency, model.detection_config)
    if network is None:  # checked before
        raise ValueError("the network has no gates")
    _, rule, lowest = decision_of(group, model, explain, threshold)
    return SparseDetector(network, lowest, model.sampling_frequency, model.detection_config), rule


def _wrong_state(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the state {path} cannot be used: {reason}",
        "a state that the same model wrote with the same settings",
        "begin without it, or give the model and the settings of that stream",
    )
