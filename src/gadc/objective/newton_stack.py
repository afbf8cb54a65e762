"""Newton's method for "base + j" over many j at once: the exact answer, at O(m^2 n) a step."""

import warnings

import torch

from gadc.errors import ConvergenceWarning
from gadc.objective.extension import MAX_LOG_SCALING, Extension
from gadc.objective.first_order import Margins, Rule

# Newton steps for a candidate before it is handed to the general solver.
MAX_STEPS = 20
# The first steps hardly move the linear bounds; from this one on they are looked at for as long as
# the last look left at most this share of the candidates.
FIRST_BOUND_STEP = 2
BOUNDS_PAY = 0.9
# Levenberg's damping of the steps, relative to the diagonal: above float32's rounding.
RIDGE = 1e-5
# Longest step, as the logarithm of a scaling.
MAX_LOG_STEP = 4.0


class NewtonStack:
    """The semi-dual of p candidates, climbed together, float64.

    Args:
        extension: The base.
        pool: The candidates [p].
        potentials: Where to start: base rows, slack, newcomer, [p, r + 1].
    """

    def __init__(self, extension: Extension, pool: torch.Tensor, potentials: torch.Tensor) -> None:
        self.extension = extension
        epsilon = extension.problem.epsilon
        self.newcomer_costs = extension.cost[pool].double()  # [p, n]
        newcomers = potentials[:, -1:]
        self.newcomer = (
            (newcomers + extension.column - self.newcomer_costs)
            .div_(epsilon)
            .clamp_(max=MAX_LOG_SCALING)
            .exp_()
        )  # [p, n]
        self.start = extension.with_newcomers(newcomers[:, 0])
        self.log_scaling = (potentials - self.start) / epsilon
        self.evaluate()

    def keep(self, mask: torch.Tensor) -> None:
        """Go on with the candidates in `mask` alone."""
        for name in (
            "newcomer_costs", "newcomer", "start", "log_scaling", "scaling", "inverse", "there",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[mask])

    @property
    def potentials(self) -> torch.Tensor:
        """Potentials [p, r + 1]; the slack's, last but one, is zero if there is one."""
        return self.start + self.extension.problem.epsilon * self.log_scaling

    @property
    def missing(self) -> torch.Tensor:
        """Row masses wanted minus those there, [p, r + 1]."""
        return self.extension.masses - self.there

    @property
    def error(self) -> torch.Tensor:
        """Summed error of the row masses, [p]."""
        return self.missing.abs().sum(1)

    def evaluate(self) -> None:
        """Compute the row masses at the present scalings."""
        extension = self.extension
        self.scaling = self.log_scaling.exp()
        total = torch.addmm(
            self.newcomer * self.scaling[:, -1:], self.scaling[:, :-1], extension.plan
        )  # Z, [p, n]
        self.inverse = total.reciprocal_().mul_(extension.column_mass)
        base = self.inverse @ extension.plan.T
        newcomer = (self.inverse * self.newcomer).sum(1, keepdim=True)
        self.there = torch.cat([base, newcomer], 1) * self.scaling  # [p, r + 1]

    def negative_hessian(self) -> torch.Tensor:
        """Return it by log-scalings, float32 [p, r + 1, r + 1]; only the lower triangle is set."""
        p, rows = self.there.shape
        scaling = self.scaling.float()
        # inverse^2 / column_mass: the inverse holds one column mass, the Hessian needs one.
        weight = (self.inverse / self.extension.column_mass.sqrt()).float()
        newcomer = self.newcomer.float().mul_(weight)  # [p, n]
        hessian = torch.zeros(p, rows, rows, device=weight.device)
        hessian[:, -1, -1] = newcomer.square().sum(1)
        hessian[:, -1, :-1] = newcomer.mul_(weight) @ self.extension.plan32.T
        pairs, products = self.extension.pairs
        hessian[:, pairs[1], pairs[0]] = weight.square_() @ products
        hessian *= scaling[:, :, None]
        hessian *= -scaling[:, None, :]
        hessian.diagonal(dim1=1, dim2=2).add_(self.there.float(), alpha=1.0 + RIDGE)
        hessian += 1.0 / rows**2  # fixes the direction in which all potentials shift together
        return hessian

    def step(self) -> None:
        """Take one Newton step, shortened where it is long; float32 steers, float64 decides."""
        factor, info = torch.linalg.cholesky_ex(self.negative_hessian())
        gradient = self.missing.float()[:, :, None]
        step = torch.cholesky_solve(gradient, factor)[:, :, 0].double()
        # A failed factorisation poisons its own candidate, which the general solver then takes.
        step[info != 0] = torch.nan
        step *= (MAX_LOG_STEP / step.abs().amax(1)).clamp(max=1.0)[:, None]
        self.log_scaling += step
        if self.extension.problem.has_slack:
            self.log_scaling -= self.log_scaling[:, -2:-1].clone()
        self.evaluate()

    def lower_bounds(self) -> torch.Tensor:
        """Return the linear programme's dual value at the present potentials, [p]; NaN as -inf."""
        extension, potentials = self.extension, self.potentials
        least = self.newcomer_costs - potentials[:, -1:]
        for row, costs in enumerate(extension.base_costs):
            torch.minimum(least, costs - potentials[:, row : row + 1], out=least)
        bounds = potentials @ extension.masses + least @ extension.column_mass
        return torch.nan_to_num(bounds, nan=-torch.inf)

    def cost_gradient(self) -> torch.Tensor:
        """Return the derivative of `<C, pi>` by the log-scalings, [p, r + 1].

        A row's own masses times its costs, less the mean cost of each column it shares.
        """
        extension = self.extension
        priced = extension.plan * extension.base_costs  # [r, n]
        newcomer = self.newcomer * self.scaling[:, -1:]  # [p, n]
        mean = torch.addmm(newcomer * self.newcomer_costs, self.scaling[:, :-1], priced)
        mean *= self.inverse / extension.column_mass  # [p, n]
        base = self.inverse @ priced.T - (self.inverse * mean) @ extension.plan.T
        own = (self.inverse * newcomer * (self.newcomer_costs - mean)).sum(1, keepdim=True)
        return torch.cat([base * self.scaling[:, :-1], own], 1)

    def transport_costs(self) -> torch.Tensor:
        """Return `<C, pi>` of each candidate, [p]."""
        base = self.inverse @ (self.extension.plan * self.extension.base_costs).T  # [p, r]
        newcomer = (self.inverse * self.newcomer * self.newcomer_costs).sum(1, keepdim=True)
        return (torch.cat([base, newcomer], 1) * self.scaling).sum(1)


