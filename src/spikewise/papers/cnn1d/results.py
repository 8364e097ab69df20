"""What the experiments of Li et al. 2020 return."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from spikewise.papers.cnn1d.config import PapersConfig
from spikewise.papers.cnn1d.sets import PaperSet


@dataclass(frozen=True)
class PaperResults:
    """The results of the experiments, and the folder that holds them.

    Attributes
    ----------
    output : Path
        The folder: ``results.csv``, ``tables/``, ``studies/``, ``figures/``, ``papers.html``.
    page : Path
    config : PapersConfig
    sets : tuple of PaperSet
    rows : DataFrame
        All scores; columns as in :data:`spikewise.papers.cnn1d.runs.COLUMNS`.
    num_new : int
        Number of rows that this run measured; the others were read.
    tables : dict of str to DataFrame
        ``table1`` to ``table3`` have a row for each cell, see :func:`spikewise.papers.cnn1d.tables.compare`;
        ``means``; ``real_sets``.
    studies : dict of str to DataFrame
        By the names in :data:`spikewise.papers.cnn1d.studies.STUDIES`; only those that the chosen sets and
        methods allow.
    """

    output: Path
    page: Path
    config: PapersConfig
    sets: tuple[PaperSet, ...]
    rows: pd.DataFrame
    num_new: int
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    studies: dict[str, pd.DataFrame] = field(default_factory=dict)
