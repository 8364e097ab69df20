"""The settings of the main job, each declared once, by stage.

The settings of single channels are in :mod:`spikewise.single_channel.config`. What all settings have in
common is in :mod:`spikewise.core.settings`.
"""

from spikewise.core.config.designs import ESORT_PAPER, NEIGHBOURHOOD, Design
from spikewise.core.config.inputs import (
    Bootstrap,
    BootstrapConfig,
    LabelsConfig,
    PreprocessingConfig,
    RecordingConfig,
)
from spikewise.core.config.learning import NetworkConfig, TransferConfig, UnitsConfig
from spikewise.core.config.simulation import SimulationConfig
from spikewise.core.config.sorting import DetectionConfig, Device, SortingConfig
from spikewise.core.config.tools import EvaluationConfig, GuiConfig, StreamConfig
from spikewise.core.config.training import TRAINING_PRESETS, TrainingConfig, given
from spikewise.core.config.whole import Config

__all__ = [
    "ESORT_PAPER",
    "NEIGHBOURHOOD",
    "TRAINING_PRESETS",
    "Bootstrap",
    "BootstrapConfig",
    "Config",
    "Design",
    "DetectionConfig",
    "Device",
    "EvaluationConfig",
    "GuiConfig",
    "LabelsConfig",
    "NetworkConfig",
    "PreprocessingConfig",
    "RecordingConfig",
    "SimulationConfig",
    "SortingConfig",
    "StreamConfig",
    "TrainingConfig",
    "TransferConfig",
    "UnitsConfig",
    "given",
]