def solve(
    extension: Extension,
    pool: torch.Tensor,
    potentials: torch.Tensor,
    *,
    rule: Rule | None = None,
) -> torch.Tensor:
    """Return the converged transport costs [p] of `base + [j]` for the candidates `pool` [p].

    Args:
        extension: The base.
        pool: The candidates.
        potentials: Where to start, [p, r + 1].
        rule: Which of them are given up before; default: none.

    Returns:
        Costs; infinite where given up.

    Warns:
        ConvergenceWarning: A candidate has not converged, even with the general solver.
    """
    costs = extension.cost.new_full((len(pool),), torch.inf, dtype=torch.float64)
    if rule is None:
        rule = Rule(torch.full_like(costs, torch.inf))
    stack = NewtonStack(extension, pool, potentials)
    left = torch.arange(len(pool), device=costs.device)
    margins = Margins(rule.steepest)
    slope, ceilings = rule.slope, rule.ceilings
    bounds_pay = slope is None
    for n_steps in range(MAX_STEPS):
        error = stack.error
        done = error <= extension.problem.tol
        undecided = ~done
        if slope is not None or done.any():
            transport = stack.transport_costs()
            costs[left[done]] = transport[done]
        if slope is not None:
            estimates = transport + (slope * stack.missing).sum(1)
            undecided &= ~(estimates - margins.of(error) > ceilings)
        elif n_steps >= FIRST_BOUND_STEP and bounds_pay:
            possible = stack.lower_bounds() <= ceilings
            bounds_pay = int(possible.sum()) < BOUNDS_PAY * len(left)
            undecided &= possible
        if not undecided.any():
            return costs
        if not undecided.all():
            left = left[undecided]
            stack.keep(undecided)
            margins.keep(undecided)
            ceilings = ceilings[undecided]
            slope = slope[undecided] if slope is not None else None
        stack.step()
    # Underflow, or a problem too hard for undamped steps: the general solver takes its time.
    rows = torch.cat([extension.base.expand(len(left), -1), pool[left][:, None]], 1)
    problems = extension.cost[rows].double()
    solution = extension.problem.solve(problems)
    if not solution.converged.all():
        n_open = int((~solution.converged).sum())
        warnings.warn(
            f"{n_open} candidates have not converged and count with the cost of a feasible "
            "plan that may not be their best; raise epsilon",
            ConvergenceWarning,
            stacklevel=2,
        )
    costs[left] = extension.problem.transport_costs(problems, solution.potentials)
    return costs
