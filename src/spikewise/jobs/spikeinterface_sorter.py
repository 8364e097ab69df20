"""Spikewise as a sorter of SpikeInterface: ``run_sorter("spikewise", recording, labels=...)``.

All settings of training and sorting are its parameters, by the same names as in Python and on the command
line. The folder of SpikeInterface holds a result of Spikewise, ``sorter_output``, which ``spikewise report``
reads. :mod:`spikewise.jobs.registration` makes SpikeInterface know the sorter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from spikeinterface.core import BaseRecording, BaseSorting, load
from spikeinterface.sorters.basesorter import BaseSorter

from spikewise.core.config import Config, RecordingConfig
from spikewise.core.errors import Interrupted
from spikewise.core.progress import ProgressCallback, silent
from spikewise.core.settings import Settings
from spikewise.core.version import __version__
from spikewise.jobs.sorter_config import SorterConfig

logger = logging.getLogger(__name__)

_FINGERPRINT_PIECES = 5
"""Pieces of each segment that :func:`_fingerprint` hashes. Chosen by hand."""
_FINGERPRINT_SAMPLES = 1000
"""Samples of such a piece. Chosen by hand."""
_TIMES = "times_of_segment_{}.npy"


def _parts() -> list[Settings]:
    """Return all settings of the sorter, with their defaults, without those of reading files."""
    config = Config()
    names = [field.name for field in dataclasses.fields(config) if field.name != "recording"]
    return [SorterConfig(), *(getattr(config, name) for name in names)]


def _default_params() -> dict[str, Any]:
    return {name: value for part in _parts() for name, value in part.to_dict().items()}


def _params_description() -> dict[str, str]:
    return {field.name: field.metadata["help"] for part in _parts() for field in dataclasses.fields(part)}


class SpikewiseSorter(BaseSorter):
    """The sorter; SpikeInterface calls its class methods in this order."""

    sorter_name = "spikewise"
    sorter_description = (
        "Neural networks that learn the units from a few labelled spikes, or from the first minute sorted by "
        "another sorter, then find and assign every spike."
    )
    installation_mesg = "pip install spikewise"
    handle_multi_segment = True
    gpu_capability = "nvidia-optional"
    compatible_with_parallel: ClassVar = {"loky": True, "multiprocessing": True, "threading": False}
    _default_params: ClassVar = _default_params()
    _params_description: ClassVar = _params_description()

    @classmethod
    def is_installed(cls) -> bool:
        """Return True: the sorter comes with this module."""
        return True

    @classmethod
    def get_sorter_version(cls) -> str:
        """Return the version of Spikewise."""
        return __version__

    @classmethod
    def use_gpu(cls, params: dict[str, Any]) -> bool:
        """Return whether a GPU may be used."""
        return params["device"] in ("auto", "cuda")

    @classmethod
    def _check_apply_filter_in_params(cls, params: dict[str, Any]) -> bool:
        return bool(params["bandpass"])

    @classmethod
    def _check_params(
        cls, recording: BaseRecording, output_folder: Path, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Check the parameters before anything runs; save labels that are a sorting object to a folder."""
        from spikewise.data.recordings.clock import with_checked_clock
        from spikewise.data.recordings.probes import attach_probe

        if isinstance(params["labels"], BaseSorting):
            folder = Path(output_folder) / "labels"
            params["labels"].save(folder=folder)
            params["labels"] = folder
        for name in ("labels", "model", "cache_folder", "pretrained"):  # a worker may run in another folder
            if isinstance(params[name], str | Path) and params[name] != "none":
                params[name] = str(Path(params[name]).absolute())
        _, own = _split(params)
        with_checked_clock(attach_probe(recording, own.probe), own.clock)
        _keep_times(recording, Path(output_folder))
        return params

    @classmethod
    def _setup_recording(
        cls, recording: BaseRecording, sorter_output_folder: Path, params: dict[str, Any], verbose: bool
    ) -> None:
        """Do nothing: the recording is not copied."""

    @classmethod
    def _run_from_folder(cls, sorter_output_folder: Path, params: dict[str, Any], verbose: bool) -> None:
        from spikewise.core.progress_bars import progress_bars
        from spikewise.data.recordings.clock import with_checked_clock
        from spikewise.data.recordings.probes import attach_probe
        from spikewise.jobs.sort import sort

        config, own = _split(params)
        recording = cls.load_recording_from_folder(sorter_output_folder.parent, with_warnings=False)
        _restore_times(recording, sorter_output_folder.parent)
        recording = with_checked_clock(attach_probe(recording, own.probe), own.clock)
        config = dataclasses.replace(config, recording=RecordingConfig(clock=own.clock))
        with progress_bars() if verbose else contextlib.nullcontext(silent) as progress:
            labels, model = own.labels, own.model
            if own.cache_folder is not None and model is None:
                model = str(_kept_model(recording, labels, config, Path(own.cache_folder), progress))
                labels = None
            sort(
                recording,
                labels=labels,
                model=model,
                output=sorter_output_folder,
                overwrite=True,
                config=config,
                progress=progress,
            )

    @classmethod
    def _get_result_from_folder(cls, sorter_output_folder: Path) -> BaseSorting:
        return load(Path(sorter_output_folder) / "sorting")


