"""A set of images plus one more, for every image that might be added.

Adding j to a base set B changes one row of the transport problem. With the base solved once, a
lower bound of the new transport cost takes a few passes over row j of the cost matrix, whatever
the size of B. Candidates whose bound is already too high are ruled out; the others are solved
together by Newton's method, in which everything that the candidates share is a matrix product:

    pi_il = (kappa/n) u_i K_il / Z_l,   Z_l = sum_i u_i K_il + u_j K_jl + u_slack K_slack,l

where only the scalings u and row j differ between candidates.

Why a bound may rule out: `<C, pi_epsilon>` is the cost of a feasible plan, so it is at least the
linear programme's optimum, which is at least the programme's dual value at any potentials.
"""

import math
import warnings
from dataclasses import dataclass

import torch

from gadc.errors import ConvergenceWarning
from gadc.objective.transport import Problem

# Screening works on blocks of about this many costs: 1 MB in float32 stays in a core's cache.
CPU_BLOCK_ENTRIES = 262_144
GPU_BLOCK_ENTRIES = 1 << 26
# Newton steps for one candidate's own potential. Any potential gives a valid bound, so too few
# steps only loosen it.
N_SCREEN_STEPS = 6
# Relative rounding of a bound computed in float32, generously: it is taken off the bound.
SCREEN_ROUNDING = 1e-5
# Newton steps for a candidate before it is handed to the general solver.
MAX_NEWTON_STEPS = 20
# The first Newton step hardly moves the bounds that screening gave; from the second on they are
# looked at for as long as the last look left at most this share of the candidates.
FIRST_BOUND_STEP = 2
BOUNDS_PAY = 0.9
# Two rows of the base whose kernels overlap by less than this are taken as independent in the
# Hessian, which only steers: with many rows, most pairs never meet.
LEAST_OVERLAP = 1e-5
# Levenberg's damping of those steps, relative to the diagonal: above float32's rounding.
RIDGE = 1e-5
# Longest Newton step, as the logarithm of a scaling.
MAX_LOG_STEP = 4.0


@dataclass(frozen=True)
class Screened:
    """Candidates [p] with a lower bound of their transport cost and the potential behind it."""

    pool: torch.Tensor
    bounds: torch.Tensor
    potentials: torch.Tensor

    def keep(self, mask: torch.Tensor) -> "Screened":
        """Return the candidates that `mask`, a mask or indices, picks."""
        return Screened(self.pool[mask], self.bounds[mask], self.potentials[mask])


