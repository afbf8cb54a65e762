"""Kicks: leave a local optimum by replacing a few images at once, then exchange again."""

import numpy as np

from gadc.objective.total import Objective
from gadc.search.candidates import Candidates
from gadc.search.swap import Exchanged, exchange

# How many images a kick replaces, in turn. One is what exchange has already tried.
N_REPLACED = (2, 3)


def kick(
    objective: Objective,
    best: Exchanged,
    candidates: Candidates,
    *,
    n_kicks: int,
    generator: np.random.Generator,
    max_swaps: int | None = None,
    known_optima: frozenset[frozenset[int]] = frozenset(),
) -> Exchanged:
    """Try `n_kicks` times to leave `best` for a better local optimum.

    A kick drops two or three random images, adds the best others one by one, and exchanges until
    nothing helps; the result is kept where it is better.

    Args:
        objective: What is minimised.
        best: A subset that no single exchange improves.
        candidates: Which images may be chosen, and which must stay.
        n_kicks: Number of attempts.
        generator: Chooses the places that are emptied.
        max_swaps: As in `exchange`, for every attempt.
        known_optima: As in `exchange`.

    Returns:
        The best subset seen; its counts include all attempts.

    Source: iterated local search, Lourenco, Martin & Stutzle 2003.
    """
    kept = set(candidates.keep)
    counts = best.counts
    for attempt in range(n_kicks):
        places = [place for place, index in enumerate(best.indices) if index not in kept]
        n_replaced = min(N_REPLACED[attempt % len(N_REPLACED)], len(places))
        if n_replaced < 2:
            break
        emptied = set(generator.choice(places, n_replaced, replace=False).tolist())
        dropped = [index for place, index in enumerate(best.indices) if place in emptied]
        chosen = [index for place, index in enumerate(best.indices) if place not in emptied]
        for _ in range(n_replaced):
            pool = np.setdiff1d(candidates.allowed(chosen), dropped)
            addition = objective.best_addition(chosen, pool)
            counts = counts.plus(addition)
            if addition.index is None:
                break
            chosen.append(addition.index)
        if len(chosen) < len(best.indices):
            break  # nothing is left to replace them by
        improved = exchange(
            objective, chosen, candidates, max_swaps=max_swaps, known_optima=known_optima
        )
        counts = counts.plus(improved.counts)
        if improved.is_swap_optimal:
            known_optima |= {frozenset(improved.indices)}
        if improved.value < best.value:
            best = improved
    return Exchanged(best.indices, best.value, best.is_swap_optimal, counts)
