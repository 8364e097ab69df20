"""Shards: what is recorded is whole, whatever ended the work; and the same spikes in any order."""

import json
import pickle

import numpy as np
import pytest
import torch
from arrays import ArrayTraces, random_network
from hypothesis import given
from hypothesis import strategies as st
from spikeinterface.core import NumpyRecording

from spikewise.core.config import Config, DetectionConfig, NetworkConfig, PreprocessingConfig
from spikewise.core.errors import ClusterError, MissingExtraError, OutputError, SettingError
from spikewise.data.recordings.damage import STRETCH
from spikewise.jobs.cluster import check_cluster
from spikewise.jobs.finding import FoundShards
from spikewise.jobs.merge import merge_shards
from spikewise.jobs.state.fingerprint import check_same_job, differences
from spikewise.jobs.state.shards import Shard, ShardStore, check_whole, plan_shards
from spikewise.jobs.state.unfinished import Unfinished
from spikewise.models.checkpoint import GroupModel, Model
from spikewise.sorting.batch import detect_in_chunks, find_in_stretch
from spikewise.sorting.damaged import Damage, Found, join_damage
from spikewise.sorting.spikes import Spikes
from spikewise.sorting.tensor_detector import DenseDetector

RATE = 32000.0
FIRST, SECOND = Shard(0, 0, 0, 100), Shard(0, 0, 100, 150)


def some_spikes(count: int, first: int = 0) -> Spikes:
    at = np.arange(first, first + count)
    return Spikes(at, at % 3, np.linspace(0.5, 1, count, dtype=np.float32))


def found(spikes: Spikes, *stretches: tuple[int, int, int, int], num_dropped: int = 0) -> Found:
    return Found(spikes, Damage((np.array(list(stretches), STRETCH),), num_dropped))


@pytest.fixture
def store(tmp_path) -> ShardStore:
    """A store with two shards."""
    store = ShardStore(tmp_path / "shards")
    store.write(FIRST, found(some_spikes(7), (5, 9, 2, 0), (90, 100, -1, 3), num_dropped=4), 0.5)
    store.write(SECOND, found(some_spikes(0), (100, 120, -1, 3)), 0.25)
    return store


@given(st.integers(1, 3), st.lists(st.integers(1, 500), min_size=1, max_size=4), st.integers(1, 600))
def test_a_plan_holds_each_sample_of_each_group_once(num_groups, num_samples, length):
    (shards,) = plan_shards(num_groups, num_samples, length)
    assert shards == sorted(shards)
    held = [(s.group_index, s.segment_index, at) for s in shards for at in range(s.start, s.stop)]
    everything = [(g, k, at) for g in range(num_groups) for k, n in enumerate(num_samples) for at in range(n)]
    assert held == everything
    assert all(shard.stop - shard.start <= length for shard in shards)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=4), st.integers(1, 600), st.integers(1, 600))
def test_periods_are_as_long_as_asked_for_whatever_the_shards(num_samples, length, period):
    planned = plan_shards(2, num_samples, length, period)
    starts = np.cumsum([0, *num_samples])
    for number, shards in enumerate(planned):
        held = [
            (s.group_index, starts[s.segment_index] + at) for s in shards for at in range(s.start, s.stop)
        ]
        frames = range(number * period, min((number + 1) * period, starts[-1]))
        assert held == [(group, at) for group in range(2) for at in frames]
        assert all(shard.stop - shard.start <= length for shard in shards)


def test_shards_are_found_again_as_they_were_written(store):
    again = ShardStore(store.folder)
    assert len(again) == 2
    table = again.read(FIRST)
    expected = some_spikes(7)
    for name in ("sample_index", "unit_index", "response"):
        assert table[name].tolist() == getattr(expected, name).tolist()
    assert again.num_spikes(SECOND) == len(again.read(SECOND)) == 0
    assert again.seconds == 0.75


