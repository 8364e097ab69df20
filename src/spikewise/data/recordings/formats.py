"""Load a recording of any format from its path.

The format is found from the path: of a folder by its content, of a file by its ending, of an ``.h5`` file by
its content. SpikeInterface, neo and NumPy read the files; nothing in a file is run or unpickled. Traces stay
on disk if the format allows it; ``.npz`` archives are compressed and are read into memory.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from spikeinterface.core import BaseRecording
from spikeinterface.core.binaryfolder import read_binary_folder

from spikewise.core.config import RecordingConfig
from spikewise.core.errors import MissingExtraError, RecordingError
from spikewise.core.untrusted import check_nesting, load_npy, parsing
from spikewise.data.recordings.arrays import check_dtype, check_whole_frames, read_binary, read_numpy
from spikewise.data.recordings.clock import (
    TimedRecording,
    has_clock,
    openephys_sample_numbers,
    rate_of_clock,
)

logger = logging.getLogger(__name__)

# Streams that hold spikes by the convention of their system: SpikeGLX and Open Ephys "AP",
# Intan amplifier channels, Blackrock's two 30 kHz files, Open Ephys legacy "CH".
_SPIKE_STREAM = re.compile(
    r"(^|[.\-_])ap$|electricalseriesap$|rh[ds]2000 amplifier channel|nsx[56]$|signals ch$", re.IGNORECASE
)
_OTHER_STREAM = re.compile(
    r"sync|nidq|obx|adc|aux|analog|digital|supply|temperature|stim|event|dc amplifier"
    r"|(^|[.\-_/]|series)lfp?($|[.\-_/])",
    re.IGNORECASE,
)
# Accelerometers, analog inputs and synchronisation that some systems write beside the electrodes.
_NO_ELECTRODE = re.compile(r"(.*[_\-])?(aux|adc|ainp|din|dout|sync|sy|trig|vdd)[_\- ]?\d*$", re.IGNORECASE)
_DEFAULTS = RecordingConfig()
_EXTRAS = {"MEArec": "simulate", "pynwb": "nwb"}


@dataclass(frozen=True)
class _Format:
    description: str
    read: Callable[[Path, RecordingConfig], BaseRecording]


def readable_formats() -> dict[str, str]:
    """Return each format that :func:`load_recording` reads, with a description of one line."""
    return {name: entry.description for name, entry in _FORMATS.items()}


def load_recording(path: str | Path, config: RecordingConfig = _DEFAULTS) -> BaseRecording:
    """Load a recording.

    Parameters
    ----------
    path : str or Path
        A file or folder in one of the formats of :func:`readable_formats`.
    config : RecordingConfig
        What the path does not contain. ``format`` forces a format, ``stream`` chooses among streams; a raw
        binary file needs ``sampling_frequency``, ``num_channels`` and ``dtype``, an array the first.

    Returns
    -------
    BaseRecording
        The recording as stored, in raw units, with all segments.

    Raises
    ------
    RecordingError
        If the path is missing, damaged, empty, of no known format, or a needed setting is missing.
    MissingExtraError
        If an optional package that reads the format is not installed.
    """
    path = Path(path)
    with reading_errors(f"the recording {path}"):
        if not path.exists():
            raise RecordingError(
                f"the recording {path} does not exist",
                "a file or folder is needed",
                "correct the path; a relative path starts at the folder that the program runs in",
            )
        name = config.format or _find_format(path)
    if name not in _FORMATS:
        close = difflib.get_close_matches(name, _FORMATS, n=1)
        raise RecordingError(
            f"there is no format {name!r}",
            f"known are {', '.join(_FORMATS)}",
            f"did you mean {close[0]!r}?" if close else "leave --format out to find it from the path",
        )
    with reading_errors(f"the recording {path}, taken as {name}"):
        recording = _only_electrodes(_FORMATS[name].read(path, config))
        annotations = {key: recording.get_annotation(key) for key in recording.get_annotation_keys()}
        check_nesting(annotations, "what it is annotated with")
        _check_recording(recording, path)
    logger.info("Loaded %s as %s: %d channels", path, name, recording.get_num_channels())
    return recording


@contextmanager
def reading_errors(what: str) -> Iterator[None]:
    """Turn any error of another library's reader into a :class:`RecordingError` about `what`."""

    def refuse(reason: str) -> RecordingError:
        return RecordingError(
            f"{what} cannot be read: {reason}",
            "it must be a complete, undamaged recording",
            "check that it was copied whole, or name its format with --format",
        )

    with parsing(refuse):
        try:
            yield
        except ModuleNotFoundError as error:
            if error.name not in _EXTRAS:
                raise
            raise MissingExtraError(error.name, _EXTRAS[error.name], f"reading {what}") from error


