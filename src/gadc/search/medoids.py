"""k-medoids: a start that covers the class, at the price of a few passes over its costs.

Minimises `sum_j w_j min_{i in S} C_ij`, transport without capacities, with no other term.
"""

import torch

from gadc.search.candidates import Candidates

# An exchange must gain this share of the total: below, it is rounding.
LEAST_GAIN = 1e-6
# k-medoids is only a start: that many exchanges per medoid are plenty.
MAX_SWAPS_PER_MEDOID = 20


def medoids(
    cost: torch.Tensor,
    n_selected: int,
    candidates: Candidates,
    *,
    column_weights: torch.Tensor | None = None,
    start: list[int] | None = None,
) -> list[int]:
    """Choose `n_selected` medoids: greedy construction, then best exchanges.

    Every exchange is found in one pass over all (medoid, image) pairs: what an image j would take
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
    sums = _Sums(None if column_weights is None else column_weights.to(cost))
    chosen = _build(cost, n_selected, candidates, sums) if start is None else list(start)
    fixed = [place for place, index in enumerate(chosen) if index in set(candidates.keep)]
    for _ in range(MAX_SWAPS_PER_MEDOID * n_selected):
        pool = torch.as_tensor(candidates.allowed(chosen), device=cost.device)
        if not len(pool):
            break
        change, total = _exchange_changes(cost, chosen, pool, sums)
        change[fixed] = torch.inf
        best = int(change.argmin())
        place, j = divmod(best, len(pool))
        if change[place, j] > -LEAST_GAIN * total:
            break
        chosen[place] = int(pool[j])
    return chosen


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
    """Add, again and again, the image that lowers the summed distance most."""
    chosen: list[int] = []
    nearest = torch.full((cost.shape[1],), torch.inf, device=cost.device)
    for _ in range(n_selected):
        waiting = candidates.keep_left(chosen)
        pool = torch.as_tensor(
            waiting if len(waiting) else candidates.allowed(chosen), device=cost.device
        )
        totals = torch.cat(
            [sums.of(torch.minimum(cost[rows], nearest)) for rows in pool.split(_block(cost))]
        )
        chosen.append(int(pool[totals.argmin()]))
        nearest = torch.minimum(nearest, cost[chosen[-1]])
    return chosen


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
    for rows in pool.split(_block(cost)):
        distance = cost[rows]  # [p, n]
        shared = sums.of((distance - first).clamp_(max=0.0))  # [p]
        correction = torch.minimum(torch.maximum(distance, first), second).sub_(first)
        changes.append(shared + (correction @ membership).T)  # [k, p]
    return torch.cat(changes, 1), float(sums.of(first[None]))


def _block(cost: torch.Tensor) -> int:
    return max(1, 262_144 // cost.shape[1]) if cost.device.type == "cpu" else 4096
