"""Exchange: replace one chosen image by another for as long as that lowers the objective."""

import contextlib
from dataclasses import dataclass

from gadc.objective.look import Addition
from gadc.objective.total import Objective
from gadc.search.candidates import Candidates
from gadc.search.counts import Counts
from gadc.search.descent import LEAST_GAIN, descend_fully


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
) -> Exchanged:
    """Improve `indices` by exchanges until none of the k (n - k) possible ones helps.

    All places are visited in turn, a few at a time, and every candidate is ruled out or solved; the
    best improvement found is taken, and a full descent follows. After a full round without one, no
    improving exchange exists.

    Args:
        objective: What is minimised.
        indices: The subset to start from; best one that has descended as far as it can.
        candidates: Which images may be chosen, and which must stay.
        max_swaps: Stop after this many exchanges; default: never.

    Source: GADC, stage II, with the eager acceptance of FasterPAM (Schubert & Rousseeuw 2021).
    """
    chosen, counts = list(indices), Counts()
    value = objective.value(indices)  # those of descents are not accurate enough to prove anything
    kept = set(candidates.keep)
    places = [place for place, index in enumerate(chosen) if index not in kept]
    least_gain = LEAST_GAIN * objective.scale
    turn = 0
    while places:
        n_left = None if max_swaps is None else max_swaps - counts.n_swaps
        if n_left == 0:
            return Exchanged(chosen, value, False, counts)
        places = places[turn:] + places[:turn]
        found = _until_one_helps(objective, chosen, places, candidates, below=value - least_gain)
        for addition in found:
            counts = counts.plus(addition)
        best = min(range(len(found)), key=lambda i: found[i].value)
        index = found[best].index
        if index is None:
            break
        chosen[places[best]], turn = index, len(found)
        counts = counts.plus(Counts(n_swaps=1))
        descended = descend_fully(
            objective,
            chosen,
            candidates,
            value=found[best].value,
            max_swaps=None if n_left is None else n_left - 1,
        )
        chosen, value = descended.indices, objective.value(descended.indices)
        counts = counts.plus(descended.counts)
    return Exchanged(chosen, value, True, counts)


def _until_one_helps(
    objective: Objective,
    chosen: list[int],
    places: list[int],
    candidates: Candidates,
    *,
    below: float,
) -> list[Addition]:
    """Look at one place after another, until one can be better filled; return what was found."""
    pools = [candidates.allowed(chosen)] * len(places)
    found: list[Addition] = []
    with contextlib.closing(objective.best_exchanges(chosen, places, pools, below=below)) as looks:
        for additions in looks:
            found += additions
            if any(addition.index is not None for addition in additions):
                break
    return found
