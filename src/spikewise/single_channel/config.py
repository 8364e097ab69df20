"""The settings of single-channel sorting, each declared once.

Their conventions are those of :mod:`spikewise.core.settings`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from spikewise.core.errors import SettingError
from spikewise.core.settings import Settings, check_interval, setting


@dataclass(frozen=True)
class SnippetsConfig(Settings):
    """How a file of waveforms is read. Most formats hold all of this themselves."""

    sampling_frequency: float | None = setting(
        None, "Sampling frequency, if the file does not hold it", unit="Hz", minimum=100.0
    )
    waveforms_key: str | None = setting(
        None, "Name of the array that holds the waveforms in an .npz or .mat; default: waveforms or spikes"
    )
    labels_key: str | None = setting(
        None,
        "Name of the array that holds the labels in an .npz or .mat, or of the column in a table, "
        "or its position, from 0, in a table without names; default: labels",
    )
    num_samples: int = setting(
        64, "Samples cut at each true spike of a Wave_Clus simulation, from its first sample on", minimum=8
    )


@dataclass(frozen=True)
class SpikeDetectionConfig(Settings):
    """How spikes are found in the raw signal of one channel, as wave_clus does (Quiroga et al. 2004)."""

    freq_min_hz: float = setting(300.0, "Lower edge of the band-pass", unit="Hz", minimum=0.1)
    freq_max_hz: float = setting(
        3000.0, "Upper edge of the band-pass; at most 0.45 of the sampling frequency is used", unit="Hz"
    )
    filter: Literal["zero-phase", "live"] = setting(
        "zero-phase",
        "How the band-pass runs. zero-phase: forward and backward, so it needs later samples. live: with a "
        "look-ahead of 1 ms, for models that sort a running stream (spikewise waveforms stream)",
    )
    detection_threshold: float = setting(
        4.0, "Threshold, in standard deviations of the noise, median(|x|) / 0.6745", minimum=1.0, maximum=50.0
    )
    polarity: Literal["auto", "negative", "positive", "both"] = setting(
        "auto", "Direction of the peaks; auto: the direction of most of the larger peaks"
    )
    refractory_ms: float = setting(
        1.5, "Among peaks closer than this, keep the largest", unit="ms", minimum=0.0, maximum=10.0
    )
    before_ms: float = setting(
        20 / 24, "Length of a waveform before its peak", unit="ms", minimum=0.1, maximum=5.0
    )
    after_ms: float = setting(
        44 / 24, "Length of a waveform after its peak, the peak included", unit="ms", minimum=0.1, maximum=5.0
    )
    upsampling: int = setting(
        5, "Points per sample at which the exact peak is searched", minimum=1, maximum=20
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

    shapes: str | None = setting(
        None,
        "File of mean waveforms to draw from: an .npz or .npy with a waveform per row",
    )
    difficulty: Literal["easy1", "easy2", "difficult1", "difficult2"] | None = setting(
        None, "How similar the units' shapes are; default: shapes drawn at random"
    )
    num_units: int = setting(3, "Number of units", minimum=2, maximum=20)
    noise_level: float = setting(
        0.1, "Standard deviation of the noise, relative to the spikes' peak", minimum=0.0, maximum=2.0
    )
    noise_widening: float | None = setting(
        None,
        "How many times longer the shapes in the noise are than those of the units; default: the factor that "
        "gives the noise the spectrum of the public files, 2.2, or 1.2 with the built-in shapes",
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
    """How the waveform classifier is trained. A value that is not given comes from the preset."""

    preset: Literal["default", "paper"] = setting(
        "default", "Named set of training settings; paper: the network as published (Li et al. 2020)"
    )
    features: tuple[int, int, int, int] | None = setting(
        None, "Number of features of the four convolutions", minimum=1, maximum=1024
    )
    hidden: tuple[int, int] | None = setting(
        None, "Sizes of the two fully connected layers", minimum=1, maximum=10000
    )
    dropout: float | None = setting(
        None, "Fraction of the features dropped before the fully connected layers", minimum=0.0, maximum=0.9
    )
    epochs: int | None = setting(None, "Number of training epochs", minimum=1)
    windows_per_epoch: int | None = setting(
        None, "Waveforms drawn per epoch; 0: each labelled waveform once", minimum=0
    )
    batch_size: int | None = setting(None, "Waveforms in a batch", minimum=2)
    learning_rate: float | None = setting(None, "Largest learning rate of Adam", minimum=0.0)
    schedule: Literal["constant", "one-cycle"] | None = setting(None, "Course of the learning rate")
    generated: float | None = setting(
        None,
        "Fraction of the drawn waveforms that are synthetic: a unit's mean plus noise like the measured",
        minimum=0.0,
        maximum=1.0,
    )
    generated_labels: int | None = setting(
        None,
        "A unit with more labels gets fewer synthetic waveforms, in inverse proportion",
        minimum=1,
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
    whiten: bool | None = setting(None, "Whiten the noise of the waveforms before the first convolution")
    calibration_fraction: float = setting(
        0.2,
        "Fraction of each unit's labels, the last ones, that a first training leaves out to calibrate the "
        "probabilities; 0: no calibration",
        minimum=0.0,
        maximum=0.5,
    )
    seed: int = setting(0, "Seed of everything random", minimum=0, maximum=2**31 - 1)

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
        "Without labels: length of the first stretch of the signal, whose spikes are clustered",
        unit="s",
        minimum=1.0,
    )
    max_units: int = setting(10, "Without labels: largest number of units to find", minimum=1, maximum=50)
    min_probability: float = setting(
        0.0,
        "Leave a spike unsorted if its unit is less probable than this",
        minimum=0.0,
        maximum=1.0,
    )

    def _check_together(self) -> None:
        check_interval(self.label_interval, "label_interval")
