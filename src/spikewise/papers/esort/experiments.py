"""The experiments of Han & Wang (arXiv 2409.13067), run again: runs, tables, figures and a page.

The parts: :mod:`~spikewise.papers.esort.plan` says what is run, :mod:`~spikewise.papers.esort.runs` runs it,
:mod:`~spikewise.papers.esort.scores` scores it, :mod:`~spikewise.papers.esort.tables` sets it beside
what is published, and :mod:`~spikewise.papers.esort.page` shows it.

References
----------
Han, Wang 2024, arXiv 2409.13067; J. Neural Eng., doi:10.1088/1741-2552/ae0d33.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from spikewise.core.errors import Interrupted
from spikewise.core.progress import ProgressCallback, silent
from spikewise.core.version import __version__
from spikewise.papers.cnn1d.folder import (
    PAGE_FILE,
    RESULTS_FILE,
    check_folder,
    claim_folder,
    hash_of,
    write_csv,
)
from spikewise.papers.esort.plan import SCALES, EsortPaperConfig, Scale, find_templates, plan_runs
from spikewise.papers.esort.runs import Workshop, missing_sorters, run_missing
from spikewise.papers.esort.tables import make_tables


@dataclass(frozen=True)
class EsortPaperResults:
    """What the experiments measured, and where it lies.

    Attributes
    ----------
    output : Path
        The folder: ``results.csv``, ``tables/``, ``figures/``, ``papers.html``.
    page : Path
    config : EsortPaperConfig
    scale : Scale
    rows : DataFrame
        All scores, columns as in ``esort_runs.COLUMNS``.
    num_new : int
        Rows that this call measured; the others were there.
    tables : dict of str to DataFrame
        By the names of :func:`~spikewise.papers.esort.tables.make_tables`.
    not_run : dict of str to str
        Methods that could not run, with the reason.
    """

    output: Path
    page: Path
    config: EsortPaperConfig
    scale: Scale
    rows: pd.DataFrame
    num_new: int
    tables: dict[str, pd.DataFrame]
    not_run: dict[str, str]


def run_esort_paper(
    output: Path | str,
    data: Path | str | None = None,
    config: EsortPaperConfig | None = None,
    progress: ProgressCallback = silent,
    scale: Scale | None = None,
) -> EsortPaperResults:
    """Run the experiments, and write scores, tables, figures and a page of them all.

    Parameters
    ----------
    output : path
        Folder to write: new, empty, or of an earlier run with the same settings, which is then completed;
        more experiments and more seeds may be added.
    data : path, optional
        Folder with MEArec template files in ``mearec/``; what is not there comes from the generator.
    config : EsortPaperConfig, optional
    progress : callable
        Told how many runs are done.
    scale : Scale, optional
        Sizes other than those that `config` names.

    Returns
    -------
    EsortPaperResults

    Raises
    ------
    SettingError
        If a setting is not allowed.
    RecordingError
        If `data` is no folder.
    OutputError
        If the folder holds anything else, or a run with other settings, or cannot be written.
    MissingExtraError
        If matplotlib, or MEArec where a template file is used, is not installed.
    Interrupted
        If it was stopped; what was finished is kept.
    """
    from spikewise.papers.esort.page import write_esort_page
    from spikewise.papers.figures import require_matplotlib

    require_matplotlib()
    output, config = Path(output), config or EsortPaperConfig()
    scale = scale or SCALES[config.scale]
    templates = find_templates(None if data is None else Path(data))
    check_folder(output)
    claim_folder(output, _fingerprint(config, scale, templates))
    planned = plan_runs(config, scale, frozenset(templates))
    not_run = missing_sorters(planned)
    runs = [run for run in planned if run.method not in not_run]
    workshop = Workshop(output / "sets", config, scale, templates)
    try:
        rows, num_new = run_missing(output / RESULTS_FILE, runs, workshop, progress)
    except KeyboardInterrupt as error:
        raise _interrupted(output) from error
    except Interrupted as error:
        raise _interrupted(output) from error
    tables = make_tables(rows, scale, config.chosen())
    for name, table in tables.items():
        write_csv(table, output / "tables" / f"{name}.csv")
    page = output / PAGE_FILE
    write_esort_page(page, config, scale, rows, tables, not_run)
    return EsortPaperResults(output, page, config, scale, rows, num_new, tables, not_run)


def _fingerprint(config: EsortPaperConfig, scale: Scale, templates: dict[str, Path]) -> dict[str, Any]:
    """Return what decides the scores, in JSON types; experiments and seeds only add to them."""
    sizes = {name: value for name, value in dataclasses.asdict(scale).items() if name != "num_seeds"}
    return {
        "experiments_of": "Han & Wang 2024",
        "version": __version__,
        "as_published": config.as_published,
        "seed": config.seed,
        "scale": json.loads(json.dumps(sizes)),
        "files": {name: hash_of(path) for name, path in templates.items()},
    }


def _interrupted(output: Path) -> Interrupted:
    return Interrupted(
        "the experiments were interrupted",
        f"the folder {output} keeps what was finished",
        "run the same command again to go on from there",
    )
