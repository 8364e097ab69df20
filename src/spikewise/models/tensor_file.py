"""One file of tensors with JSON facts in its header (safetensors); never a pickle.

All models of Spikewise are such files. The header states the kind of model and the version of its layout.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save

from spikewise.core.errors import CheckpointError, OutputError
from spikewise.core.files import sync_folder
from spikewise.core.untrusted import parse_json, parsing

Network = TypeVar("Network", bound=torch.nn.Module)

_MOST_DIMENSIONS = 8
"""Tensors with more dimensions are refused: PyTorch fails with more than 64. Chosen by hand."""
_HEADER_KEY = "spikewise"
_COMMANDS = {
    "recording": "`spikewise train` or `spikewise sort`",
    "waveforms": "`spikewise waveforms train`",
    "backbone": "`spikewise pretrain`",
    "training": "a training that was not finished",
    "shapes": "`python benchmarks/spike_shapes.py`",
}


def write_tensors(path: Path | str, tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    """Write tensors and their description to one file, whole or not at all.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # it may be a link to another file
        with open(partial, "xb") as file:
            file.write(save(tensors, {_HEADER_KEY: json.dumps(description)}))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is reported
            partial.unlink(missing_ok=True)
        raise OutputError(
            f"the model cannot be written to {path}: {error.strerror or error}",
            "a folder that can be written and has space",
            "make room or choose another place",
        ) from error


def read_tensors(
    path: Path | str, kind: str, format_version: int
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read the description and the tensors of a model.

    Parameters
    ----------
    path : str or Path
    kind : {"recording", "waveforms", "backbone", "training"}
        The kind of model that the file must hold.
    format_version : int
        The version of the layout that the caller reads.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, not written by Spikewise, of another kind or version, or holds
        numbers that are not finite.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"there is no checkpoint at {path}", "a .safetensors file", "check the path")
    with parsing(lambda reason: damaged(path, reason)), safe_open(path, framework="pt") as file:
        header = (file.metadata() or {}).get(_HEADER_KEY)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header is None:
        raise CheckpointError(
            f"the file {path} was not written by Spikewise",
            f"a checkpoint of {_COMMANDS[kind]}",
            "check the path",
        )
    with parsing(lambda reason: damaged(path, reason)):
        description = parse_json(header)
        found, version = str(description.get("kind", "recording")), description["format_version"]
    if found != kind:
        raise CheckpointError(
            f"the file {path} is a model of {_COMMANDS.get(found, 'another kind')}",
            f"a model of {_COMMANDS[kind]}",
            "choose the model that belongs to this command",
        )
    if version != format_version:
        raise CheckpointError(
            f"the checkpoint {path} has format version {version}",
            f"this Spikewise reads version {format_version}",
            "train again, or install the Spikewise that wrote it"
            + (f" ({description['spikewise_version']})" if "spikewise_version" in description else ""),
        )
    for name, tensor in tensors.items():
        if tensor.dim() > _MOST_DIMENSIONS:
            raise damaged(path, f"{name} has {tensor.dim()} dimensions")
        if not tensor.numel() or tensor.dtype not in (torch.float32, torch.int64):
            raise damaged(path, f"{name} is {tuple(tensor.shape)} of {tensor.dtype}")
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise damaged(path, "it holds numbers that are not finite")
    return description, tensors


def fill(make: Callable[[], Network], state: dict[str, torch.Tensor]) -> Network:
    """Return the network that `make` builds, with these weights.

    The network is built without memory. So large sizes in an untrusted header cost nothing before they are
    compared with the weights in the file.

    Raises
    ------
    ValueError, RuntimeError
        If the weights do not fit the network.
    """
    with torch.device("meta"):
        network = make()
    expected = network.state_dict()
    for name, tensor in state.items():
        if name in expected and expected[name].dtype != tensor.dtype:
            raise ValueError(f"{name} is of the type {tensor.dtype}")
    network.load_state_dict(state, assign=True)
    return network.eval()


def damaged(path: Path | str, reason: str) -> CheckpointError:
    """Return the error for a damaged file."""
    return CheckpointError(
        f"the checkpoint {path} is damaged or not a checkpoint ({reason})",
        "an intact .safetensors file that Spikewise wrote",
        "copy it again from where it was made, or train again",
    )
