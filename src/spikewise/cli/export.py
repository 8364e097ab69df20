"""The commands ``export phy``, ``export nwb`` and ``export analyzer``: parse, call, print; no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from spikewise.cli.console import print_json, say
from spikewise.cli.options import AsJson, Output, Reading, flat
from spikewise.core.config import RecordingConfig
from spikewise.core.progress_bars import progress_bars
from spikewise.output.export.config import AnalyzerConfig, NwbConfig, PhyConfig

export = App(name="export", help="Export a result to other tools.", help_format="plaintext")


@export.command
def phy(
    result: Path,
    *,
    recording: Path,
    output: Output,
    json: AsJson = False,
    reading: Reading = RecordingConfig(),
    settings: Annotated[PhyConfig, flat("Phy")] = PhyConfig(),
) -> None:
    """Write a folder for Phy's template GUI; `train --labels FOLDER` reads the curated units from it.

    Parameters
    ----------
    result
        The output folder of `spikewise sort`.
    recording
        The recording that was sorted.
    output
        Folder to write; it must not exist.
    """
    from spikewise.api import load_recording
    from spikewise.output.export.exporting import export_phy

    with progress_bars() as progress:
        opened = load_recording(recording, reading)
        done = export_phy(result, opened, output, config=settings, progress=progress)
    say(
        f"{done.num_units} units, {done.num_spikes} spikes; raw traces: {done.traces}",
        f"open it with: phy template-gui {done.params}",
    )
    if json:
        print_json(
            command="export phy",
            units=done.num_units,
            spikes=done.num_spikes,
            empty_units=done.num_empty,
            traces=done.traces,
            output=str(output),
        )


@export.command
def nwb(
    result: Path,
    *,
    recording: Path,
    output: Output,
    append: Annotated[bool, Parameter(negative="", help="Add the units to an existing file")] = False,
    overwrite: Annotated[bool, Parameter(negative="", help="Replace an existing file")] = False,
    json: AsJson = False,
    reading: Reading = RecordingConfig(),
    settings: Annotated[NwbConfig, flat("NWB")] = NwbConfig(),
) -> None:
    """Write the units to a new or existing NWB file, with waveforms, electrodes and metrics.

    Parameters
    ----------
    result
        The output folder of `spikewise sort`.
    recording
        The recording that was sorted.
    output
        NWB file to write, for example units.nwb.
    """
    from spikewise.api import load_recording
    from spikewise.output.export.exporting import export_nwb

    with progress_bars() as progress:
        opened = load_recording(recording, reading)
        done = export_nwb(
            result, opened, output, append=append, overwrite=overwrite, config=settings, progress=progress
        )
    say(f"{done.num_units} units, {done.num_spikes} spikes in {done.table} of {done.path}")
    if json:
        print_json(
            command="export nwb",
            units=done.num_units,
            spikes=done.num_spikes,
            table=done.table,
            output=str(output),
        )


@export.command
def analyzer(
    result: Path,
    *,
    recording: Path,
    output: Output,
    json: AsJson = False,
    reading: Reading = RecordingConfig(),
    settings: Annotated[AnalyzerConfig, flat("Analyzer")] = AnalyzerConfig(),
) -> None:
    """Write a SpikeInterface SortingAnalyzer: waveforms, templates, locations, quality metrics.

    Parameters
    ----------
    result
        The output folder of `spikewise sort`.
    recording
        The recording that was sorted.
    output
        Folder to write, which spikeinterface.load reads; it must not exist.
    """
    from spikewise.api import load_recording
    from spikewise.output.export.exporting import analyze

    with progress_bars() as progress:
        opened = load_recording(recording, reading)
        written = analyze(result, opened, output=output, config=settings, progress=progress)
    names = sorted(written.get_loaded_extension_names())
    say(f"{written.get_num_units()} units; {', '.join(names)}", f"analyzer in {output}")
    if json:
        print_json(
            command="export analyzer", units=written.get_num_units(), extensions=names, output=str(output)
        )
