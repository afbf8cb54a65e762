"""What "base + j" is about worth for many j at once: float32, a step or two."""

import torch

from gadc.objective.conjugate import iterated_steps, shortened, without_dropped
from gadc.objective.extension import Extension
from gadc.objective.row_scaling import LOG2_E, MAX_LOG_KERNEL, scale_rows

# Before the first step of all rows: steps of a candidate's own scaling alone.
N_OWN_STEPS = 2
# What was cut off of kernels, and shares of the base as small, count for nothing while the
# scalings' logarithms are within this of each other.
MAX_LOG_RANGE = 40.0
# Iterations for a Newton step. One more changes estimates by less than they are off anyway.
N_ITERATIONS = 3
# Relative rounding of a cost in float32, generously.
ROUNDING = 1e-5


class FastStack:
    """A block of p candidates on their way, float32.

    Args:
        extension: The base.
        pool: The candidates [p].
        potentials: Where to start: base rows, slack, newcomer, [p, r + 1].
        dropped: Which image of the base each takes the place of, [p]; default: it joins them all.
    """

    def __init__(
        self,
        extension: Extension,
        pool: torch.Tensor,
        potentials: torch.Tensor,
        *,
        dropped: torch.Tensor | None = None,
    ) -> None:
        self.extension, self.dropped = extension, dropped
        self._exact_masses = extension.masses_for(dropped)
        self.masses = self._exact_masses.float()
        newcomers32 = potentials[:, -1].float()
        self.start = newcomers32.double()  # float32 and float64 mean the same by it
        shift = potentials - extension.with_newcomers(self.start)
        self.log_scaling = (shift / extension.problem.epsilon).float()
        self.log_scaling[:, -1] = 0.0
        # Of the newcomers: C_jl - f_j - g_l, and what it makes of their kernels, [p, n].
        self.surplus = extension.cost.index_select(0, pool)  # several times as fast as cost[pool]
        self.surplus.sub_(extension.column32).sub_(newcomers32[:, None])
        self.newcomer = (
            (self.surplus * (-LOG2_E / extension.problem.epsilon))
            .clamp_(-LOG2_E * MAX_LOG_KERNEL, LOG2_E * MAX_LOG_KERNEL)
            .exp2_()
        )

    @property
    def potentials(self) -> torch.Tensor:
        """All potentials, the slack's at zero if there is one, float64 [p, r + 1]."""
        potentials = self._potentials
        return potentials - potentials[:, -2:-1] if self.extension.problem.has_slack else potentials

    def scale_newcomers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scale the own rows until they hold about their mass beside the others.

        Returns:
            The scalings [p, r + 1], the columns' inverse sums [p, n], and the errors of the row
            masses [p, r + 1].
        """
        extension = self.extension
        scaling = self._scaling()
        taken = scaling[:, :-1] @ extension.plan32  # [p, n]
        log_own = self.log_scaling[:, -1:]
        scale_rows(
            log_own,
            self.newcomer,
            taken,
            extension.column_mass32,
            self.masses[-1],
            n_steps=N_OWN_STEPS,
        )
        scaling[:, -1:] = log_own.exp()
        inverse = taken.addcmul_(self.newcomer, scaling[:, -1:]).reciprocal_()
        inverse *= extension.column_mass32
        base = extension.plan_sums(inverse)
        newcomer = (inverse * self.newcomer).sum(1, keepdim=True)
        return scaling, inverse, self._errors(torch.cat([base, newcomer], 1), scaling)

    def newton_step(self) -> None:
        """Scale the own rows, then take about a Newton step of all."""
        scaling, inverse, errors = self.scale_newcomers()
        steps = iterated_steps(
            self.extension,
            scaling,
            errors,
            self.masses - errors,
            inverse,
            self.newcomer,
            self.dropped,
            N_ITERATIONS,
        ).nan_to_num_(nan=0.0)
        self.log_scaling += shortened(steps)

    def evaluate(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return estimates of the transport costs, float64 [p]; what they are off by rounding, [p].

        The rounding is infinite where kernels that were cut off could count; where a row is dropped
        this is not known. Last the errors of the row masses, [p, r + 1].
        """
        extension = self.extension
        scaling = self._scaling()
        column_sums = self.newcomer * scaling[:, -1:]
        inverse = column_sums.addmm_(scaling[:, :-1], extension.plan32).reciprocal_()
        base = inverse @ extension.held_and_surplus  # [p, 2 r] and zeros
        r = len(extension.potentials)
        own = inverse.mul_(self.newcomer)
        newcomer = own @ extension.column_mass32[:, None]
        surplus = own.mul_(self.surplus) @ extension.column_mass32 * scaling[:, -1]
        surplus += (base[:, r : 2 * r] * scaling[:, :-1]).sum(1)
        errors = self._errors(torch.cat([base[:, :r], newcomer], 1), scaling)
        rounding = ROUNDING * (surplus.abs() + extension.problem.epsilon)
        log_range = self.log_scaling.amax(1) - self.log_scaling.amin(1)
        rounding.masked_fill_(log_range > MAX_LOG_RANGE, torch.inf)
        missing = extension.problem.epsilon * (self.log_scaling * errors).sum(1)
        estimate = (surplus + missing).double() + self.start * self._exact_masses[-1]
        return estimate + self._shared_cost(), rounding, errors

    @property
    def _potentials(self) -> torch.Tensor:
        """All potentials, where the columns' are those of the base less `epsilon log sums`."""
        shift = self.extension.problem.epsilon * self.log_scaling.double()
        return self.extension.with_newcomers(self.start) + shift

    def _scaling(self) -> torch.Tensor:
        return without_dropped(self.log_scaling.exp(), self.dropped)

    def _errors(self, sums: torch.Tensor, scaling: torch.Tensor) -> torch.Tensor:
        """Return the masses wanted less those there, [p, r + 1]; overwrites `sums`."""
        return without_dropped(self.masses - sums.mul_(scaling), self.dropped)

    def _shared_cost(self) -> torch.Tensor:
        """Return what is left of `<C, pi>`: of the base's potentials and the columns'."""
        extension, masses = self.extension, self._exact_masses
        shared = extension.potentials @ masses[:-1] + extension.column @ extension.column_mass
        if self.dropped is None:
            return shared
        return shared - extension.potentials[self.dropped] * masses[-1]
