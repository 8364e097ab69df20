"""The commands that measure the sorter itself: parse, call, print; no logic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from spikewise.cli.console import out, print_json, progress_bars, say

if TYPE_CHECKING:
    from rich.table import Table

bench = App(name="bench", help="Measure how fast the sorter is.", help_format="plaintext")

Output = Annotated[Path, Parameter(alias="-o")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object as the last line")]


@bench.command
def speed(
    *,
    output: Output,
    json: AsJson = False,
    channels: int | None = None,
    units: int = 200,
    duration_s: float = 50.0,
    label_s: float = 30.0,
    labels_per_unit: int = 15,
    templates: Path | None = None,
    excitatory_fraction: float = 0.8,
    against: str | None = None,
    paper_s: float = 0.5,
    repeats: int = 3,
    model: Path | None = None,
    seed: int = 0,
) -> None:
    """Time each stage of sorting a simulation, and what stands beside it.

    Simulation and model are kept in the folder, and used again where the settings are the same.

    Parameters
    ----------
    output
        Folder for simulation, model, speed.json and speed.png.
    channels
        Channels: the first so many of a Neuropixels 1.0; default: 384, or those of the template file.
    units
        Units of the simulation.
    duration_s
        Length of what is sorted, in seconds.
    label_s
        Length of what is learnt from, in seconds, ahead of it.
    labels_per_unit
        Labelled spikes of each unit.
    templates
        A MEArec template file; without it the units come from a generator.
    excitatory_fraction
        Fraction of the units that are excitatory; a template file may hold too few for many units.
    against
        Other sorters to run, by their names in SpikeInterface, for example lupin,tridesclous2.
    paper_s
        Length of what the network of Han & Wang is run on as published, in seconds.
    repeats
        How often the sorter and its stages are timed; the least time counts.
    model
        A model of the same simulation; without it one is trained.
    seed
        Seed of everything random.
    """
    from spikewise.papers.speed.scene import SpeedConfig
    from spikewise.papers.speed.speed import PICTURE_FILE, SPEED_FILE, measure_speed

    config = SpeedConfig(
        channels=channels,
        units=units,
        duration_s=duration_s,
        label_s=label_s,
        labels_per_unit=labels_per_unit,
        templates=None if templates is None else str(templates),
        excitatory_fraction=excitatory_fraction,
        against=() if against is None else tuple(name.strip() for name in against.split(",")),
        paper_s=paper_s,
        repeats=repeats,
        model=None if model is None else str(model),
        seed=seed,
    )
    with progress_bars() as progress:
        results = measure_speed(output, config, progress)
    out.print(_stages_shown(results))
    out.print(_methods_shown(results))
    for other in results["others"]:
        if other["reason"] is not None:
            say(f"not run: {other['name']}, since {other['reason']}")
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
    rows: list[tuple[str, float, float | None]] = [
        ("Spikewise, file to file", results["end_to_end_seconds"], results["accuracy_sorted"]),
        ("network", results["network_seconds"], None),
        ("network, without gates", results["dense_seconds"], None),
        ("E-Sort network, as published", results["paper_form_seconds"], None),
    ]
    rows += [(row["name"], row["seconds"], row["accuracy"]) for row in results["others"] if row["seconds"]]
    for method, seconds, accuracy in rows:
        told = "" if accuracy is None else f"{accuracy:.4f}"
        shown.add_row(method, f"{seconds:.3f}", f"{recorded / seconds:.3g}", told)
    return shown
