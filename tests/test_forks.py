"""Work in forks of this process: the same results as here, whatever becomes of a fork."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator

import pytest
import torch

from gadc.forks import Fork, can_fork, in_forks, in_step, is_fork, n_cores, on_cores
from waiting import is_running, wait_until

needs_forks = pytest.mark.skipif(not can_fork(), reason="processes can't be forked here")


def squares(n: int) -> Iterator[int]:
    for i in range(n):
        yield i * i


@pytest.mark.parametrize("n_processes", [1, 2, 3, 9])
def test_lanes_go_in_step_however_many_processes_there_are(n_processes: int) -> None:
    lanes = [lambda n=n: squares(n) for n in (3, 1, 0, 4, 2)]
    found = list(in_step(lanes, n_processes))
    assert found == [[0, 0, 0, 0], [1, 1, 1], [4, 4], [9]]


@pytest.mark.parametrize("n_processes", [1, 2, 5])
def test_items_are_worked_on_in_order(n_processes: int) -> None:
    assert in_forks(lambda item: item + 1, range(7), n_processes) == list(range(1, 8))
    assert in_forks(lambda item: item + 1, [], n_processes) == []


@needs_forks
def test_work_is_done_in_other_processes_that_do_not_fork_themselves() -> None:
    found = in_forks(lambda _: (os.getpid(), is_fork(), can_fork()), range(4), 2)
    assert found[0] == found[2] == (os.getpid(), False, True)
    assert found[1] == found[3]
    assert found[1][0] != os.getpid()
    assert found[1][1:] == (True, False)


@needs_forks
def test_work_of_a_fork_that_is_killed_is_done_here() -> None:
    here = os.getpid()

    def fragile(n: int) -> Iterator[int]:
        for i in range(n):
            if i == 2 and os.getpid() != here:
                os.kill(os.getpid(), signal.SIGKILL)
            yield i

    lanes = [lambda: fragile(4), lambda: fragile(5)]
    assert list(in_step(lanes, 2)) == [[0, 0], [1, 1], [2, 2], [3, 3], [4]]


def test_an_error_of_a_fork_shows_here() -> None:
    def fails(item: int) -> int:
        if item == 1:
            raise ValueError("item 1 can't be used")
        return item

    with pytest.raises(ValueError, match="item 1"):
        in_forks(fails, range(3), 2)


def test_results_that_can_not_travel_are_made_here() -> None:
    found = in_forks(lambda item: lambda: item, range(2), 2)
    assert [each() for each in found] == [0, 1]


def test_warnings_of_a_fork_are_given_here() -> None:
    def warn(item: int) -> int:
        warnings.warn(f"of {item}", RuntimeWarning, stacklevel=1)
        return item

    with pytest.warns(RuntimeWarning) as seen:
        assert in_forks(warn, range(2), 2) == [0, 1]
    assert sorted(str(each.message) for each in seen) == ["of 0", "of 1"]


@needs_forks
def test_a_fork_that_is_closed_ends_at_once() -> None:
    def endless() -> Iterator[int]:
        yield os.getpid()
        time.sleep(600.0)

    with contextlib.closing(Fork(endless)) as fork:
        pid = next(fork)
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@needs_forks
def test_a_fork_that_has_told_all_is_neither_killed_nor_waited_for() -> None:
    with contextlib.closing(Fork(lambda: [os.getpid()])) as fork:
        process = fork._process
        assert process is not None
        assert next(fork) == process.pid
        # Its last message has come, whether or not anybody has asked for more.
        wait_until(lambda: fork._has_told_all())
    process.join()
    assert process.exitcode == 0


def test_work_that_can_wait_is_done_when_it_is_asked_for() -> None:
    done: list[int] = []
    with contextlib.closing(Fork(lambda: [done.append(1) or 7], here=True)) as fork:
        assert not done
        assert next(fork) == 7
        assert done == [1]
        with pytest.raises(StopIteration):
            next(fork)


@needs_forks
def test_without_memory_for_a_fork_the_work_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory() -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", no_memory)
    assert in_forks(lambda item: (item, os.getpid()), range(2), 2) == [
        (0, os.getpid()),
        (1, os.getpid()),
    ]


@needs_forks
def test_an_interrupt_of_the_group_is_this_process_s_alone() -> None:
    def patient(item: int) -> int:
        if item:
            os.kill(os.getpid(), signal.SIGINT)
        return item

    assert in_forks(patient, range(2), 2) == [0, 1]


def test_other_systems_do_not_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert in_forks(lambda _: os.getpid(), range(3), 2) == [os.getpid()] * 3


@needs_forks
@pytest.mark.parametrize("n_sent", [0, 1 << 20])  # more than a pipe holds, or nothing
def test_a_fork_ends_with_its_parent_however_that_ends(n_sent: int) -> None:
    code = f"""
import os, sys, time
from gadc.forks import Fork

def work():
    yield os.getpid()
    yield b"x" * {n_sent}
    time.sleep(600.0)

elder, younger = Fork(work), Fork(work)
print(next(elder), next(younger), flush=True)
time.sleep(600.0)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not any(is_running(pid) for pid in pids))


@needs_forks
def test_cores_granted_in_two_threads_at_once_are_given_back() -> None:
    entered, leave = threading.Event(), threading.Event()
    n_threads = torch.get_num_threads()

    def other() -> None:
        with on_cores(2):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with on_cores(3):
        thread.start()
        entered.wait()
        assert n_cores() == 3
    leave.set()
    thread.join()
    assert n_cores() == torch.get_num_threads() == n_threads


@needs_forks
def test_a_warning_of_a_fork_is_one_of_its_module() -> None:
    def warn(item: int) -> int:
        warnings.warn("again", RuntimeWarning, stacklevel=1)
        return item

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        in_forks(warn, range(6), 3)
    assert len(seen) == 1
    with warnings.catch_warnings(record=True) as seen:
        warnings.filterwarnings("ignore", module=__name__)
        in_forks(warn, range(6), 3)
    assert not seen


@needs_forks
def test_without_files_for_a_fork_the_work_is_done_here() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        found = in_forks(lambda item: item, range(3), 3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found == [0, 1, 2]
