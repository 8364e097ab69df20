"""Times of samples: gaps are found, jitter is not, labels and exports follow the clock."""

import json

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording, NumpySorting, append_recordings, load
from test_recordings import write_open_ephys

import spikewise
from spikewise.core.config import Config, RecordingConfig
from spikewise.core.errors import RecordingError
from spikewise.data.labels.label_files import load_labels
from spikewise.data.opening import open_recording
from spikewise.data.recordings.channels import SilencedRecording
from spikewise.data.recordings.clock import (
    TimedRecording,
    find_jumps,
    has_clock,
    rate_of_clock,
    samples_at,
    times_at,
)
from spikewise.data.recordings.repair import RepairedRecording
from spikewise.output.export.spike_times import TimedSorting, times_of_spikes

RATE = 30000.0
STEADY = np.arange(120_000) / RATE
JITTER = np.repeat(np.random.default_rng(0).uniform(0, 1e-4, 1200), 100)
"""0 to 0.1 ms for each packet of 100 samples."""


def with_times(times, num_channels=1, rate=RATE):
    traces = np.random.default_rng(0).normal(0, 20, (len(times), num_channels)).astype("int16")
    recording = NumpyRecording([traces], rate)
    recording.set_dummy_probe_from_locations(np.c_[np.zeros(num_channels), 20.0 * np.arange(num_channels)])
    recording.set_times(times, with_warning=False)
    return recording


def gap(seconds, at=50_000):
    return seconds * (np.arange(len(STEADY)) >= at)


@pytest.mark.parametrize("start_s", [0.0, 1.7e9])
@pytest.mark.parametrize("missing", [-40, -1, 1, 60, 30_000])
def test_missing_and_repeated_samples_are_jumps(missing, start_s):
    assert find_jumps(start_s + STEADY + gap(missing / RATE), 0, RATE).tolist() == [50_000]


@pytest.mark.parametrize(
    "times",
    [
        STEADY,
        STEADY + JITTER,
        np.floor(STEADY * 1000) / 1000,
        np.round(STEADY, 6),
        STEADY * (1 + 5e-5),
        STEADY + 2e-5 * np.sin(STEADY),
        1.7e9 + STEADY + JITTER,
    ],
)
def test_jitter_ticks_and_drift_are_none(times):
    assert len(find_jumps(times, 0, RATE)) == 0
    recording = with_times(times)
    limits = [0.0], [20.0], 80.0
    assert len(RepairedRecording(recording, *limits).damage(0, 0, len(times))) == 0


@pytest.mark.parametrize("wobble", [JITTER, np.floor(STEADY * 1000) / 1000 - STEADY])
def test_a_gap_is_found_in_a_clock_that_jitters(wobble):
    found = find_jumps(STEADY + wobble + gap(0.002, at=60_000), 0, RATE)
    assert found.tolist() == [60_000]


def test_jumps_do_not_depend_on_how_the_recording_is_cut():
    recording = with_times(STEADY + JITTER + gap(0.004) - gap(0.0005, at=90_000))
    whole = RepairedRecording(recording, [0.0], [20.0], 80.0).damage(0, 0, 120_000)
    assert [(one["start"], one["stop"]) for one in whole] == [(49_970, 50_030), (89_970, 90_030)]
    for size in (1_000, 7_777, 30_000):
        parts = RepairedRecording(recording, [0.0], [20.0], 80.0)
        found = [parts.damage(0, start, start + size) for start in range(0, 120_000, size)]
        assert sum((part["stop"] - part["start"]).sum() for part in found) == 120


def test_times_become_the_nearest_samples():
    recording = with_times(100.0 + STEADY + gap(0.5))
    samples = np.array([0, 1, 49_999, 50_000, 119_999])
    times = times_at(recording, samples, 0)
    np.testing.assert_allclose(times, 100 + samples / RATE + [0, 0, 0, 0.5, 0.5], rtol=0, atol=1e-9)
    order = [3, 0, 4, 2, 1]
    assert samples_at(recording, times[order] + 0.4 / RATE, 0).tolist() == samples[order].tolist()
    outside = [99.9, 100 + 50_000 / RATE + 0.1, 100 + 50_000 / RATE + 0.4, 104.6]
    assert samples_at(recording, outside, 0).tolist() == [-1, 49_999, 50_000, 120_000]
    ticks = with_times(np.floor(STEADY * 1000) / 1000)
    middles = samples_at(ticks, [1.0, 2.5], 0)  # of 30 samples each
    assert np.abs(middles - [30_014.5, 75_014.5]).max() <= 1
    jittering = with_times(STEADY + JITTER)
    found = samples_at(jittering, (STEADY + JITTER)[::997], 0)
    assert np.abs(found - np.arange(0, 120_000, 997)).max() <= 3  # 0.1 ms


