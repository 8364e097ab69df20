"""The command that measures the speed of the sorter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App

from spikewise.cli.console import out, print_json, say, times
from spikewise.cli.options import AsJson, Output, flat
from spikewise.core.progress_bars import progress_bars
from spikewise.papers.speed.config import SpeedConfig

if TYPE_CHECKING:
    from rich.table import Table

bench = App(name="bench", help="Measure how fast the sorter is.", help_format="plaintext")


@bench.command
def speed(
    *,
    output: Output,
    json: AsJson = False,
    benchmark: Annotated[SpeedConfig, flat("Benchmark")] = SpeedConfig(),
) -> None:
    """Time each stage of sorting a simulation, and compare with other networks and sorters.

    Simulation and model stay in the folder; they are used again if the settings are the same.

    Parameters
    ----------
    output
        Folder for simulation, model, speed.json and speed.png.
    """
    from spikewise.papers.speed.speed import PICTURE_FILE, SPEED_FILE, measure_speed

    with progress_bars() as progress:
        results = measure_speed(output, benchmark, progress)
    out.print(_stages_shown(results))
    out.print(_methods_shown(results))
    for other in results["others"]:
        if other["reason"] is not None:
            say(f"not run: {other['name']}, because {other['reason']}")
    memory = results["peak_memory_gib"]
    say(
        f"accuracy {results['accuracy_sorted']:.4f}; of the first seconds {results['accuracy_fast']:.4f}, "
        f"without gates {results['accuracy_dense']:.4f}",
        f"memory at most {'unknown' if memory is None else f'{memory:.2f} GiB'}",
        f"results in {output / SPEED_FILE}, picture in {output / PICTURE_FILE}",
    )
    if json:
        print_json(command="bench speed", **results, output=str(output))


def _stages_shown(results: dict[str, Any]) -> Table:
    """Return the stages as a table for the console."""
    from rich.table import Table

    shown = Table("stage", box=None, pad_edge=False)
    for name in ("seconds", "GFLOP/s", "GB/s", "share of limit"):
        shown.add_column(name, justify="right")
    for name, stage in results["stages"].items():
        rates = (f"{stage[key] / stage['seconds']:.2f}" if stage[key] else "-" for key in ("gflop", "gb"))
        share = stage["share_of_limit"]
        shown.add_row(
            name, f"{stage['seconds']:.3f}", *rates, "-" if share is None else f"{100 * share:.1f} %"
        )
    limits = results["limits"]
    rates = (f"{limits[key]:.2f}" for key in ("float32_gflop_per_s", "copy_gb_per_s"))
    shown.add_row("limit of this machine", "", *rates, "")
    return shown


def _methods_shown(results: dict[str, Any]) -> Table:
    """Return the methods as a table for the console."""
    from rich.table import Table

    recorded = results["scene"]["duration_s"]
    shown = Table("method", box=None, pad_edge=False)
    for name in ("seconds", "times real time", "accuracy"):
        shown.add_column(name, justify="right")
    accuracy_sorted = results["accuracy_sorted"]
    rows: list[tuple[str, float, float | None]] = [
        ("Spikewise, file to file, given model", results["sorting_seconds"], accuracy_sorted),
        ("network", results["network_seconds"], None),
        ("network, without gates", results["dense_seconds"], None),
        ("E-Sort network, as published", results["paper_form_seconds"], None),
    ]
    rows += [(row["name"], row["seconds"], row["accuracy"]) for row in results["others"] if row["seconds"]]
    if results["training_seconds"] is not None:
        rows.insert(0, ("Spikewise, learning and sorting", results["end_to_end_seconds"], accuracy_sorted))
    for method, seconds, accuracy in rows:
        score = "" if accuracy is None else f"{accuracy:.4f}"
        shown.add_row(method, f"{seconds:.3f}", times(recorded / seconds), score)
    return shown
