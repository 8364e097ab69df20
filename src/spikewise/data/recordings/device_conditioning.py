"""Band-pass, common median and scaling on a GPU: what :mod:`spikewise.data.recordings.conditioning` gives, to rounding.

A recursion over time is slow on a GPU. The filter's response is therefore multiplied with the spectrum of a
stretch, once forward and once backward, as the recursion runs: what lies before the first sample is taken for
constant in both directions, so that the ends of a recording come out alike, too. All spectra of a recording
have one length, whatever is asked for.

Raw traces are (num_samples, num_channels) as in files; on the device traces are (num_channels, num_samples).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.signal
import torch
from torch import Tensor

from spikewise.data.recordings.conditioning import FILTER_ORDER, MARGIN_PERIODS, ConditionedRecording

NUMBERS = tuple(np.dtype(name) for name in ("int8", "uint8", "int16", "float32"))
"""Types of raw samples that lose nothing on the way; others are conditioned on the host."""
_VALUES_AT_ONCE = 2**24
_FADED = 1e-8
"""Of a filter's response, what is nothing."""


@dataclass(frozen=True)
class Conditioning:
    """What is done to raw traces, as :class:`spikewise.data.recordings.conditioning.ConditionedRecording` does it.

    Attributes
    ----------
    sections : ndarray or None
        (num_sections, 6) of the band-pass.
    margin : int
        Samples that are read to either side for it.
    averaged : ndarray of int
        Channels of the median; none without.
    gains, offsets : ndarray of float32
        (num_channels,)
    """

    sections: np.ndarray | None
    margin: int
    averaged: np.ndarray
    gains: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, recording: ConditionedRecording) -> Conditioning:
        """Return what a recording does to its parent."""
        given, rate, num_channels = (
            recording._kwargs,
            recording.get_sampling_frequency(),
            recording.get_num_channels(),
        )
        band_hz, reference = given["band_hz"], given["reference"]
        gains, offsets = (
            np.full(num_channels, usual, np.float32) if values is None else np.asarray(values, np.float32)
            for values, usual in ((given["gains"], 1), (given["offsets"], 0))
        )
        averaged = np.empty(0, np.int64) if reference is None else np.flatnonzero(reference)
        if band_hz is None:
            return cls(None, 0, averaged, gains, offsets)
        sections = scipy.signal.butter(FILTER_ORDER, band_hz, "bandpass", output="sos", fs=rate)
        return cls(sections, int(MARGIN_PERIODS * rate / band_hz[0]), averaged, gains, offsets)


class DeviceConditioner:
    """Conditions stretches of raw traces on a device.

    Parameters
    ----------
    conditioning : Conditioning
    longest : int
        Samples of the longest stretch, without its margins.
    device : torch.device
    """

    def __init__(self, conditioning: Conditioning, longest: int, device: torch.device):
        self._bandpass = None
        if conditioning.sections is not None:
            self._bandpass = _Bandpass(conditioning.sections, longest + 2 * conditioning.margin, device)
        averaged = torch.from_numpy(conditioning.averaged)
        self._averaged = averaged.to(device) if len(averaged) else None
        self._gains, self._offsets = (
            torch.from_numpy(values).to(device)[:, None]
            for values in (conditioning.gains, conditioning.offsets)
        )

    @torch.inference_mode()
    def __call__(self, raw: Tensor, left: int, right: int) -> Tensor:
        """Filter, reference and scale a stretch.

        Parameters
        ----------
        raw : Tensor
            (num_samples, num_channels) of one of :data:`NUMBERS`, on the device, with its margins.
        left, right : int
            Samples of the margins.

        Returns
        -------
        Tensor
            (num_channels, num_samples - left - right) float32
        """
        inside = slice(left, len(raw) - right)
        traces = _by_channel(raw[inside]) if self._bandpass is None else self._bandpass(raw, inside)
        if self._averaged is not None:
            traces -= medians(traces.index_select(0, self._averaged).T)
        return traces.mul_(self._gains).add_(self._offsets)


