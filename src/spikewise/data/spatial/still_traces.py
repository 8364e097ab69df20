"""Traces as if the probe had stood still: each channel is predicted at the place to which its tissue moved.

The prediction is that of a Gaussian process over the contacts nearby (kriging with noise), whose covariance
falls with the distance as a Gaussian. It is smooth, so a spike keeps its shape better between two contacts
than with weights that only pass through the contacts (docs/motion.md compares them).
"""

from __future__ import annotations

import numpy as np
from spikeinterface.core.motion import Motion

from spikewise.data.spatial.mixing import mix_channels
from spikewise.data.spatial.motion import displacement_at

# Chosen by hand on the scene `drift60` of seed 1.
WIDTH_UM = 40.0
"""Standard deviation of the covariance, times the square root of 2."""
NOISE = 0.1
"""Variance of the noise, relative to that of the signal."""
REACH_UM = 100.0
"""Contacts farther from the place are not used."""
MOST_NEAR = 24
"""Most contacts of a prediction: the nearest."""
STEP_S = 0.1
"""The displacement is constant for so long."""
STEP_UM = 1.0
"""Displacements are rounded to multiples of this."""
_SMALLEST_WEIGHT = 0.005
"""Smaller weights are left out."""


class StillTraces:
    """Removes a motion from traces.

    Parameters
    ----------
    motion : Motion
    positions : ndarray, shape (num_channels, 2 or 3)
        Positions of the contacts in um.
    sampling_frequency : float
    is_silent : ndarray of bool, shape (num_channels,)
        Channels that are not used and stay as they are.
    """

    def __init__(
        self, motion: Motion, positions: np.ndarray, sampling_frequency: float, is_silent: np.ndarray
    ):
        self.motion = motion
        self._positions = np.asarray(positions, float)
        self._rate = sampling_frequency
        self._step = max(1, round(STEP_S * sampling_frequency))
        self._is_silent = is_silent
        self._good = np.flatnonzero(~is_silent)
        self._weights: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        self._rows: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def apply(self, traces: np.ndarray, segment: int, start: int) -> np.ndarray:
        """Return the traces (num_samples, num_channels) from a frame on without the motion, float32."""
        by_channel = np.ascontiguousarray(traces.T)
        still = np.empty_like(by_channel)
        stop = start + len(traces)
        for step in range(start // self._step, -(-stop // self._step)):
            begin, end = max(start, step * self._step), min(stop, (step + 1) * self._step)
            part = slice(begin - start, end - start)
            mix_channels(by_channel[:, part], *self._mixture(segment, step), still[:, part])
        return still.T

    def _mixture(self, segment: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return channels and weights of a step in time."""
        middle_s = np.array([(step + 0.5) * self._step / self._rate])
        moved = displacement_at(self.motion, middle_s, self._positions[:, 1], segment)[0]
        steps = np.rint(moved / STEP_UM).astype(np.int64)
        key = steps.tobytes()
        if key not in self._weights:
            if len(self._weights) > 200:  # bounded, however long the recording
                self._weights.pop(next(iter(self._weights)))
            self._weights[key] = self._mixture_of(steps)
        return self._weights[key]

    def _mixture_of(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return channels (C, K) and weights (C, K) for a displacement of each channel."""
        rows = [self._row(channel, int(moved)) for channel, moved in enumerate(steps)]
        channels = np.stack([row[0] for row in rows])
        return channels, np.stack([row[1] for row in rows])

    def _row(self, channel: int, moved: int) -> tuple[np.ndarray, np.ndarray]:
        """Return channels (K,) and weights (K,) of one channel at one displacement."""
        key = channel, moved
        if key not in self._rows:
            self._rows[key] = self._predict(channel, moved * STEP_UM)
        return self._rows[key]

    def _predict(self, channel: int, moved: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the channels and weights that predict a contact's traces at another depth."""
        near, weights = np.full(MOST_NEAR, channel), np.zeros(MOST_NEAR, np.float32)
        if self._is_silent[channel]:
            weights[0] = 1
            return near, weights
        place = self._positions[channel].copy()
        place[1] += moved
        found, exact = predict_place(place, self._positions[self._good])
        near[: len(found)], weights[: len(found)] = self._good[found], exact
        return near, weights


def predict_place(
    place: np.ndarray, contacts: np.ndarray, noise: float = NOISE
) -> tuple[np.ndarray, np.ndarray]:
    """Return contacts (K,), nearest first, and weights (K,) that predict the traces at a place.

    Parameters
    ----------
    place : ndarray, shape (2 or 3,)
        In um.
    contacts : ndarray, shape (num_contacts, 2 or 3)
    noise : float
        Variance of the noise of the traces, relative to that of the signal.

    Returns
    -------
    tuple of ndarray
        Both are empty where no contact is near.
    """
    far = np.linalg.norm(contacts - place, axis=1)
    order = np.argsort(far, kind="stable")[:MOST_NEAR]
    order = order[far[order] <= REACH_UM]
    if not len(order):
        return order, np.zeros(0)
    apart = np.linalg.norm(contacts[order][:, None] - contacts[order][None], axis=2)
    covariance = np.exp(-((apart / WIDTH_UM) ** 2)) + noise * np.eye(len(order))
    exact = np.linalg.solve(covariance, np.exp(-((far[order] / WIDTH_UM) ** 2)))
    exact[np.abs(exact) < _SMALLEST_WEIGHT] = 0
    return order, exact
