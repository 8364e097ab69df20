"""Plain threads for compiled loops, and for small PyTorch operations.

All loops of a process share one set of threads, so that a loop that reads ahead and a loop that computes do
not ask for more cores than there are. These threads wait asleep. The threads of PyTorch and of NumPy spin
while they wait for each other: where another program runs beside, that makes small operations many times
slower. So each thread of the set computes its PyTorch operations alone, and :func:`one_thread_each` does the
same for the caller.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_here = threading.local()
_making = threading.Lock()
_pool: tuple[int, ThreadPoolExecutor] | None = None


def on_all_cores(run: Callable[[int], None], starts: Iterable[int]) -> None:
    """Call `run` with each start, on as many threads as PyTorch uses; an error of one call is raised.

    Calls that come from such a call run one after the other on its thread.
    """
    threads = num_threads()
    if threads == 1:
        for start in starts:
            run(start)
        return
    pool = _pool_of(threads)
    calls = [pool.submit(run, start) for start in starts]
    try:
        wait(calls, return_when=FIRST_EXCEPTION)
    finally:
        _end(calls)
    for call in calls:
        if not call.cancelled():
            call.result()


def results_in_order(run: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Call `run` with each item on the threads of :func:`on_all_cores`; yield the results in order.

    An error of a call is raised in its place; calls that have not started then are left out.
    """
    threads = num_threads()
    if threads == 1:
        yield from map(run, items)
        return
    pool = _pool_of(threads)
    calls = [pool.submit(run, item) for item in items]
    try:
        for call in calls:
            yield call.result()
    finally:
        _end(calls)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let PyTorch and NumPy compute on the caller's thread alone; :func:`on_all_cores` still uses all cores.

    PyTorch keeps the number for each thread, so other threads of the program keep theirs; NumPy keeps one for
    the process, which is set back at the end.
    """
    threads, outer = torch.getnum_threads(), getattr(_here, "num_threads", None)
    _here.num_threads = num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)
        _here.num_threads = outer


def num_threads() -> int:
    """Return on how many threads the caller's loops run: one, where the caller is of the set itself."""
    if getattr(_here, "is_of_pool", False):
        return 1
    return getattr(_here, "num_threads", None) or torch.getnum_threads()


def _end(calls: Iterable[Future]) -> None:
    """Leave nothing behind that still works on the caller's arrays, after an error or a signal."""
    calls = list(calls)
    for call in calls:
        call.cancel()
    wait(calls)


def _pool_of(threads: int) -> ThreadPoolExecutor:
    """Return so many threads, which stay for the next call."""
    global _pool
    with _making:
        if _pool is None or _pool[0] != threads:
            _pool = threads, _make_pool(threads)
        return _pool[1]


def _make_pool(threads: int) -> ThreadPoolExecutor:
    """Start so many threads, of which each computes its PyTorch operations alone."""
    own = torch.getnum_threads()
    pool = ThreadPoolExecutor(threads, "spikewise", initializer=_mark)
    all_there = threading.Barrier(threads)
    wait([pool.submit(all_there.wait) for _ in range(threads)])
    # What a thread sets is also what PyTorch gives to threads that are made later: set that back.
    torch.set_num_threads(own)
    return pool


def _mark() -> None:
    _here.is_of_pool = True
    torch.getnum_threads()  # PyTorch asks for the number of the program once in each thread: before, not after
    torch.set_num_threads(1)


def _forget() -> None:
    """Forget threads that a forked process does not have."""
    global _pool, _making
    _pool, _making = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
