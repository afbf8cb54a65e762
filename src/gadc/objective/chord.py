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
from gadc.objective.fast_stack import FastStack
from gadc.objective.field import Field
from gadc.objective.first_order import Margins
from gadc.objective.guides import Solved
from gadc.objective.threads import Threads, block_rows

# Candidates in a block of about this many costs.
CPU_BLOCK_ENTRIES = 1 << 20
# Steps before what is left is solved exactly: what then remains is the guides' error.
MAX_STEPS = 3
# Candidates that are out are dropped once this share of a block is left.
COMPACT_BELOW = 0.7
# A correction may lengthen a step at most by the inverse of this.
LEAST_SHORTENING = 0.2
# Longest step, as the logarithm of a scaling.
MAX_LOG_STEP = 2.0


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
    potentials: torch.Tensor,
    *,
    shown: torch.Tensor,
    first: torch.Tensor,
    below: float,
    threads: Threads,
) -> Narrowed:
    """Return the candidates that can still be the best below `below`.

    Args:
        extension: The base.
        solved: The guides of the candidates beside it.
        field: The candidates [p].
        potentials: Where to start, [p, r + 1]; overwritten by better ones.
        shown: See `Starts.differences`, [p]; overwritten likewise.
        first: Those that set the bar for the others, bool [p].
        below: Candidates above this value are of no interest.
        threads: Where blocks of candidates are worked on.
    """

    def pursue(places: torch.Tensor, bar: torch.Tensor) -> Pursued:
        chords = _Chords(
            extension,
            solved,
            solved.place[places],
            field.pool[places],
            potentials[places],
            shown[places],
        )
        return _pursue(chords, field.keep(places), places, bar)

    bar = torch.as_tensor(below, dtype=torch.float64, device=potentials.device)
    order = torch.argsort(solved.place, stable=True)
    pursued = [pursue(block, bar) for block in _blocks(extension, order[first[order]])]
    for block in pursued:
        bar = torch.minimum(bar, block.bar)
    blocks = _blocks(extension, order[~first[order]])
    pursued += threads.map(lambda block: pursue(block, bar), blocks)
    for block in pursued:
        potentials[block.tried], shown[block.tried] = block.potentials, block.shown
        bar = torch.minimum(bar, block.bar)
    places, starts, floors = (
        torch.cat([getattr(block.left, name) for block in pursued])
        for name in ("places", "potentials", "floors")
    )
    possible = floors <= bar
    return Narrowed(places[possible], starts[possible], floors[possible])


def _blocks(extension: Extension, places: torch.Tensor) -> list[torch.Tensor]:
    if not len(places):
        return []
    return list(places.split(block_rows(extension.cost, CPU_BLOCK_ENTRIES)))


@dataclass(frozen=True)
class Pursued:
    """A block of candidates after its steps.

    Attributes:
        left: Those that may still be the best.
        bar: What the best of them is at most.
        tried: All of them [p], as places in the field.
        potentials: Theirs, a step ahead of what was estimated, [p, r + 1].
        shown: See `Margins`, [p].
    """

    left: Narrowed
    bar: torch.Tensor
    tried: torch.Tensor
    potentials: torch.Tensor
    shown: torch.Tensor


def _pursue(chords: "_Chords", field: Field, places: torch.Tensor, bar: torch.Tensor) -> Pursued:
    """Take steps with a block of candidates until they are ruled out or nearly solved."""
    potentials, shown = chords.potentials, chords.margins.shown.clone()
    left = torch.arange(len(places), device=places.device)
    floors = field.floors
    for n_steps in range(MAX_STEPS):
        if not len(left):
            break
        if n_steps:
            chords.step()
        estimate, margin = chords.estimates()
        estimate += field.rest[left]
        margin += field.rest_error[left]
        potentials[left], shown[left] = chords.ahead, chords.margins.shown
        highest = (estimate + margin).nan_to_num(nan=torch.inf)
        bar = torch.minimum(bar, highest.amin())
        floors = (estimate - margin).nan_to_num(nan=-torch.inf)
        possible = floors <= bar
        # Copying the others costs more than another step with a few that are already out.
        if n_steps == MAX_STEPS - 1 or int(possible.sum()) < COMPACT_BELOW * len(left):
            left, floors = left[possible], floors[possible]
            chords.keep(possible)
    narrowed = Narrowed(places[left], potentials[left], floors)
    return Pursued(narrowed, bar, places, potentials, shown)


