"""Files from strangers are read or refused: no traceback, no hang, no pickle, nothing written elsewhere."""

import json
import os
import pickle
import random
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import fuzzing
import numpy as np
import pytest
import torch
from commands import QUICK, assert_told, contents, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.io import loadmat, savemat
from spikeinterface.core import NumpyFolderSorting, load

import spikewise
from spikewise.core.errors import CheckpointError, LabelsError, ProbeError, RecordingError, WaveformsError
from spikewise.core.files import replacing, save_json
from spikewise.core.untrusted import check_matlab, check_npz, load_npy, load_npz, parse_json, safe_name
from spikewise.data.labels.label_set import LabelSet
from spikewise.data.recordings.probes import load_probe
from spikewise.discovery.bootstrap import Bootstrap
from spikewise.models.checkpoint import load_model, save_model
from spikewise.output.result import load_result
from spikewise.single_channel.raw_channel import load_raw_channel


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Folder of a valid file of each kind, made when first asked for."""
    made = {}

    def make(parser):
        if parser.name not in made:
            folder = tmp_path_factory.mktemp("valid")
            parser.make(folder)
            made[parser.name] = folder
        return made[parser.name]

    return make


@pytest.mark.parametrize("parser", fuzzing.PARSERS, ids=fuzzing.NAMES)
def test_what_is_whole_is_read(valid, parser):
    parser.read(valid(parser))


@pytest.mark.parametrize("parser", fuzzing.PARSERS, ids=fuzzing.NAMES)
def test_spoilt_files_are_read_or_refused(valid, parser, tmp_path):
    """A few of them; ``benchmarks/fuzz.py`` reads thousands of each kind."""
    template = valid(parser)

    @settings(
        max_examples=20,
        deadline=5000,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(stream=st.randoms(use_true_random=False))
    def read(stream):
        fuzzing.attempt(parser, template, tmp_path / "a" / "b" / "spoilt", stream)

    read()
    assert {path.name for path in tmp_path.rglob("*escaped*")} == set()


# What fuzzing found, and what it would hardly find


def header(shape: str, descr: str = "<f8") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(-1,)", "(4,)", "((((((", "(1e3,)", "(10**12,)"])
def test_an_array_that_promises_more_than_its_file_holds_is_refused(tmp_path, shape):
    file = tmp_path / "w.npy"
    file.write_bytes(header(shape) + bytes(8))
    with pytest.raises(WaveformsError, match="cannot be read"):
        spikewise.load_snippets(file)


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("waveforms.npy", header("(20000000,)") + bytes(160_000_000))
    assert (tmp_path / "w.npz").stat().st_size < 400_000
    with pytest.raises(ValueError, match="claim to unpack"):
        check_npz(tmp_path / "w.npz")
    with pytest.raises(WaveformsError, match="claim to unpack"):
        spikewise.load_snippets(tmp_path / "w.npz")


def test_pickles_stay_closed(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    array = np.array([Trap()], dtype=object)
    np.save(tmp_path / "w.npy", array, allow_pickle=True)
    np.savez(tmp_path / "w.npz", waveforms=array)
    (tmp_path / "m.safetensors").write_bytes(pickle.dumps(Trap()))
    for name in ("w.npy", "w.npz"):
        with pytest.raises(WaveformsError):
            spikewise.load_snippets(tmp_path / name)
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="Python objects"):
        load_npy(tmp_path / "w.npy")
    assert not (tmp_path / "opened").exists()
    np.savez(tmp_path / "good.npz", a=np.arange(3))
    assert load_npz(tmp_path / "good.npz")["a"].tolist() == [0, 1, 2]


def test_segments_without_number_do_not_hang(valid, tmp_path):
    parser = next(one for one in fuzzing.PARSERS if one.name == "labels: folder")
    info = valid(parser) / "sorting" / "numpysorting_info.json"
    told = json.loads(info.read_text())
    (tmp_path / "numpysorting_info.json").write_text(json.dumps({**told, "num_segments": 10**12}))
    (tmp_path / "spikes.npy").write_bytes((info.parent / "spikes.npy").read_bytes())
    with pytest.raises(LabelsError, match="number of segments"):
        spikewise.evaluate(tmp_path, tmp_path)


@pytest.fixture
def spoilt_model(tmp_path):
    """Write a model whose description and tensors were changed, and return its file."""

    def write(change, design="neighbourhood"):
        file = tmp_path / "m.safetensors"
        save_model(fuzzing._model(design), file)
        with safe_open(file, framework="pt") as opened:
            facts = json.loads(opened.metadata()["spikewise"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        change(facts, tensors)
        save_file(tensors, file, {"spikewise": json.dumps(facts)})
        return file

    return write


@pytest.mark.parametrize(
    "change",
    [
        lambda facts, tensors: facts["network"].update(spatial_features=10**12),
        lambda facts, tensors: facts["network"].update(temporal_features=[10**6, 10**9]),
        lambda facts, tensors: facts.update(sampling_frequency=1e12),
        lambda facts, tensors: facts.update(sampling_frequency=float("nan")),
        lambda facts, tensors: tensors.update(more=torch.zeros((1,) * 9)),
        lambda facts, tensors: facts["groups"][0].update(unit_ids=[1, 1, 2]),
        lambda facts, tensors: facts["groups"][0].update(unit_ids=[[1], 2, 3]),
        lambda facts, tensors: facts["groups"][0].update(channel_positions_um=[[float("inf")] * 2] * 4),
        lambda facts, tensors: tensors.update({"0.classifier.bias": torch.zeros(3, dtype=torch.float64)}),
        lambda facts, tensors: tensors.update({"0.classifier.bias": torch.zeros(0, 10**12)}),
    ],
)
def test_models_whose_description_lies_are_refused_without_asking_for_memory(spoilt_model, change):
    with pytest.raises(CheckpointError):
        load_model(spoilt_model(change, "esort-paper"))


def test_a_header_nested_too_deeply_is_refused(spoilt_model):
    file = spoilt_model(lambda facts, tensors: None)
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, {"spikewise": "[" * 100_000})
    with pytest.raises(CheckpointError, match="nested too deeply"):
        load_model(file)
    with pytest.raises(ValueError, match="nested"):
        parse_json('{"a":' * 100_000)


def test_a_damaged_model_ends_the_command_with_exit_code_2(capsys, tetrode, spoilt_model, tmp_path):
    file = spoilt_model(
        lambda facts, tensors: facts["network"].update(spatial_features=10**12), "esort-paper"
    )
    options = {"--model": file, "-o": tmp_path / "out"}
    assert_told(run(capsys, "sort", tetrode.recording, options), "is damaged", "intact", "Copy it again")


def test_results_with_hostile_provenance_are_refused(valid, tmp_path):
    parser = next(one for one in fuzzing.PARSERS if one.name == "result")
    facts = json.loads((valid(parser) / "provenance.json").read_text())
    for damage in ([], {"stretches": 1}, {"stretches": [1]}, {**facts["damage"], "seconds": "1"}):
        folder = tmp_path / str(random.Random(str(damage)).randrange(10**9))
        parser.make(folder.mkdir() or folder)
        (folder / "provenance.json").write_text(json.dumps({**facts, "damage": damage}))
        with pytest.raises(spikewise.SpikewiseError, match="damage"):
            load_result(folder)


@pytest.mark.parametrize(
    "name", ["../../etc", "/tmp/x", "..", ".", "", "a/b", "a\\b", "a\x00b", "x" * 400, "ü\n"]
)
def test_names_from_files_name_no_other_folder(name, tmp_path):
    made = safe_name(name)
    assert (tmp_path / made).resolve().parent == tmp_path.resolve()
    assert made != name
    assert len(made) < 130
    assert safe_name("0") == "0"
    assert safe_name("shank-1_a.b c") == "shank-1_a.b c"
    assert safe_name("a/b") != safe_name("a\\b")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("level", ["4", "5"])
def test_older_matlab_files_of_all_that_is_read_are_whole(tmp_path, level, compress):
    plain = {"data": np.arange(12.0).reshape(3, 4), "flags": np.array([1, 0, 2], np.uint8), "text": "a name"}
    nested = {
        "cells": np.array([np.arange(3.0), "b", np.empty(0)], object),
        "of": {"x": 1.5, "y": {"z": "w"}},
    }
    savemat(
        tmp_path / "s.mat", plain | (nested if level == "5" else {}), format=level, do_compression=compress
    )
    check_matlab(tmp_path / "s.mat")
    assert loadmat(tmp_path / "s.mat")["data"].tolist() == plain["data"].tolist()


@pytest.mark.parametrize("compress", [False, True])
def test_a_matlab_file_with_an_element_of_an_unknown_type_is_refused_before_scipy_crashes(tmp_path, compress):
    path = tmp_path / "s.mat"
    savemat(path, {"data": np.arange(400.0), "sr": 24000.0})
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<II", 9, 3200))  # the numbers of the array
    content[at] = 0xED
    if compress:
        array = zlib.compress(bytes(content[128 : 128 + 8 + struct.unpack_from("<I", content, 132)[0]]))
        content[128:] = struct.pack("<II", 15, len(array)) + array
    path.write_bytes(content)
    with pytest.raises(WaveformsError, match="element of type 237"):
        load_raw_channel(path)


def test_unknown_matlab_arrays_and_endless_cells_are_refused(tmp_path):
    path = tmp_path / "s.mat"
    savemat(path, {"data": np.arange(4.0)})
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<III", 6, 8, 6))  # flags of an array of doubles
    content[at + 8] = 99
    path.write_bytes(content)
    with pytest.raises(ValueError, match="class 99"):
        check_matlab(path)
    deep = np.zeros(1)
    for _ in range(60):
        cell = np.empty(1, object)
        cell[0] = deep
        deep = cell
    savemat(path, {"data": deep})
    with pytest.raises(ValueError, match="depth 51"):
        check_matlab(path)


def test_recordings_annotated_without_end_are_refused(tetrode, tmp_path):
    shutil.copytree(tetrode.recording, tmp_path / "r")
    file = tmp_path / "r" / "annotations.json"
    nested = json.loads("[" * 400 + "]" * 400)
    file.write_text(json.dumps({**json.loads(file.read_text()), "note": nested}))
    with pytest.raises(RecordingError, match="nested too deeply"):
        spikewise.load_recording(tmp_path / "r")


def truth_as_bootstrap(recording, config, preprocessed, seed, folder, silenced_channel_ids):
    """Labels of a bootstrap sorter that finds every spike on the channels it is given."""
    truth = load(Path(folder).parents[1] / "truth")
    seen = recording.get_num_samples()
    labels = LabelSet(sorting=truth, start_frame=0, stop_frame=seen, source="the truth", segment_starts=(0,))
    return Bootstrap(labels, "spykingcircus2", "0", {}, truth.get_num_units(), 0.0)


@pytest.mark.parametrize("sorter", ["truth", pytest.param("spykingcircus2", marks=pytest.mark.slow)])
def test_groups_named_after_other_folders_keep_their_labels_in_the_output(
    sorter, tetrode, tmp_path, monkeypatch
):
    """The names of groups come with the recording. The first is quick: it leaves out the sorter alone."""
    recording = load(tetrode.recording)
    recording.set_property("group", ["../../up", "../../up", "on", "on"])
    output = tmp_path / "deep" / "out"
    shutil.copytree(tetrode.truth, tmp_path / "truth")
    if sorter == "truth":
        monkeypatch.setattr("spikewise.discovery.bootstrap.bootstrap_labels", truth_as_bootstrap)
    settings = {name.strip("-").replace("-", "_"): value for name, value in QUICK.items()}
    made = spikewise.sort(recording, bootstrap="spykingcircus2", bootstrap_s=8, output=output, **settings)
    assert made.provenance["labels"]["groups"].keys() == {"../../up", "on"}
    kept = [NumpyFolderSorting(folder) for folder in (output / "bootstrap").iterdir()]
    assert set(made.sorting.unit_ids) == {unit for labels in kept for unit in labels.unit_ids}
    assert {folder.name for folder in tmp_path.iterdir()} == {"deep", "truth"}
    assert list((tmp_path / "deep").iterdir()) == [output]


@pytest.mark.parametrize(
    ("name", "value"),
    [("contact_plane_axes", ""), ("contact_shape_params", 1), ("contact_positions", [[None, 0]] * 4)],
)
def test_probes_that_only_fail_when_they_are_wired_are_refused(valid, tmp_path, name, value):
    parser = next(one for one in fuzzing.PARSERS if one.name == "probe: json")
    told = json.loads((valid(parser) / "p.json").read_text())
    told["probes"][0][name] = value
    (tmp_path / "p.json").write_text(json.dumps(told))
    with pytest.raises(ProbeError):
        load_probe(tmp_path / "p.json", 4)


def test_links_that_wait_where_a_file_is_written_are_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    before = contents(tmp_path)
    place = tmp_path / "out"
    place.mkdir()
    for name in ("m.safetensors", "provenance.json", "t.csv"):
        (place / f"{name}.partial").symlink_to(precious)
    save_model(fuzzing._model("neighbourhood"), place / "m.safetensors")
    save_json({}, place / "provenance.json")
    with replacing(place / "t.csv") as partial:
        partial.write_text("new")
    assert contents(tmp_path)["precious"] == before["precious"]
    assert not (place / "m.safetensors").is_symlink()


def test_spoiling_spoils(valid):
    """The fuzzing would find nothing in files that it leaves as they are."""
    for parser in fuzzing.PARSERS:
        path = parser.files(valid(parser))[0]
        changed = 0
        for index in range(30):
            content = path.read_bytes()
            for matches, way in fuzzing._STRUCTURES:
                if matches(path, content):
                    changed += way(content, random.Random(index)) != content
            changed += fuzzing._flip(content, random.Random(index)) != content
        assert changed > 20, parser.name
