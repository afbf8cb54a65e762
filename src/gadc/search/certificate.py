"""Between which bounds the transport of a large data set lies, whatever led to its subset.

The plan of the potentials is rounded onto its constraints, as in `gadc.objective.transport`, so its
cost is that of a feasible plan; and the dual value of the linear programme at the same potentials,
over all pairs of a chosen image and a column, is below the cost of every feasible plan. That the
search looked at near images only, and stopped somewhere, makes neither of them less true.

Source: Altschuler, Weed & Rigollet 2017, Algorithm 2 (rounding).
"""

from dataclasses import dataclass

import numpy as np
import torch

from gadc.objective.cost import squared_distances
from gadc.objective.threads import Threads
from gadc.search.landscape import Block, Chosen, Landscape, Sweep
from gadc.search.whole import Terms, Whole

# Chosen images whose costs to a block of columns are held at a time.
ROWS_AT_A_TIME = 2048
# Relative rounding of costs in float32, generously: it is taken off the lower bound.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Certificate:
    """What the transport costs.

    Attributes:
        transport_cost: Of a feasible plan.
        lower_bound: No feasible plan costs less.
        row_error: Summed error of the row masses before the plan was rounded.
    """

    transport_cost: float
    lower_bound: float
    row_error: float


@dataclass(frozen=True)
class _Part:
    room: float  # what the plan leaves of the columns
    centre: torch.Tensor  # sum of room times features [d]
    squares: float  # sum of room times squared norms
    dual: float  # sum of column masses times the lowest reduced cost


def certify(
    whole: Whole,
    landscape: Landscape,
    chosen: Chosen,
    sweep: Sweep,
    terms: Terms,
    threads: Threads,
) -> Certificate:
    """Return the bounds, by one pass over all pairs: 2 m n d flops.

    Args:
        whole: All images.
        landscape: Their transport, solved.
        chosen: The chosen images, with potentials.
        sweep: What was found at these potentials.
        terms: The objective's settings.
        threads: Where blocks are worked on.
    """
    m = len(chosen.images)
    kept = np.minimum(1.0, 1.0 / (m * np.maximum(sweep.masses, np.finfo(float).tiny)))
    parts = threads.map(
        lambda block: _part(block, kept, whole, landscape, chosen, terms), landscape.blocks
    )
    lacking = torch.from_numpy(np.maximum(0.0, 1.0 / m - kept * sweep.masses))
    room = sum(part.room for part in parts)
    cost = float(kept @ sweep.costs)
    if room > 0.0:
        # What rows lack goes to all columns in proportion to their room: costs summed in closed
        # form, by the moments of the room.
        centre = torch.stack([part.centre for part in parts]).sum(0)
        squares = sum(part.squares for part in parts)
        rows = chosen.features.double()
        distances = rows.square().sum(1) * room - 2.0 * rows @ centre + squares
        cost += float(lacking @ distances) / room
    dual = float(chosen.potentials.mean()) + sum(part.dual for part in parts)
    lower_bound = dual - ROUNDING * terms.capacity * whole.scale
    return Certificate(cost, max(0.0, min(lower_bound, cost)), sweep.error)


def _part(
    block: Block,
    kept: np.ndarray,
    whole: Whole,
    landscape: Landscape,
    chosen: Chosen,
    terms: Terms,
) -> _Part:
    columns = whole.read(block.rows)
    found = landscape.shares(columns, block.rows, block.near, chosen)
    taken = torch.from_numpy(kept[block.near]).float() @ found.share
    room = (found.masses * (1.0 - taken.double())).clamp_(min=0.0)
    least = torch.full((len(columns),), 0.0 if terms.has_slack else torch.inf)
    potentials = torch.from_numpy(chosen.potentials).float()
    for start in range(0, len(potentials), ROWS_AT_A_TIME):
        some = slice(start, start + ROWS_AT_A_TIME)
        reduced = squared_distances(chosen.features[some], columns).sub_(potentials[some, None])
        least = torch.minimum(least, reduced.amin(0))
    exact = columns.double()
    return _Part(
        float(room.sum()),
        room @ exact,
        float(room @ exact.square().sum(1)),
        float(found.masses @ least.double()),
    )
