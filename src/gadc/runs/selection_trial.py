"""Some classes of a run, selected from to be timed."""

import dataclasses
import itertools
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from gadc.errors import RunError
from gadc.per_class.selection import ClassTask, select_class
from gadc.per_class.workers import worker_pool
from gadc.runs.cost_model import ClassSize, MeasuredClass, fit_time_model

PART_OF_CLASS = 4
"""A quarter of the largest class tells whether all of it can be measured."""
LARGE_CLASS = 2000
"""Smaller ones are measured without asking."""
FEWEST_CLASSES = 4
"""Classes of one size differ by a quarter in their time; the mean of four by half as much."""
MOST_OF_THE_TIME = 2.0
"""What one class may take, in units of the time there is, to be tried as a whole."""
WARM_UP_IMAGES = 100
"""The first search in a process is slower, while libraries set themselves up."""


@dataclass(frozen=True, eq=False)
class SelectionTrial:
    """What selecting from some classes showed.

    Attributes:
        measured: What was searched, and how long.
        start_seconds: Until the workers were ready.
        worker_bytes: The largest resident set of a worker.
        idle_worker_bytes: That of one that has done nothing yet.
    """

    measured: list[MeasuredClass]
    start_seconds: float
    worker_bytes: int
    idle_worker_bytes: int


def try_selection(
    largest: ClassTask,
    others: Iterator[ClassTask],
    *,
    n_workers: int,
    seconds: float,
    n_cores: int = 1,
) -> SelectionTrial:
    """Select from some classes in workers, as the run does, until the time is over.

    If the largest class is large, first from a quarter of it and of others; where these say that
    all of it would take too long, only halves of classes are tried. Workers always work side by
    side, because processes that share a memory slow each other down.

    Args:
        largest: The class that takes longest.
        others: More classes, in the order in which they are tried.
        n_workers: Processes at the same time.
        n_cores: Of each.
        seconds: No class is begun after so long, but each worker gets one in any case, and all
            together four.

    Raises:
        RunError: `worker_died`.
        GadcError: What the selection from a class raises.
    """
    began = time.monotonic()
    trials: list[_Tried] = []
    n_least = max(n_workers, FEWEST_CLASSES)
    try:
        with worker_pool(n_workers, n_cores) as pool:
            ready = [pool.submit(peak_bytes) for _ in range(n_workers)]
            idle_bytes = max(each.result() for each in ready)
            start_seconds = time.monotonic() - began
            small = part_of(largest, max(1, len(largest.features) // WARM_UP_IMAGES))
            if small is not None:
                wait([pool.submit(select_class, small) for _ in range(n_workers)])

            first = [largest, *itertools.islice(others, n_least - 1)]
            is_slow = False
            if len(largest.features) >= LARGE_CLASS:
                trials += _try_all(pool, _parts(first[:n_workers], PART_OF_CLASS), n_workers)
                is_slow = _seconds_of(largest, trials) > MOST_OF_THE_TIME * seconds
            if is_slow:
                trials += _try_all(pool, _parts(first, 2), n_workers)
            else:
                tasks = _in_time(itertools.chain(first, others), began + seconds, n_least)
                trials += _try_all(pool, tasks, n_workers, are_whole=True)
    except BrokenProcessPool as error:
        raise RunError(
            "worker_died",
            "a worker process was killed, perhaps for want of memory; use fewer workers",
        ) from error
    return SelectionTrial(
        [MeasuredClass(each.size, each.seconds, each.is_whole) for each in trials],
        start_seconds,
        idle_bytes + _largest_memory(largest, trials, idle_bytes),
        idle_bytes,
    )


@dataclass(frozen=True)
class _Tried:
    size: ClassSize
    seconds: float
    peak_bytes: int
    is_whole: bool


def _parts(tasks: Iterable[ClassTask], divisor: int) -> list[ClassTask]:
    return [part for task in tasks if (part := part_of(task, divisor)) is not None]


def _seconds_of(task: ClassTask, parts: list[_Tried]) -> float:
    """Return about how long a class will take, by the slowest of what was tried; 0 for nothing."""
    return max(
        (
            fit_time_model([MeasuredClass(part.size, part.seconds)]).seconds(size_of(task))
            for part in parts
        ),
        default=0.0,
    )


def _largest_memory(largest: ClassTask, trials: list[_Tried], idle_bytes: int) -> int:
    """Return what the largest class takes of a worker's memory; it grows with the costs."""
    most = max(trials, key=lambda each: (each.is_whole, each.size.work))
    taken = max(each.peak_bytes for each in trials) - idle_bytes
    full = size_of(largest)
    if not most.is_whole:
        taken = taken * full.n_images * full.n_target // (most.size.n_images * most.size.n_target)
    return taken


def _in_time(tasks: Iterable[ClassTask], end: float, n_least: int) -> Iterator[ClassTask]:
    """Yield tasks until the clock says `end`, but at least so many."""
    for number, task in enumerate(tasks):
        if number >= n_least and time.monotonic() >= end:
            return
        yield task


def _try_all(
    pool: ProcessPoolExecutor,
    tasks: Iterable[ClassTask],
    n_workers: int,
    *,
    are_whole: bool = False,
) -> list[_Tried]:
    """Select from each, `n_workers` at the same time."""
    waiting = iter(tasks)
    running: dict[Future[tuple[float, int]], ClassSize] = {}
    trials: list[_Tried] = []
    while True:
        while len(running) < n_workers and (task := next(waiting, None)) is not None:
            running[pool.submit(timed_selection, task)] = size_of(task)
        if not running:
            return trials
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            trials.append(_Tried(running.pop(future), *future.result(), are_whole))


def part_of(task: ClassTask, divisor: int) -> ClassTask | None:
    """Return the same task with every `divisor`-th image; None if that leaves too few."""
    rows = np.arange(0, len(task.features), divisor)
    if len(rows) < 2 * task.n_selected:
        return None
    return dataclasses.replace(
        task,
        features=task.features[rows],
        target=None if task.target is None else task.target[::divisor],
        target_weights=None if task.target_weights is None else task.target_weights[::divisor],
        confidence_loss=None if task.confidence_loss is None else task.confidence_loss[rows],
        keep=(),
        exclude=(),
    )


def size_of(task: ClassTask) -> ClassSize:
    """Return what the time of a task depends on."""
    target = task.features if task.target is None else task.target
    return ClassSize(len(task.features), len(target), task.n_selected)


def timed_selection(task: ClassTask) -> tuple[float, int]:
    """Select; return the seconds it took and this process's largest resident set in bytes."""
    began = time.monotonic()
    select_class(task)
    return time.monotonic() - began, peak_bytes()


def peak_bytes() -> int:
    """Return the largest resident set that this process had."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
