"""Good images for a place, found by estimates: a small part of the price of a look at all.

Nothing is proven here. Candidates for several places of one set are worked on together: all that
tells them apart is which row of the set's transport plan they do without.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gadc.objective.entropic_floor import entropic_floors
from gadc.objective.extension import Extension
from gadc.objective.fast_stack import FastStack
from gadc.objective.look import TIE, Addition, Look, Lowest
from gadc.objective.newton_stack import Race, solve
from gadc.objective.resting import resting_estimates
from gadc.objective.starts import Starts
from gadc.objective.threads import Threads, block_rows

# The best of so many, those of the lowest estimates, is taken.
N_LIKELY = 4
# Of many more candidates that may join a set only so many are estimated, those with the lowest
# floors.
N_PROMISING = 96
FLOORS_PAY = 2.0
# Newton steps of an estimate: more than one while its row masses are off, in sum, by more than this
# share of what one image holds. Such estimates are too low by up to a tenth of the scale over m.
MAX_STEPS = 3
ROUGH = 0.3
# Others are seldom off by more than this share of the scale over m.
DOUBT = 0.002
# Row masses of those that are solved are right to this, and their costs to about 1e-7 of the scale.
TOL = 1e-5
# Of exchanges, while the others rest, they are seldom too high by more than this share of epsilon
# over m.
RESTING_DOUBT = 0.2


@dataclass(frozen=True)
class Vacancies:
    """Places to fill and who may, one after the other.

    Attributes:
        pool: The candidates [p].
        which: For each the vacancy, from 0, ascending [p].
        dropped: For each the row of the base that is left out, [p]; None: none is.
        rest: The objective's terms other than transport, nearly, [p].
    """

    pool: torch.Tensor
    which: torch.Tensor
    dropped: torch.Tensor | None
    rest: torch.Tensor

    @classmethod
    def of(
        cls,
        look: Look,
        extension: Extension,
        places: Sequence[int] | None,
        pools: Sequence[np.ndarray],
    ) -> "Vacancies":
        """Return those of `places` of the base, or with None one beside them all."""
        sizes = [len(pool) for pool in pools]
        device = look.cost.device
        every = np.stack([np.concatenate(pools), np.repeat(np.arange(len(pools)), sizes)])
        pool, which = torch.as_tensor(every, dtype=torch.int64, device=device)
        dropped = None if places is None else torch.as_tensor(places, device=device)[which]
        rest = _rest_of_each(look, extension, places, pool.split(sizes), fast=True)
        return cls(pool, which, dropped, rest)

    def keep(self, places: torch.Tensor) -> "Vacancies":
        """Return the candidates at `places` alone."""
        dropped = None if self.dropped is None else self.dropped[places]
        return Vacancies(self.pool[places], self.which[places], dropped, self.rest[places])


def likely(
    look: Look,
    extension: Extension,
    places: Sequence[int] | None,
    pools: Sequence[np.ndarray],
    *,
    below: float,
    starts: Starts,
    threads: Threads,
) -> list[Addition]:
    """Return for each vacancy the best of the few images that look best.

    Args:
        look: The class.
        extension: The base, not a bare one.
        places: Of the base's images that are replaced, one at a time; None: one image joins them.
        pools: The candidates for each place; or those that may join.
        below: Who can't stay below this value is of no interest.
        starts: Where to start; learns.
        threads: Where blocks of candidates are worked on.
    """
    vacancies = Vacancies.of(look, extension, places, pools)
    # With `below` infinite, those whose estimate is too, because there is none, are hopeful.
    bar = below + DOUBT * look.scale / (extension.m - (places is not None))
    vacancies, values, potentials = _estimates(
        look, extension, vacancies, N_LIKELY, N_PROMISING, bar, starts, threads
    )
    ranked = torch.argsort(values, stable=True)
    ranked = ranked[torch.argsort(vacancies.which[ranked], stable=True)]
    which = vacancies.which[ranked]
    rank = torch.arange(len(which), device=which.device) - torch.searchsorted(which, which)
    few = ranked[torch.nonzero((rank < N_LIKELY) & (values[ranked] <= bar))[:, 0]]
    best = [Lowest(below, TIE * look.scale) for _ in pools]
    n_solved = [0] * len(pools)
    if len(few):
        tried = vacancies.keep(few)
        race = Race(below - tried.rest, tried.which, len(pools), tried.rest)
        costs, solved = solve(
            extension, tried.pool, potentials[few], dropped=tried.dropped, rule=race, tol=TOL
        )
        done = torch.nonzero(costs.isfinite())[:, 0]
        tried, solved = tried.keep(done), solved[done]
        vacancy = tried.which.tolist()
        n_solved = np.bincount(vacancy, minlength=len(pools)).tolist()
        rest = _rest_of_each(look, extension, places, tried.pool.split(n_solved), fast=False)
        images = tried.pool.tolist()
        for i, image, value in zip(vacancy, images, (costs[done] + rest).tolist(), strict=True):
            best[i].consider(value, image)
        # The next set looked at is probably the best of these.
        i = min(range(len(pools)), key=lambda i: best[i].value)
        if best[i].index is not None:
            row = list(zip(vacancy, images, strict=True)).index((i, best[i].index))
            starts.remember(tried.pool[row : row + 1], solved[row, -1:])
            starts.remember(extension.base, solved[row, : len(extension.base)])
    return [Addition(best[i].index, best[i].value, 0, n_solved[i]) for i in range(len(pools))]


def _rest_of_each(
    look: Look,
    extension: Extension,
    places: Sequence[int] | None,
    pools: Sequence[torch.Tensor],
    *,
    fast: bool,
) -> torch.Tensor:
    """Return the terms other than transport of all candidates, vacancy after vacancy, [p]."""
    rests = [extension.potentials[:0]]
    for i, pool in enumerate(pools):
        if len(pool):
            base = extension.base if places is None else extension.others(places[i])
            rests.append(look.rest_of(base, pool, fast)[0])
    return torch.cat(rests)


def promising(
    look: Look,
    extension: Extension,
    pool: np.ndarray,
    n: int,
    starts: Starts,
    threads: Threads,
) -> torch.Tensor:
    """Return about the `n` best additions of `pool` [p] to the base, the best first."""
    vacancies = Vacancies.of(look, extension, None, [pool])
    vacancies, values, _ = _estimates(
        look, extension, vacancies, n, max(N_PROMISING, 2 * n), torch.inf, starts, threads
    )
    return vacancies.pool[torch.argsort(values, stable=True)[:n]]


def _estimates(
    look: Look,
    extension: Extension,
    vacancies: Vacancies,
    n_wanted: int,
    n_estimated: int,
    bar: float,
    starts: Starts,
    threads: Threads,
) -> tuple[Vacancies, torch.Tensor, torch.Tensor]:
    """Return the candidates, about their objectives [p], and their potentials [p, r + 1].

    Of those that join the base, only the `n_estimated` of the lowest entropic floors. Of those that
    take a place, only who may not be above `bar` takes a step of all rows. Rough estimates are
    refined where they are not above it, nor, of those that join, above `n_wanted` others that
    aren't rough.
    """
    newcomers = starts.met(extension, vacancies.pool)
    if vacancies.dropped is None and len(vacancies.pool) > FLOORS_PAY * n_estimated:
        floors = entropic_floors(extension, vacancies.pool, newcomers, threads)
        order = torch.argsort(floors + vacancies.rest, stable=True)
        lowest = order[:n_estimated].sort().values
        vacancies, newcomers = vacancies.keep(lowest), newcomers[lowest]
    values = torch.full_like(vacancies.rest, torch.inf)
    going = torch.arange(len(vacancies.pool), device=values.device)
    if vacancies.dropped is not None:
        costs, newcomers = resting_estimates(
            extension, vacancies.pool, newcomers, vacancies.dropped, threads
        )
        values = costs + vacancies.rest
        going = going[values <= bar + RESTING_DOUBT * look.problem.epsilon / (extension.m - 1)]
    potentials = extension.with_newcomers(newcomers)

    def stepped(places: torch.Tensor) -> tuple[torch.Tensor, ...]:
        some = vacancies.keep(places)
        stack = FastStack(extension, some.pool, potentials[places], dropped=some.dropped)
        stack.newton_step()
        costs, _, errors = stack.evaluate()
        n_off = errors.abs().sum(1) / stack.masses[-1]
        return costs + some.rest, stack.potentials, n_off

    rows = block_rows(look.cost)
    is_rough = torch.ones_like(values, dtype=torch.bool)
    for _ in range(MAX_STEPS):
        if not len(going):
            break
        _ = extension.inverse_hessian  # computed once, before threads ask for it
        values[going], potentials[going], n_off = (
            torch.cat(tensors)
            for tensors in zip(*threads.map_blocks(stepped, going.split(rows)), strict=True)
        )
        is_rough[going] = n_off > ROUGH
        if vacancies.dropped is None:
            settled = values[~is_rough].sort().values
            bar = min(bar, float(settled[n_wanted - 1])) if len(settled) >= n_wanted else bar
        going = going[is_rough[going] & (values[going] <= bar)]
    starts.remember(vacancies.pool, potentials[:, -1])
    return vacancies, values.nan_to_num(nan=torch.inf), potentials
