"""The command ``spikewise gui``: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from spikewise.cli.console import say
from spikewise.cli.options import Reading, flat
from spikewise.core.config import GuiConfig, RecordingConfig
from spikewise.core.progress_bars import progress_bars


def gui(
    result: Path,
    *,
    recording: Path,
    reading: Reading = RecordingConfig(),
    browser: Annotated[GuiConfig, flat("Browser")] = GuiConfig(),
) -> None:
    """Look through a result in the browser, and confirm, reject, merge and split its units by clicking.

    "Save curation" writes RESULT/curation.json, which `train --labels RESULT` applies. Ctrl-C ends it.

    Parameters
    ----------
    result
        The output folder of `spikewise sort`.
    recording
        The recording that was sorted.
    """
    from spikewise import api
    from spikewise.output.curating import prepare_gui

    with progress_bars() as progress:
        served = prepare_gui(result, api.load_recording(recording, reading), browser, progress)
    say(
        f"open {served.url}; Ctrl-C ends it",
        f"a saved curation goes to {served.curation_file}; "
        f"train with it: spikewise train {recording} --labels {result} -o MODEL",
    )
    served.serve()
