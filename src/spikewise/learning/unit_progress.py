"""The progress of learning units, in one file, so that an interrupted training can continue.

Units are learnt in blocks that share nothing (:mod:`spikewise.learning.unit_training`), each from its own
seeds. So only whole blocks are kept, and no state of an optimizer or of a random generator.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from spikewise.core.errors import CheckpointError
from spikewise.models.tensor_file import read_tensors, write_tensors

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_PARTS = ("network", "previous")


@dataclass(frozen=True)
class UnitProgress:
    """What has been learnt so far.

    Attributes
    ----------
    number : int
        The round, from 0.
    unit_losses : list of float
        Losses of the units that are learnt in this round.
    train_loss, held_out_loss : list of float
        Losses of the previous rounds.
    num_known : list of int
        Spikes that were known in each of the previous rounds.
    network, previous : dict of str to Tensor
        State of the network of this round, and of the previous one; empty if there is none.
    """

    number: int = 0
    unit_losses: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    held_out_loss: list[float] = field(default_factory=list)
    num_known: list[int] = field(default_factory=list)
    network: dict[str, Tensor] = field(default_factory=dict)
    previous: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        facts: dict[str, Any] = {k: v for k, v in vars(self).items() if k not in _PARTS}
        tensors = {
            f"{part}.{name}": tensor.detach().contiguous()
            for part in _PARTS
            for name, tensor in getattr(self, part).items()
        }
        write_tensors(path, tensors, {"kind": "training", "format_version": FORMAT_VERSION, **facts})


def load_progress(path: Path | None) -> UnitProgress:
    """Return the progress of a training: none if the file is missing or cannot be used."""
    if path is None or not path.exists():
        return UnitProgress()
    try:
        facts, tensors = read_tensors(path, "training", FORMAT_VERSION)
        named: dict[str, Any] = {name: facts[name] for name in asdict(UnitProgress()) if name not in _PARTS}
        parts: dict[str, Any] = {
            part: {n.removeprefix(f"{part}."): t for n, t in tensors.items() if n.startswith(f"{part}.")}
            for part in _PARTS
        }
        done = UnitProgress(**named, **parts)
        logger.info("training continues in round %d after %d units", done.number + 1, len(done.unit_losses))
        return done
    except (CheckpointError, KeyError, TypeError) as error:
        logger.warning("training begins anew, since its checkpoint cannot be used: %s", error)
        return UnitProgress()
