"""The sorters that are compared, and which of them are installed.

Spikewise and the sorters that come with SpikeInterface run in this Python. The peers run in that of
``--peers-python``, or in this one if none is given.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import spikewise
from spikewise.core.errors import SettingError

LABELLED = "spikewise+labels"


@dataclass(frozen=True)
class Sorter:
    """A sorter as it is compared.

    Attributes
    ----------
    kind : str
        How it is run, see ``one_sort.py``.
    package : str
        The package that must be installed; its version is part of the result.
    sorter : str
        Its name in SpikeInterface.
    parameters : dict
        What differs from its defaults.
    seeded : bool
        Whether it takes a seed; the seed of the scene is given.
    peer : bool
        Whether it runs in the environment of the peers.
    """

    kind: Literal["spikewise", "spikeinterface", "spikesift"]
    package: str
    sorter: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    seeded: bool = False
    peer: bool = False


def _internal(sorter: str, seeded: bool = True, **parameters: Any) -> Sorter:
    return Sorter("spikeinterface", "spikeinterface", sorter, parameters, seeded)


SORTERS = {
    "spikewise": Sorter("spikewise", "spikewise"),
    LABELLED: Sorter("spikewise", "spikewise"),
    "lupin": _internal("lupin"),
    "lupin+motion": _internal("lupin", apply_motion_correction=True),
    "tridesclous2": _internal("tridesclous2"),
    "spykingcircus2": _internal("spykingcircus2"),
    "spikesift": Sorter("spikesift", "spikesift", peer=True),
    "spikesift+6": Sorter("spikesift", "spikesift", parameters={"detection_sensitivity": 6}, peer=True),
    "mountainsort5": Sorter("spikeinterface", "mountainsort5", "mountainsort5", peer=True),
    "kilosort4": Sorter("spikeinterface", "kilosort", "kilosort4", peer=True),
}
"""In the order in which they take turns."""


@dataclass(frozen=True)
class Installed:
    """What is installed: versions by package, and the interpreter of the peers."""

    peers_python: Path
    versions: dict[str, str]

    def version(self, name: str) -> str | None:
        """Return the version of a sorter; None if it is not installed."""
        return self.versions.get(SORTERS[name].package)

    def python(self, name: str) -> Path:
        """Return the interpreter that runs a sorter."""
        return self.peers_python if SORTERS[name].peer else Path(sys.executable)


_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for package in sys.argv[1:]:
    try:
        found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def find_installed(peers_python: Path | None) -> Installed:
    """Return which sorters are installed.

    A peer that SpikeInterface runs needs SpikeInterface beside it. The version of Spikewise includes a hash
    of its source, so that a changed Spikewise is run again.

    Raises
    ------
    SettingError
        If the interpreter of the peers cannot be run.
    """
    python = peers_python or Path(sys.executable)
    peers = sorted({sorter.package for sorter in SORTERS.values() if sorter.peer})
    try:
        output = subprocess.run(
            [python, "-c", _VERSIONS, *peers, "spikeinterface"], capture_output=True, text=True, check=True
        ).stdout
        found = json.loads(output)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise SettingError(
            f"{python} cannot be run: {error}",
            "the Python of an environment in which other sorters are installed",
            "check --peers-python",
        ) from error
    beside = found.pop("spikeinterface", None)
    through = {s.package for s in SORTERS.values() if s.peer and s.kind == "spikeinterface"}
    versions = {package: version for package, version in found.items() if beside or package not in through}
    import spikeinterface

    own = f"{spikewise.__version__}+{_source_hash()}"
    return Installed(python, {**versions, "spikeinterface": spikeinterface.__version__, "spikewise": own})


def _source_hash() -> str:
    """Return a hash of the source of Spikewise, with the files that it needs."""
    folder = Path(spikewise.__file__).parent
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


def choose_sorters(
    installed: Installed, wanted: list[str] | None, skipped: list[str], with_labels: bool
) -> tuple[list[str], list[str]]:
    """Return the sorters that are run, in the order of their turns, and those that are not installed.

    Raises
    ------
    SettingError
        If a sorter that is asked for by name is not installed, or none is left.
    """
    missing = [name for name in SORTERS if installed.version(name) is None]
    for name in wanted or []:
        if name in missing:
            raise SettingError(
                f"{name} is not installed for {installed.python(name)}",
                f"installed are {', '.join(n for n in SORTERS if n not in missing)}",
                f"install {SORTERS[name].package} there, or give another Python with --peers-python",
            )
    default = [name for name in SORTERS if name not in missing and (with_labels or name != LABELLED)]
    chosen = [name for name in SORTERS if name in (wanted or default) and name not in skipped]
    if not chosen:
        raise SettingError("no sorter is left", "at least one", "change --sorters or --skip")
    return chosen, [name for name in missing if name not in skipped]


def parameters_of(name: str, num_channels: int, seed: int) -> dict[str, Any]:
    """Return what differs from the defaults of a sorter, on a recording of so many channels."""
    sorter = SORTERS[name]
    parameters = dict(sorter.parameters)
    if sorter.seeded:
        parameters["seed"] = seed
    if sorter.sorter == "kilosort4" and num_channels < 10:
        parameters["nearest_chans"] = num_channels  # it refuses more neighbours than there are channels
    return parameters
