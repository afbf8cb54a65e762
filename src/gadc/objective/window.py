"""The objective as a few chosen images see it, while all others stay where they are.

Of the dual of the whole transport problem, the row potentials f_o of the others are kept. Beside
the window's rows every column l then has one more, which stands for all the others and the slack:

    e^(s_l / epsilon) = sum_o e^((f_o - C_ol) / epsilon) + 1       (the slack's potential is zero)

It is the slack of a problem of the window's own, at costs -s_l: what a column does not get from
the window it gets from the others at the price that they ask now. Their prices would change with
what they give, so a value is right to first order, and exact where nothing changes.

The other terms are exact: sums over the others are constants.
"""

from dataclasses import dataclass

import numpy as np
import torch

from gadc.objective.addition import Additions
from gadc.objective.cost import centred, class_costs
from gadc.objective.guides import Guides
from gadc.objective.look import Addition
from gadc.objective.transport import Problem

# Relative rounding of differences of moments in float32, generously.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Others:
    """What the images chosen outside the window add to the terms other than transport.

    Attributes:
        n_chosen: m, all chosen images, the window's included.
        total: Sum of the others' features, float64 [d].
        squares: Sum of their squares, float64 [d].
        mean: The target's mean, float64 [d].
        std: Its standard deviation, float64 [d].
        mean_weight: Weight of `||mu_S - mu||^2`.
        std_weight: Weight of `||sigma_S - sigma||^2`.
        confidence_weight: Weight of the mean confidence loss.
    """

    n_chosen: int
    total: torch.Tensor
    squares: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    mean_weight: float
    std_weight: float
    confidence_weight: float


class Window:
    """A few images, among which some are chosen, as an objective.

    Values are in units of the window's share of the subset, w/m for w of m images, and relative:
    only their differences mean something.

    Args:
        features: The window's images [p, d], float32, in the coordinates of `others`.
        column_masses: What each can hold, in units of the window's mass [p].
        outside: s_l [p].
        epsilon: Entropic regularisation.
        n_here: w, chosen images in the window.
        others: What the chosen images outside add.
        losses: `-log p(c | x)` [p].
        scale: The typical cost of the whole data set.
    """

    def __init__(
        self,
        features: torch.Tensor,
        column_masses: torch.Tensor,
        outside: torch.Tensor,
        *,
        epsilon: float,
        n_here: int,
        others: Others,
        losses: torch.Tensor,
        scale: float,
    ) -> None:
        self.scale = scale
        self._features, self._others, self._losses = features, others, losses
        self._unit = others.n_chosen / n_here
        rows = centred(features, features.mean(0, dtype=torch.float64))
        self.cost = class_costs(features, features, rows, rows).fill_diagonal_(0.0)
        capacity = float(column_masses.sum())
        self.problem = Problem(
            capacity, epsilon, column_weights=column_masses / capacity, slack_costs=-outside
        )
        self._additions = Additions(
            self.problem,
            self.cost,
            scale=scale,
            rest_of=self._rest_with,
            guides=Guides.among(rows, self.cost),
        )

    def value(self, indices: list[int]) -> float:
        """Return the value of the window's images `indices` [w], converged."""
        chosen = torch.tensor(indices)
        costs = self.cost[chosen].double()[None]
        potentials = self.problem.solve(costs).potentials
        plan = self.problem.plan(costs, potentials)
        kept = self.problem.column_masses(costs.shape[2], costs.device) - plan.sum(1)
        transport = (plan * costs).sum() + (kept * self.problem.with_slack(costs)[:, -1]).sum()
        rest, _ = self._rest_with(chosen[:-1], chosen[-1:], False)
        return float(transport + rest)

    def potentials(self, indices: list[int]) -> torch.Tensor:
        """Return f of the images `indices` [w], the slack's of the whole problem at zero."""
        costs = self.cost[torch.tensor(indices)].double()[None]
        return self.problem.solve(costs).potentials[0, : len(indices)]

    def best_addition(self, base: list[int], pool: np.ndarray, *, below: float) -> Addition:
        """See `Objective.best_addition`; the base has w - 1 images."""
        return self._additions.best(base, pool, below=below)

    def _rest_with(
        self, base: torch.Tensor, pool: torch.Tensor, fast: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted terms other than transport of `base + [j]`, and their error, [p].

        The newcomer's part is computed on its own: next to those of thousands of others it would
        drown in float32.
        """
        others, m = self._others, self._others.n_chosen
        dtype = torch.float32 if fast else torch.float64
        held = self._features[base].double()
        total = others.total + held.sum(0)
        squares = others.squares + held.square().sum(0)
        gap = total / m - others.mean
        variance = ((squares - total.square() / m) / max(1, m - 1)).clamp_(min=0.0)
        std = variance.sqrt()
        constant = self._weigh(gap.square().sum(), (std - others.std).square().sum())

        newcomer = self._features[pool].to(dtype)  # [p, d]
        squared = newcomer.square()
        mean = newcomer @ (2.0 / m * gap).to(dtype) + squared.sum(1) / m**2
        more = squared.mul_(1.0 - 1.0 / m).addcmul_(
            newcomer, (total / m).to(dtype), value=-2.0
        )  # by which the summed squares about the mean grow
        more /= max(1, m - 1)
        wider = more / (more + variance.to(dtype)).clamp_(min=0.0).sqrt_().add_(
            std.to(dtype)
        ).clamp_(min=torch.finfo(dtype).tiny)
        spread = wider @ (2.0 * (std - others.std)).to(dtype) + wider.square().sum(1)
        changes = self._weigh(mean, spread).double()
        confidence = (self._losses[base].sum() + self._losses[pool]) * others.confidence_weight / m
        rest = self._unit * (constant + changes + confidence)
        size = changes.abs() + (others.mean_weight + others.std_weight) * self.scale / m
        return rest, ROUNDING * self._unit * size if fast else torch.zeros_like(rest)

    def _weigh(self, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        return self._others.mean_weight * mean + self._others.std_weight * std
