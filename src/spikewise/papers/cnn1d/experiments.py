"""The experiments of Li et al. 2020, repeated: sets, divisions, methods, tables and studies.

This module runs all of them. The parts: :mod:`~spikewise.papers.cnn1d.sets` finds or simulates the sets,
:mod:`~spikewise.papers.cnn1d.runs` divides them and scores the :mod:`~spikewise.papers.cnn1d.methods`,
:mod:`~spikewise.papers.cnn1d.tables` compares the scores with the published ones,
:mod:`~spikewise.papers.cnn1d.studies` examines two sets more closely, and
:mod:`~spikewise.papers.cnn1d.folder` checks the output folder.

References
----------
Li, Wang, Zhang, Li 2020, Brain Sci. 10:835.
"""

from __future__ import annotations

from pathlib import Path

from spikewise.core.errors import Interrupted
from spikewise.core.progress import ProgressCallback, silent
from spikewise.papers.cnn1d.config import PapersConfig
from spikewise.papers.cnn1d.folder import PAGE_FILE, RESULTS_FILE, check_folder, claim_folder, fingerprint_of
from spikewise.papers.cnn1d.methods import choose_methods
from spikewise.papers.cnn1d.results import PaperResults
from spikewise.papers.cnn1d.runs import make_missing, run_missing
from spikewise.papers.cnn1d.sets import find_sets
from spikewise.papers.cnn1d.studies import run_studies
from spikewise.papers.cnn1d.tables import make_tables, write_tables


def run_cnn_paper(
    output: Path | str,
    data: Path | str | None = None,
    config: PapersConfig | None = None,
    progress: ProgressCallback = silent,
) -> PaperResults:
    """Run the experiments; write scores, tables, studies, figures and a page.

    Parameters
    ----------
    output : path
        Output folder: new, empty, or of an earlier run with the same settings, which is then completed.
    data : path, optional
        Folder that is searched for sets of labelled waveforms.
    config : PapersConfig, optional
    progress : callable
        Called with the number of finished jobs.

    Returns
    -------
    PaperResults

    Raises
    ------
    SettingError
        If a method or set is unknown.
    OutputError
        If the folder holds other files or a run with other settings, or cannot be written.
    WaveformsError
        If `data` is not a folder, or the shapes cannot be used.
    MissingExtraError
        If matplotlib, or a package that a rival needs, is not installed.
    Interrupted
        If it was interrupted; finished jobs are kept.
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
            f"the folder {output} keeps the finished jobs",
            "run the same command again to resume",
        ) from error
    tables = make_tables(rows)
    write_tables(tables, output / "tables")
    results = PaperResults(output, output / PAGE_FILE, config, tuple(sets), rows, num_new, tables, studies)
    write_papers_page(results)
    return results
