"""The best subset of a class so small that all of them can be tried: no search, the optimum."""

import warnings
from itertools import combinations
from math import comb

import numpy as np

from gadc.errors import ConvergenceWarning
from gadc.objective.look import TIE
from gadc.objective.total import Objective
from gadc.search.candidates import Candidates
from gadc.search.counts import Counts
from gadc.search.swap import Exchanged

# Subsets times their images times columns: about as many are solved in the time of a search.
MOST_ENTRIES = 200_000


def n_subsets(candidates: Candidates, n_selected: int) -> int:
    """Return the number of subsets of `n_selected` images, those to keep among them."""
    n_kept = len(candidates.keep)
    return comb(candidates.n_selectable - n_kept, n_selected - n_kept)


def can_all_be_tried(objective: Objective, candidates: Candidates, n_selected: int) -> bool:
    """Tell whether trying every subset takes no longer than searching."""
    entries_of_one = n_selected * objective.cost.shape[1]
    return n_subsets(candidates, n_selected) * entries_of_one <= MOST_ENTRIES


def best_of_all(objective: Objective, candidates: Candidates, n_selected: int) -> Exchanged:
    """Return the subset of the lowest objective, by solving every one; of equals the first.

    Warns:
        ConvergenceWarning: One that has not converged might be better.
    """
    kept = candidates.keep
    others = np.setdiff1d(candidates.allowed([]), kept).tolist()
    added = list(combinations(others, n_selected - len(kept)))
    subsets = np.sort(np.array([[*kept, *some] for some in added], dtype=np.int64), axis=1)
    values, floors = objective.values_and_floors(subsets)
    tie = TIE * objective.scale
    best = int(np.flatnonzero(values <= values.min() + tie)[0])
    # The floor of one that has converged is its value, which is not below the best.
    n_open = int((floors < values[best] - tie).sum()) if len(subsets) > 1 else 0
    if n_open:
        warnings.warn(
            f"{n_open} of {len(subsets)} subsets have not converged and might be better than the "
            "one chosen; raise epsilon",
            ConvergenceWarning,
            stacklevel=2,
        )
    counts = Counts(n_solved=len(subsets))
    return Exchanged(subsets[best].tolist(), float(values[best]), n_open == 0, counts)
