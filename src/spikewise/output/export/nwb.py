"""Writes units into an NWB file with neuroconv: spike times, waveforms, electrodes, metrics, provenance.

The file is new, or it exists and the units are added. If an existing file has a units table, the table stays
unchanged and the units go to their own table, ``processing/ecephys/spikewise_units``. The provenance of the
units is stored as JSON in ``scratch/spikewise_provenance``.

Conventions: spike times are seconds of the recording's clock; segments whose clocks overlap are laid end to
end. Mean waveforms are in volts, on the electrodes of the unit's row, of which the first has the largest
amplitude.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from spikeinterface.core import BaseRecording, BaseSorting, SortingAnalyzer

from spikewise.core.errors import MissingExtraError, OutputError, SettingError
from spikewise.core.files import writing
from spikewise.core.version import __version__
from spikewise.data.opening import recording_in_file
from spikewise.output.export.config import NwbConfig
from spikewise.output.export.nwb_electrodes import add_electrodes
from spikewise.output.export.spike_times import TimedSorting

if TYPE_CHECKING:
    from pynwb import NWBFile

logger = logging.getLogger(__name__)

OWN_TABLE = "spikewise_units"
"""Table for the units if the file has a units table already."""
_PROVENANCE = "spikewise_provenance"
_OF_ARCHIVES = ("subject_id", "species", "age", "brain_area")
"""Settings without which archives refuse a file, or its electrodes cannot be searched."""
_MAX_ELECTRODES = 16
"""Most electrodes of a unit, those nearest to its main channel; as ``PhyConfig.phy_channels``, by hand."""


@dataclass(frozen=True)
class NwbExport:
    """A written file.

    Attributes
    ----------
    path : Path
    num_units, num_spikes : int
        Number of units and spikes that were added.
    table : str
        Path of the table of units in the file.
    """

    path: Path
    num_units: int
    num_spikes: int
    table: str


def require_neuroconv() -> None:
    """Raise unless neuroconv is installed.

    Raises
    ------
    MissingExtraError
    """
    try:
        import neuroconv.tools.spikeinterface  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("neuroconv", "nwb", "writing NWB") from error


def check_nwb_settings(file: Path, append: bool, config: NwbConfig) -> None:
    """Raise unless a new file gets a valid start time, or a file to append to exists.

    Raises
    ------
    OutputError, SettingError
    """
    if append:
        if not file.is_file():
            raise OutputError(f"there is no file {file}", "an NWB file that exists", "leave out --append")
        return
    _start_time(config)


def write_nwb(
    analyzer: SortingAnalyzer,
    recording: BaseRecording,
    provenance: dict[str, Any],
    file: Path,
    append: bool,
    config: NwbConfig,
) -> NwbExport:
    """Write the units of an analyzer into an NWB file.

    Parameters
    ----------
    analyzer : SortingAnalyzer
        Units with templates and metrics.
    recording : BaseRecording
        The raw recording, for the table of electrodes.
    provenance : dict
        The provenance of the units; JSON types only.
    file : Path
        The file; its folder must exist.
    append : bool
        Whether the file exists and the units are added to it.
    config : NwbConfig
        Metadata of a new file.

    Returns
    -------
    NwbExport

    Raises
    ------
    OutputError
        If the file cannot be written, or already holds units of Spikewise.
    """
    from pynwb import NWBHDF5IO

    with writing(file):
        if append:
            if is_open := _is_open(file):  # by the recording, which goes on reading from the file as it was
                place = file.resolve().with_name(file.name + ".partial.nwb")
            else:
                place = file
            try:
                if is_open:
                    shutil.copy2(file, place)
                with NWBHDF5IO(str(place), "r+", load_namespaces=True) as io:
                    nwbfile = io.read()
                    described = recording_in_file(recording, file)
                    table = _add(nwbfile, analyzer, recording, described, provenance, file, config)
                    _write_added(io, nwbfile, file)
                if is_open:
                    place.replace(file.resolve())
            finally:
                if is_open:
                    place.unlink(missing_ok=True)
        else:
            nwbfile = _new_file(config)
            table = _add(nwbfile, analyzer, recording, recording, provenance, file, config)
            partial = file.with_name(file.name + ".partial.nwb")  # pynwb warns of other endings
            with NWBHDF5IO(str(partial), "w") as io:
                io.write(nwbfile)
            partial.replace(file)
    num_spikes = int(analyzer.sorting.count_total_num_spikes())
    return NwbExport(file, analyzer.get_num_units(), num_spikes, table)


def _write_added(io: Any, nwbfile: NWBFile, file: Path) -> None:
    """Write what was added; pynwb adds no electrodes of a new group to a table that is there."""
    try:
        io.write(nwbfile)
    except ValueError as error:
        raise OutputError(
            f"the file {file} cannot take the electrodes of the recording: {' '.join(str(error).split())}",
            "a file whose table of electrodes is empty, or has those of the recording",
            "write the units to a new file",
        ) from error


def _is_open(file: Path) -> bool:
    """Return whether this process, or another, has a file open, so that HDF5 does not change it in place."""
    import h5py

    try:
        with h5py.File(file, "r+"):
            return False
    except OSError:
        with h5py.File(file, "r"):  # a file that cannot be read at all is told
            return True


def _start_time(config: NwbConfig) -> datetime:
    text = config.session_start_time
    if text is None:
        raise SettingError(
            "session_start_time is not given", "an NWB file needs the start of the session", "give it, as in "
            "--session-start-time 2026-03-01T14:00:00+01:00"
        )  # fmt: skip
    try:
        start = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingError(
            f"session_start_time is {text!r}", "it must be a date and time such as 2026-03-01T14:00:00+01:00",
            "change it",
        ) from error  # fmt: skip
    return start if start.tzinfo else start.replace(tzinfo=UTC)


def _new_file(config: NwbConfig) -> NWBFile:
    from pynwb import NWBFile
    from pynwb.file import Subject

    missing = [name for name in _OF_ARCHIVES if getattr(config, name) is None]
    if missing:
        logger.warning(
            "the NWB file lacks metadata that archives such as DANDI ask for; give %s",
            ", ".join("--" + name.replace("_", "-") for name in missing),
        )
    subject = None
    if config.subject_id is not None:
        subject = Subject(
            subject_id=config.subject_id,
            species=config.species,
            sex=config.sex,
            age=config.age,
            description="The animal that was recorded from.",
        )
    return NWBFile(
        session_description=config.session_description,
        identifier=str(uuid.uuid4()),
        session_start_time=_start_time(config),
        experiment_description=config.experiment_description,
        keywords=[word.strip() for word in config.keywords.split(",") if word.strip()],
        experimenter=config.experimenter,
        institution=config.institution,
        subject=subject,
    )


def _add(
    nwbfile: NWBFile,
    analyzer: SortingAnalyzer,
    recording: BaseRecording,
    described: BaseRecording,
    provenance: dict[str, Any],
    file: Path,
    config: NwbConfig,
) -> str:
    """Add electrodes, units and provenance, and return the path of the table of units.

    The electrodes are those of `described`, which has the channels of the recording.
    """
    from neuroconv.tools.spikeinterface import add_sorting_to_nwbfile

    if nwbfile.scratch and _PROVENANCE in nwbfile.scratch:
        raise OutputError(
            f"the file {file} already holds units of Spikewise",
            "a file without them",
            "write to another file",
        )
    means, sds, electrodes = _waveforms(analyzer, add_electrodes(nwbfile, described, config.brain_area))
    rate = float(analyzer.sampling_frequency)
    waveforms = {"means": means, "sds": sds, "sampling_rate": rate, "unit": "volts"}
    sorting = TimedSorting(analyzer.sorting, recording)
    descriptions = _set_metrics(sorting, analyzer)
    has_table = nwbfile.units is not None
    hash_ = provenance["model"]["hash"][:12]
    add_sorting_to_nwbfile(
        sorting,
        nwbfile,
        property_descriptions=descriptions,
        parent_container="processing" if has_table else "units",
        units_name=OWN_TABLE if has_table else "units",
        units_description=f"Units sorted by Spikewise {__version__}, model {hash_}.",
        unit_electrode_indices=electrodes,
        waveform_data_dict=waveforms if analyzer.return_in_uV else None,  # volts need the gain
    )
    text = json.dumps(provenance)
    nwbfile.add_scratch(text, name=_PROVENANCE, description="JSON: how the units of Spikewise were made")
    return f"processing/ecephys/{OWN_TABLE}" if has_table else "units"


def _waveforms(analyzer: SortingAnalyzer, rows: list[int]) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Return means and standard deviations (num_units, num_samples, num_near) in volts, and their electrodes.

    `rows` are the rows of the recording's channels in the table of electrodes.
    """
    templates = analyzer.get_extension("templates")
    means, sds = (templates.get_templates(operator=name) for name in ("average", "std"))
    positions = analyzer.get_channel_locations()
    size = abs(means).max(axis=1)
    num_near = min(_MAX_ELECTRODES, len(rows))
    near = np.stack(
        [
            np.argsort(np.linalg.norm(positions - positions[peak], axis=1), kind="stable")[:num_near]
            for peak in size.argmax(axis=1)
        ]
    )
    near = np.take_along_axis(near, np.argsort(-np.take_along_axis(size, near, 1), axis=1, kind="stable"), 1)
    means, sds = (np.take_along_axis(values, near[:, None], 2) * 1e-6 for values in (means, sds))
    return means, sds, [[rows[channel] for channel in channels] for channels in near]


