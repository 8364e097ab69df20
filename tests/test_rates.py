"""Sampling frequencies that programs round are those of one recording; the result has the recording's."""

import json

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording, NumpySorting, load

import spikewise
from spikewise.core.errors import CheckpointError, LabelsError
from spikewise.core.rates import is_same_rate
from spikewise.output.result import load_result

PAIRS = [
    (23199.090358491783, 23199.09),
    (30000.000000000182, 30000.0),
    (30000.128205, 30000.13),
    (29999.5, 30000.0),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_rounded_rates_are_the_same(first, second):
    assert is_same_rate(first, second)
    assert is_same_rate(second, first)
    assert not is_same_rate(30000.0, 30031.0)
    trains = {0: np.arange(100, 60000, 997), 1: np.arange(300, 60000, 1013)}
    truth, found = (NumpySorting.from_unit_dict([trains], rate) for rate in (first, second))
    assert spikewise.evaluate(truth, found).accuracy == 1.0
    assert spikewise.evaluate(found, truth, interval=(0, 1)).accuracy == 1.0


def test_other_rates_are_told_with_all_digits():
    trains = {0: np.arange(100, 60000, 997)}
    sortings = [NumpySorting.from_unit_dict([trains], rate) for rate in (30000.0, 30031.25)]
    with pytest.raises(LabelsError, match=r"30000 Hz and 30031\.25 Hz"):
        spikewise.evaluate(*sortings)


def at_rate(tetrode, rate, folder=None):
    original = load(tetrode.recording)
    recording = NumpyRecording([original.get_traces()], rate, channel_ids=original.channel_ids)
    recording.set_probegroup(original.get_probegroup())
    return recording if folder is None else recording.save(folder=folder)


def test_the_result_of_a_model_has_the_rate_of_the_recording(tetrode, trained, tmp_path):
    known = spikewise.load_model(trained).sampling_frequency
    rate = known * (1 - 1e-5)
    recording = at_rate(tetrode, rate, tmp_path / "recording")
    result = spikewise.sort(recording, model=trained, output=tmp_path / "out")
    assert result.sorting.sampling_frequency == rate
    assert load_result(tmp_path / "out").sorting.sampling_frequency == rate
    resumed = spikewise.sort(recording, model=trained, output=tmp_path / "out", resume=True)
    np.testing.assert_array_equal(resumed.sorting.to_spike_vector(), result.sorting.to_spike_vector())
    spikewise.report(tmp_path / "out", tmp_path / "report.html", recording=recording, truth=tetrode.truth)
    spikewise.export_phy(tmp_path / "out", recording, tmp_path / "phy")
    assert f"sample_rate = {rate!r}" in (tmp_path / "phy" / "params.py").read_text()
    analyzer = spikewise.analyze(tmp_path / "out", recording, spikes_per_unit=50)
    assert analyzer.sampling_frequency == rate
    with pytest.raises(CheckpointError, match=r"is sampled at 30300 Hz.*was trained at"):
        spikewise.sort(at_rate(tetrode, 30300.0), model=trained)


def test_a_result_of_an_earlier_version_is_read(tetrode, trained, tmp_path):
    """It had the rate of the model in its sorting, and that of the recording in its provenance."""
    known = spikewise.load_model(trained).sampling_frequency
    rate = known * (1 - 1e-5)
    recording = at_rate(tetrode, rate)
    spikewise.sort(recording, model=trained, output=tmp_path / "out", report=False)
    info = tmp_path / "out" / "sorting" / "numpysorting_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "sampling_frequency": known}))
    stored = load_result(tmp_path / "out")
    assert stored.sorting.sampling_frequency == rate
    spikewise.analyze(tmp_path / "out", recording, spikes_per_unit=50)
