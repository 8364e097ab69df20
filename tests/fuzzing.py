"""Files from strangers: valid ones of every kind that Spikewise reads, and how they are spoilt.

A :class:`Parser` makes a valid file or folder once and reads a spoilt copy of it. :func:`spoil` changes a
copy with a random stream: bytes that flip, go or come, ends that are cut, and changes of structure (values of
JSON, headers of arrays, cells of tables) to numbers too large, wrong types, deep nesting, names that climb
out of their folder. The stream is ``random.Random``, so that Hypothesis and a seeded script drive the same
code.
"""

import io
import json
import re
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import torch
from scipy.io import savemat
from spikeinterface.core import NumpyRecording, NumpySorting

import spikewise
from spikewise.core.config import Config, DetectionConfig, NetworkConfig, PreprocessingConfig, RecordingConfig
from spikewise.core.files import save_json
from spikewise.data.labels.label_files import load_labels
from spikewise.data.recordings.formats import load_recording
from spikewise.data.recordings.probes import attach_probe, load_probe
from spikewise.data.simulation.hybrid import load_real_units
from spikewise.models.backbone_file import load_pretrained, shipped_path
from spikewise.models.checkpoint import GroupModel, Model, load_model, save_model
from spikewise.models.esort import EsortNetwork
from spikewise.models.neighbourhood import Backbone, NeighbourhoodNetwork
from spikewise.output.result import load_result
from spikewise.output.store import save_sorting, spikes_hash
from spikewise.papers.cnn1d.folder import claim_folder
from spikewise.single_channel.classifier import load_classifier, save_classifier
from spikewise.single_channel.classifier_training import train_classifier
from spikewise.single_channel.config import WaveformTrainingConfig
from spikewise.single_channel.raw_channel import load_raw_channel
from spikewise.single_channel.snippets import load_snippets
from spikewise.single_channel.spike_shapes import load_shapes

RATE = 30000.0
HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**12, 10**40, 0.5, -0.0, 1e-300, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "\x00", "../../escaped", "/tmp/escaped", "é" * 300),
    *([], {}, [[]], [None] * 50, {"": {}}, [1e400], "NaN", "1e999", "a\nb", "=cmd()", "__import__('os')"),
]
_PIECES = [
    b"",
    b"\x00" * 8,
    b"\xff" * 8,
    b"\n",
    b",",
    b"{",
    b"[" * 2000,
    b"1e999",
    b"'",
    b'"',
    b"\x80\x81",
    b"../",
]


