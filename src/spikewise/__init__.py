"""Spike sorting with neural networks.

Public names are loaded at their first use, so that the package imports quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spikewise.core.version import __version__
from spikewise.jobs.registration import register_sorter

if TYPE_CHECKING:
    from spikewise.api import (
        SortingResult,
        evaluate,
        load_recording,
        load_result,
        report,
        simulate,
        sort,
        train,
    )
    from spikewise.core.config import Config, EvaluationConfig, RecordingConfig, StreamConfig
    from spikewise.core.errors import SpikewiseError
    from spikewise.data.simulation.saving import save_simulation
    from spikewise.data.simulation.simulate import Simulation
    from spikewise.jobs.live.loop import StreamResult
    from spikewise.jobs.live.streaming import stream
    from spikewise.models.checkpoint import Model, load_model, save_model
    from spikewise.output.export.config import AnalyzerConfig, NwbConfig, PhyConfig
    from spikewise.output.export.exporting import analyze, export_nwb, export_phy
    from spikewise.output.matching import Performance
    from spikewise.single_channel.api import classify_waveforms, simulate_channel, train_waveforms
    from spikewise.single_channel.classifier import (
        Classification,
        WaveformClassifier,
        load_classifier,
        save_classifier,
    )
    from spikewise.single_channel.config import (
        ChannelSortingConfig,
        SnippetsConfig,
        SpikeDetectionConfig,
        WaveClusConfig,
        WaveformTrainingConfig,
    )
    from spikewise.single_channel.live.stream_sorter import ChannelStreamSorter
    from spikewise.single_channel.live.streaming import stream_channels
    from spikewise.single_channel.snippets import Snippets, load_snippets
    from spikewise.single_channel.sorting import ChannelResult, sort_channel
    from spikewise.sorting.live.stream_sorter import StreamSorter

_MODULES = {
    "AnalyzerConfig": "output.export.config",
    "ChannelResult": "single_channel.sorting",
    "ChannelSortingConfig": "single_channel.config",
    "ChannelStreamSorter": "single_channel.live.stream_sorter",
    "Classification": "single_channel.classifier",
    "Config": "core.config",
    "EvaluationConfig": "core.config",
    "Model": "models.checkpoint",
    "NwbConfig": "output.export.config",
    "Performance": "output.matching",
    "PhyConfig": "output.export.config",
    "RecordingConfig": "core.config",
    "Simulation": "data.simulation.simulate",
    "Snippets": "single_channel.snippets",
    "SnippetsConfig": "single_channel.config",
    "SortingResult": "api",
    "SpikeDetectionConfig": "single_channel.config",
    "SpikewiseError": "core.errors",
    "StreamConfig": "core.config",
    "StreamResult": "jobs.live.loop",
    "StreamSorter": "sorting.live.stream_sorter",
    "WaveClusConfig": "single_channel.config",
    "WaveformClassifier": "single_channel.classifier",
    "WaveformTrainingConfig": "single_channel.config",
    "analyze": "output.export.exporting",
    "classify_waveforms": "single_channel.api",
    "evaluate": "api",
    "export_nwb": "output.export.exporting",
    "export_phy": "output.export.exporting",
    "load_classifier": "single_channel.classifier",
    "load_model": "models.checkpoint",
    "load_recording": "api",
    "load_result": "api",
    "load_snippets": "single_channel.snippets",
    "pretrain": "jobs.pretraining",
    "report": "api",
    "save_classifier": "single_channel.classifier",
    "save_model": "models.checkpoint",
    "save_simulation": "data.simulation.saving",
    "simulate": "api",
    "simulate_channel": "single_channel.api",
    "sort": "api",
    "sort_channel": "single_channel.sorting",
    "stream": "jobs.live.streaming",
    "stream_channels": "single_channel.live.streaming",
    "train": "api",
    "train_waveforms": "single_channel.api",
}

__all__ = [
    "AnalyzerConfig",
    "ChannelResult",
    "ChannelSortingConfig",
    "ChannelStreamSorter",
    "Classification",
    "Config",
    "EvaluationConfig",
    "Model",
    "NwbConfig",
    "Performance",
    "PhyConfig",
    "RecordingConfig",
    "Simulation",
    "Snippets",
    "SnippetsConfig",
    "SortingResult",
    "SpikeDetectionConfig",
    "SpikewiseError",
    "StreamConfig",
    "StreamResult",
    "StreamSorter",
    "WaveClusConfig",
    "WaveformClassifier",
    "WaveformTrainingConfig",
    "__version__",
    "analyze",
    "classify_waveforms",
    "evaluate",
    "export_nwb",
    "export_phy",
    "load_classifier",
    "load_model",
    "load_recording",
    "load_result",
    "load_snippets",
    "pretrain",
    "report",
    "save_classifier",
    "save_model",
    "save_simulation",
    "simulate",
    "simulate_channel",
    "sort",
    "sort_channel",
    "stream",
    "stream_channels",
    "train",
    "train_waveforms",
]


register_sorter()  # for run_sorter("spikewise", ...); SpikeInterface may be imported before or after


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module 'spikewise' has no attribute {name!r}")
    return getattr(importlib.import_module(f"spikewise.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names, also those that are not loaded yet."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
