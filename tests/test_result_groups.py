"""Reports and exports read the traces that were sorted, prepared with the settings and seed of the sort."""

import json

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording, load

import spikewise
from spikewise.core.config import Config
from spikewise.models.checkpoint import load_model
from spikewise.output.result import load_result
from spikewise.output.result_groups import groups_of, preparation_of
from spikewise.output.sorted_traces import traces_as_sorted
from spikewise.sorting import groups as groups_module
from spikewise.sorting.groups import Preparation, prepare_groups

OPTIONS = {"damage": "keep", "seed": 7}
DAMAGED = slice(40_000, 46_000)


@pytest.fixture(scope="module")
def recording(tetrode, tmp_path_factory):
    """The tetrode, with a stretch of a tenth of a second and more in which all channels stand still."""
    original = load(tetrode.recording)
    traces = original.get_traces().copy()
    traces[DAMAGED] = traces[DAMAGED.start]
    damaged = NumpyRecording([traces], original.sampling_frequency, channel_ids=original.channel_ids)
    damaged.set_probe(original.get_probe(), in_place=True)
    for name in ("gain_to_uV", "offset_to_uV"):
        damaged.set_property(name, original.get_property(name))
    return damaged.save(folder=tmp_path_factory.mktemp("damaged") / "recording")


@pytest.fixture(scope="module")
def result(recording, trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("result") / "sorted"
    return spikewise.sort(recording, model=trained, output=output, **OPTIONS)


def traces_of(groups) -> np.ndarray:
    (group,) = groups
    return np.array(group.reader.read(0, 0, DAMAGED.stop + 10_000))


def test_the_traces_of_a_result_are_those_that_were_sorted(result, recording, trained):
    model = load_model(trained)
    was_sorted = traces_of(prepare_groups(recording, Preparation.of(Config.from_options(**OPTIONS), model)))
    for folder_or_memory in (load_result(result.folder), result):
        np.testing.assert_array_equal(traces_of(groups_of(_stored(folder_or_memory), recording)), was_sorted)
    other = {**OPTIONS, "damage": "skip"}  # changes the traces
    prepared = prepare_groups(recording, Preparation.of(Config.from_options(**other), model))
    assert not np.array_equal(traces_of(prepared), was_sorted)


def _stored(result):
    from spikewise.output.result import StoredResult

    return StoredResult(result.sorting, result.model, result.provenance)


@pytest.mark.parametrize("output", ["report", "phy", "analyzer", "nwb"])
def test_each_output_prepares_with_the_settings_of_the_sort(result, recording, output, tmp_path, monkeypatch):
    seen = []
    prepare = groups_module.preprocess_recording

    def watched(part, settings, **options):
        seen.append((options["damage"].damage, options["seed"]))
        return prepare(part, settings, **options)

    monkeypatch.setattr(groups_module, "preprocess_recording", watched)
    if output == "report":
        spikewise.report(result.folder, tmp_path / "report.html", recording=recording)
    elif output == "phy":
        spikewise.export_phy(result.folder, recording, tmp_path / "phy")
    elif output == "analyzer":
        spikewise.analyze(result.folder, recording, spikes_per_unit=50)
    else:
        start = "2026-03-01T14:00:00+01:00"
        spikewise.export_nwb(result.folder, recording, tmp_path / "units.nwb", session_start_time=start)
    assert seen == [("keep", 7)]


def test_a_device_that_is_not_here_gives_way_to_the_usual_one(result):
    stored = load_result(result.folder)
    provenance = json.loads(json.dumps(stored.provenance))
    provenance["job"]["settings"]["sorting"]["device"] = "a card of another machine"
    preparation = preparation_of(type(stored)(stored.sorting, stored.model, provenance))
    assert (preparation.sorting.device, preparation.sorting.damage, preparation.seed) == ("auto", "keep", 7)
    del provenance["job"]  # results of early versions have none
    early = preparation_of(type(stored)(stored.sorting, stored.model, provenance))
    assert early.sorting.damage == "keep"


def test_a_sort_prepares_its_groups_once(recording, trained, tmp_path, monkeypatch):
    count = []
    prepare = groups_module.preprocess_recording
    monkeypatch.setattr(
        groups_module,
        "preprocess_recording",
        lambda *given, **options: count.append(1) or prepare(*given, **options),
    )
    spikewise.sort(recording, model=trained, output=tmp_path / "sorted")  # with its report
    assert len(count) == 1
    assert (tmp_path / "sorted" / "report.html").exists()


def test_exports_and_the_browser_show_the_bridged_traces(tetrode, trained, tmp_path):
    """One NaN, which a filter would spread, and one wild sample: the analyzer is that of the clean traces."""
    original = load(tetrode.recording)
    clean = original.get_traces(return_in_uV=True).astype(np.float32)
    spoilt = clean.copy()
    spoilt[50_000, 3], spoilt[90_000, 1] = np.nan, 1e30
    found = []
    for traces in (clean, spoilt):
        recording = NumpyRecording([traces], original.sampling_frequency, channel_ids=original.channel_ids)
        recording.set_probegroup(original.get_probegroup())
        recording.set_channel_gains(1.0)
        recording.set_channel_offsets(0.0)
        found.append((recording, spikewise.sort(recording, model=trained, report=False)))
    recording, of_spoilt = found[1]
    assert of_spoilt.provenance["damage"]["num_stretches"] == 2
    analyzers = [spikewise.analyze(result, made, spikes_per_unit=5000) for made, result in found]
    traces = [analyzer.recording.get_traces() for analyzer in analyzers]
    assert np.isfinite(traces[1]).all()
    far = np.ones(len(clean), bool)
    for sample in (50_000, 90_000):
        far[sample - 1000 : sample + 1000] = False
    assert np.abs(traces[1] - traces[0])[far].max() < 1e-3 * np.abs(traces[0]).max()
    amplitudes = analyzers[1].get_extension("spike_amplitudes").get_data()
    assert np.isfinite(amplitudes).all()
    medians = [one.get_extension("quality_metrics").get_data()["amplitude_median"] for one in analyzers]
    np.testing.assert_allclose(medians[1], medians[0], rtol=0.02)
    stored = _stored(of_spoilt)
    shown = traces_as_sorted(stored, recording, groups_of(stored, recording))  # what `spikewise gui` shows
    np.testing.assert_array_equal(shown.get_traces(), traces[1])
    saved = recording.save(folder=tmp_path / "recording", progress_bar=False, verbose=False)
    spikewise.analyze(of_spoilt, saved, output=tmp_path / "analyzer")
    again = load(tmp_path / "analyzer")
    cut = again.recording.get_traces(0, 49_000, 51_000)  # the filter's margin changes the last digits
    np.testing.assert_allclose(cut, traces[1][49_000:51_000], rtol=0, atol=0.01)
