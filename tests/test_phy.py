"""A folder for Phy: what it holds is true, Phy loads it, and what was changed in it trains a model."""

import csv
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import Simulated, assert_told, run, succeed
from hypothesis import given
from hypothesis import strategies as st
from spikeinterface.core import NumpyRecording, NumpySorting, append_recordings, generate_recording, load

import spikewise
from spikewise.core.config import PreprocessingConfig
from spikewise.core.progress import silent
from spikewise.data.labels.label_files import load_labels
from spikewise.data.recordings.preprocessing import preprocess_recording
from spikewise.data.recordings.reader import TraceReader
from spikewise.output.export.phy import write_phy
from spikewise.output.export.phy_features import _stretches, project_spikes
from spikewise.output.export.phy_units import LocatedUnits, _choose_seconds, unit_similarity, window_samples
from spikewise.output.export.sorted_group import SortedGroup, SpikeList
from spikewise.output.matching import compare_sortings

QUICK = {"--patches-per-unit": 1500, "--unit-steps": 150}
INTERVAL = {"--label-interval": (0, 12)}


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Simulated:
    folder = tmp_path_factory.mktemp("scene") / "made"
    return Simulated(folder, **{"probe": "linear-8", "num-units": 4, "duration-s": 24, "seed": 22})


@pytest.fixture(scope="module")
def faulty(scene) -> Path:
    """A sort with a sorter's mistakes: a unit in two halves, the echo of another, and nothing at all."""
    truth = load(scene.truth)
    trains = {str(unit): truth.get_unit_spike_train(unit, end_frame=12 * 30000) for unit in truth.unit_ids}
    first = max(trains, key=lambda unit: len(trains[unit]))
    trains[first], trains["half"] = trains[first][::2], trains[first][1::2]
    second = min(trains, key=lambda unit: len(trains[unit]))
    trains["echo"] = trains[second][:-1] + 24
    trains["nothing"] = np.sort(np.random.default_rng(5).integers(100, 12 * 30000, 80))
    labels = NumpySorting.from_unit_dict(trains, 30000)
    options = {name.strip("-").replace("-", "_"): value for name, value in QUICK.items()}
    output = scene.folder.parent / "faulty"
    spikewise.sort(scene.recording, labels=labels, label_interval=(0, 12), output=output, **options)
    return output


@pytest.fixture(scope="module")
def exported(scene, faulty) -> Path:
    folder = faulty.parent / "phy"
    spikewise.export_phy(faulty, scene.recording, folder)
    return folder


