"""The selection from one class: what `condense` and `GeometryAwareSelector` have in common."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.errors import RunError
from gadc.objective import Objective
from gadc.objective.total import DEFAULT_MEAN_WEIGHT, DEFAULT_STD_WEIGHT, Units
from gadc.objective.transport import DEFAULT_CAPACITY, DEFAULT_RELATIVE_EPSILON
from gadc.search import Candidates, Nested, Start, search_nested
from gadc.search.counts import Counts
from gadc.search.multistart import DEFAULT_PATIENCE
from gadc.search.nested import nested_sizes

# Above this error of the subset's row masses (their sum is 1) its objective is no result.
MAX_ROW_ERROR = 1e-3


@dataclass(frozen=True)
class ClassSettings:
    """How every class is selected from; see `Objective` and `search_nested`."""

    start: Start = "best"
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
        features: [n, d].
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
    features: NDArray[np.float32]
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
        start: The start that led here.
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


def class_objective(task: ClassTask) -> Objective:
    """Return what the selection from one class minimises."""
    settings = task.settings
    return Objective(
        task.features,
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
    started = time.monotonic()
    settings = task.settings
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
    if not row_error <= MAX_ROW_ERROR:
        raise RunError(
            "not_converged",
            f"the solver's row error is {row_error:.1e} > {MAX_ROW_ERROR:.0e}; raise epsilon "
            f"(now {settings.epsilon})",
        )
    return ClassSelection(
        order=found.order.tolist(),
        gains=found.gains.tolist(),
        terms=found.terms,
        scale=objective.scale,
        is_swap_optimal=found.is_swap_optimal,
        has_converged=row_error <= objective.problem.tol,
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


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Let torch use one CPU thread.

    More threads split sums differently, which changes last digits; and on shared cores the
    many small steps of a search get slower by waiting for each other.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
