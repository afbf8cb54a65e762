"""Newton's method for "base + j" over many j at once: the exact answer, at O(m^2 n) a step."""

import warnings

import torch

from gadc.errors import ConvergenceWarning
from gadc.objective.conjugate import RIDGE, iterated_steps, shortened, without_dropped
from gadc.objective.extension import MAX_LOG_SCALING, Extension
from gadc.objective.first_order import SAFETY, Sensitivity, decrements
from gadc.objective.row_scaling import LOG2_E, scale_rows

# Newton steps for a candidate before it is handed to the general solver.
MAX_STEPS = 20
# The first steps hardly move the linear bounds; from this one on they are looked at for as long as
# the last look left at most this share of the candidates.
FIRST_BOUND_STEP = 2
BOUNDS_PAY = 0.9
# Estimates are about to settle where the next step, as the logarithm of a scaling, is as short.
SHORT_STEP = 0.5
# With more rows than this, Newton steps are iterated: so many times.
MOST_FACTORED = 24
N_ITERATIONS = 6
# Kernels that were cut off count for nothing while the newcomer's scaling, as a logarithm, is not
# further below the largest of the base.
LEAST_LOG_SCALING = -50.0
# Steps of a newcomer's own scaling, before all rows take one.
N_OWN_STEPS = 3
# Column sums further below those of the base steer by this much at most; float32 ends at 1e38.
MOST_INVERSE = 1e30


class Rule:
    """When a candidate is given up before it is solved.

    Args:
        ceilings: It is when its cost is above its ceiling, [p].
        sensitivity: Of the problems; without it only the linear programme's bound tells.
    """

    def __init__(self, ceilings: torch.Tensor, sensitivity: Sensitivity | None = None) -> None:
        self._ceilings, self._sensitivity = ceilings, sensitivity
        self._bounds_pay = sensitivity is None

    def possible(self, stack: "NewtonStack", steps: torch.Tensor, n_steps: int) -> torch.Tensor:
        """Return whose cost may be below its ceiling, bool [p]; `steps` are Newton's next."""
        if self._sensitivity is not None:
            decrement = decrements(stack.missing, steps, stack.masses)
            margins = SAFETY * self._sensitivity.bound(decrement, steps)
            return ~(stack.estimates() - margins > self._ceilings)
        possible = torch.ones_like(self._ceilings, dtype=torch.bool)
        if n_steps >= FIRST_BOUND_STEP and self._bounds_pay:
            possible = stack.lower_bounds() <= self._ceilings
            self._bounds_pay = int(possible.sum()) < BOUNDS_PAY * len(possible)
        return possible

    def keep(self, places: torch.Tensor) -> None:
        """Go on with the candidates at `places` alone."""
        self._ceilings = self._ceilings[places]


class Race(Rule):
    """A rule that proves nothing: who is behind by more than its estimate still moves gives up.

    Args:
        ceilings: Of the candidates, [p].
        group: Who competes with whom: numbers from 0, [p].
        n_groups: How many of them.
        rest: What each is worth beside its cost, [p].
    """

    def __init__(
        self, ceilings: torch.Tensor, group: torch.Tensor, n_groups: int, rest: torch.Tensor
    ) -> None:
        super().__init__(ceilings)
        self._group, self._rest = group, rest
        # What the best is worth of those of a group that are solved.
        self._done = ceilings.new_full((n_groups,), torch.inf)
        self._before = torch.full_like(ceilings, torch.inf)

    def possible(self, stack: "NewtonStack", steps: torch.Tensor, n_steps: int) -> torch.Tensor:
        """See `Rule.possible`."""
        estimates, done = stack.estimates(), stack.is_done
        settles = (steps.abs().amax(1) <= SHORT_STEP) & stack.error.isfinite()
        doubt = torch.where(settles, (estimates - self._before).abs(), torch.inf)
        doubt[done] = 0.0
        self._before = estimates
        worth = estimates + self._rest
        most = (worth + doubt).nan_to_num(nan=torch.inf, neginf=torch.inf)
        self._done.scatter_reduce_(0, self._group, torch.where(done, most, torch.inf), "amin")
        # Of those on their way only what is thought now counts: an estimate can rise again.
        bars = self._done.scatter_reduce(0, self._group, most, "amin")[self._group]
        # Rounding must not let the leader give itself up: both sides add the same to the same.
        return ~((worth - doubt > bars) | (estimates - doubt > self._ceilings))

    def keep(self, places: torch.Tensor) -> None:
        """See `Rule.keep`."""
        super().keep(places)
        for name in ("_group", "_rest", "_before"):
            setattr(self, name, getattr(self, name)[places])


