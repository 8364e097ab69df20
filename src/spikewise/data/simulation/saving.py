"""Save a simulated recording, its true spikes and its facts to a folder."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from pathlib import Path

from spikeinterface.preprocessing import astype, clip, scale

from spikewise.core.errors import OutputError
from spikewise.data.simulation.simulate import Simulation

MAX_STEP = 32767
"""Largest saved value, of 16 bits; a value that reaches it was clipped."""


def save_simulation(simulation: Simulation, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a simulation: ``recording``, ``truth`` and ``simulation.json`` in one folder.

    The traces are saved as 16-bit steps of `gain_uV`; `spikeinterface.load` reads both folders. For drifting
    units, ``drift.npz`` holds the arrays of :class:`~spikewise.data.simulation.drift.Drift`. Everything is
    written beside the folder and then renamed, so a failure leaves no incomplete folder.

    Parameters
    ----------
    simulation : Simulation
    folder : str or Path
        New folder.
    overwrite : bool, default: False
        Replace the folder if it holds an earlier simulation.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OutputError
        If the folder exists, cannot be written, or the traces exceed 16 bits.
    """
    folder = Path(folder).absolute()
    try:
        _check_folder(folder, overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    except OutputError:
        raise
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        with warnings.catch_warnings():
            # Simulated traces are in memory, so SpikeInterface cannot save how to compute them again.
            warnings.filterwarnings("ignore", message="The extractor is not serializable to file")
            _write_recording(simulation, partial / "recording")
            simulation.sorting.save(folder=partial / "truth", format="numpy_folder")
        if simulation.drift is not None:
            simulation.drift.save(partial / "drift.npz")
        (partial / "simulation.json").write_text(
            json.dumps(simulation.facts, indent=2) + "\n", encoding="utf-8"
        )
        partial.chmod(0o755)
        _replace(folder, partial)
    except OSError as error:
        raise error if isinstance(error, OutputError) else _cannot_write(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_recording(simulation: Simulation, folder: Path) -> None:
    """Save the traces as 16-bit steps; raise if a value was clipped."""
    gain = simulation.config.gain_uV
    steps = clip(scale(simulation.recording, gain=1 / gain), a_min=-MAX_STEP, a_max=MAX_STEP)
    saved = astype(steps, "int16")
    saved.set_channel_gains(gain)
    saved.set_channel_offsets(0.0)
    saved = saved.save(folder=folder, format="binary", n_jobs=1, chunk_memory="100M", progress_bar=False)
    block = max(1, 25_000_000 // saved.get_num_channels())
    for start in range(0, saved.get_num_samples(0), block):
        traces = saved.get_traces(0, start, min(start + block, saved.get_num_samples(0)))
        if max(-int(traces.min()), int(traces.max())) >= MAX_STEP:
            raise OutputError(
                f"traces exceed {MAX_STEP * gain:g} uV, the largest value in steps of {gain:g} uV",
                "saved samples have 16 bits",
                "choose a larger gain_uV",
            )


def _replace(folder: Path, finished: Path) -> None:
    """Rename the finished folder; an earlier one is removed only after this has succeeded."""
    if not folder.exists():
        finished.rename(folder)
        return
    earlier = finished.with_suffix(".earlier")
    folder.rename(earlier)
    try:
        finished.rename(folder)
    except OSError:
        earlier.rename(folder)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _check_folder(folder: Path, overwrite: bool) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if not overwrite:
        raise OutputError(
            f"the folder {folder} exists already", "a new folder", "choose another name or add --overwrite"
        )
    if not (folder / "simulation.json").is_file():
        raise OutputError(
            f"the folder {folder} is not the folder of a simulation",
            "only an earlier simulation is overwritten",
            "choose another name",
        )


def _cannot_write(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the folder {folder} cannot be written: {error}",
        "a folder on a disk with space, which can be written",
        "choose another folder",
    )
