"""A Dask cluster: one task for each shard, the results in the order in which the tasks finish.

Workers may die at any time. Dask gives their tasks to other workers. A task that Dask gives up, because too
many of its workers died, is submitted again several times. Only as many tasks are submitted as keep all
workers busy, so neither the scheduler nor this process holds more than a few results.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from spikewise.core.errors import ClusterError, MissingExtraError, SettingError

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
_TASKS_PER_THREAD = 3
"""Tasks that are submitted for each thread of a worker, so that all are busy. Chosen by hand."""
_TRIES = 20
"""The work ends with an error after Dask has given up a task so many times. Chosen by hand."""
_PATIENCE_S = 60.0
"""Time between two warnings that no worker has come yet. Chosen by hand."""
_ALLOWED_FAILURES = 10
"""Dask gives up a task of a local cluster if more workers than this died over it. Chosen by hand."""
_CONNECT_TIMEOUT = "20s"
"""A scheduler must answer within this time. Chosen by hand."""
_MAX_LOCAL = 1024
"""Largest number of local processes. Chosen by hand."""
_ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]*://.+|^[^:/\s]+:\d+$")


class Cluster:
    """A connected cluster.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Any):
        self._client = client

    @property
    def num_workers(self) -> int:
        """Number of workers that are connected now."""
        return len(self._client.nthreads())

    def map(
        self, function: Callable[[Any, Task], Any], common: Any, tasks: Sequence[Task]
    ) -> Iterator[tuple[Task, Any]]:
        """Yield each task with ``function(common, task)``, in the order in which the tasks finish.

        `common` is sent once to each worker. An error of the function is raised here.

        Raises
        ------
        ClusterError
            If workers die again and again over the same task, or the scheduler is lost.
        """
        from distributed import CancelledError, KilledWorker, as_completed

        self._wait_for_workers()
        todo, tries = iter(tasks), dict.fromkeys(tasks, 0)
        shared = self._client.submit(_pass_on, common, pure=False)
        pending: dict[Any, Task] = {}

        def submit(task: Task) -> Any:
            future = self._client.submit(function, shared, task, pure=False)
            pending[future] = task
            return future

        def submit_more() -> list[Any]:
            """Submit as many tasks as keep the present workers busy."""
            at_once = max(1, _TASKS_PER_THREAD * sum(self._client.nthreads().values()))
            return [submit(task) for task in itertools.islice(todo, max(0, at_once - len(pending)))]

        completed = as_completed(submit_more())
        try:
            for future in completed:
                task = pending.pop(future)
                try:
                    result = future.result()
                except KilledWorker:
                    tries[task] += 1
                    if tries[task] == _TRIES:
                        raise self._given_up() from None
                    shared = self._client.submit(_pass_on, common, pure=False)
                    completed.add(submit(task))
                    continue
                except CancelledError as error:
                    raise ClusterError(
                        f"the cluster stopped the work: {error}",
                        "a scheduler that runs until the end",
                        "start it again, then go on with --resume",
                    ) from error
                completed.update(submit_more())
                future.release()
                yield task, result
        finally:
            self._client.cancel(list(pending))

    def _wait_for_workers(self) -> None:
        """Wait until there is a worker; a queued one may take hours to start."""
        from distributed import TimeoutError as NoWorker

        while True:
            try:
                self._client.wait_for_workers(1, timeout=_PATIENCE_S)
                return
            except NoWorker:
                logger.warning("the cluster has no worker yet; waiting for one")

    def _given_up(self) -> ClusterError:
        return ClusterError(
            f"workers died {_TRIES} times during the same stretch of the recording",
            "workers that live long enough to finish one",
            "give them more memory or time, or shorter stretches with --shard-s, then go on with --resume",
        )


@contextlib.contextmanager
def open_cluster(address: str) -> Iterator[Cluster]:
    """Connect to a cluster; a local cluster is started, and stopped afterwards.

    Parameters
    ----------
    address : str
        ``local:N`` for N processes of this machine, or the address of a Dask scheduler.

    Raises
    ------
    SettingError
        If the address is neither.
    ClusterError
        If the scheduler does not answer.
    MissingExtraError
        If Dask is not installed.
    """
    num_local = check_cluster(address)
    import dask
    from distributed import Client, LocalCluster

    if num_local:
        # Workers may die for reasons that have nothing to do with the task; Cluster.map counts these.
        with (
            dask.config.set({"distributed.scheduler.allowed-failures": _ALLOWED_FAILURES}),
            LocalCluster(
                n_workers=num_local, threads_per_worker=1, processes=True, dashboard_address=None
            ) as local,
            Client(local) as client,
        ):
            yield Cluster(client)
        return
    try:
        client = Client(address, timeout=_CONNECT_TIMEOUT)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address}: {error}",
            "the address that the scheduler prints when it starts, such as tcp://host:8786",
            "start the scheduler, or check address and firewall",
        ) from error
    with client:
        yield Cluster(client)


def check_cluster(address: str) -> int:
    """Return the number of local workers that an address names; 0 if it is the address of a scheduler.

    Raises
    ------
    SettingError
        If it is neither.
    MissingExtraError
        If Dask is not installed.
    """
    if importlib.util.find_spec("distributed") is None:
        raise MissingExtraError("distributed", "cluster", "a cluster")
    kind, _, count = address.partition(":")
    if kind == "local" and count.isascii() and count.isdigit() and 0 < int(count) <= _MAX_LOCAL:
        return int(count)
    if kind == "local" or not _ADDRESS.match(address):
        raise SettingError(
            f"the cluster is {address!r}",
            "local:N with a number of processes, or the address of a scheduler such as tcp://host:8786",
            "change cluster",
        )
    return 0


def _pass_on(value: Any) -> Any:
    """Return the value: a task that holds it is sent once to each worker."""
    return value
