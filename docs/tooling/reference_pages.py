"""The pages of reference/: every command, every setting, the public Python names, formats; from the code.

Each function returns one page as Markdown. No command or setting is named here: commands come from the
parser, settings from their dataclasses, Python names from signatures and docstrings.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import docstring_parser
from cyclopts import App
from cyclopts.argument import Argument

import spikewise
from spikewise.cli.main import app
from spikewise.core import config as config_module
from spikewise.core.config import TRAINING_PRESETS, Config, TrainingConfig
from spikewise.core.settings import Settings
from spikewise.data.labels.label_files import LABEL_FORMATS
from spikewise.data.recordings.formats import readable_formats
from spikewise.data.recordings.probes import catalogue_names
from spikewise.jobs import sorter_config
from spikewise.output.export import config as export_config
from spikewise.papers.cnn1d import config as papers_config
from spikewise.papers.esort import config as esort_paper_config
from spikewise.papers.speed import config as speed_config
from spikewise.single_channel import config as waveform_config
from spikewise.single_channel.config import WAVEFORM_PRESETS, WaveformTrainingConfig
from spikewise.single_channel.files import SNIPPET_FORMATS

PRESETS: dict[type[Settings], dict[str, dict[str, Any]]] = {
    TrainingConfig: TRAINING_PRESETS,
    WaveformTrainingConfig: WAVEFORM_PRESETS,
}


@dataclass(frozen=True)
class Command:
    """One command as its parser knows it.

    Attributes
    ----------
    words : tuple of str
        Its name, a word for each level: ``("waveforms", "train")``.
    app : App
    arguments : list of Argument
        All its arguments; empty for a command that only groups others.
    settings : list of type
        The settings whose fields are options of it.
    """

    words: tuple[str, ...]
    app: App
    arguments: list[Argument]
    settings: list[type[Settings]]

    @property
    def title(self) -> str:
        """The command as it is typed."""
        return " ".join(("spikewise", *self.words))

    @property
    def anchor(self) -> str:
        """The anchor of its part on the page of commands."""
        return "-".join(self.words)

    @property
    def own_arguments(self) -> list[Argument]:
        """Those that are not fields of settings."""
        return [argument for argument in self.arguments if not argument.keys]


def all_commands() -> list[Command]:
    """Return every command in the order of the app; groups come last, each before its commands."""
    return list(_below(()))


def _below(words: tuple[str, ...]) -> Iterator[Command]:
    _, apps, _ = app.parse_commands(list(words))
    names = [name for name in apps[-1] if not name.startswith("-")]
    for name in sorted(names, key=lambda name: apps[-1][name].default_command is None):
        inner = (*words, name)
        _, path, _ = app.parse_commands(list(inner))
        command = path[-1]
        with command.app_stack(path):
            arguments = [] if command.default_command is None else _arguments(command)
        yield Command(inner, command, arguments, list(_settings_of(command.default_command)))
        yield from _below(inner)


def _arguments(command: App) -> list[Argument]:
    found = command.assemble_argument_collection(parse_docstring=True)
    return [argument for argument in found if argument.show]


def _settings_of(function: Any) -> Iterator[type[Settings]]:
    """Yield the settings that a command takes as flat options, in the order of its parameters."""
    hints = {} if function is None else typing.get_type_hints(function)
    for kind in hints.values():
        if isinstance(kind, type) and issubclass(kind, Config):
            yield from parts_of_config()
        elif isinstance(kind, type) and issubclass(kind, Settings):
            yield kind


def parts_of_config() -> list[type[Settings]]:
    """Return the kinds of settings that make up :class:`spikewise.Config`."""
    return [type(getattr(Config(), field.name)) for field in dataclasses.fields(Config)]


def all_settings() -> list[type[Settings]]:
    """Return every kind of settings: those of a sort in their order, then the others by module."""
    modules = (
        config_module,
        sorter_config,
        waveform_config,
        export_config,
        papers_config,
        esort_paper_config,
        speed_config,
    )
    found = [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Settings) and _is_of(kind, module.__name__)
    ]
    return list(dict.fromkeys([*parts_of_config(), *found]))


def _is_of(kind: type, module: str) -> bool:
    """Return whether a class is defined in a module, or in a module of that package."""
    return kind.__module__ == module or kind.__module__.startswith(f"{module}.")


def commands_page() -> str:
    """Return the page of all commands."""
    lines = [
        "# Commands",
        "",
        "This page is generated from the command's parser. `spikewise COMMAND --help` shows the same. "
        "Results go to standard output. Progress, warnings and errors go to standard error. Exit codes: "
        "0 done, 1 some of many recordings failed, 2 an input cannot be used, 130 interrupted.",
        "",
    ]
    for command in all_commands():
        level = "#" * (1 + len(command.words))
        lines += [f"{level} {command.title} {{ #{command.anchor} }}", ""]
        lines += [_purpose(command), ""]
        if command.arguments:
            lines += ["```console", _usage(command), "```", ""]
            rows = [_argument_row(argument) for argument in command.own_arguments]
            lines += _narrow("options", _table(["", "default", "what it is"], rows))
            if command.settings:
                links = ", ".join(
                    f"[{_title(kind)}](settings.md#{_anchor(kind)})" for kind in command.settings
                )
                lines += ["", f"Its other options are settings: {links}."]
        lines.append("")
    return "\n".join(lines)


def _purpose(command: Command) -> str:
    """Return what a command is for: the part of its docstring before the parameters."""
    if command.app.default_command is None:
        return _plain(str(command.app.help))
    parsed = docstring_parser.parse(command.app.default_command.__doc__ or "")
    return "\n\n".join(_plain(part) for part in (parsed.short_description, parsed.long_description) if part)


def _usage(command: Command) -> str:
    words = [command.title]
    for argument in command.own_arguments:
        if argument.index is not None:
            words.append(_metavar(argument) if argument.required else f"[{_metavar(argument)}]")
        elif argument.required:
            words.append(f"{argument.name} {_metavar(argument)}")
    return " ".join([*words, "[OPTIONS]"])


def _metavar(argument: Argument) -> str:
    """Return the word that stands for a value."""
    return argument.field_info.name.upper()


def _argument_row(argument: Argument) -> list[str]:
    names = [_metavar(argument)] if argument.index is not None else []
    names = "<br>".join(f"`{name}`" for name in (*names, *argument.names))
    default = argument.field_info.default
    return [
        names,
        "needed" if argument.required else _value(default),
        _plain(argument.parameter.help or ""),
    ]


def settings_page() -> str:
    """Return the page of all settings."""
    lines = [
        "# Settings",
        "",
        "This page is generated from the code. Each setting is declared once. The options of the "
        "commands and the names in Python derive from it. The tables give the option of the command "
        "first and the name in Python last, as in `spikewise.sort(recording, labels=labels, "
        "freq_min_hz=250, seed=1)`. Spikewise refuses a value outside of its range, and an unknown name, "
        "before anything runs. The default - means that no value is given. The text then says what "
        "happens.",
        "",
    ]
    users = all_commands()
    for kind in all_settings():
        lines += [f"## {_title(kind)} {{ #{_anchor(kind)} }}", ""]
        lines += [_from_docstring(inspect.getdoc(kind) or ""), ""]
        takers = [command for command in users if kind in command.settings]
        if takers:
            links = ", ".join(f"[`{c.title}`](commands.md#{c.anchor})" for c in takers)
            lines += [f"Options of {links}.", ""]
        else:
            lines += ["Parameters of [the sorter of SpikeInterface](../spikeinterface.md).", ""]
        lines += _settings_table(kind, takers)
        lines += _presets_table(kind)
        lines.append("")
    return "\n".join(lines)


def _settings_table(kind: type[Settings], takers: list[Command]) -> list[str]:
    options = {
        argument.keys[-1]: argument.names
        for command in takers
        for argument in command.arguments
        if argument.keys
    }
    hints = typing.get_type_hints(kind)
    rows = []
    for field in dataclasses.fields(kind):
        names = [f"`{name}`" for name in options.get(field.name, ())] + [f"`{field.name}`"]
        help_text = _plain(field.metadata["help"]) + _design_note(kind, field.name)
        rows.append(["<br>".join(names), _default(kind, field), _kinds(hints[field.name]), help_text])
    return _narrow("settings", _table(["setting", "default", "value", "what it is"], rows))


def _design_note(kind: type[Settings], name: str) -> str:
    """Name the design that a setting belongs to, if it is only one."""
    (design,) = (field.metadata["design"] for field in dataclasses.fields(kind) if field.name == name)
    return f" *Design {design} only.*" if design else ""


def _default(kind: type[Settings], field: dataclasses.Field) -> str:
    if field.default is None and any(field.name in preset for preset in PRESETS.get(kind, {}).values()):
        return "of the preset"
    return _value(field.default)


def _presets_table(kind: type[Settings]) -> list[str]:
    presets = PRESETS.get(kind)
    if presets is None:
        return []
    names = list(presets)
    rows = [
        [f"`{name}`", *(_value(presets[preset][name]) for preset in names)]
        for name in next(iter(presets.values()))
    ]
    heads = [f"`{name}`" for name in names]
    return ["", "What the presets give:", "", *_table(["setting", *heads], rows)]


def python_page() -> str:
    """Return the page of the public Python names."""
    functions, classes, values = [], [], []
    for name in spikewise.__all__:
        item = getattr(spikewise, name)
        kind = classes if inspect.isclass(item) else functions if callable(item) else values
        kind.append((name, item))
    lines = [
        "# Python",
        "",
        "This page is generated from the docstrings. Import all names from `spikewise`. A function with "
        "`**options` takes [settings](settings.md) by their names. Errors are a `SpikewiseError`. Its "
        "message says what was given, what is allowed and what to do.",
        "",
        "## Functions",
        "",
    ]
    for name, item in functions:
        lines += [f"### {name} {{ #{name.lower()} }}", "", "```python", _signature(name, item), "```", ""]
        lines += [*_docstring(item), ""]
    lines += ["## Classes", ""]
    for name, item in classes:
        lines += [f"### {name} {{ #{name.lower()} }}", ""]
        lines += _docstring(item)
        if issubclass(item, Settings):
            lines += ["", f"Its fields: [settings](settings.md#{_anchor(item)})."]
        elif item is Config:
            lines += ["", "Its parts, each with its fields:", ""]
            lines += [f"- [{_title(kind)}](settings.md#{_anchor(kind)})" for kind in parts_of_config()]
        lines.append("")
    lines += ["## Values", ""]
    for name, item in values:
        # HTML, because Markdown would read the underscores of __version__ as emphasis.
        lines += [f'<h3 id="{name.lower()}"><code>{name}</code></h3>', "", f"Here `{item!r}`.", ""]
    return "\n".join(lines)


def _signature(name: str, function: Any) -> str:
    """Return a call with defaults, without types (the tables have them); a long one has several lines."""
    parameters = inspect.signature(function).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    inside = str(inspect.Signature([_shown(parameter) for parameter in bare]))[1:-1]
    call = f"spikewise.{name}({inside})"
    if len(call) <= 90:
        return call
    return f"spikewise.{name}(\n    " + inside.replace(", ", ",\n    ") + ",\n)"


class _Bare(str):
    """Text that shows itself without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _shown(parameter: inspect.Parameter) -> inspect.Parameter:
    """Show a default that is an object by its name only."""
    default = parameter.default
    if callable(default) and default is not inspect.Parameter.empty:
        return parameter.replace(default=_Bare(default.__name__))
    if dataclasses.is_dataclass(default):
        return parameter.replace(default=_Bare(f"{type(default).__name__}()"))
    return parameter


