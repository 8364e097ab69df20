"""What the spikes of each unit look like: mean waveform, and how much their amplitudes vary.

Everything is measured on spikes that were found, in the stretches of the recording that are sorted again.
The mean waveform is a median over spikes that are aligned with each other, so that other spikes near them do
not change it. The amplitude of a spike is its projection on the mean waveform. Small spikes may have been
missed: so the amplitudes are described by a Gaussian that is fitted to the upper half of them.
Noise makes amplitudes vary, too; its variance is subtracted. Only windows count here in which little is left
beside the mean waveform: so spikes of other units do not look like variation. The variation of a unit near
the noise is uncertain, and is drawn towards that of the other units.

Traces are in standard deviations of the noise; amplitudes are fractions of the mean waveform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.interpolate import CubicSpline

from spikewise.data.recordings.reader import Traces
from spikewise.models.checkpoint import GroupModel
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.output.trust.divisions import Division, find_division
from spikewise.output.trust.stretches import Stretch, TrainsOfGroup

# All of these were chosen by hand.
BEFORE_MS, AFTER_MS = 1.4, 2.4
"""Window of a mean waveform around the spike."""
MAX_SPIKES, MAX_WINDOWS, FEWEST_WINDOWS = 200, 16_000, 60
"""Most spikes of a unit from which its shape is measured; most of all together, which bounds the memory;
and the number that each unit may always have."""
FEWEST_SPIKES = 5
"""A unit with fewer spikes has no shape, and nothing is estimated of it."""
NUM_PHASES = 8
"""Spikes fall between samples: each mean waveform is kept at so many shifts within a sample."""
_REACH_UM = 120.0
"""Channels of a mean waveform lie within this distance of the channel nearest to the unit."""
_LEAST_PEAK = 0.35
"""Channels on which a mean waveform is smaller than this are left out."""
ALIGN_MS = 0.15
"""Farthest that a spike is moved to be aligned with the mean waveform."""
_TAPER_MS = 0.3
"""Ends of the mean waveform over which it fades in and out."""
_NUM_NOISE = 150
"""Number of random times at which the noise is projected on the mean waveform."""
_MOST_VARIATION = 0.4
"""Largest standard deviation of amplitudes that is added."""
_CLEAR_NOISE, _SURE_NOISE = 0.08, 0.05
"""Units with less noise than the first tell the usual variation; with the second, their own counts half."""
_PULL = (0.5, 10.0)
"""Least and most weight of the usual variation, relative to the unit's own."""
_USUAL_VARIATION = 0.08
"""Variation if no unit is clear."""
_ONE_SIGMA = 0.6827
"""Fraction of a Gaussian within a standard deviation of its mean."""
_CLEAN = 0.5
"""Fraction of the windows, those with the smallest residual, on which amplitudes are measured."""


