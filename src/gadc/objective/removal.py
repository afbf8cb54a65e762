"""What remains of a set without one of its images, nearly solved."""

import torch

from gadc.objective.conjugate import RIDGE, shortened
from gadc.objective.extension import Extension, all_but
from gadc.objective.newton import negative_hessian

# Newton steps with what remains: the mass of one image moves to a few neighbours.
N_STEPS = 2
# Columns that the image held alone are left with at least this share.
LEAST_SUM = 1e-30
# Where others held less than its inverse of a column, their products were too small for float32.
MOST_THINNED = 1e8


def without(whole: Extension, place: int) -> Extension:
    """Return the base that lacks its image at `place`.

    All that lack one of the same images share the products that Hessians are made of. The others
    hold what they held, and the slack takes what the image had, so that each newcomer finds them
    nearly as it will leave them.
    """
    log_scaling = _settled(whole, place)
    potentials = all_but(whole.potentials + whole.problem.epsilon * log_scaling, place)
    less = Extension(whole.problem, whole.cost, whole.others(place), potentials)
    thinning = ((less.column - whole.column) / whole.problem.epsilon).exp()
    if float(thinning.amax()) <= MOST_THINNED:
        scaling = all_but(log_scaling, place).exp().float()
        less.take_overlaps(whole.overlaps.without(place, less.plan32, thinning.float(), scaling))
    return less


def _settled(whole: Extension, place: int) -> torch.Tensor:
    """Return the log-scalings [r] at which the others hold their masses; the slack's is zero."""
    log_scaling = torch.zeros_like(whole.potentials)
    if not whole.problem.has_slack:
        return log_scaling  # nothing would take the mass
    wanted = whole.masses_of_exchange[:-1].clone()
    wanted[-1] += wanted[place]
    wanted[place] = 0.0
    for _ in range(N_STEPS):
        scaling = log_scaling.exp()
        scaling[place] = 0.0
        inverse = whole.column_mass / (scaling @ whole.plan).clamp_(min=LEAST_SUM)
        there = scaling * (whole.plan @ inverse)
        shares = scaling[:, None] * whole.plan * (inverse / whole.column_mass)
        hessian = negative_hessian(shares.float(), whole.column_mass32)
        hessian.diagonal().mul_(1.0 + RIDGE)
        hessian[place, place] += 1.0
        factor, info = torch.linalg.cholesky_ex(hessian)
        step = torch.cholesky_solve((wanted - there).float()[:, None], factor)[:, 0].double()
        step = torch.where((info == 0) & step.isfinite().all(), step, 0.0)
        log_scaling += shortened(step)
    log_scaling[place] = 0.0
    return log_scaling - log_scaling[-1]
