"""Plain threads for compiled loops that take no lock.

All loops of a process share one set of threads, so that one that reads ahead and one that computes do not ask
for more cores than there are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch

_here = threading.local()
_making = threading.Lock()
_pool: tuple[int, ThreadPoolExecutor] | None = None


def on_all_cores(run: Callable[[int], None], starts: Iterable[int]) -> None:
    """Call `run` with each start, on as many threads as PyTorch uses; an error of one call is raised.

    Calls that come from such a call run one after the other on its thread.
    """
    threads = torch.get_num_threads()
    if threads == 1 or getattr(_here, "is_of_pool", False):
        for start in starts:
            run(start)
        return
    pool = _pool_of(threads)
    calls = [pool.submit(run, start) for start in starts]
    try:
        wait(calls, return_when=FIRST_EXCEPTION)
    finally:  # after an error, or a signal, nothing is left behind that still works on the caller's arrays
        for call in calls:
            call.cancel()
        wait(calls)
    for call in calls:
        if not call.cancelled():
            call.result()


def _pool_of(threads: int) -> ThreadPoolExecutor:
    """Return so many threads, which stay for the next call."""
    global _pool
    with _making:
        if _pool is None or _pool[0] != threads:
            _pool = threads, ThreadPoolExecutor(threads, "spikewise", initializer=_mark)
        return _pool[1]


def _mark() -> None:
    _here.is_of_pool = True


def _forget() -> None:
    """Forget threads that a forked process does not have."""
    global _pool, _making
    _pool, _making = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
