"""What "base + j" is worth at least as an entropic problem, for every j, in one pass over costs.

The entropic problem's dual value at any potentials is a floor of its optimum. Here the base keeps
its potentials and the newcomer's takes a step from where it was last; what then differs between
candidates orders them nearly as their objectives do.
"""

import torch

from gadc.objective.extension import Extension
from gadc.objective.row_scaling import row_steps
from gadc.objective.threads import Threads, block_rows

# Longest step of a newcomer's potential, as the logarithm of a scaling.
MAX_LOG_STEP = 4.0
# A kernel is an exponential; a larger one would overflow float32 after a step. Where it is cut off
# the value may lie above the optimum.
MAX_LOG_KERNEL = 80.0


def entropic_floors(
    extension: Extension, pool: torch.Tensor, newcomers: torch.Tensor, threads: Threads
) -> torch.Tensor:
    """Return floors of the entropic problems' values, less what all have in common, float64 [p].

    Args:
        extension: The base, with a slack or at least one image.
        pool: The candidates [p].
        newcomers: Their potentials in some similar set [p].
        threads: Where blocks of candidates are worked on.
    """
    problem, masses = extension.problem, extension.column_mass32
    wanted = extension.masses[-1]
    column = extension.column32 / problem.epsilon

    def floors(block: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, potentials = block
        log_scaling = potentials / problem.epsilon  # float64 [p]
        kernel = torch.add(
            column, extension.cost.index_select(0, images), alpha=-1.0 / problem.epsilon
        )
        kernel.add_(log_scaling.float()[:, None]).clamp_(max=MAX_LOG_KERNEL).exp_()
        # Base and slack hold the rest of every column.
        step = row_steps(kernel / (kernel + 1.0), masses, wanted.float())
        step.nan_to_num_(nan=0.0).clamp_(-MAX_LOG_STEP, MAX_LOG_STEP)
        taken = kernel.mul_(step.exp()[:, None]).add_(1.0).log_() @ masses
        return problem.epsilon * ((log_scaling + step) * wanted - taken)

    rows = block_rows(extension.cost)
    blocks = list(zip(pool.split(rows), newcomers.split(rows), strict=True))
    return torch.cat(threads.map_blocks(floors, blocks))