@dataclass(frozen=True)
class UnitShape:
    """The shape of the spikes of one unit.

    Attributes
    ----------
    channels : ndarray of int
        (num_near,) indices of the channels in the group, the largest first.
    phases : ndarray of float32
        (:data:`NUM_PHASES`, num_samples, num_near) the mean waveform at shifts of 0 to 1 sample.
    num_before : int
        Samples before the spike.
    mean, variation : float
        Amplitude of the spikes, as a fraction of the mean waveform, and its standard deviation without noise.
    noise : float
        Standard deviation of an amplitude that is due to noise.
    change : float
        Amplitude of the last third of the spikes over that of the first third, minus 1.
    num_spikes : int
        Spikes that it was measured on.
    division : Division or None
        How the spikes divide into two shapes; None if they do not.
    parts : tuple of UnitShape
        Both shapes.
    """

    channels: np.ndarray
    phases: np.ndarray
    num_before: int
    mean: float
    variation: float
    noise: float
    change: float
    num_spikes: int = MAX_SPIKES
    division: Division | None = None
    parts: tuple[UnitShape, ...] = ()

    @property
    def waveform(self) -> np.ndarray:
        """The mean waveform (num_samples, num_near)."""
        return self.phases[0]

    @property
    def energy(self) -> float:
        """Sum of the squares of the mean waveform."""
        return float(np.square(self.waveform).sum())

    @property
    def peaks(self) -> np.ndarray:
        """Largest deflection on each channel (num_near,), in standard deviations of the noise."""
        return np.abs(self.waveform).max(axis=0)

    @property
    def peak(self) -> float:
        """Largest deflection, in standard deviations of the noise."""
        return float(self.peaks.max())

    def amplitudes(self, traces: np.ndarray, samples: np.ndarray, reach: int = 0) -> np.ndarray:
        """Return the amplitude of spikes in traces.

        Parameters
        ----------
        traces : ndarray
            (num_samples, num_channels) of the group.
        samples : ndarray of int
            (num_spikes,) samples of the spikes; all windows must lie within the traces.
        reach : int
            Largest shift at which the projection may be larger.
        """
        window = np.arange(len(self.waveform)) - self.num_before
        flat = self.waveform.reshape(-1) / self.energy
        best = np.full(len(samples), -np.inf)
        for shift in range(-reach, reach + 1):
            at = samples[:, None] + shift + window
            best = np.maximum(best, traces[:, self.channels][at].reshape(len(samples), -1) @ flat)
        return best

    def windows(self, traces: np.ndarray, samples: np.ndarray, reach: int) -> np.ndarray:
        """Return windows of the traces (num_spikes, num_samples, num_near), aligned with the mean waveform.

        Parameters
        ----------
        traces : ndarray
            (num_samples, num_channels) of the group.
        samples : ndarray of int
            (num_spikes,) samples of the spikes; windows with `reach` more at either end must lie within the
            traces.
        reach : int
            Farthest that a spike is moved.
        """
        window = np.arange(-reach, len(self.waveform) + reach) - self.num_before
        wide = traces[(samples[:, None] + window)[:, :, None], self.channels]
        return _aligned(wide, self.waveform, reach)[:, reach : reach + len(self.waveform)]


def measure_shapes(
    traces: Traces,
    trains: TrainsOfGroup,
    stretches: Sequence[Stretch],
    near: Sequence[np.ndarray],
    generator: np.random.Generator,
    report: Callable[[], None] = lambda: None,
) -> list[UnitShape | None]:
    """Measure the shape of each unit of a group.

    Parameters
    ----------
    traces : Traces
        Preprocessed traces of the group.
    trains : TrainsOfGroup
        The spikes that were found.
    stretches : sequence of Stretch
        Where spikes are read, in order of time.
    near : sequence of ndarray
        Channels near each unit, as from :func:`channels_near`.
    generator : Generator
        Chooses the times at which noise is projected.
    report : callable
        Called after each stretch.

    Returns
    -------
    list of UnitShape or None
        None for a unit with fewer than :data:`FEWEST_SPIKES` spikes in the stretches, or without a waveform.
    """
    rate = traces.sampling_frequency
    before, after = round(BEFORE_MS * rate / 1000), round(AFTER_MS * rate / 1000)
    reach = max(1, round(ALIGN_MS * rate / 1000))
    margin = (before + reach, after + reach)
    chosen = _choose_spikes(trains, stretches, margin)
    noise_times = _noise_times(stretches, margin, generator)
    snippets: list[list[np.ndarray]] = [[] for _ in chosen]
    noise = []
    for number, stretch in enumerate(stretches):
        block = traces.read(stretch.segment_index, stretch.start, stretch.stop)
        window = np.arange(-margin[0], margin[1])
        for unit, spikes in enumerate(chosen):
            here = spikes[spikes[:, 0] == number, 1]
            if len(here):
                at = (here - stretch.start)[:, None] + window
                # Half precision: 200 units of a large probe fit into memory.
                snippets[unit].append(block[at[:, :, None], near[unit]].astype(np.float16))
        here = noise_times[noise_times[:, 0] == number, 1]
        noise.append(block[(here - stretch.start)[:, None] + window[reach : len(window) - reach]])
        report()
    background = np.concatenate(noise)
    shapes = [
        _shape(parts, background, channels, (before, reach), rate)
        for parts, channels in zip(snippets, near, strict=True)
    ]
    return _with_usual_variation(shapes)


