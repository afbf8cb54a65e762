"""The part of a data set that is made ready for selection, to see how long all of it takes."""

import dataclasses
import importlib.metadata
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.features.store import FeatureSet
from gadc.job.budget import allocate_budget
from gadc.job.config import CondenseConfig
from gadc.job.prepare import Job, prepare
from gadc.per_class.records import record_key
from gadc.per_class.selection import ClassTask
from gadc.runs.cost_model import ClassSize, line_through
from gadc.runs.planned_data import PlannedData
from gadc.runs.selection import Request, read_ids
from gadc.runtime import pick_device
from gadc.search.nested import check_nested

TRIAL_BYTES = 256 << 20
"""Features up to this size are checked and classified as a whole, larger ones in part."""
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, eq=False)
class PreparedPart:
    """Some or all rows of a data set, checked and divided into classes.

    Attributes:
        job: The selection from these rows.
        n_rows: How many.
        is_whole: They are all.
        prepare_seconds: What checking and dividing all rows takes.
        sizes: Of all classes of the whole: images, images to match, and images selected.
        config: What is asked for of the whole.
        remarks: What is not as in the run.
    """

    job: Job
    n_rows: int
    is_whole: bool
    prepare_seconds: float
    sizes: list[ClassSize]
    config: CondenseConfig
    remarks: list[str]

    def tried_labels(self) -> list[int]:
        """Return the classes here that give anything: that with most work, then of all sizes."""
        work = {
            label: len(rows) * self.sizes[label].work
            for label, rows in enumerate(self.job.division.rows)
        }
        ordered = sorted((label for label in work if work[label]), key=lambda label: -work[label])
        if not ordered:
            raise InputError("budget_range", "nothing would be selected; raise the budget")
        return spread(ordered)

    def task(self, label: int) -> ClassTask:
        """Return a class's task as the run makes it."""
        task = self.job.task(label)
        n_selectable = len(task.features) - len(task.exclude)
        n_selected = max(len(task.keep), min(self.sizes[label].n_selected, n_selectable))
        return dataclasses.replace(task, n_selected=n_selected, settings=self.config.class_settings)

    def timed_task(self, label: int) -> tuple[ClassTask, float]:
        """Return a class's task, and the time per row to read it and to look for its record."""
        began = time.monotonic()
        task = self.task(label)
        ids = [self.job.pool.features.ids[row] for row in self.job.division.rows[label]]
        record_key(task, ids, importlib.metadata.version("gadc"))
        return task, (time.monotonic() - began) / len(ids)