@dataclass(frozen=True)
class Parser:
    """One kind of file.

    ``make`` writes a valid one into a folder, ``read`` reads it from there; ``spoilt`` names the files of it
    that are spoilt.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    spoilt: tuple[str, ...] = field(default=("*",))

    def files(self, folder: Path) -> list[Path]:
        """Files that may be spoilt, in a fixed order."""
        found = [path for pattern in self.spoilt for path in sorted(folder.rglob(pattern)) if path.is_file()]
        return list(dict.fromkeys(found))


def spoil(folder: Path, parser: Parser, random: Random) -> str:
    """Spoil one file of a copy in one to three ways; return what was done."""
    path = random.choice(parser.files(folder))
    content, done = path.read_bytes(), []
    for _ in range(random.choice([1, 1, 2, 3])):
        ways = [_flip, _cut, _insert, _repeat]
        for matches, way in _STRUCTURES:
            if matches(path, content):
                ways += [way] * 4
        way = random.choice(ways)
        content = way(content, random)
        done.append(way.__name__.strip("_"))
    path.write_bytes(content)
    return f"{path.name}: {', '.join(done)}"


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice([1, 2, 8])):
        if changed:
            changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def _cut(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content) + 1)
    return (
        content[:start]
        if random.random() < 0.5
        else content[:start] + content[start + random.randrange(64) :]
    )


def _insert(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content) + 1)
    return content[:start] + random.choice(_PIECES) + content[start:]


def _repeat(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content) + 1)
    piece = content[start : start + random.randrange(1, 64)]
    return content[:start] + piece * random.randrange(2, 20) + content[start:]


def _change_json(content: bytes, random: Random) -> bytes:
    try:
        return spoil_json(content.decode(), random).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return content


def spoil_json(text: str, random: Random) -> str:
    """Change one value of a JSON text, take it away, nest it deeply, or tell it twice."""
    value = json.loads(text)
    places = [(parent, key) for parent, key in _nodes(value)]
    if not places:
        return random.choice(["null", "[]", "{}", "1", "[" * 100_000, '{"a":' * 5000])
    parent, key = random.choice(places)
    way = random.randrange(6)
    if way == 0:
        del parent[key]
    elif way == 1:
        marker = "@nested@"
        parent[key] = marker
        depth = random.choice([50, 900, 100_000])
        return json.dumps(value).replace(f'"{marker}"', "[" * depth + "]" * depth)
    elif way == 2 and isinstance(parent, dict):
        extra = json.dumps({key: random.choice(HOSTILE)})[1:-1]
        return json.dumps(value).replace("{", "{" + extra + ",", 1)
    elif way == 3 and isinstance(parent, dict):
        parent[random.choice(["", "x", "../" * 5, "__class__"])] = parent.pop(key)
    elif way == 4 and isinstance(parent, list):
        parent.extend([parent[key]] * random.choice([1, 1000]))
    else:
        parent[key] = random.choice(HOSTILE)
    return json.dumps(value)


def _keys(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value)
    return list(range(len(value))) if isinstance(value, list) else []


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    found, queue = [], [value]
    while queue:
        parent = queue.pop()
        keys = (
            list(parent)
            if isinstance(parent, dict)
            else range(len(parent))
            if isinstance(parent, list)
            else []
        )
        for key in keys:
            found.append((parent, key))
            queue.append(parent[key])
    return found


def _change_safetensors(content: bytes, random: Random) -> bytes:
    """Change the header of a model: the description that Spikewise wrote, or where tensors are."""
    size = struct.unpack("<Q", content[:8])[0]
    if random.random() < 0.1:
        return struct.pack("<Q", random.choice([0, 1, 2**31, 2**62, 2**64 - 1])) + content[8:]
    try:
        header = json.loads(content[8 : 8 + size])
        if random.random() < 0.7:
            facts = header["__metadata__"]
            facts["spikewise"] = spoil_json(facts["spikewise"], random)
            text = json.dumps(header)
        else:
            text = spoil_json(json.dumps(header), random)
    except (ValueError, KeyError, TypeError, RecursionError):
        return content
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + content[8 + size :]


def _change_npy(content: bytes, random: Random) -> bytes:
    """Change the header of an array: its shape, its type, the order of its axes."""
    size = struct.unpack("<H", content[8:10])[0]
    header = content[10 : 10 + size].decode("latin1")
    header = random.choice(
        [
            lambda: re.sub(
                r"\(.*\)", random.choice(["(1000000000000,)", "()", "(-1,)", "(2, 3)", "(0,)"]), header
            ),
            lambda: re.sub(r"'descr': [^,]*", f"'descr': '{random.choice(_DTYPES)}'", header),
            lambda: header.replace("False", "True"),
            lambda: "(" * 300,
            lambda: header.replace("'shape'", "'shapes'"),
        ]
    )()
    raw = header.encode("latin1")
    return content[:8] + struct.pack("<H", len(raw)) + raw + content[10 + size :]


_DTYPES = ["|O", "<f8", "<i8", "<u8", "|S9", "<U9", "<c16", "|b1", "<M8[s]", ">i2", "<f2", "|V4"]


def _change_npz(content: bytes, random: Random) -> bytes:
    """Change an array of an archive, or its name, and pack it again."""
    made = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
            names = old.namelist()
            changed = random.choice(names)
            for name in names:
                inside = old.read(name)
                if name == changed:
                    way = random.choice([_change_npy, _change_npy, _flip, _cut, None])
                    name = random.choice(["../x.npy", "x.npy", "", name * 9]) if way is None else name
                    inside = inside if way is None else way(inside, random)
                new.writestr(name, inside)
    except Exception:  # an archive that was spoilt before cannot be unpacked; it stays as it is
        return content
    return made.getvalue()


def _change_table(content: bytes, random: Random) -> bytes:
    """Change a cell, a row or the header of a table, or a value of a text of names and values."""
    lines = content.split(b"\n")
    row = random.randrange(len(lines))
    cells = re.split(rb"([,\t=~() ])", lines[row])
    cells[random.randrange(len(cells))] = str(random.choice(HOSTILE)).encode("utf-8", "surrogatepass")
    lines[row] = b"".join(cells)
    if random.random() < 0.2:
        lines.insert(row, random.choice(lines))
    return b"\n".join(lines)


_STRUCTURES: list[tuple[Callable[[Path, bytes], bool], Callable[[bytes, Random], bytes]]] = [
    (lambda path, _: path.suffix in (".json", ".zattrs", ".zarray", ".zgroup"), _change_json),
    (lambda path, content: path.suffix == ".safetensors" and len(content) > 8, _change_safetensors),
    (lambda _, content: content.startswith(b"\x93NUMPY") and len(content) > 10, _change_npy),
    (lambda path, _: path.suffix == ".npz", _change_npz),
    (lambda path, _: path.suffix in (".csv", ".tsv", ".txt", ".meta", ".prb", ".imro", ".py"), _change_table),
]


# What is read


def _traces(num_channels: int = 4, num_samples: int = 3000) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 50, (num_samples, num_channels)).astype(np.int16)


def recording():
    """The recording that labels belong to."""
    return attach_probe(NumpyRecording([_traces()], RATE), "tetrode")


def _sorting() -> NumpySorting:
    samples, units = np.arange(100, 2900, 100), np.arange(28) % 3
    return NumpySorting.from_samples_and_labels([samples], [units], RATE, unit_ids=np.arange(3))


def _model(design: str) -> Model:
    torch.manual_seed(0)
    near = torch.tensor([[0, 1, 2], [1, 2, 3], [0, 2, 3]])
    if design == "neighbourhood":
        network = NeighbourhoodNetwork(Backbone(56, (4, 4)), 4, near, 3)
    else:
        network = EsortNetwork(4, 3, 56, (2, 3), 4)
    part = GroupModel(
        name="0",
        network=network.eval(),
        channel_ids=("0", "1", "2", "3"),
        channel_positions_um=recording().get_channel_locations(),
        silenced_channel_ids=(),
        unit_ids=(0, 1, 2),
        thresholds=np.full(3, 0.5, np.float32),
    )
    small = {} if design == "neighbourhood" else {"temporal_features": (2, 3), "spatial_features": 4}
    settings = NetworkConfig(design=design, **small)
    return Model(
        (part,), RATE, settings, PreprocessingConfig(), DetectionConfig(), {"labels": {"source": "x"}}
    )


def _make_classifier(folder: Path) -> None:
    rng = np.random.default_rng(0)
    waveforms = rng.normal(0, 1, (40, 32)) + np.repeat([[0.0], [5.0]], 20, axis=0)
    settings = WaveformTrainingConfig(epochs=1, overlaps=0.0)
    classifier = train_classifier(waveforms, np.repeat([1, 2], 20), settings)
    save_classifier(classifier, folder / "c.safetensors")


def _make_phy(folder: Path) -> None:
    spikes = _sorting().to_spike_vector()
    np.save(folder / "spike_times.npy", spikes["sample_index"])
    np.save(folder / "spike_clusters.npy", spikes["unit_index"])
    (folder / "cluster_group.tsv").write_text("cluster_id\tgroup\n0\tgood\n1\tmua\n2\tnoise\n")
    (folder / "params.py").write_text("dat_path = 'x.dat'\nsample_rate = 30000.0\n")


def _make_csv(folder: Path) -> None:
    rows = "\n".join(f"{s['sample_index']},{s['unit_index']}" for s in _sorting().to_spike_vector())
    (folder / "labels.csv").write_text(f"sample_index,unit_id\n{rows}\n")


def _make_npz_labels(folder: Path) -> None:
    from spikeinterface.core import NpzSortingExtractor

    NpzSortingExtractor.write_sorting(_sorting(), folder / "labels.npz")


def _make_nwb(folder: Path) -> None:
    from datetime import UTC, datetime

    from pynwb import NWBHDF5IO, NWBFile

    file = NWBFile("test", "id", datetime(2020, 1, 1, tzinfo=UTC))
    for unit in range(3):
        file.add_unit(spike_times=np.arange(100 + unit, 2900, 300) / RATE, id=unit)
    with NWBHDF5IO(folder / "labels.nwb", "w") as io:
        io.write(file)


def _matlab(folder: Path) -> dict[str, Any]:
    times, classes = np.empty((1, 1), dtype=object), np.empty((1, 2), dtype=object)
    times[0, 0] = np.arange(50.0, 1900, 50)[None]
    classes[0, 0] = (np.arange(37) % 3 + 1.0)[None]
    classes[0, 1] = np.zeros((1, 37))
    signal = np.random.default_rng(0).normal(size=(1, 2000))
    return {"data": signal, "samplingInterval": 1 / 24, "spike_times": times, "spike_class": classes}


def _make_mat73(folder: Path) -> None:
    with h5py.File(folder / "s.mat", "w", userblock_size=512) as file:
        held = _matlab(folder)
        file["data"] = held["data"].T
        file["samplingInterval"] = np.array([[1 / 24]])
        for name in ("spike_times", "spike_class"):
            references = []
            for index, part in enumerate(held[name].flat):
                file[f"#refs#/{name}{index}"] = part.T
                references.append(file[f"#refs#/{name}{index}"].ref)
            file.create_dataset(
                name, data=np.array([references], dtype=h5py.ref_dtype).T, dtype=h5py.ref_dtype
            )


def _waveforms() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(30, 32))


def _make_waveform_csv(folder: Path) -> None:
    lines = ["unit," + ",".join(f"s{i}" for i in range(32))]
    lines += [f"{i % 3}," + ",".join(f"{v:.4f}" for v in row) for i, row in enumerate(_waveforms())]
    (folder / "w.csv").write_text("\n".join(lines) + "\n")


def _make_real_units(folder: Path) -> None:
    np.savez(
        folder / "t.npz",
        fs=np.array(30000.0),
        n=np.array(1),
        waves_00=np.random.default_rng(0).normal(size=(4, 82)),
        pos_00=np.array([[0.0, 0.0], [32.0, 0.0], [16.0, 20.0], [48.0, 20.0]]),
    )


def _make_result(folder: Path) -> None:
    model, sorting = _model("neighbourhood"), _sorting()
    save_model(model, folder / "model.safetensors")
    save_sorting(sorting, folder)
    labels = {"source": "x", "interval_s": [0.0, 0.1]}
    stretch = {"group": "0", "segment": 0, "start_s": 0.0, "stop_s": 0.1, "kind": "zeros", "channels": "all"}
    damage = {"seconds": 0.1, "num_dropped": 1, "num_stretches": 1, "stretches": [stretch]}
    facts = {
        "spikewise_version": "0",
        "versions": {},
        "machine": {},
        "config": Config().to_dict(),
        "preprocessing": {"0": ["band-pass"]},
        "damage": damage,
        "recording": {"path": "x", "sampling_frequency": RATE, "num_channels": 4, "num_samples": [3000]},
        "labels": labels,
        "model": {"given": False, "hash": model.hash(), "facts": model.facts},
        "result": {"num_units": 3, "num_spikes": 28, "spikes_hash": spikes_hash(sorting)},
        "seconds": {"recorded": 0.1, "learning": 1.0, "sorting": 1.0},
        "real_time_factor": 0.1,
    }
    save_json(facts, folder / "provenance.json")


def _make_spikeglx(folder: Path) -> None:
    from test_recordings import write_spikeglx

    write_spikeglx(folder, "ap", _traces(9, 600))


def _make_recording_folder(folder: Path) -> None:
    recording().save(folder=folder / "r", n_jobs=1, progress_bar=False, verbose=False)


def _make_zarr(folder: Path) -> None:
    recording().save(folder=folder / "r.zarr", format="zarr", n_jobs=1, progress_bar=False, verbose=False)


def _make_probe(folder: Path) -> None:
    from probeinterface import write_probeinterface

    write_probeinterface(folder / "p.json", load_probe("tetrode", 4))


_PRB = """channel_groups = {0: {'channels': list(range(4)), 'graph': [],
  'geometry': {0: (0, 0), 1: (10, 0), 2: (0, 10), 3: (10, 10)}}}
