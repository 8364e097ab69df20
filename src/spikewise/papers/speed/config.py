"""The settings of the speed benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter, Token

from spikewise.core.errors import SettingError
from spikewise.core.settings import Settings, setting
from spikewise.papers.esort.methods import RIVALS
from spikewise.papers.speed.spikesift import NAME as SPIKESIFT


def _split_at_commas(_: type, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Return the names in a text such as ``lupin,tridesclous2``."""
    return tuple(name.strip() for name in tokens[0].value.split(","))


@dataclass(frozen=True)
class SpeedConfig(Settings):
    """What the speed benchmark simulates and times."""

    channels: int | None = setting(
        None,
        "Channels: the first ones of a Neuropixels 1.0; default: 384, or those of the template file",
        minimum=1,
    )
    units: int = setting(200, "Units of the simulation", minimum=1, maximum=10000)
    duration_s: float = setting(50.0, "Length of what is sorted", unit="s", minimum=1.0, maximum=1e5)
    label_s: float = setting(
        30.0,
        "Length of the part before it, from which the units are learnt",
        unit="s",
        minimum=1.0,
        maximum=1e5,
    )
    labels_per_unit: int = setting(15, "Labelled spikes of each unit", minimum=1)
    templates: str | None = setting(None, "MEArec template file; default: waveforms of a generator")
    excitatory_fraction: float = setting(
        0.8,
        "Fraction of the units that are excitatory; a template file may hold too few for many units",
        minimum=0.0,
        maximum=1.0,
    )
    against: Annotated[tuple[str, ...], Parameter(converter=_split_at_commas, n_tokens=1)] = setting(
        (),
        "Other sorters to run: spikesift, and names of SpikeInterface, for example spikesift,tridesclous2",
    )
    peers_python: str | None = setting(
        None, "Python of an environment in which SpikeSift is installed; default: this one"
    )
    paper_s: float = setting(
        0.5, "Length on which the network of Han & Wang runs as published", unit="s", minimum=0.01
    )
    repeats: int = setting(
        3, "How often the sorter and its stages are timed; the least time counts", minimum=1, maximum=100
    )
    model: str | None = setting(None, "A model of the same simulation; default: one is trained")
    seed: int = setting(0, "Seed of everything random", minimum=0, maximum=2**31 - 1)

    def _check_together(self) -> None:
        if not self.against:
            return
        from spikeinterface.sorters import available_sorters

        allowed = sorted({*available_sorters(), *RIVALS, SPIKESIFT})
        unknown = [name for name in self.against if name not in allowed]
        if unknown:
            raise SettingError(
                f"there is no sorter {unknown[0]!r}", f"sorters are {', '.join(allowed)}", "correct its name"
            )
