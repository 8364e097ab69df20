"""The command ``stream``: parse, call, print; no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from spikewise.cli.console import print_json, say
from spikewise.cli.options import AsJson, Overwrite, flat
from spikewise.core.config import StreamConfig
from spikewise.core.progress import begin
from spikewise.core.progress_bars import progress_bars

_Name = Annotated[str, Parameter(allow_leading_hyphen=True)]  # a hyphen is standard input
_Names = Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)]  # or standard output


def stream(
    source: _Name,
    *,
    sink: _Names,
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
        falcon://HOST:PORT (Open Ephys), lsl://NAME, intan://HOST:PORT, spikeglx://HOST:PORT/PROBE.
    model
        The model: a file from `spikewise train --filter live`, or a result. Without it, give --learn-s.
    sink
        Where the spikes go, each once: a folder for a result; - for lines on standard output; or an address:
        zmq://HOST:PORT, udp://HOST:PORT, lsl://NAME.
    """
    with progress_bars() as progress:
        begin(progress)
        from spikewise.jobs.live.streaming import stream as stream_spikes

        result = stream_spikes(
            source, model=model, sinks=sink, overwrite=overwrite, config=config, progress=progress
        )
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
