"""The command ``sort-many``: parse, call, print; no logic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spikewise.cli.console import out, print_json
from spikewise.cli.options import AsJson, Settings
from spikewise.core.errors import SomeFailed
from spikewise.core.progress import begin
from spikewise.core.progress_bars import progress_bars

if TYPE_CHECKING:
    from spikewise.jobs.many import Job

_STYLES = {"done": "green", "done before": "green", "failed": "red"}


def sort_many(recordings: Path, *, json: AsJson = False, settings: Settings = Settings()) -> None:
    """Sort each recording of a list; finished sorts are skipped, interrupted sorts continue.

    If a recording fails, the others are still sorted, and the exit code is 1.

    Parameters
    ----------
    recordings
        The list: a CSV file with the columns recording and output, and optionally labels or model; or a TOML
        file with a table [[recordings]] of the same names for each recording. Paths are relative to the list.
    """
    with progress_bars() as progress:
        begin(progress)
        from spikewise.jobs import many

        entries = many.read_list(recordings)
        jobs = many.sort_many(entries, settings, progress=progress)
    _print_table(jobs)
    if json:
        print_json(
            command="sort-many",
            recordings=[
                {
                    "recording": str(job.entry.recording),
                    "output": str(job.entry.output),
                    "state": job.state,
                    "units": job.num_units,
                    "spikes": job.num_spikes,
                    "seconds": job.seconds,
                    "message": job.message,
                }
                for job in jobs
            ],
        )
    failed = [job for job in jobs if job.state == "failed"]
    if failed:
        raise SomeFailed(
            f"{len(failed)} of {len(jobs)} recordings failed: "
            + ", ".join(str(job.entry.recording) for job in failed[:5]),
            "recordings that can be sorted",
            "correct what their messages say, then run the same command again: it sorts only these",
        )


def _print_table(jobs: Sequence[Job]) -> None:
    from rich.table import Table

    shown = Table("recording", "state", box=None, pad_edge=False)
    for name in ("units", "spikes", "seconds"):
        shown.add_column(name, justify="right")
    shown.add_column("result")
    for job in jobs:
        numbers = (job.num_units, job.num_spikes, job.seconds)
        cells = ["" if number is None else f"{number:g}" for number in numbers]
        shown.add_row(
            str(job.entry.recording),
            f"[{_STYLES.get(job.state, '')}]{job.state}[/]" if job.state in _STYLES else job.state,
            *cells,
            str(job.entry.output) if job.state != "failed" else "",
        )
    out.print(shown)
