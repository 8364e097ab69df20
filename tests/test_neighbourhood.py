"""The network for any probe: what it computes, what it is made of, and the filters that come with it."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from spikewise.core.errors import CheckpointError
from spikewise.learning.backbone_training import PatchSet, _NormedBackbone, train_backbone
from spikewise.learning.unit_training import RARITY, UnitTraining, draw_units, train_units
from spikewise.models.backbone_file import Pretrained, load_pretrained, save_pretrained, shipped_path
from spikewise.models.neighbourhood import Backbone, NeighbourhoodNetwork

WINDOW = 20
CHANNELS = torch.tensor([[0, 2], [3, 1], [4, 0]])


def drawn(module):
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=random)
    return module.eval()


@pytest.fixture
def network():
    return drawn(NeighbourhoodNetwork(Backbone(WINDOW, (4, 3)), 5, CHANNELS, 6))


def by_hand(network, traces, unit, first):
    """The logit of one unit from one window, step by step."""
    backbone = network.backbone
    features = []
    for channel in network.channel_index[unit]:
        window = traces[first : first + WINDOW, channel]
        one = torch.relu(backbone.filter1.weight @ window + backbone.filter1.bias)
        features.append(torch.relu(backbone.filter2.weight @ one + backbone.filter2.bias))
    units = network.units
    hidden = torch.relu(torch.cat(features) @ units.hidden_weight[unit] + units.hidden_bias[unit, 0])
    return (hidden @ units.weight[unit] + units.bias[unit]).item()


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_each_output_is_the_network_of_its_unit_on_its_window(network, stride):
    traces = torch.randn(300 * stride + WINDOW, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(traces[None], stride)[0]
        assert logits.shape == (301, 3)  # more than are computed at once
        for output in (0, 1, 255, 256, 300):
            for unit in range(3):
                expected = by_hand(network, traces, unit, output * stride)
                assert logits[output, unit].item() == pytest.approx(expected, abs=1e-4)


def test_channels_far_from_a_unit_do_not_matter(network):
    traces = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    louder = traces.clone()
    louder[:, 1] *= 10
    with torch.no_grad():
        change = (network(louder[None]) - network(traces[None])).abs().amax(dim=(0, 1))
    assert change[0] == 0
    assert change[2] == 0
    assert change[1] > 0.01


def test_a_tone_gives_the_same_features_at_another_sampling_frequency():
    backbone = drawn(Backbone(60, (8, 4)))
    rough = backbone.filter1.weight.detach().numpy()
    smooth = np.stack([np.convolve(row, np.hanning(15) / 7, mode="same") for row in rough])
    backbone.filter1.weight.data = torch.from_numpy(smooth).float()

    def of_tone(rate):
        time_s = (torch.arange(round(60 * rate / 32000)) + 0.5) / rate
        return backbone.resampled(len(time_s))(torch.sin(2 * torch.pi * 1000 * time_s))

    with torch.no_grad():
        torch.testing.assert_close(of_tone(24000.0), of_tone(32000.0), atol=0.02, rtol=0)
    assert backbone.resampled(60) is backbone


def test_folded_norms_change_nothing():
    normed = drawn(_NormedBackbone(WINDOW, (4, 3)))
    for norm in (normed.norm1, normed.norm2):
        norm.running_mean.normal_(generator=torch.Generator().manual_seed(1))
        norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    windows = torch.randn(7, 2, WINDOW, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(normed.folded()(windows), normed(windows), atol=1e-5, rtol=1e-4)


class DrawnBumps(NamedTuple):
    """Patches that are made already."""

    windows: np.ndarray
    targets: np.ndarray

    @property
    def slots(self):
        return np.arange(len(self.targets))

    @property
    def importance(self):
        return np.ones_like(self.targets)

    def fill(self, first, patches):
        patches[:] = self.windows[first : first + len(patches)]


class Bumps:
    """Patches of units that differ in where on the window they have a bump."""

    def make(self, unit, count, random):
        drawn = self.draw(unit, count, random)
        return torch.from_numpy(drawn.windows), torch.from_numpy(drawn.targets)

    def draw(self, unit, count, random):
        windows = random.standard_normal((count, 2, WINDOW)).astype(np.float32)
        targets = (random.random(count) < 0.5).astype(np.float32)
        windows[:, 0, 4 + 6 * unit : 8 + 6 * unit] += 3 * targets[:, None]
        return DrawnBumps(windows, targets)


TRAINING = UnitTraining(2000, 300, 64, 1e-2, 1e-4, seed=5, gate_block=4)


@pytest.fixture(scope="module")
def filters():
    """Filters learnt from three units."""
    random = np.random.default_rng(0)
    made = [Bumps().make(unit, 1000, random) for unit in range(3)]
    patches = PatchSet(torch.stack([m[0].half() for m in made]), torch.stack([m[1] for m in made]))
    return train_backbone([patches], (8, 8), 400, seed=0)


def learnt(filters, num_units, training=TRAINING):
    network = NeighbourhoodNetwork(filters, 2, torch.tensor([[0, 1]] * num_units), 4)
    losses = train_units(network, Bumps(), training)
    return network, losses


def test_units_are_learnt_and_their_rarity_is_taken_into_account(filters):
    network, losses = learnt(filters, 2)
    assert max(losses) < 0.15
    windows, targets = Bumps().make(1, 1000, np.random.default_rng(9))
    with torch.no_grad():
        logits = network.units(network.backbone(windows).flatten(1)[None], slice(1, 2))[0]
    assert ((logits + RARITY > 0) == targets.bool()).float().mean() > 0.95
    assert (logits > 0).float().mean() < (logits + RARITY > 0).float().mean()


def test_a_unit_is_learnt_alike_whatever_the_others(filters):
    """Units share nothing, so that one can be learnt anew without touching another."""
    one, three = learnt(filters, 1)[0], learnt(filters, 3)[0]
    for name, parameter in one.units.named_parameters():
        torch.testing.assert_close(parameter[0], three.units.get_parameter(name)[0], atol=1e-4, rtol=1e-3)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(filters):
    first, again = learnt(filters, 2)[0].state_dict(), learnt(filters, 2)[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = learnt(filters, 2, UnitTraining(2000, 300, 64, 2e-2, 1e-4, seed=6, gate_block=4))[0].state_dict()
    assert not torch.equal(first["units.weight"], other["units.weight"])


def test_units_that_interruption_kept_from_being_learnt_stay_silent(filters):
    class Interrupted(Bumps):
        def draw(self, unit, count, random):
            if unit >= 16:
                raise KeyboardInterrupt
            return super().draw(0, count, random)

    network = NeighbourhoodNetwork(filters, 2, torch.tensor([[0, 1]] * 20), 4)
    with pytest.raises(KeyboardInterrupt):
        train_units(network, Interrupted(), UnitTraining(50, 10, 8, 5e-3, 0.0, 0, 4))
    with torch.no_grad():
        logits = network(10 * torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0)))
    assert (logits[..., 16:] < -10).all()
    assert (logits[..., :16] > -10).any()


def test_filters_that_are_learnt_serve_units_better_than_drawn_ones(filters):
    losses = {}
    for name, backbone in {
        "learnt": filters,
        "drawn": _NormedBackbone(WINDOW, (8, 8)).eval().folded(),
    }.items():
        losses[name] = max(learnt(backbone, 3)[1])
    assert losses["learnt"] < 0.6 * losses["drawn"], losses


def test_draws_depend_on_the_unit_and_the_seed():
    network = NeighbourhoodNetwork(Backbone(WINDOW, (4, 3)), 5, CHANNELS, 6)
    draw_units(network.units, [4, 7, 4], seed=1)
    weight = network.units.hidden_weight
    assert torch.equal(weight[0], weight[2])
    assert not torch.equal(weight[0], weight[1])


def test_filters_come_back_from_a_file(tmp_path):
    few, many = drawn(Backbone(WINDOW, (6, 5))), drawn(Backbone(WINDOW, (4, 3)))
    made = Pretrained({"few channels": few, "many channels": many}, 1.5, "made", {"seed": 3})
    save_pretrained(made, tmp_path / "f.safetensors")
    found = load_pretrained(tmp_path / "f.safetensors")
    assert found.hash() == made.hash()
    assert (found.window_ms, found.facts) == (1.5, {"seed": 3})
    for num_channels, expected in ((4, few), (8, few), (9, many), (384, many)):
        state = found.for_window(WINDOW, 1.5, num_channels).state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in expected.state_dict().items())
    with pytest.raises(CheckpointError, match=r"window of 1\.5 ms, not 2 ms"):
        found.for_window(WINDOW, 2.0, 4)


def test_the_filters_of_the_package_are_small_and_tell_what_they_are_from():
    found = load_pretrained()
    assert shipped_path().stat().st_size < 5e6
    assert found.window_ms == 1.875
    assert found.facts["num_units"] > 300
    assert found.facts["recordings"]
    assert found.for_window(56, 1.875, 4).window_samples == 56


def test_a_file_of_another_kind_is_told_apart(trained, tmp_path):
    with pytest.raises(CheckpointError, match="model of `spikewise train`"):
        load_pretrained(trained)
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        load_pretrained(tmp_path / "absent.safetensors")
