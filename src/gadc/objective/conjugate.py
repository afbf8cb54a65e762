"""Newton steps without Hessians: conjugate gradients for many "base + j" at once, in float32."""

import torch

from gadc.objective.extension import Extension

# Levenberg's damping of the steps, relative to the diagonal: above float32's rounding.
RIDGE = 1e-5
TINY = 1e-30
# Longest step of all rows together, as the logarithm of a scaling.
MAX_LOG_STEP = 4.0


def without_dropped(values: torch.Tensor, dropped: torch.Tensor | None) -> torch.Tensor:
    """Return `values` [p, r + 1] with zeros for the rows that are dropped; overwrites them."""
    return values if dropped is None else values.scatter_(1, dropped[:, None], 0.0)


def shortened(steps: torch.Tensor) -> torch.Tensor:
    """Return `steps` [..., r] of log-scalings, all of one shortened together where one is long."""
    return steps * (MAX_LOG_STEP / steps.abs().amax(-1, keepdim=True)).clamp(max=1.0)


def iterated_steps(
    extension: Extension,
    scaling: torch.Tensor,
    missing: torch.Tensor,
    there: torch.Tensor,
    inverse: torch.Tensor,
    newcomer: torch.Tensor,
    dropped: torch.Tensor | None,
    n_iterations: int,
) -> torch.Tensor:
    """Return about the Newton steps of the log-scalings, [p, r + 1].

    What the base's own Hessian inverts is done at once; the few iterations are for the rows near
    the newcomer and near the one that is dropped. 4 p n r flops each, where a Hessian takes p n r^2
    and its factor p r^3 / 3.

    Args:
        extension: The base.
        scaling: Of its rows, the slack and the newcomer, [p, r + 1].
        missing: Row masses wanted minus those there, [p, r + 1].
        there: The masses there, [p, r + 1].
        inverse: Column masses over the columns' sums, [p, n]; overwritten.
        newcomer: Kernels of the newcomers, [p, n].
        dropped: Rows of the base that are left out, [p].
        n_iterations: How many.

    Source: Hestenes & Stiefel 1952, preconditioned.
    """
    rows = missing.shape[1]
    # H = diag(there) - R R^T, where R holds the plan's rows, scaled, over the roots of the columns'
    # masses. What the columns' sums do is spread over both factors: squares of it could overflow.
    root = inverse.div_(extension.column_mass32.sqrt())
    own = (newcomer * root).mul_(scaling[:, -1:]).square_().sum(1, keepdim=True)
    own = (there[:, -1:] - own).clamp_(min=RIDGE * there[:, -1:])  # the newcomers' diagonal

    def product(vectors: torch.Tensor) -> torch.Tensor:
        scaled = scaling * vectors
        columns = scaled[:, :-1] @ extension.plan32
        columns.addcmul_(newcomer, scaled[:, -1:]).mul_(root).mul_(root)
        base = extension.plan_sums(columns)
        own_row = columns.mul_(newcomer).sum(1, keepdim=True)
        products = there * (1.0 + RIDGE) * vectors - scaling * torch.cat([base, own_row], 1)
        # Fixes the direction in which all potentials shift together.
        products += vectors.sum(1, keepdim=True) / rows**2
        return without_dropped(products, dropped)

    def preconditioned(vectors: torch.Tensor) -> torch.Tensor:
        base = vectors[:, :-1] @ extension.inverse_hessian
        return without_dropped(torch.cat([base, vectors[:, -1:] / own], 1), dropped)

    residual = missing
    direction = preconditioned(residual)
    squares = (residual * direction).sum(1, keepdim=True)
    steps = torch.zeros_like(missing)
    for i in range(n_iterations):
        products = product(direction)
        length = squares / (direction * products).sum(1, keepdim=True).clamp_(min=TINY)
        steps += length * direction
        if i < n_iterations - 1:
            residual = residual - length * products
            towards = preconditioned(residual)
            before, squares = squares, (residual * towards).sum(1, keepdim=True)
            direction = towards + direction * (squares / before.clamp(min=TINY))
    return steps
