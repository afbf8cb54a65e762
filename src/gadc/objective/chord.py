"""Rule candidates out with approximate solutions: Newton's chord method.

Every candidate starts from the solution of its guide, and steps with its guide's Hessian: O(m n)
a step, nearly all of it matrix products in float32 that candidates share. After each step it is
ruled out if it can't be the best by the interval of `gadc.objective.first_order`; what stays is
solved by Newton's own steps.
"""

import copy
import itertools
from collections.abc import Sequence
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
# Blocks are worked on in about so many queues; in each, what one step leaves goes on together.
N_QUEUES = 4
# A correction may lengthen a step at most by the inverse of this.
LEAST_SHORTENING = 0.2
# Longest step, as the logarithm of a scaling.
MAX_LOG_STEP = 2.0


@dataclass(frozen=True)
class Narrowed:
    """The candidates that may still be the best.

    Attributes:
        places: Where they stood in the field, [q].
        floors: Lower bounds of their objectives [q].
    """

    places: torch.Tensor
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
        shown: See `Seen`, [p], NaN where unknown; overwritten likewise.
        first: Those that set the bar for the others, bool [p].
        below: Candidates above this value are of no interest.
        threads: Where blocks of candidates are worked on.
    """

    def look(chords: _Chords, bar: torch.Tensor) -> torch.Tensor:
        """Keep those that may be the best; return what this is at most."""
        at = chords.at
        estimate, margin = chords.estimates()
        estimate += field.rest[at]
        margin += field.rest_error[at]
        potentials[at], shown[at] = chords.ahead, chords.margins.shown
        bar = torch.minimum(bar, (estimate + margin).nan_to_num(nan=torch.inf).amin())
        chords.floors = (estimate - margin).nan_to_num(nan=-torch.inf)
        chords.keep(chords.floors <= bar)
        return bar

    def pursue(
        blocks: Sequence[torch.Tensor], bar: torch.Tensor
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """Take steps with blocks of candidates until they are ruled out or nearly solved.

        Returns:
            Where those stand that are left, and their floors, and what the best of all is at most.
        """
        left: list[tuple[torch.Tensor, torch.Tensor]] = []
        waiting: list[_Chords] = []
        for number, at in enumerate(blocks, 1):
            chords = _Chords(extension, solved, at, field.pool[at], potentials[at], shown[at])
            bar = look(chords, bar)
            waiting.append(chords)
            # A step of a few takes as long as one of many.
            if number < len(blocks) and sum(len(one.at) for one in waiting) < len(at):
                continue
            going, waiting = _Chords.joined(waiting), []
            going.keep(going.floors <= bar)  # which the last block may have lowered
            for _ in range(MAX_STEPS - 1):
                if len(going.at):
                    going.step()
                    bar = look(going, bar)
            left.append((going.at, going.floors))
        return left, bar

    start = torch.as_tensor(below, dtype=torch.float64, device=potentials.device)
    order = torch.argsort(solved.place, stable=True)
    left, lowered = pursue(_blocks(extension, order[first[order]]), start)
    blocks = _blocks(extension, order[~first[order]])
    in_queue = -(-len(blocks) // N_QUEUES) or 1
    queues = [blocks[i : i + in_queue] for i in range(0, len(blocks), in_queue)]
    pursued = threads.map(lambda queue: pursue(queue, lowered), queues)
    bars = [lowered, *(bar for _, bar in pursued)]
    for more, _ in pursued:
        left += more
    places, floors = (torch.cat(tensors) for tensors in zip(*left, strict=True))
    possible = floors <= torch.stack(bars).amin()
    return Narrowed(places[possible], floors[possible])


def _blocks(extension: Extension, places: torch.Tensor) -> list[torch.Tensor]:
    if not len(places):
        return []
    return list(places.split(block_rows(extension.cost, CPU_BLOCK_ENTRIES)))


class _Chords(FastStack):
    """A block of p candidates on their way; those of one guide stand together.

    Where `shown` [p], see `Seen`, says that one is unknown, all take a first step.

    Attributes:
        at: Where they stand in the field, [p].
        floors: Lower bounds of their objectives, [p].
    """

    # What candidates have, one by one.
    _EACH = (
        "start", "log_scaling", "surplus", "newcomer", "at", "place", "floors", "next_step",
    )  # fmt: skip

    def __init__(
        self,
        extension: Extension,
        solved: Solved,
        at: torch.Tensor,
        pool: torch.Tensor,
        potentials: torch.Tensor,
        shown: torch.Tensor,
    ) -> None:
        super().__init__(extension, pool, potentials)
        self.solved, self.at, self.place = solved, at, solved.place[at]
        self.floors = torch.full_like(self.start, -torch.inf)
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
        which = torch.nonzero(mask)[:, 0]
        if len(which) == len(mask):
            return
        self.margins.keep(which)
        for name in self._EACH:
            setattr(self, name, getattr(self, name)[which])
        self._steps = [step[which] for step in self._steps]

    @classmethod
    def joined(cls, parts: Sequence["_Chords"]) -> "_Chords":
        """Return one block of several that have been estimated as often."""
        if len(parts) == 1:
            return parts[0]
        whole = copy.copy(parts[0])
        for name in cls._EACH:
            setattr(whole, name, torch.cat([getattr(part, name) for part in parts]))
        whole.margins = Margins.joined([part.margins for part in parts])
        n_steps = max(len(part._steps) for part in parts)
        # A step of zeros corrects nothing.
        padded = [
            [torch.zeros_like(part.next_step)] * (n_steps - len(part._steps)) + part._steps
            for part in parts
        ]
        whole._steps = [torch.cat(steps) for steps in zip(*padded, strict=True)]
        return whole

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
