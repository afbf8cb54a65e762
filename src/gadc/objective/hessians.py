"""The Hessians of "base + j" for many j, in float32: they steer, and decide nothing."""

import torch

from gadc.objective.extension import Extension

# Levenberg's damping of the steps, relative to the diagonal: above float32's rounding.
RIDGE = 1e-5


def negative_hessians(
    extension: Extension,
    scaling: torch.Tensor,
    there: torch.Tensor,
    inverse: torch.Tensor,
    newcomer: torch.Tensor,
    dropped: torch.Tensor | None,
) -> torch.Tensor:
    """Return them by log-scalings, [p, r + 1, r + 1]; only the lower triangles are set.

    Args:
        extension: The base.
        scaling: Of its rows, the slack and the newcomer, [p, r + 1].
        there: The mass that each of these holds, [p, r + 1].
        inverse: Column masses over the columns' sums, [p, n].
        newcomer: Kernels of the newcomers, [p, n].
        dropped: Rows of the base that are left out, [p].
    """
    p, rows = there.shape
    # inverse^2 / column_mass: the inverse holds one column mass, the Hessian needs one.
    weight = inverse / extension.column_mass32.sqrt()
    own = newcomer * weight
    hessian = weight.new_zeros(p, rows, rows)
    hessian[:, -1, -1] = own.square().sum(1)
    hessian[:, -1, :-1] = own.mul_(weight) @ extension.plan32.T
    overlaps = extension.overlaps
    hessian[:, overlaps.pairs[1], overlaps.pairs[0]] = overlaps.sums(weight)
    hessian *= scaling[:, :, None]
    hessian *= -scaling[:, None, :]
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    diagonal.add_(there, alpha=1.0 + RIDGE)
    hessian += 1.0 / rows**2  # fixes the direction in which all potentials shift together
    if dropped is not None:
        diagonal.scatter_add_(1, dropped[:, None], torch.ones_like(scaling[:, :1]))
    return hessian
