"""Looks at many base sets, several at once, each starting from where the ones before ended."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np
import torch

from gadc.forks import Fork, Item, Result, in_forks
from gadc.objective.extension import Extension
from gadc.objective.guides import Guides
from gadc.objective.likely import likely, promising
from gadc.objective.look import Addition, Look, RestOf
from gadc.objective.removal import without
from gadc.objective.starts import Starts
from gadc.objective.threads import Threads
from gadc.objective.transport import Problem

Pools = Sequence[np.ndarray]
# Bases of so small subsets are solved one by one: that costs little, and makes the linear bound,
# which rules out most there, as tight as it can be.
MOST_SOLVED_ALONE = 24
# Places are looked at in lanes, one for so many; each learns from its own places alone.
PLACES_PER_LANE = 25
LEAST_LANES = 2
MOST_LANES = 8


class Additions:
    """Finds best additions and exchanges, and remembers solutions to start the next ones from.

    Args:
        problem: Settings of the transport problem.
        cost: [n_images, n], float32.
        scale: The typical cost.
        rest_of: The objective's other terms.
        guides: The class's guides.
    """

    def __init__(
        self,
        problem: Problem,
        cost: torch.Tensor,
        *,
        scale: float,
        rest_of: RestOf,
        guides: Guides,
    ) -> None:
        self._look = Look(problem, cost, scale, rest_of, guides)
        self._threads = Threads(cost.device)
        self.forget()

    def forget(self) -> None:
        """See `Objective.forget`."""
        cost = self._look.cost
        self._starts = Starts.unknown(len(cost), len(self._look.guides.images), cost.device)
        self._whole: tuple[list[int], Extension] | None = None

    def best(self, base: list[int], pool: np.ndarray, *, below: float) -> Addition:
        """See `Objective.best_addition`."""
        with self._threads.one_each():
            extension = self._look.extension(base, self._starts)
            return self._look.best(extension, pool, below, self._starts, self._threads)

    def likely(self, base: list[int], pool: np.ndarray, *, below: float) -> Addition:
        """See `Objective.likely_addition`."""
        with self._threads.one_each():
            extension = self._solved(base)
            if extension.is_bare:
                return self._look.best(extension, pool, below, self._starts, self._threads)
            return self._likely(extension, None, [pool], below)[0]

    def best_exchanges(
        self, chosen: list[int], places: Sequence[int], pools: Pools, *, below: float
    ) -> Generator[list[Addition], None, None]:
        """See `Objective.best_exchanges`."""
        with self._threads.one_each():
            alone = len(chosen) <= MOST_SOLVED_ALONE
            whole = None if alone else self._solved(chosen)
            if whole is not None:
                _ = whole.overlaps  # computed once, before all lanes ask for them
            one = Threads(self._look.cost.device, 1)

            def lane(first: int, n_lanes: int) -> Iterator[Addition]:
                starts = self._starts.copy()
                for place, pool in zip(places[first::n_lanes], pools[first::n_lanes], strict=True):
                    if whole is None:
                        base = self._look.extension(chosen[:place] + chosen[place + 1 :], starts)
                    else:
                        base = without(whole, place)
                    yield self._look.best(base, pool, below, starts, one)

            # The number does not depend on the cores, so that results don't.
            n_lanes = min(max(LEAST_LANES, len(chosen) // PLACES_PER_LANE), MOST_LANES, len(places))
            lanes = [functools.partial(lane, first, n_lanes) for first in range(n_lanes)]
            with contextlib.closing(self._threads.in_step(lanes)) as steps:
                yield from steps

    def independently(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> list[Result]:
        """See `Objective.independently`."""
        starts, whole = self._starts, self._whole

        def from_here(item: Item) -> tuple[Result, Starts]:
            self._starts, self._whole = starts.copy(), whole
            return function(item), self._starts

        with self._threads.one_each():
            try:
                found = in_forks(from_here, items, self._threads.n_threads)
            finally:
                self._starts, self._whole = starts, whole
            for _, learnt in found:
                starts.learn(learnt)
        return [result for result, _ in found]

    def meanwhile(self, work: Callable[[], Result]) -> Fork[Result]:
        """See `Objective.meanwhile`."""
        return Fork(lambda: [work()], here=self._threads.n_threads == 1)

    def likely_exchanges(
        self, chosen: list[int], places: Sequence[int], pools: Pools, *, below: float
    ) -> list[Addition]:
        """See `Objective.likely_exchanges`."""
        if len(chosen) == 1 and not self._look.problem.has_slack:
            # Without its only image nothing of the subset is left to begin with.
            with contextlib.closing(
                self.best_exchanges(chosen, places, pools, below=below)
            ) as looks:
                return next(looks)
        with self._threads.one_each():
            return self._likely(self._solved(chosen), places, pools, below)

    def _likely(
        self, extension: Extension, places: Sequence[int] | None, pools: Pools, below: float
    ) -> list[Addition]:
        return likely(
            self._look,
            extension,
            places,
            pools,
            below=below,
            starts=self._starts,
            threads=self._threads,
        )

    def promising(self, base: list[int], pool: np.ndarray, n: int) -> np.ndarray:
        """See `Objective.promising`."""
        with self._threads.one_each():
            extension = self._solved(base)
            if extension.is_bare:
                candidates = torch.as_tensor(pool, dtype=torch.int64, device=extension.cost.device)
                rest, _ = self._look.rest_of(extension.base, candidates, True)
                values = self._look.alone(candidates) + rest
                found = candidates[torch.argsort(values, stable=True)[:n]]
            else:
                found = promising(self._look, extension, pool, n, self._starts, self._threads)
        return np.asarray(found.cpu().numpy())

    def one_thread_each(self) -> contextlib.AbstractContextManager[None]:
        """See `Objective.one_thread_each`."""
        return self._threads.one_each()

    def _solved(self, chosen: list[int]) -> Extension:
        """Return a set, which one call after another asks for, solved; the last one is kept.

        Bases that lack one of it are made from it at little cost.
        """
        if self._whole is None or self._whole[0] != chosen:
            self._whole = list(chosen), self._look.extension(chosen, self._starts)
        return self._whole[1]
