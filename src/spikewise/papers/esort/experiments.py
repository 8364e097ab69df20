"""The experiments of Han & Wang (arXiv 2409.13067), repeated: runs, tables, figures and a page.

The parts: :mod:`~spikewise.papers.esort.plan` plans the runs, :mod:`~spikewise.papers.esort.runs` executes
them, :mod:`~spikewise.papers.esort.scores` scores the sortings, :mod:`~spikewise.papers.esort.tables`
compares the scores with the published ones, and :mod:`~spikewise.papers.esort.page` writes the page.

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
from spikewise.papers.esort.config import SCALES, EsortPaperConfig, Scale
from spikewise.papers.esort.plan import find_templates, plan_runs
from spikewise.papers.esort.runs import RunContext, missing_sorters, run_missing
from spikewise.papers.esort.tables import make_tables


@dataclass(frozen=True)
class EsortPaperResults:
    """The results of the experiments, and the folder that holds them.

    Attributes
    ----------
    output : Path
        The folder: ``results.csv``, ``tables/``, ``figures/``, ``papers.html``.
    page : Path
    config : EsortPaperConfig
    scale : Scale
    rows : DataFrame
        All scores; columns as in :data:`spikewise.papers.esort.runs.COLUMNS`.
    num_new : int
        Number of rows that this call measured; the others were read.
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
    """Run the experiments; write scores, tables, figures and a page.

    Parameters
    ----------
    output : path
        Output folder: new, empty, or of an earlier run with the same settings, which is then completed. More
        experiments and more seeds may be added.
    data : path, optional
        Folder with MEArec template files in ``mearec/``; other recordings come from a generator.
    config : EsortPaperConfig, optional
    progress : callable
        Called with the number of finished runs.
    scale : Scale, optional
        Sizes that replace those of the scale in `config`.

    Returns
    -------
    EsortPaperResults

    Raises
    ------
    SettingError
        If a setting is not allowed.
    RecordingError
        If `data` is not a folder.
    OutputError
        If the folder holds other files or a run with other settings, or cannot be written.
    MissingExtraError
        If matplotlib, or MEArec where a template file is used, is not installed.
    Interrupted
        If it was interrupted; finished runs are kept.
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
    context = RunContext(output / "sets", config, scale, templates)
    try:
        rows, num_new = run_missing(output / RESULTS_FILE, runs, context, progress)
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
    """Return all that determines the scores, in JSON types; more experiments and seeds only add scores."""
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
        f"the folder {output} keeps the finished runs",
        "run the same command again to resume",
    )
