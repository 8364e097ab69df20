"""Sort the single channels of a running stream, each with its own classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spikewise.core.errors import CheckpointError, SettingError
from spikewise.core.rates import is_same_rate, show_rate
from spikewise.core.untrusted import parsing
from spikewise.single_channel.classifier import WaveformClassifier, load_classifier
from spikewise.single_channel.config import SpikeDetectionConfig
from spikewise.single_channel.raw_channel import live_cut
from spikewise.sorting.live.block_sorter import SPIKE, BlockSorter, StreamLatency, check_gain
from spikewise.sorting.live.channel_peaks import ChannelPeaks, PeakCut, Peaks


class ChannelStreamSorter(BlockSorter):
    """Sorts single channels of a running stream of raw samples.

    The spikes are those of :func:`spikewise.sort_channel` with the live filter on the same samples
    (``detection=SpikeDetectionConfig(filter="live")``), for any cut into blocks. A gap ends a stretch, and
    the next one begins anew.

    Parameters
    ----------
    models : WaveformClassifier, str, Path, or mapping of int to these
        A classifier that was trained with the live filter, for a stream of one channel; or the classifiers of
        some columns of a stream, by the number of the column.
    num_columns : int, optional
        Columns of a block. Default: one more than the largest column with a model.
    gain_to_uV : float, optional
        Microvolts for one unit of the samples. Default: they have the units of the recording of the training.
    min_probability : float
        Leave out spikes whose unit is less probable than this.

    Attributes
    ----------
    unit_ids : list
        Id of each unit: ``unit_ids[unit_index]``. With several models it is ``COLUMN-ID``.
    sampling_frequency : float
        In Hz.
    num_columns : int
    latency : StreamLatency

    Raises
    ------
    CheckpointError
        If a model was not trained with the live filter, or the models do not fit together.
    SettingError
        If a setting is not allowed.
    """

    def __init__(
        self,
        models: WaveformClassifier | str | Path | Mapping[int, WaveformClassifier | str | Path],
        *,
        num_columns: int | None = None,
        gain_to_uV: float | None = None,
        min_probability: float = 0.0,
    ):
        given = models if isinstance(models, Mapping) else {0: models}
        self.models = {
            int(column): one if isinstance(one, WaveformClassifier) else load_classifier(one)
            for column, one in sorted(given.items())
        }
        if not self.models or min(self.models) < 0:
            raise SettingError("no model is given for a column", "columns from 0 on", "name one")
        self.num_columns = max(self.models) + 1 if num_columns is None else num_columns
        if max(self.models) >= self.num_columns:
            raise SettingError(
                f"a model is given for column {max(self.models)}",
                f"columns 0 to {self.num_columns - 1}",
                "correct the columns, or num_columns",
            )
        if not 0 <= min_probability <= 1:
            raise SettingError(
                f"the setting min_probability is {min_probability!r}", "from 0 to 1", "change it"
            )
        self._min_probability = min_probability
        self._used = np.array(list(self.models))
        rules = [_rule(column, model) for column, model in self.models.items()]
        self.sampling_frequency, self._cut = _common_cut(rules)
        check_gain(gain_to_uV)
        self._factors = _factors(self.models, gain_to_uV)
        self._thresholds = np.array([rule[2] for rule in rules])
        self._polarities = [rule[3] for rule in rules]
        counts = [len(model.unit_ids) for model in self.models.values()]
        self._first_units = np.cumsum([0, *counts])
        self.unit_ids: list[int | str] = [
            unit_id if len(self.models) == 1 else f"{column}-{unit_id}"
            for column, model in self.models.items()
            for unit_id in model.unit_ids
        ]
        self.latency = StreamLatency(
            self._cut.look_ahead,
            round(1000 * self._cut.look_ahead / self.sampling_frequency, 3),
            1,
            round(1000 * self._cut.delay / self.sampling_frequency, 3),
        )
        self._start = 0
        self._peaks = self._new_search()

    @property
    def num_samples(self) -> int:
        """Samples so far, missing ones included: the index of the next sample."""
        return self._start + self._peaks.num_samples

    @property
    def main_columns(self) -> np.ndarray:
        """Column (num_units,) of each unit."""
        return np.repeat(self._used, np.diff(self._first_units))

    def warm_up(self, dtype: str) -> None:
        """Run all loops and each network once, which takes longer the first time."""
        search = self._new_search()
        search.push(np.zeros((self._cut.look_ahead + self._cut.history, len(self._used))))
        _ = search.end(), self._cut.operators
        for model in self.models.values():
            model.classify(np.ones((1, model.num_samples), np.float32), one_by_one=True)

    def flush(self) -> np.ndarray:
        """Return the rest of the spikes, as at the end of a recording; a later block begins a new stretch."""
        rest = self._classified(self._peaks.end())
        self._start, self._peaks = self.num_samples, self._new_search()
        return rest

    def noise(self) -> float:
        """Return the noise of the last samples as a multiple of that of the training."""
        return self._peaks.noise_ratio(self._multiples())

    def hash(self) -> str:
        """Return the SHA-256 of all models and their columns."""
        text = ",".join(f"{column}:{model.hash()}" for column, model in self.models.items())
        return hashlib.sha256(text.encode()).hexdigest()

    def _multiples(self) -> np.ndarray:
        """Return the thresholds (num_models,) as multiples of the noise of the training."""
        configs = (_detection(model) for model in self.models.values())
        return np.array([config.detection_threshold for config in configs])

    def _push(self, block: np.ndarray) -> np.ndarray:
        return self._classified(self._peaks.push(block[:, self._used] * self._factors))

    def _new_search(self) -> ChannelPeaks:
        return ChannelPeaks(self._cut, self._thresholds, self._polarities)

    def _classified(self, peaks: Peaks) -> np.ndarray:
        """Return the spikes of peaks; each waveform is classified alone, so that its numbers never change."""
        found = np.empty(len(peaks.sample_index), SPIKE)
        kept = np.zeros(len(found), bool)
        for row, (sample, channel) in enumerate(
            zip(peaks.sample_index.tolist(), peaks.channel_index.tolist(), strict=True)
        ):
            model = self.models[int(self._used[channel])]
            one = model.classify(peaks.waveforms[row : row + 1], self._min_probability, one_by_one=True)
            unit = int(one.unit_index[0])
            kept[row] = unit >= 0
            found[row] = sample + self._start, self._first_units[channel] + unit, one.probability[0]
        return found[kept]


def _detection(model: WaveformClassifier) -> SpikeDetectionConfig:
    return SpikeDetectionConfig.from_dict(model.facts["live"]["detection"])


def _factors(models: Mapping[int, WaveformClassifier], gain_to_uV: float | None) -> np.ndarray:
    """Return by what the samples (num_models,) are multiplied to have the unit of each model's training."""
    if gain_to_uV is None:
        return np.ones(len(models))
    gains = [model.facts["live"].get("gain_to_uV") for model in models.values()]
    return np.array([1.0 if gain is None else gain_to_uV / float(gain) for gain in gains])


