"""One look at a base set: the best image to add to it, without solving every one."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gadc.objective.chord import narrow
from gadc.objective.differences import Seen
from gadc.objective.extension import Extension
from gadc.objective.field import Field
from gadc.objective.first_order import Sensitivity
from gadc.objective.guides import Guides
from gadc.objective.linear_bound import linear_bounds
from gadc.objective.newton_stack import Rule, solve
from gadc.objective.starts import Starts
from gadc.objective.threads import Threads
from gadc.objective.transport import Problem

# Values within this share of the scale count as equal; the lower index then wins.
TIE = 1e-9
# The linear bound is left out for sets as large as one where it ruled out less than this share.
LEAST_RULED_OUT = 0.1
# Guides pay where there are this many times as many candidates.
CANDIDATES_PER_GUIDE = 8
# Beside smaller sets the linear bound rules out most, Newton's own steps cost little, and what
# changes with one image more is too much for a neighbour to tell.
LEAST_GUIDED = 9
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


@dataclass(frozen=True)
class Look:
    """Looks at one base after the other; `starts` alone changes.

    Attributes:
        problem: Settings of the transport problem.
        cost: [n_images, n], float32.
        scale: The typical cost.
        rest_of: The objective's other terms.
        guides: The class's guides.
    """

    problem: Problem
    cost: torch.Tensor
    scale: float
    rest_of: RestOf
    guides: Guides

    def best(
        self,
        extension: Extension,
        pool: np.ndarray,
        below: float,
        starts: Starts,
        threads: Threads,
    ) -> Addition:
        """Return the best addition of all, if it stays below `below`."""
        candidates = torch.as_tensor(pool, dtype=torch.int64, device=self.cost.device)
        rest, error = self.rest_of(extension.base, candidates, True)
        field = Field(candidates, rest, error, floors=rest - error)
        field = field.keep(field.floors < below)
        if extension.is_bare:
            return self._best_alone(field, below, len(pool))
        field = self._bounded(extension, field, below, starts)
        if not self._guides_pay(extension, field):
            potentials = extension.with_newcomers(starts.potentials(field.pool))
            return self._solve(extension, field, potentials, None, below, len(pool))
        before = starts.met(extension, self.guides.images)
        solved = self.guides.beside(extension, field.pool, starts)
        # A candidate's own potential has probably moved like its guide's.
        moved = (solved.potentials[:, -1] - before[solved.which]).nan_to_num(nan=0.0)
        newcomers = starts.potentials(field.pool) + moved[solved.place]
        guided = solved.potentials[solved.place]  # [p, r + 1]
        differences, shown = starts.differences.beside(extension.base, field.pool, guided.shape[1])
        potentials = guided + differences
        potentials[:, -1] = torch.where(shown.isfinite(), potentials[:, -1], newcomers)
        narrowed = narrow(
            extension,
            solved,
            field,
            potentials,
            shown=shown,
            first=torch.isin(field.pool, self.guides.images),
            below=below,
            threads=threads,
        )
        starts.remember(field.pool, potentials[:, -1])
        starts.remember_differences(
            Seen(extension.base, field.pool, (potentials - guided).float(), shown)
        )
        field = dataclasses.replace(field.keep(narrowed.places), floors=narrowed.floors)
        return self._solve(
            extension, field, potentials[narrowed.places], solved.sensitivity, below, len(pool)
        )

    def _guides_pay(self, extension: Extension, field: Field) -> bool:
        return (
            self.problem.has_slack
            and len(extension.base) >= LEAST_GUIDED
            and len(field.pool) >= CANDIDATES_PER_GUIDE * len(self.guides.images)
        )

    def extension(self, base: list[int], starts: Starts) -> Extension:
        """Return the base, solved from where its images were last."""
        held = torch.tensor(base, dtype=torch.int64, device=self.cost.device)
        extension = Extension.solved(self.problem, self.cost, held, start=starts.potentials(held))
        starts.remember(held, extension.potentials[: len(held)])
        return extension

    def _bounded(self, extension: Extension, field: Field, below: float, starts: Starts) -> Field:
        """Rule out what the linear bound can, unless it is known to be too weak."""
        newcomers = starts.met(extension, field.pool)
        if len(extension.base) >= starts.linear_pays_below:
            return field
        bounds = linear_bounds(extension, field.pool, newcomers, scale=self.scale)
        field = dataclasses.replace(field, floors=field.floors + bounds)
        hopeful = field.floors < below
        if below < np.inf and int(hopeful.sum()) > (1.0 - LEAST_RULED_OUT) * len(hopeful):
            starts.linear_pays_below = len(extension.base)
        return field.keep(hopeful)

    def _solve(
        self,
        extension: Extension,
        field: Field,
        starts: torch.Tensor,
        sensitivity: Sensitivity | None,
        below: float,
        n_pool: int,
    ) -> Addition:
        """Solve the candidates in the order of their floors while these leave hope."""
        best = Lowest(below, TIE * self.scale)
        order = torch.argsort(field.floors, stable=True)
        n_solved, block = 0, FIRST_BLOCK
        while len(order):
            order = order[field.floors[order] <= best.bar]
            now, order = order[:block], order[block:]
            block = max(FIRST_BLOCK, BLOCK_ENTRIES // self.cost.shape[1])
            some = field.keep(now)
            rule = Rule(best.bar - some.rest + some.rest_error, sensitivity)
            transport, _ = solve(extension, some.pool, starts[now], rule=rule)
            done = torch.nonzero(transport.isfinite())[:, 0]
            n_solved += len(done)
            indices = some.pool[done]
            rest, _ = self.rest_of(extension.base, indices, False)
            best.consider_all(transport[done] + rest, indices)
        return Addition(best.index, best.value, n_pool - n_solved, n_solved)

    def _best_alone(self, field: Field, below: float, n_pool: int) -> Addition:
        """Return the best single image where nothing else takes part in the transport."""
        best = Lowest(below, TIE * self.scale)
        rest, _ = self.rest_of(field.pool[:0], field.pool, False)
        best.consider_all(self.alone(field.pool) + rest, field.pool)
        return Addition(best.index, best.value, n_pool - len(field.pool), len(field.pool))

    def alone(self, pool: torch.Tensor) -> torch.Tensor:
        """Return the transport costs of single images that take everything, [p]."""
        weights = self.problem.column_weights
        if weights is None:
            return self.cost[pool].mean(1, dtype=torch.float64)
        block = max(1, BLOCK_ENTRIES // self.cost.shape[1])
        return torch.cat([self.cost[some].double() @ weights for some in pool.split(block)])


class Lowest:
    """The lowest value so far; between equals, the one with the lowest index."""

    def __init__(self, below: float, tie: float) -> None:
        self._below, self._tie = below, tie
        self.value = np.inf
        self.index: int | None = None

    @property
    def bar(self) -> float:
        """What a candidate may not exceed."""
        return min(self._below, self.value + self._tie)

    def consider(self, value: float, index: int) -> None:
        """Take note of the value of an image."""
        if value >= self._below:
            return
        ties = self.index is not None and abs(value - self.value) <= self._tie
        if (ties and index < (self.index or 0)) or (not ties and value < self.value):
            self.value, self.index = value, index

    def consider_all(self, values: torch.Tensor, indices: torch.Tensor) -> None:
        """Take note of `values` [p] of the images `indices` [p]."""
        for value, index in zip(values.tolist(), indices.tolist(), strict=True):
            self.consider(value, index)
