"""A lower bound of the transport cost of "base + j" for every j, in one pass over the costs.

`<C, pi_epsilon>` is the cost of a feasible plan, so it is at least the linear programme's optimum,
which is at least the programme's dual value at any potentials: the base's own, and any potential
of the newcomer. The bound is tight while one image more changes much, as in small sets.
"""

import torch

from gadc.objective.extension import Extension
from gadc.objective.row_scaling import row_steps
from gadc.objective.threads import block_rows

# Newton steps for one candidate's own potential.
N_STEPS = 6
# Longest of them, as the logarithm of a scaling.
MAX_LOG_STEP = 4.0
# Relative rounding of a bound computed in float32, generously: it is taken off the bound.
ROUNDING = 1e-5


def linear_bounds(
    extension: Extension, pool: torch.Tensor, newcomers: torch.Tensor, *, scale: float
) -> torch.Tensor:
    """Return lower bounds [p] of the transport cost of `base + [j]`, float64.

    Args:
        extension: The base.
        pool: The candidates j, [p].
        newcomers: A potential for each [p]; the better, the tighter the bound.
        scale: The typical cost, in which rounding is measured.
    """
    cheapest = (extension.base_costs - extension.potentials[:, None]).amin(0).float()  # [n]
    column_mass = extension.column_mass.float()
    rows = block_rows(extension.cost)
    least = newcomers.new_empty(len(pool))
    for i in range(0, len(pool), rows):
        some = slice(i, i + rows)
        reduced = extension.cost.index_select(0, pool[some]).sub_(newcomers[some, None].float())
        least[some] = torch.minimum(reduced, cheapest, out=reduced) @ column_mass
    shared = extension.potentials @ extension.masses[:-1]
    bounds = shared + newcomers * extension.masses[-1] + least
    # The size of the numbers summed: each lies between -potential and the cheapest.
    size = scale + extension.potentials.abs().mean() + cheapest.abs().mean()
    rounding = ROUNDING * (size + 2.0 * newcomers.abs())
    return torch.where(bounds.isfinite(), bounds - rounding, -torch.inf)


def best_newcomers(extension: Extension, pool: torch.Tensor) -> torch.Tensor:
    """Return the potential [p] at which each candidate's row holds its mass beside the base."""
    rows = block_rows(extension.cost)
    return torch.cat(
        [_best_newcomers(extension, pool[i : i + rows]) for i in range(0, len(pool), rows)]
    )


def _best_newcomers(extension: Extension, pool: torch.Tensor) -> torch.Tensor:
    epsilon = extension.problem.epsilon
    column_mass = extension.column_mass.float()
    wanted = extension.masses[-1].float()
    logits = (extension.column.float() - extension.cost.index_select(0, pool)).div_(epsilon)
    # sigmoid(x) <= e^x: this start holds at most the mass wanted.
    log_u = low = wanted.log() - torch.logsumexp(
        logits + column_mass.log(), 1, keepdim=True
    )  # [p, 1]
    high = torch.full_like(low, torch.inf)
    for _ in range(N_STEPS):
        step = row_steps(torch.sigmoid(logits + log_u), column_mass, wanted)[:, None]
        is_low = step > 0.0
        low, high = torch.where(is_low, log_u, low), torch.where(is_low, high, log_u)
        log_u = log_u + step.clamp_(max=MAX_LOG_STEP)
        # Between clusters of targets the mass hardly moves and a step goes too far.
        inside = (log_u >= low) & (log_u <= high)
        log_u = torch.where(inside, log_u, (low + high) / 2)
    return (log_u * epsilon)[:, 0].double()
