"""What exchanges are about worth while the rest of a set stays as it is, in one pass over costs.

Of "base less one image, plus j" only j's own row is scaled. With potentials f, row masses wanted a,
columns l of mass w_l, and shares p_l of them, the estimate is

    f . a + sum_l w_l E_l[C_il - f_i],

the transport cost with the rows' missing mass priced at their potentials. What is off is of second
order, and mostly too low.
"""

import torch

from gadc.objective.extension import Extension
from gadc.objective.row_scaling import LOG2_E, MAX_LOG_KERNEL, scale_rows
from gadc.objective.threads import Threads, block_rows

# Newton steps of a newcomer's scaling.
N_STEPS = 2
# Of columns that the others hold less of than this, float64 can't say what they make of them.
LEAST_SHARE = 1e-300


def resting_estimates(
    extension: Extension,
    pool: torch.Tensor,
    newcomers: torch.Tensor,
    dropped: torch.Tensor,
    threads: Threads,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return estimates of the transport costs, and the newcomers' potentials, float64 [p] each.

    Args:
        extension: The base.
        pool: The candidates [p].
        newcomers: Their potentials in some similar set [p].
        dropped: Whose places they take; those for one place stand together [p].
        threads: Where blocks of candidates are worked on.
    """
    if not len(pool):
        return newcomers, newcomers
    epsilon, column_mass = extension.problem.epsilon, extension.column_mass32
    masses, potentials = extension.masses_of_exchange, extension.potentials
    places, sizes = torch.unique_consecutive(dropped, return_counts=True)
    stays = potentials.new_ones(len(places), len(potentials)).scatter_(1, places[:, None], 0.0)
    # Of what stays beside each place: shares of columns, potentials of columns, E_l[C - f].
    taken = (stays @ extension.plan).clamp_(min=LEAST_SHARE)  # [places, n]
    unit = LOG2_E / epsilon
    column = (extension.column * unit - taken.log2()).float()
    mean = (stays @ extension.plan_costs - (stays * potentials) @ extension.plan) / taken
    shared = stays * potentials @ masses[:-1] + mean @ extension.column_mass
    mean, one = mean.float(), column.new_ones(())

    def estimated(block: tuple[int, torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        place, images, own = block
        costs = extension.cost.index_select(0, images)  # [p, n]
        kernel = torch.add(column[place], costs, alpha=-unit)
        kernel.add_((own * unit).float()[:, None])
        kernel.clamp_(-LOG2_E * MAX_LOG_KERNEL, LOG2_E * MAX_LOG_KERNEL).exp2_()
        log_scaling = torch.zeros_like(kernel[:, :1])
        scale_rows(log_scaling, kernel, one, column_mass, masses[-1].float(), n_steps=N_STEPS)
        kernel *= log_scaling.exp()
        share = kernel.div_(kernel + 1.0)
        own = own + epsilon * log_scaling[:, 0].double()
        missing = masses[-1] - share @ column_mass
        exchanged = costs.sub_(mean[place]).mul_(share) @ column_mass
        return shared[place] + exchanged + own * missing, own

    rows = block_rows(extension.cost)
    blocks = [
        (place, *block)
        for place, part in enumerate(
            zip(pool.split(sizes.tolist()), newcomers.split(sizes.tolist()), strict=True)
        )
        for block in zip(*(tensor.split(rows) for tensor in part), strict=True)
    ]
    estimates, own = zip(*threads.map_blocks(estimated, blocks), strict=True)
    return torch.cat(estimates), torch.cat(own)
