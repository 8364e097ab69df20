"""The designs of the network."""

from __future__ import annotations

from typing import Literal

Design = Literal["neighbourhood", "esort-paper"]
NEIGHBOURHOOD, ESORT_PAPER = "neighbourhood", "esort-paper"
