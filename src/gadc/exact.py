"""Oracles for small problems: the linear programme and brute force. Slow, and plainly right."""

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from gadc.errors import InputError, RunError
from gadc.objective.transport import DEFAULT_CAPACITY, Array, check_capacity
from gadc.objective.weights import as_weights

if TYPE_CHECKING:
    from gadc.objective.total import Objective

MAX_LP_ENTRIES = 2_000_000
MAX_SUBSETS = 2_000_000


@dataclass(frozen=True)
class ExactTransport:
    """An optimal plan [m, n] of the linear programme and its cost."""

    transport_cost: float
    plan: np.ndarray


def exact_partial_transport(
    cost: Array, *, capacity: float = DEFAULT_CAPACITY, column_weights: Array | None = None
) -> ExactTransport:
    """Minimise `<C, pi>` over pi >= 0 with row sums 1/m and column sums at most capacity/n.

    Args:
        cost: [m, n], NumPy or torch; up to two million entries.
        capacity: kappa >= 1.
        column_weights: What takes the place of 1/n: numbers >= 0 [n], of which only the ratios
            count.

    Returns:
        The optimum, by the HiGHS solver.

    Raises:
        InputError: A bad shape or argument, or a problem too large for this oracle.
    """
    costs = np.asarray(cost, dtype=np.float64)
    check_capacity(capacity)
    if costs.ndim != 2 or costs.size == 0 or not np.isfinite(costs).all():
        raise InputError("cost_shape", f"cost must be a finite [m, n]; got {costs.shape}")
    if costs.size > MAX_LP_ENTRIES:
        raise InputError(
            "too_large", f"{costs.size} entries > {MAX_LP_ENTRIES}; use partial_transport"
        )
    m, n = costs.shape
    shares = np.full(n, 1.0 / n)
    if column_weights is not None:
        shares = as_weights(column_weights, n, "column_weights").numpy()
    rows = sparse.kron(sparse.eye(m), np.ones((1, n)), format="csr")
    columns = sparse.kron(np.ones((1, m)), sparse.eye(n), format="csr")
    # Masses times n and costs of at most 1: the solver's tolerances are absolute.
    largest = np.abs(costs).max() or 1.0
    solved = linprog(
        costs.ravel() / largest,
        A_ub=columns,
        b_ub=n * capacity * shares,
        A_eq=rows,
        b_eq=np.full(m, n / m),
        method="highs",
    )
    if solved.status != 0:
        raise RunError("lp_failed", f"the linear programme failed: {solved.message}")
    return ExactTransport(float(solved.fun) * largest / n, solved.x.reshape(m, n) / n)


def best_subset(objective: "Objective", n_selected: int) -> tuple[np.ndarray, float]:
    """Return the best subset of `n_selected` images and its value, by trying all of them.

    Raises:
        InputError: More than two million subsets.
    """
    n = objective.n_images
    if comb(n, n_selected) > MAX_SUBSETS:
        raise InputError(
            "too_large", f"{comb(n, n_selected)} subsets > {MAX_SUBSETS}; use the search"
        )
    subsets = np.array(list(combinations(range(n), n_selected)), dtype=np.int64)
    values = objective.values(subsets)
    best = int(values.argmin())
    return subsets[best], float(values[best])