def _only_electrodes(recording: BaseRecording) -> BaseRecording:
    """Leave out channels that by their names are no electrodes, unless a probe says that they are."""
    if recording.has_probe():
        return recording
    names = recording.get_property("channel_name")
    names = [str(name) for name in (recording.channel_ids if names is None else names)]
    is_other = np.array([bool(_NO_ELECTRODE.match(name)) for name in names])
    if is_other.all() or not is_other.any():
        return recording
    left_out = ", ".join(name for name, other in zip(names, is_other, strict=True) if other)
    logger.warning("left out, since they are no electrodes by their names: %s", left_out)
    return recording.select_channels(recording.channel_ids[~is_other])


def _check_recording(recording: BaseRecording, path: Path) -> None:
    num_samples = sum(recording.get_num_samples(i) for i in range(recording.get_num_segments()))
    if recording.get_num_channels() == 0 or num_samples == 0:
        raise RecordingError(
            f"the recording {path} is empty: {recording.get_num_channels()} channels, {num_samples} samples",
            "at least one sample of one channel is needed",
            "check the path and that the file was copied whole",
        )
    if not recording.get_sampling_frequency() > 0:
        raise RecordingError(
            f"the recording {path} has the sampling frequency {recording.get_sampling_frequency()} Hz",
            "it must be above 0",
            "give --sampling-frequency if the format is binary or numpy, else correct the file",
        )
    check_dtype(recording.get_dtype(), path)


def _find_format(path: Path) -> str:
    if path.is_dir():
        return _find_folder_format(path)
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return _find_h5_format(path)
    if suffix in (".bin", ".meta") and path.with_suffix(".meta").is_file():
        return "spikeglx"
    if suffix == ".raw":
        with path.open("rb") as file:
            return "mcsraw" if file.read(15) == b"MCS MC_DataTool" else "binary"
    for pattern, name in _SUFFIXES.items():
        if re.fullmatch(pattern, suffix):
            return name
    raise _unknown_format(path, f"ends in {suffix!r}" if suffix else "has no ending")


def _find_folder_format(folder: Path) -> str:
    if folder.suffix == ".zarr" or (folder / ".zgroup").is_file():
        return "zarr"
    for pattern, name in _FOLDER_CONTENTS.items():
        if next(folder.glob(pattern), None):
            return name
    raise _unknown_format(folder, "is a folder that holds none of " + ", ".join(_FOLDER_CONTENTS))


def _find_h5_format(path: Path) -> str:
    with h5py.File(path, "r") as file:
        if "nwb_version" in file.attrs:
            return "nwb"
        if "recordings" in file and "channel_positions" in file:
            return "mearec"
        if "mapping" in file or "wells" in file:
            return "maxwell"
        if "Data/Recording_0/AnalogStream" in file:
            return "mcsh5"
        if "templates" in file and "locations" in file:
            raise RecordingError(
                f"the recording {path} holds MEArec templates, not a recording",
                "a MEArec recording file holds 'recordings' and 'channel_positions'",
                "make a recording from the templates with MEArec, or give the recording file",
            )
        raise _unknown_format(path, f"is an HDF5 file that holds {', '.join(file) or 'nothing'}")


def _unknown_format(path: Path, reason: str) -> RecordingError:
    return RecordingError(
        f"the format of {path} is not known: it {reason}",
        f"formats are {', '.join(_FORMATS)}",
        "name the format with --format",
    )


def _choose_stream(names: list[str], wanted: str | None, path: Path) -> str:
    """Return the wanted stream, or the only one that holds spikes."""
    if wanted is not None and wanted not in names:
        close = difflib.get_close_matches(wanted, names, n=1)
        raise RecordingError(
            f"the recording {path} has no stream {wanted!r}",
            f"its streams are {', '.join(map(repr, names)) or 'none'}",
            f"did you mean {close[0]!r}?" if close else "give one of these with --stream",
        )
    if wanted is not None:
        return wanted
    spikes = [name for name in names if _SPIKE_STREAM.search(name)]
    others = [name for name in names if not _OTHER_STREAM.search(name)]
    for candidates in (names, spikes, others):
        if len(candidates) == 1:
            return candidates[0]
    raise RecordingError(
        f"the recording {path} holds {len(names)} streams"
        + (f": {', '.join(map(repr, names))}" if names else ""),
        "one stream of voltages is sorted at a time",
        "choose one with --stream" if names else "check that the files of the voltages are in place",
    )


def _read_neo(class_name: str, path: Path, config: RecordingConfig, **options: Any) -> BaseRecording:
    """Choose the stream, and read it with one of SpikeInterface's neo classes."""
    from spikeinterface.extractors import extractor_classes

    extractor = getattr(extractor_classes, class_name)
    names, ids = extractor.get_streams(path)
    if config.stream in ids:
        return extractor(path, stream_id=config.stream, **options)
    chosen = _choose_stream(names, config.stream, path)
    return extractor(path, stream_id=ids[names.index(chosen)], **options)


