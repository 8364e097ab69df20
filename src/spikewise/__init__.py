"""Spike sorting with neural networks.

The public names are loaded when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spikewise.registration import register_sorter

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spikewise.api import SortingResult, evaluate, load_recording, report, simulate, sort, train
    from spikewise.channel_sorting import ChannelResult, sort_channel
    from spikewise.config import Config, EvaluationConfig, RecordingConfig
    from spikewise.data.simulate import Simulation, save_simulation
    from spikewise.data.waveforms import Snippets, load_snippets
    from spikewise.errors import SpikewiseError
    from spikewise.evaluation.matching import Performance
    from spikewise.export_config import AnalyzerConfig, NwbConfig, PhyConfig
    from spikewise.exporting import analyze, export_nwb, export_phy
    from spikewise.models.checkpoint import Model, load_model, save_model
    from spikewise.models.waveform_classifier import (
        Classification,
        WaveformClassifier,
        load_classifier,
        save_classifier,
    )
    from spikewise.waveform_api import classify_waveforms, simulate_channel, train_waveforms
    from spikewise.waveform_config import (
        ChannelSortingConfig,
        SnippetsConfig,
        SpikeDetectionConfig,
        WaveClusConfig,
        WaveformTrainingConfig,
    )

_HOMES = {
    "AnalyzerConfig": "export_config",
    "ChannelResult": "channel_sorting",
    "ChannelSortingConfig": "waveform_config",
    "Classification": "models.waveform_classifier",
    "Config": "config",
    "EvaluationConfig": "config",
    "Model": "models.checkpoint",
    "NwbConfig": "export_config",
    "Performance": "evaluation.matching",
    "PhyConfig": "export_config",
    "RecordingConfig": "config",
    "Simulation": "data.simulate",
    "Snippets": "data.waveforms",
    "SnippetsConfig": "waveform_config",
    "SortingResult": "api",
    "SpikeDetectionConfig": "waveform_config",
    "SpikewiseError": "errors",
    "WaveClusConfig": "waveform_config",
    "WaveformClassifier": "models.waveform_classifier",
    "WaveformTrainingConfig": "waveform_config",
    "analyze": "exporting",
    "classify_waveforms": "waveform_api",
    "evaluate": "api",
    "export_nwb": "exporting",
    "export_phy": "exporting",
    "load_classifier": "models.waveform_classifier",
    "load_model": "models.checkpoint",
    "load_recording": "api",
    "load_snippets": "data.waveforms",
    "pretrain": "pretraining",
    "report": "api",
    "save_classifier": "models.waveform_classifier",
    "save_model": "models.checkpoint",
    "save_simulation": "data.simulate",
    "simulate": "api",
    "simulate_channel": "waveform_api",
    "sort": "api",
    "sort_channel": "channel_sorting",
    "train": "api",
    "train_waveforms": "waveform_api",
}

__all__ = [
    "AnalyzerConfig",
    "ChannelResult",
    "ChannelSortingConfig",
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
    "WaveClusConfig",
    "WaveformClassifier",
    "WaveformTrainingConfig",
    "analyze",
    "classify_waveforms",
    "evaluate",
    "export_nwb",
    "export_phy",
    "load_classifier",
    "load_model",
    "load_recording",
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
    "train",
    "train_waveforms",
]


register_sorter()  # run_sorter("spikewise", ...), whether SpikeInterface is imported already or later


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'spikewise' has no attribute {name!r}")
    return getattr(importlib.import_module(f"spikewise.{_HOMES[name]}"), name)
