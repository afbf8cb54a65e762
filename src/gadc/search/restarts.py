"""Kicks: leave a local optimum by replacing a few images at once, then descend again."""

import functools
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from gadc.objective.total import Objective
from gadc.search.candidates import Candidates
from gadc.search.counts import Counts
from gadc.search.descent import LEAST_GAIN, N_WELCOME, Descended, descend

# How many images attempts replace that are made from the same subset, on several cores if there
# are; results don't depend on that. One is what exchange has already tried.
N_REPLACED = (2, 3)
# They are replaced by some of so many that look best without them.
N_SHORTLISTED = 48
# Of larger subsets a kick touches a smaller part: twice as many may fail.
FEW_IMAGES = 32
# An attempt that gains less than this share of the objective is kept, but counts as failed.
WORTHWHILE = 3e-4


def kick(
    objective: Objective,
    best: Descended,
    candidates: Candidates,
    *,
    patience: int,
    generator: np.random.Generator,
) -> Descended:
    """Leave `best` for better local optima until `patience` attempts in a row have failed.

    A kick drops two or three random images, adds likely others one by one, and descends; the
    result is kept where it is better.

    Args:
        objective: What is minimised.
        best: A subset that no exchange improves, as far as a descent can tell.
        candidates: Which images may be chosen, and which must stay.
        patience: Failed attempts in a row after which to stop, twice as many for more than 32
            images; they are made in pairs. 0 returns `best`.
        generator: Chooses the places that are emptied.

    Returns:
        The best subset seen; its counts include all attempts.

    Source: iterated local search, Lourenco, Martin & Stutzle 2003.
    """
    kept = set(candidates.keep)
    known = {frozenset(best.indices)}
    n_failed = 0
    most_failed = patience if len(best.indices) <= FEW_IMAGES else 2 * patience
    while n_failed < most_failed and len(best.indices) - len(kept) > 1:
        places = [place for place, index in enumerate(best.indices) if index not in kept]
        emptied = [
            generator.choice(places, min(n_replaced, len(places)), replace=False).tolist()
            for n_replaced in N_REPLACED
        ]
        found = objective.independently(
            functools.partial(_refilled, objective, best.indices, candidates, known), emptied
        )
        counts = best.counts
        for attempt in found:
            counts = counts.plus(attempt.counts)
            known.add(frozenset(attempt.indices))
        better = min(found, key=lambda attempt: attempt.value)
        gain = best.value - better.value
        n_failed = 0 if gain > WORTHWHILE * abs(best.value) else n_failed + len(found)
        if gain > LEAST_GAIN * objective.scale:
            best = better
        best = replace(best, counts=counts)
    return best


def _refilled(
    objective: Objective,
    indices: list[int],
    candidates: Candidates,
    known: Collection[frozenset[int]],
    emptied: list[int],
) -> Descended:
    """Fill some places of a subset with likely other images, and descend, as far as is not known.

    The objective is infinite where too few images are left.
    """
    dropped = [indices[place] for place in emptied]
    chosen = [index for index in indices if index not in dropped]
    allowed = np.setdiff1d(candidates.allowed(chosen), dropped)
    shortlist = objective.promising(chosen, allowed, N_SHORTLISTED)
    if len(shortlist) < len(dropped):
        return Descended(indices, np.inf, Counts())
    chosen.append(int(shortlist[0]))
    for _ in range(len(dropped) - 2):
        chosen.append(int(objective.promising(chosen, np.setdiff1d(shortlist, chosen), 1)[0]))
    addition = objective.likely_addition(chosen, np.setdiff1d(shortlist, chosen))
    counts = Counts().plus(addition)
    if addition.index is None:
        return Descended(indices, np.inf, counts)
    chosen.append(addition.index)
    touched = [*dropped, *chosen[-len(dropped) :]]
    improved = descend(
        objective,
        chosen,
        candidates,
        value=addition.value,
        touched=touched,
        welcome=shortlist[:N_WELCOME],
        known=known,
    )
    return replace(improved, counts=counts.plus(improved.counts))