def _docstring(item: Any) -> list[str]:
    """Return a NumPy docstring as paragraphs and tables."""
    parsed = docstring_parser.parse(inspect.getdoc(item) or "", docstring_parser.DocstringStyle.NUMPYDOC)
    parts = [part for part in (parsed.short_description, parsed.long_description) if part]
    lines = [_from_docstring("\n\n".join(parts))]
    for title, kinds in (("Parameters", ("param",)), ("Attributes", ("attribute",))):
        found = [entry for entry in parsed.params if entry.args[0] in kinds]
        if found:
            rows = [[f"`{e.arg_name}`", _cell(e.type_name or ""), _cell(e.description or "")] for e in found]
            lines += ["", f"**{title}**", "", *_table(["name", "type", "what it is"], rows)]
    returned = [entry for entry in parsed.many_returns if entry.type_name or entry.description]
    if returned:
        texts = [
            ": ".join(filter(None, (_cell(e.type_name or ""), _cell(e.description or "")))) for e in returned
        ]
        lines += ["", f"**Returns** {'; '.join(texts)}"]
    if parsed.raises:
        rows = [[_cell(e.type_name or ""), _cell(e.description or "")] for e in parsed.raises]
        lines += ["", "**Raises**", "", *_table(["error", "when"], rows)]
    return lines


