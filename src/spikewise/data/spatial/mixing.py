"""Weighted sums of near channels: a few weights for each channel, in compiled loops on all cores."""

from __future__ import annotations

import numpy as np

from spikewise.core.compiling import compiled
from spikewise.core.threads import on_all_cores

_CHANNELS_AT_ONCE = 16
"""Channels that one thread fills at a time."""


def mix_channels(traces: np.ndarray, channels: np.ndarray, weights: np.ndarray, mixed: np.ndarray) -> None:
    """Fill `mixed` with weighted sums of channels.

    Parameters
    ----------
    traces : ndarray of float32, shape (num_channels, num_samples)
    channels : ndarray of int64, shape (num_rows, K)
        Channels of each sum.
    weights : ndarray of float32, shape (num_rows, K)
        Their weights; 0 for none.
    mixed : ndarray of float32, shape (num_rows, num_samples)
    """

    def run(first: int) -> None:
        rows = slice(first, first + _CHANNELS_AT_ONCE)
        _mix(traces, channels[rows], weights[rows], mixed[rows])

    on_all_cores(run, range(0, len(mixed), _CHANNELS_AT_ONCE))


@compiled(fastmath={"contract"})
def _mix(traces, channels, weights, mixed):  # type: ignore[no-untyped-def]
    """Fill the rows of `mixed`; four channels are added at a time."""
    num_samples = mixed.shape[1]
    for row in range(len(mixed)):
        target = mixed[row]
        for index in range(num_samples):
            target[index] = 0
        used = channels[row][weights[row] != 0]
        factors = weights[row][weights[row] != 0]
        place = 0
        while place + 4 <= len(used):
            first, second = traces[used[place]], traces[used[place + 1]]
            third, fourth = traces[used[place + 2]], traces[used[place + 3]]
            a, b, c, d = factors[place], factors[place + 1], factors[place + 2], factors[place + 3]
            for index in range(num_samples):
                target[index] += a * first[index] + b * second[index] + c * third[index] + d * fourth[index]
            place += 4
        while place < len(used):
            only, factor = traces[used[place]], factors[place]
            for index in range(num_samples):
                target[index] += factor * only[index]
            place += 1
