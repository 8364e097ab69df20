"""The commands ``sort``, ``train`` and ``pretrain``: parse, call, print; no logic."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from spikewise.cli.console import print_json, say, times
from spikewise.cli.options import AsJson, Output, Overwrite, Resume, Settings
from spikewise.core.errors import Interrupted
from spikewise.core.progress import begin
from spikewise.core.progress_bars import progress_bars


def sort(
    recording: Path,
    *,
    output: Output,
    labels: Path | None = None,
    model: Path | None = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: AsJson = False,
    settings: Settings = Settings(),
) -> None:
    """Sort a recording with labels, with a trained model, or with neither.

    Without labels and model, the units are found in the recording itself.

    Parameters
    ----------
    recording
        The recording: any format that SpikeInterface reads (see: spikewise info).
    output
        Folder for the result; it must not exist.
    labels
        Labelled spikes: a Phy or Kilosort folder, a SpikeInterface sorting, NWB units, or a CSV.
    model
        A model file from `spikewise train` or from an earlier sort.
    """
    with progress_bars() as progress:
        begin(progress)
        from spikewise import api

        result = api.sort(
            recording,
            labels=labels,
            model=model,
            output=output,
            overwrite=overwrite,
            resume=resume,
            config=settings,
            progress=progress,
        )
    from spikewise.output.store import REPORT_FILE
    from spikewise.output.unexplained import UnexplainedEvents
    from spikewise.output.unit_table import UNITS_FILE, summarise_suggestions, summarise_units

    seconds, found = result.provenance["seconds"], result.provenance["result"]
    factor = result.provenance["real_time_factor"]
    _print_steps(result.provenance)
    say(
        f"{found['num_units']} units, {found['num_spikes']} spikes in {seconds['recorded']:.1f} s",
        _describe_seconds(result.provenance),
    )
    unexplained = UnexplainedEvents.of(result.provenance.get("unexplained"))
    if unexplained is not None:
        say(unexplained.summary())
    if (output / UNITS_FILE).exists():
        say(f"{summarise_units(result.units)}; {UNITS_FILE} tells how far each can be trusted")
        if len(result.suggestions):
            say(f"{summarise_suggestions(result.suggestions)}; accept them: spikewise curate {output}")
    say(f"result in {output}" + (f", with {REPORT_FILE}" if (output / REPORT_FILE).exists() else ""))
    if json:
        print_json(
            command="sort",
            units=found["num_units"],
            spikes=found["num_spikes"],
            seconds=seconds["total"],
            preparing_seconds=seconds["preparing"],
            learning_seconds=seconds["learning"],
            sorting_seconds=seconds["sorting"],
            trust_seconds=seconds.get("trust"),
            report_seconds=seconds.get("report"),
            recorded_seconds=seconds["recorded"],
            real_time_factor=factor,
            spikes_hash=found["spikes_hash"],
            unexplained_hz=None if unexplained is None else round(unexplained.rate_hz, 3),
            new_units=None if unexplained is None else unexplained.num_new_units,
            model_hash=result.provenance["model"]["hash"],
            label_interval_s=(result.provenance["labels"] or {}).get("interval_s"),
            output=str(output),
        )


def train(
    recording: Path,
    *,
    output: Output,
    labels: Path | None = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    settings: Settings = Settings(),
) -> None:
    """Learn the units of a recording and write a model that sorts other recordings of the same probe.

    Ctrl-C ends training early and writes the best model so far.

    Parameters
    ----------
    recording
        The recording: any format that SpikeInterface reads (see: spikewise info).
    output
        File for the model, for example model.safetensors; it must not exist.
    labels
        Labelled spikes: a Phy or Kilosort folder, a SpikeInterface sorting, NWB units, or a CSV.
    """
    started = time.perf_counter()
    with progress_bars() as progress:
        begin(progress)
        from spikewise import api

        model = api.train(
            recording,
            labels,
            output=output,
            overwrite=overwrite,
            config=settings,
            progress=progress,
        )
    facts = model.facts
    num_labels = sum(group["num_labels"] for group in facts["groups"])
    say(
        f"{len(model.unit_ids)} units learnt from {num_labels} spikes: {_describe_labels(facts['labels'])}",
        f"model in {output}",
    )
    if json:
        print_json(
            command="train",
            units=len(model.unit_ids),
            labels=num_labels,
            label_interval_s=facts["labels"].get("interval_s"),
            seconds=round(time.perf_counter() - started, 3),
            model_hash=model.hash(),
            held_out_loss=[group["held_out_loss"][-1:] for group in facts["groups"]],
            output=str(output),
        )
    if facts["interrupted"]:
        raise Interrupted(
            "training was interrupted", f"the best model so far is {output}", "use it, or train again"
        )


def pretrain(
    recordings: list[Path],
    *,
    output: Output,
    labels: list[Path] | None = None,
    patches_per_unit: int = 1000,
    steps: int = 4000,
    overwrite: Overwrite = False,
    json: AsJson = False,
    seed: int = 0,
) -> None:
    """Learn temporal filters from labelled recordings, for `train --pretrained` on any probe.

    Parameters
    ----------
    recordings
        Recordings, or folders of `spikewise simulate` with their truth.
    output
        File for the filters, for example filters.safetensors; it must not exist.
    labels
        All spikes of each recording, in the same order; not needed for folders of `spikewise simulate`.
    patches_per_unit
        Training patches (short pieces of traces) made from each unit.
    steps
        Training steps.
    seed
        Random seed.
    """
    started = time.perf_counter()
    with progress_bars() as progress:
        begin(progress)
        from spikewise.jobs.pretraining import pair_recordings
        from spikewise.jobs.pretraining import pretrain as learn

        pretrained = learn(
            pair_recordings(recordings, labels or []),
            output=output,
            overwrite=overwrite,
            patches_per_unit=patches_per_unit,
            steps=steps,
            progress=progress,
            seed=seed,
        )
    facts = pretrained.facts
    say(
        f"filters learnt from {facts['num_units']} units of {len(facts['recordings'])} recordings",
        f"filters in {output}",
    )
    if json:
        print_json(
            command="pretrain",
            units=facts["num_units"],
            recordings=len(facts["recordings"]),
            seconds=round(time.perf_counter() - started, 3),
            hash=pretrained.hash(),
            output=str(output),
        )


def _describe_labels(labels: dict[str, Any]) -> str:
    """Return where the labels or the units come from, and their interval."""
    from spikewise.output.result import finder_of

    finder = finder_of(labels["source"])
    source = f"labels of {labels['source']}" if finder is None else f"units found by {finder}"
    if "interval_s" not in labels:
        return source
    start, stop = labels["interval_s"]
    return f"{source}, between {start:.2f} and {stop:.2f} s"


def _describe_seconds(provenance: dict[str, Any]) -> str:
    """Return how long everything took from the file to the result, and its parts."""
    seconds = provenance["seconds"]
    names = [
        "preparing",
        *(["learning"] if not provenance["model"]["given"] else []),
        "sorting",
        "trust",
        "report",
    ]
    parts = [f"{name} {seconds[name]:.1f}" for name in names if name in seconds]
    with_model = ", with a given model" if provenance["model"]["given"] else ""
    return (
        f"from file to result {seconds['total']:.1f} s{with_model} ({', '.join(parts)}): "
        f"{times(provenance['real_time_factor'])} times real time"
    )


def _print_steps(provenance: dict[str, Any]) -> None:
    """Print the preprocessing of each group, and the labels."""
    for name, steps in provenance["preprocessing"].items():
        prefix = "" if len(provenance["preprocessing"]) == 1 else f"group {name}: "
        say(f"preprocessing: {prefix}{'; '.join(steps)}")
    if provenance["labels"]:
        say(_describe_labels(provenance["labels"]))
