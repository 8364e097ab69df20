"""The output folder of the experiments: the check that it may be used, and the settings of its results.

``settings.json`` holds all that determines the scores. A run is resumed only in a folder with the same
settings, so that scores that were measured in different ways are never in one table.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

from spikewise.core.errors import OutputError, WaveformsError
from spikewise.core.files import save_json, writing
from spikewise.core.untrusted import read_json
from spikewise.papers.cnn1d.config import PapersConfig
from spikewise.papers.cnn1d.sets import PaperSet
from spikewise.single_channel.config import WAVEFORM_PRESETS

_SETTINGS_FILE, RESULTS_FILE, PAGE_FILE = "settings.json", "results.csv", "papers.html"
_FOLDERS = ("sets", "tables", "studies", "figures")


def check_folder(output: Path) -> None:
    """Raise unless the folder is new, empty, or of an earlier run.

    Raises
    ------
    OutputError
        If it is a file, or holds other files.
    """
    with writing(output):
        if not output.exists():
            return
        names = sorted(item.name for item in output.iterdir()) if output.is_dir() else [output.name]
    ours = {_SETTINGS_FILE, RESULTS_FILE, PAGE_FILE, *_FOLDERS}
    foreign = [name for name in names if name.removesuffix(".partial") not in ours]
    if foreign or (names and _SETTINGS_FILE not in names):
        raise OutputError(
            f"the output {output} holds {', '.join((foreign or names)[:5])}",
            "a new or empty folder, or one of an earlier run of these experiments",
            "choose another folder",
        )


def fingerprint_of(sets: list[PaperSet], config: PapersConfig) -> dict[str, Any]:
    """Return all that determines the scores: settings, version, and the content of the files that are read.

    Returns
    -------
    dict
        JSON types; files are identified by the SHA-256 of their content.

    Raises
    ------
    WaveformsError
        If a file cannot be read.
    """
    from spikewise.core.version import __version__

    settings = {name: value for name, value in config.to_dict().items() if name != "num_jobs"}
    files = {item.name: hash_of(item.path) for item in sets if item.source == "real"}
    if config.shapes is not None:
        settings["shapes"] = hash_of(Path(config.shapes))
    return {
        "experiments_of": "Li et al. 2020",
        "version": __version__,
        **settings,
        "files": files,
        "networks": json.loads(json.dumps(WAVEFORM_PRESETS)),
    }


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WaveformsError(
            f"the file {path} cannot be read: {error.strerror}", "a file that can be read", "check the path"
        ) from error


def claim_folder(output: Path, fingerprint: dict[str, Any]) -> None:
    """Make the folder and write its settings, or check those of an earlier run.

    Parameters
    ----------
    output : Path
    fingerprint : dict
        The result of :func:`fingerprint_of`.

    Raises
    ------
    OutputError
        If the folder has other settings (the message lists them), or it cannot be written.
    """
    path = output / _SETTINGS_FILE
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        save_json(fingerprint, path)
    with writing(output):
        for name in _FOLDERS:
            (output / name).mkdir(exist_ok=True)
    try:
        earlier = read_json(path)
    except (OSError, ValueError):
        earlier = None
    if not isinstance(earlier, dict) or earlier.get("experiments_of") != fingerprint["experiments_of"]:
        raise OutputError(
            f"the file {path} does not hold settings of these experiments",
            "a file that they wrote",
            "choose another folder",
        )
    changed = _differences(earlier, fingerprint)
    if changed:
        raise OutputError(
            f"the folder {output} was made with other settings ({'; '.join(changed)})",
            "the same settings, to resume its run",
            "choose another folder, or give the settings of the earlier run",
        )


def _differences(earlier: dict[str, Any], now: dict[str, Any], within: str = "") -> list[str]:
    """Return the differences of two dictionaries of JSON types as text."""
    found = []
    for name in dict.fromkeys([*now, *earlier]):
        before, after = earlier.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{within}{name} ")
        elif before != after:
            found.append(f"{within}{name}: {_short(before)}, now {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, completely or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        frame.to_csv(partial, index=False, float_format="%.6g")
        partial.replace(path)
