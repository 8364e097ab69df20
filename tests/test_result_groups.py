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
    for other in ({**OPTIONS, "damage": "skip"}, {**OPTIONS, "seed": 0}):  # both settings change the traces
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