class _Chords(FastStack):
    """A block of p candidates on their way; `place` [p], of their guides, is ascending.

    Where `shown` [p], see `Starts.differences`, says that one is unknown, all take a first step.
    """

    def __init__(
        self,
        extension: Extension,
        solved: Solved,
        place: torch.Tensor,
        pool: torch.Tensor,
        potentials: torch.Tensor,
        shown: torch.Tensor,
    ) -> None:
        super().__init__(extension, pool, potentials)
        self.solved, self.place = solved, place
        self.margins = Margins(solved.sensitivity, shown.nan_to_num(nan=0.0))
        self._steps: list[torch.Tensor] = []  # [p, r + 1] each
        if not bool(shown.isfinite().all()):
            self._take_first_step()

    def _take_first_step(self) -> None:
        """Scale the own rows until they hold about their mass; then take a step with all rows."""
        _, _, errors = self.scale_newcomers()
        self.next_step = self._step_for(errors)
        self.margins.of(errors, self.next_step, self.masses)
        self.step()

    def keep(self, mask: torch.Tensor) -> None:
        """Go on with the candidates in `mask` alone."""
        if bool(mask.all()):
            return
        super().keep(mask)
        self.margins.keep(mask)
        self.place, self.next_step = self.place[mask], self.next_step[mask]
        self._steps = [step[mask] for step in self._steps]

    def estimates(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return estimates of the transport costs and margins within which they are, [p] each."""
        estimate, rounding, errors = self.evaluate()
        self.next_step = self._step_for(errors)
        margin = self.margins.of(errors, self.next_step, self.masses)
        return estimate, (margin + rounding).double()

    @property
    def ahead(self) -> torch.Tensor:
        """Potentials after the step to come, [p, r + 1]."""
        step = self.extension.problem.epsilon * _short(self.next_step).double()
        potentials = self.potentials + step
        return potentials - step[:, -2:-1] if self.extension.problem.has_slack else potentials

    def step(self) -> None:
        """Take the next step, corrected by what the last ones have shown.

        Source: Broyden 1965, in the form that keeps the steps alone (Kelley 1995, section 7.3).
        """
        step = self.next_step
        for before, after in itertools.pairwise(self._steps):
            step += after * _along(before, step)
        if self._steps:
            step /= (1.0 - _along(self._steps[-1], step)).clamp_(min=LEAST_SHORTENING)
        self._steps.append(_short(step))
        self.log_scaling += self._steps[-1]

    def _step_for(self, error: torch.Tensor) -> torch.Tensor:
        """Return the guides' inverse Hessians times `error` [p, r + 1]."""
        if error.device.type != "cpu":  # one batched product, no wait for the device
            return torch.bmm(error[:, None], self.solved.inverse[self.place])[:, 0]
        places, sizes = torch.unique_consecutive(self.place, return_counts=True)
        pairs = zip(places.tolist(), error.split(sizes.tolist()), strict=True)
        return torch.cat([errors @ self.solved.inverse[place] for place, errors in pairs])


def _short(step: torch.Tensor) -> torch.Tensor:
    """Return `step` cut to the longest one in every row, and none where it is no number."""
    return step.nan_to_num(nan=0.0).clamp_(-MAX_LOG_STEP, MAX_LOG_STEP)


def _along(direction: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return the coordinate of each vector along its direction, [p, 1]."""
    squares = direction.square().sum(1, keepdim=True)
    return (direction * vectors).sum(1, keepdim=True) / squares.clamp_(min=1e-30)