"""
_SETTINGS = {
    "experiments_of": "x",
    "version": "1",
    "seed": 0,
    "files": {"a": "b"},
    "networks": {"n": {"m": [1]}},
}


def _read_traces(path: Path, **options: Any) -> None:
    opened = load_recording(path, RecordingConfig(**options))
    if opened.get_num_channels() <= 1000:
        attach_probe(opened, "tetrode" if opened.get_num_channels() == 4 else None)
    from spikewise.data.recordings.formats import reading_errors

    with reading_errors("traces"):
        opened.get_traces(0, 0, min(100, opened.get_num_samples(0)))


def _read_settings(path: Path) -> None:
    try:
        values = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return
    if isinstance(values, dict):
        Config.from_options(**{str(name): value for name, value in values.items()})


def _write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


_FLAT_SETTINGS = {
    **{name: value for part in Config().to_dict().values() for name, value in part.items()},
    "epochs": None,
    "exclude_channels": ["1"],
    "label_interval": [0, 1],
    "drift_um": 10.0,
}
_FLAT_SETTINGS = {n: v for n, v in _FLAT_SETTINGS.items() if v is not None and n != "preset"}
for _name in ("batch_size", "learning_rate", "schedule", "windows_per_spike", "min_steps", "max_steps"):
    _FLAT_SETTINGS.pop(_name, None)
for _name in ("noise_windows", "superpositions"):
    _FLAT_SETTINGS.pop(_name, None)


def _read_model(folder: Path) -> str:
    return load_model(folder / "m.safetensors").hash()


_LABELS = ("numpysorting_info.json", "spikes.npy")
_RESULT = ("provenance.json", "numpysorting_info.json", "model.safetensors")
_SNIPPETS = {"waveforms": _waveforms(), "labels": np.arange(30) % 3, "fs": 24000.0}

PARSERS = [
    Parser("model", lambda f: save_model(_model("neighbourhood"), f / "m.safetensors"), _read_model),
    Parser(
        "model, esort-paper", lambda f: save_model(_model("esort-paper"), f / "m.safetensors"), _read_model
    ),
    Parser(
        "filters",
        lambda f: shutil.copy(shipped_path(), f / "b.safetensors"),
        lambda f: load_pretrained(f / "b.safetensors").hash(),
    ),
    Parser(
        "waveform classifier",
        _make_classifier,
        lambda f: load_classifier(f / "c.safetensors").classify(_waveforms()),
    ),
    Parser("labels: csv", _make_csv, lambda f: load_labels(f / "labels.csv", recording())),
    Parser("labels: phy", _make_phy, lambda f: load_labels(f, recording())),
    Parser(
        "labels: folder",
        lambda f: save_sorting(_sorting(), f),
        lambda f: load_labels(f, recording()),
        _LABELS,
    ),
    Parser("labels: npz", _make_npz_labels, lambda f: load_labels(f / "labels.npz", recording())),
    Parser("labels: nwb", _make_nwb, lambda f: load_labels(f / "labels.nwb", recording())),
    Parser(
        "waveforms: mat", lambda f: savemat(f / "s.mat", _matlab(f)), lambda f: load_raw_channel(f / "s.mat")
    ),
    Parser("waveforms: mat 7.3", _make_mat73, lambda f: load_raw_channel(f / "s.mat")),
    Parser(
        "waveforms: npz", lambda f: np.savez(f / "w.npz", **_SNIPPETS), lambda f: load_snippets(f / "w.npz")
    ),
    Parser(
        "waveforms: npy", lambda f: np.save(f / "w.npy", _waveforms()), lambda f: load_snippets(f / "w.npy")
    ),
    Parser("waveforms: csv", _make_waveform_csv, lambda f: load_snippets(f / "w.csv")),
    Parser(
        "shapes: npz",
        lambda f: np.savez(f / "s.npz", waves=_waveforms(), fs=24000.0),
        lambda f: load_shapes(f / "s.npz"),
    ),
    Parser("units: npz", _make_real_units, lambda f: load_real_units(f / "t.npz")),
    Parser("settings", _write("s.json", json.dumps(_FLAT_SETTINGS)), lambda f: _read_settings(f / "s.json")),
    Parser("result", _make_result, lambda f: load_result(f), _RESULT),
    Parser(
        "paper folder",
        _write("settings.json", json.dumps(_SETTINGS)),
        lambda f: claim_folder(f, dict(_SETTINGS)),
    ),
    Parser("recording: folder", _make_recording_folder, lambda f: _read_traces(f / "r"), ("*.json", "*.npy")),
    Parser("recording: zarr", _make_zarr, lambda f: _read_traces(f / "r.zarr")),
    Parser(
        "recording: npy",
        lambda f: np.save(f / "r.npy", _traces()),
        lambda f: _read_traces(f / "r.npy", sampling_frequency=RATE),
    ),
    Parser(
        "recording: npz",
        lambda f: np.savez(f / "r.npz", traces=_traces(), fs=RATE),
        lambda f: _read_traces(f / "r.npz"),
    ),
    Parser("recording: spikeglx", _make_spikeglx, lambda f: _read_traces(f), ("*.meta",)),
    Parser("probe: json", _make_probe, lambda f: load_probe(f / "p.json", 4)),
    Parser("probe: prb", _write("p.prb", _PRB), lambda f: load_probe(f / "p.prb", 4)),
]
NAMES = [parser.name for parser in PARSERS]


def attempt(parser: Parser, template: Path, place: Path, random: Random) -> tuple[bool, str]:
    """Read a spoilt copy; return whether it was read rather than refused, and what had been done to it.

    Anything but a reading or a SpikewiseError is raised.
    """
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place)
    done = spoil(place, parser, random)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parser.read(place)
        except spikewise.SpikewiseError as error:
            if error.exit_code != 2 or not (error.given and error.allowed and error.remedy):
                raise AssertionError(f"{error!r} does not say what to do") from error
            return False, done
    return True, done
