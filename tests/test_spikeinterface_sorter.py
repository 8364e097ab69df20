"""Spikewise as a sorter of SpikeInterface: the contract of its sorters, and each way to run several."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import spikeinterface.sorters as ss
from commands import QUICK, Simulated
from spikeinterface.core import NumpyRecording, NumpySorting, append_recordings, load
from spikeinterface.sorters.utils import SpikeSortingError

import spikewise
from spikewise.jobs.spikeinterface_sorter import SpikewiseSorter

FAST = {name.strip("-").replace("-", "_"): value for name, value in QUICK.items()}


@pytest.fixture(scope="module")
def recording(tetrode: Simulated):
    return load(tetrode.recording)


def saved(recording, folder):
    """SpikeInterface runs sorters on recordings that are in files."""
    recording.save(folder=folder, n_jobs=1, progress_bar=False)
    return load(folder)


def sort_with(recording, tetrode, folder, **params):
    return ss.run_sorter("spikewise", recording, folder=folder, **{"labels": tetrode.truth, **FAST, **params})


@pytest.fixture(scope="module")
def folder(recording, tetrode, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "spikewise"
    sort_with(recording, tetrode, folder)
    return folder


def test_it_is_listed_described_and_json():
    assert "spikewise" in ss.available_sorters()
    assert "spikewise" in ss.installed_sorters()
    params = ss.get_default_sorter_params("spikewise")
    described = ss.get_sorter_params_description("spikewise")
    assert params.keys() == described.keys()
    assert all(isinstance(text, str) and len(text) > 10 for text in described.values())
    assert json.loads(json.dumps(params)) == params
    assert SpikewiseSorter.get_sorter_version() == spikewise.__version__
    assert ss.get_sorter_description("spikewise")


def test_it_sorts_as_spikewise_does(folder, recording, tetrode):
    found = ss.read_sorter_folder(folder)
    expected = spikewise.sort(tetrode.recording, labels=tetrode.truth, **FAST).sorting
    assert np.array_equal(found.to_spike_vector(), expected.to_spike_vector())
    assert found.has_recording()
    assert found.sorting_info["params"]["sorter_params"]["epochs"] == FAST["epochs"]
    assert spikewise.evaluate(tetrode.truth, found).accuracy > 0.9
    provenance = json.loads((folder / "sorter_output" / "provenance.json").read_text())
    assert provenance["result"]["num_spikes"] == len(found.to_spike_vector())


def test_a_folder_is_kept_replaced_or_deleted_as_asked(folder, recording, tetrode, tmp_path):
    model = folder / "sorter_output" / "model.safetensors"
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    with pytest.raises(ValueError, match="already exists"):
        sort_with(recording, tetrode, copy, labels=None, model=model)
    again = ss.run_sorter("spikewise", recording, copy, True, True, model=str(model))  # replace, then delete
    assert not (copy / "sorter_output").exists()
    assert np.array_equal(again.to_spike_vector(), ss.read_sorter_folder(folder).to_spike_vector())


def test_what_cannot_be_used_is_told_before_anything_runs(recording, tetrode, tmp_path):
    for number, (params, told) in enumerate(
        [
            ({"epochz": 3}, "epochz"),
            ({"threshold": 7.0}, "at most 0.99"),
            ({"probe": "linear-9"}, "4"),
        ]
    ):
        with pytest.raises(ValueError, match=told):
            sort_with(recording, tetrode, tmp_path / str(number), **params)
    bare = saved(NumpyRecording([np.zeros((30000, 4), np.float32)], 30000), tmp_path / "traces")
    with pytest.raises(spikewise.SpikewiseError, match="has no positions of its 4 channels"):
        sort_with(bare, tetrode, tmp_path / "bare")
    with pytest.raises(SpikeSortingError, match="no labels at"):
        sort_with(recording, tetrode, tmp_path / "absent", labels="nowhere")
    silent = ss.run_sorter(
        "spikewise", recording, tmp_path / "log", labels="nowhere", raise_error=False, with_output=False
    )
    assert silent is None
    assert json.loads((tmp_path / "log" / "spikeinterface_log.json").read_text())["error"] is True


def test_segments_and_labels_as_an_object(recording, tetrode, tmp_path):
    traces = recording.get_traces()
    halves = [NumpyRecording([traces[:120000]], 30000), NumpyRecording([traces[120000:]], 30000)]
    joined = append_recordings(halves)
    joined.set_probe(recording.get_probe())
    joined = saved(joined, tmp_path / "traces")
    truth = load(tetrode.truth)
    trains = [
        {
            unit: truth.get_unit_spike_train(unit, start_frame=start, end_frame=start + 120000) - start
            for unit in truth.unit_ids
        }
        for start in (0, 120000)
    ]
    labels = NumpySorting.from_unit_dict(trains, 30000)
    found = sort_with(joined, tetrode, tmp_path / "run", labels=labels)
    assert found.get_num_segments() == 2
    assert spikewise.evaluate(labels, found).accuracy > 0.85


def test_a_kept_model_is_not_learnt_again(recording, tetrode, tmp_path, monkeypatch):
    cache = {"cache_folder": tmp_path / "cache"}
    first = sort_with(recording, tetrode, tmp_path / "one", **cache)
    (model,) = (tmp_path / "cache").iterdir()
    written = model.stat().st_mtime_ns
    second = sort_with(recording, tetrode, tmp_path / "two", chunk_s=1.0, **cache)
    assert np.array_equal(first.to_spike_vector(), second.to_spike_vector())
    assert [model.stat().st_mtime_ns] == [file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()]
    assert model.stat().st_mtime_ns == written
    sort_with(recording, tetrode, tmp_path / "three", seed=4, **cache)
    assert len(list((tmp_path / "cache").iterdir())) == 2


SCRIPT = """
import importlib, multiprocessing, sys
import spikeinterface.sorters as ss
from spikeinterface.core import load
{first}
if __name__ == "__main__":
    {setup}
    recording = load({recording!r})
    jobs = [
        dict(sorter_name="spikewise", recording=recording, folder={output!r} + str(job), model={model!r})
        for job in range(2)
    ]
    ss.run_sorter_jobs(jobs, engine={engine!r}, engine_kwargs=options)
    print([len(ss.read_sorter_folder({output!r} + str(job)).to_spike_vector()) for job in range(2)])
