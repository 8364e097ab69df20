"""Damaged signals: found alike however they are cut, bridged, listed with their times, and without spikes."""

import itertools
import json

import numpy as np
import pytest
from commands import RATE, array_options, succeed, write_array
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeinterface.core import NumpyRecording, NumpySorting

import spikewise
from spikewise.core.config import PreprocessingConfig, SortingConfig
from spikewise.data.recordings.damage import (
    ALL_CHANNELS,
    KINDS,
    find_time_jumps,
    measure_limits,
    samples_of,
    union,
)
from spikewise.data.recordings.preprocessing import preprocess_recording
from spikewise.data.recordings.probes import attach_probe
from spikewise.data.recordings.reader import TraceReader
from spikewise.data.recordings.repair import RepairedRecording
from spikewise.sorting.damaged import summarise_damage

SMALL = {"patches_per_unit": 1500, "unit_steps": 150}
NUM_SAMPLES = 12000


def noise(num_channels=6, num_samples=NUM_SAMPLES, dtype=np.int16, seed=0) -> np.ndarray:
    """White noise with a standard deviation of 20 steps around 100."""
    return (np.random.default_rng(seed).normal(100, 20, (num_samples, num_channels))).astype(dtype)


def repaired(traces, clean=None) -> RepairedRecording:
    """A view of traces that knows what they are like where nothing is damaged."""
    recording = NumpyRecording([traces], RATE)
    limits = measure_limits(recording if clean is None else NumpyRecording([clean], RATE), None, 0)
    return RepairedRecording(recording, limits.centers, limits.noise_levels, limits.artefact_noise)


def stretches(recording, start=0, stop=NUM_SAMPLES) -> list[tuple]:
    return [
        (int(s["start"]), int(s["stop"]), int(s["channel_index"]), KINDS[s["kind"]])
        for s in recording.damage(0, start, stop)
    ]


def test_clean_traces_have_no_damage_and_stay_as_they_are():
    for dtype in (np.int16, np.float32):
        traces = noise(dtype=dtype)
        recording = repaired(traces)
        assert stretches(recording) == []
        assert np.array_equal(recording.get_traces(), traces)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(0, "zeros"), (32767, "saturated"), (-32768, "saturated"), (4000, "saturated"), (103, "constant")],
)
def test_flat_stretches_are_found_with_their_kind(value, kind):
    clean, margin = noise(), RATE * 0.5 / 1000
    traces = clean.copy()
    traces[5000:5600] = value
    (found,) = [one for one in stretches(repaired(traces, clean)) if one[3] == kind]
    assert found[2] == ALL_CHANNELS
    assert found[0] == pytest.approx(5000 - margin, abs=2)
    assert found[1] == pytest.approx(5600 + margin, abs=2)
    traces = clean.copy()
    traces[5000:5600, 2] = value
    assert {(channel, name) for _, _, channel, name in stretches(repaired(traces, clean))} == {(2, kind)}


def test_what_is_shorter_than_a_millisecond_or_reaches_few_channels_is_no_damage():
    clean = noise(8)
    traces = clean.copy()
    traces[3000:3025] = 0  # steps of 100, five standard deviations, and 25 samples of silence
    traces[7000:7010, :3] += 4000
    assert stretches(repaired(traces, clean)) == []


def test_artefacts_that_reach_all_channels_are_found():
    clean = noise(8)
    traces = clean.copy()
    traces[7000:7010] += 8000
    ((start, stop, channel, kind),) = stretches(repaired(traces, clean))
    assert (channel, kind) == (ALL_CHANNELS, "artefact")
    assert 7000 - 90 < start < 7000 - 30 + 6
    assert 7010 + 60 < stop < 7010 + 120


def test_a_spike_on_all_wires_of_a_tetrode_is_no_artefact():
    traces = noise(4, dtype=np.float32)
    traces[6000:6030] -= 20 * 60 * np.hanning(30)[:, None]  # a trough of 60 standard deviations in 0.5 ms
    assert stretches(repaired(traces)) == []


def test_what_an_artefact_leaves_behind_on_few_channels_belongs_to_it():
    """It falls below 80 standard deviations long before spikes can be told from it."""
    clean = noise(4, dtype=np.float32)
    lag_ms, traces = np.arange(NUM_SAMPLES - 6000) * 1000 / RATE, clean.copy()
    decay = 20 * 300 * np.exp(-lag_ms / 2) * np.sign(np.cos(2 * np.pi * lag_ms * 0.5))
    traces[6000:] += decay[:, None].astype(np.float32)
    traces[9000:9030] -= 20 * 60 * np.hanning(30)[:, None].astype(np.float32)  # a spike, long after
    ((start, stop, _, kind),) = stretches(repaired(traces, clean))
    assert kind == "artefact"
    assert 6000 - 60 < start <= 6000 - 30
    last_ms = 2 * np.log(2 * 300 / 20)  # each half period it jumps by twice its size: by 20 until here
    assert 6000 + (last_ms - 1.2 + 3) * RATE / 1000 < stop < 6000 + (last_ms + 3.3) * RATE / 1000


