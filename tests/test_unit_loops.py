"""The compiled loops that learn a unit, against the same computed by PyTorch."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikewise.learning import unit_loops as loops
from spikewise.models.neighbourhood import Backbone
from spikewise.sorting.kernels import LANES, panels
from spikewise.sorting.sparse import filter_panels

NUM_INPUTS, HIDDEN = 36, 20


@pytest.fixture
def weights():
    random = np.random.default_rng(0)
    hidden = random.normal(size=(NUM_INPUTS, HIDDEN)) / 6
    drawn = loops.new_weights(2, NUM_INPUTS)
    drawn.hidden[:] = panels(hidden)
    drawn.hidden_bias.ravel()[:HIDDEN] = random.normal(size=HIDDEN) / 5
    drawn.last.ravel()[:HIDDEN] = random.normal(size=HIDDEN) / 4
    drawn.bias[:] = -0.3
    return drawn


def examples(count):
    random = np.random.default_rng(1)
    features = np.maximum(random.normal(size=(count, NUM_INPUTS)), 0).astype(np.float32)
    targets = (features[:, 0] + features[:, 1] > features[:, 2] + 0.7).astype(np.float32)
    return features, targets


def as_tensors(weights):
    """The same weights as PyTorch's, (K, H), (H,), (H,), (1,)."""
    hidden = np.concatenate(list(weights.hidden), axis=1)
    parts = hidden, weights.hidden_bias.ravel(), weights.last.ravel(), weights.bias
    return [torch.tensor(part.copy(), requires_grad=True) for part in parts]


def logits_of(tensors, features):
    hidden, hidden_bias, last, bias = tensors
    return torch.relu(torch.from_numpy(features) @ hidden + hidden_bias) @ last + bias


def memory():
    return tuple(loops.new_weights(2, NUM_INPUTS) for _ in range(3))


def test_logits_are_those_of_the_network(weights):
    features, _ = examples(101)  # no whole number of rows
    logits = np.empty(101, np.float32)
    loops.fill_logits(features, weights, loops.new_rows(2), logits)
    np.testing.assert_allclose(logits, logits_of(as_tensors(weights), features).detach(), atol=1e-5)


def test_a_step_is_one_of_adamw(weights):
    features, targets = examples(300)
    importance = np.linspace(0.5, 1.5, 300).astype(np.float32) / 100
    tensors = as_tensors(weights)
    optimizer = torch.optim.AdamW(tensors, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    firsts, rates = np.array([0, 150, 37]), np.array([0.01, 0.02, 0.005], np.float32)
    for first, rate in zip(firsts, rates, strict=True):
        batch = slice(first, first + 100)
        losses = functional.binary_cross_entropy_with_logits(
            logits_of(tensors, features[batch]), torch.from_numpy(targets[batch]), reduction="none"
        )
        loss = (losses * torch.from_numpy(importance[batch])).sum()
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule = loops.Schedule(firsts, rates, 100, np.float32(0.1))
    last = loops.train_unit(features, targets, importance, schedule, weights, memory(), loops.new_rows(2))
    assert last == pytest.approx(loss.item(), rel=1e-4)
    for got, expected in zip(as_tensors(weights), tensors, strict=True):
        np.testing.assert_allclose(got.detach(), expected.detach(), atol=2e-5)
    assert not weights.hidden[1, :, HIDDEN - LANES :].any()  # features that fill up a panel stay without use


def test_learning_separates_what_can_be_separated(weights):
    features, targets = examples(4000)
    schedule = loops.Schedule(
        np.random.default_rng(2).integers(3000 - 64, size=400),
        np.full(400, 0.01, np.float32),
        64,
        np.float32(0),
    )
    share = np.full(4000, 1 / 64, np.float32)
    loops.train_unit(features, targets, share, schedule, weights, memory(), loops.new_rows(2))
    logits = np.empty(4000, np.float32)
    loops.fill_logits(features, weights, loops.new_rows(2), logits)
    assert ((logits > 0) == targets)[3000:].mean() > 0.95


@pytest.mark.parametrize("features", [(16, 16), (32, 32), (5, 3)])
def test_features_are_those_of_the_filters_in_any_order(features):
    backbone = Backbone(20, features)
    with torch.no_grad():
        for index, parameter in enumerate(backbone.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(index))
    windows = np.random.default_rng(0).normal(size=(7, 3, 20)).astype(np.float32)
    slots = np.array([3, 1, 6, 0, 2, 5, 4])
    first, second = filter_panels(backbone)
    found = np.full((7, 3 * second[1].size), np.nan, np.float32)
    between = np.empty((4, first[1].size), np.float32)
    loops.fill_features(windows, slots, loops.Filters(first, second), between, found)
    with torch.no_grad():
        expected = backbone(torch.from_numpy(windows)).numpy()
    by_channel = found.reshape(7, 3, -1)[slots]
    np.testing.assert_allclose(by_channel[:, :, : features[1]], expected, atol=1e-4)
    assert not by_channel[:, :, features[1] :].any()
    filtered = np.full((5, 3 * first[1].size), np.nan, np.float32)
    loops.fill_filtered(windows, slots, first[0], np.zeros_like(first[1]), filtered)
    linear = torch.from_numpy(windows) @ backbone.filter1.weight.detach().T
    for patch, slot in enumerate(slots):
        if slot < 5:
            row = filtered[slot].reshape(3, -1)[:, : features[0]]
            np.testing.assert_allclose(row, linear[patch].numpy(), atol=1e-4)
