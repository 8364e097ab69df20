"""How long the stages of a sort take: before they begin from the size of the work, then from their pace.

The constants are seconds of one core for each unit of work; see docs/speed.md, "The time left". Another
machine, or one that does other work, has another pace: it is measured while the stages run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from spikewise.core import progress as stages
from spikewise.core.config import ESORT_PAPER, Config, UnitsConfig

# Measured on two cores of an AMD EPYC; seconds of one core.
_PREPARING_S = 0.6, 7e-3
"""Noise and damage: always, and for each channel."""
_MOTION_S = 3.0, 8e-4
"""Measuring motion: always, and for each channel and second searched."""
_MOTION_FROM = 32, 20.0
"""Fewest channels and seconds with which motion is measured; see discovery/motion/estimating.py."""
_MOTION_SEARCHED = 0.5, 0.125, 90.0 * 128
"""Share of a short and of a long recording that is searched, and channels times seconds always searched."""
_READING_S = 6e-4, 5e-3
"""Reading and preparing traces, for each channel and second, and for each second."""
_FINDING_S = 2.0, 2e-3
"""Finding units: always, and for each channel and second."""
_HELD_VALUES = 2**30
"""Most samples of all channels in which units are searched; see discovery/held_traces.py."""
_OTHER_SORTERS_S = {"tridesclous2": 0.01, "lupin": 0.02, "spykingcircus2": 0.024}
"""Finding units with another sorter, for each channel and second; of those that are not listed, the mean."""
_LEARNING_S = 4.2e-6
"""Learning a unit, for each patch."""
_DENSE_S = 1e-3
"""Learning the dense network of the paper, for each channel, second and epoch: a guess."""
_TEMPLATES_S = 0.045
"""Mean waveforms before a round, for each unit."""
_SEARCHING_S = 1e-4, 8e-3
"""Searching labelled time again, for each channel and second, and for each second."""
_THRESHOLDS_S = 3e-3
"""Choosing thresholds, for each channel and second that is held out."""
_MOST_HELD_OUT_S = 30.0
"""Most seconds that are held out; see learning/thresholds.py."""
_SORTING_S = 4e-4, 3.5e-4, 9e-3
"""Sorting, for each channel and second, for each unit and second, and for each second."""
_LOOKING_AGAIN_S = 1.3e-3
"""Counting the events that no unit explains, for each channel and second."""
_LOOKED_AGAIN = 20.0, 2**27
"""Most seconds, and most samples of all channels, in which they are counted; see discovery/unexplained.py."""
_WRITING_S = 0.1
_TRUST_S = 1.4e-3, 0.03, 8e-3
"""Estimating the accuracy of units, for each channel and second, each unit, and each second."""
_TRUST_SECONDS = 80.0
"""Most seconds that are sorted again; see output/trust/stretches.py."""
_REPORT_S = 0.9, 1e-3, 0.02
"""The report: always, for each channel and second read, and for each unit."""
_REPORT_SECONDS = 24.0
"""Most seconds that the report reads."""
_UNITS_OF_CHANNELS = 0.4
"""Units for each channel, before they are found; chosen by hand."""
_PRIOR = 0.05
"""Weight of the pace of the reference machine, as a fraction of all that is expected; chosen by hand."""
_LEAST_PRIOR_S = 0.5
"""Least such weight; chosen by hand."""
_OWN_PACE = 0.4
"""Fraction of a stage from which on its own pace counts more than that of the stages before; by hand."""
_SILENT_REST = 0.1
"""Least part of the rest of a stage that is left while it reports nothing; chosen by hand."""


class RemainingTime:
    """The seconds left of stages that run one after the other.

    Parameters
    ----------
    clock : callable
        Returns the time in seconds.

    Attributes
    ----------
    spent : dict of str to float
        Seconds of each stage that ended, in the order of their first beginning.
    is_counted : bool
        Whether the work in all of the stage that runs is known.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._begun = clock()
        self._expected: dict[str, float] = {}
        self.spent: dict[str, float] = {}
        self.is_counted = False
        self._stage: str | None = None
        self._stage_begun = self._told = self._begun
        self._fraction = self._largest = 0.0
        self._at_first = 0.0  # fraction of the stage that an earlier process did

    @property
    def stage(self) -> str | None:
        """The stage that runs."""
        return self._stage

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._begun

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Set the expected seconds of stages; those told of before keep their place."""
        self._expected |= {stage: max(1e-3, float(value)) for stage, value in seconds.items()}

    def tell(self, stage: str, done: float, total: float) -> str | None:
        """Take the progress of a stage; return the stage that it ended, if there is one."""
        now, ended = self._clock(), None
        if stage != self._stage:
            ended = self.end()
            self._stage, self._stage_begun = stage, now
            self._fraction = 0.0
            self._at_first = -1.0
        self._told = now
        self.is_counted = total > 0
        self._fraction = min(1.0, max(0.0, done / total)) if total > 0 else 0.0
        if self._at_first < 0:
            self._at_first = self._fraction
        return ended

    def end(self) -> str | None:
        """End the stage that runs, and return it."""
        ended = self._stage
        if ended is not None:
            self.spent[ended] = self.spent.get(ended, 0.0) + self._clock() - self._stage_begun
        self._stage = None
        return ended

    def stage_elapsed(self) -> float:
        """Return the seconds of the stage that runs."""
        return 0.0 if self._stage is None else self._clock() - self._stage_begun

    def stage_fraction(self) -> float:
        """Return how much of the stage is done: as told, and since then as time passes."""
        if self._stage is None or self._fraction >= 1:
            return self._fraction
        elapsed, rest = self.stage_elapsed(), self._rest_of_stage()
        return max(self._fraction, elapsed / (elapsed + rest) if elapsed + rest > 0 else 0.0)

    def remaining(self) -> float | None:
        """Return the seconds left; None if nothing was expected, or only the start of a command."""
        later = self._later()
        if not self._expected or (self._stage == stages.STARTING and not later):
            return None
        return self._rest_of_stage() + self._pace() * sum(self._expected[stage] for stage in later)

    def fraction(self) -> float:
        """Return how much of everything is done, as a fraction of its time; it never becomes less."""
        rest, elapsed = self.remaining(), self.elapsed
        if rest is None:
            return self.stage_fraction()
        self._largest = max(self._largest, elapsed / (elapsed + rest) if elapsed + rest > 0 else 0.0)
        return self._largest

    def _later(self) -> list[str]:
        """Return the stages that are still to come: those behind the last one that began."""
        names = list(self._expected)
        begun = [names.index(stage) for stage in (*self.spent, self._stage) if stage in self._expected]
        return names[max(begun) + 1 :] if begun else names

    def _pace(self) -> float:
        """Return the time that stages take, relative to the expected one."""
        prior = max(_LEAST_PRIOR_S, _PRIOR * sum(self._expected.values()))
        took = expected = prior
        for stage, seconds in self.spent.items():
            if stage in self._expected:
                took, expected = took + seconds, expected + self._expected[stage]
        if self._stage in self._expected and self._fraction > self._at_first:
            took += self._told - self._stage_begun
            expected += (self._fraction - self._at_first) * self._expected[self._stage]
        return took / expected

    def _rest_of_stage(self) -> float:
        """Return the seconds left of the stage that runs."""
        if self._stage is None or self._fraction >= 1:
            return 0.0
        took, now = self._told - self._stage_begun, self._clock()
        whole = self._expected.get(self._stage)
        by_plan = None if whole is None else whole * self._pace()
        here = self._fraction - self._at_first
        by_pace = took / here if here > 0 else None
        if by_plan is None and by_pace is None:
            return 0.0
        if by_plan is None or by_pace is None:
            whole = by_pace if by_plan is None else by_plan
        else:
            weight = here / (here + _OWN_PACE)
            whole = weight * by_pace + (1 - weight) * by_plan
        rest = (1 - self._fraction) * (whole or 0.0)
        return max(_SILENT_REST * rest, rest - (now - self._told))


@dataclass(frozen=True)
class Size:
    """The size of a sort, or of one of its groups.

    Attributes
    ----------
    channels : int
    seconds : float
        Duration of the recording.
    sampling_frequency : float
        In Hz.
    units : int or None
        None: not known yet.
    labelled_s : float
        Seconds of labelled time, or that units are learnt from.
    threads : int
        Threads that compute.
    """

    channels: int
    seconds: float
    sampling_frequency: float
    units: int | None
    labelled_s: float
    threads: int

    @property
    def expected_units(self) -> float:
        """The number of units; a guess if it is not known yet."""
        return max(1.0, _UNITS_OF_CHANNELS * self.channels) if self.units is None else float(self.units)


def _linear(constants: tuple[float, float], channels: int, seconds: float) -> float:
    """Return the seconds of work that grows with channels and seconds, with a part that only seconds cost."""
    return (constants[0] * channels + constants[1]) * seconds


def discovery_seconds(size: Size, config: Config) -> dict[str, float]:
    """Return the expected seconds of the stages of finding units in a group."""
    sorter = config.bootstrap.bootstrap
    if sorter != "spikewise":
        work = size.channels * min(size.seconds, config.bootstrap.bootstrap_s) / size.threads
        of_sorter = _OTHER_SORTERS_S.get(sorter, 0.018)
        return {stages.finding_with(sorter): of_sorter * work, stages.CLEANING: _READING_S[0] * work}
    held_s = min(size.seconds, _HELD_VALUES / size.channels / size.sampling_frequency)
    work = size.channels * held_s
    return {
        stages.READING: _linear(_READING_S, size.channels, held_s) / size.threads,
        stages.FINDING_UNITS: (_FINDING_S[0] + _FINDING_S[1] * work) / size.threads,
    }


def learning_seconds(size: Size, config: Config) -> dict[str, float]:
    """Return the expected seconds of the stages of learning the units of a group."""
    if config.design == ESORT_PAPER:
        epochs = config.training.resolved().epochs or 1
        return {stages.LEARNING: _DENSE_S * size.channels * size.labelled_s * epochs}
    return _unit_seconds(size, config.units) | _threshold_seconds(size, config)


def _threshold_seconds(size: Size, config: Config) -> dict[str, float]:
    """Return the expected seconds of choosing thresholds, which few labels cannot choose."""
    if config.labels.labels_per_unit is not None or config.detection.threshold is not None:
        return {}
    held_out_s = min(_MOST_HELD_OUT_S, config.training.held_out_fraction * size.labelled_s)
    return {stages.THRESHOLDS: _THRESHOLDS_S * size.channels * held_out_s / size.threads}


def _unit_seconds(size: Size, config: UnitsConfig) -> dict[str, float]:
    """Return the expected seconds of learning units one by one."""
    units = size.expected_units
    patches, _ = config.effort(round(units))
    expected = {stages.READING_LABELLED: _linear(_READING_S, size.channels, size.labelled_s) / size.threads}
    for number in range(1, config.rounds + 1):
        if number > 1:
            searching = _linear(_SEARCHING_S, size.channels, size.labelled_s)
            expected[stages.SEARCHING] = searching / size.threads
        of_round = patches if number == config.rounds else patches / 2
        each = _TEMPLATES_S + _LEARNING_S * of_round
        expected[stages.learning_round(number, config.rounds)] = units * each / size.threads
    return expected


def sorting_seconds(size: Size, has_report: bool, has_trust: bool) -> dict[str, float]:
    """Return the expected seconds of the stages after learning."""
    by_channel, by_unit, each = (one * size.seconds for one in _SORTING_S)
    most_s, most = _LOOKED_AGAIN
    again = min(size.seconds * size.channels, most_s * size.channels, most / size.sampling_frequency)
    expected = {
        stages.SORTING: (by_channel * size.channels + by_unit * size.expected_units + each) / size.threads,
        stages.NEW_UNITS: _LOOKING_AGAIN_S * again / size.threads,
        stages.WRITING: _WRITING_S,
    }
    if has_trust:
        by_channel, of_unit, each = _TRUST_S
        again = _linear((by_channel, each), size.channels, min(size.seconds, _TRUST_SECONDS))
        expected[stages.TRUST] = (again + of_unit * size.expected_units) / size.threads
    if has_report:
        always, by_read, of_unit = _REPORT_S
        read = size.channels * min(size.seconds, _REPORT_SECONDS)
        expected[stages.REPORT] = always + by_read * read / size.threads + of_unit * size.expected_units
    return expected


def sort_seconds(size: Size, num_groups: int, config: Config, *, is_labelled: bool) -> dict[str, float]:
    """Return the expected seconds of finding units, unless they are labelled, and of learning them.

    `size` is that of all groups together; several groups have one stage for finding and one for learning.
    """
    units = None if size.units is None else -(-size.units // num_groups)
    one = replace(size, channels=-(-size.channels // num_groups), units=units)
    found = {} if is_labelled else discovery_seconds(one, config)
    learnt = learning_seconds(one, config)
    if num_groups == 1:
        return found | learnt
    both = {stages.FINDING_UNITS: found, stages.LEARNING: learnt}
    return {stage: num_groups * sum(of_one.values()) for stage, of_one in both.items() if of_one}


def preparing_seconds(size: Size) -> dict[str, float]:
    """Return the expected seconds of measuring noise and damage."""
    expected = {stages.PREPARING: _PREPARING_S[0] + _PREPARING_S[1] * size.channels}
    if size.channels >= _MOTION_FROM[0] and size.seconds >= _MOTION_FROM[1]:
        short, long, always = _MOTION_SEARCHED
        searched_s = min(short * size.seconds, max(long * size.seconds, always / size.channels))
        work = _MOTION_S[0] + _MOTION_S[1] * size.channels * searched_s
        expected[stages.MOTION] = work / size.threads
    return expected
