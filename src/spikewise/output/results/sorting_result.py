"""The result of a sort as Python users hold it."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
from spikeinterface.core import BaseRecording, BaseSorting, SortingAnalyzer
from spikeinterface.core.motion import Motion

from spikewise.core.config import RecordingConfig
from spikewise.core.errors import OutputError
from spikewise.data.opening import open_recording
from spikewise.models.checkpoint import Model
from spikewise.output.export.exporting import analyze, export_nwb, export_phy
from spikewise.output.export.nwb import NwbExport
from spikewise.output.export.phy import PhyExport
from spikewise.output.report.reporting import Report, report
from spikewise.output.result import StoredResult
from spikewise.output.result import load_result as load_stored
from spikewise.output.results.unit_table import unit_table
from spikewise.output.store import REPORT_FILE
from spikewise.output.trust.accepting import accept_suggestions, curated
from spikewise.output.unit_table import CHANGES, SUGGESTION_COLUMNS, read_suggestions

_SHOWN_UNITS = 20
"""Most units that a notebook shows."""


@dataclass(frozen=True)
class SortingResult:
    """The result of a sort.

    Attributes
    ----------
    sorting : BaseSorting
        The spikes; unit ids are those of the labels.
    model : Model
        The model that found them.
    provenance : dict
        Settings, versions, hashes, seeds and timings; JSON types only.
    folder : Path or None
        The output folder, if there is one.
    recording : BaseRecording or None
        The recording that was sorted, if it is at hand.
    motions : dict of str to Motion
        The motion of each group that was removed from its traces.
    """

    sorting: BaseSorting
    model: Model
    provenance: dict[str, Any]
    folder: Path | None = None
    recording: BaseRecording | None = field(default=None, compare=False)
    motions: dict[str, Motion] = field(default_factory=dict, compare=False)

    @property
    def units(self) -> pd.DataFrame:
        """A table with a row for each unit; the index is the unit id.

        With an output folder that holds ``units.csv``, it is that table. Otherwise its columns are the
        measures that need only the spikes: `group`, `num_spikes`, `rate_hz`, `violations_percent` (intervals
        below the refractory period), `violations_ratio`, `presence_ratio`, `num_labels` and `threshold`.
        """
        return unit_table(StoredResult(self.sorting, self.model, self.provenance), self.folder)

    @property
    def suggestions(self) -> pd.DataFrame:
        """A table of changes that would probably make the result better: units to merge, remove or split.

        Its columns are `change`, `unit_ids`, `probability` (that the change is right), `accuracy_before` and
        `accuracy_after` (mean expected accuracy of the units concerned), `gain` and `reason`. It is empty if
        there is none, or if the result has no folder.
        """
        found = None if self.folder is None else read_suggestions(self.folder)
        return pd.DataFrame(columns=list(SUGGESTION_COLUMNS)) if found is None else found

    @property
    def curated(self) -> BaseSorting:
        """The sorting with the curation of its folder applied; without one, as it was sorted."""
        return self.sorting if self.folder is None else curated(self.folder)

    def curate(self, changes: Sequence[str] = CHANGES, *, overwrite: bool = False) -> BaseSorting:
        """Accept suggested changes: write them into ``curation.json``, and return the sorting with them.

        Parameters
        ----------
        changes : sequence of str
            Any of ``merge``, ``remove`` and ``split``.
        overwrite : bool
            Whether an earlier curation may be replaced.

        Raises
        ------
        SpikewiseError
            If the result has no suggestions, or has a curation already.
        """
        if self.folder is None:
            raise OutputError("the result has no folder", "a result in a folder", "sort with output")
        accept_suggestions(self.folder, changes, overwrite=overwrite)
        return self.curated

    def report(
        self,
        output: str | Path | None = None,
        recording: BaseRecording | str | Path | None = None,
        *,
        truth: BaseSorting | str | Path | None = None,
        overwrite: bool = False,
        **options: Any,
    ) -> Report:
        """Write the report as one HTML page.

        Parameters
        ----------
        output : str or Path, optional
            File to write. Default: ``report.html`` in the output folder; an earlier one is replaced.
        recording : BaseRecording, str or Path, optional
            The recording that was sorted. Default: the one at hand; without one, no trace is drawn.
        truth, overwrite, **options
            See :func:`spikewise.report`.

        Raises
        ------
        SpikewiseError
            If an argument cannot be used, or the result has no folder and no output is given.
        """
        if output is None:
            if self.folder is None:
                raise OutputError(
                    "the result has no folder, and no file is named for the report",
                    "the name of a file such as report.html",
                    "give output",
                )
            output, overwrite = self.folder / REPORT_FILE, True
        used = self._recording() if recording is None else recording
        return report(self, output, recording=used, truth=truth, overwrite=overwrite, **options)

    def to_phy(
        self, output: str | Path, recording: BaseRecording | str | Path | None = None, **options: Any
    ) -> PhyExport:
        """Write a folder for Phy; see :func:`spikewise.export_phy`. Default: of the recording at hand."""
        return export_phy(self, self._needed(recording), output, **options)

    def to_nwb(
        self, output: str | Path, recording: BaseRecording | str | Path | None = None, **options: Any
    ) -> NwbExport:
        """Write an NWB file; see :func:`spikewise.export_nwb`. Default: of the recording at hand."""
        return export_nwb(self, self._needed(recording), output, **options)

    def analyzer(
        self, recording: BaseRecording | str | Path | None = None, **options: Any
    ) -> SortingAnalyzer:
        """Make a SortingAnalyzer; see :func:`spikewise.analyze`. Default: of the recording at hand."""
        return analyze(self, self._needed(recording), **options)

    def _recording(self) -> BaseRecording | None:
        """Return the recording at hand, or read it again as the sort did, if it is still where it was."""
        path = self.provenance["recording"].get("path")
        if self.recording is not None or not isinstance(path, str) or not Path(path).exists():
            return self.recording
        settings = self.provenance["config"].get("recording") or {}
        known = {one.name: settings[one.name] for one in fields(RecordingConfig) if one.name in settings}
        return open_recording(path, RecordingConfig.from_dict(known))[0]

    def _needed(self, recording: BaseRecording | str | Path | None) -> BaseRecording | str | Path:
        used = self._recording() if recording is None else recording
        if used is None:
            raise OutputError(
                "the recording of this result is not at hand",
                "the recording that was sorted",
                "give recording",
            )
        return used

    def _facts(self) -> dict[str, str]:
        """Return what is shown of the result, each fact with its name."""
        recorded, seconds = self.provenance["recording"], self.provenance["seconds"]
        damage = self.provenance.get("damage") or {}
        facts = {
            "units": f"{self.sorting.get_num_units()}",
            "spikes": f"{self.sorting.count_total_num_spikes()}",
            "recording": f"{seconds['recorded']:g} s, {recorded['num_channels']} channels, "
            f"{recorded['sampling_frequency']:g} Hz",
            "learning": "with a model that was given"
            if self.provenance["model"].get("given")
            else f"{seconds['learning']:.1f} s",
            "sorting": f"{seconds['sorting']:.1f} s",
        }
        if "total" in seconds:
            facts["from file to result"] = f"{seconds['total']:.1f} s"
        if damage.get("num_stretches"):
            facts["damage"] = f"{damage['num_stretches']} stretches, {damage['seconds']:.3g} s"
        if self.folder is not None:
            facts["folder"] = str(self.folder)
        return facts

    def __repr__(self) -> str:
        """Return the facts of the result in one line."""
        return f"SortingResult({', '.join(f'{name}: {text}' for name, text in self._facts().items())})"

    def _repr_html_(self) -> str:
        """Return the facts and the first units, for a notebook."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._facts().items()
        )
        table = self.units
        units = table.head(_SHOWN_UNITS).to_html(float_format=_three_digits)
        more = len(table) - _SHOWN_UNITS
        note = f"<p>and {more} more: <code>result.units</code></p>" if more > 0 else ""
        return f"<table>{rows}</table>{units}{note}"


_three_digits: Callable[[float], str] = "{:.3g}".format


def load_result(folder: str | Path) -> SortingResult:
    """Read a finished sort from its output folder.

    Parameters
    ----------
    folder : str or Path
        The output folder of :func:`spikewise.sort` or of the command.

    Returns
    -------
    SortingResult
        Its recording is opened again from where it was, as soon as it is needed.

    Raises
    ------
    SpikewiseError
        If the folder holds no finished result, or a damaged one.
    """
    stored = load_stored(folder)
    return SortingResult(
        stored.sorting, stored.model, stored.provenance, Path(folder), motions=stored.motions
    )
