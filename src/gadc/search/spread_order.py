"""An order of many chosen images whose every start is spread over all of them."""

import heapq

import numpy as np
import torch

from gadc.objective.cost import squared_distances

# So many images have their cost matrix made, 1 GiB; what goes beyond follows in the order given.
MOST_ORDERED = 16_384
ROWS_AT_A_TIME = 1024


def spread_order(features: torch.Tensor, objective: float) -> tuple[np.ndarray, np.ndarray]:
    """Order the chosen images as k-medoids would add them to represent all of them.

    Each step adds the one that lowers the mean distance of the chosen images to the nearest one so
    far most. What one adds only shrinks as others come before it, so most need not be looked at
    again.

    Args:
        features: The chosen images' [m, d].
        objective: That of the whole subset.

    Returns:
        Places in order [m], and gains [m]: by how much each lowers that mean, and the first minus
        its own mean and the objective, so that they sum to minus the objective.

    Source: Kaufman & Rousseeuw 1990 (BUILD); Minoux 1978 (lazy greedy).
    """
    m = len(features)
    n_ordered = min(m, MOST_ORDERED)
    some = features[:n_ordered]
    cost = torch.empty(n_ordered, n_ordered)
    for start in range(0, n_ordered, ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        cost[rows] = squared_distances(some[rows], some)
    distances = cost.numpy()
    np.fill_diagonal(distances, 0.0)

    totals = distances.sum(1, dtype=np.float64)
    first = int(totals.argmin())
    order, gains = [first], [-totals[first]]
    nearest = distances[first].copy()
    # At first nothing is known but that no image can bring more than all its distances.
    waiting = [(-np.inf, place) for place in range(n_ordered) if place != first]
    fresh = np.zeros(n_ordered, dtype=np.int64)  # the size at which a gain was computed
    while waiting:
        gain, place = heapq.heappop(waiting)
        if fresh[place] == len(order):
            order.append(place)
            gains.append(-gain)
            np.minimum(nearest, distances[place], out=nearest)
            continue
        fresh[place] = len(order)
        gain = float(np.maximum(nearest - distances[place], 0.0).sum(dtype=np.float64))
        heapq.heappush(waiting, (-gain, place))
    rest = np.arange(n_ordered, m)
    found = np.concatenate([np.array(gains) / n_ordered, np.zeros(len(rest))])
    found[0] -= objective + found.sum()
    return np.concatenate([np.array(order, dtype=np.int64), rest]), found
