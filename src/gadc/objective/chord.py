"""Rule candidates out with approximate solutions: Newton's chord method.

Every candidate starts from the solution of its guide, and steps with its guide's Hessian: O(m n)
a step, nearly all of it matrix products in float32 that candidates share. After each step it is
ruled out if it can't be the best by the interval of `gadc.objective.first_order`; what stays is
solved by Newton's own steps.
"""

import itertools
import math
from dataclasses import dataclass

import torch

from gadc.objective.extension import LEAST_SHARE, MAX_LOG_SCALING, Extension
from gadc.objective.field import Field
from gadc.objective.first_order import Margins
from gadc.objective.guides import Guides, Solved
from gadc.objective.threads import Threads

# Candidates in a block of about this many costs.
CPU_BLOCK_ENTRIES = 262_144
GPU_BLOCK_ENTRIES = 1 << 26
# Steps before what is left is solved exactly.
MAX_STEPS = 4
# Candidates that are out are dropped once this share of a block is left.
COMPACT_BELOW = 0.7
# A correction may lengthen a step at most by the inverse of this.
LEAST_SHORTENING = 0.2
# Relative rounding of a cost in float32, generously.
ROUNDING = 1e-5
# Longest step, as the logarithm of a scaling.
MAX_LOG_STEP = 2.0
# Before the first: steps of a candidate's own scaling alone, and the longest of those.
N_OWN_STEPS = 2
MAX_OWN_STEP = 8.0


@dataclass(frozen=True)
class Narrowed:
    """The candidates that may still be the best.

    Attributes:
        places: Where they stood in the field, [q].
        potentials: Approximate solutions [q, r + 1].
        floors: Lower bounds of their objectives [q].
    """

    places: torch.Tensor
    potentials: torch.Tensor
    floors: torch.Tensor


