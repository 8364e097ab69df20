"""Where PyTorch computes: the CPU, or a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spikewise.core.errors import SettingError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> torch.device:
    """Return the device that `name` means; ``auto`` takes a GPU where there is one.

    Raises
    ------
    SettingError
        If the device is not available.
    """
    import torch  # only here: what computes nothing need not wait for it

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available.get(name, False):
        raise SettingError(
            f"the device {name!r} is not available here",
            f"available: {', '.join(key for key, there in available.items() if there)}",
            "choose one of these, or leave the option out",
        )
    return torch.device(name)


def describe_device(name: str) -> dict[str, Any]:
    """Return what computes where the settings name a device, for the provenance."""
    import torch

    device = choose_device(name)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads()}