"""
DASK = """from dask.distributed import Client
    client = Client(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None)
    client.run(importlib.import_module, "spikewise")
    options = dict(client=client)"""
POOL = "options = dict(max_workers=1, mp_context=multiprocessing.get_context('{}'))"


@pytest.mark.parametrize(
    ("engine", "setup"),
    [
        ("loop", "options = None"),
        pytest.param("processpoolexecutor", POOL.format("fork"), marks=pytest.mark.slow),
        ("processpoolexecutor", POOL.format("spawn")),
        pytest.param("dask", DASK, marks=pytest.mark.slow),
    ],
)
def test_jobs_on_each_engine(engine, setup, folder, recording, tetrode, tmp_path):
    """As the docs say: the workers import spikewise, each engine in its way."""
    if engine == "dask":
        pytest.importorskip("distributed")
    text = SCRIPT.format(
        first="import spikewise",
        setup=setup,
        engine=engine,
        recording=str(tetrode.recording),
        model=str(folder / "sorter_output" / "model.safetensors"),
        output=str(tmp_path / "job"),
    )
    script = tmp_path / "jobs.py"
    script.write_text(text)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    count = len(ss.read_sorter_folder(folder).to_spike_vector())
    assert done.stdout.splitlines()[-1] == f"[{count}, {count}]"


def test_groups_one_by_one(folder, recording, tetrode, tmp_path):
    """run_sorter_by_property: a model of each group would differ, so each learns from its own labels."""
    traces = np.hstack([recording.get_traces()] * 2)
    both = NumpyRecording([traces], 30000)
    positions = np.vstack([recording.get_channel_locations(), recording.get_channel_locations() + 500])
    both.set_dummy_probe_from_locations(positions)
    both.set_property("group", ["a"] * 4 + ["b"] * 4)
    both = saved(both, tmp_path / "traces")
    found = ss.run_sorter_by_property(
        "spikewise", both, "group", tmp_path / "by", labels=str(tetrode.truth), **FAST
    )
    assert found.get_num_units() == 6
    assert set(found.get_property("group")) == {"a", "b"}


LATER = """
import sys, time
start = time.perf_counter()
import spikewise
took = time.perf_counter() - start
assert "spikeinterface" not in sys.modules and "numpy" not in sys.modules
import spikeinterface.sorters as ss
import spikeinterface.sorters.sorterlist as listed
assert "spikewise" in ss.sorter_dict and listed.__spec__.loader.get_source(listed.__name__)
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("spikewise")]
assert [s.sorter_name for s in ss.sorter_full_list].count("spikewise") == 1
print(took)
"""


def test_importing_spikewise_is_quick_and_spikeinterface_may_come_later():
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", LATER], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < min(0.3, time.perf_counter() - started)
