"""The convolutional network equals the paper's: windows cut out, then linear layers."""

import pytest
import torch
from arrays import random_network
from torch import nn
from torch.nn import functional

from spikewise.core.config import NetworkConfig
from spikewise.models.esort import EsortNetwork, window_samples


class PaperNetwork(nn.Module):
    """The network as the paper writes it, on windows (batch, channels, window), by linear layers only."""

    def __init__(self, num_channels, num_units, window, spatial_features):
        super().__init__()
        self.temporal_filter1, self.temporal_norm1 = nn.Linear(window, 8), nn.BatchNorm1d(num_channels)
        self.temporal_filter2, self.temporal_norm2 = nn.Linear(8, 16), nn.BatchNorm1d(num_channels)
        self.spatial_filter = nn.Linear(num_channels * 16, spatial_features)
        self.spatial_norm = nn.BatchNorm1d(spatial_features)
        self.classifier = nn.Linear(spatial_features, num_units)

    def forward(self, windows):
        features = functional.relu(self.temporal_norm1(self.temporal_filter1(windows)))
        features = functional.relu(self.temporal_norm2(self.temporal_filter2(features)))
        features = functional.relu(self.spatial_norm(self.spatial_filter(features.flatten(1))))
        return self.classifier(features)


def paper_form(network: EsortNetwork) -> PaperNetwork:
    paper = PaperNetwork(
        network.num_channels, network.num_units, network.window_samples, network.spatial_filter.out_features
    )
    paper.load_state_dict(network.state_dict())
    return paper.train(network.training)


@pytest.mark.parametrize(("num_channels", "num_units", "window"), [(3, 4, 60), (1, 1, 28), (17, 5, 56)])
@pytest.mark.parametrize("training", [False, True], ids=["sorting", "training"])
def test_convolution_equals_windows_and_linear_layers(num_channels, num_units, window, training):
    network = random_network(num_channels, num_units, window).train(training)
    paper = paper_form(network)
    traces = torch.randn(2, window + 40, num_channels, generator=torch.Generator().manual_seed(1))
    windows = traces.unfold(1, window, 1)  # batch, outputs, channels, window
    expected = paper(windows.flatten(0, 1)).view(2, 41, num_units)
    torch.testing.assert_close(network(traces), expected, atol=1e-5, rtol=0)
    for name in ("temporal_norm1", "temporal_norm2", "spatial_norm"):
        torch.testing.assert_close(
            getattr(network, name).running_mean, getattr(paper, name).running_mean, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("training", [False, True], ids=["sorting", "training"])
def test_the_form_that_trains_equals_windows_and_linear_layers_with_its_gradients(training):
    network = random_network(5, 3, 60).train(training)
    paper = paper_form(network)
    windows = torch.randn(32, 60, 5, generator=torch.Generator().manual_seed(2))
    output, expected = network(windows).squeeze(1), paper(windows.transpose(1, 2))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    output.square().sum().backward()
    expected.square().sum().backward()
    for (name, ours), theirs in zip(network.named_parameters(), paper.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3, msg=name)


def test_an_output_sees_its_window_and_no_other_sample():
    network = random_network(2, 3, 60)
    traces = torch.randn(1, 200, 2, generator=torch.Generator().manual_seed(3))
    changed = traces.clone()
    changed[0, 100] += 10
    with torch.no_grad():
        differs = (network(traces) != network(changed)).any(dim=-1)[0]
    centres = differs.nonzero().flatten() + network.left_margin
    assert centres.min() == 100 - network.right_margin
    assert centres.max() == 100 + network.left_margin


@pytest.mark.parametrize(
    ("rate", "expected"), [(32000, 60), (30000, 56), (24000, 45), (15000, 28), (10000, 19)]
)
def test_the_window_lasts_as_long_at_any_sampling_frequency(rate, expected):
    assert window_samples(NetworkConfig(), rate) == expected


def test_the_centre_of_60_samples_is_sample_29():
    assert EsortNetwork(1, 1, 60).left_margin == 29
    assert EsortNetwork(1, 1, 60).right_margin == 30
