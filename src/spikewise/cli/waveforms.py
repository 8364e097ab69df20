"""The commands ``waveforms ...`` for single channels: parse, call, print; no logic."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from spikewise.cli.console import print_json, say
from spikewise.cli.options import AsJson, Output, Overwrite, flat
from spikewise.cli.options import Reading as RecordingReading
from spikewise.cli.stream import SinkNames, SourceName, print_stream
from spikewise.core.config import RecordingConfig, StreamConfig
from spikewise.core.errors import Interrupted
from spikewise.core.progress_bars import progress_bars
from spikewise.single_channel.config import (
    ChannelSortingConfig,
    SnippetsConfig,
    SpikeDetectionConfig,
    WaveClusConfig,
    WaveformTrainingConfig,
)

waveforms = App(
    name="waveforms",
    help="Single channels: train on labelled waveforms, classify others, sort a raw signal.",
    help_format="plaintext",
)


Reading = Annotated[SnippetsConfig, flat("Reading")]
Training = Annotated[WaveformTrainingConfig, flat("Training")]


@waveforms.command
def train(
    waveforms: Path,
    *,
    output: Output,
    overwrite: Overwrite = False,
    json: AsJson = False,
    reading: Reading = SnippetsConfig(),
    training: Training = WaveformTrainingConfig(),
) -> None:
    """Train a model on labelled waveforms; it then classifies other waveforms.

    Ctrl-C ends training early and writes the best model so far.

    Parameters
    ----------
    waveforms
        Labelled waveforms: a Wave_Clus simulation or result (.mat), an .npz, or a table (.csv).
    output
        File for the model, for example model.safetensors; it must not exist.
    """
    from spikewise.single_channel.api import train_waveforms

    started = time.perf_counter()
    with progress_bars() as progress:
        model = train_waveforms(
            waveforms, output=output, overwrite=overwrite, config=training, reading=reading, progress=progress
        )
    calibration = model.facts["calibration"]
    num_labels = sum(model.facts["num_labels"].values())
    say(f"{len(model.unit_ids)} units learnt from {num_labels} labelled waveforms")
    if "accuracy" in calibration:
        say(
            f"accuracy on the last {calibration['num_spikes']} labels, which a first training did not use: "
            f"{100 * calibration['accuracy']:.2f} %"
        )
    say(f"model in {output}")
    if json:
        print_json(
            command="waveforms train",
            units=len(model.unit_ids),
            labels=num_labels,
            held_out_accuracy=calibration.get("accuracy"),
            seconds=round(time.perf_counter() - started, 3),
            model_hash=model.hash(),
            output=str(output),
        )
    if model.facts["interrupted"]:
        raise Interrupted(
            "training was interrupted", f"the best model so far is {output}", "use it, or train again"
        )


@waveforms.command
def classify(
    waveforms: Path,
    *,
    model: Path,
    output: Output,
    overwrite: Overwrite = False,
    min_probability: float = 0.0,
    second_units: Annotated[bool, Parameter(negative="")] = False,
    json: AsJson = False,
    reading: Reading = SnippetsConfig(),
) -> None:
    """Assign each waveform to a unit; write a CSV with a row (index, label, probability) for each waveform.

    Parameters
    ----------
    waveforms
        Waveforms (.mat, .npz, .npy or a table) of the same length as those that the model was trained on.
    model
        A model of `spikewise waveforms train`.
    output
        File for the table, for example spikes.csv; it must not exist.
    min_probability
        Leave a waveform unsorted (label -1) if its unit is less probable than this.
    second_units
        Add a column second_label: another unit that fired within the same waveform, -1 for none.
    """
    from spikewise.single_channel.api import classify_waveforms

    started = time.perf_counter()
    found = classify_waveforms(
        waveforms,
        model,
        output=output,
        overwrite=overwrite,
        min_probability=min_probability,
        second_units=second_units,
        reading=reading,
    )
    num_unsorted = int((found.unit_index < 0).sum())
    num_second = int((found.second_index >= 0).sum())
    say(
        f"{len(found.unit_index)} waveforms: {len(found.unit_index) - num_unsorted} assigned to "
        f"{len(found.unit_ids)} units, {num_unsorted} left unsorted, {num_second} with a second unit",
        f"table in {output}",
    )
    if json:
        print_json(
            command="waveforms classify",
            waveforms=len(found.unit_index),
            units=len(found.unit_ids),
            unsorted=num_unsorted,
            second=num_second,
            seconds=round(time.perf_counter() - started, 3),
            output=str(output),
        )


@waveforms.command
def sort(
    recording: Path,
    *,
    output: Output,
    labels: Path | None = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    reading: RecordingReading = RecordingConfig(),
    sorting: Annotated[ChannelSortingConfig, flat("Sorting")] = ChannelSortingConfig(),
    detection: Annotated[SpikeDetectionConfig, flat("Detection")] = SpikeDetectionConfig(),
    training: Training = WaveformTrainingConfig(),
) -> None:
    """Sort the raw signal of a single channel, with labels for a part of it or without labels.

    Without labels, the spikes of the first `--stretch-s` seconds are clustered with a Gaussian mixture.

    Parameters
    ----------
    recording
        The signal: a Wave_Clus simulation (.mat), an array (.npy, .npz), a channel of any recording that
        `spikewise sort` reads, or waveforms.
    output
        Folder for the result; it must not exist.
    labels
        Labelled spikes in any format that `spikewise sort` reads; or RECORDING itself, if it contains spikes.
    """
    from spikewise.single_channel.api import sort_channel

    with progress_bars() as progress:
        result = sort_channel(
            recording,
            labels=labels,
            output=output,
            overwrite=overwrite,
            config=sorting,
            detection=detection,
            training=training,
            reading=reading,
            progress=progress,
        )
    found, truth, seconds = (result.provenance[name] for name in ("result", "truth", "seconds"))
    say(
        f"{found['num_detected']} spikes: {found['num_spikes']} of {found['num_units']} units, "
        f"{found['num_unsorted']} left unsorted"
    )
    if truth is not None:
        say(*_score_lines(truth))
    if result.sorting is None:
        say("the waveforms have no times, so the result is only the table spikes.csv")
    say(f"result in {output}")
    if json:
        print_json(
            command="waveforms sort",
            units=found["num_units"],
            spikes=found["num_spikes"],
            unsorted=found["num_unsorted"],
            seconds=seconds["total"],
            sorting_seconds=seconds["sorting"],
            learning_seconds=seconds["learning"],
            recorded_seconds=seconds.get("recorded"),
            real_time_factor=result.provenance.get("real_time_factor"),
            spikes_hash=found["spikes_hash"],
            model_hash=result.provenance["model"]["hash"],
            truth=truth,
            output=str(output),
        )


@waveforms.command
def simulate(
    *,
    output: Output,
    overwrite: Overwrite = False,
    json: AsJson = False,
    simulation: Annotated[WaveClusConfig, flat("Simulation")] = WaveClusConfig(),
) -> None:
    """Simulate a single-channel signal with known spikes, like those of Wave_Clus, as a .mat file.

    Parameters
    ----------
    output
        File for the simulation, for example simulation.mat; it must not exist.
    """
    from spikewise.single_channel.api import simulate_channel

    started = time.perf_counter()
    result = simulate_channel(output=output, overwrite=overwrite, config=simulation)
    num_units, num_overlaps = len(result.shapes), int(result.is_overlap.sum())
    duration = len(result.signal) / result.sampling_frequency
    say(
        f"{num_units} units, {len(result.labels)} spikes, {num_overlaps} of them overlapping, {duration:g} s",
        f"simulation in {output}",
    )
    if json:
        print_json(
            command="waveforms simulate",
            units=num_units,
            spikes=len(result.labels),
            overlapping=num_overlaps,
            recorded_seconds=duration,
            seconds=round(time.perf_counter() - started, 3),
            output=str(output),
        )


@waveforms.command
def stream(
    source: SourceName,
    *,
    model: list[Path],
    sink: SinkNames,
    column: list[int] | None = None,
    num_columns: int | None = None,
    min_probability: float = 0.0,
    overwrite: Overwrite = False,
    json: AsJson = False,
    sampling_frequency: float | None = None,
    config: Annotated[StreamConfig, flat("Stream")] = StreamConfig(),
) -> None:
    """Sort single channels of a live stream with models of `waveforms sort --filter live`; Ctrl-C ends it.

    Parameters
    ----------
    source
        What is sorted: a signal or recording, which is replayed; - for raw samples on standard input; or an
        address as for `spikewise stream`.
    model
        One model for each channel that is sorted.
    sink
        Where the spikes go, as for `spikewise stream`.
    column
        The channel of the stream of each model, counted from 0. Default: the first ones.
    num_columns
        Channels of standard input. Default: up to the last one that has a model.
    min_probability
        Leave out spikes whose unit is less probable than this.
    sampling_frequency
        Sampling frequency in Hz of a signal in a file that does not hold it.
    """
    from spikewise.single_channel.live.streaming import stream_channels

    with progress_bars() as progress:
        result = stream_channels(
            source,
            models=model,
            sinks=sink,
            columns=column,
            num_columns=num_columns,
            min_probability=min_probability,
            overwrite=overwrite,
            config=config,
            reading=RecordingConfig(sampling_frequency=sampling_frequency),
            progress=progress,
        )
    print_stream(result, sink, json)


def _score_lines(truth: dict[str, Any]) -> list[str]:
    """Return the scores, compared with the true spikes, as lines of text."""
    accuracy = truth["classification_accuracy"]
    lines = [
        f"compared with the true spikes of the file ({truth['interval']}): "
        f"{truth['detection_recall']:.1%} of {truth['num_true_spikes']} found, "
        f"{truth['detection_precision']:.1%} of {truth['num_spikes']} true"
    ]
    if accuracy is not None:
        lines.append(f"of those found, {accuracy:.1%} were assigned to their unit")
    return lines
