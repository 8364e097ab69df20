"""Traces in memory and tiny trained networks, shared by the tests of the network and the detector."""

import numpy as np
import torch

from spikewise.data.labels.label_set import KeptSpikes
from spikewise.learning.training_loop import initialise_weights
from spikewise.models.esort import EsortNetwork


class ArrayTraces:
    """Traces held in arrays, one for each segment; zero outside."""

    def __init__(self, *segments: np.ndarray, sampling_frequency: float = 32000.0):
        self.segments = [np.asarray(segment, dtype=np.float32) for segment in segments]
        self.num_segments = len(segments)
        self.num_channels = segments[0].shape[1]
        self.sampling_frequency = sampling_frequency

    def num_samples(self, segment_index):
        return len(self.segments[segment_index])

    def read(self, segment_index, start, stop):
        traces = self.segments[segment_index]
        padded = np.zeros((stop - start, self.num_channels), dtype=np.float32)
        low, high = max(start, 0), min(stop, len(traces))
        if low < high:
            padded[low - start : high - start] = traces[low:high]
        return padded


def random_network(num_channels=3, num_units=4, window_samples=60, seed=0) -> EsortNetwork:
    """A network whose batch norms have statistics of their own, as after training."""
    network = EsortNetwork(num_channels, num_units, window_samples, (8, 16), 32)
    initialise_weights(network, seed)
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
    return network.eval()


def spikes_at(frames, units, num_units, positive=None) -> KeptSpikes:
    """Labelled spikes, all positive if not told otherwise."""
    frames = np.asarray(frames, dtype=np.int64)
    positive = np.ones(len(frames), dtype=bool) if positive is None else np.asarray(positive, dtype=bool)
    return KeptSpikes(frames, np.asarray(units, dtype=np.int64), positive, np.arange(num_units))