def channels_near(group: GroupModel) -> list[np.ndarray]:
    """Return for each unit of a group the channels on which its spikes may be seen; without positions all."""
    network = group.network
    every = np.arange(len(group.channel_ids))
    if not isinstance(network, NeighbourhoodNetwork):
        return [every for _ in group.unit_ids]
    positions = np.asarray(group.channel_positions_um, dtype=float)
    found = []
    for nearest in network.channel_index.cpu().numpy()[:, 0]:
        distance = np.linalg.norm(positions - positions[nearest], axis=1)
        found.append(every[distance <= _REACH_UM])
    return found


def _choose_spikes(
    trains: TrainsOfGroup, stretches: Sequence[Stretch], margin: tuple[int, int]
) -> list[np.ndarray]:
    """Return for each unit (num_chosen, 2): number of the stretch, and sample; evenly chosen."""
    found = []
    most = min(MAX_SPIKES, max(FEWEST_WINDOWS, MAX_WINDOWS // max(1, trains.num_units)))
    for unit in range(trains.num_units):
        parts = [np.empty((0, 2), np.int64)]
        for number, stretch in enumerate(stretches):
            own = trains.within(unit, stretch, margin)
            parts.append(np.column_stack([np.full(len(own), number), own]))
        spikes = np.concatenate(parts)
        kept = np.linspace(0, len(spikes) - 1, min(len(spikes), most)).round().astype(np.int64)
        found.append(spikes[kept])
    return found


def _noise_times(
    stretches: Sequence[Stretch], margin: tuple[int, int], generator: np.random.Generator
) -> np.ndarray:
    """Return random times (num_times, 2): number of the stretch, and sample."""
    number = np.sort(generator.integers(len(stretches), size=_NUM_NOISE))
    low = np.array([stretch.start + margin[0] for stretch in stretches])[number]
    high = np.array([stretch.stop - margin[1] for stretch in stretches])[number]
    return np.column_stack([number, low + (generator.random(_NUM_NOISE) * (high - low)).astype(np.int64)])


def _shape(
    parts: list[np.ndarray],
    background: np.ndarray,
    near: np.ndarray,
    before_and_reach: tuple[int, int],
    rate: float,
) -> UnitShape | None:
    """Return the shape of a unit from windows around its spikes, with `reach` samples more at each end."""
    before, reach = before_and_reach
    if sum(map(len, parts)) < FEWEST_SPIKES:
        return None
    windows = np.concatenate(parts).astype(np.float32)  # spikes, samples, channels
    peaks = np.abs(np.median(windows, axis=0)).max(axis=0)
    order = np.argsort(-peaks, kind="stable")
    kept = order[peaks[order] >= _LEAST_PEAK]
    if not len(kept):
        return None
    windows, near = windows[:, :, kept], near[kept]
    inner = slice(reach, windows.shape[1] - reach)
    for _ in range(2):
        windows = _aligned(windows, np.median(windows[:, inner], axis=0), reach)
    template = np.median(windows[:, inner], axis=0) * _taper(windows.shape[1] - 2 * reach, rate)[:, None]
    found, is_clean = _amplitudes(windows[:, inner], template)
    noise = _amplitudes(background[:, :, near], template)
    change = _change(found)
    found, noise = found[is_clean], noise[0][noise[1]]
    noise_sd = float(1.4826 * np.median(np.abs(noise - np.median(noise))))
    mean, spread = fit_upper_half(found)
    variation = min(float(np.sqrt(max(spread**2 - noise_sd**2, 0.0))), _MOST_VARIATION)
    division = find_division(windows[:, inner], before, rate)
    both: tuple[UnitShape, ...] = ()
    if division is not None:
        each = [windows[part][:, inner] for part in (~division.is_second, division.is_second)]
        medians = [_phases(np.median(part, axis=0)) for part in each]
        both = tuple(
            UnitShape(near, phases, before, 1.0, 0.0, noise_sd, 0.0, len(part))
            for phases, part in zip(medians, each, strict=True)
        )
    return UnitShape(
        near, _phases(template), before, mean, variation, noise_sd, change, len(windows), division, both
    )


def _amplitudes(windows: np.ndarray, template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the amplitude of each window, and whether its residual is one of the smaller ones.

    The residual is orthogonal to the template. So in noise, its size says nothing about the amplitude.
    """
    flat = windows.reshape(len(windows), -1)
    energy = max(float(np.square(template).sum()), 1e-9)
    amplitude = flat @ template.reshape(-1) / energy
    residual = np.square(flat).sum(axis=1) - amplitude**2 * energy
    return amplitude, residual <= np.quantile(residual, _CLEAN)


def _change(amplitudes: np.ndarray) -> float:
    """Return the median of the last third over that of the first third, minus 1."""
    third = max(1, len(amplitudes) // 3)
    first, last = float(np.median(amplitudes[:third])), float(np.median(amplitudes[-third:]))
    return last / first - 1 if first > 0 else 0.0


def _aligned(windows: np.ndarray, template: np.ndarray, reach: int) -> np.ndarray:
    """Return the windows moved to where they are most like the template; ends are repeated."""
    length = len(template)
    flat = template.reshape(-1)
    scores = np.stack(
        [
            windows[:, shift : shift + length].reshape(len(windows), -1) @ flat
            for shift in range(2 * reach + 1)
        ]
    )
    best = scores.argmax(axis=0) - reach
    at = np.clip(np.arange(windows.shape[1]) + best[:, None], 0, windows.shape[1] - 1)
    return np.take_along_axis(windows, at[:, :, None], axis=1)


def _taper(length: int, rate: float) -> np.ndarray:
    ramp = max(1, round(_TAPER_MS * rate / 1000))
    taper = np.ones(length)
    taper[:ramp] = np.arange(1, ramp + 1) / (ramp + 1)
    taper[-ramp:] = taper[:ramp][::-1]
    return taper


def _phases(template: np.ndarray) -> np.ndarray:
    """Return a template at shifts of 0, 1/8 ... 7/8 of a sample."""
    samples = np.arange(len(template))
    spline = CubicSpline(samples, template, axis=0)
    return np.stack(
        [spline(np.clip(samples - phase / NUM_PHASES, 0, None)) for phase in range(NUM_PHASES)]
    ).astype(np.float32)


def _with_usual_variation(shapes: list[UnitShape | None]) -> list[UnitShape | None]:
    """Return the shapes with variations that are drawn to the usual one, the more the noisier they are."""
    clear = [shape.variation for shape in shapes if shape is not None and shape.noise < _CLEAR_NOISE]
    usual = float(np.median(clear)) if clear else _USUAL_VARIATION
    drawn: list[UnitShape | None] = []
    for shape in shapes:
        if shape is not None:
            pull = float(np.clip((shape.noise / _SURE_NOISE) ** 2, *_PULL))
            variation = np.sqrt((shape.variation**2 + pull * usual**2) / (1 + pull))
            shape = replace(shape, variation=float(variation))
        drawn.append(shape)
    return drawn


def fit_upper_half(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of a Gaussian, fitted to the upper half of values.

    Parameters
    ----------
    values : ndarray
        (num_values,); small ones may be missing.

    Returns
    -------
    (float, float)
        The median, and the distance from it that 68 % of the values above it keep.
    """
    middle = float(np.median(values))
    return middle, float(np.quantile(values[values >= middle] - middle, _ONE_SIGMA))
