"""Spikes of neurons that the model does not know: what its units leave unexplained of the traces.

On another day new neurons may fire beside the units that a model knows. The network has not seen them, and
may take their spikes for those of a unit that looks a little like them. So of each spike the waveforms of all
spikes nearby are subtracted from the traces. What is left on the channels of its unit is projected on the
model's temporal shapes. A spike is foreign if the energy of the rest is larger than noise explains, by more
than a part of the energy that its own waveform explains.

Shapes: P spikes in order of time, U units, M channels of a unit, S samples of a waveform, L of its middle, K
temporal shapes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spikewise.core.compiling import compiled
from spikewise.sorting.owner.loops import FAST, Waveforms

# Chosen by hand on days of seed 1 (benchmarks/days.py).
FOREIGN = 0.2
"""Largest energy of the rest relative to that of the spike's waveform."""
NOISY = 0.75
"""Noise may leave so much more energy than it does in the mean."""
FOREIGN_ROUNDS = 2
"""Two units may explain a foreign spike together: once one is left out, the other explains too little."""
SMALLEST_SHAPE = 1e-3
"""Shapes that others explain up to this part of their length are left out."""


class Explained(NamedTuple):
    """Spikes and how their waveforms explain the traces.

    Attributes
    ----------
    sample_index, unit_index : ndarray of int64
        (P,) in order of time.
    amplitude : ndarray of float64
        (P,) relative to the waveform.
    shift : ndarray of int64
        (P,) how many samples later than `sample_index` the waveform fits best.
    """

    sample_index: np.ndarray
    unit_index: np.ndarray
    amplitude: np.ndarray
    shift: np.ndarray


def orthonormal(shapes: np.ndarray) -> np.ndarray:
    """Return orthonormal shapes (K, L) that span the same as some shapes, float32."""
    _, sizes, rows = np.linalg.svd(shapes.astype(np.float64), full_matrices=False)
    return np.ascontiguousarray(rows[sizes > SMALLEST_SHAPE * sizes.max(initial=0)], np.float32)


def is_foreign(
    unexplained: np.ndarray, num_values: np.ndarray, noise: float, energy: np.ndarray
) -> np.ndarray:
    """Return which spikes (P,) are foreign.

    Parameters
    ----------
    unexplained : ndarray, shape (P,)
        Energy of the rest.
    num_values : ndarray, shape (P,)
        Of how many projections the energy is the sum.
    noise : float
        Mean energy of noise in one projection.
    energy : ndarray, shape (P,)
        Energy of the spike's waveform, as large as the spike.
    """
    return unexplained > (1 + NOISY) * noise * num_values + FOREIGN * energy


@compiled(fastmath=FAST)
def fill_unexplained(
    traces: tuple[np.ndarray, int],
    chosen: tuple[int, int],
    spikes: Explained,
    waveforms: tuple[Waveforms, np.ndarray, int],
    basis: np.ndarray,
    reach: int,
    unexplained: np.ndarray,
) -> None:
    """Fill the energies of the rest of the spikes from the first to the last of `chosen`.

    `traces` are values and a step: sample s of channel c is ``values[c * step + s]``; samples count from the
    same one as those of the spikes. `waveforms` are those of the rule, whole (U, M, S) and the samples of
    these ahead of the spike. Spikes farther than `reach` samples contribute nothing.
    """
    values, step = traces
    units, whole, ahead = waveforms
    length = basis.shape[1]
    rest = np.empty(length, np.float32)
    for index in range(chosen[0], chosen[1]):
        unit, begin = spikes.unit_index[index], spikes.sample_index[index] - units.before
        first = index
        while first > 0 and spikes.sample_index[index] - spikes.sample_index[first - 1] <= reach:
            first -= 1
        unexplained[index] = 0
        for near in range(units.counts[unit]):
            channel = units.channel_index[unit, near]
            for at in range(length):
                rest[at] = values[channel * step + begin + at]
            other = first
            while other < len(spikes.sample_index):
                if spikes.sample_index[other] - spikes.sample_index[index] > reach:
                    break
                _subtract(rest, begin, channel, other, spikes, units, whole, ahead)
                other += 1
            for shape in range(len(basis)):
                product = np.float32(0)
                for at in range(length):
                    product += basis[shape, at] * rest[at]
                unexplained[index] += product * product


@compiled(fastmath=FAST)
def _subtract(rest, begin, channel, other, spikes, units, whole, ahead):  # type: ignore[no-untyped-def]
    """Subtract the waveform of a spike on a channel from samples from `begin` on."""
    unit = spikes.unit_index[other]
    for near in range(units.counts[unit]):
        if units.channel_index[unit, near] == channel:
            start = spikes.sample_index[other] + spikes.shift[other] - ahead - begin
            low, high = max(0, start), min(len(rest), start + whole.shape[2])
            for at in range(low, high):
                rest[at] -= spikes.amplitude[other] * whole[unit, near, at - start]
            return