def formats_page() -> str:
    """Return the page of what can be read."""
    parts = {
        "Recordings": ("`--format`", readable_formats()),
        "Labels": ("", LABEL_FORMATS),
        "Waveforms": ("ending", SNIPPET_FORMATS),
    }
    lines = [
        "# Formats and probes",
        "",
        "This page is generated from the code. `spikewise info` lists the same. Spikewise finds the "
        "format from the path. If it cannot, name it with `--format`. From Python you can also give any "
        "other recording or sorting that SpikeInterface reads, as an object.",
        "",
    ]
    for title, (head, formats) in parts.items():
        rows = [[f"`{name}`" if head else name, _plain(text)] for name, text in formats.items()]
        lines += [f"## {title}", "", *_table([head or "kind", "what it is"], rows), ""]
    names = ", ".join(f"`{name}`" for name in catalogue_names())
    lines += [
        "## Probes",
        "",
        "`--probe` takes one of these:",
        "",
        f"- A name: {names}. N is a number, as in `linear-16`.",
        "- A file: `.json` of probeinterface, `.prb`, `.meta` or `.imro` of SpikeGLX, `.h5` of MEArec.",
        "- `MANUFACTURER:PROBE` of the probeinterface library, which is downloaded.",
        "",
    ]
    return "\n".join(lines)


