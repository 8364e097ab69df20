"""Events that no unit of a sort explains, as its provenance has them: in one line, and over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAMED_CONTACTS = 3
"""Contacts that a sentence names, those with the most events. Chosen by hand."""


@dataclass(frozen=True)
class UnexplainedEvents:
    """Events that no unit explains, in all groups together.

    Attributes
    ----------
    num_events, num_spikes : int
        Unexplained events, and spikes that were found, in the parts that were looked at.
    seconds : float
        Duration of these parts.
    parts : list of (float, float, float)
        Start and end in seconds of the recording, and unexplained events per second.
    contacts : list of str
        Contacts with the most events, the first one has most.
    num_new_units : int
        Units that were found among such events, and added.
    """

    num_events: int
    num_spikes: int
    seconds: float
    parts: list[tuple[float, float, float]]
    contacts: list[str]
    num_new_units: int

    @classmethod
    def of(cls, facts: Any) -> UnexplainedEvents | None:
        """Return what a provenance says under ``unexplained``; None if it says nothing, as in older ones."""
        try:
            groups = list(facts["groups"].values())
            counts = _added_up(group["num_of_channels"] for group in groups)
            return cls(
                sum(int(group["num_unexplained"]) for group in groups),
                sum(int(group["num_spikes"]) for group in groups),
                max((float(group["looked_at_s"]) for group in groups), default=0.0),
                _parts(groups),
                sorted(counts, key=lambda name: (-counts[name], name))[:NAMED_CONTACTS],
                int(facts["num_new_units"]),
            )
        except (TypeError, ValueError, KeyError, AttributeError):
            return None

    @property
    def rate_hz(self) -> float:
        """Unexplained events per second."""
        return self.num_events / self.seconds if self.seconds > 0 else 0.0

    @property
    def percent(self) -> float:
        """Percentage of unexplained ones among all events."""
        return 100 * self.num_events / max(1, self.num_events + self.num_spikes)

    def where(self) -> str:
        """Return when and on which contacts most of them are; empty if there is none."""
        if not self.num_events or not self.parts:
            return ""
        start, stop, rate = max(self.parts, key=lambda part: part[2])
        contacts = "contact" if len(self.contacts) == 1 else "contacts"
        return (
            f"most between {start:.6g} and {stop:.6g} s ({rate:.3g} per second), "
            f"and on {contacts} {', '.join(self.contacts)}"
        )

    def summary(self) -> str:
        """Return one line."""
        text = (
            f"no unit explains {self.num_events} events in {self.seconds:.3g} s that were looked at again, "
            f"{self.percent:.2g} % of all"
        )
        text += f"; {where}" if (where := self.where()) else ""
        if self.num_new_units:
            text += f"; {self.num_new_units} new unit{'s' if self.num_new_units > 1 else ''} among them"
        return text


def _added_up(counts_of_groups: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for of_group in counts_of_groups:
        for name, count in of_group.items():
            counts[str(name)] = counts.get(str(name), 0) + int(count)
    return counts


def _parts(groups: list[Mapping[str, Any]]) -> list[tuple[float, float, float]]:
    """Return the parts of all groups, each with its events per second."""
    events: dict[tuple[float, float], int] = {}
    for group in groups:
        for (start, stop), count in zip(group["parts_s"], group["num_of_parts"], strict=True):
            key = float(start), float(stop)
            events[key] = events.get(key, 0) + int(count)
    return [(start, stop, count / max(1e-9, stop - start)) for (start, stop), count in sorted(events.items())]
