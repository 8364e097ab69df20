"""Settings of what comes in: recording, preprocessing, labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikewise.core.errors import SettingError
from spikewise.core.settings import Settings, check_interval, setting

Bootstrap = Literal["spikewise", "lupin", "tridesclous2", "spykingcircus2", "kilosort4"]


@dataclass(frozen=True)
class RecordingConfig(Settings):
    """How a recording is read. Most file formats need none of these settings."""

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
    clock: Literal["auto", "ignore"] = setting(
        "auto",
        "Times of the samples, where a file has them. auto: labels and exports use them, and their jumps "
        "count as damage; ignore: samples are counted from the first time",
    )


@dataclass(frozen=True)
class PreprocessingConfig(Settings):
    """What is done to the traces before the network sees them."""

    bandpass: bool = setting(True, "Band-pass filter the traces")
    freq_min_hz: float = setting(300.0, "Lower edge of the band-pass", unit="Hz", minimum=0.1)
    freq_max_hz: float = setting(
        6000.0, "Upper edge of the band-pass; at most 0.45 of the sampling frequency is used", unit="Hz"
    )
    filter: Literal["zero-phase", "live"] = setting(
        "zero-phase",
        "How the band-pass runs. zero-phase: forward and backward, so it needs later samples. live: forward "
        "only, for models that sort a running stream (spikewise stream); damage is not bridged, and the "
        "noise by which channels are divided is the one that the model learnt",
    )
    common_reference: Literal["auto", "median", "none"] = setting(
        "auto",
        "Subtract the median over the channels. auto: only if a group has 16 channels or more, "
        "because with fewer the median removes part of the spikes",
    )
    bad_channels: Literal["detect", "keep"] = setting(
        "detect", "Find dead and noisy channels and silence them, or keep every channel"
    )
    exclude_channels: tuple[str, ...] = setting((), "Ids of channels to silence")
    unusable_channels: Literal["stop", "silence"] = setting(
        "stop",
        "Channels that are constant, NaN or infinite: stop with an error, or silence them and continue",
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
        if self.filter == "live" and not self.bandpass:
            raise SettingError(
                "the filter is live, and the band-pass is switched off",
                "the live filter is a band-pass",
                "leave out filter, or switch the band-pass on",
            )


@dataclass(frozen=True)
class LabelsConfig(Settings):
    """Which labels train the network."""

    label_interval: tuple[float, float] | None = setting(
        None,
        "Start and end of the time in which all spikes are labelled; default: first to last label",
        unit="s",
    )
    labels_per_unit: int | None = setting(
        None, "Learn each unit from at most this many of its spikes, the first ones", minimum=1
    )

    def _check_together(self) -> None:
        check_interval(self.label_interval, "label_interval")


@dataclass(frozen=True)
class BootstrapConfig(Settings):
    """How labels are made if none are given: by Spikewise itself, or by another sorter.

    Spikewise looks at the whole recording. Another sorter sorts its first part, and its units are cleaned.
    The other settings are for another sorter.
    """

    bootstrap: Bootstrap = setting(
        "spikewise", "What finds the units if no labels are given: Spikewise itself, or another sorter"
    )
    bootstrap_s: float = setting(
        60.0,
        "Length of the initial interval that another sorter sorts; shorter if the recording is",
        unit="s",
        minimum=2.0,
    )
    bootstrap_min_spikes: int = setting(10, "Drop units of another sorter with fewer spikes", minimum=2)
    bootstrap_max_violations: float = setting(
        0.1,
        "Drop a unit of another sorter if a larger fraction of its spikes follows another within 1.5 ms",
        minimum=0.0,
        maximum=1.0,
    )
    bootstrap_min_amplitude: float = setting(
        2.5,
        "Drop a unit of another sorter if its mean waveform has a lower peak",
        unit="noise standard deviations",
        minimum=0.0,
    )
    bootstrap_max_agreement: float = setting(
        0.5,
        "If two units of another sorter share a larger fraction of their spikes (tp / (tp + fp + fn)), drop "
        "the smaller one",
        minimum=0.0,
        maximum=1.0,
    )
