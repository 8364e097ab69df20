"""Motion of the tissue: its files, traces without it, its estimate, and sorts of a probe that moves."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from commands import run
from probeinterface import generate_multi_columns_probe
from spikeinterface.core import NumpyRecording, NumpySorting, load
from spikeinterface.core.motion import Motion
from spikeinterface.generation import generate_drifting_recording

import spikewise
from spikewise.core.config import Config, EvaluationConfig
from spikewise.core.errors import SettingError
from spikewise.data.recordings.reader import TraceReader
from spikewise.data.spatial.mixing import mix_channels
from spikewise.data.spatial.motion import MotionOfFrames, displacement_at, load_motion
from spikewise.data.spatial.still_traces import StillTraces
from spikewise.data.spatial.whitening import noise_covariance, whitening_weights
from spikewise.discovery.motion.estimating import estimate_motion
from spikewise.discovery.neighbours import distances
from spikewise.output.matching import compare_sortings
from spikewise.output.motions import load_motions
from spikewise.output.result import load_result
from spikewise.output.result_groups import groups_of
from spikewise.output.unit_table import read_units
from spikewise.sorting.groups import Preparation, prepare_groups

RATE = 30000.0
SECONDS = 30.0
REACH_UM = 30.0
"""The tissue of the moving recording moves by as much up and down from 8 s on."""
QUICK = {"patches_per_unit": 150, "unit_steps": 60, "report": False}
COLUMNS = np.column_stack([np.tile([0.0, 32.0], 20), 10.0 * np.arange(40)])


def line(*displacement, segments=1):
    """A motion with bins at 1, 2, ... s and depths of 0 and 100 um, the same in all segments."""
    values = np.array(displacement, float)
    times = 1.0 + np.arange(len(values))
    return Motion([values] * segments, [times] * segments, np.array([0.0, 100.0]), "y")


# Files and numbers


def test_displacement_between_the_bins_and_beyond_them():
    motion = line([0, 10], [20, 30])
    moved = displacement_at(motion, np.array([0.0, 1.5, 9.0]), np.array([-5.0, 50.0, 200.0]), 0)
    assert moved == pytest.approx(np.array([[0, 5, 10], [10, 15, 20], [20, 25, 30]]))


def test_displacement_of_frames_of_several_segments():
    motion = Motion([np.array([[1.0]]), np.array([[2.0]])], [np.array([0.5])] * 2, np.array([0.0]), "y")
    of_frames = MotionOfFrames(motion, [100, 50], 100.0)
    assert of_frames.at(np.array([0, 99, 100, 149]), 3.0).tolist() == [1, 1, 2, 2]


def test_a_motion_of_spikeinterface_is_read(tmp_path):
    motion = line([0, 10], [20, 30])
    motion.save(tmp_path / "info" / "motion")
    assert load_motion(tmp_path / "info" / "motion", 1) == motion
    assert load_motion(tmp_path / "info", 1) == motion  # the folder of save_motion_info


@pytest.mark.parametrize(
    ("motion", "found"),
    [
        (Motion([np.zeros((2, 2))], [np.arange(2.0)], np.arange(2.0), "x"), "direction is 'x'"),
        (line([0, 1], segments=2), "it has 2 segments, the recording 1"),
        (line([0, np.nan]), "no finite numbers"),
        (line([0, 5000]), "largest displacement is 5000 um"),
        (Motion([np.zeros((2, 1))], [np.array([2.0, 1.0])], np.zeros(1), "y"), "do not ascend"),
    ],
)
def test_motions_that_cannot_be_used(motion, found, tmp_path):
    motion.save(tmp_path / "motion")
    with pytest.raises(SettingError, match=found):
        load_motion(tmp_path / "motion", 1)


def test_a_motion_is_never_unpickled(tmp_path):
    line([0, 1]).save(tmp_path / "motion")
    np.save(tmp_path / "motion" / "displacement_seg0.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(SettingError, match="cannot be read"):
        load_motion(tmp_path / "motion", 1)


def test_a_header_that_claims_more_than_the_file_has_is_refused(tmp_path):
    line([0, 1]).save(tmp_path / "motion")
    file = tmp_path / "motion" / "displacement_seg0.npy"
    file.write_bytes(file.read_bytes().replace(b"(1, 2)", b"(9, 9)"))
    with pytest.raises(SettingError, match="cannot be read"):
        load_motion(tmp_path / "motion", 1)


# Sums over near channels


def test_mixed_channels_are_weighted_sums():
    generator = np.random.default_rng(0)
    traces = generator.normal(size=(20, 50)).astype(np.float32)
    channels = generator.integers(0, 20, size=(20, 7))
    weights = generator.normal(size=(20, 7)).astype(np.float32)
    weights[:, 3] = 0
    mixed = np.empty_like(traces)
    mix_channels(traces, channels, weights, mixed)
    assert mixed == pytest.approx(np.einsum("rk,rks->rs", weights, traces[channels]), abs=1e-4)


def field(depth_um, moved):
    """Traces (num_samples, 40) of sources as wide as those of neurons, moved by so much at each sample."""
    far = COLUMNS[None, :, 1] - (depth_um + np.asarray(moved, float)[:, None])
    return np.exp(-0.5 * (far**2 + (COLUMNS[None, :, 0] - 10) ** 2) / 30**2).astype(np.float32)


@pytest.mark.parametrize("moved", [-27.0, -10.0, 4.0, 20.0])
def test_still_traces_are_those_of_a_probe_that_stood_still(moved):
    motion = Motion([np.full((1, 1), moved)], [np.zeros(1)], np.zeros(1), "y")
    still = StillTraces(motion, COLUMNS, RATE, np.zeros(40, bool))
    traces = still.apply(field(200, np.full(10, moved)), 0, 0)
    expected = StillTraces(line([0, 0]), COLUMNS, RATE, np.zeros(40, bool)).apply(
        field(200, np.zeros(10)), 0, 0
    )
    assert np.abs(traces - expected).max() < 0.05
    assert np.abs(field(200, np.full(10, moved)) - expected).max() > 0.1 * (abs(moved) >= 10)


def test_still_traces_follow_the_time_and_do_not_depend_on_the_cut():
    motion = Motion([np.array([[0.0], [30.0]])], [np.array([0.0, 1.0])], np.zeros(1), "y")
    still = StillTraces(motion, COLUMNS, 1000.0, np.zeros(40, bool))
    moving = field(200, 30 * (np.floor(np.arange(1000) / 100) + 0.5) / 10)  # as in steps of 0.1 s
    traces = still.apply(moving, 0, 0)
    assert np.abs(traces - traces[0]).max() < 0.06
    parts = [still.apply(moving[a:b], 0, a) for a, b in ((0, 37), (37, 410), (410, 1000))]
    assert (np.concatenate(parts) == traces).all()


def test_silent_channels_stay_and_are_not_used():
    is_silent = np.arange(40) == 7
    traces = field(200, np.full(5, 20.0))
    spoilt = traces.copy()
    spoilt[:, 7] = 1000
    still = StillTraces(line([20, 20]), COLUMNS, RATE, is_silent)
    one, other = still.apply(traces, 0, 0), still.apply(spoilt, 0, 0)
    assert (other[:, 7] == 1000).all()
    assert (np.delete(one, 7, axis=1) == np.delete(other, 7, axis=1)).all()


def test_whitened_noise_is_not_correlated():
    generator = np.random.default_rng(0)
    distance = distances(COLUMNS)
    root = np.linalg.cholesky(np.exp(-distance / 30) + 1e-6 * np.eye(40))
    noise = (root @ generator.normal(size=(40, 60000))).astype(np.float32)
    weights = whitening_weights(noise_covariance([noise]), distance)
    whitened = np.empty_like(noise)
    mix_channels(noise, *weights, whitened)
    before, after = np.corrcoef(noise), np.corrcoef(whitened)
    near = (distance > 0) & (distance < 40)
    assert np.abs(before[near]).mean() > 0.4
    assert np.abs(after[near]).mean() < 0.15
    assert whitened.std(axis=1) == pytest.approx(np.ones(40), abs=0.15)


def test_white_noise_stays_as_it_is():
    noise = np.random.default_rng(0).normal(size=(40, 60000)).astype(np.float32)
    assert whitening_weights(noise_covariance([noise]), distances(COLUMNS)) is None


def test_a_silent_channel_is_not_whitened():
    noise = np.repeat(np.random.default_rng(0).normal(size=(1, 9000)), 40, axis=0).astype(np.float32)
    noise[3] = 0
    channels, weights = whitening_weights(noise_covariance([noise]), distances(COLUMNS))
    assert (channels[3][weights[3] != 0] == [3]).all()
    others = np.arange(40) != 3
    assert not (channels[others][weights[others] != 0] == 3).any()


# A probe that moves


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """Folder with a moving recording, the same held still, the truth and the displacement."""
    folder = tmp_path_factory.mktemp("moving")
    probe = generate_multi_columns_probe(
        num_columns=2, num_contact_per_column=20, xpitch=32, ypitch=20, y_shift_per_column=[0, 10]
    )
    probe.set_device_channel_indices(np.arange(40))
    zigzag = {
        "drift_mode": "zigzag",
        "non_rigid_gradient": None,
        "t_start_drift": 8.0,
        "t_end_drift": None,
        "period_s": 22.0,
    }
    still, recording, truth, extra = generate_drifting_recording(
        num_units=12,
        duration=SECONDS,
        sampling_frequency=RATE,
        seed=3,
        probe=probe,
        generate_displacement_vector_kwargs={
            "displacement_sampling_frequency": 5.0,
            "drift_start_um": [0, REACH_UM],
            "drift_stop_um": [0, -REACH_UM],
            "drift_step_um": 1,
            "motion_list": [zigzag],
        },
        generate_sorting_kwargs={"firing_rates": (5.0, 15.0), "refractory_period_ms": 4.0},
        generate_noise_kwargs={"noise_levels": (6.0, 8.0), "spatial_decay": 25.0},
        extra_outputs=True,
    )
    recording.save(folder=folder / "recording")
    still.save(folder=folder / "still")
    truth.save(folder=folder / "truth")
    np.save(folder / "displacement.npy", extra["displacement_vectors"][:, 1, 0])
    return folder


def estimated(folder):
    recording = load(folder)
    (group,) = prepare_groups(recording, Preparation.of(Config()))
    return estimate_motion(group.reader, recording.get_channel_locations(), np.zeros(40, bool))


def test_the_motion_is_estimated(moving):
    estimate = estimated(moving / "recording")
    assert estimate.facts["followed"]
    truth = np.load(moving / "displacement.npy")
    times_s = np.arange(len(truth)) / 5.0
    error = displacement_at(estimate.motion, times_s, np.array([200.0]), 0)[:, 0] - truth
    assert np.median(np.abs(error - np.median(error))) < 2.0
    assert estimate.uncertainty_um[0].shape == estimate.motion.displacement[0].shape
    assert np.median(estimate.uncertainty_um[0]) < 2.0


def test_no_motion_is_invented(moving):
    estimate = estimated(moving / "still")
    assert estimate.motion is None
    assert estimate.facts["followed"] is False
    assert estimate.facts["range_um"] < 4


def test_noise_alone_does_not_move():
    noise = np.random.default_rng(0).normal(size=(round(25 * RATE), 40)).astype(np.float32)
    recording = NumpyRecording([noise], RATE)
    recording.set_dummy_probe_from_locations(COLUMNS)
    assert estimate_motion(TraceReader(recording), COLUMNS, np.zeros(40, bool)).motion is None


def labels_of(moving):
    """The true spikes of the first 8 s, before the motion."""
    truth = load(moving / "truth")
    trains = {unit: truth.get_unit_spike_train(unit) for unit in truth.unit_ids}
    return NumpySorting.from_unit_dict({u: t[t < 8 * RATE] for u, t in trains.items()}, RATE)


@pytest.fixture(scope="module")
def sorted_moving(moving, tmp_path_factory):
    """The result of a sort with labels from before the motion."""
    output = tmp_path_factory.mktemp("sorted") / "out"
    spikewise.sort(moving / "recording", labels=labels_of(moving), output=output, **QUICK)
    return output


def accuracy(sorting, moving):
    return compare_sortings(load(moving / "truth"), sorting, EvaluationConfig()).accuracy


def trains(sorting):
    return {str(unit): sorting.get_unit_spike_train(unit).tolist() for unit in sorting.unit_ids}


def test_a_sort_keeps_its_motion_and_opens_the_same_traces(moving, sorted_moving):
    facts = json.loads((sorted_moving / "provenance.json").read_text())["motion"]["0"]
    assert facts["followed"] is True
    result = load_result(sorted_moving)
    assert load_motions(sorted_moving, ["0"], 1)["0"] == result.motions["0"]
    recording = load(moving / "recording")
    (group,) = groups_of(result, recording)
    (raw,) = prepare_groups(recording, Preparation.of_model(result.model, Config().sorting, 0))
    still = raw.without_motion(result.motions["0"])
    assert (group.reader.read(0, 600000, 601000) == still.reader.read(0, 600000, 601000)).all()
    assert (group.reader.read(0, 600000, 601000) != raw.reader.read(0, 600000, 601000)).any()


def test_the_motion_given_as_a_file_gives_the_same_spikes_however_the_recording_is_cut(
    moving, sorted_moving, tmp_path
):
    given = {"labels": labels_of(moving), "motion": str(sorted_moving / "motion" / "0"), **QUICK}
    again = spikewise.sort(moving / "recording", shard_s=7.0, chunk_s=0.6, **given)
    assert trains(again.sorting) == trains(load_result(sorted_moving).sorting)
    assert again.motions == load_result(sorted_moving).motions  # of a result without a folder, too


def test_units_are_judged_on_the_traces_without_the_motion(moving, sorted_moving):
    found = read_units(sorted_moving, load_result(sorted_moving).model.unit_ids)
    held = spikewise.load_result(sorted_moving)
    in_memory = spikewise.SortingResult(held.sorting, held.model, held.provenance, motions=held.motions)
    for result in (sorted_moving, in_memory):
        again = spikewise.validate(result, moving / "recording")
        pd.testing.assert_frame_equal(again, found, check_dtype=False, rtol=1e-6)
    unaware = spikewise.SortingResult(held.sorting, held.model, held.provenance)
    other = spikewise.validate(unaware, moving / "recording")
    assert not np.allclose(other["snr"], found["snr"], rtol=1e-3, equal_nan=True)


def test_workers_of_a_cluster_remove_the_motion(moving, sorted_moving):
    model = sorted_moving / "model.safetensors"
    given = {"model": model, "motion": str(sorted_moving / "motion" / "0"), "report": False}
    far = spikewise.sort(moving / "recording", cluster="local:1", **given)
    assert trains(far.sorting) == trains(load_result(sorted_moving).sorting)


def test_a_sort_that_goes_on_does_not_estimate_again(moving, sorted_moving, tmp_path, monkeypatch):
    class Ended(BaseException):
        pass

    def tell(stage, done, total, note=""):
        if stage == "sorting":
            raise Ended

    given = {"labels": labels_of(moving), "output": tmp_path / "out", **QUICK}
    with pytest.raises(Ended):
        spikewise.sort(moving / "recording", progress=tell, **given)
    monkeypatch.setattr("spikewise.jobs.model.motion.estimate_motion", None)
    result = spikewise.sort(moving / "recording", resume=True, **given)
    assert trains(result.sorting) == trains(load_result(sorted_moving).sorting)


def test_a_sort_that_goes_on_keeps_the_motion_that_was_given(moving, sorted_moving, tmp_path):
    class Ended(BaseException):
        pass

    def tell(stage, done, total, note=""):
        if stage == "sorting":
            raise Ended

    folder = tmp_path / "given"
    shutil.copytree(sorted_moving / "motion" / "0", folder)
    given = {"labels": labels_of(moving), "output": tmp_path / "out", "motion": str(folder), **QUICK}
    with pytest.raises(Ended):
        spikewise.sort(moving / "recording", progress=tell, **given)
    np.save(folder / "displacement_seg0.npy", 0 * np.load(folder / "displacement_seg0.npy"))
    result = spikewise.sort(moving / "recording", resume=True, **given)
    assert trains(result.sorting) == trains(load_result(sorted_moving).sorting)


def test_sorting_is_better_without_the_motion(moving, sorted_moving):
    as_it_is = spikewise.sort(moving / "recording", labels=labels_of(moving), motion="none", **QUICK)
    assert as_it_is.provenance["motion"]["0"] == {"followed": False, "reason": "switched off"}
    without = accuracy(load_result(sorted_moving).sorting, moving)
    assert without > 0.7
    assert without > accuracy(as_it_is.sorting, moving) + 0.05


def test_a_motion_that_is_no_folder_is_refused(moving, tmp_path, capsys):
    ended = run(
        capsys, "sort", moving / "recording", "--output", tmp_path / "out", "--motion", tmp_path / "nothing"
    )
    assert ended.code == 2
    assert "is no motion of this recording" in ended.err
    assert "Traceback" not in ended.err
