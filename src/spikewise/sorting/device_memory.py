"""How much memory a device has left, and what to do when that was not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spikewise.core.errors import SpikewiseError

_OF_CPU = 2**30
_ENOUGH = 2**34
"""More is of no use."""
_SHARE = 0.6
"""Of the free memory; the rest is for what allocators and libraries of products and spectra keep."""
_TELLS = ("out of memory", "ALLOC_FAILED", "Invalid buffer size")
"""What other errors say that mean the same: those of Apple's devices, of cuBLAS and of cuFFT."""


def free_bytes(device: torch.device) -> int:
    """Return how many bytes of a device may be used."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated = torch.cuda.memory_allocated(device)
        free += torch.cuda.memory_reserved(device) - allocated
        return min(_ENOUGH, int(_SHARE * min(free, _allowed_fraction(device) * total - allocated)))
    if device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return min(_ENOUGH, int(_SHARE * free))
    return _OF_CPU


def _allowed_fraction(device: torch.device) -> float:
    """Return the fraction of a card that this process may use; PyTorch before 2.8 does not tell it."""
    ask = getattr(torch.cuda.memory, "get_per_process_memory_fraction", None)
    index = torch.cuda.current_device() if device.index is None else device.index
    return 1.0 if ask is None else ask(index)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that a device has too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in _TELLS)
    )


def too_little_memory(device: torch.device, what: str) -> SpikewiseError:
    """Return the error that something does not fit on a device, whatever is done."""
    return SpikewiseError(
        f"the device {device} has too little memory for {what}",
        "a device on which that fits: 4 GB are enough for 384 channels",
        "end other programs that use it, or sort with --device cpu",
    )


@contextmanager
def memory_errors(device: torch.device, what: str) -> Iterator[None]:
    """Turn what PyTorch raises where memory is not enough into a :class:`SpikewiseError`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise too_little_memory(device, what) from error


def release(device: torch.device) -> None:
    """Give back what PyTorch keeps of a device for later use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
