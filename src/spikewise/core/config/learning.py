"""Settings of learning: network, units, transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikewise.core.config.designs import ESORT_PAPER, NEIGHBOURHOOD, Design
from spikewise.core.errors import SettingError
from spikewise.core.settings import Settings, setting


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
        (8, 16), "Features of the two temporal filters of each channel", minimum=1, design=ESORT_PAPER
    )
    spatial_features: int = setting(256, "Features of the spatial filter", minimum=1, design=ESORT_PAPER)


@dataclass(frozen=True)
class UnitsConfig(Settings):
    """How units are learnt with the design neighbourhood."""

    near_channels: int | None = setting(
        None,
        "Number of channels that a unit sees, those nearest to it; default: those within 30 um, 12 to 32",
        minimum=1,
        design=NEIGHBOURHOOD,
    )
    hidden_features: int = setting(32, "Hidden features of each unit", minimum=1, design=NEIGHBOURHOOD)
    patches_per_unit: int | None = setting(
        None,
        "Training patches for each unit; more take longer. Default: 500000 divided by the number of units, "
        "8000 to 60000",
        minimum=100,
        design=NEIGHBOURHOOD,
    )
    unit_steps: int | None = setting(
        None,
        "Training steps for each unit; default: 3 for every 40 patches",
        minimum=10,
        design=NEIGHBOURHOOD,
    )
    drift_um: float | None = setting(
        None,
        "How far units may move along the probe; patches then contain moved units. Use 0 if the probe does "
        "not move. Default: 15 on a probe of 200 um or longer, else 0",
        unit="um",
        minimum=0.0,
        maximum=50.0,
        design=NEIGHBOURHOOD,
    )
    rounds: int = setting(
        2,
        "How often the units are learnt: first from the labels, then also from the confident spikes that "
        "were found in the label interval",
        minimum=1,
        maximum=5,
        design=NEIGHBOURHOOD,
    )

    near_um: float = setting(
        30.0,
        "Without near_channels, a unit sees as many channels as lie within this distance of a channel",
        unit="um",
        minimum=0.0,
        design=NEIGHBOURHOOD,
    )
    near_limits: tuple[int, int] = setting(
        (12, 32),
        "Fewest and most channels that a unit sees if near_channels is not given",
        minimum=1,
        design=NEIGHBOURHOOD,
    )
    unit_batch_size: int = setting(128, "Patches of a unit in a batch", minimum=1, design=NEIGHBOURHOOD)
    unit_learning_rate: float = setting(
        1e-2,
        "Largest step size of AdamW for the networks of the units",
        minimum=0.0,
        maximum=1.0,
        design=NEIGHBOURHOOD,
    )
    unit_weight_decay: float = setting(
        3e-2,
        "Weight decay of AdamW for the networks of the units",
        minimum=0.0,
        maximum=10.0,
        design=NEIGHBOURHOOD,
    )
    confident: float = setting(
        0.7,
        "A spike found with a higher response counts as labelled in the next round, and when units are "
        "relearnt (refresh_min)",
        minimum=0.0,
        maximum=1.0,
        design=NEIGHBOURHOOD,
    )
    suspected: float = setting(
        0.15,
        "Times at which a unit's response is higher are never used as examples without the unit",
        minimum=0.0,
        maximum=1.0,
        design=NEIGHBOURHOOD,
    )
    confident_spikes: int = setting(
        1000,
        "Largest number of confident spikes of a unit that a round learns from",
        minimum=1,
        design=NEIGHBOURHOOD,
    )
    usual_drift_um: float = setting(
        15.0,
        "Expected drift on a long probe if drift_um is not given",
        unit="um",
        minimum=0.0,
        maximum=50.0,
        design=NEIGHBOURHOOD,
    )
    long_probe_um: float = setting(
        200.0,
        "A probe of this length or longer is a long probe, on which drift is expected",
        unit="um",
        minimum=0.0,
        design=NEIGHBOURHOOD,
    )
    drift_step_um: float = setting(
        5.0,
        "Distance between the positions to which templates are moved",
        unit="um",
        minimum=0.5,
        design=NEIGHBOURHOOD,
    )
    held_out_patches: int = setting(
        200, "Patches of each unit on which the held-out loss is measured", minimum=1, design=NEIGHBOURHOOD
    )
    scratch_patches: int = setting(
        500,
        "Patches of each unit from which filters are learnt without pretrained ones",
        minimum=10,
        design=NEIGHBOURHOOD,
    )
    scratch_steps: int = setting(
        1500, "Training steps for filters without pretrained ones", minimum=10, design=NEIGHBOURHOOD
    )

    def _check_together(self) -> None:
        if self.near_limits[0] > self.near_limits[1]:
            raise SettingError(
                f"near_limits are {self.near_limits[0]} and {self.near_limits[1]}",
                "the fewest channels, then the most",
                "swap the two numbers",
            )

    def effort(self, num_units: int) -> tuple[int, int]:
        """Return the patches and the steps for each of so many units."""
        patches = self.patches_per_unit or min(max(500_000 // max(1, num_units), 8000), 60_000)
        return patches, self.unit_steps or max(10, 3 * patches // 40)


@dataclass(frozen=True)
class TransferConfig(Settings):
    """What training starts from: filters learnt on other recordings (Han & Wang, arXiv 2409.13067)."""

    pretrained: str | None = setting(
        None,
        "Model whose filters training starts from; its units are not used. Default: the filters of the "
        "package. none: from scratch, which is the default of esort-paper; a model for esort-paper must "
        "have the same number of channels",
    )
    frozen: Literal["nothing", "temporal", "backbone"] = setting(
        "nothing",
        "Pretrained filters that training does not change; backbone: temporal and spatial filters",
        design=ESORT_PAPER,
    )
    temporal_rate: float = setting(
        1.0,
        "Learning rate of pretrained temporal filters, as a fraction of that of the rest",
        minimum=0.0,
        maximum=10.0,
        design=ESORT_PAPER,
    )
    spatial_rate: float = setting(
        1.0,
        "Learning rate of the pretrained spatial filter, as a fraction of that of the rest",
        minimum=0.0,
        maximum=10.0,
        design=ESORT_PAPER,
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
