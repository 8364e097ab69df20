"""Settings of the comparison with truth, and of curation in the browser."""

from __future__ import annotations

from dataclasses import dataclass

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
