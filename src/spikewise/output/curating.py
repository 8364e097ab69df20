"""Curation of a result in the browser, with spikeinterface-gui; ``train --labels`` reads the saved curation.

The browser shows a SortingAnalyzer in memory, of the whole recording or of an interval, for example the one
whose labels will train a model. The saved curation always refers to the whole result: splits of an interval's
spikes are translated to the spikes of the whole sorting.
"""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.core import BaseRecording, BaseSorting, SortingAnalyzer

from spikewise.core.config import GuiConfig
from spikewise.core.errors import MissingExtraError, OutputError, RecordingError, SettingError
from spikewise.core.files import save_json
from spikewise.core.progress import ProgressCallback, silent
from spikewise.data.labels.curation import CURATION_FILE, load_curation
from spikewise.output.result import load_result
from spikewise.output.result_groups import groups_of
from spikewise.output.sorted_traces import traces_as_sorted

logger = logging.getLogger(__name__)

_EXTENSIONS: dict[str, dict[str, Any]] = {
    "random_spikes": {"max_spikes_per_unit": 200, "seed": 0},
    "noise_levels": {},
    "templates": {"operators": ["average", "std"]},
    "unit_locations": {"method": "center_of_mass"},
    "correlograms": {},
    "spike_amplitudes": {},
    "quality_metrics": {
        "metric_names": ["num_spikes", "firing_rate", "presence_ratio", "snr", "isi_violation"],
    },
}
"""What the analyzer computes, in order; 200 spikes of each unit were chosen by hand."""
_READS_TRACES = ("noise_levels", "templates", "spike_amplitudes")
"""Extensions that read the recording."""
_SPARSE_CHANNELS = 8
"""A recording with more channels gets a sparse analyzer; chosen by hand."""


@dataclass(frozen=True)
class CurationPage:
    """A page for curation, ready to be served.

    Attributes
    ----------
    url : str
        Address of the page.
    curation_file : Path
        File in which the curation is saved.
    serve : callable
        Serves the page until Ctrl-C.
    """

    url: str
    curation_file: Path
    serve: Callable[[], None]


def prepare_gui(
    result: Path | str,
    recording: BaseRecording,
    config: GuiConfig | None = None,
    progress: ProgressCallback = silent,
) -> CurationPage:
    """Prepare the page to curate a result.

    Parameters
    ----------
    result : Path or str
        The output folder of a sort.
    recording : BaseRecording
        The recording that was sorted.
    config : GuiConfig, optional
        Interval and address.
    progress : callable, optional
        Called with the progress.

    Returns
    -------
    CurationPage

    Raises
    ------
    MissingExtraError
        If spikeinterface-gui is not installed.
    OutputError, RecordingError, SettingError, LabelsError
        If the result, the recording, the interval or an earlier curation cannot be used.
    """
    try:
        import panel
        import spikeinterface_gui  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            error.name or "spikeinterface-gui", "gui", "labelling in a browser"
        ) from error
    from spikeinterface_gui.backend_panel import find_free_port

    config = config or GuiConfig()
    stored = load_result(result)
    lengths = [recording.get_num_samples(index) for index in range(recording.get_num_segments())]
    if lengths != stored.num_samples:
        raise RecordingError(
            f"the recording has segments of {lengths} samples",
            f"the result is of a recording with segments of {stored.num_samples}",
            "give the recording that was sorted",
        )
    file = Path(result) / CURATION_FILE
    frames = _frames(stored.sorting, lengths, config.interval)
    translator = CurationTranslator(stored.sorting, *frames)
    earlier = translator.to_interval(load_curation(file)) if file.exists() else None
    shown = traces_as_sorted(stored, recording, groups_of(stored, recording))
    analyzer = make_analyzer(
        stored.sorting if frames == (0, lengths[0]) else stored.sorting.frame_slice(*frames),
        shown if frames == (0, lengths[0]) else shown.frame_slice(*frames),
        progress,
    )

    def save(curation: dict[str, Any]) -> None:
        save_json(translator.to_whole(curation), file)
        logger.info("curation saved in %s", file)

    port = config.port or find_free_port()

    def serve() -> None:
        window = _window(analyzer, earlier, save)
        panel.serve(
            {"/": window.main_layout},
            address=config.address,
            port=port,
            show=config.show,
            websocket_origin=[f"{config.address}:{port}", f"localhost:{port}", f"127.0.0.1:{port}"],
            title="Spikewise",
            verbose=False,
        )

    return CurationPage(f"http://{config.address}:{port}/", file, serve)


def make_analyzer(
    sorting: BaseSorting, recording: BaseRecording, progress: ProgressCallback = silent
) -> SortingAnalyzer:
    """Compute what the browser shows of a sorting, in memory.

    Raises
    ------
    OutputError
        If no unit has a spike.
    """
    from spikeinterface.core import create_sorting_analyzer

    if sorting.count_total_num_spikes() == 0:
        raise OutputError(
            "the result has no spike in this interval",
            "at least one spike",
            "choose another interval, or another result",
        )
    steps = len(_EXTENSIONS) + 1
    progress("measuring units", 0, steps, "")
    quiet: dict[str, Any] = {"n_jobs": 1, "progress_bar": False}
    analyzer = create_sorting_analyzer(
        sorting, recording, format="memory", sparse=len(recording.channel_ids) > _SPARSE_CHANNELS, **quiet
    )
    for done, (name, parameters) in enumerate(_EXTENSIONS.items(), start=1):
        progress("measuring units", done, steps, name.replace("_", " "))
        analyzer.compute(name, **parameters, **(quiet if name in _READS_TRACES else {}))
    progress("measuring units", steps, steps, "")
    return analyzer


