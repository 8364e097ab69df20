"""Units are added where they are said to be, and labelled where they are at the centre."""

import numpy as np
import pytest
import torch

from spikewise.learning.examples.superposition import AMPLITUDE_RANGE, Superposer

WINDOW, RADIUS = 60, 5
SPAN, CENTRE = 70, 34


@pytest.fixture
def superposer() -> Superposer:
    """Two units, each a single sample high at its centre on a channel of its own, 10 and 20 noise units."""
    spans = torch.zeros(6, SPAN, 4)
    units = np.array([0, 0, 0, 1, 1, 1])
    spans[:3, CENTRE, 1] = 10
    spans[3:, CENTRE, 3] = 20
    spans[:, 10, 2] = 0.5  # below the least peak: left out
    return Superposer(spans, units, 3, CENTRE)


def test_each_added_unit_is_labelled_if_and_only_if_it_is_at_the_centre(superposer):
    windows, targets = torch.zeros(500, WINDOW, 4), torch.zeros(500, 3)
    superposer.add(windows, targets, RADIUS, 0.8, np.random.default_rng(0))
    assert (windows[:, :, [0, 2]] == 0).all()
    num_central = num_beside = 0
    for window, target in zip(windows, targets, strict=True):
        for unit, channel in enumerate([1, 3]):
            samples = window[:, channel].nonzero().flatten().numpy()
            central = np.abs(samples - 29) <= RADIUS
            assert target[unit] == float(central.any())
            num_central += central.sum()
            num_beside += (~central).sum()
    assert (targets[:, 2] == 0).all()
    share = num_central / (num_central + num_beside)
    assert share == pytest.approx(11 / 60, abs=0.06)  # all lags within the window are equally likely
    assert 250 < num_central + num_beside < 500


def test_amplitudes_vary_within_their_range(superposer):
    windows, targets = torch.zeros(400, WINDOW, 4), torch.zeros(400, 3)
    superposer.add(windows, targets, RADIUS, 0.1, np.random.default_rng(1))
    added = windows[:, :, 1].amax(dim=1)
    amplitudes = added[added > 0] / 10
    assert len(amplitudes) > 10
    assert amplitudes.min() >= AMPLITUDE_RANGE[0]
    assert amplitudes.max() <= AMPLITUDE_RANGE[1]
    assert amplitudes.std() > 0.05


def test_nothing_is_added_at_a_rate_of_zero_or_without_templates(superposer):
    windows, targets = torch.ones(50, WINDOW, 4), torch.zeros(50, 3)
    superposer.add(windows, targets, RADIUS, 0.0, np.random.default_rng(0))
    Superposer(torch.zeros(0, SPAN, 4), np.empty(0, int), 3, CENTRE).add(
        windows, targets, RADIUS, 2.0, np.random.default_rng(0)
    )
    assert (windows == 1).all()
    assert (targets == 0).all()


def test_a_template_of_few_spikes_keeps_only_channels_that_stand_out_of_its_noise():
    random = torch.Generator().manual_seed(0)
    spans = torch.randn(4, SPAN, 50, generator=random)
    spans[:, CENTRE, 7] += 15
    template, channels = Superposer(spans, np.zeros(4, int), 1, CENTRE).templates[0]
    assert channels == slice(7, 8)
    assert template[CENTRE, 0] == pytest.approx(15, abs=2)
    assert abs(template[0, 0]) < 0.5  # tapered


def test_channels_between_those_that_stand_out_stay_silent():
    spans = torch.zeros(2, SPAN, 6)
    spans[:, CENTRE, [1, 4]] = 10
    template, channels = Superposer(spans, np.zeros(2, int), 1, CENTRE).templates[0]
    assert channels == slice(1, 5)
    assert template[CENTRE].tolist() == [10, 0, 0, 10]
