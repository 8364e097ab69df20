"""What every setting is made of: a field of a frozen dataclass that declares and checks its own values.

A setting is a field made by :func:`setting` with its default, help, unit and range. The options of the
command derive from these fields, and each dataclass checks its own values, so that Python, command line and
file accept the same things.

Conventions: a name ends in its unit (``_ms``, ``_s``, ``_hz``, ``_um``, ``_uV``); ``None`` means
"decide from the data", and the help says how.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, Self

from spikewise.core.errors import SettingError


def setting(
    default: Any,
    help: str,
    *,
    unit: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    design: str | None = None,
) -> Any:
    """Declare one setting: a dataclass field with its help, unit and range.

    `design` is the only design of the network that knows the setting; None: all designs do.
    """
    bounds = [
        None if minimum is None else f"at least {minimum:g}",
        None if maximum is None else f"at most {maximum:g}",
    ]
    notes = ", ".join(note for note in (unit, *bounds) if note)
    return dataclasses.field(
        default=default,
        metadata={
            "help": f"{help} ({notes})" if notes else help,
            "unit": unit,
            "minimum": minimum,
            "maximum": maximum,
            "design": design,
        },
    )


@dataclass(frozen=True)
class Settings:
    """Base of all settings: checks types and ranges, reads and writes plain dictionaries."""

    def __post_init__(self) -> None:
        """Check every value."""
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check_value(field, hints[field.name], getattr(self, field.name))
        self._check_together()

    def _check_together(self) -> None:
        """Check what one field alone cannot show; subclasses override."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dictionary of JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the settings from a dictionary.

        Raises
        ------
        SettingError
            If a key is unknown (the valid ones are listed) or a value is not allowed.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise unknown_setting(key, names, f"of {cls.__name__}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def unknown_setting(key: str, names: list[str], where: str) -> SettingError:
    """Return the error that names an unknown setting, the valid ones, and the closest of them."""
    close = difflib.get_close_matches(key, names, n=1)
    return SettingError(
        f"there is no setting {key!r} {where}",
        f"allowed: {', '.join(names)}",
        f"did you mean {close[0]!r}?" if close else "remove it or correct its name",
    )


def check_interval(value: tuple[float, float] | None, name: str) -> None:
    """Raise unless an interval in seconds starts at 0 or later and ends after its start; None is allowed.

    Parameters
    ----------
    value : tuple of float or None
        Start and end in seconds.
    name : str
        Name of the setting, for the message.

    Raises
    ------
    SettingError
        If the interval is not allowed.
    """
    if value is not None and not 0 <= value[0] < value[1]:
        raise SettingError(
            f"the {name.replace('_', ' ')} is {value[0]:g} to {value[1]:g} s",
            "it must start at 0 or later and end after its start",
            f"give {name} as START END in seconds",
        )


def _check_value(field: dataclasses.Field, hint: Any, value: Any) -> None:
    """Raise unless `value` has the type and lies in the range that the field declares."""
    if not _fits(hint, value):
        raise SettingError(
            f"the setting {field.name} is {value!r}", f"it must be {_describe(hint)}", "change it"
        )
    low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
    numbers = [
        item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, int | float)
    ]
    if any(
        not math.isfinite(number)
        or (low is not None and number < low)
        or (high is not None and number > high)
        for number in numbers
    ):
        bounds = [f"at least {low}"] if low is not None else []
        bounds += [f"at most {high}"] if high is not None else []
        allowed = " and ".join(bounds if all(map(math.isfinite, numbers)) else ["finite", *bounds])
        raise SettingError(f"the setting {field.name} is {value!r}", f"it must be {allowed}", "change it")


def _fits(hint: Any, value: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(option, value) for option in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        options = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if options[-1] is Ellipsis:
            return all(_fits(options[0], item) for item in value)
        return len(options) == len(value) and all(map(_fits, options, value))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if origin is tuple:
        return "a tuple of " + ", ".join(_describe(o) for o in typing.get_args(hint) if o is not Ellipsis)
    names = {
        type(None): "nothing",
        float: "a number",
        int: "a whole number",
        bool: "true or false",
        str: "text",
    }
    return names.get(hint, str(hint))