def narrow(
    extension: Extension,
    guides: Guides,
    solved: Solved,
    field: Field,
    newcomers: torch.Tensor,
    *,
    below: float,
    threads: Threads,
) -> Narrowed:
    """Return the candidates that can still be the best below `below`.

    Args:
        extension: The base.
        guides: The class's guides.
        solved: Their solutions beside this base.
        field: The candidates [p].
        newcomers: Potentials [p] of their own rows to start from; overwritten by better ones.
        below: Candidates above this value are of no interest.
        threads: Where blocks of candidates are worked on.
    """
    group = guides.group[field.pool]

    def pursue(places: torch.Tensor, bar: torch.Tensor) -> Pursued:
        return _pursue(
            _Chords(extension, solved, group[places], field.pool[places], newcomers[places]),
            field.keep(places),
            places,
            bar,
        )

    bar = torch.as_tensor(below, dtype=torch.float64, device=group.device)
    order = torch.argsort(group, stable=True)
    # Guides are as good as solved: those that are candidates set the bar for the others.
    is_guide = torch.isin(field.pool[order], guides.images)
    pursued = [pursue(order[is_guide], bar)]
    bar = torch.minimum(bar, pursued[0].bar)
    entries = CPU_BLOCK_ENTRIES if group.device.type == "cpu" else GPU_BLOCK_ENTRIES
    blocks = order[~is_guide].split(max(1, entries // extension.cost.shape[1]))
    pursued += threads.map(lambda block: pursue(block, bar), blocks)
    for block in pursued:
        newcomers[block.tried] = block.newcomers
        bar = torch.minimum(bar, block.bar)
    places, potentials, floors = (
        torch.cat([getattr(block.left, name) for block in pursued])
        for name in ("places", "potentials", "floors")
    )
    possible = floors <= bar
    return Narrowed(places[possible], potentials[possible], floors[possible])


@dataclass(frozen=True)
class Pursued:
    """A block of candidates after its steps.

    Attributes:
        left: Those that may still be the best.
        bar: What the best of them is at most.
        tried: All of them [p], as places in the field.
        newcomers: The potentials of their own rows [p].
    """

    left: Narrowed
    bar: torch.Tensor
    tried: torch.Tensor
    newcomers: torch.Tensor


def _pursue(chords: "_Chords", field: Field, places: torch.Tensor, bar: torch.Tensor) -> Pursued:
    """Take steps with a block of candidates until they are ruled out or nearly solved."""
    newcomers = chords.newcomers
    left = torch.arange(len(places), device=places.device)
    floors = field.floors
    for n_steps in range(MAX_STEPS):
        if not len(left):
            break
        if n_steps:
            chords.step()
        estimate, margin = chords.evaluate()
        estimate += field.rest[left]
        margin += field.rest_error[left]
        newcomers[left] = chords.newcomers
        highest = (estimate + margin).nan_to_num(nan=torch.inf)
        bar = torch.minimum(bar, highest.amin())
        floors = (estimate - margin).nan_to_num(nan=-torch.inf)
        possible = floors <= bar
        # Copying the others costs more than another step with a few that are already out.
        if n_steps == MAX_STEPS - 1 or int(possible.sum()) < COMPACT_BELOW * len(left):
            left, floors = left[possible], floors[possible]
            chords.keep(possible)
    return Pursued(Narrowed(places[left], chords.potentials, floors), bar, places, newcomers)


class _Chords:
    """A block of p candidates on their way, float32; `group` [p] is ascending."""

    def __init__(
        self,
        extension: Extension,
        solved: Solved,
        group: torch.Tensor,
        pool: torch.Tensor,
        newcomers: torch.Tensor,
    ) -> None:
        self.extension, self.solved, self.group = extension, solved, group
        epsilon = extension.problem.epsilon
        self.margins = Margins(solved.steepest)
        self._start = newcomers
        self.log_scaling = (
            (solved.potentials[group] - extension.with_newcomers(newcomers)) / epsilon
        ).float()  # [p, r + 1]
        self.log_scaling[:, -1] = 0.0
        self.costs = extension.cost[pool]  # [p, n]
        column = ((newcomers[:, None] + extension.column) / epsilon).float()
        self.newcomer = (
            torch.sub(column, self.costs, alpha=1.0 / epsilon)
            .clamp_(math.log(LEAST_SHARE), MAX_LOG_SCALING)
            .exp_()
        )
        self._steps: list[torch.Tensor] = []  # [p, r + 1] each
        self._take_first_step()

    def keep(self, mask: torch.Tensor) -> None:
        """Go on with the candidates in `mask` alone."""
        if bool(mask.all()):
            return
        self.margins.keep(mask)
        for name in ("group", "_start", "log_scaling", "costs", "newcomer", "error"):
            setattr(self, name, getattr(self, name)[mask])
        self._steps = [step[mask] for step in self._steps]

    @property
    def newcomers(self) -> torch.Tensor:
        """Potentials of the candidates' own rows, float64 [p]."""
        return self.potentials[:, -1]

    @property
    def potentials(self) -> torch.Tensor:
        """All potentials, the slack's at zero if there is one, float64 [p, r + 1]."""
        extension = self.extension
        potentials = extension.with_newcomers(self._start)
        potentials += extension.problem.epsilon * self.log_scaling.double()
        return potentials - potentials[:, -2:-1] if extension.problem.has_slack else potentials

    def _take_first_step(self) -> None:
        """Scale the own rows until they hold about their mass; then take a step with all rows."""
        extension = self.extension
        wanted, column_mass = extension.masses32[-1], extension.column_mass32
        scaling = self.log_scaling.exp()
        taken = scaling[:, :-1] @ extension.plan32  # [p, n]
        log_own = self.log_scaling[:, -1:]
        for _ in range(N_OWN_STEPS):
            share = self.newcomer * log_own.exp()
            share /= taken + share
            mass = (share @ column_mass)[:, None]
            slope = mass - (share.square_() @ column_mass)[:, None]
            step = (wanted / mass).log() * mass / slope
            log_own += step.clamp_(-MAX_OWN_STEP, MAX_OWN_STEP)
        scaling[:, -1:] = log_own.exp()
        inverse = taken.addcmul_(self.newcomer, scaling[:, -1:]).reciprocal_().mul_(column_mass)
        base = inverse @ extension.plan_and_price[:, : scaling.shape[1] - 1]
        newcomer = inverse.mul_(self.newcomer).sum(1, keepdim=True)
        self.error = extension.masses32 - torch.cat([base, newcomer], 1) * scaling
        self.margins.of(self.error.abs().sum(1))
        self.step()

    def evaluate(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return estimates of the transport costs and margins within which they are, [p] each."""
        extension, solved = self.extension, self.solved
        scaling = self.log_scaling.exp()
        inverse = torch.addmm(
            self.newcomer * scaling[:, -1:], scaling[:, :-1], extension.plan32
        ).reciprocal_()
        inverse *= extension.column_mass32
        base = inverse @ extension.plan_and_price  # [p, 2 r]
        r = len(extension.potentials)
        own = inverse.mul_(self.newcomer)
        newcomer = own.sum(1, keepdim=True)
        price = own.mul_(self.costs).sum(1) * scaling[:, -1]
        there = torch.cat([base[:, :r], newcomer], 1) * scaling
        self.error = extension.masses32 - there  # [p, r + 1]
        cost = (base[:, r:] * scaling[:, :-1]).sum(1) + price
        estimate = cost + (solved.slope[self.group] * self.error).sum(1)
        margin = self.margins.of(self.error.abs().sum(1)) + ROUNDING * cost.abs()
        return estimate.double(), margin.double()

    def step(self) -> None:
        """Take a step with the guides' Hessians, corrected by what the last steps have shown.

        Source: Broyden 1965, in the form that keeps the steps alone (Kelley 1995, section 7.3).
        """
        guides, sizes = torch.unique_consecutive(self.group, return_counts=True)
        pairs = zip(guides.tolist(), self.error.split(sizes.tolist()), strict=True)
        step = torch.cat([errors @ self.solved.inverse[guide] for guide, errors in pairs])
        for before, after in itertools.pairwise(self._steps):
            step += after * _along(before, step)
        if self._steps:
            step /= (1.0 - _along(self._steps[-1], step)).clamp_(min=LEAST_SHORTENING)
        self._steps.append(step.clamp_(-MAX_LOG_STEP, MAX_LOG_STEP))
        self.log_scaling += self._steps[-1]


def _along(direction: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return the coordinate of each vector along its direction, [p, 1]."""
    squares = direction.square().sum(1, keepdim=True)
    return (direction * vectors).sum(1, keepdim=True) / squares.clamp_(min=1e-30)
