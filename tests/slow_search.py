"""The slow, obvious search: every candidate solved from cold. The yardstick of the fast one."""

import numpy as np

from gadc.objective.look import TIE
from gadc.objective.total import Objective
from gadc.search.swap import LEAST_GAIN


def slow_best_addition(objective: Objective, base: list[int]) -> tuple[int, float]:
    """Solve `base + [j]` for every other j; between equals the lowest index wins."""
    pool = [j for j in range(objective.n_images) if j not in base]
    values = objective.values(np.array([[*base, j] for j in pool]))
    best = int(np.flatnonzero(values <= values.min() + TIE * objective.scale)[0])
    return pool[best], float(values[best])


def slow_greedy(objective: Objective, n_selected: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(n_selected):
        chosen.append(slow_best_addition(objective, chosen)[0])
    return chosen


def slow_best_improvement(objective: Objective, start: list[int]) -> tuple[list[int], float]:
    """Exhaustive exchange: in each round, the best of all k (n - k) swaps."""
    chosen, value = list(start), objective.value(start)
    while True:
        swaps = [
            (slow_best_addition(objective, chosen[:i] + chosen[i + 1 :]), i)
            for i in range(len(chosen))
        ]
        (index, best), place = min(swaps, key=lambda swap: swap[0][1])
        if best >= value - LEAST_GAIN * objective.scale:
            return chosen, value
        chosen[place], value = index, best


def sinkhorn(
    cost: np.ndarray, capacity: float, epsilon: float, n_iter: int
) -> tuple[float, np.ndarray]:
    """Run the scaling iterations in the log domain, row update first, column update last.

    Returns the transported cost and the plan, whose rows are only as right as `n_iter` made them.
    """
    m, n = cost.shape
    g = np.zeros(n)
    kernel = -cost / epsilon
    for _ in range(n_iter):
        f = -np.log(m) - np.logaddexp.reduce(g + kernel, axis=1)
        taken = np.logaddexp.reduce(f[:, None] + kernel, axis=0)
        if capacity > 1.0:
            taken = np.logaddexp(taken, np.log(capacity - 1.0) - np.logaddexp.reduce(g))
        g = np.log(capacity / n) - taken
    plan = np.exp(f[:, None] + g + kernel)
    return float((plan * cost).sum()), plan
