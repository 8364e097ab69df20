"""The settings of the main job, each declared once.

Those of single-channel waveforms are in :mod:`spikewise.single_channel.config`, the conventions of both in
:mod:`spikewise.core.settings`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

from spikewise.core.errors import SettingError
from spikewise.core.settings import Settings, setting, unknown_setting

Bootstrap = Literal["lupin", "tridesclous2", "spykingcircus2", "kilosort4"]
_Number = TypeVar("_Number", int, float)
Device = Literal["auto", "cpu", "cuda", "mps"]
Design = Literal["neighbourhood", "esort-paper"]


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
        if self.label_interval is not None and not 0 <= self.label_interval[0] < self.label_interval[1]:
            raise SettingError(
                f"the label interval is {self.label_interval[0]:g} to {self.label_interval[1]:g} s",
                "it must start at 0 or later and end after its start",
                "give label_interval as START END in seconds",
            )


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


@dataclass(frozen=True)
class NetworkConfig(Settings):
    """Design and size of the network."""

    design: Design | None = setting(
        None,
        "neighbourhood: pretrained filters for any probe and a small network for each unit on the channels "
        "near it; esort-paper: the dense network of Han & Wang (arXiv 2409.13067), for one probe. "
        "Default: neighbourhood, or esort-paper with the preset paper",
    )
    window_ms: float = setting(
        1.875, "Length of the window that the network sees", unit="ms", minimum=0.5, maximum=10.0
    )
    temporal_features: tuple[int, int] = setting(
        (8, 16), "Features of the two temporal filters of each channel (esort-paper)", minimum=1
    )
    spatial_features: int = setting(256, "Features of the spatial filter (esort-paper)", minimum=1)


@dataclass(frozen=True)
class UnitsConfig(Settings):
    """How units are learnt with the design neighbourhood."""

    near_channels: int | None = setting(
        None,
        "Channels that a unit sees: so many, nearest to it; default: those within 30 um, 12 to 32",
        minimum=1,
    )
    hidden_features: int = setting(32, "Hidden features of each unit", minimum=1)
    patches_per_unit: int | None = setting(
        None,
        "Patches made to learn each unit from; default: 500000 shared out among the units, 8000 to 60000",
        minimum=100,
    )
    unit_steps: int | None = setting(
        None, "Steps of training for each unit; default: a tenth of the patches", minimum=10
    )
    drift_um: float | None = setting(
        None,
        "How far along the probe units may move from where they were labelled: patches hold them moved; "
        "default: 15 on a probe that is 200 um long or longer, else 0",
        unit="um",
        minimum=0.0,
        maximum=50.0,
    )
    rounds: int = setting(
        2,
        "How often the units are learnt: first from the labels, then from what was found with confidence "
        "in the label interval as well",
        minimum=1,
        maximum=5,
    )

    def effort(self, num_units: int) -> tuple[int, int]:
        """Return the patches and the steps for each of so many units."""
        patches = self.patches_per_unit or min(max(500_000 // max(1, num_units), 8000), 60_000)
        return patches, self.unit_steps or max(10, patches // 10)


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """How the network is trained. A value that is not given is that of the preset (esort-paper)."""

    preset: Literal["default", "paper"] = setting(
        "default", "Named set of training settings of the design esort-paper"
    )
    epochs: int | None = setting(None, "Largest number of passes over the labels", minimum=1)
    batch_size: int | None = setting(None, "Windows in a batch", minimum=2)
    learning_rate: float | None = setting(None, "Largest step size of Adam", minimum=0.0)
    schedule: Literal["constant", "one-cycle"] | None = setting(None, "Course of the learning rate")
    windows_per_spike: int | None = setting(
        None, "Windows drawn from each labelled spike in an epoch; 0 for all that hold its label", minimum=0
    )
    min_steps: int | None = setting(
        None,
        "Least number of steps in all; where labels are few, more windows are drawn from each",
        minimum=0,
    )
    max_steps: int | None = setting(
        None,
        "Largest number of steps in all; where labels are many, fewer windows are drawn from each",
        minimum=1,
    )
    noise_windows: Literal["anywhere", "spike-free"] | None = setting(
        None, "Where windows without a label are drawn: anywhere off a spike's centre, or free of spikes"
    )
    superpositions: float | None = setting(
        None,
        "Units added to training windows at random times, as a multiple of those that windows hold by chance",
        minimum=0.0,
    )
    patience: int | None = setting(
        None, "Stop after so many epochs without a lower loss on the held-out time; 0 never stops", minimum=0
    )
    held_out_fraction: float = setting(
        0.2,
        "Fraction of the label interval kept for early stopping and thresholds",
        minimum=0.05,
        maximum=0.5,
    )
    max_spikes_per_unit: int = setting(300, "Largest number of spikes of one unit that train", minimum=1)
    seed: int = setting(0, "Seed of everything random", minimum=0, maximum=2**31 - 1)

    def resolved(self) -> TrainingConfig:
        """Return a copy in which every value that was not given is that of the preset."""
        preset = TRAINING_PRESETS[self.preset]
        missing = {k: v for k, v in preset.items() if getattr(self, k) is None}
        return dataclasses.replace(self, **missing)


def given(value: _Number | None) -> _Number:
    """Return a value that a resolved :class:`TrainingConfig` has."""
    if value is None:
        raise ValueError("the training settings must be resolved: call TrainingConfig.resolved()")
    return value


TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "epochs": 12,
        "batch_size": 512,
        "learning_rate": 5e-3,
        "schedule": "one-cycle",
        "windows_per_spike": 4,
        "min_steps": 500,
        "max_steps": 800,
        "noise_windows": "anywhere",
        "superpositions": 3.0,
        "patience": 0,
    },
    "paper": {
        "epochs": 50,
        "batch_size": 1024,
        "learning_rate": 5e-3,
        "schedule": "constant",
        "windows_per_spike": 0,
        "min_steps": 0,
        "max_steps": 10**9,
        "noise_windows": "spike-free",
        "superpositions": 0.0,
        "patience": 0,
    },
}


@dataclass(frozen=True)
class TransferConfig(Settings):
    """What training starts from (Han & Wang, arXiv 2409.13067): filters that another recording taught."""

    pretrained: str | None = setting(
        None,
        "Model whose filters training starts from; its units are left behind. Default: the filters that "
        "come with the package. none: from scratch, as with esort-paper by default, whose filters must be "
        "of as many channels",
    )
    frozen: Literal["nothing", "temporal", "backbone"] = setting(
        "nothing", "Which of the pretrained filters stay as they are; backbone: temporal and spatial ones"
    )
    temporal_rate: float = setting(
        1.0,
        "Learning rate of pretrained temporal filters, as a fraction of that of the rest",
        minimum=0.0,
        maximum=10.0,
    )
    spatial_rate: float = setting(
        1.0,
        "Learning rate of the pretrained spatial filter, as a fraction of that of the rest",
        minimum=0.0,
        maximum=10.0,
    )

    def _check_together(self) -> None:
        changed = {
            "frozen": self.frozen != "nothing",
            "temporal_rate": self.temporal_rate != 1.0,
            "spatial_rate": self.spatial_rate != 1.0,
        }
        if any(changed.values()) and self.pretrained in (None, "none"):
            raise SettingError(
                f"{', '.join(name for name, is_so in changed.items() if is_so)} is given, "
                "and no filters are pretrained",
                "settings of pretrained filters, together with pretrained",
                "name a model with pretrained, or leave them out",
            )


@dataclass(frozen=True)
class DetectionConfig(Settings):
    """How probabilities become spikes."""

    label_radius_ms: float = setting(
        0.15625,
        "A window whose centre is this close to a spike holds it",
        unit="ms",
        minimum=0.0,
        maximum=1.0,
    )
    threshold: float | None = setting(
        None,
        "One threshold for all units, as a fraction of the response to a perfect spike; "
        "default: chosen for each unit on held-out labelled time",
        minimum=0.01,
        maximum=0.99,
    )
    merge_ms: float = setting(
        0.5, "Of several peaks of one unit this close, keep the highest", unit="ms", minimum=0.0, maximum=5.0
    )


@dataclass(frozen=True)
class SortingConfig(Settings):
    """How a recording is worked through."""

    chunk_s: float = setting(
        4.0, "Length of the chunks; it changes memory and speed, never the spikes", unit="s", minimum=0.001
    )
    shard_s: float = setting(
        20.0,
        "Length of what is saved at once, and of what a worker of a cluster is given at once; it never "
        "changes the spikes",
        unit="s",
        minimum=0.1,
    )
    cluster: str | None = setting(
        None,
        "Find the spikes on a Dask cluster: local:N for N processes of this machine, or the address of a "
        "scheduler, such as tcp://host:8786",
    )
    refresh_min: float | None = setting(
        None,
        "Learn the units anew after so many minutes, from their own confident spikes of the last minute, for "
        "recordings of hours in which units change; default: never",
        unit="min",
        minimum=0.1,
    )
    device: Device = setting("auto", "Where the network runs; auto: the GPU where there is one")
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "Numbers in which a GPU computes the network; auto: bfloat16 on an NVIDIA card that has it (design "
        "neighbourhood, not on the CPU)",
    )
    sparse: bool = setting(
        True,
        "Ask the network of a unit only where something happens near it; switched off, it is asked "
        "everywhere, which takes many times longer (design neighbourhood, on the CPU)",
    )
    report: bool = setting(True, "Write report.html beside the result, to look at in a browser")
    damage: Literal["skip", "keep"] = setting(
        "skip",
        "Damaged stretches (zeros, saturation, NaN, artefacts, jumps of the clock): find them, report no "
        "spikes there and list them, or keep the traces as they are",
    )
    artefact_noise: float | None = setting(
        None,
        "A jump of half of the channels by so much is an artefact; default: 20 from 32 channels on, 80 on "
        "fewer, where one spike may reach them all",
        unit="noise standard deviations",
        minimum=1.0,
    )


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """How a sorting is compared with the truth."""

    interval: tuple[float, float] | None = setting(
        None, "Start and end of the time compared; default: all", unit="s"
    )
    delta_time_ms: float = setting(0.4, "Largest distance between matching spikes", unit="ms", minimum=0.0)
    match_score: float = setting(
        0.5, "Least accuracy of two units that are matched", minimum=0.0, maximum=1.0
    )


@dataclass(frozen=True)
class GuiConfig(Settings):
    """How a result is shown in a browser to be curated."""

    interval: tuple[float, float] | None = setting(
        None,
        "Start and end of the time looked at, for example that whose labels are to train; default: all",
        unit="s",
    )
    address: str = setting("localhost", "Address at which the page is served")
    port: int = setting(0, "Port of the page; 0 takes a free one", minimum=0, maximum=65535)
    show: bool = setting(True, "Open the page in the browser")


@dataclass(frozen=True)
class SimulationConfig(Settings):
    """What a simulated recording with known spikes is made of."""

    source: Literal["generator", "mearec", "hybrid"] = setting(
        "generator",
        "Where waveforms come from: SpikeInterface's generator, a MEArec template file, "
        "or mean waveforms of real units (hybrid)",
    )
    templates: str | None = setting(
        None, "Template file: a MEArec .h5 for mearec, a .npz of mean waveforms for hybrid"
    )
    probe: str | None = setting(
        None,
        "Probe: a probeinterface file or a name; default: linear-16 for the generator, "
        "the sites of the template file otherwise",
    )
    num_units: int = setting(10, "Number of units", minimum=1, maximum=10000)
    duration_s: float = setting(
        60.0,
        "Length; a hybrid in a given recording has the length of that",
        unit="s",
        minimum=0.1,
        maximum=1e6,
    )
    sampling_frequency: float | None = setting(
        None,
        "Sampling frequency; default: 30 kHz for the generator, that of the template file otherwise",
        unit="Hz",
        minimum=8000.0,
        maximum=1e6,
    )
    excitatory_fraction: float = setting(
        0.8, "Fraction of the units that are excitatory", minimum=0.0, maximum=1.0
    )
    excitatory_rate_hz: float = setting(
        5.0, "Mean firing rate of excitatory units", unit="Hz", minimum=0.01, maximum=500.0
    )
    inhibitory_rate_hz: float = setting(
        15.0, "Mean firing rate of inhibitory units", unit="Hz", minimum=0.01, maximum=500.0
    )
    refractory_ms: float = setting(
        2.0, "Shortest time between two spikes of a unit", unit="ms", minimum=0.0, maximum=1000.0
    )
    min_amplitude_uV: float = setting(50.0, "Least depth of a unit's largest trough", unit="uV", minimum=0.0)
    max_amplitude_uV: float = setting(
        300.0, "Largest depth of a unit's largest trough", unit="uV", minimum=0.0
    )
    min_distance_um: float = setting(10.0, "Least distance between two units", unit="um", minimum=0.0)
    amplitude_std: float = setting(
        0.05, "Spread of the amplitude from spike to spike, as a fraction", minimum=0.0, maximum=0.3
    )
    noise_uV: float = setting(
        10.0,
        "Standard deviation of the noise; a given recording has its own",
        unit="uV",
        minimum=0.0,
        maximum=1000.0,
    )
    noise_correlation_um: float | None = setting(
        None,
        "Distance at which the noise of two channels is half correlated; default: not at all",
        unit="um",
        minimum=1.0,
        maximum=1e6,
    )
    drift: Literal["none", "slow", "fast", "non-rigid"] = setting(
        "none", "How units move along the probe: up and down, in jumps, or more at the lower end (a sine)"
    )
    drift_um: float | None = setting(
        None,
        "Largest displacement; default: 30 for a slow drift, 15 for a fast one, 10 for a non-rigid one",
        unit="um",
        minimum=1.0,
        maximum=1000.0,
    )
    drift_start_s: float = setting(0.0, "Until then the units rest", unit="s", minimum=0.0)
    drift_um_per_min: float | None = setting(
        None,
        "Mean speed; default: 10 for a slow drift, 80 for a non-rigid one",
        unit="um/min",
        minimum=0.1,
        maximum=1e5,
    )
    drift_period_s: float | None = setting(
        None,
        "Time between the jumps of a fast drift; default: 60, or less in a short recording, for five jumps",
        unit="s",
        minimum=0.1,
        maximum=1e6,
    )
    gain_uV: float = setting(
        0.195, "Step of the saved 16-bit samples", unit="uV", minimum=0.001, maximum=1000.0
    )
    seed: int = setting(0, "Seed of everything random", minimum=0, maximum=2**31 - 1)

    def _check_together(self) -> None:
        if self.min_amplitude_uV > self.max_amplitude_uV:
            raise SettingError(
                f"the amplitudes go from {self.min_amplitude_uV:g} to {self.max_amplitude_uV:g} uV",
                "the largest must not lie below the least",
                "change min_amplitude_uV or max_amplitude_uV",
            )
        if max(self.excitatory_rate_hz, self.inhibitory_rate_hz) * self.refractory_ms > 500:
            raise SettingError(
                f"units fire at {self.excitatory_rate_hz:g} and {self.inhibitory_rate_hz:g} Hz with a "
                f"refractory period of {self.refractory_ms:g} ms",
                "they may be refractory for at most half of the time",
                "lower the rate or the refractory period",
            )
        self._check_drift()

    def _check_drift(self) -> None:
        unused = {
            "drift_um": self.drift_um is not None and self.drift == "none",
            "drift_start_s": self.drift_start_s != 0 and self.drift == "none",
            "drift_um_per_min": self.drift_um_per_min is not None and self.drift in ("none", "fast"),
            "drift_period_s": self.drift_period_s is not None and self.drift != "fast",
        }
        if any(unused.values()):
            raise SettingError(
                f"{', '.join(name for name, is_so in unused.items() if is_so)} is given with the drift "
                f"{self.drift!r}",
                "a drift has a range and a start; slow and non-rigid ones a speed, fast ones a period",
                "leave it out, or set drift",
            )


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


DENSE_SETTINGS: dict[str, tuple[str, ...]] = {
    "training": ("preset", *TRAINING_PRESETS["default"], "max_spikes_per_unit"),
    "network": ("temporal_features", "spatial_features"),
    "transfer": ("frozen", "temporal_rate", "spatial_rate"),
}
"""Settings of the design esort-paper alone."""
UNITS_SETTINGS = {"units": _names(UnitsConfig), "sorting": ("refresh_min",)}
"""Settings of the design neighbourhood alone."""


@dataclass(frozen=True)
class Config:
    """All settings of training and sorting.

    Every setting has a name of its own, so that :meth:`from_options` takes them flat, as the command does.
    """

    recording: RecordingConfig = dataclasses.field(default_factory=RecordingConfig)
    preprocessing: PreprocessingConfig = dataclasses.field(default_factory=PreprocessingConfig)
    labels: LabelsConfig = dataclasses.field(default_factory=LabelsConfig)
    bootstrap: BootstrapConfig = dataclasses.field(default_factory=BootstrapConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    units: UnitsConfig = dataclasses.field(default_factory=UnitsConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    transfer: TransferConfig = dataclasses.field(default_factory=TransferConfig)
    detection: DetectionConfig = dataclasses.field(default_factory=DetectionConfig)
    sorting: SortingConfig = dataclasses.field(default_factory=SortingConfig)

    @property
    def design(self) -> Design:
        """The design of the network: the one given, or what the preset asks for."""
        if self.network.design is not None:
            return self.network.design
        return "esort-paper" if self.training.preset == "paper" else "neighbourhood"

    def __post_init__(self) -> None:
        """Refuse settings that belong to the other design."""
        other = DENSE_SETTINGS if self.design == "neighbourhood" else UNITS_SETTINGS
        for part, names in other.items():
            settings = getattr(self, part)
            usual = type(settings)()
            changed = [name for name in names if getattr(settings, name) != getattr(usual, name)]
            if changed:
                needed = "esort-paper" if self.design == "neighbourhood" else "neighbourhood"
                raise SettingError(
                    f"the setting {changed[0]} is given with the design {self.design}",
                    f"{changed[0]} is a setting of the design {needed}",
                    f"leave it out, or set design to {needed}",
                )

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Build the settings from flat names, for example ``seed=1, labels_per_unit=30``.

        Raises
        ------
        SettingError
            If a name is unknown (all are listed) or a value is not allowed.
        """
        kinds = {field.name: type(getattr(cls(), field.name)) for field in dataclasses.fields(cls)}
        home = {field.name: part for part, kind in kinds.items() for field in dataclasses.fields(kind)}
        values: dict[str, dict[str, Any]] = {part: {} for part in kinds}
        for name, value in options.items():
            if name not in home:
                raise unknown_setting(name, sorted(home), "of training and sorting")
            values[home[name]][name] = tuple(value) if isinstance(value, list) else value
        return cls(**{part: kind(**values[part]) for part, kind in kinds.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as nested dictionaries of JSON types, the training preset resolved."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parts["training"] = self.training.resolved()
        parts["network"] = dataclasses.replace(self.network, design=self.design)
        return {name: part.to_dict() for name, part in parts.items()}
