"""A sort that was ended at any moment goes on, and gives the same spikes to the bit."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, Simulated, assert_told, contents, run, start, succeed
from spikeinterface.core import load

import spikewise
from spikewise.jobs.state.unfinished import Unfinished
from spikewise.learning.unit_progress import load_progress
from spikewise.models.checkpoint import load_model

SHORT = {"--shard-s": 1, "--chunk-s": 0.5}
"""Options that cut eight seconds into eight shards."""
UNITS = {"patches_per_unit": 100, "unit_steps": 10}
"""Effort of a training of the default design that takes a second; there are two rounds."""


class Ended(BaseException):
    """The end of a process, as far as one in the same process can tell."""


def ending(stage: str, after: int):
    """Return a progress callback that ends the work when it is told of a stage for so many times."""
    count = 0

    def tell(name: str, done: float, total: float, note: str = "") -> None:
        nonlocal count
        count += name.startswith(stage)
        if count == after:
            raise Ended

    return tell


@pytest.fixture(scope="module")
def many_units(tmp_path_factory) -> Simulated:
    """Eighteen units; what is learnt is kept after 16 and after 18."""
    folder = tmp_path_factory.mktemp("many") / "made"
    return Simulated(folder, **{"probe": "linear-16", "num-units": 18, "duration-s": 6, "seed": 5})


@pytest.fixture(scope="module")
def undisturbed(many_units):
    """What an undisturbed sort of it gives."""
    return spikewise.sort(many_units.recording, labels=many_units.truth, shard_s=1.0, **UNITS)


@pytest.mark.parametrize(
    ("stage", "after"),
    [("learning", 3), ("searching", 2), ("learning", 39), ("sorting", 2), ("sorting", 10)],
)
def test_a_sort_goes_on_wherever_it_was_ended(many_units, undisturbed, tmp_path, caplog, stage, after):
    given = {"labels": many_units.truth, "output": tmp_path / "out", "shard_s": 1.0, "chunk_s": 0.5, **UNITS}
    with pytest.raises(Ended):
        spikewise.sort(many_units.recording, progress=ending(stage, after), **given)
    assert not (tmp_path / "out" / "provenance.json").exists()
    told = []
    resumed = spikewise.sort(
        many_units.recording, progress=lambda *what: told.append(what), resume=True, **given
    )
    expected = undisturbed.provenance
    assert resumed.provenance["result"] == expected["result"]
    assert resumed.provenance["model"]["hash"] == expected["model"]["hash"]
    assert expected["result"]["num_spikes"] > 100
    assert contents(tmp_path / "out").keys() >= {"sorting", "model.safetensors", "provenance.json"}
    assert not (tmp_path / "out" / "unfinished").exists()
    stages = [name for name, *_ in told]
    is_learnt = any(name.startswith("learning") for name in stages)
    assert is_learnt == (stage != "sorting")  # what is finished is not done again
    if stage == "sorting":
        assert told[stages.index("sorting")][1] == (4 if after == 10 else 0)  # the seconds that are finished


def test_training_goes_on_after_the_last_block(many_units, tmp_path, monkeypatch):
    """What was kept of the first 16 units is taken as it is: a change in it stays."""
    given = {"labels": many_units.truth, "output": tmp_path / "out", **UNITS}
    with pytest.raises(Ended):
        spikewise.sort(many_units.recording, progress=ending("learning", 39), **given)  # 17 units of round 2
    file = tmp_path / "out" / "unfinished" / "training-0.safetensors"
    done = load_progress(file)
    assert (done.number, len(done.unit_losses), len(done.train_loss)) == (1, 16, 1)
    done.network["units.bias"][3] = 7.0
    done.save(file)
    model = spikewise.sort(many_units.recording, resume=True, **given).model
    assert model.groups[0].network.units.bias[3] == 7.0


def test_a_damaged_checkpoint_begins_the_training_anew(many_units, undisturbed, tmp_path, caplog):
    given = {"labels": many_units.truth, "output": tmp_path / "out", "shard_s": 1.0, **UNITS}
    with pytest.raises(Ended):
        spikewise.sort(many_units.recording, progress=ending("learning", 19), **given)
    file = tmp_path / "out" / "unfinished" / "training-0.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    resumed = spikewise.sort(many_units.recording, resume=True, **given)
    assert "training begins anew" in caplog.text
    assert resumed.provenance["result"] == undisturbed.provenance["result"]


def test_groups_that_are_learnt_are_not_learnt_again(tetrode, tmp_path):
    """Two groups: the end comes while the second is learnt."""
    recording = load(tetrode.recording)
    recording.set_property("group", np.array([0, 0, 1, 1]))
    options = {name.strip("-").replace("-", "_"): value for name, value in QUICK.items()}
    given = {"labels": load(tetrode.truth), "output": tmp_path / "out", **options}
    told = []
    whole = spikewise.sort(recording, progress=lambda *what: told.append(what[0]), **given)
    shutil.rmtree(tmp_path / "out")
    of_first = told[: len(told) // 2].count("learning")
    with pytest.raises(Ended):
        spikewise.sort(recording, progress=ending("learning", told.count("learning") - 5), **given)
    again = []
    resumed = spikewise.sort(recording, progress=lambda *what: again.append(what[0]), resume=True, **given)
    assert 0 < again.count("learning") <= of_first < told.count("learning")
    assert resumed.provenance["result"] == whole.provenance["result"]
    assert resumed.provenance["model"]["hash"] == whole.provenance["model"]["hash"]


# What is refused


@pytest.fixture
def begun(tetrode, trained, tmp_path):
    """A sort of the tetrode that was ended after three of eight shards."""
    with pytest.raises(Ended):
        spikewise.sort(
            tetrode.recording,
            model=trained,
            output=tmp_path / "out",
            progress=ending("sorting", 8),
            shard_s=1.0,
            chunk_s=0.5,
        )
    assert len(list((tmp_path / "out" / "unfinished" / "shards").glob("*.npy"))) == 3
    return tmp_path / "out"


def test_what_was_begun_is_not_begun_again_unasked(capsys, tetrode, trained, begun):
    before = contents(begun)
    options = {"--model": trained, "-o": begun, **SHORT}
    outcome = run(capsys, "sort", tetrode.recording, options)
    assert_told(outcome, f"{begun} holds a sort that was not finished", "--resume", "--overwrite")
    assert contents(begun) == before
    anew = succeed(capsys, "sort", tetrode.recording, options, "--overwrite").summary
    assert anew["spikes"] > 100
    assert not (begun / "unfinished").exists()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"--shard-s": 2}, "settings.sorting.shard_s was 1.0 and is 2.0"),
        ({"--threshold": 0.3}, "settings.detection.threshold was null and is 0.3"),
        ({"--seed": 3}, "settings.training.seed was 0 and is 3"),
        ({"--model": "again"}, "model was"),
        ({"recording": "louder"}, "recording.traces_hash was"),
        ({"recording": "shorter"}, "recording.num_samples was"),
    ],
)
def test_another_sort_is_refused_with_the_difference_named(
    capsys, tetrode, trained, begun, tmp_path, change, name
):
    recording, options = tetrode.recording, {"--model": trained, "-o": begun, **SHORT} | change
    if change.get("--model"):
        options["--model"] = tmp_path / "again.safetensors"
        settings = {key.strip("-").replace("-", "_"): value for key, value in QUICK.items()}
        spikewise.train(tetrode.recording, tetrode.truth, output=options["--model"], seed=9, **settings)
    if kind := options.pop("recording", None):
        recording = tmp_path / "other"
        other = load(tetrode.recording)
        traces = other.get_traces().copy()
        traces = traces[:-5] if kind == "shorter" else traces + 1
        shutil.copytree(tetrode.recording, recording)
        traces.tofile(recording / "traces_cached_seg0.raw")
    before = contents(begun / "unfinished")
    outcome = run(capsys, "sort", recording, options, "--resume")
    assert_told(outcome, f"{begun} is of another sort", name, "--overwrite")
    del before["lock"]
    assert before.items() <= contents(begun / "unfinished").items()


def test_the_length_of_chunks_may_change(capsys, tetrode, trained, begun, tmp_path):
    options = {"--model": trained, "-o": begun, **SHORT, "--chunk-s": 3}
    resumed = succeed(capsys, "sort", tetrode.recording, options, "--resume").summary
    whole = succeed(capsys, "sort", tetrode.recording, {"--model": trained, "-o": tmp_path / "whole"}).summary
    assert resumed["spikes_hash"] == whole["spikes_hash"]


def test_a_finished_sort_is_not_done_again(capsys, tetrode, trained, tmp_path):
    options = {"--model": trained, "-o": tmp_path / "out"}
    first = succeed(capsys, "sort", tetrode.recording, options, "--resume").summary  # nothing to go on with
    before = contents(tmp_path / "out")
    again = succeed(capsys, "sort", tetrode.recording, options, "--resume")
    assert again.summary["spikes_hash"] == first["spikes_hash"]
    assert "is finished already" in again.err
    assert contents(tmp_path / "out") == before
    outcome = run(capsys, "sort", tetrode.recording, options, "--resume", {"--threshold": 0.2})
    assert_told(outcome, "is of another sort", "threshold was null and is 0.2", "--overwrite")


@pytest.mark.parametrize("names", [(), ("spikewise.log",), ("spikewise.log", "unfinished")])
def test_a_sort_that_was_ended_before_it_began_is_begun(capsys, tetrode, trained, tmp_path, names):
    (tmp_path / "out").mkdir()
    for name in names:
        (tmp_path / "out" / name).mkdir() if name == "unfinished" else (tmp_path / "out" / name).touch()
    options = {"--model": trained, "-o": tmp_path / "out"}
    assert succeed(capsys, "sort", tetrode.recording, options, "--resume").summary["spikes"] > 100
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    outcome = run(capsys, "sort", tetrode.recording, {**options, "-o": tmp_path / "mine"}, "--resume")
    assert_told(outcome, "exists already")


def test_a_folder_that_another_process_works_in_is_left_alone(capsys, tetrode, trained, begun):
    shutil.rmtree(begun / "unfinished" / "shards")  # as if nothing were finished yet
    with Unfinished(begun).locked():
        options = {"--model": trained, "-o": begun, **SHORT}
        outcome = run(capsys, "sort", tetrode.recording, options, "--resume")
    assert_told(outcome, "Another process is sorting into", "Wait for it")
    assert (begun / "unfinished" / "job.json").exists()
    run(capsys, "sort", tetrode.recording, options, "--resume", {"--seed": 4})
    assert (begun / "unfinished" / "job.json").exists()


def test_a_sort_without_a_folder_leaves_no_file_and_has_its_properties(undisturbed):
    assert undisturbed.folder is None
    assert len(undisturbed.sorting.get_property("threshold")) == undisturbed.sorting.get_num_units() == 18
    assert not isinstance(undisturbed.sorting.to_spike_vector(), np.memmap)


def test_resume_needs_a_folder(tetrode, trained):
    with pytest.raises(spikewise.SpikewiseError, match="without output"):
        spikewise.sort(tetrode.recording, model=trained, resume=True)


# Files that change


def test_a_file_that_is_cut_short_while_it_is_sorted(tetrode, trained, tmp_path):
    shutil.copytree(tetrode.recording, tmp_path / "recording")
    file = tmp_path / "recording" / "traces_cached_seg0.raw"
    content = file.read_bytes()
    told = 0

    def cut(name, done, total, note=""):
        nonlocal told
        told += name == "sorting"
        if told == 6:  # two of eight shards are finished
            file.write_bytes(content[: len(content) * 3 // 4])

    given = {"model": trained, "output": tmp_path / "out", "shard_s": 1.0, "chunk_s": 0.5}
    with pytest.raises(spikewise.SpikewiseError, match=f"{file} changed: it had .* --resume"):
        spikewise.sort(tmp_path / "recording", progress=cut, **given)
    assert len(list((tmp_path / "out" / "unfinished" / "shards").glob("*.npy"))) == 2
    file.write_bytes(content)
    resumed = spikewise.sort(tmp_path / "recording", resume=True, **given)
    whole = spikewise.sort(tetrode.recording, model=trained)
    assert resumed.provenance["result"] == whole.provenance["result"]


def test_a_file_that_is_written_to_while_it_is_sorted(tetrode, trained, tmp_path):
    shutil.copytree(tetrode.recording, tmp_path / "recording")
    file = tmp_path / "recording" / "traces_cached_seg0.raw"

    def touch(name, done, total, note=""):
        os.utime(file, (1, 1))

    with pytest.raises(spikewise.SpikewiseError, match="was written to while it was sorted"):
        spikewise.sort(tmp_path / "recording", model=trained, output=tmp_path / "out", progress=touch)
    assert not (tmp_path / "out").exists()  # nothing was finished


# Many recordings


def test_many_recordings_of_which_one_fails(capsys, tetrode, trained, tmp_path):
    shutil.copytree(tetrode.recording, tmp_path / "first")
    rows = ["recording,output,model", f"first,out/first,{trained}", f"missing,out/missing,{trained}"]
    rows += [f"{tetrode.recording},out/last,{trained}"]
    file = tmp_path / "list.csv"
    file.write_text("\n".join(rows) + "\n")
    outcome = run(capsys, "sort-many", file, "--json")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert "1 of 3 recordings failed" in outcome.err
    states = {Path(job["output"]).name: job for job in outcome.summary["recordings"]}
    assert [job["state"] for job in states.values()] == ["done", "failed", "done"]
    assert states["first"]["spikes"] == states["last"]["spikes"] > 100
    assert "missing" in states["missing"]["message"]
    shutil.copytree(tetrode.recording, tmp_path / "missing")
    again = run(capsys, "sort-many", file, "--json")
    assert again.code == 0, again.err
    assert [job["state"] for job in again.summary["recordings"]] == ["done before", "done", "done before"]
    for name in ("first", "missing", "last"):
        assert (tmp_path / "out" / name / "provenance.json").exists()


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.csv", "recording,output\n", "it names no recording"),
        ("a.csv", "recording\nx\n", "recording 1 has no output"),
        ("a.csv", "recording,output,labls\nx,y,z\n", "recording 1 has the unknown 'labls'"),
        ("a.csv", "recording,output\nx,y\nz,y\n", "recordings 1 and 2 have the same output"),
        ("a.csv", "recording,output,labels,model\nx,y,z,m\n", "recording 1 has both labels and a model"),
        ("a.toml", "recordings = 3", "it names no recording"),
        (
            "a.toml",
            "[[recordings]]\nrecording = 3\noutput = 'y'",
            "recording 1 is not made of names and paths",
        ),
        ("a.toml", "[[recordings]", "cannot be used"),
        ("a.csv", "recording,output\nx,y,z\n", "recording 1"),
    ],
)
def test_lists_that_cannot_be_used(capsys, tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    assert_told(
        run(capsys, "sort-many", tmp_path / name), f"The list {tmp_path / name}", reason, "TOML", "Correct it"
    )


def test_a_list_of_toml(tmp_path):
    from spikewise.jobs.many import read_list

    file = tmp_path / "list.toml"
    file.write_text("[[recordings]]\nrecording = 'a.nwb'\noutput = 'out'\nlabels = '/l'\n")
    (entry,) = read_list(file)
    assert (entry.recording, entry.output, entry.labels) == (tmp_path / "a.nwb", tmp_path / "out", Path("/l"))
    assert entry.model is None


# Clusters


def test_a_scheduler_finds_the_same_spikes(tetrode, trained, tmp_path):
    distributed = pytest.importorskip("distributed")
    whole = spikewise.sort(tetrode.recording, model=trained)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        address = cluster.scheduler_address
        given = {"model": trained, "output": tmp_path / "out", "shard_s": 0.7}
        found = spikewise.sort(tetrode.recording, cluster=address, **given)
        assert found.provenance["result"] == whole.provenance["result"]
        with pytest.raises(spikewise.SpikewiseError, match="in the memory of this process"):
            spikewise.sort(load(tetrode.recording).save(format="memory"), model=trained, cluster=address)


def test_a_cluster_that_is_not_there(capsys, tetrode, trained, tmp_path):
    pytest.importorskip("distributed")
    options = {"--model": trained, "-o": tmp_path / "out", "--cluster": "nobody"}
    assert_told(run(capsys, "sort", tetrode.recording, options), "The cluster is 'nobody'", "local:N")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_workers_that_are_killed_are_survived(tetrode, trained, tmp_path):
    """Two processes; the first that works is killed each time one has done a little."""
    pytest.importorskip("distributed")
    import psutil

    whole = spikewise.sort(tetrode.recording, model=trained)
    process = start(
        "sort",
        tetrode.recording,
        {"--model": trained, "-o": tmp_path / "out", "--shard-s": 0.1},
        {"--cluster": "local:2"},
        "--json",
    )
    killed, shards = 0, tmp_path / "out" / "unfinished" / "shards"
    while process.poll() is None and killed < 3:
        if shards.exists() and len(list(shards.glob("*.npy"))) > 10 * killed:
            for child in psutil.Process(process.pid).children(recursive=True):
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
                    killed += 1
                    break
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert killed >= 1
    assert json.loads(out.splitlines()[-1])["spikes_hash"] == whole.provenance["result"]["spikes_hash"]


@pytest.mark.slow
def test_a_sort_that_is_killed_at_random_moments(tmp_path):
    """The script of the acceptance, with three kills."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
    try:
        import kill
    finally:
        sys.path.pop(0)
    facts = kill.measure(tmp_path, kills=3, seed=1)
    assert facts["kills"] == 3
    assert set(facts["hashes"]) == {facts["expected"]}


def test_a_model_that_is_kept_is_the_one_that_was_learnt(undisturbed, tmp_path):
    spikewise.save_model(undisturbed.model, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").hash() == undisturbed.model.hash()
