"""The slow, plain way: exhaustive best-improvement exchange from the greedy start.

Every candidate of every step is solved to convergence; nothing is ruled out. It is what the fast
search is compared with, in time and in objective.
"""

import numpy as np
import torch

from gadc import Objective
from gadc.objective.extension import Extension
from gadc.objective.linear_bound import best_newcomers
from gadc.objective.newton_stack import solve

# Share of the scale that an exchange must gain, as in the fast search.
LEAST_GAIN = 1e-6
BLOCK_ENTRIES = 1_000_000


def best_of_all(objective: Objective, base: list[int]) -> tuple[float, int]:
    """Solve `base + [j]` for every other j; return the lowest objective and its j."""
    device = objective.cost.device
    held = torch.tensor(base, dtype=torch.int64, device=device)
    pool = torch.from_numpy(np.setdiff1d(np.arange(objective.n_images), base)).to(device)
    extension = Extension.solved(objective.problem, objective.cost, held)
    transport = [
        solve(extension, some, extension.with_newcomers(best_newcomers(extension, some)))[0]
        for some in pool.split(max(1, BLOCK_ENTRIES // objective.cost.shape[1]))
    ]
    rest, _ = objective._rest_with(held, pool, False)
    values = torch.cat(transport) + rest
    return values.min().item(), int(pool[values.argmin()])


def exhaustive(objective: Objective, n_selected: int) -> tuple[list[int], float, int]:
    """Return the subset, its objective, and the number of exchanges."""
    chosen: list[int] = []
    value = np.inf
    for _ in range(n_selected):
        value, index = best_of_all(objective, chosen)
        chosen.append(index)
    n_swaps = 0
    while True:
        (lowest, index), place = min(
            (best_of_all(objective, chosen[:place] + chosen[place + 1 :]), place)
            for place in range(n_selected)
        )
        if lowest >= value - LEAST_GAIN * objective.scale:
            return chosen, value, n_swaps
        chosen[place], value, n_swaps = index, lowest, n_swaps + 1


def best_exchange(objective: Objective, chosen: list[int]) -> float:
    """Solve every exchange of one image of `chosen`; return the lowest objective of all."""
    return min(
        best_of_all(objective, chosen[:place] + chosen[place + 1 :])[0]
        for place in range(len(chosen))
    )
