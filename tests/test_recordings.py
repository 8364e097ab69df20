import json
import os
from pathlib import Path

import h5py
import numpy as np
import probeinterface
import pytest
from spikeinterface.core import NumpyRecording

from spikewise.core.config import RecordingConfig
from spikewise.core.errors import MissingExtraError, ProbeError, RecordingError
from spikewise.data.recordings.formats import load_recording, readable_formats
from spikewise.data.recordings.probes import attach_probe, catalogue_names, load_probe

FS = 20000.0
RATE = RecordingConfig(sampling_frequency=FS)
RAW = RecordingConfig(sampling_frequency=FS, num_channels=4, dtype="int16", gain_to_uV=0.5)


@pytest.fixture
def traces() -> np.ndarray:
    return np.random.default_rng(1).integers(-900, 900, (600, 4)).astype(np.int16)


def as_recording(traces: np.ndarray, *, probe: bool = True) -> NumpyRecording:
    recording = NumpyRecording([traces, traces[:250]], FS)
    recording.set_channel_gains(0.195)
    recording.set_channel_offsets(0.0)
    if probe:
        recording.set_probe(probeinterface.generate_linear_probe(4), group_mode="auto")
    return recording


def wired(probe):
    probe.set_device_channel_indices(np.arange(probe.get_contact_count()))
    return probe


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def assert_holds(recording, traces, fs=FS):
    assert recording.get_sampling_frequency() == fs
    assert recording.get_num_samples(0) == len(traces)
    np.testing.assert_array_equal(recording.get_traces(0), traces)
    np.testing.assert_array_equal(recording.get_traces(0, 17, 40), traces[17:40])


# ---------------------------------------------------------------- the formats


def test_formats_are_listed_with_one_line_each():
    formats = readable_formats()
    assert {"spikeinterface", "zarr", "mearec", "nwb", "spikeglx", "openephys", "intan"} <= set(formats)
    assert {"blackrock", "neuralynx", "plexon", "mcsraw", "mcsh5", "maxwell", "binary", "numpy"} <= set(
        formats
    )
    assert all(line and "\n" not in line for line in formats.values())


@pytest.mark.parametrize(("layout", "name"), [("binary", "saved"), ("zarr", "saved.zarr")])
def test_spikeinterface_folders(tmp_path, traces, layout, name):
    recording = NumpyRecording([traces, traces[:250]], FS, channel_ids=["a", "b", "c", "d"])
    recording.set_probe(wired(probeinterface.generate_tetrode()))
    recording.save(folder=tmp_path / name, format=layout, verbose=False, progress_bar=False)
    loaded = load_recording(tmp_path / name)
    assert loaded.get_num_segments() == 2
    assert list(loaded.channel_ids) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(loaded.get_channel_locations(), recording.get_channel_locations())
    np.testing.assert_array_equal(loaded.get_traces(1), traces[:250])
    assert_holds(loaded, traces)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("time_first", [True, False])
def test_npy_of_either_orientation_and_order(tmp_path, traces, order, time_first):
    np.save(tmp_path / "a.npy", np.asarray(traces if time_first else traces.T, order=order))
    loaded = load_recording(str(tmp_path / "a.npy"), RecordingConfig(sampling_frequency=FS, gain_to_uV=0.5))
    assert_holds(loaded, traces)
    np.testing.assert_array_equal(loaded.get_channel_gains(), [0.5] * 4)
    np.testing.assert_array_equal(loaded.get_traces(0, return_in_uV=True), traces * np.float32(0.5))


def test_npy_of_one_dimension_is_one_channel(tmp_path, traces):
    np.save(tmp_path / "a.npy", traces[:, 0])
    assert_holds(load_recording(tmp_path / "a.npy", RATE), traces[:, :1])


@pytest.mark.parametrize("key", ["fs", "sampling_frequency"])
def test_npz_tells_its_sampling_frequency_but_the_setting_wins(tmp_path, traces, key):
    np.savez(tmp_path / "a.npz", **{"data": traces.T, "times": np.arange(3), key: 12000})
    assert_holds(load_recording(tmp_path / "a.npz"), traces, 12000.0)
    assert load_recording(tmp_path / "a.npz", RATE).get_sampling_frequency() == FS


