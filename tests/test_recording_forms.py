"""The same recording in the forms that SpikeInterface's users give it: split, aggregated, renamed, saved."""

import numpy as np
import pytest
import spikeinterface.preprocessing as spre
from spikeinterface.core import NumpyRecording, aggregate_channels

import spikewise
from spikewise.core.config import Config
from spikewise.core.errors import RecordingError
from spikewise.data.opening import open_recording
from spikewise.data.recordings.preprocessing import split_groups
from spikewise.output.result import load_result
from spikewise.sorting.groups import Preparation, named_groups, prepare_groups

FAST = {"rounds": 1, "patches_per_unit": 2000, "unit_steps": 200, "label_interval": (0, 4), "seed": 0}


@pytest.fixture(scope="module")
def simulated():
    """Two tetrodes, in integers as a file has them, so that copies are exact."""
    made = spikewise.simulate(probe="tetrode-2", num_units=4, duration_s=6, seed=1)
    recording = NumpyRecording([np.round(made.recording.get_traces() * 5).astype("int16")], 30000.0)
    recording = recording.rename_channels([f"ch{index}" for index in range(8)])
    recording.set_probegroup(made.recording.get_probegroup())
    recording.set_property("area", np.array(["CA1"] * 8))
    return recording, made.sorting


@pytest.fixture(scope="module")
def model(simulated):
    return spikewise.train(*simulated, **FAST)


@pytest.fixture(scope="module")
def spikes(simulated, model):
    return spikewise.sort(simulated[0], model=model, report=False).sorting.to_spike_vector()


def aggregated(recording):
    return aggregate_channels(list(recording.split_by("group").values()))


FORMS = {
    "aggregated": aggregated,
    "aggregated by name": lambda recording: aggregate_channels(recording.split_by("group")),
    "a part with two groups": lambda recording: recording.split_by("area")["CA1"],
    "other order of channels": lambda r: r.select_channels(r.channel_ids[[4, 0, 5, 1, 2, 6, 3, 7]]),
    "renamed": lambda recording: recording.rename_channels(np.arange(101, 109)),
    "names of groups are objects": lambda recording: with_groups(recording, np.array([0, 1], dtype=object)),
}


def with_groups(recording, names):
    changed = recording.clone()
    changed.set_property("group", np.repeat(names, 4))
    return changed


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_spikes(simulated, model, spikes, form):
    result = spikewise.sort(FORMS[form](simulated[0]), model=model, report=False)
    np.testing.assert_array_equal(result.sorting.to_spike_vector(), spikes)
    assert len(spikes) > 100


@pytest.mark.parametrize("format", ["binary", "zarr"])
@pytest.mark.parametrize("form", ["aggregated", "a part with two groups"])
def test_saved_and_read_again(simulated, model, spikes, form, format, tmp_path):
    folder = tmp_path / ("saved.zarr" if format == "zarr" else "saved")
    FORMS[form](simulated[0]).save(folder=folder, format=format, progress_bar=False, verbose=False)
    result = spikewise.sort(folder, model=model, report=False)
    np.testing.assert_array_equal(result.sorting.to_spike_vector(), spikes)


def test_an_aggregated_recording_teaches_the_same_model(simulated, model):
    recording, truth = simulated
    assert spikewise.train(aggregated(recording), truth, **FAST).hash() == model.hash()


def test_each_group_of_an_aggregated_recording_is_filtered_before(simulated):
    recording, truth = simulated
    parts = [spre.bandpass_filter(part, 300, 6000) for part in recording.split_by("group").values()]
    result = spikewise.sort(aggregate_channels(parts), labels=truth, report=False, bandpass=False, **FAST)
    assert set(result.sorting.get_property("group")) == {"0", "1"}
    assert spikewise.evaluate(truth, result.sorting, interval=(0, 4)).accuracy > 0.8


def test_removed_channels_leave_groups_of_different_sizes(simulated):
    recording, _ = simulated
    left = recording.remove_channels(["ch1", "ch6"])
    groups = {name: part.channel_ids.tolist() for name, part in split_groups(left).items()}
    assert groups == {"0": ["ch0", "ch2", "ch3"], "1": ["ch4", "ch5", "ch7"]}
    of_parts = aggregate_channels(
        [part.remove_channels(part.channel_ids[:1]) for part in split_groups(left).values()]
    )
    groups = {name: part.channel_ids.tolist() for name, part in split_groups(of_parts).items()}
    assert groups == {"0": ["ch2", "ch3"], "1": ["ch5", "ch7"]}
    np.testing.assert_array_equal(of_parts.get_channel_locations()[2], recording.get_channel_locations()[5])


