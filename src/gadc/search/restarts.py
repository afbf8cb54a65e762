"""Kicks: leave a local optimum by replacing a few images at once, then exchange again."""

import numpy as np

from gadc.objective.total import Objective
from gadc.search.candidates import Candidates
from gadc.search.swap import LEAST_GAIN, Exchanged, exchange

# How many images a kick replaces, in turn. One is what exchange has already tried.
N_REPLACED = (2, 3)


def kick(
    objective: Objective,
    best: Exchanged,
    candidates: Candidates,
    *,
    patience: int,
    generator: np.random.Generator,
    known_optima: frozenset[frozenset[int]] = frozenset(),
) -> Exchanged:
    """Leave `best` for better local optima until `patience` attempts in a row have failed.

    A kick drops two or three random images, adds the best others one by one, and exchanges until
    nothing helps; the result is kept where it is better.

    Args:
        objective: What is minimised.
        best: A subset that no single exchange improves.
        candidates: Which images may be chosen, and which must stay.
        patience: Failed attempts in a row after which to stop; 0 returns `best`.
        generator: Chooses the places that are emptied.
        known_optima: As in `exchange`.

    Returns:
        The best subset seen; its counts include all attempts.

    Source: iterated local search, Lourenco, Martin & Stutzle 2003.
    """
    kept = set(candidates.keep)
    counts = best.counts
    n_attempts = n_failed = 0
    while n_failed < patience:
        places = [place for place, index in enumerate(best.indices) if index not in kept]
        n_replaced = min(N_REPLACED[n_attempts % len(N_REPLACED)], len(places))
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
        improved = exchange(objective, chosen, candidates, known_optima=known_optima)
        counts = counts.plus(improved.counts)
        known_optima |= {frozenset(improved.indices)}
        n_attempts += 1
        n_failed += 1
        if improved.value < best.value - LEAST_GAIN * objective.scale:
            best, n_failed = improved, 0
    return Exchanged(best.indices, best.value, best.is_swap_optimal, counts)
