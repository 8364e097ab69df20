"""A seed for each random stage, derived from one seed; no global random state is used."""

from __future__ import annotations

import zlib

import numpy as np


def stage_seed(seed: int, stage: str) -> int:
    """Return the seed of a named random stage; the stages of one seed are independent of each other."""
    return int(np.random.SeedSequence([seed, zlib.crc32(stage.encode())]).generate_state(1)[0])


def stage_generator(seed: int, stage: str) -> np.random.Generator:
    """Return the random generator of a named stage."""
    return np.random.default_rng(stage_seed(seed, stage))
