"""Percentiles of delays in little memory, for streams of any length."""

from __future__ import annotations

import math

import numpy as np

_LOWEST_S, _STEP, _NUM_BINS = 1e-6, 1.01, 2100
"""Bins grow by one percent, from a microsecond to 20 minutes."""
_EDGES_MS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000)
"""Edges of the bins of a histogram."""
_LOG_STEP = math.log(_STEP)


class Delays:
    """Counts delays; percentiles are right to one percent, the largest delay is exact."""

    def __init__(self) -> None:
        self._counts = np.zeros(_NUM_BINS, np.int64)
        self.largest_s = 0.0

    def add(self, delays_s: np.ndarray | float, count: int = 1) -> None:
        """Count delays, each `count` times."""
        for delay_s in np.ravel(delays_s).tolist():
            place = math.ceil(math.log(max(delay_s, _LOWEST_S) / _LOWEST_S) / _LOG_STEP)
            self._counts[min(place, _NUM_BINS - 1)] += count
            self.largest_s = max(self.largest_s, delay_s)

    def __len__(self) -> int:
        """Return how many delays were counted."""
        return int(self._counts.sum())

    def summary_ms(self) -> dict[str, float | int]:
        """Return how many there are, and median, 99th percentile and maximum in milliseconds."""
        count = len(self)
        if not count:
            return {"count": 0}
        return {
            "count": count,
            "p50_ms": self._percentile_ms(0.5),
            "p99_ms": self._percentile_ms(0.99),
            "max_ms": round(1000 * self.largest_s, 3),
        }

    def histogram(self) -> dict[str, list[float]]:
        """Return edges in ms, and the counts below the first, between two of them, above the last."""
        places = [math.ceil(math.log(edge / 1000 / _LOWEST_S) / _LOG_STEP) for edge in _EDGES_MS]
        counts = [float(part.sum()) for part in np.split(self._counts, places)]
        return {"edges_ms": list(_EDGES_MS), "counts": counts}

    def _percentile_ms(self, share: float) -> float:
        rank = np.ceil(share * len(self))
        place = int(np.searchsorted(np.cumsum(self._counts), rank))
        return round(1000 * min(_LOWEST_S * _STEP**place, self.largest_s), 3)
