"""Plain threads for compiled loops, and for small PyTorch operations.

All loops of a process share one pool of threads, so a loop that reads ahead and a loop that computes together
use no more cores than there are. The threads of the pool sleep while they wait. The threads of PyTorch and
NumPy spin while they wait for each other, which makes small operations many times slower if another program
runs at the same time. So each thread of the pool computes its PyTorch operations alone, and
:func:`one_thread_each` does the same for the caller.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import threadpool_limits

from spikewise.core.progress import Tell

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

READ_LOCK = threading.RLock()
"""Lock for reading files: several groups may share those of a recording, and not all readers of files may be
used by several threads at once."""

_local = threading.local()
_pool_lock = threading.Lock()
_pool: tuple[int, ThreadPoolExecutor] | None = None


def on_all_cores(run: Callable[[int], None], starts: Iterable[int], tell: Tell | None = None) -> None:
    """Call `run` with each start, on as many threads as PyTorch uses; raise the error of a call.

    Nested calls run one after the other, on the thread of the outer call. `tell` is called after each call,
    on the thread of the caller.
    """
    threads = num_threads()
    if threads == 1:
        starts = list(starts)
        for done, start in enumerate(starts, 1):
            run(start)
            if tell is not None:
                tell(done, len(starts))
        return
    pool = _pool_of(threads)
    calls = [pool.submit(run, start) for start in starts]
    try:
        if tell is not None:
            for done, call in enumerate(as_completed(calls), 1):
                if call.exception() is not None:
                    break
                tell(done, len(calls))
        wait(calls, return_when=FIRST_EXCEPTION)
    finally:
        _cancel_and_wait(calls)
    for call in calls:
        if not call.cancelled():
            call.result()


def results_in_order(
    run: Callable[[_Item], _Result], items: Iterable[_Item], tell: Tell | None = None
) -> Iterator[_Result]:
    """Call `run` with each item on the threads of :func:`on_all_cores`; yield the results in order.

    The error of a call is raised in place of its result; calls that have not started are cancelled. `tell` is
    called after each result.
    """
    threads = num_threads()
    if threads == 1:
        items = list(items)
        for done, item in enumerate(items, 1):
            yield run(item)
            if tell is not None:
                tell(done, len(items))
        return
    pool = _pool_of(threads)
    calls = [pool.submit(run, item) for item in items]
    try:
        for done, call in enumerate(calls, 1):
            yield call.result()
            if tell is not None:
                tell(done, len(calls))
    finally:
        _cancel_and_wait(calls)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let PyTorch and NumPy compute on the caller's thread alone; :func:`on_all_cores` still uses all cores.

    PyTorch's number holds for the calling thread only, so other threads of the program keep theirs. NumPy has
    one number for the process, which is restored at the end.
    """
    import torch

    threads, outer = torch.get_num_threads(), getattr(_local, "num_threads", None)
    _local.num_threads = num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)
        _local.num_threads = outer


def num_threads() -> int:
    """Return the number of threads for the caller's loops: one if the caller is a thread of the pool."""
    if getattr(_local, "is_of_pool", False):
        return 1
    if (number := getattr(_local, "num_threads", None)) is not None:
        return number
    import torch  # only here: what computes nothing need not wait for it

    return torch.get_num_threads()


def _cancel_and_wait(calls: Iterable[Future]) -> None:
    """Make sure, after an error or a signal, that no call still works on the caller's arrays."""
    calls = list(calls)
    for call in calls:
        call.cancel()
    wait(calls)


def _pool_of(threads: int) -> ThreadPoolExecutor:
    """Return a pool of so many threads, which is kept for the next call."""
    global _pool
    with _pool_lock:
        if _pool is None or _pool[0] != threads:
            _pool = threads, _make_pool(threads)
        return _pool[1]


def _make_pool(threads: int) -> ThreadPoolExecutor:
    """Start a pool of so many threads, each of which computes its PyTorch operations alone."""
    import torch

    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "spikewise", initializer=_mark_thread)
    started = threading.Barrier(threads)
    wait([pool.submit(started.wait) for _ in range(threads)])
    # The number that a thread sets also holds for threads that are started later: restore it.
    torch.set_num_threads(own)
    return pool


def _mark_thread() -> None:
    import torch

    _local.is_of_pool = True
    torch.get_num_threads()  # sets the number of the program, once in each thread: so it must come first
    torch.set_num_threads(1)


def _drop_pool() -> None:
    """Drop the pool in a forked process, which does not have its threads."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_pool)
