"""The commands of the papers' experiments."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App

from spikewise.cli.console import out, print_json, say
from spikewise.cli.options import AsJson, Output, flat
from spikewise.core.progress_bars import progress_bars
from spikewise.papers.cnn1d.config import PapersConfig
from spikewise.papers.esort.config import EsortPaperConfig
from spikewise.papers.esort.methods import METHOD_NAMES

if TYPE_CHECKING:
    from rich.table import Table

papers = App(
    name="papers", help="Run the experiments of the papers, with their rivals.", help_format="plaintext"
)


@papers.command
def cnn(
    data: Path | None = None,
    *,
    output: Output,
    json: AsJson = False,
    experiments: Annotated[PapersConfig, flat("Experiments")] = PapersConfig(),
) -> None:
    """Compare the 1D-CNN with its rivals as its paper does (Li et al. 2020): tables, figures, one page.

    To resume an interrupted run, give the same command again.

    Parameters
    ----------
    data
        Folder with Wave_Clus simulations or other labelled waveforms. Sets of the paper that are not in the
        folder are simulated, and marked so.
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
        say("mean accuracy over the Wave_Clus sets, and the published accuracy on the sets of these names")
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
    experiments: Annotated[EsortPaperConfig, flat("Experiments")] = EsortPaperConfig(),
) -> None:
    """Run the experiments of E-Sort (Han & Wang): labels, transfer, probes, noise, drift, other sorters.

    To resume an interrupted run, give the same command again.

    Parameters
    ----------
    data
        Folder with MEArec template files in mearec/. Recordings without a template file come from a
        generator.
    output
        Folder for tables, figures and page.
    """
    from spikewise.papers.cnn1d.tables import plain_rows
    from spikewise.papers.esort.experiments import run_esort_paper

    started = time.perf_counter()
    with progress_bars() as progress:
        results = run_esort_paper(output, data, experiments, progress)
    claims = plain_rows(results.tables["claims"])
    if claims:
        out.print(_claims_shown(claims))
    for name, reason in results.not_run.items():
        say(f"not run: {METHOD_NAMES[name]}, because {reason}")
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
    """Return the published claims beside the measured values, as a table for the console."""
    from rich.table import Table

    shown = Table("claim", box=None, pad_edge=False)
    for name in ("method", "compared with", "published", "measured"):
        shown.add_column(name, justify="right")
    for row in claims:
        published = "-" if row["published"] is None else f"{row['published']:g}"
        measured = f"{row['bound']} {row['measured']:.2f} {row['unit']}".strip()
        names = (METHOD_NAMES.get(row[name], row[name]) for name in ("method", "compared_with"))
        shown.add_row(row["claim"], *names, published, measured)
    return shown
