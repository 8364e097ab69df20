"""Settings of simulated recordings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikewise.core.errors import SettingError
from spikewise.core.settings import Settings, setting


@dataclass(frozen=True)
class SimulationConfig(Settings):
    """How a recording with known spikes is simulated."""

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
        "Length; a hybrid in a given recording has the length of the recording",
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
    min_amplitude_uV: float = setting(
        50.0, "Smallest depth of a unit's largest trough", unit="uV", minimum=0.0
    )
    max_amplitude_uV: float = setting(
        300.0, "Largest depth of a unit's largest trough", unit="uV", minimum=0.0
    )
    min_distance_um: float = setting(10.0, "Smallest distance between two units", unit="um", minimum=0.0)
    amplitude_std: float = setting(
        0.05, "Spread of the amplitude from spike to spike, as a fraction", minimum=0.0, maximum=0.3
    )
    noise_uV: float = setting(
        10.0,
        "Standard deviation of the noise; not used with a given recording, which has its own",
        unit="uV",
        minimum=0.0,
        maximum=1000.0,
    )
    noise_correlation_um: float | None = setting(
        None,
        "Distance at which the noise of two channels has a correlation of a half; default: no correlation",
        unit="um",
        minimum=1.0,
        maximum=1e6,
    )
    drift: Literal["none", "slow", "fast", "non-rigid", "zigzag", "jump"] = setting(
        "none",
        "How units move along the probe: up and down (slow), in jumps (fast), more at the lower end "
        "(non-rigid, a sine), to both sides of their place (zigzag), or in jumps to both sides of it, "
        "further at the lower end (jump)",
    )
    drift_um: float | None = setting(
        None,
        "Distance between the ends of the motion; default: 30 for a slow drift, 15 for a fast one, 10 for a "
        "non-rigid one, 60 for a zigzag, 40 for jump",
        unit="um",
        minimum=1.0,
        maximum=1000.0,
    )
    drift_start_s: float = setting(0.0, "Time at which the drift begins", unit="s", minimum=0.0)
    drift_um_per_min: float | None = setting(
        None,
        "Mean speed; default: 10 for a slow drift, 80 for a non-rigid one, 37.5 for a zigzag",
        unit="um/min",
        minimum=0.1,
        maximum=1e5,
    )
    drift_period_s: float | None = setting(
        None,
        "Time between jumps; default: 60 for a fast drift, 30 in the mean for jump, or less in a short "
        "recording, for five jumps",
        unit="s",
        minimum=0.1,
        maximum=1e6,
    )
    gain_uV: float = setting(
        0.195, "Step of the saved 16-bit samples", unit="uV", minimum=0.001, maximum=1000.0
    )
    seed: int = setting(0, "Seed of all random numbers", minimum=0, maximum=2**31 - 1)

    def _check_together(self) -> None:
        if self.min_amplitude_uV > self.max_amplitude_uV:
            raise SettingError(
                f"the amplitudes go from {self.min_amplitude_uV:g} to {self.max_amplitude_uV:g} uV",
                "the largest must not be below the smallest",
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
        jumping = ("fast", "jump")
        unused = {
            "drift_um": self.drift_um is not None and self.drift == "none",
            "drift_start_s": self.drift_start_s != 0 and self.drift == "none",
            "drift_um_per_min": self.drift_um_per_min is not None and self.drift in ("none", *jumping),
            "drift_period_s": self.drift_period_s is not None and self.drift not in jumping,
        }
        if any(unused.values()):
            raise SettingError(
                f"{', '.join(name for name, is_so in unused.items() if is_so)} is given with the drift "
                f"{self.drift!r}",
                "a drift has a range and a start; slow, non-rigid and zigzag a speed, fast and jump a period",
                "leave it out, or set drift",
            )