def test_spikes_shortly_before_an_artefact_are_not_its_tail():
    traces = noise(4, dtype=np.float32)
    clean = traces.copy()
    traces[5700:5730] -= 20 * 60 * np.hanning(30)[:, None].astype(np.float32)
    traces[6000:6010] += 8000
    ((start, _, _, _),) = stretches(repaired(traces, clean))
    assert start > 6000 - 60


def test_not_a_number_is_found_and_bridged():
    clean = noise(dtype=np.float32)
    traces = clean.copy()
    traces[4000:4200, 1] = np.nan
    traces[8000, :] = np.inf
    recording = repaired(traces, clean)
    assert {(channel, kind) for _, _, channel, kind in stretches(recording)} == {
        (1, "not finite"),
        (ALL_CHANNELS, "not finite"),
    }
    bridged = recording.get_traces()
    assert np.isfinite(bridged).all()
    far = np.ones(len(traces), bool)
    far[3900:4300] = far[7900:8100] = False
    assert np.array_equal(bridged[far], traces[far])
    assert np.array_equal(bridged[3900:4300, 0], traces[3900:4300, 0])  # the other channels stay


def test_a_channel_without_noise_is_not_judged():
    traces = noise()
    traces[:, 3] = 7
    assert stretches(repaired(traces)) == []


def test_a_channel_that_dies_is_damaged_from_then_on():
    traces = noise()
    traces[7000:, 4] = 0
    ((start, stop, channel, kind),) = stretches(repaired(traces))
    assert (stop, channel, kind) == (NUM_SAMPLES, 4, "zeros")
    assert start == pytest.approx(7000 - 15, abs=2)


def test_jumps_of_the_clock_are_found():
    times = np.arange(1000) / RATE
    assert len(find_time_jumps(times, 0, RATE)) == 0
    times[400:] += 0.5
    times[700:] -= 0.1
    found = find_time_jumps(times, 20000, RATE)
    assert [(one["start"], one["stop"]) for one in found] == [(20370, 20430), (20670, 20730)]
    recording = NumpyRecording([noise(num_samples=1000)], RATE)
    recording.set_times(times, with_warning=False)
    kinds = {one[3] for one in stretches(RepairedRecording(recording, [100] * 6, [20] * 6, 80.0), 0, 1000)}
    assert kinds == {"time jump"}


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_damage_and_bridges_are_the_same_however_they_are_cut(data):
    """At any place, of any kind, read in parts of any size: the same to the bit."""
    clean = noise(dtype=np.float32)
    traces = clean.copy()
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, NUM_SAMPLES - 1))
        where = slice(start, start + data.draw(st.sampled_from([1, 29, 30, 31, 200, 299, 300, 301, 2000])))
        value = data.draw(st.sampled_from([0.0, 9000.0, np.nan, None]))
        channels = data.draw(st.sampled_from([slice(None), slice(0, 1), slice(0, 5)]))
        traces[where, channels] = traces[where, channels] + 5000 if value is None else value
    whole, size = repaired(traces, clean), data.draw(st.integers(40, 5000))
    cuts = list(range(0, NUM_SAMPLES, size)) + [NUM_SAMPLES]
    parts = repaired(traces, clean)
    pieces = [parts.get_traces(0, a, b) for a, b in itertools.pairwise(cuts)]
    assert np.array_equal(np.concatenate(pieces), whole.get_traces())
    for channel in range(ALL_CHANNELS, 6):
        covered = []
        for ends in ([0, NUM_SAMPLES], cuts):
            found = [whole.damage(0, a, b) for a, b in itertools.pairwise(ends)]
            found = np.concatenate(found)
            found = found[found["channel_index"] == channel]
            covered.append(union(found["start"], found["stop"]))
        assert np.array_equal(covered[0], covered[1])


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.int16, 32767), (np.int16, -32768), (np.int32, 2**31 - 1), (np.float32, 1e30), (np.float64, -1e300)],
)
def test_a_sample_that_no_electrode_gives_is_bridged(dtype, value):
    clean = noise(dtype=dtype)
    traces = clean.copy()
    traces[7000, 2] = value
    traces[9000:9002, 4] = value
    traces[0, 1] = value
    recording = repaired(traces)
    step = 0 if dtype is np.int16 else samples_of(0.2, RATE)  # more than 16 bits: a step is seen, too
    assert stretches(recording) == [
        (0, 16 + step, 1, "glitch"),
        (6985, 7016 + step, 2, "glitch"),
        (8985, 9017 + step, 4, "glitch"),
    ]
    assert np.abs(recording.get_traces().astype(float) - 100).max() < 150
    assert np.array_equal(recording.get_traces()[7016 + step :, 2], clean[7016 + step :, 2])


