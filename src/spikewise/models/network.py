"""The networks that turn traces into probabilities; all are called alike."""

from __future__ import annotations

from typing import TypeAlias

from spikewise.models.esort import EsortNetwork
from spikewise.models.neighbourhood import NeighbourhoodNetwork

Network: TypeAlias = EsortNetwork | NeighbourhoodNetwork
