"""Processes that run jobs: what comes back, and how they end."""

import math
import os
import signal
import time
from collections.abc import Callable

from fedhq_lightning.experiments.workers import INTERRUPTED, Ended, Workers


def test_jobs_go_to_whoever_is_idle_and_their_results_come_back() -> None:
    with Workers(math.sqrt, 2) as pool:
        found, waiting = [], [1.0, 4.0, 9.0, 16.0, 25.0]
        while waiting or pool.num_busy:
            while waiting and pool.num_idle:
                pool.start(waiting.pop())
            found.append(pool.wait())
    assert sorted(each.job for each in found) == [1.0, 4.0, 9.0, 16.0, 25.0]
    assert all(each.result == math.sqrt(each.job) for each in found)


def test_an_error_comes_back_and_its_process_goes_on() -> None:
    with Workers(math.sqrt, 1) as pool:
        pool.start(-1.0)
        failed = pool.wait()
        pool.start(4.0)
        assert pool.wait() == Ended(4.0, 1, 2.0)
    assert isinstance(failed.error, ValueError)
    assert "In another process" in failed.error.__notes__[0]


def test_a_process_that_dies_is_told_by_its_exit_code() -> None:
    with Workers(os._exit, 2) as pool:
        pool.start(3)
        assert pool.wait() == Ended(3, 1, exit_code=3)
        assert (pool.num_idle, pool.num_busy) == (1, 0)


class EndsOnArrival:
    """A call that ends the process that it is sent to."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (4,)

    def __call__(self, job: int) -> None:
        pass


def test_a_process_that_dies_before_it_took_its_job_is_told_too() -> None:
    with Workers(EndsOnArrival(), 1) as pool:
        pool.start(3)  # sent by now, and never read
        assert pool.wait() == Ended(3, 1, exit_code=4)


def test_what_is_under_way_is_interrupted_when_the_block_fails() -> None:
    pool = Workers(time.sleep, 1)
    with pool:
        pool.start(0.0)
        pool.wait()  # set up by now
        [worker] = pool._idle
        pool.start(10_000.0)
        pool.__exit__(KeyError, KeyError(), None)
    assert worker.process.exitcode == INTERRUPTED


def test_ctrl_c_is_left_to_the_first_process() -> None:
    with Workers(signal.raise_signal, 1) as pool:
        pool.start(signal.SIGINT)
        assert pool.wait() == Ended(signal.SIGINT, 1)