def test_large_spikes_steps_and_slow_waves_are_no_glitches():
    traces = noise(dtype=np.float32)
    traces[3000:3008, 0] -= 20 * 200 * np.hanning(8)  # a quarter of a millisecond, 200 standard deviations
    traces[5000:, 1] += 20 * 2000
    traces[:, 2] += 20 * 5000 * np.sin(np.arange(NUM_SAMPLES) / 2000)
    assert stretches(repaired(traces)) == []
    burst = noise(dtype=np.int32)
    burst[5000:5012, 3] = 2**31 - 1  # too long for a glitch, too large for a signal
    ((start, stop, channel, kind),) = stretches(repaired(burst))
    assert (channel, kind) == (3, "glitch")
    assert start == 4985
    assert 5012 < stop < 5040


@pytest.mark.parametrize("wrong", ["float32", "float64", "uint16", ">i2", "float16"])
def test_samples_that_were_read_with_another_type_are_named(wrong, tmp_path):
    (10 * (noise(4) - 100)).tofile(tmp_path / "a.dat")
    options = {"sampling_frequency": RATE, "probe": "tetrode", "dtype": wrong, "num_channels": 4}
    with pytest.raises(spikewise.SpikewiseError, match=r"--dtype"):
        spikewise.sort(tmp_path / "a.dat", **options)


def test_one_channel_of_a_wrong_type_is_named():
    from spikewise.core.errors import WaveformsError
    from spikewise.single_channel.config import SpikeDetectionConfig
    from spikewise.single_channel.raw_channel import bandpass

    signal = noise(1, dtype=np.float32)[:, 0]
    signal[5000] = 1e30
    with pytest.raises(WaveformsError, match=r"1e\+30.*no sample of an electrode.*--dtype"):
        bandpass(signal, RATE, SpikeDetectionConfig())


def test_unions_join_what_overlaps_or_touches():
    starts, stops = union(np.array([5, 0, 9, 20]), np.array([9, 3, 12, 30]))
    assert (starts.tolist(), stops.tolist()) == ([0, 5, 20], [3, 12, 30])