def curate(folder: Path, truth) -> tuple[int, int]:
    """Do what a person does in Phy, and leave what Phy leaves: merge halves, call noise what is no unit."""
    times, clusters = np.load(folder / "spike_times.npy"), np.load(folder / "spike_clusters.npy")
    found = NumpySorting.from_samples_and_labels([times], [clusters], 30000)
    of_truth: dict[object, list[int]] = {}
    noise = []
    for cluster in found.unit_ids:
        train = found.get_unit_spike_train(cluster)
        hits = {
            unit: (abs(train[:, None] - truth.get_unit_spike_train(unit)).min(axis=1) <= 12).mean()
            for unit in truth.unit_ids
        }
        best = max(hits, key=hits.get)
        noise += [cluster] if hits[best] < 0.5 else []
        of_truth.setdefault(best, []).extend([] if hits[best] < 0.5 else [cluster])
    new = clusters.max() + 1
    merged = [halves for halves in of_truth.values() if len(halves) > 1]
    for number, halves in enumerate(merged):
        clusters[np.isin(clusters, halves)] = new + number
    np.save(folder / "spike_clusters.npy", clusters.astype(np.int32))
    rows = [(cluster, "noise" if cluster in noise else "good") for cluster in [*np.unique(clusters), *noise]]
    with (folder / "cluster_group.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("cluster_id", "group"), *rows])
    return len(merged), len(noise)


def test_curated_units_train_a_model_that_sorts_the_rest_better(scene, faulty, exported, tmp_path, capsys):
    """The loop of the docs: sort (the fixture), export phy, curate, train --labels, sort --model."""
    folder, model, output = tmp_path / "phy", tmp_path / "curated.safetensors", tmp_path / "again"
    told = succeed(capsys, "export", "phy", faulty, {"--recording": scene.recording, "-o": folder}).summary
    assert told["traces"] == "own file"
    truth = load(scene.truth)
    num_merged, num_noise = curate(folder, truth)
    assert num_merged >= 1
    assert num_noise >= 1
    options = {"--labels": folder, "-o": model, **QUICK, **INTERVAL}
    assert succeed(capsys, "train", scene.recording, options).summary["units"] == 4
    succeed(capsys, "sort", scene.recording, {"--model": model, "-o": output})
    before, after = (spikewise.evaluate(truth, sorting, interval=(12, 24)) for sorting in (faulty, output))
    assert after.accuracy > 0.95
    assert after.accuracy_all_spikes > before.accuracy_all_spikes + 0.2
    assert len(before.unmatched_units) == 3 > len(after.unmatched_units)


def test_the_spikes_come_back_as_they_were(scene, faulty, exported):
    sorting, back = load(faulty / "sorting"), load_labels(exported, load(scene.recording))
    rows = list(csv.DictReader((exported / "cluster_unit_id.tsv").open(), delimiter="\t"))
    assert [row["unit_id"] for row in rows] == list(map(str, sorting.unit_ids))
    for row in rows:
        there = sorting.get_unit_spike_train(sorting.unit_ids[int(row["cluster_id"])])
        here = back.get_unit_spike_train(int(row["cluster_id"])) if len(there) else there
        assert np.array_equal(there, here)


def test_amplitudes_are_those_of_the_simulated_units(scene, faulty, exported):
    """The template of a unit and the mean amplitude of its spikes agree with one another, in microvolts."""
    templates, amplitudes = np.load(exported / "templates.npy"), np.load(exported / "amplitudes.npy")
    clusters = np.load(exported / "spike_clusters.npy")
    performance = compare_sortings(load(scene.truth), load(faulty / "sorting"), spikewise.EvaluationConfig())
    assert len(performance.units)
    for cluster in np.unique(clusters):
        largest = abs(templates[cluster]).max()
        if largest > 40:  # not that of the unit that is none
            assert np.median(amplitudes[clusters == cluster]) == pytest.approx(largest, rel=0.1)
    assert 50 < abs(templates).max() < 400


def test_components_tell_units_apart(exported):
    """Spikes lie nearer to the centre of their unit than to that of others on the same channels."""
    features, clusters = np.load(exported / "pc_features.npy"), np.load(exported / "spike_clusters.npy")
    channels = np.load(exported / "pc_feature_ind.npy")
    assert features.shape == (len(clusters), 3, 8)
    in_place = np.zeros_like(features)
    for cluster in np.unique(clusters):
        in_place[np.ix_(clusters == cluster, range(3), channels[cluster])] = features[clusters == cluster]
    flat = in_place.reshape(len(clusters), -1)
    present = np.unique(clusters)
    centres = np.stack([flat[clusters == cluster].mean(axis=0) for cluster in present])
    nearest = present[np.linalg.norm(flat[:, None] - centres, axis=2).argmin(axis=1)]
    counts = np.bincount(clusters)
    full = [cluster for cluster in present if counts[cluster] > 60]
    agree = [(nearest[clusters == cluster] == cluster).mean() for cluster in full]
    assert sorted(agree)[-3:] > [0.9] * 3


class Plain:
    """Traces in memory, zero outside."""

    def __init__(self, segments, rate):
        self.segments, self.sampling_frequency = segments, rate
        self.num_segments, self.num_channels = len(segments), segments[0].shape[1]

    def num_samples(self, segment_index):
        return len(self.segments[segment_index])

    def read(self, segment_index, start, stop):
        padded = np.pad(self.segments[segment_index], ((max(0, -start), stop), (0, 0)))
        return padded[max(0, start) : max(0, start) + stop - start]


@pytest.fixture
def two_groups():
    """Two tetrodes, two segments, three units of which one never fires, text as ids."""
    recording = generate_recording(num_channels=8, durations=[2.0, 3.0], sampling_frequency=10000, seed=0)
    recording = append_recordings([recording])
    recording.set_property("group", [0] * 4 + [1] * 4)
    recording.set_property("gain_to_uV", [0.5] * 8)
    recording.set_property("offset_to_uV", [0.0] * 8)
    spikes = [{"b": [1000, 15000], "silent": [], "a": [3]}, {"b": [29990], "silent": [], "a": [5000, 12000]}]
    trains = [{unit: np.array(train, int) for unit, train in segment.items()} for segment in spikes]
    sorting = NumpySorting.from_unit_dict(trains, 10000)
    groups = []
    for number, units in enumerate([[0, 1], [2]]):
        index = np.arange(4 * number, 4 * number + 4)
        traces = [np.zeros((length, 4), np.float32) for length in (20000, 30000)]
        for segment, segment_trains in enumerate(trains):
            for unit in units:
                for sample in segment_trains[sorting.unit_ids[unit]]:
                    traces[segment][sample, unit % 4] = -6
        positions = recording.get_channel_locations()[index]
        plain = Plain(traces, 10000)
        groups.append(SortedGroup(str(number), plain, index, positions, np.full(4, 2.0), np.array(units)))
    return sorting, recording, groups


def test_segments_groups_and_silent_units(two_groups, tmp_path, caplog):
    sorting, recording, groups = two_groups
    done = write_phy(sorting, recording, groups, tmp_path / "phy", spikewise.PhyConfig())
    assert (done.num_units, done.num_spikes, done.num_empty, done.traces) == (2, 6, 1, "copy")
    assert "silent" in caplog.text
    folder = tmp_path / "phy"
    assert np.load(folder / "spike_times.npy").tolist() == [3, 1000, 15000, 25000, 32000, 49990]
    ids = list(sorting.unit_ids)
    assert np.load(folder / "spike_clusters.npy").tolist() == [ids.index(u) for u in "abbaab"]
    # A spike of depth 6 in units of 2 uV on one channel: the template is that, the other channels are zero.
    templates, channels = np.load(folder / "templates.npy"), np.load(folder / "template_ind.npy")
    assert templates[ids.index("b")].min() == -12
    assert channels[ids.index("b")][0] == ids.index("b")
    assert channels[ids.index("a")][0] == 4 + ids.index("a") % 4
    assert np.load(folder / "amplitudes.npy").tolist() == [12] * 6
    assert len(np.unique(np.load(folder / "channel_positions.npy"), axis=0)) == 8
    back = load_labels(folder, recording)
    for segment in (0, 1):
        for unit in "ab":
            train = back.get_unit_spike_train(ids.index(unit), segment_index=segment)
            assert train.tolist() == sorting.get_unit_spike_train(unit, segment_index=segment).tolist()


def table(folder: Path, name: str) -> dict[int, str]:
    """A column of Phy's table of units."""
    with (folder / f"cluster_{name}.tsv").open(newline="") as file:
        return {int(row["cluster_id"]): row[name] for row in csv.DictReader(file, delimiter="\t")}


def test_contamination_and_its_guess_are_columns_and_no_unit_is_judged(tmp_path):
    """At 10 kHz, 1.5 ms are 15 samples: 20 spikes of 2 s in ten pairs, of which the first unit's are near."""
    recording = generate_recording(num_channels=4, durations=[2.0], sampling_frequency=10000, seed=0)
    starts = np.arange(500, 19000, 1800)[:10]
    trains = {name: np.sort(np.r_[starts, starts + gap]) for name, gap in (("near", 10), ("far", 20))}
    sorting = NumpySorting.from_unit_dict({**trains, "one": np.array([7])}, 10000)
    traces = Plain([np.random.default_rng(1).normal(0, 1, (20000, 4)).astype(np.float32)], 10000)
    positions = recording.get_channel_locations()
    group = SortedGroup("0", traces, np.arange(4), positions, np.ones(4), np.arange(3))
    write_phy(sorting, recording, [group], tmp_path / "phy", spikewise.PhyConfig())
    names = {unit: index for index, unit in table(tmp_path / "phy", "unit_id").items()}
    contamination = table(tmp_path / "phy", "ContamPct")
    assert contamination == {names["near"]: "100.00", names["far"]: "0.00"}
    guess = table(tmp_path / "phy", "KSLabel")
    assert guess == {names["near"]: "mua", names["far"]: "good", names["one"]: "mua"}
    assert set(table(tmp_path / "phy", "group").values()) == {"unsorted"}
    back = load_labels(tmp_path / "phy", recording)  # a guess leaves no unit out
    assert len(back.unit_ids) == 3


def test_features_sizes_and_templates_are_those_of_the_windows(tmp_path):
    """Ten channels of two segments, a unit that lacks a channel, and spikes at the very ends of each."""
    random = np.random.default_rng(0)
    signals = [random.normal(0, 20, (35000, 10)).astype(np.int16) for _ in range(2)]
    recording = NumpyRecording(signals, 30000)
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(10), 20.0 * np.arange(10)])
    made = preprocess_recording(recording, PreprocessingConfig())
    reader, config = TraceReader(made.recording), spikewise.PhyConfig()
    before, length = window_samples(30000, config)
    near = np.array([[4, 2, 7], [9, 8, -1]])
    rough = random.normal(size=(2, length, 3)).astype(np.float32)
    rough[1, :, 2] = 0
    components = random.normal(size=(length, 2)).astype(np.float32)
    inside = np.sort(random.choice(68000, 300, replace=False)) + 50
    ends = [1, 34950, 34990, 34999, 35000, 35001, 35020, 69999]
    frames = np.sort(np.concatenate((inside[~np.isin(inside, ends)], ends)))
    rows = random.integers(0, 2, len(frames))
    group = SortedGroup("0", reader, np.arange(10), np.zeros((10, 2)), np.ones(10), np.arange(2))
    units = LocatedUnits(near, near, np.ones((2, 3)), rough, components)
    file = tmp_path / "features.npy"
    found = project_spikes(file, SpikeList(frames, rows), recording, [group], units, config, silent)
    windows = np.stack(
        [
            reader.read(segment, frame - before, frame - before + length)[:, near[row]] * (near[row] >= 0)
            for segment, frame, row in zip(frames // 35000, frames % 35000, rows, strict=True)
        ]
    )
    expected = np.einsum("nsw,sc->ncw", windows, components)
    np.testing.assert_allclose(np.load(file), expected, atol=1e-3)
    templates = np.stack([windows[rows == unit].mean(axis=0) for unit in range(2)])
    np.testing.assert_allclose(found.templates, templates, atol=1e-4)
    products = np.einsum("nsw,nsw->n", windows, rough[rows])
    for unit in range(2):  # the scale is that of the unit's template
        ratio = found.sizes[rows == unit] / products[rows == unit]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-2)


