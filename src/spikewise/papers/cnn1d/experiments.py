"""The experiments of Li et al. 2020, run again: sets, divisions, methods, tables and studies.

This module runs them from one end to the other. The parts: :mod:`~spikewise.papers.cnn1d.sets` finds or
makes the sets, :mod:`~spikewise.papers.cnn1d.runs` divides them and scores the
:mod:`~spikewise.papers.cnn1d.methods`, :mod:`~spikewise.papers.cnn1d.tables` sets the scores beside
the published ones, :mod:`~spikewise.papers.cnn1d.studies` looks closer at two sets, and
:mod:`~spikewise.papers.cnn1d.folder` guards the folder that holds it all.

References
----------
Li, Wang, Zhang, Li 2020, Brain Sci. 10:835.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from spikewise.core.errors import Interrupted
from spikewise.core.progress import ProgressCallback, silent
from spikewise.papers.cnn1d.config import PapersConfig
from spikewise.papers.cnn1d.folder import PAGE_FILE, RESULTS_FILE, check_folder, claim_folder, fingerprint_of
from spikewise.papers.cnn1d.methods import choose_methods
from spikewise.papers.cnn1d.runs import make_missing, run_missing
from spikewise.papers.cnn1d.sets import PaperSet, find_sets
from spikewise.papers.cnn1d.studies import run_studies
from spikewise.papers.cnn1d.tables import make_tables, write_tables


@dataclass(frozen=True)
class PaperResults:
    """What a run measured, and where it lies.

    Attributes
    ----------
    output : Path
        The folder: ``results.csv``, ``tables/``, ``studies/``, ``figures/``, ``papers.html``.
    page : Path
    config : PapersConfig
    sets : tuple of PaperSet
    rows : DataFrame
        All scores, columns as in ``paper_runs.COLUMNS``.
    num_new : int
        Rows that this run measured; the others were there.
    tables : dict of str to DataFrame
        ``table1`` to ``table3``: a row for each cell, see ``paper_tables.compare``; ``means``;
        ``real_sets``.
    studies : dict of str to DataFrame
        By the names in ``paper_studies.STUDIES``; only those that the chosen sets and methods allow.
    """

    output: Path
    page: Path
    config: PapersConfig
    sets: tuple[PaperSet, ...]
    rows: pd.DataFrame
    num_new: int
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    studies: dict[str, pd.DataFrame] = field(default_factory=dict)


def run_cnn_paper(
    output: Path | str,
    data: Path | str | None = None,
    config: PapersConfig | None = None,
    progress: ProgressCallback = silent,
) -> PaperResults:
    """Run the experiments, and write scores, tables, studies, figures and a page of them all.

    Parameters
    ----------
    output : path
        Folder to write: new, empty, or of an earlier run with the same settings, which is then completed.
    data : path, optional
        Folder that is searched for sets of labelled waveforms.
    config : PapersConfig, optional
    progress : callable
        Told how many jobs are done.

    Returns
    -------
    PaperResults

    Raises
    ------
    SettingError
        If a method or set is unknown.
    OutputError
        If the folder holds anything else, or a run with other settings, or cannot be written.
    WaveformsError
        If `data` is no folder, or the shapes cannot be used.
    MissingExtraError
        If matplotlib, or a package that a rival needs, is not installed.
    Interrupted
        If it was stopped; what was finished is kept.
    """
    from spikewise.papers.cnn1d.page import write_papers_page
    from spikewise.papers.figures import require_matplotlib

    require_matplotlib()
    output, config = Path(output), config or PapersConfig()
    methods = choose_methods(config.methods)
    check_folder(output)
    sets = find_sets(output, None if data is None else Path(data), config)
    claim_folder(output, fingerprint_of(sets, config))
    try:
        make_missing(sets, config.num_jobs, progress)
        rows, num_new = run_missing(output / RESULTS_FILE, sets, methods, config, progress)
        studies = run_studies(output / "studies", sets, methods, config, progress)
    except KeyboardInterrupt as error:
        raise Interrupted(
            "the experiments were interrupted",
            f"the folder {output} keeps what was finished",
            "run the same command again to go on from there",
        ) from error
    tables = make_tables(rows)
    write_tables(tables, output / "tables")
    results = PaperResults(output, output / PAGE_FILE, config, tuple(sets), rows, num_new, tables, studies)
    write_papers_page(results)
    return results