def test_npz_prefers_the_array_called_traces(tmp_path, traces):
    np.savez(tmp_path / "a.npz", other=traces[:9], traces=traces, another=traces[:7], fs=FS)
    assert_holds(load_recording(tmp_path / "a.npz"), traces)


def test_npz_of_segments_in_the_order_of_their_numbers(tmp_path, traces):
    np.savez(tmp_path / "a.npz", fs=FS, **{f"traces_{i}": traces[: 10 + i] for i in (10, 2, 0)})
    loaded = load_recording(tmp_path / "a.npz")
    assert [loaded.get_num_samples(i) for i in range(3)] == [10, 12, 20]


def test_npz_whose_traces_are_not_clear_lists_its_arrays(tmp_path, traces):
    np.savez(tmp_path / "a.npz", first=traces, second=traces, fs=FS)
    with pytest.raises(RecordingError, match=r"first \(600, 4\), second \(600, 4\), fs \(\)"):
        load_recording(tmp_path / "a.npz")


def test_npz_segments_must_agree(tmp_path, traces):
    np.savez(tmp_path / "a.npz", traces_0=traces, traces_1=traces[:, :3], fs=FS)
    with pytest.raises(RecordingError, match=r"differ: \(600, 4\) int16, \(600, 3\) int16"):
        load_recording(tmp_path / "a.npz")


@pytest.mark.parametrize("ending", [".bin", ".dat", ".raw"])
def test_raw_binary(tmp_path, traces, ending):
    path = tmp_path / f"a{ending}"
    traces.tofile(path)
    loaded = load_recording(path, RAW)
    assert_holds(loaded, traces)
    np.testing.assert_array_equal(loaded.get_channel_gains(), [0.5] * 4)


def test_a_format_can_be_forced(tmp_path, traces):
    traces.tofile(tmp_path / "a.xyz")
    config = RecordingConfig(format="binary", sampling_frequency=FS, num_channels=4, dtype="int16")
    assert_holds(load_recording(tmp_path / "a.xyz", config), traces)


def write_mearec(path: Path, traces: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["mearec_version"] = "1.9.0"
        file["recordings"] = traces.astype(np.float32)
        file["channel_positions"] = np.array([[0.0, 0.0, 20.0 * i] for i in range(4)])
        for key, value in {"fs": FS, "duration": len(traces) / FS, "dtype": "float32"}.items():
            file[f"info/recordings/{key}"] = value
        file["info/electrodes/electrode_name"] = "linear-4"
        file["info/electrodes/shape"] = "circle"
        file["info/electrodes/size"] = 5.0
        file["info/electrodes/sortlist"] = "null"


def test_mearec_brings_its_probe(tmp_path, traces):
    write_mearec(tmp_path / "a.h5", traces)
    loaded = load_recording(tmp_path / "a.h5")
    assert_holds(loaded, traces)
    np.testing.assert_array_equal(loaded.get_channel_locations(), [[0, 20 * i] for i in range(4)])


def test_mearec_missing_names_its_extra(tmp_path, traces, monkeypatch):
    write_mearec(tmp_path / "a.h5", traces)
    monkeypatch.setitem(__import__("sys").modules, "MEArec", None)
    with pytest.raises(MissingExtraError, match=r"spikewise\[simulate\]"):
        load_recording(tmp_path / "a.h5")


def write_nwb(path: Path, series: dict[str, np.ndarray]) -> None:
    pynwb = pytest.importorskip("pynwb")
    from datetime import UTC, datetime

    file = pynwb.NWBFile("a test", "an identifier", datetime(2020, 1, 1, tzinfo=UTC))
    device = file.create_device(name="probe")
    group = file.create_electrode_group(name="shank", description="-", location="-", device=device)
    for index in range(4):
        file.add_electrode(group=group, location="-", rel_x=0.0, rel_y=25.0 * index)
    region = file.create_electrode_table_region([0, 1, 2, 3], "all")
    for name, data in series.items():
        file.add_acquisition(pynwb.ecephys.ElectricalSeries(name, data, region, rate=FS, conversion=2e-7))
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)


