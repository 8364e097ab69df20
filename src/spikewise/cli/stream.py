"""The command ``stream``: parse, call, print; no logic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from spikewise.cli.console import print_json, say
from spikewise.cli.options import AsJson, Overwrite, flat
from spikewise.core.config import StreamConfig
from spikewise.core.progress import begin
from spikewise.core.progress_bars import progress_bars

if TYPE_CHECKING:
    from spikewise.jobs.live.loop import StreamResult

SourceName = Annotated[str, Parameter(allow_leading_hyphen=True)]  # a hyphen is standard input
SinkNames = Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)]  # or standard output


def stream(
    source: SourceName,
    *,
    sink: SinkNames,
    model: Path | None = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    config: Annotated[StreamConfig, flat("Stream")] = StreamConfig(),
) -> None:
    """Sort a live stream with a model that was trained with --filter live; Ctrl-C ends it.

    Parameters
    ----------
    source
        What is sorted: a recording, which is replayed; - for raw samples on standard input; or an address:
        falcon://HOST:PORT or openephys://HOST:PORT (Open Ephys), lsl://NAME, intan://HOST:PORT, spikeglx://HOST:PORT/PROBE.
    model
        The model: a file from `spikewise train --filter live`, or a result. Without it, give --learn-s.
    sink
        Where the spikes go, each once: a folder for a result; - for lines on standard output; or an address:
        zmq://HOST:PORT, udp://HOST:PORT, lsl://NAME, lsl-rates://NAME, openephys-events://HOST:PORT?UNIT=LINE.
    """
    with progress_bars() as progress:
        begin(progress)
        from spikewise.jobs.live.streaming import stream as stream_spikes

        result = stream_spikes(
            source, model=model, sinks=sink, overwrite=overwrite, config=config, progress=progress
        )
    print_stream(result, sink, json)


def print_stream(result: StreamResult, sink: Sequence[str], json: bool) -> None:
    """Print what a stream gave, and how late its spikes came."""
    summary = result.summary()
    if "-" not in sink:
        delay, gaps = summary["delay"], summary["num_gaps"]
        say(
            f"{summary['num_spikes']} spikes in {summary['num_samples']} samples, {gaps} gaps with "
            f"{summary['num_missing']} missing samples"
        )
        if delay["count"]:
            say(
                f"delay after the last needed sample: median {delay['p50_ms']:g} ms, 99 % below "
                f"{delay['p99_ms']:g} ms, at most {delay['max_ms']:g} ms"
            )
    if json:
        print_json(**summary)
