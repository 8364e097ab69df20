"""How damaged stretches affect a result: spikes in them are dropped, and the provenance lists them.

A spike is dropped if at least three quarters of the channels that its unit sees are damaged within the
network's window around it. So a dead channel silences only units that hardly any other channel shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from spikewise.data.recordings.damage import ALL_CHANNELS, KINDS, STRETCH, clip_stretches, union
from spikewise.data.recordings.reader import Traces
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.models.windowed import WindowedNetwork
from spikewise.sorting.spikes import Spikes

MOST = 0.75
"""Fraction of the channels of a unit; with more damaged, a spike or label is dropped. Chosen by hand
(docs/faults.md)."""
MAX_LISTED = 10_000
"""Largest number of damaged stretches in the provenance; all are counted. Chosen by hand."""


class DamagedTraces(Traces, Protocol):
    """Traces that know their damaged stretches."""

    def damage(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return the damaged stretches between two frames, of the type STRETCH."""


@dataclass(frozen=True)
class Damage:
    """The damaged stretches of a group of channels.

    Attributes
    ----------
    stretches : tuple of ndarray
        Of the type STRETCH, one array for each segment, in order of time.
    num_dropped : int
        Spikes that were dropped because of damage.
    """

    stretches: tuple[np.ndarray, ...]
    num_dropped: int


@dataclass(frozen=True)
class Found:
    """The spikes of a stretch of one segment, and its damage."""

    spikes: Spikes
    damage: Damage


def drop_damaged_spikes(
    spikes: Spikes, traces: DamagedTraces, network: WindowedNetwork, stretch: tuple[int, int, int]
) -> Found:
    """Drop the spikes of one stretch that damage may have caused.

    Parameters
    ----------
    spikes : Spikes
    traces : DamagedTraces
        The traces in which they were found; blocks that were not read yet are read and checked.
    network : WindowedNetwork
        The network that found them: its window and the channels of its units are used.
    stretch : (int, int, int)
        Segment, first sample, and the sample after the last.
    """
    segment_index, start, stop = stretch
    radius = network.window_samples // 2
    around = traces.damage(segment_index, start - radius, stop + radius)
    stretches = clip_stretches(around, start, stop)
    if not len(around):
        return Found(spikes, Damage((stretches,), 0))
    sees = _channels_of_units(network)
    counts = _count_damaged(spikes, around, sees, radius)
    is_good = counts < MOST * sees.sum(axis=1)[spikes.unit_index]
    kept = Spikes(spikes.sample_index[is_good], spikes.unit_index[is_good], spikes.response[is_good])
    return Found(kept, Damage((stretches,), int(np.count_nonzero(~is_good))))


def join_damage(parts: Sequence[tuple[int, Damage]], num_segments: int) -> Damage:
    """Join the damage of stretches, each with the index of its segment, to that of a recording."""
    segments = [
        _connected(np.concatenate([np.empty(0, STRETCH), *(d.stretches[0] for s, d in parts if s == index)]))
        for index in range(num_segments)
    ]
    return Damage(tuple(segments), sum(damage.num_dropped for _, damage in parts))


def describe_damage(
    damage: Mapping[str, Damage], channel_ids: Mapping[str, Sequence[Any]], sampling_frequency: float
) -> dict[str, Any]:
    """Return the damage of all groups for the provenance: JSON types only.

    Parameters
    ----------
    damage : dict of str to Damage
        By the name of the group.
    channel_ids : dict of str to sequence
        Ids of the channels of each group.
    sampling_frequency : float

    Returns
    -------
    dict
        ``seconds`` in which all channels of a group are damaged, summed over the groups, ``num_dropped``
        spikes, ``num_stretches``, and the first 10 000 ``stretches``, each with ``group``, ``segment``,
        ``start_s`` and ``stop_s`` from the start of its segment, ``kind``, and ``channels``: their ids, or
        ``all``.
    """
    listed, samples = [], 0
    for name, one in damage.items():
        for segment_index, stretches in enumerate(one.stretches):
            of_all = stretches[stretches["channel_index"] == ALL_CHANNELS]
            starts, stops = union(of_all["start"], of_all["stop"])
            samples += int((stops - starts).sum())
            listed += _listed(name, segment_index, stretches, channel_ids[name], sampling_frequency)
    return {
        "seconds": round(samples / sampling_frequency, 6),
        "num_dropped": sum(one.num_dropped for one in damage.values()),
        "num_stretches": len(listed),
        "stretches": listed[:MAX_LISTED],
    }


