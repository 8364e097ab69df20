"""The free memory of a device, and errors for too little of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spikewise.core.errors import SpikewiseError

_CPU_BYTES = 2**30
"""Bytes that may be used where the device is the CPU. Chosen by hand."""
_MOST_BYTES = 2**34
"""Most bytes that are used; more memory brings nothing. Chosen by hand."""
_SHARE = 0.6
"""Fraction of the free memory that is used; allocators, cuBLAS and cuFFT need the rest. Chosen by hand."""
_MEMORY_MESSAGES = ("out of memory", "ALLOC_FAILED", "Invalid buffer size")
"""Parts of the messages of other errors that mean the same: of Apple's devices, cuBLAS and cuFFT."""


def free_bytes(device: torch.device) -> int:
    """Return how many bytes of a device may be used."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated = torch.cuda.memory_allocated(device)
        free += torch.cuda.memory_reserved(device) - allocated
        return min(_MOST_BYTES, int(_SHARE * min(free, _allowed_fraction(device) * total - allocated)))
    if device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return min(_MOST_BYTES, int(_SHARE * free))
    return _CPU_BYTES


def _allowed_fraction(device: torch.device) -> float:
    """Return the fraction of a card that this process may use; 1 with PyTorch before 2.8."""
    fraction = getattr(torch.cuda.memory, "get_per_process_memory_fraction", None)
    index = torch.cuda.current_device() if device.index is None else device.index
    return 1.0 if fraction is None else fraction(index)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that a device has too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in _MEMORY_MESSAGES)
    )


def too_little_memory(device: torch.device, what: str) -> SpikewiseError:
    """Return the error for something that does not fit on a device."""
    return SpikewiseError(
        f"the device {device} has too little memory for {what}",
        "a device on which that fits: 4 GB are enough for 384 channels",
        "end other programs that use it, or sort with --device cpu",
    )


@contextmanager
def memory_errors(device: torch.device, what: str) -> Iterator[None]:
    """Turn the out-of-memory errors of PyTorch into a :class:`SpikewiseError`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise too_little_memory(device, what) from error


def release(device: torch.device) -> None:
    """Free the memory of a device that PyTorch keeps for later use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
