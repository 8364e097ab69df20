"""The command: parse, call, print; no logic.

Results go to standard output, and with ``--json`` its last line is one JSON object; progress, warnings and
errors go to standard error. Exit codes: 0 done, 1 some of many recordings failed, 2 something given cannot be
used, 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Parameter

from spikewise.cli.console import WarningsToConsole, fail, out, print_json, say
from spikewise.cli.export import export
from spikewise.cli.gui import gui
from spikewise.cli.many import sort_many
from spikewise.cli.options import AsJson, Output, Overwrite, Reading, Resume, Settings, flat
from spikewise.cli.waveforms import waveforms
from spikewise.core.config import EvaluationConfig, RecordingConfig, SimulationConfig
from spikewise.core.errors import Interrupted, SpikewiseError
from spikewise.core.progress_bars import progress_bars
from spikewise.core.version import __version__

app = App(
    name="spikewise",
    help="Sort spikes with neural networks: learn the units from a few labelled spikes, then sort hours.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # main tells it
    default_parameter=Parameter(
        negative_iterable="", name_transform=lambda name: name.lower().replace("_", "-")
    ),
)

app.command(waveforms)
# By name, so that the package does not depend on them and loads them only when they are called.
app.command(
    "spikewise.papers.cli.papers:papers",
    name="papers",
    help="Run the experiments of the papers, with their rivals.",
)
app.command("spikewise.papers.cli.bench:bench", name="bench", help="Measure how fast the sorter is.")
app.command(sort_many)
app.command(export)
app.command(gui)


@app.command
def sort(
    recording: Path,
    *,
    output: Output,
    labels: Path | None = None,
    model: Path | None = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: AsJson = False,
    settings: Settings = Settings(),
) -> None:
    """Sort a recording with labels, with a trained model, or with neither.

    Without labels and model, a sorter of SpikeInterface makes the labels from the first minute.

    Parameters
    ----------
    recording
        The recording: any format that SpikeInterface reads (see: spikewise info).
    output
        Folder for the result; it must not exist.
    labels
        Labelled spikes: a Phy or Kilosort folder, a SpikeInterface sorting, NWB units, or a CSV.
    model
        A model of `spikewise train` or of an earlier sort.
    """
    from spikewise import api
    from spikewise.output.store import REPORT_FILE

    with progress_bars() as progress:
        result = api.sort(
            recording,
            labels=labels,
            model=model,
            output=output,
            overwrite=overwrite,
            resume=resume,
            config=settings,
            progress=progress,
        )
    seconds, found = result.provenance["seconds"], result.provenance["result"]
    factor = result.provenance["real_time_factor"]
    _print_steps(result.provenance)
    say(
        f"{found['num_units']} units, {found['num_spikes']} spikes in {seconds['recorded']:.1f} s",
        f"learning took {seconds['learning']:.1f} s, sorting {seconds['sorting']:.1f} s "
        f"({factor:.2g} times real time)",
        f"result in {output}" + (f", with {REPORT_FILE}" if (output / REPORT_FILE).exists() else ""),
    )
    if json:
        print_json(
            command="sort",
            units=found["num_units"],
            spikes=found["num_spikes"],
            seconds=seconds["total"],
            sorting_seconds=seconds["sorting"],
            learning_seconds=seconds["learning"],
            recorded_seconds=seconds["recorded"],
            real_time_factor=factor,
            spikes_hash=found["spikes_hash"],
            model_hash=result.provenance["model"]["hash"],
            label_interval_s=(result.provenance["labels"] or {}).get("interval_s"),
            output=str(output),
        )


@app.command
def train(
    recording: Path,
    *,
    output: Output,
    labels: Path | None = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    settings: Settings = Settings(),
) -> None:
    """Learn the units of a recording and write a model that sorts others of the same probe.

    Ctrl-C ends training early and writes the best model so far.

    Parameters
    ----------
    recording
        The recording: any format that SpikeInterface reads (see: spikewise info).
    output
        File for the model, for example model.safetensors; it must not exist.
    labels
        Labelled spikes: a Phy or Kilosort folder, a SpikeInterface sorting, NWB units, or a CSV.
    """
    from spikewise import api

    started = time.perf_counter()
    with progress_bars() as progress:
        model = api.train(
            recording,
            labels,
            output=output,
            overwrite=overwrite,
            config=settings,
            progress=progress,
        )
    facts = model.facts
    labels_used = sum(group["num_labels"] for group in facts["groups"])
    say(
        f"{len(model.unit_ids)} units learnt from {labels_used} labels {_interval(facts['labels'])}",
        f"model in {output}",
    )
    if json:
        print_json(
            command="train",
            units=len(model.unit_ids),
            labels=labels_used,
            label_interval_s=facts["labels"].get("interval_s"),
            seconds=round(time.perf_counter() - started, 3),
            model_hash=model.hash(),
            held_out_loss=[group["held_out_loss"][-1:] for group in facts["groups"]],
            output=str(output),
        )
    if facts["interrupted"]:
        raise Interrupted(
            "training was interrupted", f"the best model so far is {output}", "use it, or train again"
        )


@app.command
def pretrain(
    recordings: list[Path],
    *,
    output: Output,
    labels: list[Path] | None = None,
    patches_per_unit: int = 1000,
    steps: int = 4000,
    overwrite: Overwrite = False,
    json: AsJson = False,
    seed: int = 0,
) -> None:
    """Learn temporal filters from labelled recordings, for `train --pretrained` on any probe.

    Parameters
    ----------
    recordings
        Recordings, or folders of `spikewise simulate` with their truth.
    output
        File for the filters, for example filters.safetensors; it must not exist.
    labels
        All spikes of each recording, in the same order; not needed for folders of `spikewise simulate`.
    patches_per_unit
        Patches made of each unit.
    steps
        Steps of training.
    seed
        Seed of everything random.
    """
    from spikewise.jobs.pretraining import pair_recordings
    from spikewise.jobs.pretraining import pretrain as learn

    started = time.perf_counter()
    with progress_bars() as progress:
        pretrained = learn(
            pair_recordings(recordings, labels or []),
            output=output,
            overwrite=overwrite,
            patches_per_unit=patches_per_unit,
            steps=steps,
            progress=progress,
            seed=seed,
        )
    facts = pretrained.facts
    say(
        f"filters learnt from {facts['num_units']} units of {len(facts['recordings'])} recordings",
        f"filters in {output}",
    )
    if json:
        print_json(
            command="pretrain",
            units=facts["num_units"],
            recordings=len(facts["recordings"]),
            seconds=round(time.perf_counter() - started, 3),
            hash=pretrained.hash(),
            output=str(output),
        )


@app.command
def evaluate(
    truth: Path,
    sorting: Path,
    *,
    json: AsJson = False,
    recording: Path | None = None,
    csv: Path | None = None,
    overwrite: Overwrite = False,
    reading: Reading = RecordingConfig(),
    comparing: Annotated[EvaluationConfig, flat("Comparison")] = EvaluationConfig(),
) -> None:
    """Compare a sorting with the truth: a table of units, and pooled scores.

    Parameters
    ----------
    truth
        The true spikes: a SpikeInterface sorting, a simulation's truth folder, NWB units, a CSV.
    sorting
        The spikes to judge: a result of `spikewise sort`, or anything that labels can be.
    recording
        The recording of both, needed where spikes are a CSV or the folder of another sorter.
    csv
        File to write the table of units to; it must not exist.
    """
    from spikewise import api
    from spikewise.core.files import check_output_file, writing

    if csv is not None:
        check_output_file(csv, overwrite, ending=".csv")
    performance = api.evaluate(
        truth,
        sorting,
        recording=None if recording is None else api.load_recording(recording, reading),
        config=comparing,
    )
    table = performance.units
    if csv is not None:
        with writing(csv):
            csv.parent.mkdir(parents=True, exist_ok=True)
            table.to_csv(csv)
    _print_table(table)
    scores = performance.to_dict()
    say(
        f"pooled accuracy {performance.accuracy:.4f}, precision {performance.precision:.4f}, "
        f"recall {performance.recall:.4f} over {len(table)} units",
        f"{len(performance.unmatched_units)} sorted units match none; "
        f"with their spikes counted as false, accuracy {performance.accuracy_all_spikes:.4f}",
    )
    if json:
        print_json(command="evaluate", **{k: v for k, v in scores.items() if k != "units"})


@app.command
def report(
    result: Path,
    *,
    output: Output,
    recording: Path | None = None,
    truth: Path | None = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    reading: Reading = RecordingConfig(),
    comparing: Annotated[EvaluationConfig, flat("Comparison")] = EvaluationConfig(),
) -> None:
    """Write what a sort found as one HTML page: traces, spikes, units, scores, provenance.

    Parameters
    ----------
    result
        The output folder of `spikewise sort`.
    output
        File for the report, for example report.html; it must not exist.
    recording
        The recording that was sorted; without it no trace and no waveform is drawn.
    truth
        True spikes to compare with: a SpikeInterface sorting, a simulation's truth folder, NWB units, a CSV.
    """
    from spikewise import api

    written = api.report(
        result,
        output,
        recording=None if recording is None else api.load_recording(recording, reading),
        truth=truth,
        overwrite=overwrite,
        config=comparing,
    )
    found, performance = written.provenance["result"], written.performance
    accuracy = None if performance is None else performance.accuracy
    say(
        f"{found['num_units']} units, {found['num_spikes']} spikes"
        + ("" if accuracy is None else f", pooled accuracy {accuracy:.4f}"),
        f"report in {output}",
    )
    if json:
        print_json(
            command="report",
            units=found["num_units"],
            spikes=found["num_spikes"],
            accuracy=accuracy,
            output=str(output),
        )


@app.command
def simulate(
    *,
    output: Output,
    overwrite: Overwrite = False,
    json: AsJson = False,
    simulation: Annotated[SimulationConfig, flat("Simulation")] = SimulationConfig(),
) -> None:
    """Make a recording whose spikes are known: OUTPUT/recording and OUTPUT/truth.

    Parameters
    ----------
    output
        Folder for the simulation; it must not exist.
    """
    from spikewise import api
    from spikewise.data.simulation.saving import save_simulation

    started = time.perf_counter()
    with progress_bars() as progress:
        progress("simulate", 0, 1, "")
        made = api.simulate(config=simulation)
        save_simulation(made, output, overwrite=overwrite)
        progress("simulate", 1, 1, "")
    num_units, num_spikes = made.sorting.get_num_units(), int(made.sorting.count_total_num_spikes())
    num_channels, duration = made.recording.get_num_channels(), made.recording.get_total_duration()
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


@app.command
def info(
    recording: Path | None = None, *, json: AsJson = False, reading: Reading = RecordingConfig()
) -> None:
    """Say what is installed, which device is used, and what can be read.

    Parameters
    ----------
    recording
        A recording to describe instead.
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


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    library, console = logging.getLogger("spikewise"), WarningsToConsole()
    library.addHandler(console)
    library.setLevel(logging.INFO)
    logging.captureWarnings(True)  # warnings of other libraries go to the log file, not to the screen
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    try:
        app(arguments, exit_on_error=False, print_error=False, console=out, result_action="return_value")
    except SpikewiseError as error:
        fail(str(error))
        return error.exit_code
    except cyclopts.CycloptsError as error:
        cause = error.__cause__
        fail(str(cause) if isinstance(cause, SpikewiseError) else f"{error} See: spikewise --help")
        return 2
    except KeyboardInterrupt:
        fail("Interrupted.")
        return Interrupted.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    finally:
        library.removeHandler(console)
    return 0


def _interval(labels: dict[str, Any]) -> str:
    if "interval_s" not in labels:
        return f"of {labels['source']}"
    start, stop = labels["interval_s"]
    return f"of {labels['source']}, between {start:.2f} and {stop:.2f} s"


def _print_steps(provenance: dict[str, Any]) -> None:
    for name, steps in provenance["preprocessing"].items():
        prefix = "" if len(provenance["preprocessing"]) == 1 else f"group {name}: "
        say(f"preprocessing: {prefix}{'; '.join(steps)}")
    if provenance["labels"]:
        say(f"labels {_interval(provenance['labels'])}")


def _print_table(table: Any) -> None:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    shown.add_column("unit", justify="right")
    for name in table.columns:
        shown.add_column(name.replace("_", " "), justify="right")
    for unit_id, row in table.iterrows():
        cells = [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row]
        shown.add_row(str(unit_id), *cells)
    out.print(shown)