def _neo_reader(class_name: str, **options: Any) -> Callable[[Path, RecordingConfig], BaseRecording]:
    return lambda path, config: _read_neo(class_name, path, config, **options)


def _read_spikeinterface(path: Path, config: RecordingConfig) -> BaseRecording:
    for file in sorted((path / "properties").glob("*.npy")):
        load_npy(file, mmap_mode="r")  # raises for pickles, which SpikeInterface would read
    recording = read_binary_folder(path)
    layout = recording.get_binary_description()
    for file in layout["file_paths"]:
        check_whole_frames(Path(file), layout["num_channels"], layout["dtype"], layout["file_offset"])
    return recording


def _read_zarr(path: Path, config: RecordingConfig) -> BaseRecording:
    import zarr
    from spikeinterface.core.zarrextractors import read_zarr_recording

    def check(name: str, item: Any) -> None:
        if not isinstance(item, zarr.Array):
            return
        codecs = [*(item.filters or []), item.compressor]
        if any("pickle" in getattr(codec, "codec_id", "") for codec in codecs):
            raise RecordingError(
                f"the array {name!r} of {path} is a pickle, which can run any program",
                "arrays of numbers and text are read",
                "save the recording again with SpikeInterface",
            )
        if re.fullmatch(r"traces_seg\d+", name) and item.nchunks_initialized < item.nchunks:
            raise RecordingError(
                f"{item.nchunks - item.nchunks_initialized} of {item.nchunks} chunks of {name} "
                f"in {path} are missing",
                "a complete recording is needed",
                "copy the folder again",
            )

    zarr.open_group(str(path), mode="r").visititems(check)
    return read_zarr_recording(path)


def _read_mearec(path: Path, config: RecordingConfig) -> BaseRecording:
    from spikeinterface.extractors.extractor_classes import MEArecRecordingExtractor

    return MEArecRecordingExtractor(path)


def _read_nwb(path: Path, config: RecordingConfig) -> BaseRecording:
    from spikeinterface.extractors.nwbextractors import NwbRecordingExtractor

    series = NwbRecordingExtractor.fetch_available_electrical_series_paths(path)
    chosen = _choose_stream(series, config.stream, path)
    recording = NwbRecordingExtractor(path, electrical_series_path=chosen, load_time_vector=True)
    if not has_clock(recording, 0):
        return recording
    rate = rate_of_clock(recording, 0)  # SpikeInterface takes the step between the first times
    return TimedRecording(recording, "parent", rate)


def _read_spikeglx(path: Path, config: RecordingConfig) -> BaseRecording:
    if path.is_dir():
        return _read_neo("SpikeGLXRecordingExtractor", path, config)
    stream = config.stream or ".".join(path.stem.split(".")[-2:])  # run_g0_t0.imec0.ap -> imec0.ap
    return _read_neo("SpikeGLXRecordingExtractor", path.parent, RecordingConfig(stream=stream))


def _read_openephys(path: Path, config: RecordingConfig) -> BaseRecording:
    folder = path if path.is_dir() else path.parent
    if next(folder.glob("**/structure.oebin"), None) is None:
        return _in_order_of_numbers(_read_neo("OpenEphysLegacyRecordingExtractor", folder, config))
    recording = _read_neo("OpenEphysBinaryRecordingExtractor", folder, config)
    numbers = [openephys_sample_numbers(recording, k) for k in range(recording.get_num_segments())]
    has_gaps = any(one is not None for one in numbers)
    return TimedRecording(recording, "openephys") if has_gaps else recording


def _read_intan(path: Path, config: RecordingConfig) -> BaseRecording:
    if path.is_file():
        return _read_intan_file(path, config)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".rhd", ".rhs"))
    if len(files) == 1 or (path / "info.rhd").is_file() or (path / "info.rhs").is_file():
        return _read_intan_file(files[0], config)
    from spikeinterface.extractors.extractor_classes import IntanSplitFilesRecordingExtractor
    from spikeinterface.extractors.neoextractors.intan import IntanRecordingExtractor

    names, _ = IntanRecordingExtractor.get_streams(files[0])
    return IntanSplitFilesRecordingExtractor(path, stream_name=_choose_stream(names, config.stream, path))


def _read_intan_file(path: Path, config: RecordingConfig) -> BaseRecording:
    recording = _read_neo("IntanRecordingExtractor", path, config, ignore_integrity_checks=True)
    has_gaps = getattr(recording.neo_reader, "discontinuous_timestamps", False)  # type: ignore[attr-defined]
    return TimedRecording(recording, "intan") if has_gaps else recording


