"""Labelled units added to training windows at random lags.

Among a few labels, spikes that coincide by chance are rare. A network that has never seen such a pair learns
that units exclude one another: nearly all spikes that it then misses coincide with one of another unit,
however far away. So mean waveforms of the labelled units are added to the windows, of any units at any lag. A
unit at the window's centre is labelled; a unit beside the centre is an example of a near miss.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Chosen by hand, all of the following.
AMPLITUDE_RANGE = (0.85, 1.15)  # factors by which added templates are scaled
_LEAST_PEAK = 1.0  # in noise standard deviations; channels where a template stays lower are left out
_LEAST_PEAK_IN_ERRORS = 4.0  # the same in standard errors of a mean over few spikes
_TAPER = 0.1  # fraction of a template at either end over which it fades in and out


class Superposer:
    """Adds mean waveforms of labelled units to windows.

    Parameters
    ----------
    spans : Tensor
        (num_spans, span_samples, num_channels), around labelled spikes.
    unit_index : ndarray
        (num_spans,) unit of the spike in each span.
    num_units : int
    centre : int
        Sample of a span at which its spike is labelled.
    """

    def __init__(self, spans: Tensor, unit_index: np.ndarray, num_units: int, centre: int):
        self.centre = centre
        self.span_samples = spans.shape[1]
        ramp = int(_TAPER * self.span_samples)
        taper = torch.ones(self.span_samples)
        taper[:ramp] = torch.arange(1, ramp + 1) / (ramp + 1)
        taper[self.span_samples - ramp :] = taper[:ramp].flip(0)
        self.templates: dict[int, tuple[np.ndarray, slice]] = {}
        for unit in range(num_units):
            of_unit = torch.from_numpy(np.flatnonzero(unit_index == unit))
            if not len(of_unit):
                continue
            template = spans[of_unit].float().mean(dim=0) * taper[:, None]
            least = max(_LEAST_PEAK, _LEAST_PEAK_IN_ERRORS / len(of_unit) ** 0.5)
            stands_out = template.abs().amax(dim=0) > least
            channels = stands_out.nonzero().flatten()
            if len(channels):
                # A slice of channels, zero where one is left out: adding a slice is many times faster.
                near = slice(int(channels[0]), int(channels[-1]) + 1)
                self.templates[unit] = (template * stands_out)[:, near].contiguous().numpy(), near

    def add(
        self,
        windows: Tensor,
        targets: Tensor,
        label_radius: int,
        mean_count: float,
        random: np.random.Generator,
    ) -> None:
        """Add a random number of units to each window and label those at its centre, in place.

        Parameters
        ----------
        windows : Tensor
            (num_windows, window_samples, num_channels)
        targets : Tensor
            (num_windows, num_units)
        label_radius : int
            Lags from the window's centre up to this are labelled, in samples.
        mean_count : float
            Mean number of units for each window; the number is drawn from a Poisson distribution.
        random : Generator
        """
        if not self.templates:
            return
        num_windows, window_samples, _ = windows.shape
        units = np.array(list(self.templates))
        row = np.repeat(np.arange(num_windows), random.poisson(mean_count, num_windows))
        unit = units[random.integers(len(units), size=len(row))]
        furthest = window_samples // 2 + label_radius
        lag = random.integers(-furthest, furthest + 1, len(row))
        amplitude = random.uniform(*AMPLITUDE_RANGE, len(row)).astype(np.float32)
        begin = (window_samples - 1) // 2 + lag - self.centre  # where the template begins in the window
        first, last = begin.clip(0), (begin + self.span_samples).clip(max=window_samples)
        samples = windows.numpy()  # the same memory
        for index, window in enumerate(row):
            template, channels = self.templates[unit[index]]
            low, high = first[index], last[index]
            part = template[low - begin[index] : high - begin[index]]
            samples[window, low:high, channels] += amplitude[index] * part
        central = np.abs(lag) <= label_radius
        targets[row[central], unit[central]] = 1
