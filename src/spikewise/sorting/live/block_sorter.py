"""What sorters of running streams have in common: blocks are checked, and gaps end stretches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from spikewise.core.errors import RecordingError, SettingError
from spikewise.data.recordings.channels import LARGEST

SPIKE = np.dtype([("sample_index", np.int64), ("unit_index", np.int64), ("response", np.float32)])
"""A spike of a stream."""


@dataclass(frozen=True)
class StreamLatency:
    """How long a spike of a stream is not certain, apart from computing time.

    Attributes
    ----------
    look_ahead_samples : int
        Samples after a spike that must be known before it is returned, at most.
    look_ahead_ms : float
        The same in milliseconds.
    block_samples : int
        Spikes become certain block by block: in blocks of so many samples, up to so many samples earlier.
    filter_ms : float
        Look-ahead of the filter: 0, it is causal.
    """

    look_ahead_samples: int
    look_ahead_ms: float
    block_samples: int
    filter_ms: float = 0.0


class BlockSorter(ABC):
    """Sorts a running stream of raw samples.

    Attributes
    ----------
    num_columns : int
        Columns of a block.
    """

    num_columns: int
    _used: np.ndarray
    """Columns that are sorted."""
    _start: int
    """First sample of the stretch."""

    def push(self, block: np.ndarray) -> np.ndarray:
        """Take the next samples; return the spikes that are certain now.

        Rows with NaN, or values that no electrode gives (above 1e12), on channels that the model uses are a
        gap.

        Parameters
        ----------
        block : ndarray
            (num_samples, num_columns) of any real type, and of any length; with one column also
            (num_samples,).

        Returns
        -------
        ndarray of SPIKE
            Spikes with `sample_index`, counted from the first sample pushed, `unit_index` and `response`, in
            the order of time, then unit. All spikes of earlier calls come before them.

        Raises
        ------
        RecordingError
            If the block has another number of columns, or no real numbers.
        """
        block = self._checked(block)
        if block.dtype.kind == "f" and not np.abs(block[:, self._used]).max(initial=0.0) <= LARGEST:
            is_good = (np.abs(block[:, self._used]) <= LARGEST).all(axis=1)  # NaN is not
            edges = np.flatnonzero(np.diff(is_good)) + 1
            return np.concatenate(
                [
                    self._push(part) if is_good[first] else self.gap(len(part))
                    for part, first in zip(np.split(block, edges), [0, *edges.tolist()], strict=True)
                ]
            )
        return self._push(block)

    def gap(self, num_samples: int) -> np.ndarray:
        """Report that some samples are missing; return the spikes before them that were not certain yet.

        Parameters
        ----------
        num_samples : int
            Missing samples, 0 or more: later spikes are counted on from there.

        Returns
        -------
        ndarray of SPIKE
        """
        if num_samples < 0:
            raise SettingError(
                f"a gap of {num_samples} samples is reported", "it must be 0 or more samples", "correct it"
            )
        rest = self.flush()
        self._start += int(num_samples)
        return rest

    @abstractmethod
    def flush(self) -> np.ndarray:
        """Return the rest of the spikes, as at the end of a recording; a later block begins a new stretch.

        Returns
        -------
        ndarray of SPIKE
        """

    @abstractmethod
    def _push(self, block: np.ndarray) -> np.ndarray:
        """Take samples of which all are good."""

    def _checked(self, block: np.ndarray) -> np.ndarray:
        """Return a block as (num_samples, num_columns) of a type that the loops take.

        They are compiled once for each type of array. So all are made alike: contiguous, and not writeable,
        as those from a message or a file are.
        """
        block = np.asarray(block)
        if block.ndim == 1 and self.num_columns == 1:
            block = block[:, np.newaxis]
        if block.ndim != 2 or block.shape[1] != self.num_columns:
            raise RecordingError(
                f"the block has the shape {block.shape}",
                f"(num_samples, {self.num_columns}): one column for each of the {self.num_columns} channels",
                "send these channels, or say which columns there are, with channel_ids or num_columns",
            )
        if block.dtype.kind not in "iuf":
            raise RecordingError(
                f"the block has the type {block.dtype}", "whole or floating-point numbers", "convert it"
            )
        if block.dtype == np.float16:
            block = block.astype(np.float32)
        native = block if block.dtype.isnative else block.astype(block.dtype.newbyteorder("="))
        alike = np.ascontiguousarray(native).view()
        alike.flags.writeable = False
        return alike


def check_gain(gain_to_uV: float | None) -> None:
    """Raise SettingError unless a gain is None or can be used."""
    if gain_to_uV is not None and not 0 < abs(gain_to_uV) < np.inf:
        raise SettingError(
            f"the setting gain_to_uV is {gain_to_uV!r}", "a finite number other than 0", "change it"
        )
