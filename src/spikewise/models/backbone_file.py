"""The temporal filters that come with the package, and files of others.

A file of filters is a model of the kind ``backbone``: their weights, the sampling frequency and the length of
their window, and facts about what they were learnt from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from spikewise.errors import CheckpointError
from spikewise.models.neighbourhood import Backbone
from spikewise.models.tensor_file import damaged, read_tensors, write_tensors

FORMAT_VERSION = 1
KIND = "backbone"
SHIPPED = "backbone.safetensors"


@dataclass(frozen=True)
class Pretrained:
    """Filters and where they are from.

    Attributes
    ----------
    backbone : Backbone
    window_ms : float
    name : str
        The file, or ``spikewise`` for those of the package.
    facts : dict
        JSON types only.
    """

    backbone: Backbone
    window_ms: float
    name: str
    facts: dict[str, Any]

    def hash(self) -> str:
        """Return the SHA-256 of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.backbone.state_dict().items()):
            digest.update(name.encode() + tensor.detach().numpy().tobytes())
        return digest.hexdigest()

    def for_window(self, window_samples: int, window_ms: float) -> Backbone:
        """Return the filters for a sampling frequency at which the window has so many samples.

        Raises
        ------
        CheckpointError
            If the window lasts another time.
        """
        if abs(window_ms - self.window_ms) > 0.05 * self.window_ms:
            raise CheckpointError(
                f"the filters of {self.name} have a window of {self.window_ms:g} ms, not {window_ms:g} ms",
                f"window_ms {self.window_ms:g} with these filters",
                "leave window_ms out, or train from scratch with pretrained none",
            )
        return self.backbone.resampled(window_samples)


def shipped_path() -> Path:
    """Return the file of the filters that come with the package."""
    return Path(str(resources.files("spikewise") / "weights" / SHIPPED))


def save_backbone(backbone: Backbone, window_ms: float, facts: dict[str, Any], path: Path | str) -> None:
    """Write filters to one file, whole or not at all.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    write_tensors(
        path,
        tensors,
        {"kind": KIND, "format_version": FORMAT_VERSION, "window_ms": window_ms, "facts": facts},
    )


def load_backbone(path: Path | str | None = None) -> Pretrained:
    """Read filters from a file; by default those that come with the package.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another kind or of a later version.
    """
    file = shipped_path() if path is None else Path(path)
    description, tensors = read_tensors(file, KIND, FORMAT_VERSION)
    try:
        first, window_samples = tensors["filter1.weight"].shape
        second, _ = tensors["filter2.weight"].shape
        backbone = Backbone(window_samples, (first, second))
        backbone.load_state_dict(tensors)
        window_ms, facts = float(description["window_ms"]), dict(description["facts"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(file, f"{type(error).__name__}: {error}") from error
    return Pretrained(backbone.eval(), window_ms, "spikewise" if path is None else str(path), facts)
