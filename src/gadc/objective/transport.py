"""One-sided partial optimal transport, entropic and converged.

For costs C [m, n], column weights w that sum to one (1/n each unless given), a capacity kappa >= 1
and epsilon > 0, the plan minimises

    <C, pi> - epsilon * H(pi, r)   over pi >= 0, r >= 0
    with  pi 1 = 1/m,   pi^T 1 + r = kappa w,   sum(r) = kappa - 1

where r is what each target keeps unused and H is the entropy of both. Eliminating the columns
leaves a smooth concave function of the row potentials f (and of h, the slack's),

    D(f, h) = mean(f) + (kappa - 1) h
              - epsilon kappa sum_j w_j log(sum_i e^((f_i - C_ij)/epsilon) + e^(h/epsilon)),

whose plan is a soft-max down every column. Its gradient is the error of the row masses and its
Hessian is [m + 1, m + 1], so Newton's method usually takes some ten steps where the usual scaling
iterations (Sinkhorn) take thousands.

The slack's own cost would only shift h: a constant dummy cost has no effect on the plan.

Sources: Cuturi 2013 (entropic transport); Caffarelli & McCann 2010, Figalli 2010 (partial
transport); Cuturi & Peyre 2016 (the semi-dual); Altschuler, Weed & Rigollet 2017, Algorithm 2
(rounding).
"""

import warnings
from dataclasses import dataclass, field, fields

import numpy as np
import torch

from gadc.errors import ConvergenceWarning, InputError
from gadc.objective.newton import NewtonState, climb_plainly
from gadc.objective.weights import as_weights

Array = np.ndarray | torch.Tensor

DEFAULT_CAPACITY = 1.05
DEFAULT_RELATIVE_EPSILON = 0.025
# Error of the row masses (their sum is 1) at which a plan counts as converged.
DEFAULT_TOL = 1e-8
DEFAULT_MAX_ITER = 500

# The temperature starts at this multiple of the median cost, where soft-max is soft; an outlier's
# costs, which would start it far too high, don't count.
START_TEMPERATURE = 0.5
# A problem cools once its row masses are right to this, and to half the smallest mass: a row or
# slack still empty then would have to travel the rest of the way in short steps.
WARM_TOL = 0.02
# Newton steps that a start near the answer may take.
WARM_STEPS = 12
# Problems are solved in blocks of about this many plan entries (64 MB in float64).
BLOCK_ENTRIES = 8_000_000


@dataclass(frozen=True)
class PartialTransport:
    """A solved problem, or a batch of them; arrays have the batch's shape [b], or are scalars.

    Attributes:
        transport_cost: `<C, plan>`; never below the linear programme's optimum.
        lower_bound: The dual value at the row potentials; never above that optimum.
        row_error: Summed error of the row masses before the plan was rounded onto them.
        converged: Whether `row_error <= tol * capacity`.
        n_iter: Newton steps taken.
        plan: [..., m, n]: rows sum to 1/m, columns to at most capacity times weight, exactly.
        row_potentials: f [..., m], with the slack's potential at zero (their mean, if no slack).
    """

    transport_cost: float | Array
    lower_bound: float | Array
    row_error: float | Array
    converged: bool | Array
    n_iter: int | Array
    plan: Array
    row_potentials: Array