def test_nwb_chooses_the_series_that_is_not_lfp(tmp_path, traces):
    write_nwb(tmp_path / "a.nwb", {"ElectricalSeries": traces, "ElectricalSeriesLF": traces[:50]})
    loaded = load_recording(tmp_path / "a.nwb")
    assert_holds(loaded, traces)
    np.testing.assert_allclose(loaded.get_channel_gains(), 0.2)
    np.testing.assert_array_equal(loaded.get_channel_locations()[:, 1], [0, 25, 50, 75])
    lfp = RecordingConfig(stream="acquisition/ElectricalSeriesLF")
    assert load_recording(tmp_path / "a.nwb", lfp).get_num_samples(0) == 50


def test_nwb_in_an_h5_file_is_recognised(tmp_path, traces):
    write_nwb(tmp_path / "a.h5", {"ElectricalSeries": traces})
    assert_holds(load_recording(tmp_path / "a.h5"), traces)


def write_open_ephys(folder: Path, streams: dict[str, np.ndarray]) -> None:
    entries = []
    for index, (name, data) in enumerate(streams.items()):
        stream = folder / "continuous" / f"Neuropix-PXI-100.{name}"
        stream.mkdir(parents=True)
        data.tofile(stream / "continuous.dat")
        np.save(stream / "sample_numbers.npy", np.arange(len(data)))
        np.save(stream / "timestamps.npy", np.arange(len(data)) / FS)
        channel = {"bit_volts": 0.195, "units": "uV", "description": ""}
        entries.append(
            {
                "folder_name": f"Neuropix-PXI-100.{name}/",
                "sample_rate": FS,
                "source_processor_name": "Neuropix-PXI",
                "source_processor_id": 100,
                "stream_name": name,
                "recorded_processor": "Record Node",
                "recorded_processor_id": 101 + index,
                "num_channels": data.shape[1],
                "channels": [{**channel, "channel_name": f"CH{i}"} for i in range(data.shape[1])],
            }
        )
    structure = {"GUI version": "0.6.0", "continuous": entries, "events": [], "spikes": []}
    (folder / "structure.oebin").write_text(json.dumps(structure))


def test_open_ephys_chooses_the_ap_stream(tmp_path, traces):
    write_open_ephys(
        tmp_path / "Record Node 101" / "experiment1" / "recording1",
        {"ProbeA-AP": traces, "ProbeA-LFP": traces[:60], "Wheel": traces[:70]},
    )
    assert_holds(load_recording(tmp_path), traces)


def test_open_ephys_of_two_probes_lists_the_streams(tmp_path, traces):
    folder = tmp_path / "Record Node 101" / "experiment1" / "recording1"
    write_open_ephys(folder, {"ProbeA-AP": traces, "ProbeB-AP": traces[:500], "ProbeB-LFP": traces[:60]})
    with pytest.raises(
        RecordingError, match=r"3 streams: .*ProbeA-AP.*ProbeB-AP.*ProbeB-LFP.*--stream"
    ) as info:
        load_recording(tmp_path)
    second = next(name for name in str(info.value).split("'") if name.endswith("ProbeB-AP"))
    assert_holds(load_recording(tmp_path, RecordingConfig(stream=second)), traces[:500])
    with pytest.raises(RecordingError, match=r"no stream 'ProbeC'.*ProbeA-AP"):
        load_recording(tmp_path, RecordingConfig(stream="ProbeC"))


def write_spikeglx(folder: Path, kind: str, data: np.ndarray) -> Path:
    channels = data.shape[1] - 1
    counts = (channels, 0, 1) if kind == "ap" else (0, channels, 1)
    table = "".join(f"({i} 0 0 500 250 1)" for i in range(384))
    names = "".join(f"({kind.upper()}{i};{i}:{i})" for i in range(channels))
    stem = f"run_g0_t0.imec0.{kind}"
    meta = {
        "fileName": f"{stem}.bin",
        "acqApLfSy": "384,384,1",
        "snsApLfSy": ",".join(map(str, counts)),
        "nSavedChans": data.shape[1],
        "snsSaveChanSubset": f"0:{channels - 1},768" if kind == "ap" else f"384:{383 + channels},768",
        "imSampRate": FS,
        "imAiRangeMax": 0.6,
        "imAiRangeMin": -0.6,
        "imMaxInt": 512,
        "imDatPrb_type": 0,
        "imDatPrb_pn": "NP1000",
        "imDatPrb_sn": 1,
        "imDatPrb_slot": 2,
        "imDatPrb_port": 1,
        "imDatHs_pn": "NPM_HS_01",
        "typeThis": "imec",
        "firstSample": 0,
        "fileSizeBytes": data.nbytes,
        "fileTimeSecs": len(data) / FS,
        "~imroTbl": f"(0,384){table}",
        "~snsChanMap": f"(384,384,1){names}(SY0;768:768)",
    }
    (folder / f"{stem}.meta").write_text("\n".join(f"{key}={value}" for key, value in meta.items()))
    data.tofile(folder / f"{stem}.bin")
    return folder / f"{stem}.bin"


