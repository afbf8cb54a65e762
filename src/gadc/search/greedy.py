"""Greedy selection: add, again and again, the image that leaves the lowest objective."""

from dataclasses import dataclass

import numpy as np

from gadc.objective.total import Objective
from gadc.search.candidates import Candidates
from gadc.search.counts import Counts

# A subset grows exactly up to this size, and among no more images than this.
MOST_EXACT = 8
FEW_IMAGES = 32
# Then by estimates: among so many images that were the most welcome when all were last looked at,
# which they are again when the subset has grown by this share.
N_SHORTLISTED = 48
GROWTH = 0.125


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


def grow(
    objective: Objective, n_selected: int, candidates: Candidates, *, n_exact: int = MOST_EXACT
) -> Order:
    """Choose `n_selected` images nearly as `greedy` does, at a small part of its price.

    Args:
        objective: What is minimised.
        n_selected: k; at least the number of images to keep.
        candidates: Which images may be chosen, and which must be.
        n_exact: How many are chosen exactly as `greedy` does.
    """
    n_exact = max(n_exact, len(candidates.keep))
    if n_selected <= n_exact or candidates.n_selectable <= FEW_IMAGES:
        return greedy(objective, n_selected, candidates)
    grown = greedy(objective, n_exact, candidates)
    indices, values, counts = grown.indices, grown.values, grown.counts
    look_at = 0
    shortlist = np.empty(0, dtype=np.int64)
    while len(indices) < n_selected:
        pool = np.setdiff1d(shortlist, indices)
        if len(indices) >= look_at or not len(pool):
            pool = shortlist = candidates.allowed(indices)
            if len(pool) > N_SHORTLISTED:
                pool = shortlist = objective.promising(indices, pool, N_SHORTLISTED)
            look_at = len(indices) + max(1, int(GROWTH * len(indices)))
        best = objective.likely_addition(indices, pool)
        counts = counts.plus(best)
        if best.index is None:
            best = objective.best_addition(indices, candidates.allowed(indices))
        if best.index is None:
            break
        indices.append(best.index)
        values.append(best.value)
    return Order(indices, values, counts)
