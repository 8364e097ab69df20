"""The sets of the paper's experiments: what is published, found, generated and refused."""

import numpy as np
import pytest
from paper_data import write_files

from spikewise.core.errors import SettingError, WaveformsError
from spikewise.papers.cnn1d import sets as paper_sets
from spikewise.papers.cnn1d.baselines import BASELINES
from spikewise.papers.cnn1d.config import PapersConfig
from spikewise.papers.cnn1d.sets import find_sets, load_set, public_name, published_table
from spikewise.single_channel.config import WaveClusConfig
from spikewise.single_channel.wave_clus import simulate_wave_clus


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("data"))


def test_published_means_are_those_that_the_paper_states():
    means = published_table("cnn_table1").mean(numeric_only=True).round(2)
    assert means["cnn_e2"] == 99.36
    assert means["cnn_e6"] == 99.69


def test_published_tables_name_the_methods_and_sets_that_can_be_run():
    columns = {*published_table("cnn_table1"), *published_table("cnn_table2")}
    assert set(BASELINES) <= columns
    assert len(published_table("cnn_table1")) == 20
    assert len(published_table("cnn_table3_macro_f")) == 28
    both = published_table("cnn_table1").merge(published_table("cnn_table2"), on=["dataset", "noise_level"])
    assert len(both) == 20
    assert (both["cnn_e2_x"] == both["cnn_e2_y"]).all()


@pytest.mark.parametrize(
    ("level", "name"), [(0.05, "C_Easy1_noise005"), (0.1, "C_Easy1_noise01"), (0.15, "C_Easy1_noise015"),
                        (0.4, "C_Easy1_noise04")]
)  # fmt: skip
def test_names_of_public_sets(level, name):
    assert public_name("C_Easy1", level) == name
    match = paper_sets._PUBLIC_NAME.fullmatch(name)
    assert int(match[2]) / 10 ** (len(match[2]) - 1) == level


def test_all_sets_are_20_of_wave_clus_and_28_channels(tmp_path):
    sets = find_sets(tmp_path, None, PapersConfig(duration_s=30.0))
    assert {item.source for item in sets} == {"generated"}
    assert [item.kind for item in sets] == ["wave_clus"] * 20 + ["channel"] * 28
    units = {
        f"channel_{row.channel}": row.n_clusters for row in published_table("cnn_table3_macro_f").itertuples()
    }
    for item in sets:
        simulation = item.simulation
        assert simulation.duration_s == 30.0
        if item.kind == "channel":
            rates = np.array(simulation.firing_rates_hz)
            assert len(rates) == simulation.num_units == units[item.name]
            assert simulation.num_samples == item.reading.num_samples == 12
            assert simulation.sampling_frequency == 24_400
            assert rates.sum() == pytest.approx(60)
            assert rates.min() / rates.sum() > 0.005
            assert 0.05 <= simulation.noise_level <= 0.25
        else:
            assert simulation.noise_level == item.noise_level
            assert simulation.difficulty == item.dataset.removeprefix("C_").lower()
    seeds = {item.dataset: set() for item in sets}
    for item in sets:
        seeds[item.dataset].add(item.simulation.seed)
    assert all(len(of_dataset) == 1 for of_dataset in seeds.values())
    assert len(set.union(*seeds.values())) == len(seeds)


def test_real_files_are_found_and_take_the_place_of_generated_sets(tmp_path, data):
    sets = {item.name: item for item in find_sets(tmp_path, data, PapersConfig())}
    assert len(sets) == 20 + 28 + 1
    assert sets["C_Easy2_noise01"].source == "real"
    assert sets["C_Easy2_noise01"].kind == "wave_clus"
    assert sets["C_Easy2_noise01"].noise_level == 0.1
    assert sets["recorded"].source == "real"
    assert sets["recorded"].kind == "other"
    assert {name for name, item in sets.items() if item.source == "real"} == {"C_Easy2_noise01", "recorded"}