def test_spikeglx_folder_or_file(tmp_path, traces):
    file = write_spikeglx(tmp_path, "ap", np.hstack([traces, traces[:, :1]]))
    lfp = write_spikeglx(tmp_path, "lf", np.hstack([traces, traces[:, :1]])[:80])
    for path in (tmp_path, file, file.with_suffix(".meta")):
        loaded = load_recording(path)
        assert_holds(loaded, traces)
        assert (
            loaded.get_channel_locations()[3].tolist()
            == load_probe("neuropixels-1.0").probes[0].contact_positions[3].tolist()
        )
    assert load_recording(lfp).get_num_samples(0) == 80


def test_maxwell(tmp_path, traces):
    positions = np.zeros(4, dtype=[("channel", "i4"), ("electrode", "i4"), ("x", "f8"), ("y", "f8")])
    positions["channel"] = positions["electrode"] = range(4)
    positions["x"] = 17.5 * np.arange(4)
    with h5py.File(tmp_path / "a.raw.h5", "w") as file:
        file["version"] = np.array([b"20160704"])
        file["mapping"] = positions
        file["sig"] = traces.T.astype(np.uint16)
        file["settings/lsb"] = np.array([6.3e-6])
    loaded = load_recording(tmp_path / "a.raw.h5")
    assert_holds(loaded, traces.astype(np.uint16))
    np.testing.assert_allclose(loaded.get_channel_gains(), 6.3)


def write_mcs(path: Path, traces: np.ndarray, kinds: list[str]) -> None:
    fields = [("ChannelID", "i4"), ("Label", "S8"), ("Unit", "S2"), ("Exponent", "i4"), ("ADZero", "i4")]
    info = np.zeros(4, dtype=[*fields, ("Tick", "i8"), ("ConversionFactor", "i8")])
    info["ChannelID"], info["Unit"], info["Tick"], info["Exponent"] = range(4), b"V", 50, -9
    info["ConversionFactor"] = 100
    with h5py.File(path, "w") as file:
        for index, kind in enumerate(kinds):
            stream = file.create_group(f"Data/Recording_0/AnalogStream/Stream_{index}")
            stream.attrs["DataSubType"] = np.bytes_(kind)
            stream["ChannelData"] = traces.T if kind == "Electrode" else traces.T[:, :50]
            stream["ChannelDataTimeStamps"] = np.array([[0, 0, stream["ChannelData"].shape[1] - 1]])
            stream["InfoChannel"] = info


def test_multi_channel_systems_takes_the_electrode_stream(tmp_path, traces):
    write_mcs(tmp_path / "a.h5", traces, ["Auxiliary", "Electrode"])
    loaded = load_recording(tmp_path / "a.h5")
    np.testing.assert_array_equal(loaded.get_traces(0), traces)
    assert loaded.get_sampling_frequency() == pytest.approx(FS)
    np.testing.assert_allclose(loaded.get_channel_gains(), 0.1)
    auxiliary = load_recording(tmp_path / "a.h5", RecordingConfig(stream="Stream_0"))
    assert auxiliary.get_num_samples(0) == 50


