"""What a selection will need: measured on a small part of it, right here, right now."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from gadc.cluster.connection import check_engine
from gadc.errors import InputError, RunError
from gadc.per_class.workers import shared
from gadc.runs.cells_trial import CellsPlan
from gadc.runs.cost_model import TimeModel, fit_time_model, makespan
from gadc.runs.planned_data import PlannedData, planned_pool, planned_target
from gadc.runs.prepared_part import PreparedPart, prepare_part
from gadc.runs.selection import Request, workers_of
from gadc.runs.selection_trial import SelectionTrial, peak_bytes, try_selection

DEFAULT_SECONDS = 20.0
ROW_BYTES = 400
"""Ids, digests and sets of a row in the memory of the process that divides the work; measured on
1.3 million rows."""
NOTHING_TRIED = SelectionTrial([], 0.0, 0, 0)
CLASS_DISK_BYTES = 3000
SELECTED_DISK_BYTES = 600
"""A class's record, and an image's line in `subset.parquet`, `paths.txt` and `run.json`; about."""


def plan_selection(request: Request, *, seconds: float = DEFAULT_SECONDS) -> dict[str, Any]:
    """Estimate time, memory and disk space of `run_selection`, as if nothing had been done yet.

    Reads the data, and runs small parts of the work: features of a sample of images, the checks,
    and the selection from some classes, in processes as many as the run would use. Nothing is
    written to `request.out`, which need not exist.

    Args:
        request: What will be asked for.
        seconds: About how long images, and then classes, are tried.

    Returns:
        Times in seconds, sizes in bytes; what was measured, the model, and remarks.

    Raises:
        InputError: What the selection would raise.
        RunError: `no_space`: the disk of `request.out` has less room than needed.
    """
    if not seconds > 0:
        raise InputError("bad_argument", f"seconds={seconds} must be above 0")
    for path in (request.data, request.features, request.target):
        if path is not None and not path.exists():
            raise InputError("missing_source", f"{path}: there is no such file or folder")
    check_engine(
        request.engine,
        address=request.address,
        workers=request.workers,
        device=request.images.device,
    )
    remarks = []
    if request.engine == "ray":
        request = dataclasses.replace(request, engine="local", address=None, workers=None)
        remarks.append("the plan is for this machine alone (--engine local), not for a Ray cluster")
    began = time.monotonic()
    pool = planned_pool(request, seconds=seconds)
    target = planned_target(request, seconds=seconds)
    data = [pool] if target is None else [pool, target]
    loaded_bytes = peak_bytes()
    part = prepare_part(request, pool, target)
    disk = _disk(request.out, data, part)
    cells = CellsPlan(request.config, part, has_target=target is not None)
    n_searched = sum(size.n_selected > 0 for size in part.sizes)
    n_workers, n_cores = shared(workers_of(request, pool.n_images), n_searched)
    first, *others = cells.whole or cells.in_cells
    largest, feed_row_seconds = part.timed_task(first)
    cells.measure(n_workers * n_cores)
    trial, model = NOTHING_TRIED, None
    if cells.whole:
        trial = try_selection(
            largest,
            (part.task(label) for label in others),
            n_workers=n_workers,
            n_cores=n_cores,
            seconds=seconds,
        )
        model = fit_time_model(trial.measured)
    times = {
        "load_seconds": sum(each.load_seconds for each in data),
        "features_seconds": sum(each.trial.seconds for each in data if each.trial is not None),
        "prepare_seconds": part.prepare_seconds,
        "select_seconds": _selection_seconds(
            cells, model, trial, n_workers, feed_row_seconds * pool.n_images
        ),
    }
    driver_bytes = peak_bytes() if part.is_whole else loaded_bytes + ROW_BYTES * pool.n_images
    driver_bytes += cells.needed_bytes(pool.n_images)
    task_bytes = 4 * largest.features.shape[0] * largest.features.shape[1] if cells.whole else 0
    memory = _memory(trial, n_workers, driver_bytes, task_bytes)
    n_whole = sum(entry.is_whole for entry in trial.measured)
    return {
        "data": str(request.data),
        "n_images": pool.n_images,
        "n_classes": len(part.sizes),
        "n_selected": sum(size.n_selected for size in part.sizes),
        "workers": n_workers,
        "cores_of_each": n_cores,
        "time": {**times, "total_seconds": sum(times.values())},
        "memory": memory,
        "disk": disk,
        "measured": {
            "images": None if pool.trial is None else pool.trial.n_sampled,
            "rows_prepared": part.n_rows,
            "classes": [
                {
                    **dataclasses.asdict(entry.size),
                    "seconds": entry.seconds,
                    "whole": entry.is_whole,
                }
                for entry in [*trial.measured, *cells.measured]
            ],
            "everything": n_whole == n_searched,
        },
        "model": None
        if model is None
        else {
            "class_seconds": "fixed + per_work * n_selected * n_images * n_target",
            "fixed": model.fixed,
            "per_work": model.per_work,
        },
        "remarks": [
            *remarks,
            *part.remarks,
            *cells.remarks,
            *_remarks(pool, memory, trial, n_searched),
        ],
        "plan_seconds": time.monotonic() - began,
    }


def _selection_seconds(
    cells: CellsPlan,
    model: TimeModel | None,
    trial: SelectionTrial,
    n_workers: int,
    feed_seconds: float,
) -> float:
    """Return the time from the first class to the last; one worker reads between searches."""
    search = [] if model is None else [model.seconds(size) for size in cells.sizes(in_cells=False)]
    if n_workers == 1:
        return sum(search) + cells.seconds + feed_seconds
    return trial.start_seconds + cells.seconds + max(makespan(search, n_workers), feed_seconds)


def _remarks(
    pool: PlannedData, memory: dict[str, Any], trial: SelectionTrial, n_searched: int
) -> list[str]:
    remarks = []
    n_whole = sum(entry.is_whole for entry in trial.measured)
    if trial.measured and not n_whole:
        remarks.append(
            "a class takes longer than a plan should: times are extrapolated from halves of classes"
        )
    if n_whole == n_searched and pool.trial is None:
        remarks.append("every class was measured: the run takes about as long as this plan")
    if pool.trial is not None:
        remarks.append(
            "the selection was measured on features made up in the likeness of the sample's"
        )
    available = memory["available_bytes"]
    if available is not None and memory["needed_bytes"] > available:
        remarks.append(
            f"memory may run out: {memory['needed_bytes'] / 1e9:.1f} GB are needed, "
            f"{available / 1e9:.1f} GB are available; use fewer --workers"
        )
    return remarks


def _memory(
    trial: SelectionTrial, n_workers: int, driver_bytes: int, task_bytes: int
) -> dict[str, Any]:
    """Return the largest resident sets; a single worker is this process itself."""
    if n_workers == 1:
        needed = driver_bytes + max(0, trial.worker_bytes - trial.idle_worker_bytes)
    else:
        driver_bytes += 2 * (n_workers + 1) * task_bytes  # on their way to the workers
        needed = driver_bytes + n_workers * trial.worker_bytes
    return {
        "driver_bytes": driver_bytes,
        "worker_bytes": trial.worker_bytes,
        "needed_bytes": needed,
        "available_bytes": available_memory_bytes(),
    }


def available_memory_bytes() -> int | None:
    """Return how much memory a program may still take; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith("MemAvailable:")]
        return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None


def _disk(out: Path, data: list[PlannedData], part: PreparedPart) -> dict[str, Any]:
    """Return what is needed and what is free, if that is enough.

    Raises:
        RunError: `no_space`.
    """
    trials = [each.trial for each in data if each.trial is not None]
    n_selected = sum(size.n_selected for size in part.sizes)
    subset_bytes = SELECTED_DISK_BYTES * n_selected + CLASS_DISK_BYTES * len(part.sizes)
    needed_bytes = sum(trial.peak_disk_bytes for trial in trials) + subset_bytes
    where = out.resolve()
    while not where.exists():
        where = where.parent
    free_bytes = shutil.disk_usage(where).free
    if needed_bytes > free_bytes:
        raise RunError(
            "no_space",
            f"the run needs {needed_bytes / 1e9:.2f} GB in {where}, where {free_bytes / 1e9:.2f} "
            "GB are free; free some, or choose another folder",
        )
    return {
        "features_bytes": sum(trial.disk_bytes for trial in trials),
        "subset_bytes": subset_bytes,
        "needed_bytes": needed_bytes,
        "free_bytes": free_bytes,
        "where": str(where),
    }
