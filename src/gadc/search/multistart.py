"""The whole search for one class: starts, exchanges, and the order of the result."""

import contextlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gadc.errors import InputError
from gadc.objective.total import Objective
from gadc.runtime import generator
from gadc.search.candidates import Candidates, check_size
from gadc.search.counts import Counts
from gadc.search.descent import descend, descend_fully
from gadc.search.every_subset import best_of_all, can_all_be_tried, n_subsets
from gadc.search.greedy import Order, grow, in_order
from gadc.search.medoids import medoids
from gadc.search.restarts import kick
from gadc.search.swap import Exchanged, exchange

Start = Literal["greedy", "medoids", "best"]

# The way down from the greedy set is longer, and its end no better on average.
DEFAULT_START: Start = "medoids"
DEFAULT_PATIENCE = 4


@dataclass(frozen=True)
class SearchResult:
    """The chosen images of one class.

    Attributes:
        order: Indices in the order in which they are best taken one by one, int64 [k].
        gains: Decrease of the objective with each, float64 [k]. The first has minus its own
            objective, so that the gains sum to minus the objective of the whole subset.
        terms: The subset's unweighted terms, their total and the transport's lower bound.
        is_swap_optimal: No exchange of one chosen image, for one that may be chosen, lowers the
            objective.
        start: The start that led here; `all` where every subset was tried.
        start_values: The objective of each start before exchanges.
        counts: The work done, over all starts.
    """

    order: np.ndarray
    gains: np.ndarray
    terms: dict[str, float]
    is_swap_optimal: bool
    start: str
    start_values: dict[str, float]
    counts: Counts

    @property
    def objective(self) -> float:
        """The objective of the whole subset."""
        return self.terms["total"]


def search(
    objective: Objective,
    n_selected: int,
    *,
    start: Start = DEFAULT_START,
    candidates: Candidates | None = None,
    max_swaps: int | None = None,
    patience: int = DEFAULT_PATIENCE,
    proof: bool = True,
    seed: int = 0,
) -> SearchResult:
    """Choose `n_selected` images that minimise `objective`.

    Where the class is so small that every subset can be tried in the time of a search, that is
    done, whatever `start` says, unless `max_swaps` is given.

    Args:
        objective: One class's objective.
        n_selected: k.
        start: Where exchanges begin: from the greedy set, from the k-medoids set, or from both,
            keeping the better end (`best`).
        candidates: Which images may and which must be chosen; default: any may.
        max_swaps: At most this many exchanges per start, and then no kicks; default: until none
            helps.
        patience: Attempts in a row to leave the best local optimum that may fail, twice as many
            for more than 32 images; 0: none is made.
        proof: Rule out or solve every exchange at the end. In large classes that takes most of the
            time, and seldom finds one that helps; a search without it says nothing of being
            swap-optimal.
        seed: Chooses the images that kicks replace.

    Returns:
        The subset, ordered greedily within itself.

    Raises:
        InputError: `n_selected` is out of its bounds, or `start` is unknown.
    """
    candidates = candidates or Candidates(objective.n_images)
    check_size(candidates, objective.n_images, n_selected)
    if patience < 0 or (max_swaps is not None and max_swaps < 0):
        raise InputError(
            "search_limits", f"patience={patience} and max_swaps={max_swaps} must be >= 0"
        )
    if start not in ("greedy", "medoids", "best"):
        raise InputError("unknown_start", f"start={start!r}; use 'greedy', 'medoids' or 'best'")

    objective.forget()
    with objective.one_thread_each():
        if n_subsets(candidates, n_selected) == 1 or (
            max_swaps is None and can_all_be_tried(objective, candidates, n_selected)
        ):
            best = best_of_all(objective, candidates, n_selected)
            return _result(objective, best, candidates, "all", {"all": best.value})
        return _search(objective, n_selected, start, candidates, max_swaps, patience, proof, seed)


def _search(
    objective: Objective,
    n_selected: int,
    start: Start,
    candidates: Candidates,
    max_swaps: int | None,
    patience: int,
    proof: bool,
    seed: int,
) -> SearchResult:
    counts = Counts()
    starts: dict[str, list[int]] = {}
    if start in ("medoids", "best"):
        starts["medoids"] = medoids(
            objective.cost, n_selected, candidates, column_weights=objective.target_weights
        )
    if start in ("greedy", "best"):
        starts["greedy"] = grow(objective, n_selected, candidates)
    start_values = {name: objective.value(chosen) for name, chosen in starts.items()}

    ends = {
        name: descend(objective, chosen, candidates, value=start_values[name], max_swaps=max_swaps)
        for name, chosen in starts.items()
    }
    for end in ends.values():
        counts = counts.plus(end.counts)
    best_start = min(ends, key=lambda name: ends[name].value)
    descended = replace(ends[best_start], counts=counts)
    if max_swaps is None:
        descended = kick(
            objective,
            descended,
            candidates,
            patience=patience,
            generator=generator(seed, "kick"),
        )
        # Kicks look near themselves alone, and an exchange that is left for the proof to find costs
        # the proof another round.
        last = descend_fully(objective, descended.indices, candidates, value=descended.value)
        descended = replace(last, counts=descended.counts.plus(last.counts))
    if not proof:
        found = Exchanged(descended.indices, descended.value, False, descended.counts)
        return _result(objective, found, candidates, best_start, start_values)
    # The proof seldom finds anything; where it does, the order is made anew.
    with contextlib.closing(
        objective.meanwhile(lambda: in_order(objective, descended.indices, candidates))
    ) as order:
        best = exchange(
            objective,
            descended.indices,
            candidates,
            max_swaps=None
            if max_swaps is None
            else max(0, max_swaps - ends[best_start].counts.n_swaps),
        )
        best = replace(best, counts=descended.counts.plus(best.counts))
        in_its_order = next(order) if best.indices == descended.indices else None
    return _result(objective, best, candidates, best_start, start_values, in_its_order)


def _result(
    objective: Objective,
    best: Exchanged,
    candidates: Candidates,
    start: str,
    start_values: dict[str, float],
    ordered: Order | None = None,
) -> SearchResult:
    """Put the chosen images in greedy order, unless that has been done."""
    if ordered is None:
        ordered = in_order(objective, best.indices, candidates)
    return SearchResult(
        order=np.array(ordered.indices, dtype=np.int64),
        gains=-np.diff(np.array(ordered.values), prepend=0.0),
        terms=objective.terms(ordered.indices),
        is_swap_optimal=best.is_swap_optimal,
        start=start,
        start_values=start_values,
        counts=best.counts,
    )
