"""Training that starts from the filters of another recording."""

import pytest
import torch
from commands import QUICK, Simulated, assert_told, run, succeed
from spikeinterface.core import load

import spikewise
from spikewise.core.config import Config, TrainingConfig, TransferConfig
from spikewise.core.errors import SettingError
from spikewise.learning.examples.training_set import Batch
from spikewise.learning.training_loop import Start, TrainingTask, train_network
from spikewise.models.esort import EsortNetwork

OPTIONS = {name.strip("-").replace("-", "_"): value for name, value in QUICK.items()}
DENSE = {"design": "esort-paper", "spatial_features": 32}
TEMPORAL, SPATIAL = EsortNetwork.TEMPORAL, EsortNetwork.SPATIAL


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Simulated:
    """Other units on the same probe."""
    return Simulated(tmp_path_factory.mktemp("other") / "made", **{"seed": 11})


def state_of(network, names):
    return {name: t for name, t in network.state_dict().items() if name.split(".")[0] in names}


def are_equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def tuned(other, trained, **settings):
    """The network of a model that was tuned from `trained`."""
    made = spikewise.train(other.recording, other.truth, pretrained=str(trained), **(OPTIONS | settings))
    return made.groups[0].network


@pytest.mark.parametrize(
    ("frozen", "stay", "move"),
    [
        ("nothing", (), TEMPORAL + SPATIAL),
        ("temporal", TEMPORAL, SPATIAL),
        ("backbone", TEMPORAL + SPATIAL, ()),
    ],
)
def test_frozen_filters_stay_to_the_bit_with_their_norms_and_the_others_move(
    other, trained, frozen, stay, move
):
    before = spikewise.load_model(trained).groups[0].network
    after = tuned(other, trained, frozen=frozen)
    for part in stay:
        assert are_equal(state_of(before, (part,)), state_of(after, (part,))), part
    for part in move:
        assert not are_equal(state_of(before, (part,)), state_of(after, (part,))), part
    assert after.classifier.weight.shape == (len(load(other.truth).unit_ids), 16)


def test_training_starts_where_the_pretrained_filters_are_and_the_classifier_is_drawn(other, trained):
    before = spikewise.load_model(trained).groups[0].network
    still = tuned(other, trained, learning_rate=1e-9)
    for name, tensor in state_of(before, TEMPORAL + SPATIAL).items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(still.state_dict()[name], tensor, atol=1e-5, rtol=0)
    assert (still.classifier.weight - before.classifier.weight).abs().mean() > 0.01


class Windows:
    """The same random windows in every batch."""

    def __init__(self, num_batches: int):
        random = torch.Generator().manual_seed(0)
        windows = torch.randn(64, 20, 2, generator=random)
        targets = (torch.rand(64, 3, generator=random) < 0.3).float()
        self.batch, self.count = Batch(windows, targets, torch.ones_like(targets)), num_batches

    def epoch(self, seed):
        yield from [self.batch] * self.count

    def num_batches(self):
        return self.count


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_a_part_moves_by_its_own_rate(schedule):
    config = TrainingConfig(epochs=1, schedule=schedule, learning_rate=1e-3).resolved()
    filters = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    moved = {}
    for rate in (1.0, 0.01):
        network = EsortNetwork(2, 3, 20, (8, 16), 16)
        start = Start({"spatial_filter.weight": filters}, dict.fromkeys(SPATIAL, rate))
        train_network(network, TrainingTask(Windows(5), None), config, torch.device("cpu"), start=start)
        moved[rate] = (network.spatial_filter.weight.detach() - filters).abs().mean().item()
    # Adam's steps are about as long as its learning rate, so that a part moves in proportion
    assert moved[0.01] == pytest.approx(moved[1.0] / 100, rel=0.3)
    assert moved[1.0] > 5e-4


def test_provenance_tells_what_it_started_from(capsys, other, trained, tmp_path):
    options = {"--labels": other.truth, "-o": tmp_path / "out", "--pretrained": trained, **QUICK}
    succeed(capsys, "sort", other.recording, options)
    model = spikewise.load_model(tmp_path / "out")
    assert model.facts["transfer"] == {
        "pretrained": str(trained),
        "frozen": "nothing",
        "temporal_rate": 1.0,
        "spatial_rate": 1.0,
    }
    assert model.facts["pretrained_hash"] == spikewise.load_model(trained).hash()


def test_none_is_from_scratch(other):
    none = spikewise.train(other.recording, other.truth, pretrained="none", **OPTIONS)
    scratch = spikewise.train(other.recording, other.truth, **OPTIONS)
    assert none.hash() == scratch.hash()
    assert none.facts["pretrained_hash"] is None


def test_a_few_labels_and_steps_are_enough_with_pretrained_filters_only(tmp_path):
    """Tuned from filters of another recording, a short training on few labels leads by a stated margin."""
    scene = {"probe": "linear-8", "num-units": 5, "duration-s": 16, "noise-uv": 8}
    source = Simulated(tmp_path / "source", **scene, seed=21)
    target = Simulated(tmp_path / "target", **scene, seed=22)
    filters = tmp_path / "filters.safetensors"
    spikewise.train(source.recording, source.truth, output=filters, min_steps=400, **DENSE)
    short = {**DENSE, "epochs": 1, "min_steps": 25, "max_steps": 25, "labels_per_unit": 8}
    accuracy = {}
    for name, options in {"scratch": {}, "transfer": {"pretrained": str(filters)}}.items():
        result = spikewise.sort(
            target.recording, labels=target.truth, label_interval=(0, 8), **short, **options
        )
        performance = spikewise.evaluate(load(target.truth), result.sorting, interval=(8, 16))
        accuracy[name] = performance.accuracy
    assert accuracy["transfer"] > accuracy["scratch"] + 0.1, accuracy


@pytest.mark.parametrize(
    ("options", "tells"),
    [
        ({"--pretrained": "absent.safetensors"}, ("absent.safetensors",)),
        ({"--spatial-features": 24}, ("spatial features 16", "spatial features 24", "network's settings")),
        ({"--temporal-features": (4, 16)}, ("temporal features 8 and 16", "temporal features 4 and 16")),
        ({"--window-ms": 1.5}, ("window 56 samples", "window 45 samples")),
    ],
)
def test_filters_of_another_size_are_refused(capsys, other, trained, tmp_path, options, tells):
    given = {"--labels": other.truth, "-o": tmp_path / "m.safetensors", "--pretrained": trained, **QUICK}
    assert_told(run(capsys, "train", other.recording, {**given, **options}), *tells)
    assert not list(tmp_path.iterdir())


def test_filters_of_another_probe_are_refused(capsys, trained, tmp_path):
    made = Simulated(tmp_path / "made", **{"probe": "linear-6", "num-units": 2, "duration-s": 4})
    options = {"--labels": made.truth, "-o": tmp_path / "m.safetensors", "--pretrained": trained, **QUICK}
    told = run(capsys, "train", made.recording, options)
    assert_told(told, "6 channels", "trained on: 4", "leave pretrained out")
    assert not (tmp_path / "m.safetensors").exists()


def test_settings_of_pretrained_filters_need_them():
    with pytest.raises(SettingError, match=r"Frozen.*no filters are pretrained"):
        TransferConfig(frozen="backbone")
    with pytest.raises(SettingError, match="temporal_rate"):
        Config.from_options(pretrained="none", temporal_rate=0.5)
    dense = {"design": "esort-paper", "pretrained": "x"}
    assert TrainingConfig().seed == Config.from_options(**dense, frozen="temporal").training.seed
