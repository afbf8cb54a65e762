"""Greedy selection: add, again and again, the image that leaves the lowest objective."""

from dataclasses import dataclass

import numpy as np

from gadc.objective.total import Objective
from gadc.search.candidates import Candidates
from gadc.search.counts import Counts

# A start grows among so many images that were the most welcome when all were last looked at, which
# they are again when the subset has grown by this share.
N_SHORTLISTED = 48
GROWTH = 0.25
# Among so few images a start is the exact one.
FEW_IMAGES = 32
# So many images of a subset are put in order exactly.
MOST_EXACT = 12


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


def grow(objective: Objective, n_selected: int, candidates: Candidates) -> list[int]:
    """Choose `n_selected` images about as `greedy` does, by estimates, for much less.

    Args:
        objective: What is minimised.
        n_selected: k; at least the number of images to keep.
        candidates: Which images may be chosen, and which must be.
    """
    if candidates.n_selectable <= FEW_IMAGES:
        return greedy(objective, n_selected, candidates).indices
    indices = list(candidates.keep)
    look_at = 0
    shortlist = np.empty(0, dtype=np.int64)
    while len(indices) < n_selected:
        pool = np.setdiff1d(shortlist, indices)
        if len(indices) >= look_at or not len(pool):
            pool = candidates.allowed(indices)
            look_at = len(indices) + max(1, int(GROWTH * len(indices)))
        shortlist = objective.promising(indices, pool, N_SHORTLISTED)
        indices.append(int(shortlist[0]))
    return indices


def in_order(objective: Objective, indices: list[int], candidates: Candidates) -> Order:
    """Put a subset in the order in which `greedy` would choose it, nearly, and value its prefixes.

    It depends on the subset alone: what the objective knows of others is forgotten.

    Args:
        objective: What is minimised.
        indices: The subset.
        candidates: Which images must be chosen; they come first.
    """
    objective.forget()
    among = candidates.only(indices)
    n_exact = min(len(indices), max(MOST_EXACT, len(among.keep)))
    ordered = greedy(objective, n_exact, among)
    chosen, values, counts = ordered.indices, ordered.values, ordered.counts
    while len(chosen) < len(indices):
        left = among.allowed(chosen)
        best = objective.likely_addition(chosen, left)
        counts = counts.plus(best)
        if best.index is None:
            best = objective.best_addition(chosen, left)
        if best.index is None:
            break
        chosen.append(best.index)
        values.append(best.value)
    return Order(chosen, values, counts)
