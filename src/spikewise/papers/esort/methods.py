"""The methods that the experiments of Han & Wang compare, by their names."""

from __future__ import annotations

from typing import Any

LEARNERS = {
    "spikewise": "Spikewise",
    "spikewise_scratch": "Spikewise, from scratch",
    "esort": "E-Sort, from scratch",
    "esort_transfer": "E-Sort, transfer, same density",
    "esort_transfer_denser": "E-Sort, transfer, other density",
}
"""Methods that learn from labels, with their names in tables and figures."""
UNLABELLED = {"spikewise_no_labels": "Spikewise, no labels"}
RIVALS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lupin": ("Lupin", "lupin", {}),
    "tridesclous2": ("Tridesclous2", "tridesclous2", {}),
    "spykingcircus2": ("SpyKING CIRCUS 2", "spykingcircus2", {}),
    "mountainsort5": ("MountainSort5", "mountainsort5", {}),
    "kilosort4": ("Kilosort4", "kilosort4", {"do_correction": True}),
    "kilosort4_no_drift": ("Kilosort4 without drift correction", "kilosort4", {"do_correction": False}),
}
"""Other sorters: the name in tables, the name in SpikeInterface, and parameters."""
QUICK_RIVALS = tuple(name for name, (_, sorter, _) in RIVALS.items() if sorter != "kilosort4")
"""Sorters that take seconds: they run on every recording, Kilosort4 only on that of experiment a."""
METHOD_NAMES = LEARNERS | UNLABELLED | {name: shown for name, (shown, _, _) in RIVALS.items()}
COMPARED = ("spikewise", "esort")
"""The methods of the experiments on probes, noise and drift."""
