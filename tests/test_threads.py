"""One set of threads for all loops: errors, calls within calls, other numbers of threads, forks."""

import itertools
import multiprocessing
import threading
import time

import pytest
import torch
from threadpoolctl import threadpool_info

from spikewise.core.threads import on_all_cores, one_thread_each, results_in_order


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_start_is_run_once_on_so_many_threads(threads):
    seen, names = [], set()

    def run(start):
        time.sleep(0.002)
        seen.append(start)
        names.add(threading.get_ident())

    on_all_cores(run, range(40))
    assert sorted(seen) == list(range(40))
    assert len(names) <= threads
    if threads > 1:
        assert len(names) > 1


def test_an_error_is_raised_and_nothing_still_runs_after_it(threads):
    running = []

    def run(start):
        running.append(start)
        time.sleep(0.002)
        if start == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        on_all_cores(run, range(1000))
    number = len(running)
    assert number < 1000
    time.sleep(0.05)
    assert len(running) == number


def test_calls_within_calls_do_not_wait_for_each_other(threads):
    seen = []
    on_all_cores(lambda outer: on_all_cores(lambda inner: seen.append((outer, inner)), range(5)), range(8))
    assert sorted(seen) == [(outer, inner) for outer in range(8) for inner in range(5)]


def count_in_a_fork(answers):
    seen = []
    on_all_cores(seen.append, range(10))
    answers.put(sorted(seen))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own(threads):
    on_all_cores(lambda start: None, range(4))  # the parent has its threads
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=count_in_a_fork, args=(answers,))
    child.start()
    assert answers.get(timeout=60) == list(range(10))
    child.join()


def test_results_come_in_order_and_an_error_in_its_place(threads):
    def run(item):
        time.sleep(0.004 * (item % 3))
        if item == 7:
            raise ValueError("seven")
        return item

    results = results_in_order(run, range(12))
    assert list(itertools.islice(results, 7)) == list(range(7))
    with pytest.raises(ValueError, match="seven"):
        next(results)


def test_threads_of_the_set_compute_alone_and_later_threads_are_as_before(threads):
    if threads == 1:
        pytest.skip("there is no set of threads")
    seen = list(results_in_order(lambda _: torch.get_num_threads(), range(8)))
    assert seen == [1] * 8
    assert torch.get_num_threads() == threads
    later = []
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert later == [threads]


def test_one_thread_each_leaves_the_loops_all_cores_and_sets_everything_back(threads):
    blas_before = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    names = set()

    def run(start):
        time.sleep(0.002)
        names.add(threading.get_ident())

    with one_thread_each():
        assert torch.get_num_threads() == 1
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
        with one_thread_each():
            on_all_cores(run, range(40))
    assert torch.get_num_threads() == threads
    assert [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"] == blas_before
    assert (len(names) > 1) == (threads > 1)
