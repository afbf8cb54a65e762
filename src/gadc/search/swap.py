"""Exchange: replace one chosen image by another for as long as that lowers the objective."""

from dataclasses import dataclass

from gadc.objective.total import Objective
from gadc.search.candidates import Candidates
from gadc.search.counts import Counts

# An exchange must lower the objective by this share of the median cost; solved values are
# accurate to about a hundredth of it.
LEAST_GAIN = 1e-6


@dataclass(frozen=True)
class Exchanged:
    """A subset after exchanges.

    Attributes:
        indices: [k], each in the place of the image it replaced.
        value: The objective.
        is_swap_optimal: Every possible exchange was ruled out, by bound or by solving it.
        counts: The work done.
    """

    indices: list[int]
    value: float
    is_swap_optimal: bool
    counts: Counts


def exchange(
    objective: Objective,
    indices: list[int],
    candidates: Candidates,
    *,
    max_swaps: int | None = None,
    known_optima: frozenset[frozenset[int]] = frozenset(),
) -> Exchanged:
    """Improve `indices` by exchanges until none of the k (n - k) possible ones helps.

    Places are visited in turn; the best replacement for a place is taken at once. After a full
    round without one, no improving exchange exists.

    Args:
        objective: What is minimised.
        indices: The subset to start from.
        candidates: Which images may be chosen, and which must stay.
        max_swaps: Stop after this many exchanges; default: never.
        known_optima: Subsets already proven optimal; reaching one ends the search.

    Source: GADC, stage II, with the eager acceptance of FasterPAM (Schubert & Rousseeuw 2021).
    """
    chosen = list(indices)
    counts = Counts()
    value = objective.value(chosen)
    kept = set(candidates.keep)
    places = [place for place, index in enumerate(chosen) if index not in kept]
    least_gain = LEAST_GAIN * objective.scale
    n_clean, turn = 0, 0
    while n_clean < len(places):
        if frozenset(chosen) in known_optima:
            break
        if max_swaps is not None and counts.n_swaps >= max_swaps:
            return Exchanged(chosen, value, False, counts)
        place = places[turn % len(places)]
        turn += 1
        base = chosen[:place] + chosen[place + 1 :]
        pool = candidates.allowed(base)
        best = objective.best_addition(base, pool[pool != chosen[place]], below=value - least_gain)
        counts = counts.plus(best)
        if best.index is None:
            n_clean += 1
            continue
        chosen[place], value = best.index, best.value
        counts = counts.plus(Counts(n_swaps=1))
        n_clean = 1  # the best for this place is in it
    return Exchanged(chosen, value, True, counts)
