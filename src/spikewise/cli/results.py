"""The commands ``evaluate``, ``validate``, ``curate`` and ``report``: parse, call, print; no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from spikewise.cli.console import out, print_json, say
from spikewise.cli.options import AsJson, Output, Overwrite, Reading, flat
from spikewise.core.config import EvaluationConfig, RecordingConfig
from spikewise.core.progress import begin
from spikewise.core.progress_bars import progress_bars


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
    """Compare a sorting with the true spikes; print a table of units and pooled scores.

    Parameters
    ----------
    truth
        The true spikes: a SpikeInterface sorting, the truth folder of a simulation, NWB units, a CSV.
    sorting
        The sorting to evaluate: a result of `spikewise sort`, or spikes in any format of `sort --labels`.
    recording
        The recording of both; needed if the spikes are a CSV or a folder of another sorter.
    csv
        File to write the table of units to; it must not exist.
    """
    from spikewise.core.files import check_output_file, writing
    from spikewise.data.opening import open_recording, open_sorting
    from spikewise.output.matching import compare_sortings

    if csv is not None:
        check_output_file(csv, overwrite, ending=".csv")
    opened = None if recording is None else open_recording(recording, reading)[0]
    performance = compare_sortings(open_sorting(truth, opened), open_sorting(sorting, opened), comparing)
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
    """Write the report of a result as one HTML file: traces, spikes, units, scores, provenance.

    Parameters
    ----------
    result
        The output folder of `spikewise sort`.
    output
        File for the report, for example report.html; it must not exist.
    recording
        The recording that was sorted; without it, the report has no traces and no waveforms.
    truth
        The true spikes: a SpikeInterface sorting, the truth folder of a simulation, NWB units, a CSV.
    """
    with progress_bars() as progress:
        begin(progress)
        from spikewise import api

        written = api.report(
            result,
            output,
            recording=None if recording is None else api.load_recording(recording, reading),
            truth=truth,
            overwrite=overwrite,
            config=comparing,
            progress=progress,
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


def validate(
    result: Path,
    *,
    recording: Path,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    seed: int | None = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    reading: Reading = RecordingConfig(),
) -> None:
    """Say how far each unit can be trusted: add known spikes to the recording, sort again, and count.

    It works without truth, for a result of `spikewise sort` and for that of any other sorter.

    Parameters
    ----------
    result
        The output folder of `spikewise sort`, or the spikes of another sorter in any format of
        `sort --labels`.
    recording
        The recording that was sorted.
    output
        File for the table of units; default: units.csv in the output folder of `spikewise sort`.
    seed
        Random seed of the added spikes; default: that of the sort.
    """
    from spikewise.output.unit_table import (
        check_units_file,
        store_suggestions,
        store_units,
        summarise_suggestions,
        summarise_units,
        write_units,
    )

    file = check_units_file(result, output, overwrite)
    with progress_bars() as progress:
        begin(progress)
        from spikewise import api

        opened = api.load_recording(recording, reading)
        from spikewise.jobs.validation import run_validation

        found = run_validation(result, opened, seed, progress, {})
    table = found.table
    if output is None:
        store_units(table, result)
        store_suggestions(found.suggestions, found.curation, result)
    else:
        write_units(table, file)
    _print_units(table)
    say(summarise_units(table), summarise_suggestions(found.suggestions), f"table in {file}")
    if json:
        counts = table["verdict"].value_counts()
        verdicts = {name: int(counts.get(name, 0)) for name in ("good", "usable", "poor")}
        print_json(command="validate", units=len(table), **verdicts, output=str(file))


def curate(
    result: Path,
    *,
    changes: Annotated[tuple[Literal["merge", "remove", "split"], ...], Parameter(consume_multiple=True)] = (
        "merge",
        "remove",
        "split",
    ),
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Accept the suggested changes of a result: units to merge, copies to remove, units to split.

    They are written into RESULT/curation.json. `train --labels RESULT` applies it, `gui` shows it, and
    `sorting` in the folder does not change.

    Parameters
    ----------
    result
        The output folder of `spikewise sort`.
    changes
        Which of the suggested changes are accepted.
    """
    from spikewise.output.trust.accepting import accept_suggestions

    accepted = accept_suggestions(result, changes, overwrite=overwrite)
    for row in accepted.to_dict("records"):
        say(f"{row['change']} {row['unit_ids']}: {row['reason']}")
    say(f"{len(accepted)} changes in {result / 'curation.json'}")
    if json:
        print_json(command="curate", changes=len(accepted), output=str(result / "curation.json"))


def _print_units(table: Any) -> None:
    """Print the verdict on each unit."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for name in ("unit", "spikes", "accuracy", "precision", "recall", "verdict", "reason"):
        shown.add_column(name, justify="left" if name in ("verdict", "reason") else "right")
    for row in table.to_dict("records"):
        numbers = [row[f"estimated_{name}"] for name in ("accuracy", "precision", "recall")]
        cells = ["" if number != number else f"{number:.3f}" for number in numbers]
        shown.add_row(str(row["unit_id"]), str(row["num_spikes"]), *cells, row["verdict"], row["reason"])
    out.print(shown)


def _print_table(table: Any) -> None:
    """Print a table of scores with a row for each unit."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    shown.add_column("unit", justify="right")
    for name in table.columns:
        shown.add_column(name.replace("_", " "), justify="right")
    for unit_id, row in table.iterrows():
        cells = [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row]
        shown.add_row(str(unit_id), *cells)
    out.print(shown)
