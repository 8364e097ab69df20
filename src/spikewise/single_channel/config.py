"""The settings of single-channel waveforms, each declared once.

Their conventions are those of :mod:`spikewise.core.settings`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from spikewise.core.errors import SettingError
from spikewise.core.settings import Settings, setting


@dataclass(frozen=True)
class SnippetsConfig(Settings):
    """How a file of waveforms is read. Most formats tell all of this themselves."""

    sampling_frequency: float | None = setting(
        None, "Sampling frequency, where the file does not tell it", unit="Hz", minimum=100.0
    )
    waveforms_key: str | None = setting(
        None, "Name of the array that holds the waveforms in an .npz or .mat; default: waveforms or spikes"
    )
    labels_key: str | None = setting(
        None,
        "Name of the array that holds the labels in an .npz or .mat, or of the column in a table, "
        "or its position in a table without names; default: labels",
    )
    num_samples: int = setting(
        64, "Samples cut at each true spike of a Wave_Clus simulation, from its first sample on", minimum=8
    )


@dataclass(frozen=True)
class SpikeDetectionConfig(Settings):
    """How spikes are found in a raw single channel: as wave_clus does (Quiroga et al. 2004)."""

    freq_min_hz: float = setting(300.0, "Lower edge of the band-pass", unit="Hz", minimum=0.1)
    freq_max_hz: float = setting(
        3000.0, "Upper edge of the band-pass; lowered to 0.45 of the sampling frequency if above", unit="Hz"
    )
    detection_threshold: float = setting(
        4.0, "Threshold, in standard deviations of the noise, median(|x|) / 0.6745", minimum=1.0, maximum=50.0
    )
    polarity: Literal["auto", "negative", "positive", "both"] = setting(
        "auto", "Direction of the peaks; auto: that in which the larger ones point"
    )
    refractory_ms: float = setting(
        1.5, "Of peaks this close, keep the largest", unit="ms", minimum=0.0, maximum=10.0
    )
    before_ms: float = setting(
        20 / 24, "Length of a waveform before its peak", unit="ms", minimum=0.1, maximum=5.0
    )
    after_ms: float = setting(
        44 / 24, "Length of a waveform from its peak on", unit="ms", minimum=0.1, maximum=5.0
    )
    upsampling: int = setting(
        5, "Points for each sample among which the peak is looked for", minimum=1, maximum=20
    )

    def _check_together(self) -> None:
        if self.freq_max_hz <= self.freq_min_hz:
            raise SettingError(
                f"the band-pass goes from {self.freq_min_hz:g} to {self.freq_max_hz:g} Hz",
                "the upper edge must lie above the lower",
                "change freq_min_hz or freq_max_hz",
            )


@dataclass(frozen=True)
class WaveClusConfig(Settings):
    """A single-channel simulation in the manner of Wave_Clus (Quiroga et al. 2004)."""

    shapes: str | None = setting(None, "File of mean waveforms to draw from: an .npz or .npy, a row each")
    difficulty: Literal["easy1", "easy2", "difficult1", "difficult2"] | None = setting(
        None, "How alike the units' shapes are; default: units drawn at random"
    )
    num_units: int = setting(3, "Number of units", minimum=2, maximum=20)
    noise_level: float = setting(
        0.1, "Standard deviation of the noise, relative to the spikes' peak", minimum=0.0, maximum=2.0
    )
    noise_widening: float | None = setting(
        None,
        "How many times longer the shapes are that the noise is made of; default: as many as give it the "
        "spectrum of the public files, 2.2, or 1.2 with the shapes built in",
        minimum=1.0,
        maximum=10.0,
    )
    duration_s: float = setting(60.0, "Length", unit="s", minimum=1.0, maximum=3600.0)
    firing_rates_hz: tuple[float, ...] = setting(
        (20.0,),
        "Mean firing rate of the units: one for all, or one for each",
        unit="Hz",
        minimum=0.001,
        maximum=1000.0,
    )
    refractory_ms: float = setting(
        2.0, "Shortest time between two spikes of a unit", unit="ms", minimum=0.0, maximum=100.0
    )
    sampling_frequency: float = setting(
        24000.0, "Sampling frequency of the result", unit="Hz", minimum=4000.0, maximum=100000.0
    )
    num_samples: int = setting(64, "Samples of a spike, at that frequency", minimum=8, maximum=512)
    seed: int = setting(0, "Seed of everything random", minimum=0, maximum=2**31 - 1)


@dataclass(frozen=True)
class WaveformTrainingConfig(Settings):
    """How the waveform classifier is trained. A value that is not given is that of the preset."""

    preset: Literal["default", "paper"] = setting(
        "default", "Named set of training settings; paper: the network as published (Li et al. 2020)"
    )
    features: tuple[int, int, int, int] | None = setting(
        None, "Features of the four convolutions", minimum=1, maximum=1024
    )
    hidden: tuple[int, int] | None = setting(
        None, "Sizes of the two fully connected layers", minimum=1, maximum=10000
    )
    dropout: float | None = setting(
        None, "Fraction of the features left out before the fully connected layers", minimum=0.0, maximum=0.9
    )
    epochs: int | None = setting(None, "Number of passes", minimum=1)
    windows_per_epoch: int | None = setting(
        None, "Waveforms drawn in a pass; 0: each labelled one once", minimum=0
    )
    batch_size: int | None = setting(None, "Waveforms in a batch", minimum=2)
    learning_rate: float | None = setting(None, "Largest step size of Adam", minimum=0.0)
    schedule: Literal["constant", "one-cycle"] | None = setting(None, "Course of the learning rate")
    generated: float | None = setting(
        None,
        "Fraction of the drawn waveforms that are made: a unit's mean on noise of the measured spectrum",
        minimum=0.0,
        maximum=1.0,
    )
    generated_labels: int | None = setting(
        None, "Labels of a unit from which on that fraction falls, in inverse proportion", minimum=1
    )
    overlaps: float | None = setting(
        None, "Fraction of the drawn waveforms to which another unit is added", minimum=0.0, maximum=1.0
    )
    shift: float | None = setting(
        None, "Largest shift of a drawn waveform, as a fraction of its length", minimum=0.0, maximum=0.25
    )
    amplitude_std: float | None = setting(
        None, "Spread of the amplitude of a drawn waveform, as a fraction", minimum=0.0, maximum=0.5
    )
    whiten: bool | None = setting(None, "Let the network see waveforms whose noise is white")
    label_smoothing: float | None = setting(
        None, "Share of a label that is given to all units alike", minimum=0.0, maximum=0.5
    )
    calibration_fraction: float = setting(
        0.2,
        "Fraction of each unit's labels, the last ones, that a first training leaves out to calibrate the "
        "probabilities; 0 leaves them as they are",
        minimum=0.0,
        maximum=0.5,
    )
    seed: int = setting(0, "Seed of everything random", minimum=0, maximum=2**31 - 1)

    @property
    def patience(self) -> int:
        """Epochs without improvement after which training stops: never, since no loss is held out."""
        return 0

    def resolved(self) -> WaveformTrainingConfig:
        """Return a copy in which every value that was not given is that of the preset."""
        preset = WAVEFORM_PRESETS[self.preset]
        missing = {name: value for name, value in preset.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)


WAVEFORM_PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "features": (16, 32, 32, 64),
        "hidden": (100, 50),
        "dropout": 0.3,
        "epochs": 10,
        "windows_per_epoch": 3200,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "schedule": "one-cycle",
        "generated": 0.7,
        "generated_labels": 50,
        "overlaps": 0.5,
        "shift": 1 / 256,
        "amplitude_std": 0.05,
        "whiten": True,
        "label_smoothing": 0.0,
    },
    "paper": {
        "features": (32, 64, 64, 64),
        "hidden": (300, 100),
        "dropout": 0.5,
        "epochs": 50,
        "windows_per_epoch": 0,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "generated": 0.0,
        "generated_labels": 1,
        "overlaps": 0.0,
        "shift": 0.0,
        "amplitude_std": 0.0,
        "whiten": False,
        "label_smoothing": 0.0,
    },
}


@dataclass(frozen=True)
class ChannelSortingConfig(Settings):
    """How a single channel is sorted."""

    channel: str | None = setting(None, "Id of the channel to sort, where the recording has several")
    label_interval: tuple[float, float] | None = setting(
        None,
        "Start and end of the time in which the labels are complete; default: first to last label",
        unit="s",
    )
    stretch_s: float = setting(
        60.0,
        "Without labels: length of the first stretch, or as much as there is, whose spikes are clustered",
        unit="s",
        minimum=1.0,
    )
    max_units: int = setting(10, "Without labels: largest number of units", minimum=1, maximum=50)
    min_probability: float = setting(
        0.0, "Leave a spike unsorted whose unit is less probable", minimum=0.0, maximum=1.0
    )

    def _check_together(self) -> None:
        if self.label_interval is not None and not 0 <= self.label_interval[0] < self.label_interval[1]:
            raise SettingError(
                f"the label interval is {self.label_interval[0]:g} to {self.label_interval[1]:g} s",
                "it must start at 0 or later and end after its start",
                "give label_interval as START END in seconds",
            )
