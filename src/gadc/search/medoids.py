"""k-medoids: a start that covers the class, at the price of a few passes over its costs.

Minimises `sum_j w_j min_{i in S} C_ij`, transport without capacities, with no other term.
"""

from dataclasses import dataclass

import numpy as np
import torch

from gadc.objective.threads import block_rows
from gadc.search.candidates import Candidates

# An exchange must gain this share of the total: below, it is rounding.
LEAST_GAIN = 1e-6
# k-medoids is only a start: that many exchanges per medoid are plenty.
MAX_SWAPS_PER_MEDOID = 20
# After a look at all images so many that gain most are looked at alone, until none of them gains.
N_MOST_GAINING = 64
# Outdated gains brought up to date together; most steps of the construction need no second batch.
N_UPDATED = 64


def medoids(
    cost: torch.Tensor,
    n_selected: int,
    candidates: Candidates,
    *,
    column_weights: torch.Tensor | None = None,
    start: list[int] | None = None,
) -> list[int]:
    """Choose `n_selected` medoids: greedy construction, then best exchanges.

    The exchanges are found in passes over all (medoid, image) pairs: what an image j would take
    over is counted once for all medoids, and only the correction for targets whose own medoid
    leaves depends on the pair.

    Args:
        cost: [n, n_target], float32.
        n_selected: k.
        candidates: Which images may be chosen, and which must be.
        column_weights: w [n_target]; default: all are equal.
        start: Medoids to exchange; default: those of the greedy construction.

    Returns:
        Indices in the order of construction; exchanged ones in the places of the replaced.

    Source: Kaufman & Rousseeuw 1990 (BUILD); Schubert & Rousseeuw 2021, FasterPAM (the shared
    loss of removal).
    """
    cost = cost.cpu()  # hundreds of small steps, each of which is waited for
    sums = _Sums(None if column_weights is None else column_weights.to(cost))
    chosen = _build(cost, n_selected, candidates, sums) if start is None else list(start)
    fixed = [place for place, index in enumerate(chosen) if index in set(candidates.keep)]
    shortlist = np.empty(0, dtype=np.int64)
    for _ in range(MAX_SWAPS_PER_MEDOID * n_selected):
        found = _best_exchange(cost, chosen, np.setdiff1d(shortlist, chosen), fixed, sums)
        if found is None:
            found = _best_exchange(cost, chosen, candidates.allowed(chosen), fixed, sums)
            if found is None:
                break
            shortlist = found.most_gaining
        chosen[found.place] = found.index
    return chosen


@dataclass(frozen=True)
class _Exchange:
    """The best exchange of a medoid: its place, the image for it, and who else gains most."""

    place: int
    index: int
    most_gaining: np.ndarray


class _Sums:
    """Sums over columns, weighted or plain."""

    def __init__(self, weights: torch.Tensor | None) -> None:
        self._weights = weights

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of each row of `values` [r, n]."""
        return values.sum(1) if self._weights is None else values @ self._weights

    def by_owner(self, owner: torch.Tensor, n_owners: int) -> torch.Tensor:
        """Return the matrix that sums columns by their owner, float32 [n, n_owners]."""
        membership = torch.nn.functional.one_hot(owner, n_owners).float()
        return membership if self._weights is None else membership * self._weights[:, None]


def _build(cost: torch.Tensor, n_selected: int, candidates: Candidates, sums: _Sums) -> list[int]:
    """Add, again and again, the image that lowers the summed distance most.

    What an image gains only shrinks while the set grows, so that what it gained when it was last
    looked at is a bound, and few must be looked at again.

    Source: Minoux 1978, "Accelerated greedy algorithms for maximizing submodular set functions".
    """
    chosen: list[int] = []
    nearest = torch.full((cost.shape[1],), torch.inf)
    gains = torch.full((len(cost),), torch.inf)
    for _ in range(n_selected):
        waiting = candidates.keep_left(chosen)
        pool = torch.from_numpy(waiting if len(waiting) else candidates.allowed(chosen))
        if not chosen:
            totals = torch.cat(
                [sums.of(cost.index_select(0, rows)) for rows in pool.split(block_rows(cost))]
            )
            chosen.append(int(pool[totals.argmin()]))
        else:
            chosen.append(_most_gaining(cost, pool, nearest, gains, sums))
        nearest = torch.minimum(nearest, cost[chosen[-1]])
    return chosen


def _most_gaining(
    cost: torch.Tensor, pool: torch.Tensor, nearest: torch.Tensor, gains: torch.Tensor, sums: _Sums
) -> int:
    """Return the image of `pool` that gains most, of equals the first; bring `gains` up to date."""
    order = pool[torch.argsort(gains[pool], descending=True, stable=True)]
    bounds = gains[order].tolist()
    best, place = -1.0, 0
    for start in range(0, len(order), N_UPDATED):
        if bounds[start] < best:
            break
        rows = order[start : start + N_UPDATED]
        gains[rows] = sums.of((nearest - cost.index_select(0, rows)).clamp_(min=0.0))
        best = max(best, float(gains[rows].max()))
        place = start + N_UPDATED
    seen = order[:place]
    return int(seen[gains[seen] == best].min())


def _best_exchange(
    cost: torch.Tensor, chosen: list[int], pool: np.ndarray, fixed: list[int], sums: _Sums
) -> _Exchange | None:
    """Return the best exchange of a medoid not at `fixed` places, None where none gains."""
    if not len(pool):
        return None
    rows = torch.from_numpy(pool)
    change, total = _exchange_changes(cost, chosen, rows, sums)
    change[fixed] = torch.inf
    place, j = divmod(int(change.argmin()), len(pool))
    if change[place, j] >= -LEAST_GAIN * total:
        return None
    most = torch.argsort(change.amin(0), stable=True)[:N_MOST_GAINING]
    return _Exchange(place, int(pool[j]), pool[most.numpy()])


def _exchange_changes(
    cost: torch.Tensor, chosen: list[int], pool: torch.Tensor, sums: _Sums
) -> tuple[torch.Tensor, float]:
    """Return the change of the total for every (medoid, candidate) pair [k, p], and the total."""
    near = cost[chosen]  # [k, n]
    owner = near.argmin(0)  # [n]
    k = len(chosen)
    if k > 1:
        first, second = near.topk(2, 0, largest=False).values  # [n] each
    else:
        first, second = near[0], torch.full_like(near[0], torch.inf)
    membership = sums.by_owner(owner, k)  # [n, k]
    changes = []
    for rows in pool.split(block_rows(cost)):
        distance = cost.index_select(0, rows)  # [p, n]
        shared = sums.of((distance - first).clamp_(max=0.0))  # [p]
        correction = torch.minimum(torch.maximum(distance, first), second).sub_(first)
        changes.append(shared + (correction @ membership).T)  # [k, p]
    return torch.cat(changes, 1), float(sums.of(first[None]))
