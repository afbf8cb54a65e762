"""Selections in processes of their own: what a method costs is then its own cost.

A child is forked from a server that has imported everything and computed nothing, so that it starts
in milliseconds, and its time and memory are those of one method, one budget and one seed.
"""

import multiprocessing
import resource
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from gadc.comparison.methods import COMPARED, Case
from gadc.errors import ConvergenceWarning, GadcError, RunError
from gadc.per_class.selection import ClassSettings, ClassTask
from gadc.per_class.workers import start_worker
from gadc.runtime import generator

BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024
"""Linux counts the largest resident size in KiB."""


@dataclass(frozen=True)
class Unit:
    """One run of a method.

    Attributes:
        method: Its name.
        n_per_class: The budget.
        seed: None for methods without randomness.
    """

    method: str
    n_per_class: int
    seed: int | None


@dataclass(frozen=True)
class Cases:
    """The classes on disk, for children to read one by one.

    Attributes:
        folder: A file for each class.
        names: Of the classes.
        settings: gadc's.
        counts: How many images each class gives, by budget.
        difficulty_source: Where the difficulty comes from; empty without.
    """

    folder: Path
    names: list[str]
    settings: ClassSettings
    counts: dict[int, list[int]]
    difficulty_source: str

    def store(self, label: int, case: Case) -> None:
        """Write a class."""
        task = case.task
        arrays = {
            "features": np.asarray(task.features),
            "exclude": np.array(task.exclude, dtype=np.int64),
        }
        if task.confidence_loss is not None:
            arrays["confidence_loss"] = task.confidence_loss
        if case.difficulty is not None:
            arrays["difficulty"] = case.difficulty
        with self._path(label).open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def load(self, label: int, n_per_class: int) -> Case:
        """Read a class."""
        with np.load(self._path(label), allow_pickle=False) as arrays:
            known = {name: arrays[name] for name in arrays.files}
        task = ClassTask(
            name=self.names[label],
            features=known["features"],
            n_selected=self.counts[n_per_class][label],
            settings=self.settings,
            confidence_loss=known.get("confidence_loss"),
            exclude=tuple(known["exclude"].tolist()),
        )
        return Case(task, known.get("difficulty"), self.difficulty_source)

    def _path(self, label: int) -> Path:
        return self.folder / f"{label:05d}.npz"


@dataclass(frozen=True)
class Selected:
    """What a method selected, and what that cost.

    Attributes:
        orders: Rows of each class in the order of selection; plain integers.
        seconds: CPU time of the method on one thread, without reading the features.
        peak_bytes: How much the largest resident memory of the process grew from before the first
            class was read; features of the class at hand are among it.
    """

    orders: list[list[int]]
    seconds: float
    peak_bytes: int


Done = Callable[[Unit, Selected | GadcError], None]


def select_all(units: Sequence[Unit], cases: Cases, done: Done, *, n_workers: int) -> None:
    """Run every unit in a process of its own.

    Args:
        units: What to run.
        cases: The data.
        done: Called in this thread with what came out, in any order; methods' own errors too.
        n_workers: Processes at the same time. With one, nothing else runs beside it.

    Raises:
        RunError: `worker_died`.
    """
    if n_workers == 1:
        for unit in units:
            done(unit, _Child(unit, cases).result())
        return
    children = [_Child(unit, cases) for unit in units]
    with ThreadPoolExecutor(n_workers) as pool:
        futures = {pool.submit(child.result): child.unit for child in children}
        try:
            for future in as_completed(futures):
                done(futures[future], future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.end()
            raise


class _Child:
    """A process that runs one unit."""

    def __init__(self, unit: Unit, cases: Cases) -> None:
        self.unit = unit
        self._cases = cases
        self._process: BaseProcess | None = None
        self._is_ended = False
        self._lock = threading.Lock()

    def result(self) -> Selected | GadcError:
        """Start it, and wait for what it selects."""
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        context.set_forkserver_preload([__name__])
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(  # type: ignore[attr-defined]
            target=_run, args=(self.unit, self._cases, sender), daemon=True
        )
        with self._lock:
            if not self._is_ended:
                process.start()
                self._process = process
        sender.close()
        try:
            found: Selected | GadcError = receiver.recv()
            return found
        except EOFError as error:
            raise RunError(
                "worker_died",
                f"the process of {self.unit.method} was killed, perhaps for want of memory; what "
                "is finished is kept: run the same command again, with fewer workers if it was "
                "memory",
            ) from error
        finally:
            self.end()
            receiver.close()

    def end(self) -> None:
        """Stop it, or keep it from starting."""
        with self._lock:
            self._is_ended = True
            if self._process is not None:
                self._process.terminate()
                self._process.join()


def _run(unit: Unit, cases: Cases, sender: Connection) -> None:
    start_worker()
    try:
        with threadpool_limits(1), warnings.catch_warnings():  # type: ignore[no-untyped-call]
            warnings.simplefilter("ignore", ConvergenceWarning)
            found: Selected | GadcError = run_unit(unit, cases)
    except GadcError as error:
        found = error
    except Exception as error:  # noqa: BLE001 - of which the parent would know nothing else
        found = RunError("task_failed", f"{unit.method}: {type(error).__name__}: {error}")
    sender.send(found)
    sender.close()


def run_unit(unit: Unit, cases: Cases) -> Selected:
    """Select from every class, in this process."""
    method = COMPARED[unit.method]
    before = _peak_bytes()
    orders: list[list[int]] = []
    seconds = 0.0
    for label, name in enumerate(cases.names):
        case = cases.load(label, unit.n_per_class)
        if case.task.n_selected == 0:
            orders.append([])
            continue
        random = generator(unit.seed or 0, unit.method, name)
        began = time.process_time()
        orders.append(method.select(case, random).tolist())
        seconds += time.process_time() - began
    return Selected(orders, seconds, _peak_bytes() - before)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_MAXRSS
