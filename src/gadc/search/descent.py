"""Descend: exchange images by estimates, until no exchange that looks good is left.

Proves nothing; `gadc.search.swap` does. Most exchanges are found here, because an estimate of a few
likely candidates costs a small part of a look at all.
"""

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from gadc.objective.total import Objective
from gadc.search.candidates import Candidates
from gadc.search.counts import Counts

# An exchange must lower the objective by this share of the median cost; values of a descent are
# accurate to about a tenth of it.
LEAST_GAIN = 1e-6
# What may replace an image: so many that are nearest to it, and those that the whole set gains most
# by.
N_NEAREST = 48
N_WELCOME = 24
# Chosen images that an exchange nearby may have given a reason to move.
N_NEIGHBOURS = 4
# Of a descent that shall leave nothing. Its last look is at about this share of the class, where
# that is more: of 1,728 images and more.
FULL_BREADTH = 2
WIDE_SHARE = 0.125
# Places looked at together; the number does not depend on the cores, so that the result doesn't.
PLACES_TOGETHER = 4
# Of subsets as small as this, all at once: beside so few rows many candidates share a step's cost.
FEW_PLACES = 12


@dataclass(frozen=True)
class Descended:
    """A subset after a descent.

    Attributes:
        indices: [k], each in the place of the image it replaced.
        value: The objective, to about a tenth of `LEAST_GAIN`.
        counts: The work done.
    """

    indices: list[int]
    value: float
    counts: Counts


def descend(
    objective: Objective,
    indices: list[int],
    candidates: Candidates,
    *,
    value: float | None = None,
    touched: Iterable[int] | None = None,
    max_swaps: int | None = None,
    breadth: int = 1,
    welcome: np.ndarray | None = None,
    known: Collection[frozenset[int]] = (),
) -> Descended:
    """Improve `indices` by exchanges that look good.

    Args:
        objective: What is minimised.
        indices: The subset to start from.
        candidates: Which images may be chosen, and which must stay.
        value: Their objective; default: it is computed.
        touched: Images, chosen or not, near which the subset has changed since the last descent;
            only places near them are looked at. Default: all places.
        max_swaps: Stop after this many exchanges; default: never.
        breadth: So many times as many images as usual may replace one.
        welcome: Images that may replace any chosen one, wherever they lie; default: those whose
            addition to the whole set would gain most.
        known: Subsets where descents have ended before; this one ends there too.

    Source: the queue of touched places is the don't-look bits of Bentley 1992, "Fast algorithms
    for geometric traveling salesman problems".
    """
    chosen = list(indices)
    value = objective.value(chosen) if value is None else value
    counts = Counts()
    free = [place for place, index in enumerate(chosen) if index not in set(candidates.keep)]
    near = free if touched is None else _places_near(objective, chosen, touched)
    queue = deque(place for place in near if place in set(free))
    if not queue:
        return Descended(chosen, value, counts)
    if welcome is None:
        welcome = _most_welcome(objective, chosen, candidates, breadth * N_WELCOME)
    n_together = FEW_PLACES if len(chosen) <= FEW_PLACES else PLACES_TOGETHER
    least_gain = LEAST_GAIN * objective.scale
    while (
        queue
        and (max_swaps is None or counts.n_swaps < max_swaps)
        and frozenset(chosen) not in known
    ):
        places = [queue.popleft() for _ in range(min(n_together, len(queue)))]
        is_free = candidates.is_allowed(chosen)
        pools = []
        for near in objective.nearest([chosen[place] for place in places], breadth * N_NEAREST):
            pool = np.union1d(near, welcome)
            pools.append(pool[is_free[pool]])
        found = objective.likely_exchanges(chosen, places, pools, below=value - least_gain)
        for addition in found:
            counts = counts.plus(addition)
        best = min(range(len(places)), key=lambda i: found[i].value)
        index = found[best].index
        if index is None:
            continue
        queue.extendleft(
            places[i]
            for i in reversed(range(len(places)))
            if i != best and found[i].index is not None
        )
        removed, chosen[places[best]] = chosen[places[best]], index
        value = found[best].value
        counts = counts.plus(Counts(n_swaps=1))
        waiting = set(queue)
        for place in _places_near(objective, chosen, [removed, index]):
            if place in set(free) - waiting:
                queue.append(place)
    return Descended(chosen, value, counts)


def descend_fully(
    objective: Objective,
    indices: list[int],
    candidates: Candidates,
    *,
    value: float,
    max_swaps: int | None = None,
) -> Descended:
    """Descend until looks at all places, the last at much of the class, find nothing more.

    An exchange can give a reason to others far off, which only this finds.

    Args:
        objective: What is minimised.
        indices: The subset to start from.
        candidates: Which images may be chosen, and which must stay.
        value: The objective.
        max_swaps: Stop after this many exchanges; default: never.
    """
    wide = int(WIDE_SHARE * objective.n_images) // (N_NEAREST + N_WELCOME)
    best = Descended(indices, value, Counts())
    breadth = FULL_BREADTH
    while max_swaps is None or best.counts.n_swaps < max_swaps:
        found = descend(
            objective,
            best.indices,
            candidates,
            value=best.value,
            max_swaps=None if max_swaps is None else max_swaps - best.counts.n_swaps,
            breadth=breadth,
        )
        best = Descended(found.indices, found.value, best.counts.plus(found.counts))
        if found.counts.n_swaps:
            breadth = FULL_BREADTH  # what follows from an exchange is mostly near it
        elif breadth < wide:
            breadth = wide
        else:
            break
    return best


def _most_welcome(
    objective: Objective, chosen: list[int], candidates: Candidates, n: int
) -> np.ndarray:
    """Return about the `n` images whose addition to the whole set would gain most."""
    pool = candidates.allowed(chosen)
    return pool if len(pool) <= n else objective.promising(chosen, pool, n)


def _places_near(objective: Objective, chosen: list[int], images: Iterable[int]) -> list[int]:
    """Return the places of the chosen images that are nearest to `images`, ascending."""
    distances = objective.distances(list(images))[:, chosen]
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :N_NEIGHBOURS]
    return [int(place) for place in np.unique(nearest)]
