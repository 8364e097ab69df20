"""Band-pass, common median and scaling on a GPU, equal to those on the CPU up to rounding.

The CPU version is :mod:`spikewise.data.recordings.conditioning`. A recursion over time is slow on a GPU, so
the spectrum of a stretch is multiplied by the filter's response, once forward and once backward. As in the
recursion, the signal before the first sample counts as constant in both directions, so the ends of a
recording agree too. All spectra of a recording have one length, for any request.

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
from spikewise.data.recordings.conditioning_loops import LARGEST_STEP, STEP

NUMBERS = tuple(np.dtype(name) for name in ("int8", "uint8", "int16", "float32"))
"""Types of raw samples that the GPU version handles without loss; others are conditioned on the CPU."""
_VALUES_AT_ONCE = 2**24
"""Values in one Fourier transform, which bounds the memory of the device; chosen by hand."""
_FADED = 1e-8
"""Fraction of a filter's response that counts as zero; chosen by hand."""


@dataclass(frozen=True)
class Conditioning:
    """The processing of raw traces by a :class:`spikewise.data.recordings.conditioning.ConditionedRecording`.

    Attributes
    ----------
    sections : ndarray or None
        (num_sections, 6) sections of the band-pass; None for no band-pass.
    margin : int
        Samples that are read on either side for the band-pass.
    averaged : ndarray of int
        Channels of the common median; empty for no median.
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
        """Return the processing that a recording applies to its parent."""
        options, rate = recording._kwargs, recording.get_sampling_frequency()
        num_channels = recording.get_num_channels()
        band_hz, reference = options["band_hz"], options["reference"]
        gains, offsets = (
            np.full(num_channels, default, np.float32) if values is None else np.asarray(values, np.float32)
            for values, default in ((options["gains"], 1), (options["offsets"], 0))
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
        Number of samples of the longest stretch, without its margins.
    device : torch.device
    """

    def __init__(self, conditioning: Conditioning, longest: int, device: torch.device):
        self._bandpass = None
        if conditioning.sections is not None:
            self._bandpass = _Bandpass(conditioning.sections, longest + 2 * conditioning.margin, device)
        averaged = torch.from_numpy(conditioning.averaged)
        self._averaged = averaged.to(device) if len(averaged) else None
        self._gains, self._offsets = (
            torch.from_numpy(values / np.float32(STEP)).to(device)[:, None]
            for values in (conditioning.gains, conditioning.offsets)
        )

    @torch.inference_mode()
    def __call__(self, raw: Tensor, left: int, right: int) -> Tensor:
        """Filter, reference and scale a stretch, and round it as the host does.

        Parameters
        ----------
        raw : Tensor
            (num_samples, num_channels) of one of :data:`NUMBERS`, on the device, with its margins.
        left, right : int
            Number of samples of the margins.

        Returns
        -------
        Tensor
            (num_channels, num_samples - left - right) float32
        """
        inside = slice(left, len(raw) - right)
        traces = _by_channel(raw[inside]) if self._bandpass is None else self._bandpass(raw, inside)
        if self._averaged is not None:
            traces -= medians(traces.index_select(0, self._averaged).T)
        steps = traces.mul_(self._gains).add_(self._offsets).round_()
        return steps.clamp_(-LARGEST_STEP, LARGEST_STEP).mul_(STEP)


def _by_channel(raw: Tensor) -> Tensor:
    return raw.T.float().contiguous()


def medians(rows: Tensor) -> Tensor:
    """Return the median of each row of (num_rows, num_values); the mean of two middle values."""
    rows = rows.contiguous()
    lower = rows.median(dim=1).values
    if rows.shape[1] % 2:
        return lower
    is_above = rows > lower[:, None]
    upper = rows.masked_fill(~is_above, torch.inf).amin(dim=1)
    has_equal = is_above.sum(dim=1) < rows.shape[1] // 2
    return 0.5 * (lower + torch.where(has_equal, lower, upper))


class _Bandpass:
    """The band-pass, forward and backward, as a product of spectra.

    Parameters
    ----------
    sections : ndarray
        (num_sections, 6)
    longest : int
        Number of samples of the longest stretch, with its margins.
    device : torch.device
    """

    def __init__(self, sections: np.ndarray, longest: int, device: torch.device):
        # The number of samples that sosfiltfilt mirrors at either end, if there are so many.
        zeros = min((sections[:, 2] == 0).sum(), (sections[:, 5] == 0).sum())
        self._mirrored = int(3 * (2 * len(sections) + 1 - zeros))
        slowest = np.abs(scipy.signal.sos2zpk(sections)[1]).max()
        fading = int(np.log(_FADED) / np.log(slowest)) + 1  # spectra are of periodic signals
        self._length = scipy.fft.next_fast_len(longest + 2 * self._mirrored + fading, real=True)
        angles = 2 * np.pi * np.arange(self._length // 2 + 1) / self._length
        response = scipy.signal.sosfreqz(sections, worN=angles)[1]
        response[0] = 0  # exactly
        self._response = torch.from_numpy(response.astype(np.complex64)).to(device)
        self._backward = self._response.conj().resolve_conj()

    def __call__(self, raw: Tensor, inside: slice) -> Tensor:
        """Return the part `inside` (num_channels, num_samples) of the filtered raw traces."""
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
        """Return traces by channel, minus their first sample, mirrored at both ends; and by how much."""
        wide = raw.T if raw.is_floating_point() else raw.T.to(torch.int32)
        values = (wide - wide[:, :1]).float()
        num_samples = values.shape[1]
        padding = min(self._mirrored, num_samples - 1)
        # Point reflection at the end: the value at the end plus its difference to the mirrored sample.
        before = -values[:, 1 : padding + 1].flip(1)
        last = values[:, num_samples - 1 :]
        after = 2 * last - values[:, num_samples - 1 - padding : num_samples - 1].flip(1)
        return torch.cat((before, values, after), dim=1), padding

    def _filtered(self, values: Tensor) -> Tensor:
        """Filter forward and backward; a signal is constant beyond its ends, which a band-pass removes."""
        num_samples = values.shape[1]
        padded = torch.zeros(len(values), self._length, device=values.device)
        padded[:, :num_samples] = values - values[:, :1]
        spectrum = torch.fft.rfft(padded).mul_(self._response)
        torch.fft.irfft(spectrum, self._length, out=padded)
        padded[:, :num_samples] -= padded[:, num_samples - 1 : num_samples].clone()
        padded[:, num_samples:] = 0
        spectrum = torch.fft.rfft(padded).mul_(self._backward)
        return torch.fft.irfft(spectrum, self._length)[:, :num_samples]