def test_a_channel_that_dies_keeps_its_gain():
    """Chunks in which it is dead say nothing of its noise."""
    clean = np.random.default_rng(3).normal(0, 20, (40 * RATE, 4)).astype(np.int16)
    died = clean.copy()
    died[len(died) // 2 :, 2] = 0
    levels = []
    for traces in (clean, died):
        recording = attach_probe(NumpyRecording([traces], RATE), "tetrode")
        levels.append(preprocess_recording(recording, PreprocessingConfig()).noise_levels)
    assert levels[1] == pytest.approx(levels[0], rel=0.02)


def test_readers_tell_of_damage_in_blocks_that_were_not_read():
    traces = np.random.default_rng(0).normal(0, 20, (3 * RATE, 4)).astype(np.int16)
    traces[RATE - 500 : RATE + 500] = 0
    recording = attach_probe(NumpyRecording([traces], RATE), "tetrode")
    found = []
    for read in (False, True):
        made = preprocess_recording(recording, PreprocessingConfig())
        reader = TraceReader(made.recording, repaired=made.repaired)
        if read:
            reader.read(0, 0, 3 * RATE)
        found.append(reader.damage(0, 0, 3 * RATE))
    assert len(found[0]) == 2  # one stretch, cut where the block ends
    assert np.array_equal(*found)
    kept = preprocess_recording(recording, PreprocessingConfig(), damage=SortingConfig(damage="keep"))
    assert kept.repaired is None
    assert len(TraceReader(kept.recording).damage(0, 0, 3 * RATE)) == 0


# From end to end


@pytest.fixture(scope="module")
def scene():
    """A simulated probe, its raw steps, and the same with damage in 2 % of the time, labels included."""
    simulation = spikewise.simulate(probe="linear-16", num_units=6, duration_s=24, seed=3, noise_uV=8.0)
    clean = np.rint(simulation.recording.get_traces() / 0.5).astype(np.int16)
    damaged, is_damaged = clean.copy(), np.zeros(len(clean), bool)
    rng = np.random.default_rng(1)
    time_s = np.arange(600) / RATE
    pulse = np.exp(-time_s / 0.002) * np.sign(np.sin(time_s * 2 * np.pi * 500))
    for index, second in enumerate(range(24)):
        start = second * RATE + int(rng.integers(1000, RATE - 2000))
        where = slice(start, start + 600)
        if index % 3 == 0:
            damaged[where] = 0
        elif index % 3 == 1:
            damaged[where] = 32767
        else:
            damaged[where] = clean[where] + pulse[:, None] * rng.uniform(6000, 18000, 16)
        is_damaged[where] = True
    return simulation, clean, damaged, is_damaged


def recording_of(simulation, traces):
    recording = NumpyRecording([traces], RATE, channel_ids=simulation.recording.channel_ids)
    recording.set_probegroup(simulation.recording.get_probegroup())
    return recording


def sort_traces(simulation, traces, **options):
    recording = recording_of(simulation, traces)
    labels = {"labels": simulation.sorting, "label_interval": (0, 12), "labels_per_unit": 20}
    return spikewise.sort(recording, seed=0, **labels, **SMALL, **options)


@pytest.fixture(scope="module")
def sorted_damage(scene):
    """What was found in the damaged recording, with labels from its damaged first half."""
    return sort_traces(scene[0], scene[2])


def outside(sorting, is_damaged):
    spikes = sorting.to_spike_vector()
    return NumpySorting(spikes[~is_damaged[spikes["sample_index"]]], RATE, sorting.unit_ids)


def test_damage_in_two_percent_of_the_time_costs_nothing_outside_and_invents_nothing_inside(
    scene, sorted_damage
):
    simulation, clean, _, is_damaged = scene
    reference, result = sort_traces(simulation, clean), sorted_damage
    truth = outside(simulation.sorting, is_damaged)
    accuracy = [
        spikewise.evaluate(truth, outside(one.sorting, is_damaged), interval=(12, 24)).accuracy
        for one in (reference, result)
    ]
    assert accuracy[0] > 0.95
    assert accuracy[1] > accuracy[0] - 0.015, accuracy  # a spike in five hundred is 0.002 of the truth here
    samples = result.sorting.to_spike_vector()["sample_index"]
    assert is_damaged[samples].mean() < 0.01
    facts = result.provenance["damage"]
    assert reference.provenance["damage"]["num_stretches"] == 0
    assert {one["kind"] for one in facts["stretches"]} == {"zeros", "saturated", "artefact"}
    listed = np.zeros(len(is_damaged), bool)
    for one in facts["stretches"]:
        listed[round(one["start_s"] * RATE) : round(one["stop_s"] * RATE)] = True
    assert not listed[samples].any()
    starts = np.flatnonzero(np.diff(is_damaged.astype(int)) == 1) + 1
    assert listed[starts].all()
    assert summarise_damage(facts).startswith(f"{facts['num_stretches']} damaged stretches (")


def test_spikes_and_damage_do_not_depend_on_the_chunks(scene, sorted_damage):
    simulation, _, damaged, _ = scene
    one = sorted_damage
    other = spikewise.sort(recording_of(simulation, damaged), model=one.model, chunk_s=0.37)
    for name in ("result", "damage"):
        assert one.provenance[name] == other.provenance[name]


def test_units_away_from_a_channel_that_dies_go_on(scene, sorted_damage):
    simulation, clean, _, _ = scene
    died = clean.copy()
    died[18 * RATE :, 0] = 0
    result = spikewise.sort(recording_of(simulation, died), model=sorted_damage.model)
    (one,) = result.provenance["damage"]["stretches"]
    assert one["channels"] == [str(simulation.recording.channel_ids[0])]
    assert (one["start_s"], one["stop_s"]) == (pytest.approx(18, abs=0.002), 24)
    scores = spikewise.evaluate(simulation.sorting, result.sorting, interval=(18, 24)).units
    assert scores["accuracy"].median() > 0.9


def test_the_command_tells_of_damage_in_one_line(capsys, tetrode, trained, tmp_path):
    traces = tetrode.traces.copy()
    traces[60000:60600] = 0
    file = write_array(tmp_path / "traces.npy", traces)
    outcome = succeed(capsys, "sort", file, array_options(), {"--model": trained, "-o": tmp_path / "out"})
    (line,) = [line for line in outcome.err.splitlines() if "damaged" in line]
    assert "1 zeros" in line
    (one,) = json.loads((tmp_path / "out" / "provenance.json").read_text())["damage"]["stretches"]
    assert (one["kind"], one["channels"], one["segment"]) == ("zeros", "all", 0)
    assert one["start_s"] == pytest.approx(2.0, abs=0.002)
    page = tmp_path / "report.html"
    succeed(capsys, "report", tmp_path / "out", {"-o": page})
    assert "1 damaged stretches (1 zeros)" in page.read_text()
