"""Methods, divisions and single jobs of the paper's experiments."""

import numpy as np
import pytest
from paper_data import made_set

from spikewise.core.errors import SettingError
from spikewise.papers.cnn1d import methods as paper_methods
from spikewise.papers.cnn1d import runs as paper_runs
from spikewise.papers.cnn1d.baselines import BASELINES
from spikewise.papers.cnn1d.methods import choose_methods, classify, uses_labels
from spikewise.papers.cnn1d.runs import SHARES, Job, divide, division_of, run_job
from spikewise.papers.cnn1d.sets import load_set


@pytest.fixture(scope="module")
def item(tmp_path_factory):
    return made_set(tmp_path_factory.mktemp("sets"), "C_Easy1_noise005")


def test_methods():
    assert choose_methods(["all"]) == ["default", "paper", *BASELINES]
    assert choose_methods(["mlp", "default"]) == ["default", "mlp"]
    learning = [method for method in choose_methods(["all"]) if uses_labels(method)]
    assert learning == ["default", "paper", "fusion_svm_f10", "wmsorting_f3", "wmsorting_f10"]
    for names in (["kmeans"], []):
        with pytest.raises(SettingError, match="wmsorting_f10"):
            choose_methods(names)


def test_divisions_are_disjoint_nested_and_of_the_right_size():
    labels = np.random.default_rng(1).integers(3, size=1001)
    earlier = np.empty(0, int)
    for experiment, size in zip(SHARES, (50, 100, 200, 300, 400, 500), strict=True):
        train, test = divide(labels, SHARES[experiment], np.random.default_rng(5))
        assert len(train) == size
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(1001))
        assert np.isin(earlier, train).all()
        earlier = train
    other, _ = divide(labels, 0.5, np.random.default_rng(6))
    assert 200 < np.isin(other, earlier).sum() < 300


def test_rare_units_train_with_two_spikes_at_least():
    labels = np.repeat([0, 1, 2], [990, 6, 4])
    sizes = []
    for seed in range(20):
        train, test = divide(labels, 0.05, np.random.default_rng(seed))
        counts = np.bincount(labels[train], minlength=3)
        assert counts[1:].min() >= 2
        assert len(train) + len(test) == 1000
        sizes.append(len(train))
    assert min(sizes) >= 50
    assert max(sizes) <= 54


def test_all_methods_get_the_same_division(item, monkeypatch):
    asked = []

    def remember(method, waveforms, labels, test, seed):
        asked.append((method, np.flatnonzero(labels >= 0), test))
        return np.zeros(len(test), int)

    monkeypatch.setattr(paper_runs, "classify", remember)
    for method in ("default", "paper", "wmsorting_f3"):
        run_job(Job(item, method, 1, (2,), 0))
    train, test = division_of(item, 2, 1, 0)
    assert [method for method, *_ in asked] == ["default", "paper", "wmsorting_f3"]
    for _, known, answered in asked:
        np.testing.assert_array_equal(known, train)
        np.testing.assert_array_equal(answered, test)
    assert not np.array_equal(train, division_of(item, 2, 0, 0)[0])


def test_no_test_label_reaches_a_method(item):
    labels = load_set(item).labels
    train, test = division_of(item, 2, 0, 0)
    known = np.full(len(labels), -1)
    known[train] = labels[train]
    fitted = []

    class Spy(BASELINES["wmsorting_f3"].func):
        def _fit(self, waveforms, labels):
            fitted.append(labels.copy())
            super()._fit(waveforms, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BASELINES, "wmsorting_f3", lambda units, seed: Spy(units, seed, num_features=3))
        run_job(Job(item, "wmsorting_f3", 0, (2,), 0))
    np.testing.assert_array_equal(fitted[0], known)
    assert (fitted[0][test] == -1).all()


def test_a_training_that_was_interrupted_is_no_score(monkeypatch):
    class Stopped:
        facts = {"interrupted": True}  # noqa: RUF012

    monkeypatch.setattr(paper_methods, "train_classifier", lambda *_: Stopped())
    with pytest.raises(KeyboardInterrupt):
        classify("default", np.zeros((4, 20)), np.array([0, 0, 1, 1]), np.arange(4), 0)