def test_multi_channel_systems_raw_export_is_not_taken_for_plain_samples(tmp_path, traces):
    samples = (traces.astype(np.int32) + 32768).astype(np.uint16)
    header = (
        "MCS MC_DataTool binary conversion\r\nVersion 2.6.15\r\nSample rate = 20000\r\nADC zero = 32768\r\n"
        "El = 0.25\u00b5V/AD\r\nStreams = El_12;El_13;El_21;El_22\r\nEOH\r\n"
    )
    (tmp_path / "a.raw").write_bytes(header.encode("Windows-1252") + samples.tobytes())
    loaded = load_recording(tmp_path / "a.raw")
    assert_holds(loaded, samples)
    np.testing.assert_allclose(loaded.get_traces(0, return_in_uV=True), traces * 0.25)


def write_neuralynx(path: Path, channel: int, samples: np.ndarray) -> None:
    header = (
        "######## Neuralynx Data File Header\r\n-FileType NCS\r\n-FileVersion 3.4\r\n-RecordSize 1044\r\n"
        '-ApplicationName Cheetah "6.4.1"\r\n-TimeCreated 2020/01/01 10:00:00\r\n'
        f"-TimeClosed 2020/01/01 11:00:00\r\n-AcqEntName CSC{channel}\r\n-ADChannel {channel}\r\n"
        "-SamplingFrequency 32000\r\n-ADBitVolts 0.00000005\r\n-ADMaxValue 32767\r\n-NumADChannels 1\r\n"
        "-AcquisitionSystem AcqSystem1 DigitalLynxSX\r\n"
        "-InputRange 1000\r\n-InputInverted False\r\n-DspLowCutFilterEnabled False\r\n"
    )
    record = np.dtype(
        [("time", "u8"), ("channel", "u4"), ("rate", "u4"), ("valid", "u4"), ("samples", "i2", 512)]
    )
    records = np.zeros(len(samples) // 512, dtype=record)
    records["time"] = np.arange(len(records)) * 16000
    records["channel"], records["rate"], records["valid"] = channel, 32000, 512
    records["samples"] = samples.reshape(-1, 512)
    path.write_bytes(header.encode().ljust(16384, b"\0") + records.tobytes())


def test_neuralynx_folder_or_one_file(tmp_path):
    samples = np.random.default_rng(0).integers(-900, 900, (1024, 3)).astype(np.int16)
    for channel in range(3):
        write_neuralynx(tmp_path / f"CSC{channel}.ncs", channel, samples[:, channel])
    assert_holds(load_recording(tmp_path), samples, 32000.0)
    assert_holds(load_recording(tmp_path / "CSC1.ncs"), samples[:, 1:2], 32000.0)


def test_blackrock_takes_the_file_that_is_named(tmp_path, traces):
    for number, period in ((3, 15), (5, 1)):
        header = b"NEURALSG" + b"30 kS/s".ljust(16, b"\0")
        numbers = np.array([period, 4, 1, 2, 3, 4], dtype="<u4").tobytes()
        (tmp_path / f"a.ns{number}").write_bytes(header + numbers + traces[: 100 * number].tobytes())
    for number, rate in ((3, 2000.0), (5, 30000.0)):
        loaded = load_recording(tmp_path / f"a.ns{number}")
        assert_holds(loaded, traces[: 100 * number - 1], rate)  # neo leaves the last frame out


# ---------------------------------------------------------------- what is refused


def test_missing_path_and_unknown_formats(tmp_path, traces):
    with pytest.raises(RecordingError, match=r"a\.nwb does not exist"):
        load_recording(tmp_path / "a.nwb")
    with pytest.raises(RecordingError, match=r"holds none of binary\.json"):
        load_recording(tmp_path)
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(RecordingError, match=r"ends in '\.pkl'.*--format"):
        load_recording(tmp_path / "a.pkl")
    with pytest.raises(RecordingError, match=r"no format 'spikeglxx'.*Did you mean 'spikeglx'"):
        load_recording(tmp_path / "a.pkl", RecordingConfig(format="spikeglxx"))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["weather"] = 1
    with pytest.raises(RecordingError, match="HDF5 file that holds weather"):
        load_recording(tmp_path / "a.h5")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.nwb"])
def test_files_cut_in_half(tmp_path, traces, name):
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, traces)
    elif name == "a.npz":
        np.savez(path, traces=traces, fs=FS)
    elif name == "a.h5":
        write_mearec(path, traces)
    else:
        write_nwb(path, {"ElectricalSeries": traces})
    load_recording(path, RATE)
    cut_in_half(path)
    with pytest.raises(RecordingError, match=r"cannot be read.*(complete|copied whole)"):
        load_recording(path, RATE)


