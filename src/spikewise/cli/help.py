"""The help of commands with many settings: ``--help`` shows those that matter, ``--help-advanced`` all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cyclopts.help import HelpPanel
from cyclopts.help.formatters import DefaultFormatter

from spikewise.cli.options import SETTING_GROUPS

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

ADVANCED_FLAG = "--help-advanced"
EPILOGUE = f"--help shows the settings that matter most, {ADVANCED_FLAG} shows all."
FIRST_SETTINGS = (
    "stream",
    "sampling_frequency",
    "num_channels",
    "dtype",
    "gain_to_uV",
    "probe",
    "label_interval",
    "labels_per_unit",
    "bootstrap",
    "filter",
    "exclude_channels",
    "drift_um",
    "seed",
    "threshold",
    "device",
)
"""The settings of a sort that ``--help`` shows."""
_FIRST_OPTIONS = {f"--{name.lower().replace('_', '-')}" for name in FIRST_SETTINGS}


class ShortHelp(DefaultFormatter):
    """Shows all options of a command that are no settings, and of the settings only some.

    Attributes
    ----------
    is_advanced : bool
        Whether all settings are shown.
    """

    is_advanced = False

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print one group of options."""
        if str(panel.title) in SETTING_GROUPS and not self.is_advanced:
            shown = [entry for entry in panel.entries if _FIRST_OPTIONS & set(entry.positive_names)]
            if not shown:
                return
            panel = panel.copy(entries=shown)
        super().__call__(console, options, panel)


SHORT_HELP = ShortHelp()
"""The help of all commands that take the settings of a sort."""


def without_advanced_flag(arguments: list[str]) -> list[str]:
    """Return the arguments with :data:`ADVANCED_FLAG` as ``--help``, and remember whether it was given."""
    SHORT_HELP.is_advanced = ADVANCED_FLAG in arguments
    return ["--help" if argument == ADVANCED_FLAG else argument for argument in arguments]