def _keep_times(recording: BaseRecording, folder: Path) -> None:
    """Write the times of the samples; SpikeInterface's description of a recording may leave them out."""
    from spikewise.data.recordings.clock import has_clock, read_times

    for segment_index in range(recording.get_num_segments()):
        if has_clock(recording, segment_index):
            length = recording.get_num_samples(segment_index)
            np.save(folder / _TIMES.format(segment_index), read_times(recording, segment_index, 0, length))


def _restore_times(recording: BaseRecording, folder: Path) -> None:
    """Give a recording the times that :func:`_keep_times` wrote."""
    for segment_index in range(recording.get_num_segments()):
        file = folder / _TIMES.format(segment_index)
        if file.is_file():
            recording.set_times(np.load(file, mmap_mode="r"), segment_index, with_warning=False)


def _split(params: dict[str, Any]) -> tuple[Config, SorterConfig]:
    """Return the settings of sorting and those of this sorter alone, checked."""
    own = {field.name for field in dataclasses.fields(SorterConfig)}
    config = Config.from_options(**{name: value for name, value in params.items() if name not in own})
    return config, SorterConfig.from_dict({name: params[name] for name in own})


def _kept_model(
    recording: BaseRecording, labels: str | None, config: Config, folder: Path, progress: ProgressCallback
) -> Path:
    """Return the file of the model of this recording, these labels and settings; train it if needed."""
    from spikewise.core.files import writing
    from spikewise.jobs.sort import train
    from spikewise.models.checkpoint import save_model

    file = folder / f"{_fingerprint(recording, labels, config)}.safetensors"
    if file.exists():
        logger.info("the model %s is used again", file)
        return file
    model = train(recording, labels, config=config, progress=progress)
    if model.facts["interrupted"]:
        raise Interrupted("training was interrupted", "only a complete model is kept", "sort again")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    save_model(model, file)
    return file


def _fingerprint(recording: BaseRecording, labels: str | None, config: Config) -> str:
    """Return a hash of all that a model is learnt from; of the traces, only some pieces count."""
    from spikewise.data.opening import open_labels
    from spikewise.data.recordings.clock import has_clock, read_times
    from spikewise.output.store import spikes_hash

    opened, _ = open_labels(labels, recording)
    settings = {name: part for name, part in config.to_dict().items() if name not in ("recording", "sorting")}
    lengths = [recording.get_num_samples(index) for index in range(recording.get_num_segments())]
    facts = {
        "version": __version__,
        "settings": settings,
        "damage": [config.sorting.damage, config.sorting.artefact_noise],  # damaged labels are left out
        "labels": None if opened is None else spikes_hash(opened),
        "channels": [str(channel_id) for channel_id in recording.channel_ids],
        "positions": recording.get_channel_locations().tolist(),
        "sampling_frequency": recording.sampling_frequency,
        "lengths": lengths,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for index, length in enumerate(lengths):
        for start in np.linspace(0, max(0, length - _FINGERPRINT_SAMPLES), _FINGERPRINT_PIECES).astype(int):
            stop = min(length, start + _FINGERPRINT_SAMPLES)
            traces = recording.get_traces(index, start, stop)
            digest.update(np.ascontiguousarray(traces).tobytes())
            if has_clock(recording, index):  # its jumps are damage
                digest.update(read_times(recording, index, int(start), int(stop)).tobytes())
    return digest.hexdigest()[:32]