class NewtonStack:
    """The semi-dual of p candidates, climbed together, float64.

    Args:
        extension: The base.
        pool: The candidates [p].
        potentials: Where to start: base rows, slack, newcomer, [p, r + 1].
        dropped: Which image of the base each takes the place of, [p]; default: it joins them all.
        tol: Summed error of the row masses at which one is done; default: that of the problem.

    Attributes:
        there: Row masses at the present scalings, [p, r + 1].
        missing: Those wanted minus those there, [p, r + 1]; 0 for a row that is dropped.
        error: Summed error of the row masses, [p]; infinite where what was cut off could count.
    """

    def __init__(
        self,
        extension: Extension,
        pool: torch.Tensor,
        potentials: torch.Tensor,
        *,
        dropped: torch.Tensor | None = None,
        tol: float | None = None,
    ) -> None:
        self.extension, self.dropped = extension, dropped
        self.tol = extension.problem.tol if tol is None else tol
        self.masses = extension.masses_for(dropped)
        epsilon = extension.problem.epsilon
        self.newcomer_costs = extension.cost.index_select(0, pool).double()  # [p, n]
        newcomers = potentials[:, -1:]
        self.newcomer = (
            (newcomers + extension.column - self.newcomer_costs)
            .mul_(LOG2_E / epsilon)
            .clamp_(max=LOG2_E * MAX_LOG_SCALING)
            .exp2_()
        )  # [p, n]
        self.start = extension.with_newcomers(newcomers[:, 0])
        self.log_scaling = (potentials - self.start) / epsilon
        self.evaluate()

    def keep(self, places: torch.Tensor) -> None:
        """Go on with the candidates at `places` alone."""
        for name in (
            "newcomer_costs", "newcomer", "start", "log_scaling",
            "scaling", "inverse", "there", "missing", "error",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name).index_select(0, places))
        self.dropped = None if self.dropped is None else self.dropped[places]

    @property
    def is_done(self) -> torch.Tensor:
        """Whose row masses are right, bool [p]."""
        return self.error <= self.tol

    @property
    def potentials(self) -> torch.Tensor:
        """Potentials [p, r + 1]; the slack's, last but one, is zero if there is one."""
        return self.start + self.extension.problem.epsilon * self.log_scaling

    def evaluate(self) -> None:
        """Compute the row masses at the present scalings, and what they lack."""
        extension = self.extension
        self.scaling = without_dropped(self.log_scaling.exp(), self.dropped)
        total = torch.addmm(
            self.newcomer * self.scaling[:, -1:], self.scaling[:, :-1], extension.plan
        )  # Z, [p, n]
        self.inverse = total.reciprocal_().mul_(extension.column_mass)
        base = self.inverse @ extension.plan.T
        newcomer = (self.inverse * self.newcomer).sum(1, keepdim=True)
        self.there = torch.cat([base, newcomer], 1) * self.scaling  # [p, r + 1]
        self.missing = without_dropped(self.masses - self.there, self.dropped)
        behind = self.log_scaling[:, -1] - self.log_scaling[:, :-1].amax(1)
        error = self.missing.abs().sum(1)
        self.error = torch.where(behind < LEAST_LOG_SCALING, torch.inf, error)

    def negative_hessian(self) -> torch.Tensor:
        """Return it by log-scalings, float32 [p, r + 1, r + 1]; only the lower triangle is set."""
        p, rows = self.there.shape
        there = self.there.float()
        # inverse^2 / column_mass: the inverse holds one column mass, the Hessian needs one.
        root = (self.inverse / self.extension.column_mass.sqrt()).clamp_(max=MOST_INVERSE)
        scaling, newcomer = self._with_own_scaling()
        newcomer, weight = newcomer.mul_(root).float(), root.float()
        hessian = weight.new_zeros(p, rows, rows)
        hessian[:, -1, -1] = newcomer.square().sum(1)
        hessian[:, -1, :-1] = self.extension.plan_sums(newcomer.mul_(weight))
        overlaps = self.extension.overlaps
        hessian[:, overlaps.pairs[1], overlaps.pairs[0]] = overlaps.sums(weight)
        hessian *= scaling[:, :, None]
        hessian *= -scaling[:, None, :]
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        diagonal.add_(there, alpha=1.0 + RIDGE)
        hessian += 1.0 / rows**2  # fixes the direction in which all potentials shift together
        if self.dropped is not None:
            diagonal.scatter_add_(1, self.dropped[:, None], torch.ones_like(there[:, :1]))
        return hessian

    def _with_own_scaling(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scalings, float32 [p, r + 1], and kernels [p, n], where those hold the newcomers'.

        Both alone can leave float32's range.
        """
        scaling = self.scaling.float()
        scaling[:, -1] = 1.0
        return scaling, self.newcomer * self.scaling[:, -1:]

    def scale_newcomers(self) -> None:
        """Scale the newcomers' rows until they hold about their mass beside the others."""
        extension = self.extension
        taken = self.scaling[:, :-1] @ extension.plan
        scale_rows(
            self.log_scaling[:, -1:],
            self.newcomer,
            taken,
            extension.column_mass,
            self.masses[-1],
            n_steps=N_OWN_STEPS,
        )
        self.evaluate()

    def inverse_hessian(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inverse of the negative Hessian, float32 [p, r + 1, r + 1], and who has none.

        The identity where there is none.
        """
        factor, info = torch.linalg.cholesky_ex(self.negative_hessian())
        singular = info != 0
        none = torch.eye(factor.shape[1], device=factor.device)
        factor = torch.where(singular[:, None, None], none, factor)
        return torch.cholesky_inverse(factor), singular

    def newton_steps(self) -> torch.Tensor:
        """Return the Newton steps of the log-scalings [p, r + 1]; NaN where there is none.

        Float32 steers, float64 decides.
        """
        if len(self.extension.potentials) > MOST_FACTORED:
            scaling, newcomer = self._with_own_scaling()
            steps = iterated_steps(
                self.extension,
                scaling,
                self.missing.float(),
                self.there.float(),
                self.inverse.clamp(max=MOST_INVERSE).float(),
                newcomer.float(),
                self.dropped,
                N_ITERATIONS,
            )
            return steps.double()
        factor, info = torch.linalg.cholesky_ex(self.negative_hessian())
        steps = torch.cholesky_solve(self.missing.float()[:, :, None], factor)[:, :, 0].double()
        # A failed factorisation poisons its own candidate, which the general solver then takes.
        return steps.masked_fill_((info != 0)[:, None], torch.nan)

    def move(self, steps: torch.Tensor) -> None:
        """Take steps [p, r + 1] of the log-scalings, shortened where they are long."""
        self.log_scaling += shortened(steps)
        if self.extension.problem.has_slack:
            self.log_scaling -= self.log_scaling[:, -2:-1].clone()
        self.evaluate()

    def lower_bounds(self) -> torch.Tensor:
        """Return the linear programme's dual value at the present potentials, [p]; NaN as -inf.

        A row that is dropped may lower it.
        """
        extension, potentials = self.extension, self.potentials
        least = self.newcomer_costs - potentials[:, -1:]
        for row, costs in enumerate(extension.base_costs):
            torch.minimum(least, costs - potentials[:, row : row + 1], out=least)
        priced = without_dropped(potentials, self.dropped) @ self.masses
        bounds = priced + least @ extension.column_mass
        return torch.nan_to_num(bounds, nan=-torch.inf)

    def surplus_moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return q [p, r + 1] and V [p] of `gadc.objective.first_order` at these potentials."""
        extension = self.extension
        epsilon = extension.problem.epsilon
        shift = epsilon * self.log_scaling  # [p, r + 1]
        plan, priced = extension.plan, extension.plan * extension.surplus  # [r, n]
        newcomer = self.newcomer * self.scaling[:, -1:] * self.inverse  # plans [p, n]
        own = self.newcomer_costs - extension.column
        own -= self.potentials[:, -1:]  # G of the newcomer, [p, n]
        base_scaling, base_shift = self.scaling[:, :-1], shift[:, :-1]
        mean = base_scaling @ priced - (base_scaling * base_shift) @ plan
        mean = (mean * self.inverse + newcomer * own) / extension.column_mass  # [p, n]
        mass, first = self.inverse @ plan.T, self.inverse @ priced.T  # [p, r] each
        second = self.inverse @ (priced * extension.surplus).T
        gradient = first - base_shift * mass - (self.inverse * mean) @ plan.T
        own_gradient = (newcomer * (own - mean)).sum(1, keepdim=True)
        squares = (base_scaling * (second - base_shift * (2.0 * first - base_shift * mass))).sum(1)
        variance = squares + (newcomer * own.square()).sum(1)
        variance -= mean.square() @ extension.column_mass
        return torch.cat([gradient * base_scaling, own_gradient], 1), variance

    def estimates(self) -> torch.Tensor:
        """Return the transport costs [p] that the row masses wanted would have, nearly."""
        return self.transport_costs() + (self.potentials * self.missing).sum(1)

    def transport_costs(self) -> torch.Tensor:
        """Return `<C, pi>` of each candidate, [p]."""
        base = self.inverse @ self.extension.plan_costs.T  # [p, r]
        newcomer = (self.inverse * self.newcomer * self.newcomer_costs).sum(1, keepdim=True)
        return (torch.cat([base, newcomer], 1) * self.scaling).sum(1)


def solve(
    extension: Extension,
    pool: torch.Tensor,
    potentials: torch.Tensor,
    *,
    dropped: torch.Tensor | None = None,
    rule: Rule | None = None,
    tol: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the converged transport costs of "base + j" for the candidates `pool` [p].

    Args:
        extension: The base.
        pool: The candidates.
        potentials: Where to start, [p, r + 1].
        dropped: See `NewtonStack`.
        rule: Which of them are given up before; default: none.
        tol: See `NewtonStack`.

    Returns:
        Costs [p], infinite where given up; and the potentials [p, r + 1] of the others.

    Warns:
        ConvergenceWarning: A candidate has not converged, even with the general solver.
    """
    costs = extension.cost.new_full((len(pool),), torch.inf, dtype=torch.float64)
    solved = potentials.clone()
    stack = NewtonStack(extension, pool, potentials, dropped=dropped, tol=tol)
    left = torch.arange(len(pool), device=costs.device)
    is_hard = torch.zeros_like(left, dtype=torch.bool)
    for n_steps in range(MAX_STEPS):
        done = stack.is_done
        ended = torch.nonzero(done)[:, 0]
        if len(ended):
            at = left[ended]
            costs[at] = stack.estimates()[ended]
            solved[at] = stack.potentials[ended]
        if len(ended) == len(left):
            left = left[:0]
            break
        steps = stack.newton_steps()
        fit = stack.error.isfinite() & steps.isfinite().all(1)
        going = ~done if rule is None else ~done & (rule.possible(stack, steps, n_steps) | ~fit)
        is_hard[left] = going & ~fit
        stay = torch.nonzero(going & fit)[:, 0]
        if len(stay) < len(left):
            left, steps = left[stay], steps[stay]
            stack.keep(stay)
            if rule is not None:
                rule.keep(stay)
        if not len(left):
            break
        stack.move(steps)
    # Underflow, or a problem too hard for undamped steps: the general solver takes its time.
    rest = torch.cat([torch.nonzero(is_hard)[:, 0], left])
    if len(rest):
        exchanged = None if dropped is None else dropped[rest]
        costs[rest], solved[rest] = _solve_generally(extension, pool[rest], exchanged)
    return costs, solved


def _solve_generally(
    extension: Extension, pool: torch.Tensor, dropped: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `solve` does, from cold."""
    base = extension.base.expand(len(pool), -1)
    stays = torch.ones_like(base, dtype=torch.bool)
    if dropped is not None:
        stays.scatter_(1, dropped[:, None], False)
    rows = torch.cat([base[stays].reshape(len(pool), -1), pool[:, None]], 1)
    solution, costs, _ = extension.problem.solve_subsets(extension.cost, rows)
    if not solution.converged.all():
        n_open = int((~solution.converged).sum())
        warnings.warn(
            f"{n_open} candidates have not converged and count with the cost of a feasible "
            "plan that may not be their best; raise epsilon",
            ConvergenceWarning,
            stacklevel=3,
        )
    n_rows = rows.shape[1] - 1
    found = solution.potentials
    potentials = extension.potentials.expand(len(pool), -1).clone()
    potentials[:, : base.shape[1]][stays] = found[:, :n_rows].reshape(-1)
    return costs, torch.cat([potentials, found[:, n_rows : n_rows + 1]], 1)
