"""The best image to add to a set, out of many, without solving every one."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gadc.objective.chord import narrow
from gadc.objective.extension import Extension
from gadc.objective.field import Field
from gadc.objective.first_order import Rule
from gadc.objective.guides import Guides, Solved
from gadc.objective.linear_bound import best_newcomers, linear_bounds
from gadc.objective.newton_stack import solve
from gadc.objective.threads import Threads
from gadc.objective.transport import Problem

# Values within this share of the scale count as equal; the lower index then wins.
TIE = 1e-9
# The linear bound is left out for sets as large as one where it ruled out less than this share.
LEAST_RULED_OUT = 0.1
# Guides pay where there are this many times as many candidates.
CANDIDATES_PER_GUIDE = 8
# Candidates solved together: a few first, which lower the bar for the rest, then many.
FIRST_BLOCK = 16
BLOCK_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Addition:
    """The best image to add to a base set, if one is good enough.

    Attributes:
        index: The image, or None when every candidate was ruled out.
        value: The objective of the extended set; infinite without an image.
        n_pruned: Candidates ruled out by a bound.
        n_solved: Candidates whose converged value was computed.
    """

    index: int | None
    value: float
    n_pruned: int
    n_solved: int


# The weighted terms other than transport of `base + [j]`: base [m - 1], pool [p], fast -> values
# and how far they may be off, [p] each; fast ones are float32.
RestOf = Callable[[torch.Tensor, torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor]]


class Additions:
    """Finds best additions, and remembers solutions to start the next ones from.

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
        self._problem, self._cost, self._scale = problem, cost, scale
        self._rest_of, self._guides = rest_of, guides
        # Each image's potential when it was last in a base or tried; NaN: never. It saves time and
        # decides nothing.
        self._potentials = torch.full(
            (len(cost),), torch.nan, dtype=torch.float64, device=cost.device
        )
        self._linear_pays_below = np.inf  # base sizes
        self._threads = Threads(cost.device)

    def best(self, base: list[int], pool: np.ndarray, *, below: float) -> Addition:
        """See `Objective.best_addition`."""
        with self._threads.one_each():
            return self._best(base, pool, below)

    def _best(self, base: list[int], pool: np.ndarray, below: float) -> Addition:
        held = torch.tensor(base, dtype=torch.int64, device=self._cost.device)
        candidates = torch.as_tensor(pool, dtype=torch.int64, device=self._cost.device)
        extension = Extension(self._problem, self._cost, held, start=self._potentials[held])
        self._potentials[held] = extension.potentials[: len(held)]

        rest, error = self._rest_of(held, candidates, True)
        field = Field(candidates, rest, error, floors=rest - error)
        field = field.keep(field.floors < below)
        if extension.is_bare:
            return self._best_alone(field, below, len(pool))
        self._meet(extension, field.pool)
        field = self._bounded(extension, field, below)
        n_guides = len(self._guides.images)
        if self._problem.has_slack and len(field.pool) >= CANDIDATES_PER_GUIDE * n_guides:
            field, starts, solved = self._narrowed(extension, field, below)
        else:
            starts, solved = extension.with_newcomers(self._potentials[field.pool]), None
        return self._solve(extension, field, starts, solved, below, len(pool))

    def _meet(self, extension: Extension, images: torch.Tensor) -> None:
        """Give a potential to those of `images` that have none."""
        unknown = images[~self._potentials[images].isfinite()]
        if len(unknown):
            self._potentials[unknown] = best_newcomers(extension, unknown)

    def _bounded(self, extension: Extension, field: Field, below: float) -> Field:
        """Rule out what the linear bound can, unless it is known to be too weak."""
        if len(extension.base) >= self._linear_pays_below:
            return field
        bounds = linear_bounds(
            extension, field.pool, self._potentials[field.pool], scale=self._scale
        )
        field = dataclasses.replace(field, floors=field.floors + bounds)
        hopeful = field.floors < below
        if below < np.inf and int(hopeful.sum()) > (1.0 - LEAST_RULED_OUT) * len(hopeful):
            self._linear_pays_below = len(extension.base)
        return field.keep(hopeful)

    def _narrowed(
        self, extension: Extension, field: Field, below: float
    ) -> tuple[Field, torch.Tensor, Solved]:
        """Rule out what approximate solutions can; return also where exact ones may start."""
        images = self._guides.images
        self._meet(extension, images)
        before = self._potentials[images]
        solved = self._guides.solve(extension, before, self._threads)
        # A candidate's own potential has probably moved like its guide's.
        moved = (solved.potentials[:, -1] - before).nan_to_num(nan=0.0)
        newcomers = self._potentials[field.pool] + moved[self._guides.group[field.pool]]
        narrowed = narrow(
            extension, self._guides, solved, field, newcomers, below=below, threads=self._threads
        )
        self._potentials[field.pool] = newcomers
        field = dataclasses.replace(field.keep(narrowed.places), floors=narrowed.floors)
        return field, narrowed.potentials, solved

    def _solve(
        self,
        extension: Extension,
        field: Field,
        starts: torch.Tensor,
        solved: Solved | None,
        below: float,
        n_pool: int,
    ) -> Addition:
        """Solve the candidates in the order of their floors while these leave hope."""
        best = _Lowest(below, TIE * self._scale)
        order = torch.argsort(field.floors, stable=True)
        n_solved, block = 0, FIRST_BLOCK
        while len(order):
            order = order[field.floors[order] <= best.bar]
            now, order = order[:block], order[block:]
            block = max(FIRST_BLOCK, BLOCK_ENTRIES // self._cost.shape[1])
            some = field.keep(now)
            ceilings = best.bar - some.rest + some.rest_error
            if solved is None:
                rule = Rule(ceilings)
            else:
                slope = solved.slope[self._guides.group[some.pool]]
                rule = Rule(ceilings, slope, solved.steepest)
            transport = solve(extension, some.pool, starts[now], rule=rule)
            done = transport.isfinite()
            n_solved += int(done.sum())
            values = transport[done] + self._rest_of(extension.base, some.pool[done], False)[0]
            best.consider(values, some.pool[done])
        return Addition(best.index, best.value, n_pool - n_solved, n_solved)

    def _best_alone(self, field: Field, below: float, n_pool: int) -> Addition:
        """Return the best single image where nothing else takes part in the transport."""
        best = _Lowest(below, TIE * self._scale)
        rest, _ = self._rest_of(field.pool[:0], field.pool, False)
        best.consider(self._means(field.pool) + rest, field.pool)
        return Addition(best.index, best.value, n_pool - len(field.pool), len(field.pool))

    def _means(self, pool: torch.Tensor) -> torch.Tensor:
        """Return the mean cost of each image by column weight: its transport on its own, [p]."""
        weights = self._problem.column_weights
        if weights is None:
            return self._cost[pool].mean(1, dtype=torch.float64)
        weights = weights.to(self._cost.device)
        block = max(1, BLOCK_ENTRIES // self._cost.shape[1])
        return torch.cat([self._cost[some].double() @ weights for some in pool.split(block)])


class _Lowest:
    """The lowest value so far; between equals, the one with the lowest index."""

    def __init__(self, below: float, tie: float) -> None:
        self._below, self._tie = below, tie
        self.value = np.inf
        self.index: int | None = None

    @property
    def bar(self) -> float:
        """What a candidate may not exceed."""
        return min(self._below, self.value + self._tie)

    def consider(self, values: torch.Tensor, indices: torch.Tensor) -> None:
        """Take note of `values` [p] of the images `indices` [p]."""
        for value, index in zip(values.tolist(), indices.tolist(), strict=True):
            if value >= self._below:
                continue
            ties = self.index is not None and abs(value - self.value) <= self._tie
            if (ties and index < (self.index or 0)) or (not ties and value < self.value):
                self.value, self.index = value, index
