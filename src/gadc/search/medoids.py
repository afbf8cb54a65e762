"""k-medoids: a start that covers the class, at the price of a few passes over its costs.

Minimises `sum_j min_{i in S} C_ij`, transport without capacities, with no other term.
"""

import torch

from gadc.search.candidates import Candidates

# An exchange must gain this share of the total: below, it is rounding.
LEAST_GAIN = 1e-6
# k-medoids is only a start: that many exchanges per medoid are plenty.
MAX_SWAPS_PER_MEDOID = 20


def medoids(cost: torch.Tensor, n_selected: int, candidates: Candidates) -> list[int]:
    """Choose `n_selected` medoids: greedy construction, then best exchanges.

    Every exchange is found in one pass over all (medoid, image) pairs: what an image j would take
    over is counted once for all medoids, and only the correction for targets whose own medoid
    leaves depends on the pair.

    Args:
        cost: [n, n_target], float32.
        n_selected: k.
        candidates: Which images may be chosen, and which must be.

    Returns:
        Indices in the order of construction; exchanged ones in the places of the replaced.

    Source: Kaufman & Rousseeuw 1990 (BUILD); Schubert & Rousseeuw 2021, FasterPAM (the shared
    loss of removal).
    """
    chosen = _build(cost, n_selected, candidates)
    fixed = [place for place, index in enumerate(chosen) if index in set(candidates.keep)]
    for _ in range(MAX_SWAPS_PER_MEDOID * n_selected):
        pool = torch.as_tensor(candidates.allowed(chosen), device=cost.device)
        if not len(pool):
            break
        change, total = _exchange_changes(cost, chosen, pool)
        change[fixed] = torch.inf
        best = int(change.argmin())
        place, j = divmod(best, len(pool))
        if change[place, j] > -LEAST_GAIN * total:
            break
        chosen[place] = int(pool[j])
    return chosen


def _build(cost: torch.Tensor, n_selected: int, candidates: Candidates) -> list[int]:
    """Add, again and again, the image that lowers the summed distance most."""
    chosen: list[int] = []
    nearest = torch.full((cost.shape[1],), torch.inf, device=cost.device)
    for _ in range(n_selected):
        waiting = candidates.keep_left(chosen)
        pool = torch.as_tensor(
            waiting if len(waiting) else candidates.allowed(chosen), device=cost.device
        )
        totals = torch.cat(
            [torch.minimum(cost[rows], nearest).sum(1) for rows in pool.split(_block(cost))]
        )
        chosen.append(int(pool[totals.argmin()]))
        nearest = torch.minimum(nearest, cost[chosen[-1]])
    return chosen


def _exchange_changes(
    cost: torch.Tensor, chosen: list[int], pool: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Return the change of the total for every (medoid, candidate) pair [k, p], and the total."""
    near = cost[chosen]  # [k, n]
    owner = near.argmin(0)  # [n]
    k = len(chosen)
    if k > 1:
        first, second = near.topk(2, 0, largest=False).values  # [n] each
    else:
        first, second = near[0], torch.full_like(near[0], torch.inf)
    membership = torch.nn.functional.one_hot(owner, k).to(cost.dtype)  # [n, k]
    changes = []
    for rows in pool.split(_block(cost)):
        distance = cost[rows]  # [p, n]
        shared = (distance - first).clamp_(max=0.0).sum(1)  # [p]
        correction = torch.minimum(torch.maximum(distance, first), second).sub_(first)
        changes.append(shared + (correction @ membership).T)  # [k, p]
    return torch.cat(changes, 1), float(first.sum(dtype=torch.float64))


def _block(cost: torch.Tensor) -> int:
    return max(1, 262_144 // cost.shape[1]) if cost.device.type == "cpu" else 4096