def test_damage_that_was_cut_between_shards_is_joined(store):
    again = ShardStore(store.folder)
    damage = join_damage([(0, again.damage(shard)) for shard in (FIRST, SECOND)], num_segments=2)
    assert damage.num_dropped == 4
    assert [stretches.tolist() for stretches in damage.stretches] == [[(5, 9, 2, 0), (90, 120, -1, 3)], []]


@pytest.mark.parametrize("length", range(1, 60, 7))
def test_a_line_that_was_torn_off_tells_nothing(store, length):
    manifest = store.folder / "manifest.jsonl"
    whole = manifest.read_bytes()
    last = whole.rstrip().rfind(b"\n") + 1
    manifest.write_bytes(whole[: last + length])
    again = ShardStore(store.folder)
    assert FIRST in again
    assert SECOND not in again
    again.write(SECOND, found(some_spikes(2, 100)), 1.0)  # on a line of its own
    assert ShardStore(store.folder).num_spikes(SECOND) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07"),
        lambda path: path.write_bytes(path.read_bytes() + bytes(10**6)),
    ],
)
def test_a_file_that_is_not_as_recorded_counts_as_missing(store, damage):
    damage(store.folder / FIRST.file_name)
    again = ShardStore(store.folder)
    assert FIRST not in again
    assert SECOND in again
    with pytest.raises(OutputError, match="1 of 2 shards are missing"):
        check_whole(again, [FIRST, SECOND])


def test_a_file_without_its_line_is_not_finished(store):
    (store.folder / "manifest.jsonl").unlink()
    assert len(ShardStore(store.folder)) == 0


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_in_a_manifest_do_no_harm(tmp_path_factory, line):
    folder = tmp_path_factory.mktemp("shards")
    (folder / "manifest.jsonl").write_bytes(line)
    assert len(ShardStore(folder)) == 0


@pytest.mark.parametrize("change", [{"start": -1}, {"start": True}, {"num_spikes": 1e3}, {"sha256": 1}])
def test_lines_with_other_types_are_not_taken(store, change):
    manifest = store.folder / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().split("\n") if line]
    manifest.write_text("\n".join(json.dumps(line | change) for line in lines))
    assert len(ShardStore(store.folder)) == 0


def test_stretches_in_any_order_give_the_spikes_of_the_whole():
    random = np.random.default_rng(0)
    traces = ArrayTraces(random.normal(size=(20011, 3)), random.normal(size=(3001, 3)))
    network = random_network(num_channels=3, num_units=4)
    detector = DenseDetector(network, np.full(4, 0.58), RATE, DetectionConfig(), torch.device("cpu"))
    whole = detect_in_chunks(detector, traces, 10.0)
    seam = int(whole[0].sample_index[20])  # a spike on the seam
    (shards,) = plan_shards(1, [20011, 3001], seam)
    found = {}
    for shard in [shards[index] for index in random.permutation(len(shards))]:
        search = detector.search(traces, shard.segment_index)
        found[shard] = find_in_stretch(search, shard.start, shard.stop, 600, lambda *done: None)
    for segment_index, expected in enumerate(whole):
        joined = Spikes.concatenate([found[s] for s in shards if s.segment_index == segment_index])
        assert joined.sample_index.tolist() == expected.sample_index.tolist()
        assert joined.unit_index.tolist() == expected.unit_index.tolist()
        assert joined.response.tolist() == expected.response.tolist()


def test_differences_are_named_with_both_values(tmp_path):
    before = {"model": None, "settings": {"training": {"seed": 0}, "same": 1}}
    now = {"model": "a", "settings": {"training": {"seed": 1}, "same": 1}}
    assert differences(before, now) == [
        'model was null and is "a"',
        "settings.training.seed was 0 and is 1",
    ]
    with pytest.raises(OutputError, match=r"seed was 0 and is 1.*--overwrite"):
        check_same_job(before, now, tmp_path)
    check_same_job(before, before, tmp_path)
    with pytest.raises(OutputError, match="another sort"):
        check_same_job(None, now, tmp_path)  # damaged


