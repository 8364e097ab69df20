"""The commands for the experiments of the papers: parse, call, print; no logic."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from spikewise.cli.console import out, print_json, progress_bars, say
from spikewise.papers.cnn1d.config import PapersConfig

if TYPE_CHECKING:
    from rich.table import Table

papers = App(
    name="papers", help="Run the experiments of the papers, with their rivals.", help_format="plaintext"
)

Output = Annotated[Path, Parameter(alias="-o")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object as the last line")]
Experiments = Annotated[PapersConfig, Parameter(name="*", group=Group("Experiments", sort_key=10))]


@papers.command
def cnn(
    data: Path | None = None,
    *,
    output: Output,
    json: AsJson = False,
    experiments: Annotated[
        PapersConfig, Parameter(name="*", group=Group("Experiments", sort_key=10))
    ] = PapersConfig(),
) -> None:
    """Compare the 1D-CNN with its rivals as its paper does (Li et al. 2020): tables, figures, one page.

    A run that was interrupted goes on where it stopped: give the same command again.

    Parameters
    ----------
    data
        Folder with Wave_Clus simulations or other labelled waveforms. What the paper has and the folder has
        not is generated, and marked so.
    output
        Folder for tables, figures and page.
    """
    from rich.table import Table

    from spikewise.papers.cnn1d.experiments import run_cnn_paper
    from spikewise.papers.cnn1d.tables import plain_rows

    started = time.perf_counter()
    with progress_bars() as progress:
        results = run_cnn_paper(output, data, experiments, progress)
    means = plain_rows(results.tables["means"])
    shown = Table("method", box=None, pad_edge=False)
    for name in ("experiment", "sets", "generated", "mean ± sd (%)", "published (%)"):
        shown.add_column(name, justify="right")
    for row in means:
        measured = f"{row['mean']:.2f}" + ("" if row["sd"] is None else f" ± {row['sd']:.2f}")
        numbers = (f"E{row['experiment']}", f"{row['num_sets']}", f"{row['num_generated']}", measured)
        shown.add_row(row["method"], *numbers, f"{row['published_mean']:.2f}")
    if means:
        say("mean accuracy over the Wave_Clus sets, and the published one of the sets of these names")
        out.print(shown)
    say(
        f"sets: {len(results.sets)}, scores: {len(results.rows)}, measured now: {results.num_new}",
        f"page in {results.page}",
    )
    if json:
        print_json(
            command="papers cnn",
            means=means,
            page=str(results.page),
            seconds=round(time.perf_counter() - started, 3),
            output=str(output),
        )


@papers.command
def esort(
    data: Path | None = None,
    *,
    output: Output,
    json: AsJson = False,
    scale: Literal["small", "medium", "paper"] = "small",
    experiments: tuple[str, ...] = ("all",),
    seeds: int | None = None,
    as_published: Annotated[bool, Parameter(negative="")] = False,
    seed: int = 0,
) -> None:
    """Run the experiments of E-Sort (Han & Wang): labels, transfer, probes, noise, drift, other sorters.

    A run that was interrupted goes on where it stopped: give the same command again.

    Parameters
    ----------
    data
        Folder with MEArec template files in mearec/. What it has not is generated, and told so.
    output
        Folder for tables, figures and page.
    scale
        Size: small takes minutes on two cores, paper has the published lengths and takes days there.
    experiments
        all, or a (labels), b (labels needed), c (probes), d (noise), e (drift), f (other sorters).
    seeds
        Recordings for each condition; default: as the scale has it.
    as_published
        Score in the way of the authors' published code instead of the corrected one.
    seed
        Seed of everything random.
    """
    from spikewise.papers.cnn1d.tables import plain_rows
    from spikewise.papers.esort.experiments import run_esort_paper
    from spikewise.papers.esort.plan import METHOD_NAMES, EsortPaperConfig

    started = time.perf_counter()
    config = EsortPaperConfig(scale, experiments, seeds, as_published, seed)
    with progress_bars() as progress:
        results = run_esort_paper(output, data, config, progress)
    claims = plain_rows(results.tables["claims"])
    if claims:
        out.print(_claims_shown(claims))
    for name, reason in results.not_run.items():
        say(f"not run: {METHOD_NAMES[name]}, since {reason}")
    failed = int(results.rows["accuracy"].isna().sum())
    say(
        f"scores: {len(results.rows) - failed}, failed: {failed}, run now: {results.num_new}",
        f"page in {results.page}",
    )
    if json:
        print_json(
            command="papers esort",
            claims=claims,
            scores=len(results.rows) - failed,
            failed=failed,
            new=results.num_new,
            not_run=results.not_run,
            page=str(results.page),
            seconds=round(time.perf_counter() - started, 3),
            output=str(output),
        )


def _claims_shown(claims: list[dict[str, Any]]) -> Table:
    """Return the published claims beside what was measured, as a table for the console."""
    from rich.table import Table

    from spikewise.papers.esort.plan import METHOD_NAMES

    shown = Table("claim", box=None, pad_edge=False)
    for name in ("method", "compared with", "published", "measured"):
        shown.add_column(name, justify="right")
    for row in claims:
        published = "-" if row["published"] is None else f"{row['published']:g}"
        measured = f"{row['bound']} {row['measured']:.2f} {row['unit']}".strip()
        names = (METHOD_NAMES.get(row[name], row[name]) for name in ("method", "compared_with"))
        shown.add_row(row["claim"], *names, published, measured)
    return shown
