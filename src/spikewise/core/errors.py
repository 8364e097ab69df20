"""Errors that a user can cause.

Each is a :class:`SpikewiseError`. Its message has three parts: what was given, what is allowed, and what to
do. The command prints it without a traceback and exits with :attr:`SpikewiseError.exit_code`.
"""

from __future__ import annotations

from typing import Any


class SpikewiseError(Exception):
    """A wrong input, or a limit of the machine.

    Parameters
    ----------
    given : str
        What was found, with the value and its source.
    allowed : str
        What is accepted.
    remedy : str
        What the user can do.
    """

    exit_code = 2

    def __init__(self, given: str, allowed: str, remedy: str):
        self.given = given
        self.allowed = allowed
        self.remedy = remedy
        super().__init__(" ".join(_sentence(part) for part in (given, allowed, remedy)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error with its three parts, to send it between processes."""
        return _rebuild, (type(self), self.given, self.allowed, self.remedy)


class SettingError(SpikewiseError, ValueError):
    """A setting has a wrong type, is out of range, or is unknown."""


class RecordingError(SpikewiseError, ValueError):
    """A recording cannot be read, or its traces cannot be sorted."""


class ProbeError(SpikewiseError, ValueError):
    """A probe is missing, unknown, or does not fit the recording."""


class LabelsError(SpikewiseError, ValueError):
    """Labels cannot be read, or do not fit the recording."""


class WaveformsError(SpikewiseError, ValueError):
    """Waveforms cannot be read, or do not fit."""


class BootstrapError(SpikewiseError, RuntimeError):
    """The sorter that makes the labels is missing, failed, or found nothing."""


class CheckpointError(SpikewiseError, ValueError):
    """A checkpoint is damaged, or does not fit the recording."""


class OutputError(SpikewiseError, OSError):
    """A result cannot be written to the given path."""

    def __str__(self) -> str:
        """Return the message; OSError alone would print its own fields."""
        return " ".join(_sentence(part) for part in (self.given, self.allowed, self.remedy))


class Interrupted(SpikewiseError):
    """The user stopped the program; finished work is kept."""

    exit_code = 130


class SomeFailed(SpikewiseError):
    """Some of many recordings could not be sorted; the others were."""

    exit_code = 1


class ClusterError(SpikewiseError, RuntimeError):
    """A cluster cannot be reached, or its workers cannot do the work."""


class MissingExtraError(SpikewiseError, ImportError):
    """An optional package is not installed.

    Parameters
    ----------
    package : str
        Name of the missing package.
    extra : str
        The extra of Spikewise that installs it.
    purpose : str
        What needs it.
    """

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            f"it comes with the extra {extra!r}",
            f"install it with: pip install 'spikewise[{extra}]'",
        )


def _rebuild(kind: type[SpikewiseError], *parts: str) -> SpikewiseError:
    """Rebuild a pickled error; the parameters of its class may differ from the three parts."""
    error = kind.__new__(kind)
    SpikewiseError.__init__(error, *parts)
    return error


def _sentence(part: str) -> str:
    part = part.strip()
    if part[-1] not in ".!?:":
        part += "."
    if not part.split(maxsplit=1)[0].rstrip(",:").isalpha():
        return part  # a path or the name of a setting keeps its case
    return part[0].upper() + part[1:]
