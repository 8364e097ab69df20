"""The settings of single-channel waveforms, each declared once.

Their conventions are those of :mod:`spikewise.settings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikewise.errors import SettingError
from spikewise.settings import Settings, setting


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
        None, "Name of the array that holds the labels in an .npz or .mat; default: labels"
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
    duration_s: float = setting(60.0, "Length", unit="s", minimum=1.0, maximum=3600.0)
    firing_rates_hz: tuple[float, ...] = setting(
        (20.0,), "Mean firing rate of the units: one for all, or one for each", unit="Hz", minimum=0.001
    )
    refractory_ms: float = setting(
        2.0, "Shortest time between two spikes of a unit", unit="ms", minimum=0.0, maximum=100.0
    )
    sampling_frequency: float = setting(
        24000.0, "Sampling frequency of the result", unit="Hz", minimum=4000.0, maximum=100000.0
    )
    num_samples: int = setting(64, "Samples of a spike, at that frequency", minimum=8, maximum=512)
    seed: int = setting(0, "Seed of everything random", minimum=0, maximum=2**31 - 1)
