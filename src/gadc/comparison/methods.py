"""What is compared: gadc, gadc with one part switched off, and the published methods."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gadc.baselines import METHODS, Pool
from gadc.baselines.methods import Method
from gadc.baselines.moments_confidence import moments_confidence
from gadc.errors import InputError
from gadc.per_class.selection import ClassTask, is_partitioned, select_class

Kind = Literal["gadc", "ablation", "peer", "random", "reference"]

GADC = "gadc"
RANDOM = "random"
FULL = "full"
FULL_TITLE = "All images (reference)"
ALL = "all"
GADC_SOURCE = "gadc; GADC (arXiv 2606.05883)"


@dataclass(frozen=True, eq=False)
class Case:
    """One class for every method.

    Attributes:
        task: What gadc is given; `exclude` are exact duplicates, which no method may select.
        difficulty: How hard each image is, float64 [n]; None if nothing says so.
        difficulty_source: Where it comes from.
    """

    task: ClassTask
    difficulty: NDArray[np.float64] | None = None
    difficulty_source: str = ""

    def pool(self) -> tuple[Pool, NDArray[np.int64]]:
        """Return the images that may be selected, and their rows in the task."""
        rows = np.setdiff1d(np.arange(len(self.task.features)), self.task.exclude)
        losses = self.task.confidence_loss
        pool = Pool(
            np.asarray(self.task.features[rows]),
            confidence_loss=None if losses is None else losses[rows],
            difficulty=None if self.difficulty is None else self.difficulty[rows],
            difficulty_source=self.difficulty_source,
        )
        return pool, rows


Select = Callable[[Case, np.random.Generator], NDArray[np.int64]]


@dataclass(frozen=True)
class Compared:
    """A line of the table.

    Attributes:
        name: What commands call it.
        title: What tables call it.
        kind: `gadc`, an `ablation` of it, a `peer`, `random` or the `reference`.
        source: Where it was published.
        is_random: Whether it runs once per seed; else it runs once.
        needs: What it can't do without: `confidence_loss` or `difficulty`.
        select: Selects `case.task.n_selected` rows of a class, in the order of selection.
    """

    name: str
    title: str
    kind: Kind
    source: str
    is_random: bool
    needs: frozenset[str]
    select: Select


def _peer(method: Method) -> Compared:
    def select(case: Case, generator: np.random.Generator) -> NDArray[np.int64]:
        pool, rows = case.pool()
        return rows[method.select(pool, case.task.n_selected, generator=generator)]

    kind: Kind = "random" if method.name == RANDOM else "peer"
    return Compared(
        method.name, method.title, kind, method.source, method.is_random, method.needs, select
    )


def _variant(name: str, title: str, *, needs: Sequence[str] = (), **changes: Any) -> Compared:
    """Return gadc with other settings."""

    def select(case: Case, _generator: np.random.Generator) -> NDArray[np.int64]:
        task = case.task
        settings = dataclasses.replace(task.settings, **changes)
        if changes and is_partitioned(settings, len(task.features), has_target=False):
            raise InputError(
                "class_too_large",
                f"{name} can't search in cells, and class {task.name!r} of {len(task.features)} "
                "images is; leave out this method, or take fewer images per class",
            )
        found = select_class(dataclasses.replace(task, settings=settings))
        return np.array(found.order, dtype=np.int64)

    kind: Kind = "ablation" if changes else "gadc"
    return Compared(name, title, kind, GADC_SOURCE, False, frozenset(needs), select)


def _without_transport(case: Case, generator: np.random.Generator) -> NDArray[np.int64]:
    pool, rows = case.pool()
    settings = case.task.settings
    found = moments_confidence(
        pool,
        case.task.n_selected,
        generator=generator,
        mean_weight=settings.mean_weight,
        std_weight=settings.std_weight,
        confidence_weight=settings.confidence_weight,
    )
    return rows[found]


_ALL = (
    _variant(GADC, "gadc"),
    Compared(
        "gadc-no-transport",
        "gadc, no transport",
        "ablation",
        GADC_SOURCE,
        False,
        frozenset(),
        _without_transport,
    ),
    _variant("gadc-no-moments", "gadc, no moments", mean_weight=0.0, std_weight=0.0),
    _variant(
        "gadc-no-confidence",
        "gadc, no confidence",
        needs=["confidence_loss"],
        confidence_weight=0.0,
    ),
    _variant("gadc-balanced", "gadc, balanced (capacity 1)", capacity=1.0),
    _variant(
        "gadc-greedy",
        "gadc, greedy only",
        start="greedy",
        max_swaps=0,
        patience=0,
        proof=False,
    ),
    # "moments-confidence" is gadc without transport, above.
    *(_peer(method) for name, method in METHODS.items() if name != "moments-confidence"),
)

COMPARED: dict[str, Compared] = {method.name: method for method in _ALL}
"""Every method by name, in the order in which tables show them."""


def chosen_methods(names: Sequence[str]) -> list[Compared]:
    """Return methods by name, in the order of tables; `all` stands for every one.

    Raises:
        InputError: `unknown_method`, with the valid ones.
    """
    wanted = set(names)
    if unknown := sorted(wanted - set(COMPARED) - {ALL}):
        raise InputError(
            "unknown_method",
            f"there is no method {', '.join(map(repr, unknown))}; there are {ALL}, "
            f"{', '.join(COMPARED)}",
        )
    if not wanted:
        raise InputError("unknown_method", f"name a method: {ALL}, {', '.join(COMPARED)}")
    return [method for name, method in COMPARED.items() if ALL in wanted or name in wanted]