def _rule(column: int, model: WaveformClassifier) -> tuple[float, PeakCut, float, str]:
    """Return rate, cut, threshold and polarity of a model; raise unless its filter was live."""
    if "live" not in model.facts or model.sampling_frequency is None:
        raise CheckpointError(
            f"the model of column {column} was trained with the zero-phase filter, which needs later samples",
            "a model of the live filter",
            "train one with: spikewise waveforms sort --filter live",
        )

    def damaged(reason: str) -> CheckpointError:
        return CheckpointError(
            f"what the model of column {column} tells of its detection cannot be used: {reason}",
            "a model as `spikewise waveforms sort --filter live` writes it",
            "train it again",
        )

    with parsing(damaged):
        live = model.facts["live"]
        threshold, polarity = float(live["threshold"]), str(live["polarity"])
        cut = live_cut(model.sampling_frequency, _detection(model))
        if not 0 < threshold < np.inf or polarity not in ("negative", "positive", "both"):
            raise ValueError(f"its threshold is {threshold}, its polarity {polarity}")
        if cut.before + cut.after != model.num_samples:
            raise ValueError("its waveforms have another length")
        return model.sampling_frequency, cut, threshold, polarity


def _common_cut(rules: list[tuple[float, PeakCut, float, str]]) -> tuple[float, PeakCut]:
    """Return the rate and the cut that all models share."""
    rate, cut = rules[0][:2]
    for other_rate, other, _, _ in rules[1:]:
        if not is_same_rate(rate, other_rate):
            raise CheckpointError(
                f"the models were trained at {show_rate(rate)} and {show_rate(other_rate)}",
                "models of one stream",
                "train them on recordings of this stream",
            )
        if (other.band_hz, other.refractory, other.before, other.after, other.upsampling) != (
            cut.band_hz,
            cut.refractory,
            cut.before,
            cut.after,
            cut.upsampling,
        ):
            raise CheckpointError(
                "the models were trained with different settings of detection",
                "one band, refractory time and length of the waveforms",
                "train them with the same settings",
            )
    return rate, cut
