"""The selection from one class: what `condense` and `GeometryAwareSelector` have in common."""

import dataclasses
import functools
import time
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError, RunError
from gadc.objective import Objective
from gadc.objective.total import DEFAULT_MEAN_WEIGHT, DEFAULT_STD_WEIGHT, Units
from gadc.objective.transport import DEFAULT_CAPACITY, DEFAULT_RELATIVE_EPSILON
from gadc.search import Candidates, Nested, Start, search_nested, search_partitioned
from gadc.search.counts import Counts
from gadc.search.landscape import TOL as PARTITION_TOL
from gadc.search.multistart import DEFAULT_PATIENCE, DEFAULT_START
from gadc.search.nested import nested_sizes

# Above this error of the subset's row masses (their sum is 1) its objective is no result.
MAX_ROW_ERROR = 1e-3
# From more images on the search in cells is chosen: the cost matrix would take 1.6 GB and more.
LARGE_CLASS = 20_000

Partition = Literal["auto", "always", "never"]


class LazyRows(Protocol):
    """Features [n, d] of which rows are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and d."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        """Return rows [b, d], by an array of their numbers."""

    def release(self) -> None:
        """Give back the memory of what was read."""


@dataclass(frozen=True)
class ClassSettings:
    """How every class is selected from; see `Objective`, `search_nested` and `is_partitioned`."""

    partition: Partition = "auto"
    start: Start = DEFAULT_START
    max_swaps: int | None = None
    patience: int = DEFAULT_PATIENCE
    proof: bool = True
    nested: Nested | None = None
    seed: int = 0
    capacity: float = DEFAULT_CAPACITY
    epsilon: float = DEFAULT_RELATIVE_EPSILON
    mean_weight: float = DEFAULT_MEAN_WEIGHT
    std_weight: float = DEFAULT_STD_WEIGHT
    confidence_weight: float | None = None
    units: Units = "relative"


@dataclass(frozen=True, eq=False)
class ClassTask:
    """All that a selection depends on.

    Attributes:
        name: The class, for errors.
        features: [n, d]; `LazyRows` only where the class is searched in cells.
        n_selected: k; may be 0.
        settings: The same for all classes.
        target: What to match [t, d]; default: the class itself.
        target_weights: How much each image to match counts [t]; default: all the same.
        confidence_loss: [n], if the term is on.
        keep: Images that must be chosen.
        exclude: Images that may not.
        device: Where to compute.
    """

    name: str
    features: NDArray[np.float32] | LazyRows
    n_selected: int
    settings: ClassSettings
    target: NDArray[np.float32] | None = None
    target_weights: NDArray[np.float64] | None = None
    confidence_loss: NDArray[np.float64] | None = None
    keep: tuple[int, ...] = ()
    exclude: tuple[int, ...] = ()
    device: str = "cpu"


@dataclass(frozen=True)
class ClassSelection:
    """What was selected; plain numbers that JSON holds exactly.

    Attributes:
        order: Rows of the task in the order of selection [k].
        gains: Decrease of the objective by each [k].
        terms: See `Objective.terms`; empty if nothing was selected.
        scale: The median cost.
        is_swap_optimal: No exchange of one image lowers the objective; of nested subsets, of an
            image that is in none of the smaller ones.
        has_converged: The solver reached its tolerance for the subset, and the smaller ones.
        start: The start that led here; `partition` for a search in cells.
        start_values: The objective of each start.
        counts: The work done.
        seconds: How long it took.
        nested: The smaller subsets, if they were asked for, from the smallest on: `n_selected`,
            the first of `order`, and of each `terms` and `is_swap_optimal`.
    """

    order: list[int] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    terms: dict[str, float] = field(default_factory=dict)
    scale: float = 1.0
    is_swap_optimal: bool = True
    has_converged: bool = True
    start: str = "none"
    start_values: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    nested: list[dict[str, Any]] = field(default_factory=list)


def is_partitioned(settings: ClassSettings, n_images: int, *, has_target: bool) -> bool:
    """Tell whether a class is searched in cells, by `gadc.search.search_partitioned`.

    With `auto`, those of more than 20,000 images are, unless they are matched to a target or
    subsets are to be nested, which that search can't do.

    Raises:
        InputError: `partition_not_possible`: it is asked for where it can't be done.
    """
    obstacle = "nested" if settings.nested is not None else "target" if has_target else None
    if settings.partition == "always" and obstacle is not None:
        raise InputError(
            "partition_not_possible",
            f"partition='always' and {obstacle} exclude each other; leave out one of them",
        )
    if settings.partition == "auto":
        return obstacle is None and n_images > LARGE_CLASS
    return settings.partition == "always"


def class_objective(task: ClassTask) -> Objective:
    """Return what the selection from one class minimises."""
    settings = task.settings
    return Objective(
        np.asarray(task.features),
        task.target,
        task.confidence_loss,
        target_weights=task.target_weights,
        capacity=settings.capacity,
        epsilon=settings.epsilon,
        mean_weight=settings.mean_weight,
        std_weight=settings.std_weight,
        confidence_weight=settings.confidence_weight,
        units=settings.units,
        device=task.device,
    )


def select_class(task: ClassTask) -> ClassSelection:
    """Select from one class.

    Raises:
        InputError: Numbers that can't be used.
        RunError: `not_converged`: the solver's error is so large that the objective means nothing.
    """
    if task.n_selected == 0:
        return ClassSelection()
    settings = task.settings
    if is_partitioned(settings, len(task.features), has_target=task.target is not None):
        return _select_in_cells(task)
    started = time.monotonic()
    objective = class_objective(task)
    *smaller, found = search_nested(
        objective,
        nested_sizes(settings.nested, task.n_selected),
        start=settings.start,
        candidates=Candidates(len(task.features), keep=task.keep, exclude=task.exclude),
        max_swaps=settings.max_swaps,
        patience=settings.patience,
        proof=settings.proof,
        seed=settings.seed,
    )
    row_error = max(result.terms["transport_row_error"] for result in (*smaller, found))
    _check_row_error(row_error, settings)
    return ClassSelection(
        order=found.order.tolist(),
        gains=found.gains.tolist(),
        terms=found.terms,
        scale=objective.scale,
        is_swap_optimal=found.is_swap_optimal,
        has_converged=row_error <= objective.problem.tol * objective.problem.capacity,
        start=found.start,
        start_values=found.start_values,
        counts=dataclasses.asdict(
            functools.reduce(Counts.plus, (result.counts for result in (*smaller, found)))
        ),
        seconds=time.monotonic() - started,
        nested=[
            {
                "n_selected": len(result.order),
                "terms": result.terms,
                "is_swap_optimal": result.is_swap_optimal,
            }
            for result in smaller
        ],
    )


def _select_in_cells(task: ClassTask) -> ClassSelection:
    started = time.monotonic()
    settings, features = task.settings, task.features
    found = search_partitioned(
        features,
        task.n_selected,
        target_weights=task.target_weights,
        confidence_loss=task.confidence_loss,
        capacity=settings.capacity,
        epsilon=settings.epsilon,
        mean_weight=settings.mean_weight,
        std_weight=settings.std_weight,
        confidence_weight=settings.confidence_weight,
        units=settings.units,
        candidates=Candidates(len(features), keep=task.keep, exclude=task.exclude),
        seed=settings.seed,
        release=(lambda: None) if isinstance(features, np.ndarray) else features.release,
    )
    result = found.result
    row_error = result.terms["transport_row_error"]
    _check_row_error(row_error, settings)
    return ClassSelection(
        order=result.order.tolist(),
        gains=result.gains.tolist(),
        terms=result.terms,
        scale=found.scale,
        is_swap_optimal=result.is_swap_optimal,
        has_converged=row_error <= PARTITION_TOL,
        start=result.start,
        start_values=result.start_values,
        counts=dataclasses.asdict(result.counts),
        seconds=time.monotonic() - started,
    )


def _check_row_error(row_error: float, settings: ClassSettings) -> None:
    if not row_error <= MAX_ROW_ERROR:
        raise RunError(
            "not_converged",
            f"the solver's row error is {row_error:.1e} > {MAX_ROW_ERROR:.0e}; raise epsilon "
            f"(now {settings.epsilon})",
        )
