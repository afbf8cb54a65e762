"""A set of images, roughly solved, ready to be extended by any one more.

Adding j to a base set B changes one row of the transport problem. In the scalings x of B's own
potentials and u of the newcomer,

    share_il = x_i P_il / Z_l,   share_jl = u K_jl / Z_l,   Z_l = sum_i x_i P_il + u K_jl,

where P, the soft-max of the base's potentials down every column, is the same for every j. So all
that candidates share is a matrix product over a stack of scalings.
"""

from dataclasses import replace

import torch

from gadc.objective.newton import negative_hessian
from gadc.objective.overlaps import Overlaps
from gadc.objective.transport import Problem

# Error of the base's row masses. Its solution is where others start from; they need not be exact.
TOL = 1e-4
# Scalings are exponentials: a larger logarithm would overflow float32, and changes no share.
MAX_LOG_SCALING = 80.0
# Damping of the base's own Hessian, relative to the diagonal.
INVERSE_RIDGE = 1e-4
# Matrices of products are padded to multiples of this many columns.
PADDED = 16
# Shares below this are zero in float32 arithmetic.
LEAST_SHARE = 1e-30


class Extension:
    """The base set `base` [m - 1] at potentials that nearly solve it.

    Args:
        problem: Settings of the transport problem.
        cost: [n_images, n], float32.
        base: Indices of the base set, possibly none.
        potentials: f of the base's rows and the slack, [r]; the slack's, last, is zero.

    Attributes:
        m: Size of the extended set.
        masses: What the base's rows, the slack if there is one, and the newcomer hold, [r + 1].
        column_mass: What each column holds, [n].
        column: g, [n].
        plan: P, [r, n]; columns sum to one, but for the rounding of g.
        base_costs: Costs of those rows, [r, n].
        surplus: What costs are above the potentials, C_il - f_i - g_l = -epsilon log P_il, [r, n].
    """

    def __init__(
        self, problem: Problem, cost: torch.Tensor, base: torch.Tensor, potentials: torch.Tensor
    ) -> None:
        self.problem, self.cost, self.base, self.potentials = problem, cost, base, potentials
        self.m, n = len(base) + 1, cost.shape[1]
        self.base_costs = problem.with_slack(cost[base].double()[None])[0]
        self.masses = self._masses_of(self.m)
        self.column_mass = problem.column_masses(n, cost.device)
        scaled = (potentials[:, None] - self.base_costs) / problem.epsilon
        # Rounded once, so that float32 and float64 mean the same by it.
        self.column32 = (-problem.epsilon * torch.logsumexp(scaled, 0)).float()
        self.column = self.column32.double()
        self.plan = torch.exp(scaled + self.column / problem.epsilon)
        # What is next to nothing is nothing: arithmetic on subnormal numbers is slow.
        shares = torch.where(self.plan > LEAST_SHARE, self.plan, 0.0).float()
        self._padded_plan = _padded(shares)
        self.plan32 = self._padded_plan[: len(shares)]
        self.column_mass32 = self.column_mass.float()
        self.surplus = self.base_costs - potentials[:, None] - self.column
        held = self.plan32 * self.column_mass32
        priced = held * self.surplus.float()
        self.held_and_surplus = _padded(held, priced).T.contiguous()  # [n, 2 r], and zeros
        self._overlaps: Overlaps | None = None
        self._inverse_hessian: torch.Tensor | None = None
        self._plan_costs: torch.Tensor | None = None

    def plan_sums(self, columns: torch.Tensor) -> torch.Tensor:
        """Return `sum_l columns_l P_il` for each of `columns` float32 [p, n], [p, r]."""
        return (columns @ self._padded_plan.T)[:, : len(self.plan32)]

    @classmethod
    def solved(
        cls,
        problem: Problem,
        cost: torch.Tensor,
        base: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
    ) -> "Extension":
        """Solve the base roughly.

        Args:
            problem: Settings of the transport problem.
            cost: [n_images, n], float32.
            base: Indices of the base set, possibly none.
            start: The base's potentials [m - 1] in some similar set; NaN where unknown.
        """
        n_slack = int(problem.has_slack)
        if not len(base):
            return cls(problem, cost, base, cost.new_zeros(n_slack, dtype=torch.float64))
        costs = cost[base].double()  # [m - 1, n]
        roughly = replace(problem, tol=TOL)
        if start is not None and bool(start.isfinite().all()):
            begin = torch.cat([start, start.new_zeros(n_slack)])
            potentials = roughly.potentials_from(costs, begin)
        else:
            potentials = roughly.solve(costs[None]).potentials[0]
        return cls(problem, cost, base, potentials)

    def _masses_of(self, m: int) -> torch.Tensor:
        """Return what each of the base's rows, the slack and the newcomer hold in a set of m."""
        masses = self.problem.row_masses(m, self.cost.device)
        return torch.cat([masses[:1].expand(len(self.base)), masses[m:], masses[:1]])

    @property
    def masses_of_exchange(self) -> torch.Tensor:
        """As `masses`, where the newcomer takes the place of an image of the base, [r + 1]."""
        return self._masses_of(self.m - 1)

    def masses_for(self, dropped: torch.Tensor | None) -> torch.Tensor:
        """Return what rows hold where newcomers take places, or with None join them all."""
        return self.masses if dropped is None else self.masses_of_exchange

    def others(self, place: int) -> torch.Tensor:
        """Return the images of the base but the one at `place`, [m - 2]."""
        return all_but(self.base, place)

    @property
    def overlaps(self) -> Overlaps:
        """Of the plan; computed when they are first asked for."""
        if self._overlaps is None:
            self._overlaps = Overlaps.of(self.plan32)
        return self._overlaps

    def take_overlaps(self, overlaps: Overlaps) -> None:
        """Use these, which somebody has computed for less."""
        self._overlaps = overlaps

    @property
    def inverse_hessian(self) -> torch.Tensor:
        """Of the base alone, by log-scalings, float32 [r, r]; computed when it is first asked for.

        Of the negative Hessian, damped so that there is one: it only steers.
        """
        if self._inverse_hessian is None:
            hessian = negative_hessian(self.plan32, self.column_mass32)
            hessian.diagonal().mul_(1.0 + INVERSE_RIDGE)
            self._inverse_hessian = torch.cholesky_inverse(torch.linalg.cholesky_ex(hessian).L)
        return self._inverse_hessian

    @property
    def plan_costs(self) -> torch.Tensor:
        """The plan times its costs, [r, n]; computed when it is first asked for."""
        if self._plan_costs is None:
            self._plan_costs = self.plan * self.base_costs
        return self._plan_costs

    @property
    def is_bare(self) -> bool:
        """Whether nothing competes with the newcomer: no base and no slack."""
        return len(self.potentials) == 0

    def with_newcomers(self, newcomers: torch.Tensor) -> torch.Tensor:
        """Return potentials [p, r + 1] in which the base stays as it is beside `newcomers` [p]."""
        return torch.cat([self.potentials.expand(len(newcomers), -1), newcomers[:, None]], 1)


def all_but(values: torch.Tensor, place: int) -> torch.Tensor:
    """Return `values` [k] but the one at `place`, [k - 1]."""
    return torch.cat([values[:place], values[place + 1 :]])


def _padded(*rows: torch.Tensor) -> torch.Tensor:
    """Return rows [r, n] below each other, and zeros: products of whole vectors are faster."""
    n_rows = sum(map(len, rows))
    return torch.cat([*rows, rows[0].new_zeros(-n_rows % PADDED, rows[0].shape[1])])
