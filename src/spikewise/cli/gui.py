"""The command ``gui``: parse, call, print; no logic."""

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
    """Curate a result in the browser: confirm, reject, merge and split its units.

    "Save curation" writes RESULT/curation.json; `train --labels RESULT` applies it. Ctrl-C stops the server.

    Parameters
    ----------
    result
        The output folder of `spikewise sort`.
    recording
        The recording that was sorted.
    """
    try:
        from spikewise import api
        from spikewise.output.curating import prepare_gui

        with progress_bars() as progress:
            served = prepare_gui(result, api.load_recording(recording, reading), browser, progress)
        say(
            f"open {served.url}; Ctrl-C stops the server",
            f"a saved curation goes to {served.curation_file}; "
            f"train with it: spikewise train {recording} --labels {result} -o MODEL",
        )
        served.serve()
    except KeyboardInterrupt:
        pass  # the usual way to end it, while it starts too