class Extension:
    """The base set `base` [m - 1], solved, ready to be extended by one image.

    Args:
        problem: Settings of the transport problem.
        cost: [n_images, n], float32.
        base: Indices of the base set, possibly none.
        scale: The typical cost, in which float32 rounding is measured.
        start: The base's potentials [m - 1] in some similar set; NaN where unknown.
    """

    def __init__(
        self,
        problem: Problem,
        cost: torch.Tensor,
        base: torch.Tensor,
        *,
        scale: float,
        start: torch.Tensor | None = None,
    ) -> None:
        self.problem, self.cost, self.base, self.scale = problem, cost, base, scale
        self.m, self.n = len(base) + 1, cost.shape[1]
        base_costs = cost[base].double()[None]  # [1, m - 1, n]
        if len(base):
            known = start is not None and bool(start.isfinite().all())
            if start is not None and known:
                potentials = torch.cat([start, start.new_zeros(int(problem.has_slack))])
                solution = problem.solve_from(base_costs, potentials[None])
            else:
                solution = problem.solve(base_costs)
            self.potentials = solution.potentials[0]  # [r], the slack's last, zero
        else:
            self.potentials = base_costs.new_zeros(int(problem.has_slack))
        self.base_costs = problem.with_slack(base_costs)[0]  # [r, n]

    @property
    def is_bare(self) -> bool:
        """Whether nothing competes with the newcomer: no base and no slack."""
        return len(self.potentials) == 0

    def screen(self, pool: torch.Tensor, potentials: torch.Tensor | None = None) -> Screened:
        """Bound the transport cost of `base + [j]` from below for every j in `pool` [p].

        The base keeps its potentials; any potential of the newcomer gives a bound, and the best
        is where its row holds mass 1/m. Cost: O(n) a candidate.

        Args:
            pool: Candidates [p].
            potentials: Potentials [p] to bound with, such as those that were best for a similar
                base: one pass over the costs. Default: the best ones are looked for, some twenty
                passes.
        """
        if self.is_bare:
            exact = self.cost[pool].mean(1, dtype=torch.float64)
            return Screened(pool, exact, exact)
        block = max(1, _block_entries(self.cost) // self.n)
        reduced = self.potentials[:, None] - self.base_costs  # [r, n]
        log_taken = torch.logsumexp(reduced / self.problem.epsilon, 0).float()
        cheapest = (-reduced).amin(0).float()
        least = torch.empty(len(pool), dtype=torch.float64, device=self.cost.device)
        newcomers = torch.empty_like(least) if potentials is None else potentials
        for first in range(0, len(pool), block):
            rows = slice(first, first + block)
            costs = self.cost[pool[rows]]  # [p, n]
            if potentials is None:
                newcomers[rows] = self._best_potentials(costs, log_taken)
            taken = costs.sub_(newcomers[rows, None].float())
            least[rows] = torch.minimum(taken, cheapest, out=taken).sum(1)
        linear = (self.potentials[: self.m - 1].sum() + newcomers) / self.m
        bound = linear + self.problem.capacity / self.n * least
        # The size of the numbers summed: a term of `least` lies between -potential and cheapest.
        size = self.scale + self.potentials.abs().mean() + cheapest.abs().mean()
        rounding = SCREEN_ROUNDING * (size + 2.0 * newcomers.abs())
        bound = torch.where(bound.isfinite(), bound - rounding, -torch.inf)
        return Screened(pool, bound, newcomers)

    def _best_potentials(self, costs: torch.Tensor, log_taken: torch.Tensor) -> torch.Tensor:
        """Return, for each row of `costs` [p, n], the potential at which it holds mass 1/m."""
        epsilon = self.problem.epsilon
        log_wanted = math.log(self.n / (self.m * self.problem.capacity))
        logits = costs.div(-epsilon).sub_(log_taken)
        # sigmoid(x) <= e^x: this start holds at most the mass wanted.
        log_u = low = log_wanted - torch.logsumexp(logits, 1, keepdim=True)  # [p, 1]
        high = torch.full_like(low, torch.inf)
        for _ in range(N_SCREEN_STEPS):
            share = torch.sigmoid(logits + log_u)
            mass = share.sum(1, keepdim=True)
            slope = mass - share.square_().sum(1, keepdim=True)
            step = (log_wanted - mass.log()) * mass / slope.clamp_(min=1e-30)
            is_low = step > 0.0
            low, high = torch.where(is_low, log_u, low), torch.where(is_low, high, log_u)
            log_u = log_u + step.clamp_(max=MAX_LOG_STEP)
            # Between clusters of targets the mass hardly moves and a step goes too far.
            inside = (log_u >= low) & (log_u <= high)
            log_u = torch.where(inside, log_u, (low + high) / 2)
        return (log_u * epsilon)[:, 0]

    def solve(self, screened: Screened, ceilings: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return the converged transport costs of the candidates that can stay below `ceilings`.

        Args:
            screened: Candidates [p].
            ceilings: A candidate whose cost provably exceeds its ceiling is given up, [p].

        Returns:
            Costs [p], infinite where ruled out; and how many were solved.
        """
        p = len(screened.pool)
        if self.is_bare:
            return screened.bounds, p
        costs = self.cost.new_full((p,), torch.inf, dtype=torch.float64)
        state = _Stack(self, screened)
        left = torch.arange(p, device=costs.device)
        n_solved, bounds_pay = 0, True
        for n_steps in range(MAX_NEWTON_STEPS):
            error = state.evaluate()
            done = error <= self.problem.tol
            if done.any():
                costs[left[done]] = state.transport_costs()[done]
                n_solved += int(done.sum())
            undecided = ~done
            if n_steps >= FIRST_BOUND_STEP and bounds_pay:
                possible = state.lower_bounds() <= ceilings[left]
                bounds_pay = int(possible.sum()) < BOUNDS_PAY * len(left)
                undecided &= possible
            if not undecided.any():
                return costs, n_solved
            if not undecided.all():
                left = left[undecided]
                state.keep(undecided)
            state.step()
        # Underflow, or a problem too hard for undamped steps: the general solver takes its time.
        rows = torch.cat([self.base.expand(len(left), -1), screened.pool[left][:, None]], 1)
        problems = self.cost[rows].double()
        solution = self.problem.solve(problems)
        if not solution.converged.all():
            n_open = int((~solution.converged).sum())
            warnings.warn(
                f"{n_open} candidates have not converged and count with the cost of a feasible "
                "plan that may not be their best; raise epsilon",
                ConvergenceWarning,
                stacklevel=2,
            )
        costs[left] = self.problem.transport_costs(problems, solution.potentials)
        return costs, n_solved + len(left)


def _block_entries(cost: torch.Tensor) -> int:
    return CPU_BLOCK_ENTRIES if cost.device.type == "cpu" else GPU_BLOCK_ENTRIES


class _Stack:
    """Newton's method on the semi-dual of p candidates at once, float64.

    Rows are the base, the slack if there is one, and last the newcomer: r + 1 in all. Scalings
    are relative to the base's own solution, in which every column sums to one.
    """

    def __init__(self, extension: Extension, screened: Screened) -> None:
        self.extension = extension
        problem, m, n = extension.problem, extension.m, extension.n
        self.column_mass = problem.capacity / n
        masses = problem.row_masses(m, extension.cost.device)
        self.masses = torch.cat([masses[: m - 1], masses[m:], masses[:1]])  # [r + 1]
        self.newcomer_costs = extension.cost[screened.pool].double()  # [p, n]
        potentials = extension.potentials[:, None]  # [r, 1]
        self.column = -problem.epsilon * torch.logsumexp(
            (potentials - extension.base_costs) / problem.epsilon, 0
        )  # g, [n]
        self.kernel = torch.exp(
            (potentials + self.column - extension.base_costs) / problem.epsilon
        )  # [r, n]
        self.newcomer = torch.exp(
            (screened.potentials[:, None] + self.column - self.newcomer_costs) / problem.epsilon
        )  # [p, n]
        self.start = torch.cat(
            [extension.potentials.expand(len(screened.pool), -1), screened.potentials[:, None]], 1
        )  # [p, r + 1]
        self.log_scaling = torch.zeros_like(self.start)
        self.steering_kernel = kernel = self.kernel.float()
        overlap = kernel @ kernel.T  # [r, r]
        norms = overlap.diagonal().sqrt()
        meet = overlap >= LEAST_OVERLAP * norms[:, None] * norms
        self.pairs = torch.nonzero(meet.triu()).T  # [2, n_pairs]
        self.pair_products = (kernel[self.pairs[0]] * kernel[self.pairs[1]]).T  # [n, n_pairs]

    def keep(self, mask: torch.Tensor) -> None:
        """Go on with the candidates in `mask` alone."""
        for name in (
            "newcomer_costs", "newcomer", "start", "log_scaling", "scaling", "inverse", "there",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[mask])

    def evaluate(self) -> torch.Tensor:
        """Return the summed error of the row masses, [p]; NaN counts as not converged."""
        self.scaling = self.log_scaling.exp()
        total = torch.addmm(
            self.newcomer * self.scaling[:, -1:], self.scaling[:, :-1], self.kernel
        )  # Z, [p, n]
        self.inverse = total.reciprocal_()
        base = self.inverse @ self.kernel.T
        newcomer = (self.inverse * self.newcomer).sum(1, keepdim=True)
        self.there = torch.cat([base, newcomer], 1) * self.scaling * self.column_mass  # [p, r + 1]
        return (self.masses - self.there).abs().sum(1)

    def step(self) -> None:
        """Take one Newton step, shortened where it is long; float32 steers, float64 decides."""
        p, rows = self.there.shape
        scaling = self.scaling.float()
        inverse = self.inverse.float()
        newcomer = self.newcomer.float().mul_(inverse)  # [p, n]
        hessian = torch.zeros(p, rows, rows, device=inverse.device)
        hessian[:, -1, -1] = newcomer.square().sum(1)
        hessian[:, -1, :-1] = newcomer.mul_(inverse) @ self.steering_kernel.T
        # Only the lower triangle is read.
        hessian[:, self.pairs[1], self.pairs[0]] = inverse.square_() @ self.pair_products
        hessian *= scaling[:, :, None]
        hessian *= scaling[:, None, :] * -self.column_mass
        hessian.diagonal(dim1=1, dim2=2).add_(self.there.float(), alpha=1.0 + RIDGE)
        hessian += 1.0 / rows**2  # fixes the direction in which all potentials shift together
        factor, info = torch.linalg.cholesky_ex(hessian)
        gradient = (self.masses - self.there).float()[:, :, None]
        step = torch.cholesky_solve(gradient, factor)[:, :, 0].double()
        # A failed factorisation poisons its own candidate, which the general solver then takes.
        step[info != 0] = torch.nan
        step *= (MAX_LOG_STEP / step.abs().amax(1)).clamp(max=1.0)[:, None]
        self.log_scaling += step
        if self.extension.problem.has_slack:
            self.log_scaling -= self.log_scaling[:, -2:-1].clone()

    def lower_bounds(self) -> torch.Tensor:
        """Return the linear programme's dual value at the present potentials, [p]; NaN as -inf."""
        extension = self.extension
        potentials = self.start + extension.problem.epsilon * self.log_scaling
        least = self.newcomer_costs - potentials[:, -1:]
        for row, costs in enumerate(extension.base_costs):
            torch.minimum(least, costs - potentials[:, row : row + 1], out=least)
        bounds = potentials @ self.masses + self.column_mass * least.sum(1)
        return torch.nan_to_num(bounds, nan=-torch.inf)

    def transport_costs(self) -> torch.Tensor:
        """Return `<C, pi>` of each candidate, [p]."""
        base = self.inverse @ (self.kernel * self.extension.base_costs).T  # [p, r]
        newcomer = (self.inverse * self.newcomer * self.newcomer_costs).sum(1, keepdim=True)
        return (torch.cat([base, newcomer], 1) * self.scaling).sum(1) * self.column_mass
