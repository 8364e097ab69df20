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
        "Channels that a unit sees: so many, nearest to it; default: those within 30 um, 12 to 32",
        minimum=1,
        design=NEIGHBOURHOOD,
    )
    hidden_features: int = setting(32, "Hidden features of each unit", minimum=1, design=NEIGHBOURHOOD)
    patches_per_unit: int | None = setting(
        None,
        "Patches made to learn each unit from; default: 500000 shared out among the units, 8000 to 60000",
        minimum=100,
        design=NEIGHBOURHOOD,
    )
    unit_steps: int | None = setting(
        None,
        "Steps of training for each unit; default: a tenth of the patches",
        minimum=10,
        design=NEIGHBOURHOOD,
    )
    drift_um: float | None = setting(
        None,
        "How far along the probe units may move from where they were labelled: patches hold them moved; "
        "default: 15 on a probe that is 200 um long or longer, else 0",
        unit="um",
        minimum=0.0,
        maximum=50.0,
        design=NEIGHBOURHOOD,
    )
    rounds: int = setting(
        2,
        "How often the units are learnt: first from the labels, then from what was found with confidence "
        "in the label interval as well",
        minimum=1,
        maximum=5,
        design=NEIGHBOURHOOD,
    )

    near_um: float = setting(
        30.0,
        "Channels this close to a channel count for the usual number of near channels",
        unit="um",
        minimum=0.0,
        design=NEIGHBOURHOOD,
    )
    near_limits: tuple[int, int] = setting(
        (12, 32),
        "Fewest and most channels that a unit sees where near_channels is not given",
        minimum=1,
        design=NEIGHBOURHOOD,
    )
    unit_batch_size: int = setting(256, "Patches of a unit in a batch", minimum=1, design=NEIGHBOURHOOD)
    unit_learning_rate: float = setting(
        5e-3,
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
        "A spike found with a higher response may be one: it is no example of a time without the unit",
        minimum=0.0,
        maximum=1.0,
        design=NEIGHBOURHOOD,
    )
    confident_spikes: int = setting(
        1000,
        "Confident spikes of each unit that a round learns from, at most",
        minimum=1,
        design=NEIGHBOURHOOD,
    )
    usual_drift_um: float = setting(
        15.0,
        "The drift expected on a long probe where drift_um is not given",
        unit="um",
        minimum=0.0,
        maximum=50.0,
        design=NEIGHBOURHOOD,
    )
    long_probe_um: float = setting(
        200.0,
        "Length from which on a probe is long: drift is expected on it",
        unit="um",
        minimum=0.0,
        design=NEIGHBOURHOOD,
    )
    drift_step_um: float = setting(
        5.0,
        "Distance between the positions for which moved templates are made",
        unit="um",
        minimum=0.5,
        design=NEIGHBOURHOOD,
    )
    held_out_patches: int = setting(
        200, "Patches of each unit that measure the held-out loss", minimum=1, design=NEIGHBOURHOOD
    )
    scratch_patches: int = setting(
        500,
        "Patches of each unit from which filters are learnt where none are pretrained",
        minimum=10,
        design=NEIGHBOURHOOD,
    )
    scratch_steps: int = setting(
        1500, "Steps in which filters are learnt where none are pretrained", minimum=10, design=NEIGHBOURHOOD
    )

    def _check_together(self) -> None:
        if self.near_limits[0] > self.near_limits[1]:
            raise SettingError(
                f"near_limits are {self.near_limits[0]} and {self.near_limits[1]}",
                "the fewest channels, then the most",
                "exchange the two",
            )

    def effort(self, num_units: int) -> tuple[int, int]:
        """Return the patches and the steps for each of so many units."""
        patches = self.patches_per_unit or min(max(500_000 // max(1, num_units), 8000), 60_000)
        return patches, self.unit_steps or max(10, patches // 10)


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
        "nothing",
        "Which of the pretrained filters stay as they are; backbone: temporal and spatial ones",
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
