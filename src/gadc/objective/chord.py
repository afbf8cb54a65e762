"""Rule candidates out with approximate solutions: Newton's chord method.

Every candidate starts from the solution of its guide, and steps with its guide's Hessian: O(m n)
a step, nearly all of it matrix products in float32 that candidates share. After each step it is
ruled out if it can't be the best by the interval of `gadc.objective.first_order`; what stays is
solved by Newton's own steps.
"""

import itertools
from dataclasses import dataclass

import torch

from gadc.objective.extension import Extension
from gadc.objective.field import Field
from gadc.objective.first_order import Margins
from gadc.objective.guides import Solved
from gadc.objective.newton_stack import scale_rows
from gadc.objective.threads import Threads

# Candidates in a block of about this many costs.
CPU_BLOCK_ENTRIES = 1 << 20
GPU_BLOCK_ENTRIES = 1 << 26
# Steps before what is left is solved exactly: what then remains is the guides' error.
MAX_STEPS = 2
# Candidates that are out are dropped once this share of a block is left.
COMPACT_BELOW = 0.7
# A correction may lengthen a step at most by the inverse of this.
LEAST_SHORTENING = 0.2
# Relative rounding of a cost in float32, generously.
ROUNDING = 1e-5
# Longest step, as the logarithm of a scaling.
MAX_LOG_STEP = 2.0
# Before the first: steps of a candidate's own scaling alone.
N_OWN_STEPS = 2
# Kernels are exponentials: within these logarithms they stay normal numbers in float32.
MAX_LOG_KERNEL = 69.0


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
    solved: Solved,
    field: Field,
    newcomers: torch.Tensor,
    *,
    first: torch.Tensor,
    below: float,
    threads: Threads,
) -> Narrowed:
    """Return the candidates that can still be the best below `below`.

    Args:
        extension: The base.
        solved: The guides of the candidates beside it.
        field: The candidates [p].
        newcomers: Potentials [p] of their own rows to start from; overwritten by better ones.
        first: Those that set the bar for the others, bool [p].
        below: Candidates above this value are of no interest.
        threads: Where blocks of candidates are worked on.
    """

    def pursue(places: torch.Tensor, bar: torch.Tensor) -> Pursued:
        chords = _Chords(
            extension, solved, solved.place[places], field.pool[places], newcomers[places]
        )
        return _pursue(chords, field.keep(places), places, bar)

    bar = torch.as_tensor(below, dtype=torch.float64, device=newcomers.device)
    order = torch.argsort(solved.place, stable=True)
    pursued = [pursue(block, bar) for block in _blocks(extension, order[first[order]])]
    for block in pursued:
        bar = torch.minimum(bar, block.bar)
    blocks = _blocks(extension, order[~first[order]])
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


