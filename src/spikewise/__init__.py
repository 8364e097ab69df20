"""Spike sorting with neural networks.

The public names are loaded when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spikewise.api import SortingResult, evaluate, load_recording, report, simulate, sort, train
    from spikewise.config import Config, RecordingConfig
    from spikewise.data.simulate import Simulation, save_simulation
    from spikewise.errors import SpikewiseError
    from spikewise.evaluation.matching import Performance
    from spikewise.models.checkpoint import Model, load_model, save_model

_HOMES = {
    "Config": "config",
    "Model": "models.checkpoint",
    "Performance": "evaluation.matching",
    "RecordingConfig": "config",
    "Simulation": "data.simulate",
    "SortingResult": "api",
    "SpikewiseError": "errors",
    "evaluate": "api",
    "load_model": "models.checkpoint",
    "load_recording": "api",
    "report": "api",
    "save_model": "models.checkpoint",
    "save_simulation": "data.simulate",
    "simulate": "api",
    "sort": "api",
    "train": "api",
}

__all__ = [
    "Config",
    "Model",
    "Performance",
    "RecordingConfig",
    "Simulation",
    "SortingResult",
    "SpikewiseError",
    "evaluate",
    "load_model",
    "load_recording",
    "report",
    "save_model",
    "save_simulation",
    "simulate",
    "sort",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'spikewise' has no attribute {name!r}")
    return getattr(importlib.import_module(f"spikewise.{_HOMES[name]}"), name)