def _window(
    analyzer: SortingAnalyzer, curation: dict[str, Any] | None, save: Callable[[dict[str, Any]], None]
) -> Any:
    """Build the page of spikeinterface-gui so that it opens without a network, too."""
    from spikeinterface_gui import run_mainwindow, utils_panel

    utils_panel.KeyboardShortcuts = _keyboard_shortcuts()
    return run_mainwindow(
        analyzer,
        mode="web",
        curation=True,
        curation_dict=curation,
        curation_callback=save,
        start_app=False,
        panel_window_servable=False,
        disable_save_settings_button=True,
    )


def _keyboard_shortcuts() -> type:
    """Return a component for keyboard shortcuts that replaces the one of spikeinterface-gui.

    The one of spikeinterface-gui (0.14) needs React, which the page would load from the network. Without a
    network the page would stay empty.
    """
    import panel.custom
    import param

    class KeyboardShortcuts(panel.custom.JSComponent):
        """Sends the name of each shortcut that is pressed."""

        shortcuts = param.List(item_type=dict)
        _esm = (
            importlib.resources.files("spikewise.output.report")
            .joinpath("assets/shortcuts.js")
            .read_text("utf-8")
        )

    return KeyboardShortcuts


def _frames(
    sorting: BaseSorting, lengths: list[int], interval: tuple[float, float] | None
) -> tuple[int, int]:
    """Return the first frame of the interval and the frame after its last."""
    if interval is None:
        return 0, lengths[0]
    duration_s = lengths[0] / sorting.sampling_frequency
    if len(lengths) > 1 or not 0 <= interval[0] < min(interval[1], duration_s):
        raise SettingError(
            f"the interval is {interval[0]:g} to {interval[1]:g} s of a recording of {len(lengths)} "
            f"segments, the first of {duration_s:g} s",
            "an interval within a recording of one segment",
            "give --interval START END in seconds, or leave it out",
        )
    start, stop = (round(edge * sorting.sampling_frequency) for edge in interval)
    return start, min(stop, lengths[0])


class CurationTranslator:
    """Translates curations between an interval and the whole sorting.

    Splits name spikes by their index within the unit, which differs between the two.

    Parameters
    ----------
    sorting : BaseSorting
        The whole sorting.
    start, stop : int
        The interval, in frames of the first segment.
    """

    def __init__(self, sorting: BaseSorting, start: int, stop: int):
        self._whole = sorting
        self._limits = {
            unit_id: np.searchsorted(
                sorting.get_unit_spike_train(unit_id, segment_index=0), [start, stop]
            ).tolist()
            for unit_id in sorting.unit_ids
        }
        self._is_part = any(
            (low, high) != (0, len(sorting.get_unit_spike_train(unit_id, segment_index=0)))
            for unit_id, (low, high) in self._limits.items()
        )

    def to_whole(self, curation: dict[str, Any]) -> dict[str, Any]:
        """Return a curation of the interval as a curation of the whole sorting; JSON types only."""
        from spikeinterface.curation.curation_model import Curation

        shifted = self._shift(curation, 1) if self._is_part else curation
        return Curation(**shifted).model_dump(mode="json", exclude={"supported_versions"})

    def to_interval(self, curation: dict[str, Any]) -> dict[str, Any]:
        """Return a curation of the whole sorting as a curation of the interval.

        Raises
        ------
        SettingError
            If it splits spikes outside of the interval, or splits by a label for each spike.
        """
        shifted = self._shift(curation, -1) if self._is_part else dict(curation)
        for split in (shifted["splits"] or []) if self._is_part else []:
            low, high = self._limits[split["unit_id"]]
            if any(not 0 <= spike < high - low for part in split["indices"] for spike in part):
                raise SettingError(
                    f"the earlier curation splits spikes of unit {split['unit_id']} outside of the interval",
                    "an interval with all spikes of its splits",
                    "leave --interval out, or give the interval in which the unit was split",
                )
        return shifted

    def _shift(self, curation: dict[str, Any], sign: int) -> dict[str, Any]:
        """Return a curation with shifted spike indices; `sign` 1: to the whole, -1: to the interval."""
        splits = []
        for split in curation["splits"] or []:
            if split["mode"] != "indices":
                raise SettingError(
                    f"the earlier curation splits unit {split['unit_id']} by a label for each spike",
                    "with an interval, only splits by the indices of spikes",
                    "leave --interval out",
                )
            offset = sign * self._limits[split["unit_id"]][0]
            parts = [[spike + offset for spike in part] for part in split["indices"]]
            splits.append({**split, "indices": parts})
        return {**curation, "splits": splits}
