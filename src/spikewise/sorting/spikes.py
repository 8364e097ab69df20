"""The spikes that a detector finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spikes:
    """Spikes in order of time, then unit; all arrays are (num_spikes,).

    Attributes
    ----------
    sample_index, unit_index : ndarray of int64
    response : ndarray of float32
        Height of the peak: 1 for a perfect spike.
    """

    sample_index: np.ndarray
    unit_index: np.ndarray
    response: np.ndarray

    def __len__(self) -> int:
        """Return the number of spikes."""
        return len(self.sample_index)

    def chosen(self, kept: np.ndarray) -> Spikes:
        """Return those at the indices, or of the mask, `kept`."""
        return Spikes(self.sample_index[kept], self.unit_index[kept], self.response[kept])

    @classmethod
    def concatenate(cls, parts: list[Spikes]) -> Spikes:
        """Join spikes that follow one another in time."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        return cls(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("sample_index", "unit_index", "response")
            )
        )