def summarise_damage(facts: dict[str, Any] | None) -> str | None:
    """Return one line that describes the damage in a provenance; None if there is none."""
    if not facts or not facts["num_stretches"]:
        return None
    counts: dict[str, int] = {}
    for stretch in facts["stretches"]:
        counts[stretch["kind"]] = counts.get(stretch["kind"], 0) + 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return (
        f"{facts['num_stretches']} damaged stretches ({kinds}), {facts['seconds']:.3g} s of all channels: "
        f"{facts['num_dropped']} spikes dropped there; the provenance lists them"
    )


def _channels_of_units(network: WindowedNetwork) -> np.ndarray:
    """Return which channels each unit sees: (num_units, num_channels) bool."""
    if not isinstance(network, NeighbourhoodNetwork):
        return np.ones((network.num_units, network.num_channels), bool)
    sees = np.zeros((network.num_units, network.num_channels), bool)
    np.put_along_axis(sees, network.channel_index.cpu().numpy(), True, axis=1)
    return sees


def _count_damaged(spikes: Spikes, stretches: np.ndarray, sees: np.ndarray, radius: int) -> np.ndarray:
    """Return, for each spike, how many channels of its unit are damaged within the window."""
    counts = np.zeros(len(spikes), np.int32)
    on_all = stretches[stretches["channel_index"] == ALL_CHANNELS]
    is_hit = _within(spikes.sample_index, on_all, radius)
    for channel_index in np.unique(stretches["channel_index"]):
        if channel_index != ALL_CHANNELS:
            own = _within(spikes.sample_index, stretches[stretches["channel_index"] == channel_index], radius)
            counts += own & ~is_hit & sees[spikes.unit_index, channel_index]
    counts[is_hit] = sees.sum(axis=1)[spikes.unit_index[is_hit]]
    return counts


def _within(samples: np.ndarray, stretches: np.ndarray, radius: int) -> np.ndarray:
    """Return which samples lie in a stretch or within a radius of it."""
    starts, stops = union(stretches["start"] - radius, stretches["stop"] + radius)
    if not len(starts):
        return np.zeros(len(samples), bool)
    index = np.searchsorted(starts, samples, side="right") - 1
    return (index >= 0) & (samples < stops[np.maximum(index, 0)])


def _connected(stretches: np.ndarray) -> np.ndarray:
    """Join the parts of each channel and kind that were cut at the ends of blocks."""
    parts = [np.empty(0, STRETCH)]
    keys = np.unique(stretches[["channel_index", "kind"]])
    for key in keys:
        own = stretches[stretches[["channel_index", "kind"]] == key]
        starts, stops = union(own["start"], own["stop"])
        merged = np.zeros(len(starts), STRETCH)
        merged["start"], merged["stop"] = starts, stops
        merged["channel_index"], merged["kind"] = key["channel_index"], key["kind"]
        parts.append(merged)
    joined = np.concatenate(parts)
    return joined[np.lexsort((joined["channel_index"], joined["start"]))]


def _listed(
    group: str, segment_index: int, stretches: np.ndarray, channel_ids: Sequence[Any], rate_hz: float
) -> list[dict[str, Any]]:
    """Return stretches as JSON types, channels of one stretch together."""
    together: dict[tuple[int, int, int], list[int]] = {}
    for start, stop, channel_index, kind in stretches.tolist():
        together.setdefault((start, stop, kind), []).append(channel_index)
    return [
        {
            "group": group,
            "segment": segment_index,
            "start_s": round(start / rate_hz, 6),
            "stop_s": round(stop / rate_hz, 6),
            "kind": KINDS[kind],
            "channels": "all" if ALL_CHANNELS in channels else [str(channel_ids[c]) for c in channels],
        }
        for (start, stop, kind), channels in together.items()
    ]
