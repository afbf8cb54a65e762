"""Many classes at once: on a CPU each in a process of its own, on a GPU each in a stream."""

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

import torch

from gadc.errors import GadcError, RunError
from gadc.forks import grant_cores, n_cores, on_cores
from gadc.per_class.selection import (
    ClassSelection,
    ClassTask,
    is_partitioned,
    select_class,
)

Done = Callable[[int, ClassSelection], None]


def select_classes(
    tasks: Iterable[tuple[int, ClassTask]],
    done: Done,
    *,
    n_workers: int | None,
    share_device: bool = False,
) -> None:
    """Select from every class, and report each when it is finished, in any order.

    Classes that are searched in cells are searched in this process. The numbers don't depend on
    `n_workers`. If one class fails, or the run is interrupted, those that are under way are
    finished and reported first. Workers end with this process, however it ends.

    Args:
        tasks: Numbered classes, made one by one as they are needed.
        done: Called in this process.
        n_workers: Processes, of which each class has several where there are half as many classes
            or fewer. None: one class after the
            other on all of torch's threads, without processes that must start first.
        share_device: Threads of this process instead, each with a stream of its own: one class
            seldom fills a GPU, and processes would each hold a context and memory of their own.

    Raises:
        GadcError: The error of a class, with its name.
        RunError: `worker_died`: a process was killed, most likely for want of memory.
    """
    waiting = iter(tasks)
    first = list(itertools.islice(waiting, n_workers or 1))
    waiting = itertools.chain(first, waiting)
    n_at_once, n_each = shared(n_workers, len(first))
    del first  # or their features would stay in memory
    if n_at_once == 1:
        with on_cores(n_each):
            for label, task in waiting:
                done(label, select_named(task))
        return
    workers: contextlib.AbstractContextManager[Executor] = (
        ThreadPoolExecutor(n_at_once, initializer=_start_stream)
        if share_device
        else worker_pool(n_at_once, n_each)
    )
    running: dict[Future[ClassSelection], int] = {}
    try:
        with workers as pool:
            try:
                # Python 3.11 may not notice the end of the last worker started until a result
                # comes next: these come when all are started.
                for _ in range(n_at_once):
                    pool.submit(os.getpid)
                _feed(pool, waiting, running, done, n_waiting=n_at_once + 1)
            except (Exception, KeyboardInterrupt, SystemExit):
                _drain(running, done)
                raise
    except BrokenProcessPool as error:
        raise RunError(
            "worker_died",
            "a worker process was killed, perhaps for want of memory; finished classes are kept: "
            "run the same command again, with fewer workers if it was memory",
        ) from error


def shared(n_workers: int | None, n_classes: int) -> tuple[int, int]:
    """Return how many classes are searched at once, and on how many cores each.

    Args:
        n_workers: See `select_classes`.
        n_classes: To be searched.
    """
    if n_workers is None:
        return 1, n_cores()
    n_at_once = max(1, min(n_workers, n_classes))
    return n_at_once, n_workers // n_at_once


@contextlib.contextmanager
def worker_pool(n_workers: int, n_each: int = 1) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of fresh processes, each for so many cores, which end with this one."""
    context = _RememberingContext()
    with ProcessPoolExecutor(
        n_workers, mp_context=context, initializer=start_worker, initargs=(n_each,)
    ) as pool:
        try:
            yield pool
        except (OSError, ValueError) as error:
            # Then the pool's pipes are closed, or their numbers are those of other files by now.
            if context.has_a_dead_process and not isinstance(error, GadcError):
                raise BrokenProcessPool("a worker died while another was being started") from error
            raise
        finally:
            # The pool ends its workers when one dies, but in Python 3.11 not one that was
            # being started just then: it waits for that one without end.
            if context.has_a_dead_process:
                context.terminate()


class _RememberingContext(SpawnContext):
    """Starts processes, and knows which."""

    def __init__(self) -> None:
        self.processes: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]
        process = SpawnProcess(*args, **kwargs)
        self.processes.append(process)
        return process

    @property
    def has_a_dead_process(self) -> bool:
        # Exit codes are set by whoever waits first, and another thread may be about to.
        return bool(multiprocessing.connection.wait([p.sentinel for p in self._started], timeout=0))

    def terminate(self) -> None:
        for process in self._started:
            process.terminate()

    @property
    def _started(self) -> list[SpawnProcess]:
        return [process for process in self.processes if process.pid is not None]


def _feed(
    pool: Executor,
    tasks: Iterator[tuple[int, ClassTask]],
    running: dict[Future[ClassSelection], int],
    done: Done,
    *,
    n_waiting: int,
) -> None:
    """Keep `n_waiting` classes with the workers: features of more would only fill memory."""
    while True:
        while len(running) < n_waiting and (following := next(tasks, None)) is not None:
            label, task = following
            if is_partitioned(
                task.settings, len(task.features), has_target=task.target is not None
            ):
                done(label, select_named(task))  # uses all cores itself, and no copy of features
                continue
            running[pool.submit(select_named, task)] = label
        if not running:
            return
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            done(running.pop(future), future.result())


def _drain(running: dict[Future[ClassSelection], int], done: Done) -> None:
    under_way = {future: label for future, label in running.items() if not future.cancel()}
    wait(under_way)
    for future, label in under_way.items():
        if future.exception() is None:
            done(label, future.result())


def select_named(task: ClassTask) -> ClassSelection:
    """Select from one class; whatever goes wrong becomes an error that names the class."""
    try:
        return select_class(task)
    except GadcError as error:
        raise type(error)(error.code, f"class {task.name!r}: {error.message}") from error
    except Exception as error:
        raise RunError(
            "class_failed", f"class {task.name!r}: {type(error).__name__}: {error}"
        ) from error


def _start_stream() -> None:
    """Give this thread a stream of its own, so that its kernels run beside those of others."""
    if torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.Stream())


def start_worker(n_each: int = 1) -> None:
    """Set up a worker process: for so many cores, deaf to Ctrl-C, and gone when its parent is."""
    grant_cores(n_each)
    # Ctrl-C reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has ended, killed perhaps, which no pool tells it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
