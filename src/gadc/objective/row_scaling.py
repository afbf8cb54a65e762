"""Scaling one row of a transport plan until it holds its mass, while all other rows stay."""

import math

import torch

# Kernels are powers of two: e takes torch half as long again on a CPU.
LOG2_E = 1.0 / math.log(2.0)
# Kernels are exponentials: within these logarithms they stay normal numbers in float32.
MAX_LOG_KERNEL = 69.0
# Longest step, as the logarithm of a scaling.
MAX_LOG_STEP = 8.0
TINY = 1e-30


def row_steps(share: torch.Tensor, column_mass: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Return Newton's steps of rows' log-scalings towards where their log-masses are right, [p].

    Args:
        share: What each row holds of every column, [p, n]; overwritten.
        column_mass: [n].
        mass: What each row shall hold.
    """
    there = share @ column_mass
    slope = there - share.square_() @ column_mass
    return (mass / there).log_() * there / slope.clamp_(min=TINY)


def scale_rows(
    log_scaling: torch.Tensor,
    kernel: torch.Tensor,
    taken: torch.Tensor,
    column_mass: torch.Tensor,
    mass: torch.Tensor,
    *,
    n_steps: int,
) -> None:
    """Take such steps, for every row beside others of its own.

    Args:
        log_scaling: [p, 1]; moved in place.
        kernel: Of the rows, [p, n].
        taken: What the others make of every column, [p, n], or alike of all.
        column_mass: [n].
        mass: What each row shall hold.
        n_steps: How many.
    """
    for _ in range(n_steps):
        share = kernel * log_scaling.exp()
        share /= taken + share
        step = row_steps(share, column_mass, mass).clamp_(-MAX_LOG_STEP, MAX_LOG_STEP)
        log_scaling += step[:, None]