def test_a_clock_that_goes_back_has_no_clear_times():
    recording = with_times(STEADY - gap(0.5))
    with pytest.raises(RecordingError, match=r"goes back by 0\.500 s at sample 50000.*--clock ignore"):
        samples_at(recording, [1.0], 0)
    regular, _ = open_recording(recording, RecordingConfig(clock="ignore"))
    assert samples_at(regular, [3.0], 0).tolist() == [90_000]


@pytest.mark.parametrize(
    ("times", "told"),
    [
        (np.full(120_000, np.nan), "times of samples are NaN"),
        (np.zeros(120_000), "nan samples per second"),
        (STEADY * 1.5, "those of 20000 samples per second, its sampling frequency is 30000"),
        (STEADY + 0.05 * (np.arange(120_000) // 30 % 2), "its times jump 1000 times per second"),
    ],
)
def test_a_clock_that_cannot_be_used_is_named(times, told):
    recording = with_times(times)
    with pytest.raises(
        RecordingError, match=rf"clock of the recording cannot be used: .*{told}.*--clock ignore"
    ):
        open_recording(recording, RecordingConfig())
    ignored, _ = open_recording(recording, RecordingConfig(clock="ignore"))
    assert not has_clock(ignored, 0)
    np.testing.assert_array_equal(ignored.get_traces(), recording.get_traces())


@pytest.mark.parametrize(
    "times", [STEADY, np.round(STEADY, 6), np.floor(STEADY * 1000) / 1000, STEADY + gap(0.5), STEADY + JITTER]
)
def test_the_rate_of_a_clock(times):
    assert rate_of_clock(with_times(times), 0) == pytest.approx(RATE, rel=2e-6)
    assert rate_of_clock(with_times(STEADY), 0) == RATE
    assert rate_of_clock(with_times(STEADY * 30000 / 29999.5), 0) == pytest.approx(29999.5, rel=1e-9)


def test_views_of_a_slice_keep_the_clock():
    piece = SilencedRecording(with_times(STEADY + gap(0.5)).frame_slice(40_000, 60_000), [])
    assert has_clock(piece, 0)
    assert samples_at(piece, times_at(piece, [12_345], 0), 0).tolist() == [12_345]
    assert RepairedRecording(piece, [0.0], [20.0], 80.0).damage(0, 0, 20_000)["start"].tolist() == [9_970]


def test_segments_on_one_axis():
    parts = [with_times(STEADY), with_times(STEADY)]
    sorting = NumpySorting.from_unit_dict([{"a": np.array([30])}, {"a": np.array([60])}], RATE)
    overlapping = append_recordings(parts)
    np.testing.assert_allclose(times_of_spikes(sorting, overlapping), [0.001, 4.002])
    parts[1].set_times(7 + STEADY + gap(0.5, at=40), with_warning=False)
    recording = append_recordings(parts)
    np.testing.assert_allclose(times_of_spikes(sorting, recording), [0.001, 7.502])
    timed = TimedSorting(sorting, recording)
    np.testing.assert_allclose(timed.get_unit_spike_train("a", return_times=True), [0.001, 7.502])


# ---------------------------------------------------------------- files


def write_nwb(path, times, traces, trains):
    pynwb = pytest.importorskip("pynwb")
    from datetime import UTC, datetime

    file = pynwb.NWBFile("a test", "an identifier", datetime(2020, 1, 1, tzinfo=UTC))
    group = file.create_electrode_group("shank", "-", "-", file.create_device("probe"))
    for index in range(traces.shape[1]):
        file.add_electrode(group=group, location="-", rel_x=0.0, rel_y=20.0 * index)
    region = file.create_electrode_table_region(list(range(traces.shape[1])), "all")
    series = pynwb.ecephys.ElectricalSeries("ElectricalSeries", traces, region, timestamps=times)
    file.add_acquisition(series)
    for unit_id, train in trains.items():
        file.add_unit(spike_times=times[train], id=unit_id)
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)


@pytest.mark.parametrize("step_s", [0.0, 1e-6, 1e-3])
def test_nwb_with_timestamps(tmp_path, step_s):
    times = 5.0 + STEADY + gap(0.002)
    if step_s:
        times = np.floor(times / step_s) * step_s
    traces = np.random.default_rng(0).normal(0, 20, (len(times), 2)).astype("int16")
    trains = {3: np.arange(500, 119_000, 997), 8: np.arange(700, 119_000, 1013)}
    write_nwb(tmp_path / "a.nwb", times, traces, trains)
    recording, _ = open_recording(tmp_path / "a.nwb", RecordingConfig())
    assert recording.get_sampling_frequency() == pytest.approx(RATE, rel=2e-6)
    np.testing.assert_array_equal(recording.get_traces(), traces)
    np.testing.assert_array_equal(times_at(recording, np.arange(len(times)), 0), times)
    labels = load_labels(tmp_path / "a.nwb", recording)
    reloaded = load(recording.to_dict(recursive=True))  # as a worker of a cluster does
    assert has_clock(reloaded, 0)
    most = 0 if step_s < 1e-3 else 15
    for unit_id, train in trains.items():
        assert np.abs(labels.get_unit_spike_train(unit_id) - train).max() <= most
    rows = [f"{times[sample]:.9f},{unit}" for unit, train in trains.items() for sample in train]
    (tmp_path / "a.csv").write_text("\n".join(["time_s,unit_id", *rows]))
    of_csv = load_labels(tmp_path / "a.csv", recording)
    assert np.abs(of_csv.get_unit_spike_train(8) - trains[8]).max() <= most


def test_blackrock_times_of_packets(tmp_path):
    layout = pytest.importorskip("neo.rawio.blackrockrawio")
    basic, extended = (
        np.dtype(types["3.0"]) for types in (layout.NSX_BASIC_HEADER_TYPES, layout.NSX_EXT_HEADER_TYPES)
    )
    head, channels = np.zeros(1, basic), np.zeros(4, extended)
    head["file_id"], head["ver_major"], head["period"] = b"BRSMPGRP", 3, 1
    head["timestamp_resolution"], head["channel_count"] = 1_000_000_000, 4
    head["bytes_in_headers"] = basic.itemsize + 4 * extended.itemsize
    head["year"], head["month"], head["day"] = 2026, 1, 1
    channels["type"], channels["electrode_id"], channels["units"] = b"CC", np.arange(1, 5), b"uV"
    channels["electrode_label"] = [f"chan{k}".encode() for k in range(1, 5)]
    for name, value in {"min_digital_val": -32764, "max_digital_val": 32764}.items():
        channels[name], channels[name.replace("digital", "analog")] = value, value // 4
    traces = np.random.default_rng(0).normal(0, 50, (60_000, 4)).astype("<i2")
    fields = [("reserved", "u1"), ("time", "<u8"), ("count", "<u4"), ("samples", "<i2", 4)]
    packets = np.zeros(len(traces), fields)
    ns = np.rint((STEADY[:60_000] + gap(0.001, at=30_000)[:60_000]) * 1e9).astype("u8")
    packets["reserved"], packets["time"], packets["count"] = 1, ns + 10**18, 1
    packets["samples"] = traces
    (tmp_path / "a.ns6").write_bytes(head.tobytes() + channels.tobytes() + packets.tobytes())
    recording, _ = open_recording(tmp_path / "a.ns6", RecordingConfig(probe="tetrode"))
    np.testing.assert_array_equal(recording.get_traces(), traces)
    np.testing.assert_allclose(times_at(recording, [0, 59_999], 0) - 1e9, [0, 2.000967], rtol=0, atol=1e-6)
    damage = RepairedRecording(recording, [0.0] * 4, [50.0] * 4, 80.0).damage(0, 0, 60_000)
    assert [(one["start"], one["stop"]) for one in damage] == [(29_970, 30_030)]
    assert has_clock(load(recording.to_dict(recursive=True)), 0)


def test_open_ephys_with_lost_samples(tmp_path):
    traces = np.random.default_rng(0).normal(0, 50, (90_000, 4)).astype("int16")
    folder = tmp_path / "Record Node 101" / "experiment1" / "recording1"
    write_open_ephys(folder, {"ProbeA-AP": traces})
    assert not has_clock(open_recording(tmp_path, RecordingConfig(probe="tetrode"))[0], 0)
    numbers = next(folder.glob("continuous/*/sample_numbers.npy"))
    rate = json.loads((folder / "structure.oebin").read_text())["continuous"][0]["sample_rate"]
    np.save(numbers, 7_000 + np.arange(90_000) + 256 * (np.arange(90_000) >= 45_000))
    recording, _ = open_recording(tmp_path, RecordingConfig(probe="tetrode"))
    np.testing.assert_allclose(times_at(recording, [0, 45_000], 0), np.array([7_000, 52_256]) / rate)
    damage = RepairedRecording(recording, [0.0] * 4, [50.0] * 4, 80.0).damage(0, 0, 90_000)
    assert len(damage) == 1
    assert damage["start"] < 45_000 < damage["stop"]


# ---------------------------------------------------------------- a whole sort


@pytest.fixture(scope="module")
def gapped(tetrode):
    """The tetrode, saved with a clock that starts at 100 s and has a gap of 0.5 s."""
    recording = load(tetrode.recording)
    times = 100 + np.arange(recording.get_num_samples(0)) / recording.sampling_frequency
    times[60_000:] += 0.5
    recording.set_times(times, with_warning=False)
    return recording.save(folder=tetrode.folder.parent / "gapped"), times


@pytest.fixture(scope="module")
def result(gapped, trained, tmp_path_factory):
    return spikewise.sort(gapped[0], model=trained, output=tmp_path_factory.mktemp("clock") / "out")


def test_exports_carry_the_clock(gapped, result, tmp_path):
    pynwb = pytest.importorskip("pynwb")
    recording, times = gapped
    assert [one["kind"] for one in result.provenance["damage"]["stretches"]] == ["time jump"]
    start = "2026-03-01T14:00:00+01:00"
    spikewise.export_nwb(result.folder, recording, tmp_path / "a.nwb", session_start_time=start)
    with pynwb.NWBHDF5IO(tmp_path / "a.nwb", "r") as io:
        units = io.read().units
        names = [str(name) for name in units["unit_name"][:]]
        for unit_id in result.sorting.unit_ids:
            expected = times[result.sorting.get_unit_spike_train(unit_id)]
            if len(expected):
                np.testing.assert_allclose(units["spike_times"][names.index(str(unit_id))], expected)
    spikewise.export_phy(result.folder, recording, tmp_path / "phy", traces="none")
    frames = np.load(tmp_path / "phy" / "spike_times.npy")
    np.testing.assert_allclose(np.load(tmp_path / "phy" / "spike_seconds.npy"), times[frames])


def test_clock_ignore_and_resume(gapped, result, trained, tmp_path):
    from spikewise.core.errors import OutputError

    recording, _ = gapped
    ignored = spikewise.sort(recording, model=trained, output=tmp_path / "out", clock="ignore", report=False)
    assert ignored.provenance["damage"]["num_stretches"] == 0
    with pytest.raises(OutputError, match="clock_hash was"):
        spikewise.sort(recording, model=trained, output=result.folder, clock="ignore", resume=True)
    spikewise.export_phy(tmp_path / "out", recording, tmp_path / "phy", traces="none")
    frames = np.load(tmp_path / "phy" / "spike_times.npy")
    seconds = np.load(tmp_path / "phy" / "spike_seconds.npy")
    np.testing.assert_allclose(seconds, 100 + frames / recording.sampling_frequency)


def test_run_sorter_keeps_the_times(gapped, result, trained, tmp_path):
    import spikeinterface.sorters as ss

    saved, times = gapped
    recording = NumpyRecording([saved.get_traces()], saved.sampling_frequency, channel_ids=saved.channel_ids)
    recording = recording.save(folder=tmp_path / "plain")
    recording.set_probegroup(saved.get_probegroup())
    recording.set_times(times, with_warning=False)  # only in the memory of this process
    sorting = ss.run_sorter("spikewise", recording, folder=tmp_path / "out", model=str(trained), report=False)
    np.testing.assert_array_equal(sorting.to_spike_vector(), result.sorting.to_spike_vector())
    facts = json.loads((tmp_path / "out" / "sorter_output" / "provenance.json").read_text())
    assert [one["kind"] for one in facts["damage"]["stretches"]] == ["time jump"]


def test_a_cluster_does_not_lose_times(gapped, trained, tmp_path):
    from spikewise.jobs.remote import make_remote_work
    from spikewise.models.checkpoint import load_model

    saved, times = gapped
    model = load_model(trained)
    plain = NumpyRecording([saved.get_traces()], RATE).save(folder=tmp_path / "plain")
    plain.set_times(times, with_warning=False)
    for recording in (plain, TimedRecording(saved, "parent")):
        sent = load(make_remote_work(recording, [], model, Config()).recording)
        np.testing.assert_array_equal(times_at(sent, np.arange(len(times)), 0), times)


def test_labels_of_one_channel_follow_the_clock(tmp_path):
    from spikewise.single_channel.sources import open_source, read_labels

    times = 100 + STEADY + gap(0.5)
    with_times(times).save(folder=tmp_path / "recording", progress_bar=False, verbose=False)
    (tmp_path / "labels.csv").write_text(f"time_s,unit_id\n{times[300]:.6f},1\n{times[60_000]:.6f},1\n")
    channel = open_source(tmp_path / "recording", RecordingConfig(), None)
    samples, _ = read_labels(tmp_path / "recording", tmp_path / "labels.csv", channel)
    assert samples.tolist() == [300, 60_000]