def test_raw_files_of_broken_frames(tmp_path, traces):
    traces.tofile(tmp_path / "a.bin")
    os.truncate(tmp_path / "a.bin", 100 * 8 + 3)
    with pytest.raises(RecordingError, match=r"803 bytes.*100 frames and 3 bytes.*4 channels of int16 has 8"):
        load_recording(tmp_path / "a.bin", RAW)
    as_recording(traces, probe=False).save(folder=tmp_path / "si", verbose=False, progress_bar=False)
    os.truncate(tmp_path / "si" / "traces_cached_seg1.raw", 1001)
    with pytest.raises(RecordingError, match=r"traces_cached_seg1\.raw holds 1001 bytes"):
        load_recording(tmp_path / "si")


def test_zarr_with_a_lost_chunk(tmp_path, traces):
    as_recording(traces, probe=False).save(
        folder=tmp_path / "a.zarr", format="zarr", verbose=False, progress_bar=False
    )
    (tmp_path / "a.zarr" / "traces_seg1" / "0.0").unlink()
    with pytest.raises(RecordingError, match="1 of 1 chunks of traces_seg1"):
        load_recording(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("missing", "options"),
    [
        ("sampling_frequency", {"num_channels": 4, "dtype": "int16"}),
        ("num_channels", {"sampling_frequency": FS, "dtype": "int16"}),
        ("dtype", {"sampling_frequency": FS, "num_channels": 4}),
        ("sampling_frequency, num_channels, dtype", {}),
    ],
)
def test_raw_binary_lacking_a_setting(tmp_path, traces, missing, options):
    traces.tofile(tmp_path / "a.bin")
    option = "--" + missing.split(", ")[0].replace("_", "-")
    with pytest.raises(RecordingError, match=f"does not contain its {missing}\\..*{option}"):
        load_recording(tmp_path / "a.bin", RecordingConfig(**options))


@pytest.mark.parametrize("dtype", ["int17", "complex64", "object"])
def test_raw_binary_of_a_type_that_is_no_number(tmp_path, traces, dtype):
    traces.tofile(tmp_path / "a.bin")
    with pytest.raises(RecordingError, match="int16"):
        load_recording(
            tmp_path / "a.bin", RecordingConfig(sampling_frequency=FS, num_channels=4, dtype=dtype)
        )


def test_arrays_that_are_refused(tmp_path, traces):
    np.save(tmp_path / "a.npy", traces)
    with pytest.raises(RecordingError, match="does not contain its sampling frequency"):
        load_recording(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((0, 4)))
    with pytest.raises(RecordingError, match="is empty: "):
        load_recording(tmp_path / "b.npy", RATE)
    np.save(tmp_path / "c.npy", np.zeros((5, 4, 2)))
    with pytest.raises(RecordingError, match=r"shape \(5, 4, 2\)"):
        load_recording(tmp_path / "c.npy", RATE)
    np.save(tmp_path / "d.npy", traces.astype(complex))
    with pytest.raises(RecordingError, match="complex128"):
        load_recording(tmp_path / "d.npy", RATE)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["a.npy", "a.npz", "si", "a.zarr"])
def test_nothing_is_unpickled(tmp_path, traces, kind):
    path, mark = tmp_path / kind, tmp_path / "exploded"
    bombs = np.array([Bomb(mark)] * 4, dtype=object)
    if kind == "a.npy":
        np.save(path, bombs, allow_pickle=True)
    elif kind == "a.npz":
        np.savez(path, traces=bombs, fs=FS)
    else:
        layout = "binary" if kind == "si" else "zarr"
        as_recording(traces, probe=False).save(folder=path, format=layout, verbose=False, progress_bar=False)
        if kind == "si":
            np.save(path / "properties" / "quality.npy", bombs, allow_pickle=True)
        else:
            import numcodecs
            import zarr

            group = zarr.open_group(str(path), mode="a")["properties"]
            group.create_dataset("quality", data=bombs, object_codec=numcodecs.Pickle())
    with pytest.raises(RecordingError, match=r"Python objects|'properties/quality' of .* is a pickle"):
        load_recording(path, RATE)
    assert not mark.exists()


