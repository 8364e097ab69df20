"""The commands ``simulate`` and ``info``: parse, call, print; no logic."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from spikewise.cli.console import out, print_json, say
from spikewise.cli.options import AsJson, Output, Overwrite, Reading, flat
from spikewise.core.config import RecordingConfig, SimulationConfig
from spikewise.core.progress import WRITING
from spikewise.core.progress_bars import progress_bars


def simulate(
    *,
    output: Output,
    overwrite: Overwrite = False,
    json: AsJson = False,
    simulation: Annotated[SimulationConfig, flat("Simulation")] = SimulationConfig(),
) -> None:
    """Simulate a recording with known spikes: OUTPUT/recording and OUTPUT/truth.

    Parameters
    ----------
    output
        Folder for the simulation; it must not exist.
    """
    from spikewise.data.simulation.saving import save_simulation
    from spikewise.data.simulation.simulate import simulate_recording

    started = time.perf_counter()
    with progress_bars() as progress:
        progress("simulating", 0, 1, "")
        simulated = simulate_recording(simulation)
        progress(WRITING, 0, 1, "")
        save_simulation(simulated, output, overwrite=overwrite)
    num_units, num_spikes = simulated.sorting.get_num_units(), int(simulated.sorting.count_total_num_spikes())
    num_channels, duration = simulated.recording.get_num_channels(), simulated.recording.get_total_duration()
    say(
        f"{num_units} units, {num_spikes} spikes, {num_channels} channels, {duration:g} s",
        f"recording in {output / 'recording'}, true spikes in {output / 'truth'}",
    )
    if json:
        print_json(
            command="simulate",
            units=num_units,
            spikes=num_spikes,
            channels=num_channels,
            recorded_seconds=duration,
            seconds=round(time.perf_counter() - started, 3),
            output=str(output),
        )


def info(
    recording: Path | None = None, *, json: AsJson = False, reading: Reading = RecordingConfig()
) -> None:
    """Show what is installed, which device is used, and which formats can be read.

    Parameters
    ----------
    recording
        Describe this recording instead.
    """
    from spikewise import api

    facts = api.describe_installation() if recording is None else api.describe(recording, reading)
    for title, value in facts.items():
        if isinstance(value, dict):
            out.print(f"{title}:", style="bold", highlight=False)
            for name, text in value.items():
                out.print(f"  {name}: {text}", highlight=False, soft_wrap=True, markup=False)
        else:
            out.print(f"{title}: {value}", highlight=False, soft_wrap=True, markup=False)
    if json:
        print_json(command="info", **facts)