def test_two_processes_do_not_sort_into_one_folder(tmp_path):
    with (
        Unfinished(tmp_path).locked(),
        pytest.raises(OutputError, match="nother process is sorting"),
        Unfinished(tmp_path).locked(),
    ):
        pass
    with Unfinished(tmp_path).locked():
        pass


@pytest.mark.parametrize("address", ["local", "local:", "local:0", "local:-1", "local:x", "x", "", "a b:1"])
def test_addresses_of_no_cluster_are_refused(address):
    with pytest.raises(SettingError, match="local:N"):
        check_cluster(address)


@pytest.mark.parametrize(("address", "count"), [("local:3", 3), ("tcp://host:8786", 0), ("host:8786", 0)])
def test_addresses_of_clusters(address, count):
    assert check_cluster(address) == count


@pytest.mark.parametrize(
    "error",
    [
        OutputError("a", "b", "c"),
        ClusterError("a", "b", "c"),
        MissingExtraError("distributed", "cluster", "a cluster"),
    ],
)
def test_errors_travel_between_processes_with_their_three_parts(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert (again.given, again.allowed, again.remedy) == (error.given, error.allowed, error.remedy)


def test_settings_of_how_the_work_is_done_are_checked():
    assert Config.from_options(shard_s=5.0, cluster="local:2").sorting.shard_s == 5.0
    with pytest.raises(SettingError, match="shard_s"):
        Config.from_options(shard_s=0.0)


def model_of_two_groups() -> Model:
    groups = [
        GroupModel(
            name,
            random_network(3, 2),
            tuple(f"{name}{number}" for number in range(3)),
            np.zeros((3, 2)),
            (),
            (f"{name}0", f"{name}1"),
            np.full(2, 0.5, np.float32),
        )
        for name in "ab"
    ]
    config = NetworkConfig(spatial_features=32)
    return Model(tuple(groups), RATE, config, PreprocessingConfig(), DetectionConfig(), {})


def test_what_is_found_on_both_sides_of_a_seam_is_kept_once(tmp_path):
    """Two groups, two segments, a seam within the first segment and one where the second begins."""
    model = model_of_two_groups()
    together = round(model.detection_config.merge_ms * RATE / 1000)
    assert together > 8
    times = {
        Shard(0, 0, 0, 1000): [(10, 0), (20, 1), (995, 0), (998, 1)],
        Shard(1, 0, 0, 1000): [(996, 0)],
        Shard(0, 0, 1000, 2000): [(1003, 0), (1003, 1), (995 + together + 1, 0), (1996, 1)],
        Shard(1, 0, 1000, 2000): [(996 + together, 0), (997 + together, 0)],
        Shard(0, 1, 0, 500): [(2, 1)],
        Shard(1, 1, 0, 500): [],
    }
    store = ShardStore(tmp_path / "shards")
    for shard, spikes in times.items():
        at, unit = np.array(spikes or np.zeros((0, 2)), dtype=np.int64).T
        store.write(shard, found(Spikes(at, unit, np.ones(len(at), np.float32))), 0.1)
    shards = list(times)
    lengths = [np.zeros((2000, 1), np.int16), np.zeros((500, 1), np.int16)]
    recording = NumpyRecording(lengths, model.sampling_frequency)
    one_period = merge_shards(FoundShards(store, [shards], 0.0), model, recording, tmp_path / "one.npy")
    assert one_period.count_total_num_spikes() == sum(map(len, times.values()))
    periods = [shards[:2], shards[2:4], shards[4:]]
    three = merge_shards(FoundShards(store, periods, 0.0), model, recording, tmp_path / "three.npy")
    kept = {shard: list(spikes) for shard, spikes in times.items()}
    kept[shards[2]] = [(995 + together + 1, 0), (1996, 1)]
    kept[shards[3]] = [(997 + together, 0)]
    expected = sorted(
        (shard.segment_index, at, unit + 2 * shard.group_index)
        for shard, spikes in kept.items()
        for at, unit in spikes
    )
    vector = three.to_spike_vector()
    assert (
        list(zip(vector["segment_index"], vector["sample_index"], vector["unit_index"], strict=True))
        == expected
    )