def test_groups_keep_the_order_of_their_values(simulated):
    recording, _ = simulated
    assert list(split_groups(with_groups(recording, np.array([10, 9])))) == ["9", "10"]
    assert list(split_groups(with_groups(recording, np.array(["10", "9"])))) == ["10", "9"]
    assert list(split_groups(with_groups(recording, np.array(["b", 1], dtype=object)))) == ["1", "b"]


@pytest.mark.parametrize("missing", [np.nan, "", None])
def test_channels_without_a_group_are_told(simulated, missing):
    recording, _ = simulated
    kind = {float: np.array([0.0, missing]), str: np.array(["a", missing])}.get(type(missing))
    given = with_groups(recording, np.array(["a", None], dtype=object) if kind is None else kind)
    with pytest.raises(
        RecordingError, match=r"4 of 8 channels have no group: ch4, ch5, ch6, ch7.*--group-by none"
    ):
        split_groups(given)
    assert list(split_groups(given, "none")) == ["0"]
    assert list(split_groups(with_groups(recording, np.array([missing, missing])))) == ["0"]


def test_many_groups_are_named_in_one_warning(simulated, caplog):
    """Thirty dead tetrodes are one line, not thirty."""
    recording, _ = simulated
    every = recording.channel_ids.tolist()
    given = recording.clone()
    given.set_property("group", np.array(list("abcdefgh")))
    config = Config.from_options(exclude_channels=every[1:], common_reference="none")
    prepare_groups(given, Preparation.of(config))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["all channels of groups b, c, d, e, f, g, h are excluded: they are not sorted"]
    assert named_groups([str(k) for k in range(30)]) == "groups 0, 1, 2, 3, 4, 5, 6, 7 and 22 more"


def test_a_dead_tetrode_is_left_out(simulated, caplog):
    recording, _ = simulated
    excluded = [f"ch{index}" for index in range(4, 8)]
    groups = prepare_groups(recording, Preparation.of(Config.from_options(exclude_channels=excluded)))
    assert [group.name for group in groups] == ["0"]
    assert "all channels of group 1 are excluded: it is not sorted" in caplog.text
    every = Preparation.of(Config.from_options(exclude_channels=recording.channel_ids.tolist()))
    with pytest.raises(RecordingError, match="All 8 channels are excluded"):
        prepare_groups(recording, every)


def test_silenced_channels_of_a_model_are_found_in_a_renamed_recording(simulated, tmp_path):
    recording, truth = simulated
    traces = recording.get_traces().copy()
    traces[50_000:50_200, 2] = 0  # damage of one channel, which the provenance names
    renamed = NumpyRecording([traces], 30000.0, channel_ids=[f"other{index}" for index in range(8)])
    renamed.set_probegroup(recording.get_probegroup())
    silent = spikewise.train(recording, truth, exclude_channels=["ch5"], **FAST)
    assert silent.groups[1].silenced_channel_ids == ("ch5",)
    result = spikewise.sort(renamed, model=silent, output=tmp_path / "out")
    assert result.sorting.count_total_num_spikes() > 100
    assert result.provenance["recording"]["channel_ids"]["1"] == ["other4", "other5", "other6", "other7"]
    assert ["other2"] in [stretch["channels"] for stretch in result.provenance["damage"]["stretches"]]
    named = load_result(tmp_path / "out").with_names_of_recording().model
    assert named.groups[1].silenced_channel_ids == ("other5",)
    page = (tmp_path / "out" / "report.html").read_text()
    assert '"other4"' in page
    assert '"ch4"' not in page
    analyzer = spikewise.analyze(result, renamed)
    assert not analyzer.recording.get_traces(channel_ids=["other5"], end_frame=1000).any()


def test_probes_at_the_same_place_are_different_groups():
    """Two recordings of one kind of probe, each with its probe at the origin."""
    probe = spikewise.simulate(probe="tetrode", num_units=1, duration_s=2, seed=0).recording.get_probe()
    noise = np.random.default_rng(0).normal(0, 10, (2, 30000, 4)).astype("float32")
    parts = [NumpyRecording([traces], 30000.0) for traces in noise]
    for part in parts:
        part.set_probe(probe)
    together, _ = open_recording(aggregate_channels(parts), Config().recording)
    assert [part.get_num_channels() for part in split_groups(together).values()] == [4, 4]
