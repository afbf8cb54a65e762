"""What every method selects: subsets on disk, each computed once."""

import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import gadc
from gadc.comparison.methods import COMPARED, Compared
from gadc.comparison.problem import Problem
from gadc.comparison.run import write_cases
from gadc.comparison.work import Selected, Unit, select_all
from gadc.errors import GadcError, RunError
from gadc.experiment.data import KEY_CHARACTERS
from gadc.images.selected import SelectedImages
from gadc.images.source import ImageIndex
from gadc.job.result import as_subset
from gadc.per_class.selection import ClassSelection
from gadc.runtime import ProgressStyle, progress
from gadc.storage import digest
from gadc.subset import SUBSET_NAME, Subset

logger = logging.getLogger(__name__)

WORK_FOLDER = "work"


@dataclass(frozen=True, eq=False)
class Chosen:
    """A selection on disk.

    Attributes:
        folder: Of its `subset.parquet`.
        subset: The same, read.
    """

    folder: Path
    subset: Subset


def units_of(
    methods: Sequence[Compared], budgets: Sequence[int], seeds: Sequence[int]
) -> list[Unit]:
    """Return every selection: one per seed of methods that draw, one of the others."""
    return [
        Unit(method.name, n, seed)
        for n in budgets
        for method in methods
        for seed in (seeds if method.is_random else [None])
    ]


def select_subsets(
    problem: Problem,
    index: ImageIndex,
    units: Sequence[Unit],
    folder: Path,
    *,
    n_workers: int,
    show: ProgressStyle,
) -> dict[Unit, Chosen]:
    """Select with every method, or find what was selected before.

    Args:
        problem: What every method is given.
        index: The images, for their digests where the features don't have them.
        units: The selections.
        folder: For the subsets, a folder each.
        n_workers: Processes at the same time.
        show: See `gadc.runtime.progress`.

    Raises:
        GadcError: What a method complains of.
        RunError: `methods_differ`: methods select different numbers of images.
    """
    folder.mkdir(exist_ok=True)
    pool_key = _pool_key(problem)
    places = {unit: folder / _name(unit, digest([pool_key, _as_json(unit)])) for unit in units}
    missing = [unit for unit in units if not _is_selected(places[unit])]
    if missing:
        work = folder.parent / WORK_FOLDER
        cases = write_cases(problem, work)
        try:
            with progress("select", len(missing), style=show) as bar:

                def finished(unit: Unit, selected: Selected | GadcError) -> None:
                    if isinstance(selected, GadcError):
                        raise selected
                    _save(problem, index, unit, selected, places[unit])
                    bar.advance()

                select_all(missing, cases, finished, n_workers=n_workers)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    chosen = {unit: Chosen(place, Subset.load(place)) for unit, place in places.items()}
    _check_sizes(chosen)
    return chosen


def _is_selected(place: Path) -> bool:
    """Tell whether a subset is there as it was written."""
    if not (place / SUBSET_NAME).is_file():
        return False
    try:
        Subset.load(place)
    except GadcError as error:
        logger.warning("%s: selected again", error.message)
        return False
    return True


def _save(problem: Problem, index: ImageIndex, unit: Unit, selected: Selected, place: Path) -> None:
    job = problem.jobs[unit.n_per_class]
    orders = dict(zip(problem.labels, selected.orders, strict=True))
    selections = [
        ClassSelection(order=order, gains=[0.0] * len(order))
        for order in (orders.get(label, []) for label in range(len(job.division.names)))
    ]
    subset = _sorted(as_subset(job, selections))
    if any(sha256 is None for sha256 in subset.sha256):
        images = SelectedImages(index, subset.paths, subset.sha256)
        sha256: list[str | None] = [
            hashlib.sha256(images.peek(row)).hexdigest() for row in range(len(images))
        ]
        subset = dataclasses.replace(subset, sha256=sha256)
    method = COMPARED[unit.method]
    provenance = {
        **subset.provenance,
        "method": {**_as_json(unit), "title": method.title, "source": method.source},
    }
    place.mkdir(exist_ok=True)
    dataclasses.replace(subset, provenance=provenance).save(place / SUBSET_NAME)


def _sorted(subset: Subset) -> Subset:
    """Return the images of each class by id: the order of selection must not change a training.

    Two methods that select the same images then train the same model.
    """
    order = sorted(
        range(subset.n_images), key=lambda row: (int(subset.labels[row]), subset.paths[row])
    )

    def taken(column: list[Any]) -> list[Any]:
        return [column[row] for row in order]

    return dataclasses.replace(
        subset,
        index=subset.index[order],
        paths=taken(subset.paths),
        sha256=taken(subset.sha256),
        labels=subset.labels[order],
        class_name=taken(subset.class_name),
        rank=subset.rank[order],
        gain=subset.gain[order],
        weight=subset.weight[order],
        source=taken(subset.source),
    )


def _check_sizes(chosen: dict[Unit, Chosen]) -> None:
    """Raise if methods select different numbers of a class: nobody could compare them."""
    expected: dict[int, tuple[str, list[int]]] = {}
    for unit, found in chosen.items():
        labels = found.subset.labels.tolist()
        first, known = expected.setdefault(unit.n_per_class, (unit.method, sorted(labels)))
        if sorted(labels) != known:
            raise RunError(
                "methods_differ",
                f"{unit.method} and {first} select different numbers of images of some class at "
                f"{unit.n_per_class} per class ({len(labels)} and {len(known)}); lower per_class",
            )


def _pool_key(problem: Problem) -> str:
    """Return a digest of all that selections depend on beside method, budget and seed."""
    job = problem.job
    features = job.pool.features
    return digest(
        {
            "gadc": gadc.__version__,
            "torch": str(torch.__version__),
            "config": job.config.model_dump(mode="json", exclude={"per_class"}),
            "ids": features.ids,
            "labels": job.division.labels.tolist(),
            "rows": [row.hex() for row in job.pool.row_digests],
            "difficulty": problem.difficulty_source,
            "confidence": job.confidence,
        }
    )


def _as_json(unit: Unit) -> dict[str, Any]:
    return dataclasses.asdict(unit)


def _name(unit: Unit, key: str) -> str:
    seed = "" if unit.seed is None else f"-seed{unit.seed}"
    return f"{unit.method}-{unit.n_per_class}{seed}-{key[:KEY_CHARACTERS]}"