def test_detected_spikes_do_not_take_the_place_of_a_public_set(tmp_path):
    simulation = simulate_wave_clus(WaveClusConfig(duration_s=5.0))
    waveforms = simulation.signal[simulation.sample_index[:, None] + np.arange(64)]
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "quiroga_C_Difficult2_noise005_spikes.npz", spikes=waveforms, labels=simulation.labels)
    sets = {item.name: item for item in find_sets(tmp_path / "out", folder, PapersConfig())}
    found = sets["quiroga_C_Difficult2_noise005_spikes"]
    assert (found.source, found.kind, found.dataset, found.noise_level) == (
        "real",
        "other",
        "C_Difficult2",
        0.05,
    )
    assert sets["C_Difficult2_noise005"].source == "generated"


def test_files_with_the_name_of_a_generated_set_keep_their_ending(tmp_path, data):
    for name in ("channel_66.npz", "C_Easy1_noise005.npz", "recorded.npz"):
        (tmp_path / name).write_bytes((data / "deeper" / "recorded.npz").read_bytes())
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "recorded.npz").write_bytes((tmp_path / "recorded.npz").read_bytes())
    sets = find_sets(tmp_path / "out", tmp_path, PapersConfig())
    names = [item.name for item in sets]
    assert len(set(names)) == len(names) == 20 + 28 + 4
    found = {item.name for item in sets if item.source == "real"}
    assert found == {"channel_66.npz", "C_Easy1_noise005.npz", "recorded", "recorded.npz"}
    assert {item.kind for item in sets if item.source == "real"} == {"other"}


def test_spikes_without_a_unit_and_rare_units_are_left_out(tmp_path, data):
    chosen = find_sets(tmp_path, data, PapersConfig(sets=("recorded",)))
    spikes = load_set(chosen[0])
    assert len(spikes.labels) == len(spikes.waveforms) == 180
    assert set(spikes.labels) == {0, 1, 2}
    labels = np.repeat([7, 8, 9, 3], [600, 500, 5, 3])
    np.savez(tmp_path / "rare.npz", waveforms=np.random.default_rng(0).normal(size=(1108, 20)), labels=labels)
    rare = load_set(find_sets(tmp_path / "out", tmp_path, PapersConfig(sets=("rare",)))[0])
    np.testing.assert_array_equal(rare.labels, np.repeat([0, 1], [600, 500]))  # 5 of 1108 are under 0.5 %


def test_units_that_are_named_by_text_are_numbered(tmp_path):
    waveforms = np.random.default_rng(0).normal(size=(40, 20))
    np.savez(tmp_path / "named.npz", waveforms=waveforms, labels=np.array(["b", "", "a", "a"] * 10))
    spikes = load_set(find_sets(tmp_path / "out", tmp_path, PapersConfig(sets=("named",)))[0])
    np.testing.assert_array_equal(spikes.labels, [1, 0, 0] * 10)


@pytest.mark.realdata
def test_real_sets_of_the_data_folder(tmp_path, data_folder):
    sets = {item.name: item for item in find_sets(tmp_path, data_folder, PapersConfig(sets=("real",)))}
    assert len(load_set(sets["quiroga_C_Difficult2_noise005_spikes"]).labels) == 2508
    assert len(load_set(sets["martinez2009_simulation1_spikes"]).labels) == 1187
    assert not [name for name in sets if "unlabelled" in name or "templates" in name or "times_only" in name]


@pytest.mark.parametrize("names", [("C_Easy3",), ("generated", "nothing"), ()])
def test_unknown_sets_are_refused_with_the_known_ones(tmp_path, names):
    with pytest.raises(SettingError, match=r"C_Easy1_noise005.*channel_126"):
        find_sets(tmp_path, None, PapersConfig(sets=names))


def test_real_sets_without_a_folder_of_data_are_refused(tmp_path):
    with pytest.raises(SettingError, match="Sets is real, and there is no such set"):
        find_sets(tmp_path, None, PapersConfig(sets=("real",)))
    with pytest.raises(WaveformsError, match="There is no folder"):
        find_sets(tmp_path, tmp_path / "absent", PapersConfig())