def test_amplitudes_follow_the_spikes(two_groups, tmp_path):
    """A spike twice as large has twice the amplitude, and the template is the mean of both."""
    sorting, recording, groups = two_groups
    groups[0].traces.segments[0][15000] *= 2
    write_phy(sorting, recording, groups, tmp_path / "phy", spikewise.PhyConfig())
    amplitudes = np.load(tmp_path / "phy" / "amplitudes.npy")
    times = np.load(tmp_path / "phy" / "spike_times.npy")
    found = {int(time): float(amplitude) for time, amplitude in zip(times, amplitudes, strict=True)}
    assert found[15000] == pytest.approx(24)
    assert found[1000] == pytest.approx(12)
    assert abs(np.load(tmp_path / "phy" / "templates.npy")).max() == pytest.approx(16)


def test_similarity_is_that_of_the_best_lag_on_shared_channels():
    """Two units alike but for two samples, one that shares half of its channels, one that shares none."""
    shape = np.hanning(11)[:, None] * np.array([1.0, 1.0])
    templates = np.zeros((4, 40, 2), dtype=np.float32)
    for unit, start in enumerate((10, 12, 10, 10)):
        templates[unit, start : start + 11] = shape
    near = np.array([[0, 1], [1, 0], [1, 2], [3, -1]])
    templates[3, :, 1] = 0
    group = SortedGroup("0", None, np.arange(4), np.zeros((4, 2)), np.ones(4), np.arange(4))
    units = LocatedUnits(near, near, np.ones((4, 2)), templates, np.eye(40, 3))
    found = unit_similarity(templates, [group], units, 30000)
    assert np.allclose(found, found.T, atol=1e-6)
    assert found == pytest.approx(
        np.array([[1, 1, 0.5, 0], [1, 1, 0.5, 0], [0.5, 0.5, 1, 0], [0, 0, 0, 1]]), abs=1e-6
    )


