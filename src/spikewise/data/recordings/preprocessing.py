"""Preprocess raw traces for the network: groups, bad channels, filter, reference, scaling to noise units.

Preprocessing is lazy: it builds a view of the recording, and reads only a bounded, seeded sample of it to
find unusable channels and noise levels. Silenced channels keep their index and have traces of exactly 0, so
the channels of a recording and of a network always agree. The output is float32 in units of each channel's
noise standard deviation, estimated from the median absolute deviation. Samples are frames of a segment; times
are in seconds from its start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import spikeinterface.preprocessing as spre
from spikeinterface.core import BaseRecording

from spikewise.core.config import PreprocessingConfig, SortingConfig
from spikewise.core.constants import MIN_ARRAY_CHANNELS
from spikewise.core.errors import RecordingError, SettingError
from spikewise.data.recordings.channels import (
    SilencedRecording,
    check_channel_names,
    find_bad,
    find_unusable,
    ids_of,
    list_channels,
    measure_noise,
    other_type,
)
from spikewise.data.recordings.conditioning import ConditionedRecording
from spikewise.data.recordings.damage import measure_limits
from spikewise.data.recordings.repair import FilledRecording, RepairedRecording

logger = logging.getLogger(__name__)

MIN_FILTER_FRAMES = 34
"""Fewest samples of a segment: the band-pass, run forward and backward, mirrors 33 samples at either end."""
MAX_OF_SAMPLING_FREQUENCY = 0.45
"""Highest upper edge of the band-pass, as a fraction of the sampling frequency; chosen by hand."""
_GAIN_SPREAD = 0.05
"""Gains that differ by a larger fraction are told where a common median is subtracted; chosen by hand."""
_NO_GROUP = ("", "None", "nan", "<NA>")
"""Texts of a group that is missing: SpikeInterface fills gaps of a property with such values."""


@dataclass(frozen=True)
class Preprocessed:
    """A preprocessed recording.

    Attributes
    ----------
    recording : BaseRecording
        Lazy float32 traces in units of noise standard deviations; the channels of the input, in order.
    silenced_channel_ids : tuple of str
        Channels whose traces are exactly 0.
    noise_levels : ndarray, shape (num_channels,)
        By what each channel is divided, in the raw units of the input: its noise standard deviation after
        filter and reference, or the one that a model learnt. NaN for silenced channels.
    measured_noise : ndarray, shape (num_channels,)
        Its own noise in the same units.
    steps : tuple of str
        What was done, one line for each step.
    repaired : RepairedRecording or None
        Raw traces in which damage is bridged; None if damage is kept.
    """

    recording: BaseRecording
    silenced_channel_ids: tuple[str, ...]
    noise_levels: np.ndarray
    measured_noise: np.ndarray
    steps: tuple[str, ...]
    repaired: RepairedRecording | None = None


def split_groups(recording: BaseRecording, group_by: str = "auto") -> dict[str, BaseRecording]:
    """Split a recording into the groups that are sorted separately.

    Parameters
    ----------
    recording : BaseRecording
        A recording; its property ``group`` is the probe, shank or tetrode of each channel.
    group_by : {"auto", "none"}
        Whether to split by that property or to keep all channels together.

    Returns
    -------
    dict of str to BaseRecording
        Each group by its name; a single group is called ``"0"``.

    Raises
    ------
    RecordingError
        If some channels have a group and others have none.
    """
    if group_by not in ("auto", "none"):
        raise SettingError(
            f"the setting group_by is {group_by!r}", "it must be one of 'auto', 'none'", "change it"
        )
    groups = recording.get_property("group")
    if group_by == "none" or groups is None:
        return {"0": recording}
    names = np.array([str(group) for group in groups])
    without = dict.fromkeys(recording.channel_ids[np.isin(names, _NO_GROUP)].astype(str), "")
    if len(without) == len(names) or len(np.unique(names)) == 1:
        return {"0": recording}
    if without:
        raise RecordingError(
            f"{len(without)} of {len(names)} channels have no group: {list_channels(without)}",
            "the property 'group' is the probe, shank or tetrode of every channel, or of none",
            "set it for these channels, leave them out of the recording, or sort all channels together with "
            "--group-by none",
        )
    _, first = np.unique(names if groups.dtype.kind == "O" else groups, return_index=True)
    return {
        str(name): recording.select_channels(recording.channel_ids[names == name]) for name in names[first]
    }


def preprocess_recording(
    recording: BaseRecording,
    config: PreprocessingConfig,
    *,
    silenced_channel_ids: Iterable[str] | None = None,
    seed: int = 0,
    damage: SortingConfig | None = None,
    scale_of: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Preprocessed:
    """Filter, reference and scale a recording, and silence its bad channels.

    Parameters
    ----------
    recording : BaseRecording
        A recording, or one of its groups.
    config : PreprocessingConfig
        Filter, reference and handling of bad channels. Names of excluded channels that the recording lacks
        are of other groups.
    silenced_channel_ids : iterable of str, optional
        Channels to silence instead of the excluded and detected ones: those of the network's training.
    seed : int
        Seed of the chunks that are read to measure the recording.
    damage : SortingConfig, optional
        Its settings for damaged stretches are used. With the live filter, damage is kept.
    scale_of : callable, optional
        Called with the noise (num_channels,) of the channels; returns by what they are divided, in raw units,
        negative where the samples are inverted. Default: by the noise, with the sign of their gains.

    Returns
    -------
    Preprocessed
        The recording in units of noise, and what was done to it.

    Raises
    ------
    RecordingError
        If a channel is constant, NaN or infinite and ``config.unusable_channels`` is ``"stop"``, if no
        usable channel is left, if a silenced channel does not exist, if the sampling frequency is too
        low for the filter or a segment too short for it, or if the recording cannot be read.
    """
    freq_max = _check_filter(recording, config) if config.bandpass else None
    silenced = _choose_silenced(recording, config, silenced_channel_ids, seed)
    silent_input = SilencedRecording(as_signed(recording), ids_of(recording, silenced))
    is_live = config.filter == "live"
    repaired = None if is_live else _repair(silent_input, damage or SortingConfig(), seed)
    source, usable = (silent_input, None) if repaired is None else (repaired, repaired.is_usable)
    if is_live and silent_input.get_dtype().kind == "f":
        source = FilledRecording(silent_input, measure_limits(silent_input, None, seed).centers)
    band_hz = None if freq_max is None else (config.freq_min_hz, freq_max)
    steps = (
        [] if band_hz is None else [f"band-pass {band_hz[0]:g}-{band_hz[1]:g} Hz" + ", live filter" * is_live]
    )
    if silenced_channel_ids is None and config.bad_channels == "detect":
        bad, note = find_bad(ConditionedRecording(source, band_hz, is_live=is_live), silenced, seed, usable)
        silenced |= bad
        steps += [note] if note else []
    good = ~np.isin(recording.channel_ids.astype(str), list(silenced))
    reference = referenced_channels(good, config.common_reference)
    if reference is not None:
        _check_gains(recording, reference)
    steps += _describe_reference(good, config.common_reference)
    view = _View(source, band_hz, reference, is_live)
    noise, medians = measure_noise(view.conditioned(), seed, usable)
    divisors = noise * signs_of_gains(recording) if scale_of is None else scale_of(noise)
    scaled, step = _scale_to_noise(view, good, divisors, medians)
    steps += step
    if silenced:
        plural = "s" if len(silenced) > 1 else ""
        steps.append(f"silenced {len(silenced)} channel{plural}: {list_channels(silenced)}")
    in_order = tuple(str(i) for i in ids_of(recording, silenced))
    levels = np.where(good, np.abs(divisors), np.nan)
    return Preprocessed(scaled, in_order, levels, noise, tuple(steps), repaired)


def _check_filter(recording: BaseRecording, config: PreprocessingConfig) -> float:
    """Return the upper edge of the band-pass in Hz; raise if the band-pass cannot run."""
    sampling_frequency = recording.get_sampling_frequency()
    freq_max = min(config.freq_max_hz, MAX_OF_SAMPLING_FREQUENCY * sampling_frequency)
    if config.freq_min_hz >= freq_max:
        raise RecordingError(
            f"the sampling frequency is {sampling_frequency:g} Hz, too low for a band-pass from "
            f"{config.freq_min_hz:g} Hz",
            f"the band ends at {freq_max:g} Hz, {MAX_OF_SAMPLING_FREQUENCY:g} of the sampling frequency",
            "check --sampling-frequency, or lower --freq-min-hz",
        )
    for segment_index in range(recording.get_num_segments()):
        num_samples = recording.get_num_samples(segment_index)
        if num_samples < MIN_FILTER_FRAMES:
            raise RecordingError(
                f"segment {segment_index} of the recording has {num_samples} samples",
                f"the band-pass needs at least {MIN_FILTER_FRAMES}",
                "leave the segment out",
            )
    return freq_max


def _choose_silenced(
    recording: BaseRecording,
    config: PreprocessingConfig,
    silenced_channel_ids: Iterable[str] | None,
    seed: int,
) -> dict[str, str]:
    """Return the channels to silence before any detection, with their reasons."""
    if silenced_channel_ids is None:  # some of the excluded channels may be in other groups
        names, why = set(config.exclude_channels), "excluded"
    else:
        names, why = set(map(str, silenced_channel_ids)), "given"
        check_channel_names(recording, sorted(names))
    silenced = {str(i): why for i in ids_of(recording, names)}
    unusable = find_unusable(recording, seed)
    new = {name: reason for name, reason in unusable.items() if name not in silenced}
    if new and config.unusable_channels == "stop":
        raise RecordingError(
            f"{len(new)} of {recording.get_num_channels()} channels are unusable: {list_channels(new)}",
            "a channel must vary and hold finite numbers",
            "leave them out with --exclude-channels, or silence them with --unusable-channels silence"
            + other_type(new),
        )
    silenced |= new
    if len(silenced) == recording.get_num_channels():
        raise RecordingError(
            f"no channel is left of {len(silenced)}: {list_channels(silenced)}",
            "at least one usable channel is needed",
            "exclude fewer channels",
        )
    return silenced


def _repair(recording: BaseRecording, config: SortingConfig, seed: int) -> RepairedRecording | None:
    """Return the raw recording with its damage bridged, or None if repair is switched off."""
    if config.damage == "keep":
        return None
    limits = measure_limits(recording, config.artefact_noise, seed)
    return RepairedRecording(recording, limits.centers, limits.noise_levels, limits.artefact_noise)


def as_signed(recording: BaseRecording) -> BaseRecording:
    """Return a recording of signed samples: unsigned ones are shifted to the middle of their range.

    Floating-point numbers of 16 bits, which the compiled loops do not know, or more than 64 are converted.
    """
    if recording.get_dtype().kind not in "iufb":
        raise RecordingError(
            f"the samples of the recording are of the type {recording.get_dtype()}",
            "whole or floating-point numbers",
            "convert them, or correct --dtype",
        )
    if recording.get_dtype().kind == "f" and recording.get_dtype().itemsize not in (4, 8):
        return spre.astype(recording, "float32" if recording.get_dtype().itemsize == 2 else "float64")
    if recording.get_dtype().kind != "u":
        return recording
    if recording.get_dtype().itemsize == 8:
        return spre.astype(recording, "float64")
    return spre.unsigned_to_signed(recording)


def referenced_channels(is_good: np.ndarray, mode: str) -> np.ndarray | None:
    """Return which channels are averaged to the common median: those that are not silenced.

    Parameters
    ----------
    is_good : ndarray of bool
        (num_channels,) which channels are not silenced.
    mode : {"auto", "median", "none"}

    Returns
    -------
    ndarray of bool or None
        None for no median.
    """
    return is_good if _wants_reference(is_good, mode) and is_good.sum() != 1 else None


def _wants_reference(is_good: np.ndarray, mode: str) -> bool:
    return mode == "median" or (mode == "auto" and len(is_good) >= MIN_ARRAY_CHANNELS)


def _describe_reference(is_good: np.ndarray, mode: str) -> list[str]:
    """Return the step of the common median, if it is wanted."""
    if not _wants_reference(is_good, mode):
        return []
    if is_good.sum() == 1:
        return ["common median reference left out: it would erase the only channel"]
    return [f"common median reference over {is_good.sum()} of {len(is_good)} channels"]


def known_gains(recording: BaseRecording) -> np.ndarray | None:
    """Return the microvolts (num_channels,) for each step of the channels; None if they are not known.

    Negative gains are those of inverted samples.
    """
    gains = recording.get_property("gain_to_uV")
    if gains is None or not np.isfinite(gains.astype(float)).all() or not gains.astype(float).all():
        return None
    return np.asarray(gains, float)


def _check_gains(recording: BaseRecording, averaged: np.ndarray) -> None:
    """Warn if channels of a common median have different gains: it is one of the raw numbers."""
    gains = known_gains(recording)
    if gains is not None and np.ptp(gains[averaged]) > _GAIN_SPREAD * np.abs(gains[averaged]).min():
        logger.warning(
            "the gains of the channels go from %g to %g uV: scale the recording to microvolts before "
            "(spikeinterface.preprocessing.scale_to_uV), or leave out the common median "
            "(--common-reference none)",
            *(gains[averaged].min(), gains[averaged].max()),
        )


def signs_of_gains(recording: BaseRecording) -> np.ndarray:
    """Return the sign (num_channels,) of the gain of each channel; 1 where it is not known."""
    gains = known_gains(recording)
    return np.ones(recording.get_num_channels()) if gains is None else np.sign(gains)


def gains_of_noise(noise_levels: np.ndarray, is_good: np.ndarray) -> np.ndarray:
    """Return the factor (num_channels,) of each channel: one divided by its noise, 0 if it is silenced."""
    return np.divide(1.0, noise_levels, out=np.zeros_like(noise_levels), where=is_good)


@dataclass(frozen=True)
class _View:
    """What makes a conditioned view of a recording, but for the scaling."""

    recording: BaseRecording
    band_hz: tuple[float, float] | None
    reference: np.ndarray | None
    is_live: bool

    def conditioned(
        self, gains: np.ndarray | None = None, offsets: np.ndarray | None = None
    ) -> ConditionedRecording:
        return ConditionedRecording(
            self.recording, self.band_hz, self.reference, gains, offsets, self.is_live
        )


def _scale_to_noise(
    view: _View, good: np.ndarray, divisors: np.ndarray, medians: np.ndarray
) -> tuple[BaseRecording, list[str]]:
    """Filter, reference, and divide each channel by its noise; channels that are not good become 0."""
    without = {str(i): "" for i in view.recording.channel_ids[good & ~(np.abs(divisors) > 0)]}
    if without:
        raise RecordingError(
            f"the noise of {len(without)} channels is zero or NaN after filter and reference: "
            f"{list_channels(without)}",
            "each channel is divided by its noise, which must be above 0",
            "leave them out with --exclude-channels",
        )
    gains = gains_of_noise(divisors, good)
    center = view.band_hz is None
    offsets = -medians * gains if center else np.zeros_like(gains)
    steps = ["subtracted the median of each channel"] if center else []
    if (divisors[good] < 0).any():
        steps.append("inverted the channels whose gain is negative")
    level = np.median(np.abs(divisors[good]))
    steps.append(f"divided each channel by its noise, in the median {level:.4g} raw units")
    scaled = view.conditioned(gains, offsets)
    for name in {"gain_to_uV", "offset_to_uV"} & set(scaled.get_property_keys()):
        scaled.delete_property(name)  # these belong to the raw units
    return scaled, steps
