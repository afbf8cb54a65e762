"""Newton on the semi-dual of partial transport: damped for batches, plain near an answer."""

import math

import torch

# A problem starts hot and cools fourfold each time its row masses are roughly right, so that each
# Newton run starts near its answer.
COOLING = 0.25
# Longest Newton step at first, in units of the temperature: beyond it the quadratic model says
# little. It doubles while such steps help, so that a plateau is crossed, and halves when they fail.
FIRST_RADIUS = 8.0
# Levenberg's damping, relative to the diagonal: where it starts, and its floor when raised.
FIRST_DAMPING = 1e-3
LEAST_RAISED_DAMPING = 1e-6
LEAST_DAMPING = 1e-12
# Relative rounding of the dual value: a step that loses less is not a loss.
VALUE_ROUNDING = 1e-13
# Keeps a row that holds no mass at all solvable.
LEAST_DIAGONAL = 1e-14


class NewtonState:
    """Potentials [b, r] of b problems, each at its own temperature, climbing the semi-dual.

    Args:
        costs: [b, r, n], the slack's row of zeros included.
        masses: What each row must hold, [r].
        column_masses: What each column holds, [n].
        potentials: Where to start, [b, r].
        temperature: What takes epsilon's place at first, [b].

    Attributes:
        value: Dual value over temperature, [b].
        share: Soft-max down every column, [b, r, n].
        gradient: Row masses wanted minus those there, [b, r].
    """

    def __init__(
        self,
        costs: torch.Tensor,
        masses: torch.Tensor,
        column_masses: torch.Tensor,
        potentials: torch.Tensor,
        temperature: torch.Tensor,
    ) -> None:
        self.costs, self.masses, self.column_masses = costs, masses, column_masses
        self.temperature = temperature
        self.damping = torch.full_like(temperature, FIRST_DAMPING)
        self.radius = torch.full_like(temperature, FIRST_RADIUS)
        self._be_at(potentials, *self.evaluate(potentials))

    def keep(self, places: torch.Tensor) -> None:
        """Go on with the problems at `places` alone."""
        for name in (
            "costs", "potentials", "temperature", "damping", "radius", "value", "share", "gradient",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[places])

    def evaluate(self, potentials: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return dual values [b] and column shares [b, r, n]."""
        scaled = potentials[:, :, None] - self.costs
        scaled /= self.temperature[:, None, None]
        peak = scaled.amax(1, keepdim=True)
        share = scaled.sub_(peak).exp_()
        total = share.sum(1, keepdim=True)
        share /= total
        log_sum = (peak + total.log_())[:, 0] @ self.column_masses  # [b]
        value = potentials @ self.masses / self.temperature - log_sum
        return value, share

    @property
    def error(self) -> torch.Tensor:
        """Summed error of the row masses, [b]."""
        return self.gradient.abs().sum(1)

    def cool(self, mask: torch.Tensor, epsilon: float) -> None:
        """Lower the temperature of the problems in `mask`, keeping their potentials."""
        cooler = (self.temperature * COOLING).clamp(min=epsilon)
        self.temperature = torch.where(mask, cooler, self.temperature)
        self.damping = torch.where(mask, FIRST_DAMPING, self.damping)
        self.radius = torch.where(mask, FIRST_RADIUS, self.radius)
        self._be_at(self.potentials, *self.evaluate(self.potentials))

    def _be_at(self, potentials: torch.Tensor, value: torch.Tensor, share: torch.Tensor) -> None:
        self.potentials, self.value, self.share = potentials, value, share
        self.gradient = self.masses - share @ self.column_masses

    def step(self) -> None:
        """Take one damped Newton step where it raises the dual value; else damp more."""
        there = self.masses - self.gradient
        held = self.share * self.column_masses  # [b, r, n]
        negative_hessian = (held @ self.share.transpose(1, 2)).neg_()
        diagonal = there * (1.0 + self.damping[:, None]) + torch.finfo(torch.float64).tiny
        negative_hessian.diagonal(dim1=1, dim2=2).add_(diagonal)
        # Adding a constant to all potentials changes nothing: fix that direction.
        negative_hessian += 1.0 / len(self.masses) ** 2
        negative_hessian.diagonal(dim1=1, dim2=2).add_(LEAST_DIAGONAL)
        # Where it can't be solved for, numbers are NaN, no value is better, and damping grows.
        step = torch.linalg.solve_ex(negative_hessian, self.gradient).result
        length = step.amax(1) - step.amin(1)
        is_long = length > self.radius
        step *= (self.radius / length).clamp(max=1.0)[:, None]
        proposed = self.potentials + self.temperature[:, None] * step
        value, share = self.evaluate(proposed)
        better = value >= self.value - VALUE_ROUNDING * self.value.abs()
        self.damping = torch.where(
            better,
            (self.damping * 0.1).clamp(min=LEAST_DAMPING),
            (self.damping * 10.0).clamp(min=LEAST_RAISED_DAMPING),
        )
        growth = torch.where(better & is_long, 2.0, 1.0)
        self.radius *= torch.where(better, growth, torch.where(is_long, 0.5, 1.0))
        if not better.all():
            proposed = torch.where(better[:, None], proposed, self.potentials)
            value = torch.where(better, value, self.value)
            share = torch.where(better[:, None, None], share, self.share)
        self._be_at(proposed, value, share)


def negative_hessian(plan: torch.Tensor, column_mass: torch.Tensor) -> torch.Tensor:
    """Return it for one problem, by log-scalings, [r, r].

    Args:
        plan: What rows hold of the columns, as shares, [r, n].
        column_mass: What each column holds, [n].
    """
    held = plan * column_mass
    hessian = -(held @ plan.T)
    hessian.diagonal().sub_(hessian.sum(1))
    hessian += 1.0 / len(hessian) ** 2  # fixes the direction in which all shift together
    return hessian


def climb_plainly(
    costs: torch.Tensor,
    masses: torch.Tensor,
    column_masses: torch.Tensor,
    potentials: torch.Tensor,
    epsilon: float,
    *,
    tol: float,
    max_iter: int,
) -> torch.Tensor | None:
    """Take plain Newton steps from near the answer: a few operations each, where damping has many.

    Args:
        costs: Of one problem, the slack's row included, [r, n].
        masses: What each row must hold, [r].
        column_masses: What each column holds, [n].
        potentials: Where to start, [r].
        epsilon: Entropic regularisation.
        tol: Summed error of the row masses at which to stop.
        max_iter: Steps at most.

    Returns:
        The potentials [r]; None where the start was not near enough.
    """
    for _ in range(max_iter + 1):
        share = torch.softmax((potentials[:, None] - costs) / epsilon, 0)
        missing = masses - share @ column_masses
        if float(missing.abs().sum()) <= tol:
            return potentials
        hessian = negative_hessian(share, column_masses)
        hessian.diagonal().add_(LEAST_DIAGONAL)
        step, info = torch.linalg.solve_ex(hessian, missing)
        length = float((step.amax() - step.amin()).masked_fill(info != 0, math.nan))
        if not length < math.inf:
            return None
        potentials = potentials + epsilon * min(1.0, FIRST_RADIUS / max(length, 1e-30)) * step
    return None
