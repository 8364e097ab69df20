"""Settings of the comparison with truth, of curation in the browser, and of live streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikewise.core.settings import Settings, setting


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """How a sorting is compared with the truth."""

    interval: tuple[float, float] | None = setting(
        None, "Start and end of the time compared; default: all", unit="s"
    )
    delta_time_ms: float = setting(0.4, "Largest distance between matching spikes", unit="ms", minimum=0.0)
    match_score: float = setting(0.5, "Smallest accuracy at which two units match", minimum=0.0, maximum=1.0)


@dataclass(frozen=True)
class GuiConfig(Settings):
    """How a result is shown in a browser to be curated."""

    interval: tuple[float, float] | None = setting(
        None,
        "Start and end of the time that is shown, for example the label interval; default: all",
        unit="s",
    )
    address: str = setting("localhost", "Address at which the page is served")
    port: int = setting(0, "Port of the page; 0 chooses a free one", minimum=0, maximum=65535)
    show: bool = setting(True, "Open the page in the browser")


@dataclass(frozen=True)
class StreamConfig(Settings):
    """How a live stream is received and sorted."""

    speed: Literal["real-time", "fast"] = setting(
        "real-time", "How a file is replayed. real-time: at its own rate; fast: as fast as possible"
    )
    block_ms: float = setting(
        1.0, "Length of the blocks of a file", unit="ms", minimum=0.01, maximum=60_000.0
    )
    dtype: str = setting("int16", "Type of the samples of standard input")
    gain_to_uV: float | None = setting(
        None,
        "Microvolts for one unit of the samples. Default: what the source says, or else that of the "
        "recording of the training",
    )
    learn_s: float | None = setting(
        None,
        "Without a model: learn the units from so many seconds of the stream, which is kept meanwhile, and "
        "catch up with it",
        unit="s",
        minimum=2.0,
    )
    probe: str | None = setting(None, "Probe of the stream, as for a recording; for learn_s")
    stream: str | None = setting(None, "Name of the stream, where a source has several")
    threshold: float | None = setting(
        None, "One threshold for all units; default: those of the model", minimum=0.01, maximum=0.99
    )
    explain: bool = setting(
        True,
        "Let the traces decide where several units may have fired, as in a sort. Without it, spikes come a "
        "millisecond earlier, and more of them are wrong",
    )
    duration_s: float | None = setting(
        None, "End after so many seconds of samples; default: when the source ends", unit="s", minimum=0.001
    )
    view: bool = setting(False, "Show the stream in the browser while it is sorted, on this computer only")
    view_port: int = setting(0, "Port of the view; 0 chooses a free one", minimum=0, maximum=65535)
    view_show: bool = setting(True, "Open the view in the browser")
    wait_s: float = setting(
        60.0,
        "End if no samples come for so long. A source that is started again before goes on, with a gap",
        unit="s",
        minimum=0.1,
    )
