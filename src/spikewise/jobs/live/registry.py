"""The choice of sources and sinks by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from spikeinterface.core import BaseRecording

from spikewise.core.config import RecordingConfig, StreamConfig
from spikewise.core.errors import SettingError
from spikewise.jobs.live.falcon import FalconSource
from spikewise.jobs.live.intan import IntanSource
from spikewise.jobs.live.lsl import LslSource
from spikewise.jobs.live.lsl_rates import LslRatesSink
from spikewise.jobs.live.network_events import NetworkEventsSink
from spikewise.jobs.live.openephys import OpenEphysSource
from spikewise.jobs.live.replay import Replay, StandardInput
from spikewise.jobs.live.sinks import FolderSink, LslSink, Sink, StandardOutput, UdpSink, Units, ZmqSink
from spikewise.jobs.live.source import Source
from spikewise.jobs.live.spikeglx import SpikeglxSource

SOURCES: dict[str, Callable[[SplitResult, Sequence[str], StreamConfig], Source]] = {
    "falcon": FalconSource,
    "openephys": OpenEphysSource,
    "lsl": LslSource,
    "intan": IntanSource,
    "spikeglx": SpikeglxSource,
}
"""Sources by the beginning of their names; all other names are recordings, and ``-`` is standard input."""


def open_source(
    source: Any, channel_ids: Sequence[str], config: StreamConfig, reading: RecordingConfig | None
) -> Source:
    """Return the source of a name, for the channels of a model; a source itself comes back as it is.

    Raises
    ------
    SettingError
        If the name is of no known kind.
    """
    if isinstance(source, BaseRecording):
        return Replay(source, config, reading)
    if not isinstance(source, str | Path):
        return source
    name = str(source)
    if name == "-":
        return StandardInput(len(channel_ids), config)
    if "://" not in name:
        return Replay(Path(name), config, reading)
    url = urlsplit(name)
    if url.scheme not in SOURCES:
        raise SettingError(
            f"the source {name} is of no known kind",
            f"a recording, -, or {', '.join(f'{kind}://...' for kind in SOURCES)}",
            "correct it",
        )
    return SOURCES[url.scheme](url, channel_ids, config)


SINKS: dict[str, Callable[[str, Units], Sink]] = {
    "zmq": ZmqSink,
    "udp": UdpSink,
    "lsl": LslSink,
    "lsl-rates": LslRatesSink,
    "openephys-events": NetworkEventsSink,
}
"""Sinks by the beginning of their names; all other names are folders, and ``-`` is standard output."""


def open_sinks(names: Sequence[str], units: Units, overwrite: bool) -> list[Sink]:
    """Open sinks by their names; if one cannot be opened, the others are closed.

    Raises
    ------
    SpikewiseError
        If a name is not known, or its sink cannot be opened.
    """
    opened: list[Sink] = []
    try:
        for name in names:
            scheme = name.split("://")[0] if "://" in name else ""
            if name == "-":
                opened.append(StandardOutput(name, units))
            elif scheme in SINKS:
                opened.append(SINKS[scheme](name, units))
            elif scheme:
                raise SettingError(
                    f"the sink {name} is of no known kind",
                    f"a folder, -, or {', '.join(f'{kind}://...' for kind in SINKS)}",
                    "correct it",
                )
            else:
                opened.append(FolderSink(name, units, overwrite))
    except BaseException:
        for sink in opened:
            sink.close(None)
        raise
    return opened