def partial_transport(
    cost: Array,
    *,
    capacity: float = DEFAULT_CAPACITY,
    epsilon: float | None = None,
    column_weights: Array | None = None,
    tol: float = DEFAULT_TOL,
    max_iter: int = DEFAULT_MAX_ITER,
) -> PartialTransport:
    """Solve one-sided partial optimal transport from m equal rows to n columns.

    Args:
        cost: [m, n], or [b, m, n] for b independent problems; NumPy or torch, any device.
        capacity: kappa >= 1; a column takes at most capacity times its weight. 1 is balanced
            transport.
        epsilon: Entropic regularisation in units of the cost; default, for one problem: 0.025
            times the median of `cost - cost.min()`, over columns that may take anything.
        column_weights: Numbers >= 0 [n], of which only the ratios count; default: all are equal.
        tol: Largest summed error of the row masses that counts as converged, per unit of capacity.
        max_iter: Newton steps at most, per problem.

    Returns:
        The solution, in the library and on the device of `cost`, float64. A batched result equals
        the results of its problems solved one by one, to rounding.

    Raises:
        InputError: A bad shape, a non-finite cost, or an argument out of its bounds.

    Warns:
        ConvergenceWarning: A problem stopped at `max_iter`.
    """
    given = cost if isinstance(cost, torch.Tensor) else torch.from_numpy(np.array(cost, order="C"))
    if given.ndim not in (2, 3) or 0 in given.shape:
        raise InputError(
            "cost_shape", f"cost must be [m, n] or [b, m, n], not empty; got {list(given.shape)}"
        )
    costs = given.detach().to(torch.float64).reshape(-1, *given.shape[-2:])
    if not torch.isfinite(costs).all():
        raise InputError("cost_not_finite", "cost holds NaN or infinity; remove those entries")
    check_capacity(capacity)
    weights = None
    if column_weights is not None:
        weights = as_weights(column_weights, costs.shape[2], "column_weights").to(costs.device)
    if epsilon is None:
        if len(costs) > 1:
            raise InputError(
                "epsilon_missing", "a batch needs its epsilon: problems may differ in scale"
            )
        counted = costs if weights is None else costs[:, :, weights > 0.0]
        shifted = counted - counted.min()
        typical = shifted.median().item() or shifted.mean().item()
        epsilon = DEFAULT_RELATIVE_EPSILON * (typical if typical > 0.0 else 1.0)
    check_epsilon(epsilon)

    problem = Problem(capacity, epsilon, tol, max_iter, weights)
    solution = problem.solve(costs)
    if not solution.converged.all():
        worst = solution.row_error.max().item()
        warnings.warn(
            f"partial transport stopped at max_iter={max_iter} with row error {worst:.1e} > "
            f"tol={tol:.1e}; raise max_iter or epsilon (now {epsilon:.3g})",
            ConvergenceWarning,
            stacklevel=2,
        )
    plan = problem.plan(costs, solution.potentials)
    per_problem = (
        (plan * costs).sum((1, 2)),
        problem.lower_bound(costs, solution.potentials),
        solution.row_error,
        solution.converged,
        solution.n_iter,
    )
    arrays = (plan, solution.potentials[:, : costs.shape[1]])
    if given.ndim == 2:
        scalars = [value.item() for value in per_problem]
        return PartialTransport(*scalars, *(_like(array[0], cost) for array in arrays))  # type: ignore[arg-type]
    return PartialTransport(*(_like(array, cost) for array in (*per_problem, *arrays)))


def check_capacity(capacity: float) -> None:
    """Refuse a capacity below 1, which leaves no room for the rows' mass."""
    if not (np.isfinite(capacity) and capacity >= 1.0):
        raise InputError(
            "capacity_range", f"capacity={capacity} must be >= 1 (1 is balanced transport)"
        )


def check_epsilon(epsilon: float) -> None:
    """Refuse an epsilon that is not positive and finite."""
    if not (np.isfinite(epsilon) and epsilon > 0.0):
        raise InputError("epsilon_range", f"epsilon={epsilon} must be > 0; try 0.025 x median cost")


def _like(tensor: torch.Tensor, given: Array) -> Array:
    return tensor if isinstance(given, torch.Tensor) else tensor.cpu().numpy()