def _set_metrics(sorting: BaseSorting, analyzer: SortingAnalyzer) -> dict[str, str]:
    """Set positions and metrics as properties of the units, and return a description of each."""
    descriptions = {
        "threshold": "Lowest response that counts as a spike, relative to the response to a perfect spike.",
        "group": "Group of channels on which the unit was sorted.",
        "main_channel_id": "Channel on which the unit has the largest amplitude.",
    }
    positions = analyzer.get_extension("unit_locations")
    if positions is not None:
        for name, column in zip("xyz", positions.get_data()[:, :3].T, strict=False):
            sorting.set_property(f"position_{name}_um", column.astype(float))
            method = positions.params["method"].replace("_", " ")
            descriptions[f"position_{name}_um"] = f"Estimated position in the probe's coordinates, {method}."
    for name in ("quality_metrics", "template_metrics"):
        extension = analyzer.get_extension(name)
        if extension is None:
            continue
        known = extension.get_metric_column_descriptions()
        for column, values in extension.get_data().items():
            if values.notna().any():
                whole = pd.api.types.is_integer_dtype(values) and values.notna().all()
                sorting.set_property(column, values.to_numpy(dtype=int if whole else float))
                descriptions[column] = known.get(column, f"{column} of SpikeInterface's {name}")
    return descriptions