def _title(kind: type[Settings]) -> str:
    """Return the name of settings as words: ``ChannelSortingConfig`` is *Channel sorting*."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__.removesuffix("Config"))
    return words.upper() if words in ("Gui", "Nwb") else words.capitalize()


def _anchor(kind: type[Settings]) -> str:
    return kind.__name__.lower()


def _kinds(hint: Any) -> str:
    """Say which values a setting takes."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kinds(option) for option in inner if option is not type(None))
    if origin is Literal:
        return ", ".join(f"`{option}`" for option in inner)
    if origin is tuple:
        count = "any number of " if inner[-1] is Ellipsis else f"{len(inner)} of: "
        return count + _kinds(inner[0])
    names = {float: "number", int: "whole number", bool: "yes or no", str: "text", Path: "path"}
    return names[hint]


def _value(value: Any) -> str:
    """Write a default."""
    if value is None or value is inspect.Parameter.empty:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"`{value:.5g}`"
    if isinstance(value, tuple):
        return ", ".join(_value(item) for item in value) or "none"
    return f"`{value}`"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    heads = list(heads)
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    return lines + [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def _narrow(kind: str, table: list[str]) -> list[str]:
    """Mark a table whose rows stand below each other on narrow screens (stylesheets/site.css)."""
    return [f'<div class="{kind}" markdown>', "", *table, "", "</div>"]


def _plain(text: str) -> str:
    """Return plain text of the help pages as Markdown; text between backticks is code."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]])", r"\\\1", part) for part in parts)


def _cell(text: str) -> str:
    return " ".join(_from_docstring(text).split())


def _from_docstring(text: str) -> str:
    """Return the text of a docstring as Markdown: roles and double backticks are code."""
    text = re.sub(r":[a-z]+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]])", r"\\\1", part) for part in parts)