def prepare_part(request: Request, pool: PlannedData, target: PlannedData | None) -> PreparedPart:
    """Check and divide the data, or as much of it as is quick, and time that."""
    n_most = max(1, TRIAL_BYTES // (4 * pool.n_features))
    if pool.n_images > n_most:
        return _prepare_some(request, pool, target, n_most)
    features = pool.take(None)
    lists: dict[str, list[str]] = {}
    if pool.trial is None:
        lists = {
            "keep": read_ids(request.keep, features),
            "exclude": read_ids(request.exclude, features),
        }
    matched = None if target is None else target.take(None)
    job, seconds = _prepare(request, features, request.config, matched, **lists)
    remarks = _unread_lists(request) if pool.trial is not None else []
    division = job.division
    sizes = _sizes(division.sizes, division.names, job.allocation.counts, target)
    return PreparedPart(job, pool.n_images, True, seconds, sizes, request.config, remarks)


def _prepare_some(
    request: Request, pool: PlannedData, target: PlannedData | None, n_most: int
) -> PreparedPart:
    config = request.config
    rows = _some_rows(pool, n_most)
    remarks = _unread_lists(request)
    matched = None if target is None else target.take(None)
    # The budget is that of the whole; here it only has to be possible.
    possible: dict[str, Any] = {"per_class": 1, "fraction": None, "budget": None}
    possible |= {"allocation": None, "allocate": None, "nested": None, "shortfall": "take-all"}
    timed = []
    for some in (rows[::2], rows):
        n_clusters = None
        if config.clusters is not None:
            n_clusters = max(1, round(config.clusters * len(some) / pool.n_images))
        part = config.model_copy(update={**possible, "clusters": n_clusters})
        timed.append(_prepare(request, pool.take(some), part, matched))
    (_, half_seconds), (job, some_seconds) = timed
    if config.clusters is None:
        n_half = len(rows[::2])
        seconds = line_through(n_half, half_seconds, len(rows), some_seconds, pool.n_images)
    else:
        seconds = some_seconds * (pool.n_images / len(rows)) ** 2  # rows times clusters
        remarks.append("the time for clusters is an upper bound")
    sizes = _whole_sizes(config, pool, job, target)
    return PreparedPart(job, len(rows), False, seconds, sizes, config, remarks)


def _unread_lists(request: Request) -> list[str]:
    is_given = request.keep is not None or request.exclude is not None
    return ["--keep and --exclude are left out of account"] if is_given else []


def _prepare(
    request: Request,
    features: FeatureSet,
    config: CondenseConfig,
    target: FeatureSet | None,
    *,
    keep: list[str] | None = None,
    exclude: list[str] | None = None,
) -> tuple[Job, float]:
    device = str(pick_device(request.images.device))
    began = time.monotonic()
    job = prepare(
        features, config, target=target, keep=keep or [], exclude=exclude or [], device=device
    )
    return job, time.monotonic() - began


def _some_rows(pool: PlannedData, n_most: int) -> NDArray[np.int64]:
    """Return the rows of the largest and other classes, at least of one, up to `n_most`."""
    if pool.labels is None:
        return np.arange(0, pool.n_images, -(-pool.n_images // n_most))
    sizes = np.bincount(pool.labels, minlength=len(pool.class_names))
    taken: list[int] = []
    n_taken = 0
    for label in spread(np.argsort(-sizes, kind="stable").tolist()):
        if taken and n_taken + sizes[label] > n_most:
            break
        taken.append(label)
        n_taken += int(sizes[label])
    return np.flatnonzero(np.isin(pool.labels, taken))


def _whole_sizes(
    config: CondenseConfig, pool: PlannedData, job: Job, target: PlannedData | None
) -> list[ClassSize]:
    """Return the sizes of all classes, where the job has only some."""
    names = job.division.names
    if pool.labels is not None:
        n_images = np.bincount(pool.labels, minlength=len(pool.class_names))
    elif config.clusters is not None:  # more clusters of the same sizes
        n_images = np.resize(job.division.sizes, config.clusters)
        names = [""] * config.clusters
    else:
        n_images = np.array([pool.n_images])
    allocation = None
    if config.allocation is not None:
        numbers = {name: label for label, name in enumerate(names)}
        allocation = {
            numbers[name]: share for name, share in config.allocation.items() if name in numbers
        }
    allocated = allocate_budget(
        n_images,
        per_class=config.per_class,
        fraction=config.fraction,
        budget=config.budget,
        allocate=config.allocation_rule,
        allocation=allocation,
        shortfall=config.shortfall,
    )
    check_nested(config.nested, int(allocated.wanted.max()))
    return _sizes(n_images, names, allocated.counts, target)


def _sizes(
    n_images: NDArray[np.int64],
    names: list[str],
    counts: NDArray[np.int64],
    target: PlannedData | None,
) -> list[ClassSize]:
    return [
        ClassSize(n, _n_target(target, name, n), count)
        for n, name, count in zip(n_images.tolist(), names, counts.tolist(), strict=True)
    ]


def _n_target(target: PlannedData | None, name: str, n_images: int) -> int:
    if target is None:
        return n_images
    if target.labels is None or name not in target.class_names:
        return target.n_images
    return int((target.labels == target.class_names.index(name)).sum())


def spread(ordered: list[int]) -> list[int]:
    """Return a list's entries in an order whose every start is spread over it, the first first."""
    n = len(ordered)
    places = dict.fromkeys(int(step * GOLDEN % 1.0 * n) for step in range(2 * n))
    return [ordered[place] for place in [*places, *sorted(set(range(n)) - set(places))]]
