"""Converged partial transport as a measure: of any subset, in any space, to any images."""

import torch

from gadc.evaluation.measures import Measure, Undefined
from gadc.evaluation.sample import Sample
from gadc.objective.cost import centre_of, centred, class_costs, cost_scale
from gadc.objective.transport import DEFAULT_RELATIVE_EPSILON, partial_transport

MAX_SELECTED = 2_000
"""Each Newton step solves for so many potentials; 2,000 take 0.3 s."""
MAX_SCALE_ROWS = 5_000
"""The median distance of so many rows is that of all of them, to a fraction of a per cent."""


def transport_cost(selected: Sample, real: Sample) -> float:
    """Return the cost of the plan from a subset to real images, over their median squared distance.

    `<C, plan>` of the converged plan with gadc's default capacity and epsilon, whatever the
    selection was made with: the rows' masses are exact, so that it never is below the optimum of
    the linear programme.

    Args:
        selected: [m, d].
        real: [n, d].

    Raises:
        Undefined: m is above `MAX_SELECTED`, or the solver has not converged.
    """
    if selected.n_rows > MAX_SELECTED:
        raise Undefined(f"not solved for more than {MAX_SELECTED:,} selected images")
    scale = real.once("median squared distance", lambda: _scale(real.rows))
    centre = centre_of(real.rows)
    cost = class_costs(
        selected.rows, real.rows, centred(selected.rows, centre), centred(real.rows, centre)
    )
    found = partial_transport(cost, epsilon=DEFAULT_RELATIVE_EPSILON * scale)
    if not bool(found.converged):
        raise Undefined(f"not converged: the row error is {float(found.row_error):.1e}")
    return float(found.transport_cost) / scale


def _scale(rows: torch.Tensor) -> float:
    step = -(-len(rows) // MAX_SCALE_ROWS)
    some = rows[::step]
    moved = centred(some, centre_of(some))
    return cost_scale(class_costs(some, some, moved, moved).fill_diagonal_(0.0), is_square=True)


TRANSPORT = Measure(
    "transport",
    "Partial transport cost, over the median squared distance",
    "lower",
    "GADC's L_OT, converged (arXiv 2606.05883)",
    transport_cost,
)
