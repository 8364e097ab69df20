"""Settings of what comes in: recording, preprocessing, labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikewise.core.errors import SettingError
from spikewise.core.settings import Settings, check_interval, setting

Bootstrap = Literal["lupin", "tridesclous2", "spykingcircus2", "kilosort4"]


@dataclass(frozen=True)
class RecordingConfig(Settings):
    """How a recording is read. Most formats tell all of this themselves."""

    format: str | None = setting(None, "Format of the recording; found from the path if not given")
    stream: str | None = setting(None, "Name of the stream to sort, where a file holds several")
    sampling_frequency: float | None = setting(
        None, "Sampling frequency of a raw binary file or an array", unit="Hz", minimum=100.0
    )
    num_channels: int | None = setting(None, "Number of channels of a raw binary file", minimum=1)
    dtype: str | None = setting(None, "Type of the samples of a raw binary file, for example int16")
    gain_to_uV: float | None = setting(None, "Microvolts for each step of a raw binary file or an array")
    probe: str | None = setting(
        None, "Probe: a probeinterface file, or a name such as neuropixels-1.0, tetrode, linear-16"
    )


@dataclass(frozen=True)
class PreprocessingConfig(Settings):
    """What is done to the traces before the network sees them."""

    bandpass: bool = setting(True, "Band-pass filter the traces")
    freq_min_hz: float = setting(300.0, "Lower edge of the band-pass", unit="Hz", minimum=0.1)
    freq_max_hz: float = setting(
        6000.0, "Upper edge of the band-pass; lowered to 0.45 of the sampling frequency if above", unit="Hz"
    )
    common_reference: Literal["auto", "median", "none"] = setting(
        "auto",
        "Subtract the median over the channels; auto: where a group has 16 channels or more, "
        "since on fewer the median takes the spikes away",
    )
    bad_channels: Literal["detect", "keep"] = setting(
        "detect", "Find dead and noisy channels and silence them, or keep every channel"
    )
    exclude_channels: tuple[str, ...] = setting((), "Ids of channels to silence")
    unusable_channels: Literal["stop", "silence"] = setting(
        "stop", "Stop at channels that are constant, NaN or infinite, or silence them and go on"
    )
    group_by: Literal["auto", "none"] = setting(
        "auto", "Sort each probe, shank or group on its own (auto), or all channels together (none)"
    )

    def _check_together(self) -> None:
        if self.freq_max_hz <= self.freq_min_hz:
            raise SettingError(
                f"the band-pass goes from {self.freq_min_hz:g} to {self.freq_max_hz:g} Hz",
                "the upper edge must lie above the lower",
                "change freq_min_hz or freq_max_hz",
            )


@dataclass(frozen=True)
class LabelsConfig(Settings):
    """Which labels train the network."""

    label_interval: tuple[float, float] | None = setting(
        None,
        "Start and end of the time in which the labels are complete; default: first to last label",
        unit="s",
    )
    labels_per_unit: int | None = setting(
        None, "Use only the first so many spikes of each unit as positive examples", minimum=1
    )

    def _check_together(self) -> None:
        check_interval(self.label_interval, "label_interval")


@dataclass(frozen=True)
class BootstrapConfig(Settings):
    """How labels are made where none are given: a sorter on the initial interval, cleaned."""

    bootstrap: Bootstrap = setting("lupin", "Sorter that makes the labels where none are given")
    bootstrap_s: float = setting(
        60.0, "Length of the initial interval that it sorts, or as much as there is", unit="s", minimum=2.0
    )
    bootstrap_min_spikes: int = setting(10, "Drop a unit with fewer spikes", minimum=2)
    bootstrap_max_violations: float = setting(
        0.1,
        "Drop a unit of which a larger fraction of spikes follows another within 1.5 ms",
        minimum=0.0,
        maximum=1.0,
    )
    bootstrap_min_amplitude: float = setting(
        2.5, "Drop a unit whose mean waveform peaks lower", unit="noise standard deviations", minimum=0.0
    )
    bootstrap_max_agreement: float = setting(
        0.5,
        "Of two units that share a larger fraction of their spikes (tp / (tp + fp + fn)), drop the smaller",
        minimum=0.0,
        maximum=1.0,
    )