def _by_channel(raw: Tensor) -> Tensor:
    return raw.T.float().contiguous()


def medians(rows: Tensor) -> Tensor:
    """Return the median of each row of (num_rows, num_values); of two middle values their mean."""
    rows = rows.contiguous()
    lower = rows.median(dim=1).values
    if rows.shape[1] % 2:
        return lower
    is_above = rows > lower[:, None]
    upper = rows.masked_fill(~is_above, torch.inf).amin(dim=1)
    has_equal = is_above.sum(dim=1) < rows.shape[1] // 2
    return 0.5 * (lower + torch.where(has_equal, lower, upper))


class _Bandpass:
    """The filter, forward and backward, as a product of spectra.

    Parameters
    ----------
    sections : ndarray
        (num_sections, 6)
    longest : int
        Samples of the longest stretch, with its margins.
    device : torch.device
    """

    def __init__(self, sections: np.ndarray, longest: int, device: torch.device):
        # As many samples as sosfiltfilt mirrors at either end, where there are so many.
        zeros = min((sections[:, 2] == 0).sum(), (sections[:, 5] == 0).sum())
        self._mirrored = int(3 * (2 * len(sections) + 1 - zeros))
        slowest = np.abs(scipy.signal.sos2zpk(sections)[1]).max()
        fading = int(np.log(_FADED) / np.log(slowest)) + 1  # spectra are of signals that begin again
        self._length = scipy.fft.next_fast_len(longest + 2 * self._mirrored + fading, real=True)
        angles = 2 * np.pi * np.arange(self._length // 2 + 1) / self._length
        response = scipy.signal.sosfreqz(sections, worN=angles)[1]
        response[0] = 0  # to the last digit
        self._response = torch.from_numpy(response.astype(np.complex64)).to(device)
        self._backward = self._response.conj().resolve_conj()

    def __call__(self, raw: Tensor, inside: slice) -> Tensor:
        """Return a part of the filtered traces (num_channels, num_samples) of raw ones with margins."""
        num_channels = raw.shape[1]
        filtered = torch.empty(num_channels, inside.stop - inside.start, device=raw.device)
        width = max(1, _VALUES_AT_ONCE // self._length)
        for first in range(0, num_channels, width):
            channels = slice(first, min(first + width, num_channels))
            values, padding = self._extended(raw[:, channels])
            begin = padding + inside.start
            filtered[channels] = self._filtered(values)[:, begin : begin + filtered.shape[1]]
        return filtered

    def _extended(self, raw: Tensor) -> tuple[Tensor, int]:
        """Return traces by channel, less their first sample, mirrored at both ends; and by how much."""
        wide = raw.T if raw.is_floating_point() else raw.T.to(torch.int32)
        values = (wide - wide[:, :1]).float()
        num_samples = values.shape[1]
        padding = min(self._mirrored, num_samples - 1)
        # As far beyond the value at the end as the mirrored sample is from it.
        before = -values[:, 1 : padding + 1].flip(1)
        last = values[:, num_samples - 1 :]
        after = 2 * last - values[:, num_samples - 1 - padding : num_samples - 1].flip(1)
        return torch.cat((before, values, after), dim=1), padding

    def _filtered(self, values: Tensor) -> Tensor:
        """Filter forward and backward; beyond its ends a signal is constant, which a band-pass removes."""
        num_samples = values.shape[1]
        padded = torch.zeros(len(values), self._length, device=values.device)
        padded[:, :num_samples] = values - values[:, :1]
        spectrum = torch.fft.rfft(padded).mul_(self._response)
        torch.fft.irfft(spectrum, self._length, out=padded)
        padded[:, :num_samples] -= padded[:, num_samples - 1 : num_samples].clone()
        padded[:, num_samples:] = 0
        spectrum = torch.fft.rfft(padded).mul_(self._backward)
        return torch.fft.irfft(spectrum, self._length)[:, :num_samples]
