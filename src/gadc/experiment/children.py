"""Cells in processes of their own: one thread each on a CPU, and gone when the parent is."""

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from gadc.errors import GadcError, RunError
from gadc.experiment.cells import Cell, run_cell
from gadc.per_class.workers import start_worker
from gadc.runtime import ProgressStyle

PRELOADED = [__name__, "gadc.comparison.work", "accelerate.accelerator"]

Done = Callable[[Cell], None]


@dataclass(frozen=True)
class _Child:
    cell: Cell
    process: BaseProcess
    receiver: Connection


def start_server() -> None:
    """Start the process that cells, and selections, are forked from.

    It imports everything once and computes nothing; a fork of it then takes milliseconds. Whatever
    starts it first decides what it has imported.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()


def run_cells(
    cells: Sequence[Cell], done: Done, *, n_workers: int, show: ProgressStyle = "silent"
) -> None:
    """Run every cell in a process of its own.

    One thread each, however many run at once: sums, and so results, don't depend on `n_workers`.

    Args:
        cells: What to run.
        done: Called in this thread when one is finished, in any order.
        n_workers: Processes at the same time.
        show: Of the stages within a cell; only where one cell runs at a time.

    Raises:
        GadcError: Of the first cell that fails; the others are ended, a training at its next step,
            and what is done is kept.
        RunError: `worker_died`.
    """
    start_server()
    waiting = list(cells)
    running: list[_Child] = []
    style: ProgressStyle = show if n_workers == 1 else "silent"
    try:
        while waiting or running:
            while waiting and len(running) < n_workers:
                running.append(_start(waiting.pop(0), style))
            ready = wait([child.receiver for child in running])
            for child in [child for child in running if child.receiver in ready]:
                running.remove(child)
                _finish(child)
                done(child.cell)
    finally:
        _end(running)


def _start(cell: Cell, show: ProgressStyle) -> _Child:
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(  # type: ignore[attr-defined]
        target=_run, args=(cell, sender, show), daemon=True
    )
    process.start()
    sender.close()
    return _Child(cell, process, receiver)


def _finish(child: _Child) -> None:
    """Take what a process has to say, and raise it if that is an error."""
    try:
        error: GadcError | None = child.receiver.recv()
    except EOFError as ended:
        child.process.join()
        raise RunError(
            "worker_died",
            f"the process of {child.cell.title} ended with status {child.process.exitcode}, "
            "perhaps for want of memory; what is finished is kept: run the same command again, "
            "with fewer workers if it was memory",
        ) from ended
    finally:
        child.receiver.close()
    child.process.join()
    if error is not None:
        raise error


def _end(running: Sequence[_Child]) -> None:
    """Ask processes to end, and wait: a training saves its step first."""
    for child in running:
        if child.process.is_alive():
            child.process.terminate()
    for child in running:
        child.process.join()
        child.receiver.close()


def _run(cell: Cell, sender: Connection, show: ProgressStyle) -> None:
    start_worker()
    error: GadcError | None = None
    try:
        run_cell(cell, show)
    except GadcError as raised:
        error = type(raised)(raised.code, f"{cell.title}: {raised.message}")
    except Exception as raised:  # noqa: BLE001 - of which the parent would know nothing else
        error = RunError("task_failed", f"{cell.title}: {type(raised).__name__}: {raised}")
    sender.send(error)
    sender.close()
    sys.stderr.flush()