# ---------------------------------------------------------------- probes


@pytest.mark.parametrize(
    ("name", "num_channels", "first", "last"),
    [
        ("neuropixels-1.0", 384, [(16, 0), (48, 0), (0, 20), (32, 20)], (32, 3820)),
        ("neuropixels-2.0", 384, [(0, 0), (32, 0), (0, 15)], (32, 2865)),
        ("neuropixels-ultra", 384, [(0, 0), (6, 0)], (42, 282)),
        ("linear-16", 16, [(0, 0), (0, 20)], (0, 300)),
        ("square-3", 9, [(0, 0), (0, 15), (0, 30), (15, 0)], (30, 30)),
        ("tetrode", 4, [(10, 0), (0, 10)], (0, -10)),
        ("stereotrode", 2, [(0, 0)], (0, 20)),
        ("tetrode-3", 12, [(10, 0), (0, 10), (-10, 0), (0, -10), (310, 0)], (600, -10)),
    ],
)
def test_catalogue_positions(name, num_channels, first, last):
    group = load_probe(name, num_channels)
    positions = group.get_global_contact_positions()
    assert positions.shape == (num_channels, 2)
    np.testing.assert_allclose(positions[: len(first)], first, atol=1e-9)
    np.testing.assert_allclose(positions[-1], last, atol=1e-9)
    wiring = group.get_global_device_channel_indices()["device_channel_indices"]
    np.testing.assert_array_equal(wiring, np.arange(num_channels))


def test_catalogue_names_can_all_be_built():
    for name in catalogue_names():
        assert load_probe(name.replace("-N", "-2")).get_contact_count() >= 2


def test_four_shanks_are_wired_in_blocks_of_48():
    recording = NumpyRecording(np.zeros((10, 384), dtype=np.int16), FS)
    attached = attach_probe(recording, "neuropixels-2.0-4shank")
    shanks = attached.get_property("group").reshape(8, 48)
    assert (shanks == shanks[:, :1]).all()
    assert shanks[:, 0].tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    rows = attached.get_channel_locations()[:, 1].reshape(8, 48)
    assert rows.min(axis=1).tolist() == [0, 0, 360, 360, 0, 0, 360, 360]


def test_attaching_leaves_the_recording_alone_and_keeps_its_probe(traces):
    recording = NumpyRecording(traces, FS)
    attached = attach_probe(recording, "tetrode")
    assert not recording.has_probe()
    assert attached.get_channel_locations()[0].tolist() == [10, 0]
    assert_holds(attached, traces)
    assert attach_probe(attached, None) is attached
    assert attach_probe(attached, "linear-4").get_channel_locations()[3].tolist() == [0, 60]


def test_rows_of_tetrodes_are_groups():
    attached = attach_probe(NumpyRecording(np.zeros((10, 8), dtype=np.int16), FS), "tetrode-2")
    assert attached.get_property("group").tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_one_channel_needs_no_probe(traces):
    attached = attach_probe(NumpyRecording(traces[:, :1], FS), None)
    assert attached.get_channel_locations().tolist() == [[0, 0]]
    with pytest.raises(ProbeError, match=r"has no positions of its 4 channels.*--probe.*tetrode"):
        attach_probe(NumpyRecording(traces, FS), None)


def test_positions_that_are_not_numbers_are_none(traces):
    recording = NumpyRecording(traces, FS)
    probe = probeinterface.Probe()
    probe.set_contacts([[0, 0], [0, 1], [0, 2], [0, np.nan]])
    recording.set_probe(wired(probe))
    with pytest.raises(ProbeError, match="has no positions of its 4 channels"):
        attach_probe(recording, None)


def test_probe_files(tmp_path, traces):
    probe = wired(probeinterface.generate_tetrode())
    probe.set_device_channel_indices([3, 2, 1, 0])
    probeinterface.write_probeinterface(tmp_path / "a.json", probe)
    attached = attach_probe(NumpyRecording(traces, FS), tmp_path / "a.json")
    np.testing.assert_allclose(attached.get_channel_locations()[3], [10, 0])
    write_mearec(tmp_path / "a.h5", traces)
    assert load_probe(tmp_path / "a.h5", 4).get_global_contact_positions()[3].tolist() == [0, 60]


