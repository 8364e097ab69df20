"""Files of temporal filters; one such file comes with the package.

A file of filters is a model of the kind ``backbone``. It holds the length of the window, facts about what the
filters were learnt from, and two sets of weights. If many channels see a unit, a few features of each channel
are enough. A tetrode has only four channels to tell two units apart, and needs more features of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from spikewise.core.errors import CheckpointError
from spikewise.core.untrusted import parsing
from spikewise.models.neighbourhood import Backbone
from spikewise.models.tensor_file import damaged, fill, read_tensors, write_tensors

FORMAT_VERSION = 1
KIND = "backbone"
SHIPPED = "backbone.safetensors"
FEATURES = {"few channels": (32, 32), "many channels": (16, 16)}
"""Features of the two filters of each set. Two simulated tetrodes improved with 32 instead of 16
(docs/design-notes.md)."""
FEW_CHANNELS = 8
"""Groups with at most so many channels use the first set. Chosen by hand."""
_WINDOW_TOLERANCE = 0.05
"""Largest difference between two windows that count as equal, as a fraction. Chosen by hand."""


def which_set(num_channels: int) -> str:
    """Return the name of the set of filters for a group with this number of channels."""
    return "few channels" if num_channels <= FEW_CHANNELS else "many channels"


@dataclass(frozen=True)
class Pretrained:
    """Temporal filters and their source.

    Attributes
    ----------
    backbones : dict of str to Backbone
        For few and for many channels.
    window_ms : float
        Length of the window.
    name : str
        The file, or ``spikewise`` for the filters of the package.
    facts : dict
        What they were learnt from; JSON types only.
    """

    backbones: Mapping[str, Backbone]
    window_ms: float
    name: str
    facts: dict[str, Any]

    def hash(self) -> str:
        """Return the SHA-256 of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(_tensors(self).items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def for_window(self, window_samples: int, window_ms: float, num_channels: int) -> Backbone:
        """Return the filters for a group of channels, interpolated to a number of samples.

        Parameters
        ----------
        window_samples : int
            Length of the window at the sampling frequency of the recording.
        window_ms : float
            Length of the window in time.
        num_channels : int
            Channels of the group.

        Raises
        ------
        CheckpointError
            If the window of the filters has another length in time.
        """
        if abs(window_ms - self.window_ms) > _WINDOW_TOLERANCE * self.window_ms:
            raise CheckpointError(
                f"the filters of {self.name} have a window of {self.window_ms:g} ms, not {window_ms:g} ms",
                f"window_ms {self.window_ms:g} with these filters",
                "leave window_ms out, or train from scratch with pretrained none",
            )
        return self.backbones[which_set(num_channels)].resampled(window_samples)


def shipped_path() -> Path:
    """Return the file of the filters that come with the package."""
    return Path(str(resources.files("spikewise.models") / "weights" / SHIPPED))


def save_pretrained(pretrained: Pretrained, path: Path | str) -> None:
    """Write filters to one file, whole or not at all.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    description = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "window_ms": pretrained.window_ms,
        "facts": pretrained.facts,
    }
    write_tensors(path, _tensors(pretrained), description)


def load_pretrained(path: Path | str | None = None) -> Pretrained:
    """Read filters from a file; by default those that come with the package.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another kind or of a later version.
    """
    file = shipped_path() if path is None else Path(path)
    description, tensors = read_tensors(file, KIND, FORMAT_VERSION)
    with parsing(lambda reason: damaged(file, reason)):
        backbones = {name: _backbone(name, tensors) for name in FEATURES}
        window_ms, facts = float(description["window_ms"]), dict(description["facts"])
        if not 0 < window_ms < 1000:
            raise ValueError(f"its window lasts {window_ms} ms")
    return Pretrained(backbones, window_ms, "spikewise" if path is None else str(path), facts)


def _tensors(pretrained: Pretrained) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": tensor.detach().cpu().contiguous()
        for name, backbone in pretrained.backbones.items()
        for part, tensor in backbone.state_dict().items()
    }


def _backbone(name: str, tensors: dict[str, Tensor]) -> Backbone:
    """Build the filters of one set; any mismatch raises KeyError, ValueError or RuntimeError."""
    state = {part.removeprefix(f"{name}."): t for part, t in tensors.items() if part.startswith(f"{name}.")}
    first, window_samples = state["filter1.weight"].shape
    second, _ = state["filter2.weight"].shape
    return fill(partial(Backbone, window_samples, (first, second)), state)