def test_what_is_there_is_never_replaced(scene, faulty, exported, tmp_path, capsys):
    options = {"--recording": scene.recording, "-o": exported}
    assert_told(run(capsys, "export", "phy", faulty, options), "exists already", "curated", "another")
    short = {"--recording": scene.truth, "-o": tmp_path / "x"}
    assert run(capsys, "export", "phy", faulty, short).code == 2
    assert not (tmp_path / "x").exists()


def test_another_recording_is_refused(tetrode, faulty, tmp_path, capsys):
    options = {"--recording": tetrode.recording, "-o": tmp_path / "phy"}
    outcome = run(capsys, "export", "phy", faulty, options)
    assert_told(outcome, "segments of [240000] samples", "[720000]", "that was sorted")
    assert not list(tmp_path.iterdir())


def test_phylib_reads_it(exported, scene, two_groups, tmp_path):
    model = pytest.importorskip("phylib.io.model")
    read = model.load_model(exported / "params.py")
    assert read.n_channels == 8
    assert read.duration == pytest.approx(24, abs=0.01)
    assert read.get_waveforms(np.arange(3), np.arange(2)).shape[0] == 3
    assert np.isfinite(read.get_depths()).mean() > 0.8
    assert {"group", "KSLabel", "ContamPct", "unit_id"} <= set(read.metadata)
    assert np.array_equal(read.traces[:100], load(scene.recording).get_traces(end_frame=100))
    write_phy(*two_groups, tmp_path / "phy", spikewise.PhyConfig())
    read = model.load_model(tmp_path / "phy" / "params.py")
    assert read.n_spikes == 6
    assert read.traces.shape == (50000, 8)


