"""A sink of binned rates in the lab streaming layer, such as ``lsl-rates://rates?bin_ms=20``."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from spikewise.core.errors import SettingError
from spikewise.jobs.live.lsl import import_lsl
from spikewise.jobs.live.sinks import Emission, Units

_LAST_S = 0.3
"""How long the outlet stays open after its last sample, which would be lost otherwise; chosen by hand."""
_BIN_MS = 20.0
"""Usual length of a bin."""


class LslRatesSink:
    """A regular LSL stream with a channel for each unit: its rate in Hz in bins of equal length.

    A bin is sent as soon as none of its spikes can still come. Its time stamp is that of its end. Missing
    samples are bins without spikes.
    """

    def __init__(self, name: str, units: Units):
        self._lsl = import_lsl(f"the sink {name}")
        url = urlsplit(name)
        bin_ms = _bin_ms(name, parse_qs(url.query))
        self._rate, self._look_ahead = units.sampling_frequency, units.look_ahead
        self._bin = max(1, round(bin_ms * units.sampling_frequency / 1000))
        title, frequency = url.netloc or "spikewise-rates", self._rate / self._bin
        source_id = f"spikewise-{title}-{units.hash[:12]}"
        info = self._lsl.StreamInfo(title, "Rates", len(units.ids), frequency, "float32", source_id)
        channels = info.desc().append_child("channels")
        for unit_id in units.ids:
            channel = channels.append_child("channel")
            channel.append_child_value("label", str(unit_id))
            channel.append_child_value("unit", "Hz")
        self._outlet = self._lsl.StreamOutlet(info)
        self._number = 0  # of the first bin that is not sent
        self._counts: dict[int, np.ndarray] = {}
        self._num_units = len(units.ids)

    def send(self, emission: Emission) -> None:
        """Count spikes in their bins."""
        for sample, unit in zip(
            emission.spikes["sample_index"].tolist(), emission.spikes["unit_index"].tolist(), strict=True
        ):
            counts = self._counts.setdefault(sample // self._bin, np.zeros(self._num_units, np.float32))
            counts[unit] += 1

    def advance(self, num_samples: int) -> None:
        """Send the bins that are complete."""
        self._send_until(num_samples - self._look_ahead, num_samples)

    def close(self, facts: dict[str, Any] | None) -> None:
        """Send the last whole bins, and end the outlet."""
        if facts is not None:
            num_samples = facts["recording"]["num_samples"][0]
            self._send_until(num_samples, num_samples)
            if self._outlet.have_consumers():
                time.sleep(_LAST_S)
        del self._outlet

    def _send_until(self, stop: int, num_samples: int) -> None:
        now = self._lsl.local_clock()
        while (end := (self._number + 1) * self._bin) <= stop:
            counts = self._counts.pop(self._number, None)
            rates = np.zeros(self._num_units, np.float32) if counts is None else counts
            age = (num_samples - end) / self._rate
            self._outlet.push_sample((rates * (self._rate / self._bin)).tolist(), now - age)
            self._number += 1


def _bin_ms(name: str, query: dict[str, list[str]]) -> float:
    """Return the length of a bin from the name of a sink."""
    text = query.get("bin_ms", [str(_BIN_MS)])[-1]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if set(query) - {"bin_ms"} or not 1 <= value <= 60_000:
        raise SettingError(
            f"the sink {name} asks for {urlsplit(name).query!r}",
            "bin_ms, from 1 to 60000",
            "write it as in lsl-rates://rates?bin_ms=20",
        )
    return value
