"""A set of images, solved, ready to be extended by any one more.

Adding j to a base set B changes one row of the transport problem. In the scalings x of B's own
solution and u of the newcomer,

    share_il = x_i P_il / Z_l,   share_jl = u K_jl / Z_l,   Z_l = sum_i x_i P_il + u K_jl,

where P, the base's own plan with columns that sum to one, is the same for every j. So all that
candidates share is a matrix product over a stack of scalings.
"""

import functools

import torch

from gadc.objective.transport import Problem

# Scalings are exponentials: a larger logarithm would overflow float32, and changes no share.
MAX_LOG_SCALING = 80.0
# Two rows whose plans overlap by less than this are taken as independent in Hessians: with many
# rows, most pairs never meet.
LEAST_OVERLAP = 1e-5
# Shares below this are zero in float32 arithmetic.
LEAST_SHARE = 1e-30


class Extension:
    """The base set `base` [m - 1], solved.

    Args:
        problem: Settings of the transport problem.
        cost: [n_images, n], float32.
        base: Indices of the base set, possibly none.
        start: The base's potentials [m - 1] in some similar set; NaN where unknown.

    Attributes:
        m: Size of the extended set.
        masses: What the base's rows, the slack if there is one, and the newcomer hold, [r + 1].
        column_mass: What each column holds, [n].
        potentials: f of the base's rows and the slack, [r]; the slack's, last, is zero.
        column: g, [n].
        plan: P, [r, n]; columns sum to one.
        base_costs: Costs of those rows, [r, n].
    """

    def __init__(
        self,
        problem: Problem,
        cost: torch.Tensor,
        base: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
    ) -> None:
        self.problem, self.cost, self.base = problem, cost, base
        self.m, n = len(base) + 1, cost.shape[1]
        base_costs = cost[base].double()[None]  # [1, m - 1, n]
        if len(base):
            known = start is not None and bool(start.isfinite().all())
            if start is not None and known:
                potentials = torch.cat([start, start.new_zeros(int(problem.has_slack))])
                solution = problem.solve_from(base_costs, potentials[None])
            else:
                solution = problem.solve(base_costs)
            self.potentials = solution.potentials[0]
        else:
            self.potentials = base_costs.new_zeros(int(problem.has_slack))
        self.base_costs = problem.with_slack(base_costs)[0]
        masses = problem.row_masses(self.m, cost.device)
        self.masses = torch.cat([masses[: self.m - 1], masses[self.m :], masses[:1]])
        self.column_mass = problem.column_masses(n, cost.device)
        scaled = (self.potentials[:, None] - self.base_costs) / problem.epsilon
        self.column = -problem.epsilon * torch.logsumexp(scaled, 0)
        self.plan = torch.exp(scaled + self.column / problem.epsilon)
        # What is next to nothing is nothing: arithmetic on subnormal numbers is slow.
        self.plan32 = torch.where(self.plan > LEAST_SHARE, self.plan, 0.0).float()
        self.masses32, self.column_mass32 = self.masses.float(), self.column_mass.float()
        priced = self.plan32 * self.base_costs.float()
        self.plan_and_price = torch.cat([self.plan32, priced]).T.contiguous()  # [n, 2 r]

    @functools.cached_property
    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs of rows that share columns [2, n_pairs], and products of their plans, by column.

        The products, float32 [n, n_pairs], make up Hessians, which only steer.
        """
        plan = self.plan32
        overlap = plan @ plan.T  # [r, r]
        norms = overlap.diagonal().sqrt()
        meet = overlap >= LEAST_OVERLAP * norms[:, None] * norms
        pairs = torch.nonzero(meet.triu()).T
        return pairs, (plan[pairs[0]] * plan[pairs[1]]).T

    @property
    def is_bare(self) -> bool:
        """Whether nothing competes with the newcomer: no base and no slack."""
        return len(self.potentials) == 0

    def with_newcomers(self, newcomers: torch.Tensor) -> torch.Tensor:
        """Return potentials [p, r + 1] in which the base stays as it is beside `newcomers` [p]."""
        return torch.cat([self.potentials.expand(len(newcomers), -1), newcomers[:, None]], 1)
