"""Waveforms as a container, and their readers."""

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from spikewise.core.errors import WaveformsError
from spikewise.single_channel.config import SnippetsConfig
from spikewise.single_channel.files import load_wave_clus_signal
from spikewise.single_channel.snippets import Snippets, load_snippets

RAMP = np.arange(500, dtype=np.float32)  # a sample's value is its index
ROWS = np.arange(60, dtype=np.float32).reshape(5, 12)


def cell(*parts: np.ndarray) -> np.ndarray:
    """A MATLAB cell of one row."""
    values = np.empty((1, len(parts)), dtype=object)
    values[0] = [np.asarray(part, dtype=float)[None] for part in parts]
    return values


def simulation(**changes) -> dict:
    contents = {
        "data": RAMP[None],
        "samplingInterval": 1 / 24,
        "spike_times": cell([1, 101, 437, 438, 490]),
        "spike_class": cell([1, 2, 3, 1, 2], [0, 1, 0, 0, 0]),
    }
    return {name: value for name, value in (contents | changes).items() if value is not None}


def write_mat73(path, contents: dict) -> None:
    """Write arrays and cells as MATLAB 7.3 does: axes reversed, cells as references into a group."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in contents.items():
            value = np.atleast_2d(value)
            if value.dtype.kind != "O":
                file[name] = value.T
                continue
            references = np.empty(value.T.shape, dtype=h5py.ref_dtype)
            for place, part in np.ndenumerate(value):
                file[f"#refs#/{name}{place[1]}"] = part.T
                references[place[::-1]] = file[f"#refs#/{name}{place[1]}"].ref
            file.create_dataset(name, data=references, dtype=h5py.ref_dtype)


def assert_is_the_simulation(snippets: Snippets) -> None:
    # MATLAB's sample 1 is the first; a cut of 64 from sample 437 on ends with the signal's last sample
    assert snippets.sample_index.tolist() == [0, 100, 436]
    assert snippets.waveforms[:, 0].tolist() == [0, 100, 436]
    assert snippets.waveforms[:, -1].tolist() == [63, 163, 499]
    assert snippets.labels.tolist() == [1, 2, 3]
    assert snippets.sampling_frequency == 24000.0


@pytest.mark.parametrize("write", [savemat, write_mat73], ids=["v5", "v7.3"])
def test_a_simulation_is_cut_from_the_first_samples_that_matlab_counts(tmp_path, write):
    write(tmp_path / "easy.mat", simulation())
    snippets = load_snippets(tmp_path / "easy.mat")
    assert_is_the_simulation(snippets)
    assert snippets.is_overlap.tolist() == [False, True, False]
    assert snippets.name == "easy"
    channel = load_wave_clus_signal(tmp_path / "easy.mat")
    assert channel.sample_index.tolist() == [0, 100, 436, 437, 489]
    assert (channel.signal == RAMP).all()
    assert channel.signal.dtype == np.float32


def test_other_nestings_of_the_cells_are_the_same(tmp_path):
    nested = np.empty((1, 1), dtype=object)
    nested[0, 0] = cell([1, 101, 437])
    column = np.empty((1, 1), dtype=object)
    column[0, 0] = np.array([[1.0], [2.0], [3.0]])
    savemat(tmp_path / "a.mat", simulation(data=RAMP[:, None], spike_times=nested, spike_class=column))
    snippets = load_snippets(tmp_path / "a.mat")
    assert_is_the_simulation(snippets)
    assert snippets.is_overlap is None
    savemat(tmp_path / "b.mat", simulation(spike_times=[[1, 101, 437]], spike_class=[[1, 2, 3]]))
    assert_is_the_simulation(load_snippets(tmp_path / "b.mat"))


def test_a_simulation_of_plain_arrays_counts_from_zero(tmp_path):
    np.savez(tmp_path / "a.npz", data=RAMP, times=[0, 100, 436, 437], labels=[1, 2, 3, 1], fs=24000)
    assert_is_the_simulation(load_snippets(tmp_path / "a.npz"))
    shorter = load_snippets(tmp_path / "a.npz", SnippetsConfig(num_samples=10))
    assert shorter.waveforms[3].tolist() == list(range(437, 447))


def test_results_of_wave_clus(tmp_path):
    classes = [[0, 1000 * 24 / 24000], [2, 10.0], [1, 20.0], [1, 30.0], [0, 40.0]]
    contents = {"spikes": ROWS, "cluster_class": classes, "par": {"sr": 24000.0, "w_pre": 20}}
    savemat(tmp_path / "times_a.mat", contents)
    snippets = load_snippets(tmp_path / "times_a.mat")
    assert snippets.labels.tolist() == [-1, 2, 1, 1, -1]
    assert snippets.is_labelled.tolist() == [False, True, True, True, False]
    assert snippets.sample_index.tolist() == [23, 239, 479, 719, 959]
    assert (snippets.waveforms == ROWS).all()
    savemat(tmp_path / "times_b.mat", contents | {"par": {"w_pre": 20}})
    without_rate = load_snippets(tmp_path / "times_b.mat")
    assert without_rate.sampling_frequency is None
    assert without_rate.sample_index is None


@pytest.mark.parametrize("labels", [None, np.array([3, -1, 0, 2, 2]), np.array(["a", "", "b", "a", "é"])])
def test_an_npz_of_all_arrays(tmp_path, labels):
    arrays = {"sample_index": np.array([5, 6, 7, 900, 10**10]), "is_overlap": np.arange(5) % 2 == 0}
    arrays |= {} if labels is None else {"labels": labels}
    np.savez(tmp_path / "x.npz", waveforms=ROWS, sampling_frequency=15000, **arrays)
    again = load_snippets(tmp_path / "x.npz")
    assert (again.waveforms == ROWS).all()
    assert labels is None or again.labels.tolist() == labels.tolist()
    assert (again.labels is None) == (labels is None)
    assert again.sample_index.tolist() == [5, 6, 7, 900, 10**10]
    assert again.is_overlap.tolist() == [True, False, True, False, True]
    assert (again.sampling_frequency, again.name) == (15000.0, "x")


def test_named_arrays_of_an_npz(tmp_path):
    np.savez(tmp_path / "a.npz", one=ROWS, two=ROWS + 1, classes=[1, 1, 2, 2, 2], times=[0.5, 1, 2, 3, 4])
    with pytest.raises(WaveformsError, match=r"one \(5, 12\), two \(5, 12\)"):
        load_snippets(tmp_path / "a.npz")
    config = SnippetsConfig(waveforms_key="two", labels_key="classes", sampling_frequency=15000)
    snippets = load_snippets(tmp_path / "a.npz", config)
    assert (snippets.waveforms == ROWS + 1).all()
    assert snippets.labels.tolist() == [1, 1, 2, 2, 2]
    assert snippets.sampling_frequency == 15000
    assert snippets.sample_index is None  # times in seconds are no positions
    with pytest.raises(WaveformsError, match="Needed: absent"):
        load_snippets(tmp_path / "a.npz", SnippetsConfig(waveforms_key="two", labels_key="absent"))


def test_the_rate_in_the_file_goes_before_the_rate_given(tmp_path):
    np.savez(tmp_path / "a.npz", spikes=ROWS, fs=24000)
    assert (
        load_snippets(tmp_path / "a.npz", SnippetsConfig(sampling_frequency=1000)).sampling_frequency == 24000
    )


def test_an_npy_has_no_labels(tmp_path):
    np.save(tmp_path / "a.npy", ROWS.astype(np.int16))
    snippets = load_snippets(tmp_path / "a.npy")
    assert (snippets.waveforms == ROWS).all()
    assert snippets.waveforms.dtype == np.float32
    assert not snippets.is_labelled.any()


@pytest.mark.parametrize(("ending", "mark"), [("csv", ","), ("csv", ";"), ("tsv", "\t"), ("txt", " ")])
def test_tables_with_and_without_a_header(tmp_path, ending, mark):
    table = pd.DataFrame(ROWS)
    path = tmp_path / f"a.{ending}"
    table.to_csv(path, sep=mark, header=False, index=False)
    snippets = load_snippets(path)
    assert (snippets.waveforms == ROWS).all()
    assert snippets.labels is None
    table.insert(2, "Unit_id", [1, 2, 2, 1, 3])
    table["time_s"] = [0.1, 0.2, 0.3, 0.4, 0.5]
    table.to_csv(path, sep=mark, index=False)
    snippets = load_snippets(path, SnippetsConfig(sampling_frequency=24400))
    assert (snippets.waveforms == ROWS).all()
    assert snippets.labels.tolist() == [1, 2, 2, 1, 3]
    assert snippets.sample_index.tolist() == [2440, 4880, 7320, 9760, 12200]


def test_labels_of_a_table_at_a_position_and_as_text(tmp_path):
    table = pd.DataFrame(ROWS)
    table[12] = ["a", "b", None, "a", "b"]
    table.to_csv(tmp_path / "a.csv", header=False, index=False)
    snippets = load_snippets(tmp_path / "a.csv", SnippetsConfig(labels_key="12"))
    assert snippets.labels.tolist() == ["a", "b", "", "a", "b"]
    assert snippets.is_labelled.tolist() == [True, True, False, True, True]
    assert (snippets.waveforms == ROWS).all()
    table.rename(columns={12: "label"}).to_csv(tmp_path / "b.csv")  # with pandas' own index
    snippets = load_snippets(tmp_path / "b.csv")
    assert (snippets.waveforms == ROWS).all()
    assert snippets.labels.tolist() == ["a", "b", "", "a", "b"]
    with pytest.raises(WaveformsError, match="a column called colour"):
        load_snippets(tmp_path / "b.csv", SnippetsConfig(labels_key="colour"))
    table["unit"] = 1
    table.rename(columns={12: "label"}).to_csv(tmp_path / "c.csv")
    with pytest.raises(WaveformsError, match="label, unit"):
        load_snippets(tmp_path / "c.csv")


def test_selection_keeps_what_belongs_together():
    snippets = Snippets(ROWS, np.arange(5), 1000.0, 10 * np.arange(5), np.arange(5) == 1, "x")
    for chosen in (np.array([3, 1]), [3, 1]):
        part = snippets.select(chosen)
        assert (part.waveforms == ROWS[[3, 1]]).all()
        assert part.labels.tolist() == [3, 1]
        assert part.sample_index.tolist() == [30, 10]
        assert part.is_overlap.tolist() == [False, True]
        assert (part.sampling_frequency, part.name, len(part)) == (1000.0, "x", 2)
    assert snippets.select(snippets.labels > 2).labels.tolist() == [3, 4]
    assert len(snippets.select([])) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"waveforms": np.where(ROWS == 30, np.nan, ROWS)}, "1 of 5 waveforms .* first row 2"),
        ({"waveforms": np.where(ROWS > 30, 1e300, ROWS.astype(float))}, "3 of 5 .* first row 2"),
        ({"waveforms": ROWS[:, :7]}, "7 samples. At least 8"),
        ({"waveforms": ROWS[0]}, r"shape \(12,\)"),
        ({"waveforms": ROWS.astype(str)}, "numbers in two dimensions"),
        ({"waveforms": ROWS + 1j}, "complex"),
        ({"labels": [1, 2, 3]}, "5 waveforms, but its labels has 3 values"),
        ({"labels": [1, 2, 3, 4, 2.5]}, "not all whole"),
        ({"sample_index": [1, 2]}, "sample_index has 2 values"),
        ({"is_overlap": [True]}, "is_overlap has 1 values"),
        ({"sampling_frequency": 0}, "above 0 Hz"),
        ({"sampling_frequency": np.nan}, "above 0 Hz"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(WaveformsError, match=f"(?i){words}"):
        Snippets(**({"waveforms": ROWS, "name": "x"} | changes))


def test_nan_labels_are_none():
    assert Snippets(ROWS, np.array([1.0, np.nan, 2.0, 0.0, np.nan])).labels.tolist() == [1, -1, 2, 0, -1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spike_times": None}, "holds data .*needed: data, spike_times and spike_class"),
        ({"spike_class": None}, "needed: data, spike_times and spike_class"),
        ({"data": None}, "holds samplingInterval .*needed: simulation of Wave_Clus"),
        ({"data": None, "spike_class": cell([1, 2, 3])}, "holds samplingInterval"),
        ({"data": np.ones((4, 500))}, r"shape \(4, 500\)"),
        ({"samplingInterval": None}, "does not hold its sampling frequency"),
        ({"spike_times": cell([1, 2])}, "2 spike times and 5 units"),
        ({"spike_class": cell([1, 2, 3, 1, 2], [0, 1])}, "5 spike times and 2 overlap flags"),
        ({"spike_times": cell([1, 2, 3, 4, 5.5])}, "not all whole"),
        ({"spike_times": cell([600] * 5)}, "holds no spikes"),
        ({"data": np.where(RAMP == 110, np.nan, RAMP)[None]}, "1 of 3 waveforms .* first row 1"),
    ],
)
def test_simulations_that_lack_something(tmp_path, changes, words):
    savemat(tmp_path / "a.mat", simulation(**changes))
    with pytest.raises(WaveformsError, match=f"(?is){words}"):
        load_snippets(tmp_path / "a.mat")


def test_files_that_cannot_be_read(tmp_path):
    whole = {"a.mat": tmp_path / "w.mat", "a.npz": tmp_path / "w.npz", "a.npy": tmp_path / "w.npy"}
    savemat(whole["a.mat"], simulation())
    np.savez(whole["a.npz"], waveforms=ROWS)
    np.save(whole["a.npy"], ROWS)
    write_mat73(tmp_path / "w73.mat", simulation())
    for name, source in (*whole.items(), ("b.mat", tmp_path / "w73.mat")):
        data = source.read_bytes()
        (tmp_path / name).write_bytes(data[: int(0.6 * len(data))])
    (tmp_path / "a.csv").write_bytes(b"\x00\xff\xfe\x93" * 20)
    (tmp_path / "ragged.csv").write_text("1,2,3\n1,2,3,4\n")
    (tmp_path / "noise.mat").write_bytes(bytes(range(256)) * 4)
    for name in ("a.mat", "b.mat", "a.npz", "a.npy", "a.csv", "ragged.csv", "noise.mat"):
        with pytest.raises(WaveformsError, match="cannot be read"):
            load_snippets(tmp_path / name)


def test_python_objects_stay_closed(tmp_path):
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "a.npz", waveforms=objects)
    np.save(tmp_path / "a.npy", objects)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(WaveformsError, match="no Python objects"):
            load_snippets(tmp_path / name)


def test_paths_that_are_no_waveforms(tmp_path):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "a.dat").write_text("1")
    (tmp_path / "folder.mat").mkdir()
    header = ",".join(f"s{position}" for position in range(12))
    (tmp_path / "header.csv").write_text(header + "\n")
    (tmp_path / "text.csv").write_text(f"{header}\n{'1,' * 11}1\n{'1,' * 11}high\n")
    (tmp_path / "gap.csv").write_text(f"{header}\n{'1,' * 11}1\n{'1,' * 11}\n")
    for name, words in {
        "absent.mat": "there is no file",
        "empty.csv": "is empty",
        "a.dat": r"allowed are \.mat: .*\.txt",
        "folder.mat": "is a folder",
        "header.csv": "no spikes|array of object",
        "text.csv": r"spike 1 .*'high' in the column s11",
        "gap.csv": "1 of 2 waveforms .* first row 1",
    }.items():
        with pytest.raises(WaveformsError, match=f"(?is){words}"):
            load_snippets(tmp_path / name)


@pytest.mark.realdata
def test_real_simulations_hold_what_is_known_of_them(data_folder):
    raw = load_snippets(data_folder / "wave_clus" / "quiroga_C_Easy1_noise015_raw50000_gt.npz")
    assert raw.waveforms.shape == (120, 64)  # of 121 the last leaves the signal
    for unit in (1, 2, 3):
        # the times are first samples: each unit's mean peaks about 22 samples after them
        mean = raw.waveforms[raw.labels == unit].mean(axis=0)
        assert 21 <= np.abs(mean).argmax() <= 22
    detected = load_snippets(data_folder / "wave_clus" / "quiroga_C_Difficult2_noise015_spikes.npz")
    assert detected.waveforms.shape == (3027, 64)
    assert set(detected.labels[detected.is_labelled]) == {1, 2, 3}
    assert detected.is_labelled.sum() == 2595
    config = SnippetsConfig(waveforms_key="spikes_thr_unaligned", labels_key="labels_thr")
    unaligned = load_snippets(data_folder / "martinez2009" / "martinez2009_simulation1_spikes.npz", config)
    assert unaligned.waveforms.shape == (1187, 32)
    assert set(unaligned.labels) == {0, 1, 2}
