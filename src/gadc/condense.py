"""From the features of a data set to the subset that stands for it, class by class."""

import dataclasses
import functools
import importlib.metadata
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from gadc.cluster.connection import Engine, check_engine, joined
from gadc.errors import ConvergenceWarning
from gadc.features.store import FeatureSet
from gadc.job.config import CondenseConfig
from gadc.job.prepare import Job, prepare
from gadc.job.result import as_subset
from gadc.per_class.on_cluster import select_classes_on
from gadc.per_class.records import ClassRecords, record_key
from gadc.per_class.selection import ClassSelection, ClassTask
from gadc.per_class.workers import Done, select_classes
from gadc.runtime import ProgressStyle, pick_device, progress
from gadc.storage import exclusive, prepare_output
from gadc.subset import SUBSET_NAME, Subset

__all__ = ["CondenseConfig", "condense"]

logger = logging.getLogger(__name__)

RECORDS_FOLDER = "classes"
Search = Callable[[Iterable[tuple[int, ClassTask]], Done], None]
"""Selects from every class, and reports each."""


def condense(
    features: FeatureSet,
    config: CondenseConfig,
    *,
    target: FeatureSet | None = None,
    keep: Sequence[str] = (),
    exclude: Sequence[str] = (),
    out: Path | None = None,
    workers: int | None = None,
    engine: Engine = "local",
    address: str | None = None,
    device: str = "auto",
    wait_seconds: float = 0.0,
    show: ProgressStyle = "silent",
) -> Subset:
    """Select the subset of each class that minimises its objective.

    On a CPU the result is the same, byte for byte, for any number of workers and both engines, and
    which images are selected does not depend on their order. With `out`, finished classes are
    recorded: a killed run goes on where it stopped when the same call is made.

    Args:
        features: What to select from.
        config: How many, and by which objective.
        target: The images to match; default: each class itself. Classes are matched by name; a
            target without labels is matched by every class.
        keep: Ids of images that are selected in any case.
        exclude: Ids of images that may not be selected; they still count in what is matched.
        out: Folder for `subset.parquet` and the records; default: nothing is written.
        workers: Processes; default: this one and, on Linux, forks of it, as many as torch may use
            threads. More than one, for several classes, need a main module that can be imported
            (`if __name__ == "__main__":` in a script). On a GPU: classes at the
            same time, each in a stream of this process. With Ray, the most classes at the same
            time; default: what fits the cluster.
        engine: `local` for processes of this machine; `ray` for the machines of a cluster.
        address: Of the cluster; see `gadc.cluster.connection.joined`.
        device: Where to compute: `auto`, `cpu`, `cuda` or `cuda:<index>`.
        wait_seconds: How long to wait for another process that writes to `out`.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: Features, lists or numbers that can't be used; a cluster that can't be joined.
        RunError: `locked`, `disk_full`, `worker_died` or `not_converged`.

    Warns:
        ConvergenceWarning: The objective of a class is less accurate than it should be.
    """
    check_engine(engine, address=address, workers=workers, device=device)
    computed_on = str(pick_device(device))
    with joined(engine, address, workers) as cluster:
        search: Search = (
            functools.partial(
                select_classes,
                n_workers=workers,
                share_device=torch.device(computed_on).type == "cuda",
            )
            if cluster is None
            else functools.partial(select_classes_on, cluster, device=computed_on)
        )
        if out is None:
            job = prepare(
                features, config, target=target, keep=keep, exclude=exclude, device=computed_on
            )
            return _select(job, None, search, show)
        prepare_output(out)
        with exclusive(out, wait_seconds=wait_seconds):
            job = prepare(
                features, config, target=target, keep=keep, exclude=exclude, device=computed_on
            )
            subset = _select(job, ClassRecords(out / RECORDS_FOLDER), search, show)
            subset.save(out / SUBSET_NAME)
        return subset


def _select(job: Job, records: ClassRecords | None, search: Search, show: ProgressStyle) -> Subset:
    """Search the classes that have no record yet, and join all."""
    n_classes = len(job.division.names)
    found: dict[int, ClassSelection] = {}
    keys: dict[int, str] = {}

    with progress("select", n_classes, style=show) as bar:

        def unrecorded() -> Iterator[tuple[int, ClassTask]]:
            for label in range(n_classes):
                task = job.task(label)
                if records is not None:
                    ids = [job.pool.features.ids[row] for row in job.division.rows[label]]
                    keys[label] = record_key(task, ids, importlib.metadata.version("gadc"))
                    recorded = records.load(label, keys[label])
                    if recorded is not None:
                        found[label] = recorded
                        bar.advance()
                        continue
                computed.add(label)
                yield label, task

        def keep_result(label: int, selection: ClassSelection) -> None:
            if records is not None:
                records.store(label, keys[label], selection)
            found[label] = selection
            bar.advance()

        computed: set[int] = set()
        search(unrecorded(), keep_result)
    selections = [found[label] for label in range(n_classes)]
    for name, selection in zip(job.division.names, selections, strict=True):
        if not selection.has_converged:
            warnings.warn(
                f"class {name!r}: the solver's row error is "
                f"{selection.terms['transport_row_error']:.1e}; raise epsilon "
                f"(now {job.config.epsilon})",
                ConvergenceWarning,
                stacklevel=3,
            )
    counts = {
        "computed": len(computed),
        "reused": n_classes - len(computed),
        "corrupt": 0 if records is None else records.n_corrupt,
    }
    logger.info("%d classes: %s", n_classes, counts)
    return dataclasses.replace(as_subset(job, selections), run_counts=counts)
