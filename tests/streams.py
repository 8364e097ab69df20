"""Models of the live filter with weights by chance, and recordings that they sort."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from spikeinterface.core import BaseRecording, NumpyRecording
from test_sparse import make_network

import spikewise
from spikewise.core.config import DetectionConfig, NetworkConfig, PreprocessingConfig
from spikewise.models.channel_noise import ChannelNoise
from spikewise.models.checkpoint import GroupModel, Model
from spikewise.models.unit_waveforms import UnitWaveforms
from spikewise.sorting.live.stream_sorter import StreamSorter

RATE = 30000.0
SILENT = 4
"""Silenced channel of the models."""
NOISE = 20.0


def group_model(name: str, num_channels: int, num_units: int, seed: int) -> GroupModel:
    """A network that often answers; its gates are open where its first channel falls below a level."""
    network = make_network(num_channels, num_units, window=56, seed=seed)
    network.gate_weight[:, 0, 0, 1] = -1.0
    network.gate_level[:] = 1.0
    network.closer_level[: num_units // 2] = -0.5
    network.closer_weight[:, 1, 20:30] = 0.1
    return GroupModel(
        name,
        network,
        tuple(f"{name}{channel}" for channel in range(num_channels)),
        positions(num_channels, 500.0 * seed),
        (f"{name}{SILENT}",),
        tuple(f"{name}-{unit}" for unit in range(num_units)),
        np.linspace(0.2, 0.5, num_units).astype(np.float32),
        ChannelNoise(np.linspace(NOISE, NOISE + 5, num_channels), None),
    )


def waveforms(num_channels: int, num_units: int, seed: int) -> UnitWaveforms:
    """Waveforms that noise resembles now and then; the last unit's is not known."""
    random = np.random.default_rng(seed)
    time_ms = (np.arange(105) - 45) / 30
    trough = -np.exp(-((time_ms / 0.15) ** 2)) + 0.4 * np.exp(-(((time_ms - 0.4) / 0.3) ** 2))
    wide = -np.exp(-((time_ms / 0.4) ** 2))
    shapes = np.stack([trough, wide]).astype(np.float32)
    channels = np.stack([random.permutation(num_channels)[:3] for _ in range(num_units)])
    channels[-1] = -1
    weights = random.normal(scale=0.8, size=(num_units, 3, 2)).astype(np.float32)
    return UnitWaveforms(channels, weights, shapes, 45)


def explained(model: Model) -> Model:
    """The model with waveforms, so that the traces decide which of its peaks are spikes."""
    groups = [
        replace(group, waveforms=waveforms(len(group.channel_ids), len(group.unit_ids), seed))
        for seed, group in enumerate(model.groups)
    ]
    return replace(model, groups=tuple(groups))


def live_model(num_channels: int = 6, num_groups: int = 1, rate: float = RATE, seed: int = 0) -> Model:
    """A model with groups of so many channels, each with five units."""
    names = ["0"] if num_groups == 1 else [str(index) for index in range(num_groups)]
    groups = tuple(group_model(name, num_channels, 5, seed + index) for index, name in enumerate(names))
    preprocessing = PreprocessingConfig(filter="live", common_reference="median")
    network = NetworkConfig(design="neighbourhood", window_ms=56 / rate * 1000)
    return Model(groups, rate, network, preprocessing, DetectionConfig(), {})


def positions(num_channels: int, first_um: float) -> np.ndarray:
    return np.column_stack([np.zeros(num_channels), first_um + 20.0 * np.arange(num_channels)])


def noise(num_samples: int, num_channels: int, seed: int = 0, dtype="int16") -> np.ndarray:
    """Samples with an offset and a slow wave, of which the filter must remove both."""
    random = np.random.default_rng(seed)
    wave = 300 * np.sin(np.arange(num_samples) / 700)[:, None]
    return (random.normal(scale=NOISE, size=(num_samples, num_channels)) + wave + 1000).astype(dtype)


def recording_of(model: Model, *segments: np.ndarray) -> BaseRecording:
    """A recording of the model's channels, group after group."""
    names = [name for group in model.groups for name in group.channel_ids]
    recording = NumpyRecording(list(segments), model.sampling_frequency, channel_ids=names)
    recording.set_channel_locations(np.concatenate([group.channel_positions_um for group in model.groups]))
    groups = [group.name for group in model.groups for _ in group.channel_ids]
    recording.set_property("group", np.array(groups))
    return recording


def offline(model: Model, *segments: np.ndarray) -> list[list[tuple[int, int]]]:
    """Sample and unit of each spike of each segment, sorted as a file is."""
    sorting = spikewise.sort(recording_of(model, *segments), model=model, report=False).sorting
    spikes = sorting.to_spike_vector()
    return [pairs(spikes[spikes["segment_index"] == index]) for index in range(len(segments))]


def pairs(spikes: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(spikes["sample_index"].tolist(), spikes["unit_index"].tolist(), strict=True))


def streamed(sorter: StreamSorter, samples: np.ndarray, cuts) -> list[tuple[int, int]]:
    """Sample and unit of each spike of samples that are pushed in blocks, cut at the given samples."""
    parts = [sorter.push(block) for block in np.split(samples, sorted(cuts))]
    return pairs(np.concatenate([*parts, sorter.flush()]))


def saved(model: Model, folder: Path) -> Path:
    path = folder / "live.safetensors"
    spikewise.save_model(model, path)
    return path
