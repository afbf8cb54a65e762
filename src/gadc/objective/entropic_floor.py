"""What "base + j" is worth at least as an entropic problem, for every j, in one pass over costs.

The entropic problem's dual value at any potentials is a floor of its optimum. Here the base keeps
its potentials and the newcomer's takes a step from where it was last; what then differs between
candidates orders them nearly as their objectives do.
"""

import torch

from gadc.objective.extension import Extension
from gadc.objective.row_scaling import LOG2_E, row_steps
from gadc.objective.threads import Threads, block_rows

# Longest step of a newcomer's potential, as the logarithm of a scaling.
MAX_LOG_STEP = 4.0
# About so many columns of each image of a set, and so many in all, tell who may join it: of a large
# class not all are looked at, which would cost more than all else of a small subset.
COLUMNS_PER_IMAGE, LEAST_COLUMNS = 64, 1024
# A kernel is an exponential; a larger one would overflow float32 after a step. Where it is cut off
# the value may lie above the optimum.
MAX_LOG_KERNEL = 80.0


def entropic_floors(
    extension: Extension, pool: torch.Tensor, newcomers: torch.Tensor, threads: Threads
) -> torch.Tensor:
    """Return floors of the entropic problems' values, less what all have in common, float64 [p].

    Of a class that is large for the base they are those of a part of its columns.

    Args:
        extension: The base, with a slack or at least one image.
        pool: The candidates [p].
        newcomers: Their potentials in some similar set [p].
        threads: Where blocks of candidates are worked on.
    """
    problem, wanted = extension.problem, extension.masses[-1]
    cost, masses, column = extension.cost, extension.column_mass32, extension.column32
    n_columns = max(LEAST_COLUMNS, COLUMNS_PER_IMAGE * extension.m)
    if n_columns < len(masses) and problem.column_weights is None:
        some = _drawn(len(masses), n_columns).to(cost.device)
        cost, column = cost.index_select(1, some), column[some]
        masses = masses[some] * (len(masses) / n_columns)
    unit = LOG2_E / problem.epsilon
    column = column * unit

    def floors(block: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, potentials = block
        log_scaling = potentials / problem.epsilon  # float64 [p]
        kernel = torch.add(column, cost.index_select(0, images), alpha=-unit)
        kernel.add_((potentials * unit).float()[:, None]).clamp_(max=LOG2_E * MAX_LOG_KERNEL)
        kernel.exp2_()
        # Base and slack hold the rest of every column.
        step = row_steps(kernel / (kernel + 1.0), masses, wanted.float())
        step.nan_to_num_(nan=0.0).clamp_(-MAX_LOG_STEP, MAX_LOG_STEP)
        taken = kernel.mul_(step.exp()[:, None]).add_(1.0).log2_() @ masses
        return problem.epsilon * ((log_scaling + step) * wanted - taken / LOG2_E)

    rows = block_rows(cost)
    blocks = list(zip(pool.split(rows), newcomers.split(rows), strict=True))
    return torch.cat(threads.map_blocks(floors, blocks))


def _drawn(n: int, n_drawn: int) -> torch.Tensor:
    """Return some of `n` numbers in their order, the same every time."""
    everything = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return everything[:n_drawn].sort().values