OPEN_IN_PHY = """
import os
import sys
from phy.apps.template.gui import TemplateController
from phy.gui.qt import create_app
from phylib.io.model import get_template_params
create_app()
controller = TemplateController(**get_template_params(sys.argv[1]), plugins=[])
gui = controller.create_gui()
shown = controller.supervisor.cluster_info
controller.supervisor.merge([shown[0]["id"], shown[1]["id"]])
controller.supervisor.label("group", "noise", cluster_ids=[shown[2]["id"]])
controller.supervisor.save()
print(len(shown), sorted(type(view).__name__ for view in gui.views), flush=True)
os._exit(0)  # no event loop has run that could close the windows
"""


def test_phy_itself_opens_it_merges_and_saves(exported, scene, tmp_path):
    """Phy has requirements of its own; name its command in SPIKEWISE_PHY if it is in another environment."""
    phy = os.environ.get("SPIKEWISE_PHY") or shutil.which("phy")
    if not phy:
        pytest.skip("phy is not installed")
    folder = tmp_path / "phy"
    shutil.copytree(exported, folder)
    before = load_labels(folder, load(scene.recording)).unit_ids
    finished = subprocess.run(
        [Path(phy).with_name("python"), "-c", OPEN_IN_PHY, folder / "params.py"],
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen", "PYTHONPATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"{len(before)} ")
    assert "TraceView" in finished.stdout
    assert "FeatureView" in finished.stdout
    after = load_labels(folder, load(scene.recording)).unit_ids
    assert len(after) == len(before) - 2  # two are one, a third is noise
    assert max(after) == max(before) + 1  # Phy gives a merged unit a new number


@given(st.integers(1, 300), st.integers(1, 120), st.integers(1, 40))
def test_every_window_lies_in_one_stretch(num_samples, chunk, length):
    seen = []
    for low, high, start, stop in _stretches(num_samples, chunk, length):
        seen += range(low, high)
        for first in range(low, high):
            assert start <= first <= first + length <= stop
        is_within = (start, stop) == (
            start // chunk * chunk,
            min(start // chunk * chunk + chunk, num_samples),
        )
        assert is_within or stop - start <= 2 * length
    assert seen == list(range(-length, num_samples))


def test_seconds_are_chosen_that_show_rare_units():
    """One unit fires in every second, one in two of them alone."""
    often = np.arange(300)
    second = np.sort(np.concatenate((often, [111] * 5, [222] * 4)))
    unit_index = np.zeros(len(second), dtype=int)
    unit_index[np.flatnonzero(second == 111)[:5]] = 1
    unit_index[np.flatnonzero(second == 222)[:4]] = 1
    chosen = _choose_seconds(second, unit_index, 300, np.array([8, 8]))
    assert {111, 222} <= set(chosen.tolist())
    assert 8 <= len(chosen) <= 9
    long = _choose_seconds(np.arange(100_000), np.zeros(100_000, int), 100_000, np.array([10**6]))
    assert len(set(long.tolist())) == 60  # a minute at most, however long the recording