def _read_blackrock(path: Path, config: RecordingConfig) -> BaseRecording:
    recording: Any
    if path.suffix.lower() == ".nev":
        recording = _read_neo("BlackrockRecordingExtractor", path, config, gap_tolerance_ms=np.inf)
    else:
        from spikeinterface.extractors.extractor_classes import BlackrockRecordingExtractor

        # one stream; neo would list the files beside it too
        recording = BlackrockRecordingExtractor(path, gap_tolerance_ms=np.inf)
    packets = recording.neo_reader._nsx_data_header[int(recording.stream_id)]
    has_times = any("timestamps_memmap_kwargs" in packet for packet in packets)
    return TimedRecording(recording, "blackrock") if has_times else recording


def _in_order_of_numbers(recording: BaseRecording) -> BaseRecording:
    """Return the channels by the numbers in their names: of one file each, neo reads CSC10 before CSC2."""
    names = recording.get_property("channel_name")
    names = recording.channel_ids if names is None else names
    keys = [
        [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(name))] for name in names
    ]
    order = sorted(range(len(keys)), key=lambda index: keys[index])
    if order == list(range(len(keys))):
        return recording
    logger.info("Channels in the order of their numbers: %s", ", ".join(str(names[index]) for index in order))
    return recording.select_channels(recording.channel_ids[order])


def _read_neuralynx(path: Path, config: RecordingConfig) -> BaseRecording:
    if path.is_dir():
        return _in_order_of_numbers(_read_neo("NeuralynxRecordingExtractor", path, config))
    from spikeinterface.extractors.extractor_classes import NeuralynxRecordingExtractor

    others = [file.name for file in path.parent.iterdir() if file.is_file() and file != path]
    return NeuralynxRecordingExtractor(path.parent, exclude_filename=others)


def _read_mcsh5(path: Path, config: RecordingConfig) -> BaseRecording:
    from spikeinterface.extractors.extractor_classes import MCSH5RecordingExtractor

    with h5py.File(path, "r") as file:
        streams = file["Data/Recording_0/AnalogStream"]
        voltages = [name for name in streams if _is_electrode_stream(streams[name].attrs)]
        names = voltages if config.stream is None else list(streams)
    stream = _choose_stream(names, config.stream, path)
    return MCSH5RecordingExtractor(path, stream_id=int(stream.removeprefix("Stream_")))


def _is_electrode_stream(attributes: Any) -> bool:
    kind = attributes.get("DataSubType", "Electrode")
    return (kind.decode() if isinstance(kind, bytes) else str(kind)).strip() == "Electrode"


_FORMATS = {
    "spikeinterface": _Format("SpikeInterface binary folder", _read_spikeinterface),
    "zarr": _Format("SpikeInterface zarr folder", _read_zarr),
    "mearec": _Format("MEArec recording, .h5", _read_mearec),
    "nwb": _Format("Neurodata Without Borders, .nwb (HDF5)", _read_nwb),
    "spikeglx": _Format("SpikeGLX folder, or its .bin or .meta", _read_spikeglx),
    "openephys": _Format("Open Ephys folder, binary or legacy", _read_openephys),
    "intan": _Format("Intan .rhd or .rhs, or a folder of them", _read_intan),
    "blackrock": _Format("Blackrock .ns1 to .ns6, or .nev beside them", _read_blackrock),
    "neuralynx": _Format("Neuralynx folder, or one .ncs", _read_neuralynx),
    "plexon": _Format("Plexon .plx", _neo_reader("PlexonRecordingExtractor")),
    "plexon2": _Format("Plexon .pl2", _neo_reader("Plexon2RecordingExtractor")),
    "mcsraw": _Format("Multi Channel Systems .raw export", _neo_reader("MCSRawRecordingExtractor")),
    "mcsh5": _Format("Multi Channel Systems .h5", _read_mcsh5),
    "maxwell": _Format(
        "MaxWell .raw.h5", _neo_reader("MaxwellRecordingExtractor", install_maxwell_plugin=False)
    ),
    "binary": _Format(
        "raw samples .bin .dat .raw; needs sampling_frequency, num_channels and dtype", read_binary
    ),
    "numpy": _Format("NumPy .npy or .npz; needs sampling_frequency unless the .npz holds fs", read_numpy),
}
_SUFFIXES = {
    r"\.nwb": "nwb",
    r"\.oebin|\.continuous": "openephys",
    r"\.rh[ds]": "intan",
    r"\.ns[1-6]|\.nev": "blackrock",
    r"\.ncs": "neuralynx",
    r"\.plx": "plexon",
    r"\.pl2": "plexon2",
    r"\.bin|\.dat": "binary",
    r"\.npy|\.npz": "numpy",
}
_FOLDER_CONTENTS = {
    "binary.json": "spikeinterface",
    "*.continuous": "openephys",
    "*.ncs": "neuralynx",
    "*.rh[ds]": "intan",
    "**/*.meta": "spikeglx",
    "**/structure.oebin": "openephys",
}