def _blocks(extension: Extension, places: torch.Tensor) -> list[torch.Tensor]:
    if not len(places):
        return []
    entries = CPU_BLOCK_ENTRIES if places.device.type == "cpu" else GPU_BLOCK_ENTRIES
    return list(places.split(max(1, entries // extension.cost.shape[1])))


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
    """A block of p candidates on their way, float32; `place` [p], of their guides, is ascending."""

    def __init__(
        self,
        extension: Extension,
        solved: Solved,
        place: torch.Tensor,
        pool: torch.Tensor,
        newcomers: torch.Tensor,
    ) -> None:
        self.extension, self.solved, self.place = extension, solved, place
        epsilon = extension.problem.epsilon
        self.margins = Margins(solved.sensitivity)
        newcomers32 = newcomers.float()
        self._start = newcomers = newcomers32.double()  # float32 and float64 mean the same by it
        self.log_scaling = (
            (solved.potentials[place] - extension.with_newcomers(newcomers)) / epsilon
        ).float()  # [p, r + 1]
        self.log_scaling[:, -1] = 0.0
        # Of the newcomers: C_jl - f_j - g_l, and what it makes of their kernels, [p, n].
        self.surplus = extension.cost[pool].sub_(extension.column32).sub_(newcomers32[:, None])
        self.newcomer = (
            (self.surplus * (-1.0 / epsilon)).clamp_(-MAX_LOG_KERNEL, MAX_LOG_KERNEL).exp_()
        )
        self._steps: list[torch.Tensor] = []  # [p, r + 1] each
        self._take_first_step()

    def keep(self, mask: torch.Tensor) -> None:
        """Go on with the candidates in `mask` alone."""
        if bool(mask.all()):
            return
        self.margins.keep(mask)
        for name in ("place", "_start", "log_scaling", "surplus", "newcomer", "next_step"):
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
        scale_rows(log_own, self.newcomer, taken, wanted, column_mass, n_steps=N_OWN_STEPS)
        scaling[:, -1:] = log_own.exp()
        inverse = taken.addcmul_(self.newcomer, scaling[:, -1:]).reciprocal_().mul_(column_mass)
        base = inverse @ extension.plan_and_surplus[:, : scaling.shape[1] - 1]
        newcomer = inverse.mul_(self.newcomer).sum(1, keepdim=True)
        error = extension.masses32 - torch.cat([base, newcomer], 1) * scaling
        self.next_step = self._step_for(error)
        self.margins.of(error, self.next_step, extension.masses32)
        self.step()

    def evaluate(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return estimates of the transport costs and margins within which they are, [p] each."""
        extension = self.extension
        scaling = self.log_scaling.exp()
        inverse = torch.addmm(
            self.newcomer * scaling[:, -1:], scaling[:, :-1], extension.plan32
        ).reciprocal_()
        inverse *= extension.column_mass32
        base = inverse @ extension.plan_and_surplus  # [p, 2 r]
        r = len(extension.potentials)
        own = inverse.mul_(self.newcomer)
        newcomer = own.sum(1, keepdim=True)
        surplus = own.mul_(self.surplus).sum(1) * scaling[:, -1]
        surplus += (base[:, r:] * scaling[:, :-1]).sum(1)
        error = extension.masses32 - torch.cat([base[:, :r], newcomer], 1) * scaling  # [p, r + 1]
        self.next_step = self._step_for(error)
        margin = self.margins.of(error, self.next_step, extension.masses32)
        margin += ROUNDING * (surplus.abs() + extension.problem.epsilon)
        missing = extension.problem.epsilon * (self.log_scaling * error).sum(1)
        estimate = (surplus + missing).double() + self._start * extension.masses[-1]
        return estimate + extension.shared_cost, margin.double()

    def step(self) -> None:
        """Take the next step, corrected by what the last ones have shown.

        Source: Broyden 1965, in the form that keeps the steps alone (Kelley 1995, section 7.3).
        """
        step = self.next_step
        for before, after in itertools.pairwise(self._steps):
            step += after * _along(before, step)
        if self._steps:
            step /= (1.0 - _along(self._steps[-1], step)).clamp_(min=LEAST_SHORTENING)
        self._steps.append(step.clamp_(-MAX_LOG_STEP, MAX_LOG_STEP))
        self.log_scaling += self._steps[-1]

    def _step_for(self, error: torch.Tensor) -> torch.Tensor:
        """Return the guides' inverse Hessians times `error` [p, r + 1]."""
        if error.device.type != "cpu":  # one batched product, no wait for the device
            return torch.bmm(error[:, None], self.solved.inverse[self.place])[:, 0]
        places, sizes = torch.unique_consecutive(self.place, return_counts=True)
        pairs = zip(places.tolist(), error.split(sizes.tolist()), strict=True)
        return torch.cat([errors @ self.solved.inverse[place] for place, errors in pairs])


def _along(direction: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return the coordinate of each vector along its direction, [p, 1]."""
    squares = direction.square().sum(1, keepdim=True)
    return (direction * vectors).sum(1, keepdim=True) / squares.clamp_(min=1e-30)
