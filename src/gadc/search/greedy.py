"""Greedy selection: add, again and again, the image that leaves the lowest objective."""

from dataclasses import dataclass

from gadc.objective.total import Objective
from gadc.search.candidates import Candidates
from gadc.search.counts import Counts


@dataclass(frozen=True)
class Order:
    """Images in the order in which they were chosen.

    Attributes:
        indices: [k].
        values: The objective after each choice, [k].
        counts: The work done.
    """

    indices: list[int]
    values: list[float]
    counts: Counts


def greedy(objective: Objective, n_selected: int, candidates: Candidates) -> Order:
    """Choose `n_selected` images, each the one that lowers the objective most (raises it least).

    The objective is the true one at every size: the mean confidence of the set so far, not the
    newcomer's own.

    Args:
        objective: What is minimised.
        n_selected: k; at least the number of images to keep.
        candidates: Which images may be chosen, and which must be.

    Source: GADC, stage I.
    """
    counts = Counts()
    indices: list[int] = []
    values: list[float] = []
    for _ in range(n_selected):
        waiting = candidates.keep_left(indices)
        pool = waiting if len(waiting) else candidates.allowed(indices)
        best = objective.best_addition(indices, pool)
        counts = counts.plus(best)
        if best.index is None:
            break
        indices.append(best.index)
        values.append(best.value)
    return Order(indices, values, counts)