def test_prb_of_tetrodes_at_one_place_are_moved_apart(tmp_path):
    (tmp_path / "a.prb").write_text(
        "channel_groups = {g: {'channels': list(range(4 * g, 4 * g + 4)),"
        " 'geometry': {4 * g + i: (10.0 * i, 0) for i in range(4)}} for g in range(2)}"
    )
    positions = load_probe(tmp_path / "a.prb", 8).get_global_contact_positions()
    np.testing.assert_array_equal(positions[:, 0], [0, 10, 20, 30, 330, 340, 350, 360])


def test_prb_that_would_run_a_program_is_refused(tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "a.prb").write_text(f"channel_groups = {{}}\nopen({str(mark)!r}, 'w')")
    with pytest.raises(ProbeError, match="holds the code Call in line 2"):
        load_probe(tmp_path / "a.prb", 4)
    assert not mark.exists()


@pytest.mark.parametrize("given", ["linear-5", "tetrode-2", "neuropixels-1.0", "square-4"])
def test_probe_of_another_size_states_both(traces, given):
    count = {"linear-5": 5, "tetrode-2": 8, "neuropixels-1.0": 384, "square-4": 16}[given]
    with pytest.raises(ProbeError, match=f"has {count} connected channels and the recording has 4"):
        attach_probe(NumpyRecording(traces, FS), given)


def test_probes_that_are_refused(tmp_path, traces):
    with pytest.raises(
        ProbeError, match=r"no probe 'neuropixel-1'.*Known are.*Did you mean 'neuropixels-1.0'"
    ):
        load_probe("neuropixel-1", 384)
    with pytest.raises(ProbeError, match="no probe 'linear-0'"):
        load_probe("linear-0", 4)
    with pytest.raises(ProbeError, match=r"a\.json does not exist"):
        load_probe(tmp_path / "a.json", 4)
    (tmp_path / "a.json").write_text('{"specification": "probeinter')
    with pytest.raises(ProbeError, match=r"a\.json cannot be read: JSONDecodeError"):
        load_probe(tmp_path / "a.json", 4)
    (tmp_path / "a.txt").write_text("0 0")
    with pytest.raises(ProbeError, match=r"ends in '\.txt'"):
        load_probe(tmp_path / "a.txt", 4)
    probe = probeinterface.generate_tetrode()
    probe.set_device_channel_indices([0, 1, 2, 7])
    probeinterface.write_probeinterface(tmp_path / "b.json", probe)
    with pytest.raises(ProbeError, match="from 0 to 7; missing: 3"):
        load_probe(tmp_path / "b.json", 4)
    probe.set_device_channel_indices([0, 1, 2, -1])
    probeinterface.write_probeinterface(tmp_path / "c.json", probe)
    with pytest.raises(ProbeError, match="3 connected channels and the recording has 4"):
        load_probe(tmp_path / "c.json", 4)
    assert load_probe(tmp_path / "c.json", 3).get_contact_count() == 4


def test_library_probe_that_cannot_be_fetched(monkeypatch):
    def no_network(manufacturer, name):
        raise OSError("no network")

    monkeypatch.setattr(probeinterface, "get_probe", no_network)
    with pytest.raises(ProbeError, match=r"'neuronexus:A1x32' cannot be fetched: OSError: no network"):
        load_probe("neuronexus:A1x32", 32)


# ---------------------------------------------------------------- real data


@pytest.mark.realdata
def test_real_arrays_load(data_folder):
    locust = load_recording(data_folder / "real" / "locust20010201_trial01_raw_tetrode_unlabelled.npz")
    assert (locust.get_num_channels(), locust.get_num_samples(0)) == (4, 431548)
    assert (locust.get_sampling_frequency(), locust.get_dtype()) == (15000.0, np.int16)


@pytest.mark.realdata
def test_template_files_are_no_recordings(data_folder):
    with pytest.raises(RecordingError, match="MEArec templates, not a recording"):
        load_recording(data_folder / "mearec" / "templates_tetrode_seed671.h5")