@dataclass(frozen=True)
class Solution:
    """Potentials of a batch [b, r], r = m + 1 with slack (last, zero) or m, and how good they are.

    `row_error` [b], `converged` [b] and `n_iter` [b] are as in `PartialTransport`.
    """

    potentials: torch.Tensor
    row_error: torch.Tensor
    converged: torch.Tensor
    n_iter: torch.Tensor

    @classmethod
    def joined(cls, parts: list["Solution"]) -> "Solution":
        """Return one batch of several."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls))
        )


@dataclass(frozen=True)
class Problem:
    """The settings that problems share; `costs` are float64 [b, m, n] throughout.

    `column_weights` [n], on the device of the costs, sum to one; None: 1/n each. `slack_costs` [n]
    are what a column pays for what it keeps; None: nothing. A constant would change nothing.
    """

    capacity: float
    epsilon: float
    tol: float = DEFAULT_TOL
    max_iter: int = DEFAULT_MAX_ITER
    column_weights: torch.Tensor | None = field(default=None, compare=False)
    slack_costs: torch.Tensor | None = field(default=None, compare=False)

    @property
    def has_slack(self) -> bool:
        """Whether columns may stay partly unused."""
        return self.capacity > 1.0

    def row_masses(self, m: int, device: torch.device) -> torch.Tensor:
        """Return the masses of the m rows and, last, of the slack: [m + 1] or [m]."""
        masses = torch.full((m + self.has_slack,), 1.0 / m, dtype=torch.float64, device=device)
        if self.has_slack:
            masses[m] = self.capacity - 1.0
        return masses

    def column_masses(self, n: int, device: torch.device) -> torch.Tensor:
        """Return what each column holds, the slack included: [n]."""
        if self.column_weights is None:
            return torch.full((n,), self.capacity / n, dtype=torch.float64, device=device)
        return self.capacity * self.column_weights

    def with_slack(self, costs: torch.Tensor) -> torch.Tensor:
        """Return the costs with the slack's row, zeros as a rule, below: [b, r, n]."""
        if not self.has_slack:
            return costs
        slack = costs.new_zeros(len(costs), 1, costs.shape[2])
        if self.slack_costs is not None:
            slack += self.slack_costs.to(costs.device)
        return torch.cat([costs, slack], 1)

    def potentials_from(self, costs: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Solve one problem [m, n] from potentials [r] near the answer; else from cold.

        Returns:
            Its potentials [r], the slack's at zero.
        """
        m, n = costs.shape
        found = climb_plainly(
            self.with_slack(costs[None])[0],
            self.row_masses(m, costs.device),
            self.column_masses(n, costs.device),
            start,
            self.epsilon,
            tol=self.tol * self.capacity,
            max_iter=min(WARM_STEPS, self.max_iter),
        )
        return self.solve(costs[None]).potentials[0] if found is None else self._gauged(found)

    def solve(self, costs: torch.Tensor) -> Solution:
        """Maximise the semi-dual of each problem, costs [b, m, n]."""
        block = max(1, BLOCK_ENTRIES // costs[0].numel())
        solved = [self._solve_block(costs[i : i + block]) for i in range(0, len(costs), block)]
        return Solution.joined(solved)

    def solve_subsets(
        self, cost: torch.Tensor, subsets: torch.Tensor
    ) -> tuple[Solution, torch.Tensor, torch.Tensor]:
        """Solve the problems of some rows of `cost` [n_images, n] each, a few at a time.

        Args:
            cost: float32.
            subsets: The rows [b, m].

        Returns:
            The solutions, their transport costs [b], and what these can't be below [b]: where a
            problem has not converged the linear programme's dual value.
        """
        block = max(1, BLOCK_ENTRIES // (subsets.shape[1] * cost.shape[1]))
        solutions, transport, least = [], [], []
        for some in subsets.split(block):
            costs = cost[some].double()  # [b, m, n]
            solution = self._solve_block(costs)
            solutions.append(solution)
            transport.append(self.transport_costs(costs, solution.potentials))
            least.append(transport[-1].clone())
            if not bool(solution.converged.all()):
                is_open = ~solution.converged
                least[-1][is_open] = self.lower_bound(costs[is_open], solution.potentials[is_open])
        return Solution.joined(solutions), torch.cat(transport), torch.cat(least)

    def _solve_block(self, costs: torch.Tensor) -> Solution:
        typical = (costs - costs.amin((1, 2), keepdim=True)).flatten(1).median(1).values
        return self._climb(costs, (START_TEMPERATURE * typical).clamp(min=self.epsilon))

    def _climb(self, costs: torch.Tensor, temperature: torch.Tensor) -> Solution:
        """Climb the semi-dual of each problem [b, m, n], cooling from `temperature` to epsilon."""
        b, m, n = costs.shape
        masses = self.row_masses(m, costs.device)
        column_masses = self.column_masses(n, costs.device)
        warm_tol = min(WARM_TOL, 0.5 * masses.min().item())
        tol = self.tol * self.capacity  # the masses sum to the capacity
        start = costs.new_zeros(b, m + self.has_slack)
        potentials = start.clone()
        row_error = costs.new_full((b,), torch.inf)
        n_iter = torch.zeros(b, dtype=torch.int64, device=costs.device)

        active = torch.arange(b, device=costs.device)
        state = NewtonState(self.with_slack(costs), masses, column_masses, start, temperature)
        for step in range(self.max_iter + 1):
            # Rough problems cool; a problem is done by its own error, whoever shares the batch.
            error = state.error
            at_end = state.temperature <= self.epsilon
            done = at_end & (error <= tol)
            if step == self.max_iter:
                done = torch.ones_like(done)
            ended = torch.nonzero(done)[:, 0]
            if len(ended):
                finished = active[ended]
                potentials[finished] = state.potentials[ended]
                row_error[finished] = torch.where(at_end, error, torch.inf)[ended]
                n_iter[finished] = step
                if len(ended) == len(active):
                    break
                stay = torch.nonzero(~done)[:, 0]
                active = active[stay]
                state.keep(stay)
                error, at_end = state.error, state.temperature <= self.epsilon
            cooling = ~at_end & (error <= warm_tol)
            if cooling.any():
                state.cool(cooling, self.epsilon)
            state.step()
        return Solution(self._gauged(potentials), row_error, row_error <= tol, n_iter)

    def _gauged(self, potentials: torch.Tensor) -> torch.Tensor:
        """Return potentials [..., r] with the slack's at zero, or without slack their mean."""
        if self.has_slack:
            return potentials - potentials[..., -1:]
        return potentials - potentials.mean(-1, keepdim=True)

    def plan(self, costs: torch.Tensor, potentials: torch.Tensor) -> torch.Tensor:
        """Return the plans [b, m, n] of `potentials`, rounded onto the constraints.

        Columns are within capacity by construction. Rows above 1/m are scaled down to it, and what
        then lacks is spread over the room left in the columns, so the plan is always feasible and
        its cost never below the linear programme's.
        """
        m, n = costs.shape[1:]
        augmented = self.with_slack(costs)
        column_masses = self.column_masses(n, costs.device)
        share = torch.softmax((potentials[:, :, None] - augmented) / self.epsilon, 1)[:, :m]
        plan = share.mul_(column_masses)
        rows = plan.sum(2, keepdim=True)  # [b, m, 1]
        plan *= (1.0 / m / rows.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)
        lacking = (1.0 / m - plan.sum(2, keepdim=True)).clamp(min=0.0)  # [b, m, 1]
        room = (column_masses - plan.sum(1, keepdim=True)).clamp(min=0.0)  # [b, 1, n]
        total = room.sum(2, keepdim=True)
        return plan.add_(lacking * (room / total.clamp(min=torch.finfo(torch.float64).tiny)))

    def transport_costs(self, costs: torch.Tensor, potentials: torch.Tensor) -> torch.Tensor:
        """Return `<C, plan>` of each problem, [b]."""
        block = max(1, BLOCK_ENTRIES // costs[0].numel())
        return torch.cat(
            [
                (
                    self.plan(costs[i : i + block], potentials[i : i + block])
                    * costs[i : i + block]
                ).sum((1, 2))
                for i in range(0, len(costs), block)
            ]
        )

    def lower_bound(self, costs: torch.Tensor, potentials: torch.Tensor) -> torch.Tensor:
        """Return the linear programme's dual value at `potentials`, [b]: never above its optimum.

        The dual is `mean(f) + (kappa - 1) h + kappa sum_j w_j min(min_i(C_ij - f_i), -h)`: any f
        and h give a bound (the h terms vanish without slack).
        """
        m, n = costs.shape[1:]
        reduced = (self.with_slack(costs) - potentials[:, :, None]).amin(1)  # [b, n]
        masses = self.row_masses(m, costs.device)
        return potentials @ masses + reduced @ self.column_masses(n, costs.device)
