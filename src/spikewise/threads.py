"""Plain threads for compiled loops that take no lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch


def on_all_cores(run: Callable[[int], None], starts: Iterable[int]) -> None:
    """Call `run` with each start, on as many threads as PyTorch uses; an error of one call is raised."""
    threads = torch.get_num_threads()
    if threads == 1:
        for start in starts:
            run(start)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(run, starts):
            pass
