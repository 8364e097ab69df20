"""The page of the experiments of Han & Wang: one HTML file without other files.

The page shows published claims beside measured values. It is the template ``page.html.jinja``; its figures
come from :mod:`spikewise.papers.esort.figures`.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from spikewise.core.files import replacing
from spikewise.core.version import __version__
from spikewise.papers.cnn1d.tables import plain_rows
from spikewise.papers.esort.config import EXPERIMENTS, EsortPaperConfig, Scale
from spikewise.papers.esort.figures import draw_all
from spikewise.papers.esort.methods import METHOD_NAMES

TEMPLATE = "page.html.jinja"
_TABLES_OF = {
    "a": ("labels",),
    "b": ("labels_needed",),
    "c": ("probes",),
    "d": ("noise",),
    "e": ("drift",),
    "f": ("sorters", "best_sorters"),
}
_HEADINGS = {
    "accuracy": "accuracy (%)",
    "sd": "± sd",
    "precision": "precision (%)",
    "recall": "recall (%)",
    "num_seeds": "recordings",
    "labels_per_unit": "labels of each unit",
    "baseline": "compared with",
    "compared_with": "compared with",
    "baseline_accuracy": "its accuracy (%)",
    "gain_points": "gain (points)",
    "bound": "",
    "labels_needed": "labels it needs",
    "reduction_percent": "fewer labels (%)",
    "num_channels": "channels",
    "num_units": "units",
    "noise_uV": "noise (uV)",
    "pretraining_drift": "drift where filters are from",
    "accuracy_all_spikes": "with unmatched units (%)",
    "num_units_found": "units found",
    "learning_s": "learning (s)",
    "sorting_s_of_50": "sorting 50 s (s)",
    "best_sorter": "best other sorter",
    "best_accuracy": "its accuracy (%)",
    "with_labels": "Spikewise with labels (%)",
    "gain_with_labels": "gain (points)",
    "without_labels": "Spikewise without (%)",
    "gain_without_labels": "gain (points)",
}
_WHOLE = {"num_seeds", "labels_per_unit", "num_channels", "num_units", "noise_uV"}


def write_esort_page(
    page: Path,
    config: EsortPaperConfig,
    scale: Scale,
    rows: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    not_run: dict[str, str],
) -> Path:
    """Write the page, and its figures into ``figures`` beside it.

    Parameters
    ----------
    page : Path
        The file.
    config, scale
        The settings of the runs.
    rows : DataFrame
        All results; failed runs are listed with their note.
    tables : dict of str to DataFrame
        The result of :func:`spikewise.papers.esort.tables.make_tables`.
    not_run : dict of str to str
        Methods that could not run, with the reason.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    OutputError
        If it cannot be written.
    """
    pictures = draw_all(tables, page.parent / "figures")
    sections = [
        {
            "key": key,
            "title": EXPERIMENTS[key],
            "picture": pictures.get(_TABLES_OF[key][0]),
            "tables": [page_table(tables[name]) for name in _TABLES_OF[key] if name in tables],
        }
        for key in config.chosen()
        if _TABLES_OF[key][0] in tables
    ]
    text = _template().render(
        version=__version__,
        config=config.to_dict(),
        scale=scale,
        claims=page_table(tables["claims"]),
        sections=sections,
        missing={METHOD_NAMES[name]: reason for name, reason in not_run.items()},
        failed=plain_rows(rows[rows["accuracy"].isna()]),
        method_names=METHOD_NAMES,
    )
    with replacing(page) as partial:
        partial.write_text(text, encoding="utf-8")
    return page


def page_table(table: pd.DataFrame) -> dict[str, Any] | None:
    """Return the headings of a table and the text of its cells; None if it has no rows."""
    if table.empty:
        return None
    names = [str(name) for name in table]
    return {
        "headings": [_HEADINGS.get(name, name) for name in names],
        "rows": [[cell_text(name, row[name]) for name in names] for row in plain_rows(table)],
    }


def cell_text(column: str, value: Any) -> str:
    """Return a value of a table as text for the page."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return METHOD_NAMES.get(value, value)
    return f"{value:g}" if column in _WHOLE else f"{value:.2f}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = importlib.resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source)
