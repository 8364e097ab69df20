"""Progress of the library, told to its caller; the library does not print.

The work consists of stages, which have plain names. Each call names the stage, the work done, the work in
all (0 if nobody knows), and a note. A stage lasts until the next one is told of. Before stages begin,
:func:`expect` tells how long they will probably take: from this, displays derive the time left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

ProgressCallback = Callable[[str, float, float, str], None]
"""Called with the name of the stage, the work done, the total work, and a note such as the loss."""

Tell = Callable[[int, int], None]
"""Called with the number of items that are done, and of all: from within a loop."""

# The stages of a sort, in this order.
STARTING = "starting"
PREPARING = "measuring noise and damage"
MOTION = "measuring motion"
READING = "reading"
FINDING_UNITS = "finding units"
CLEANING = "cleaning labels"
READING_LABELLED = "reading labelled time"
LEARNING = "learning"
SEARCHING = "searching for more spikes"
THRESHOLDS = "choosing thresholds"
SORTING = "sorting"
NEW_UNITS = "looking for what no unit explains"
ADDING = "sorting new units"
WRITING = "writing"
TRUST = "estimating accuracy"
REPORT = "report"

_IMPORTING_S = 4.0
"""Seconds of one core for importing libraries: measured on two cores of an AMD EPYC."""
_BETWEEN_S = 0.1
"""Least time between two reports of a loop; chosen by hand."""


def learning_round(number: int, rounds: int) -> str:
    """Return the name of the stage of a round of learning; `number` counts from 1."""
    return f"{LEARNING}, round {number} of {rounds}"


def finding_with(sorter: str) -> str:
    """Return the name of the stage in which another sorter finds units."""
    return f"{FINDING_UNITS} with {sorter}"


def silent(stage: str, done: float, total: float, note: str = "") -> None:
    """Ignore the progress."""


def expect(progress: ProgressCallback, seconds: Mapping[str, float]) -> None:
    """Tell how long stages will probably take, in their order, if the receiver wants to know.

    Parameters
    ----------
    progress : callable
        If it has a method ``expect``, this is called with the seconds.
    seconds : mapping of str to float
        Expected seconds of stages that are not finished. Stages told of before may be among them: then the
        new number holds.
    """
    wants = getattr(progress, "expect", None)
    if wants is not None:
        wants(seconds)


def begin(progress: ProgressCallback) -> None:
    """Tell that a command starts: it imports libraries, which takes seconds."""
    expect(progress, {STARTING: _IMPORTING_S})
    progress(STARTING, 0, 1, "")


class Steps:
    """Progress of one stage that consists of steps of known names and different lengths.

    Parameters
    ----------
    progress : callable
    stage : str
        Name of the stage; the name of the step becomes the note.
    lengths : mapping of str to float
        Relative length of each step.
    """

    def __init__(self, progress: ProgressCallback, stage: str, lengths: Mapping[str, float]):
        self._progress, self._stage, self._lengths = progress, stage, lengths
        self._total = sum(lengths.values())
        self._before, self._name = 0.0, ""
        self._told_s = -_BETWEEN_S

    def begin(self, name: str) -> None:
        """Begin a step; all steps before it count as done."""
        names = list(self._lengths)
        self._before = sum(self._lengths[other] for other in names[: names.index(name)])
        self._name = name
        self._report(0.0)

    def tell(self, done: float, total: float) -> None:
        """Report the progress within the step; some calls in short succession are left out."""
        if time.monotonic() - self._told_s >= _BETWEEN_S:
            self._report(done / total if total else 1.0)

    def end(self, note: str = "") -> None:
        """End the stage."""
        self._progress(self._stage, self._total, self._total, note)

    def _report(self, fraction: float) -> None:
        self._told_s = time.monotonic()
        done = self._before + min(1.0, fraction) * self._lengths[self._name]
        self._progress(self._stage, done, self._total, self._name)


class PartOf:
    """Progress of one of several equal parts of a stage: the stages within it become notes.

    Parameters
    ----------
    progress : callable
    stage : str
        Name of the whole.
    place : (int, int)
        Index of this part, and the number of parts.
    name : str
        Name of this part, for the note.
    inner : mapping of str to float
        Relative length of each stage within the part, in order.
    """

    def __init__(
        self,
        progress: ProgressCallback,
        stage: str,
        place: tuple[int, int],
        name: str,
        inner: Mapping[str, float],
    ):
        self._progress, self._stage, self._name = progress, stage, name
        self._number, self._count = place
        self._inner = dict(inner)

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Report the progress of a stage within the part."""
        names, whole = list(self._inner), sum(self._inner.values())
        fraction = 0.0
        if stage in self._inner and whole:
            before = sum(self._inner[other] for other in names[: names.index(stage)])
            fraction = (before + (done / total if total else 1.0) * self._inner[stage]) / whole
        self._progress(self._stage, self._number + fraction, self._count, f"{self._name}: {stage}")
