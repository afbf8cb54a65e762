"""Between which values a transport cost lies when its problem is not quite solved.

At row potentials f whose row masses are off by e, let p_l be the shares of column l (the soft-max),
w_l its mass, G_il = C_il - f_i, and H the negative Hessian by log-scalings. Then

    <C, pi*> = f . a + sum_l w_l E_l[G] + r

with a the row masses wanted, and

    |r| <= e^R L (|q| + R/2 e^(R/2) sqrt(V)),     L^2 = e . H^-1 e,
    |q|^2 = q . H^-1 q,   q_i = sum_l w_l Cov_l(1_i, G),   V = sum_l w_l Var_l(G),

where R is the range of H^-1 e along the way from the row masses there to those wanted. For, on that
way d/dt of the mean of G is q(t) . H(t)^-1 e, and neither H(t) and V(t), by more than a factor
e^R, nor q(t) . u, by more than R |u|_H sqrt(V), can change: third cumulants are at most the range
times the variance.

L and R are taken from the step H^-1 e, |q| and V from neighbouring problems.

Source: the bound is derived here; the way of reasoning is the self-concordance of Bach, 2010,
"Self-concordant analysis for logistic regression".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# The Hessian of a neighbouring problem stands for a candidate's own. Where both were compared, L
# and R came out between 0.4 and 2.2 times what they are; the remainder reached 0.5 of its bound,
# and rarely 0.2. Before a step has shown that the Hessian is right, the margin is wider; where a
# step has shown that it is not, nothing is known.
FIRST_SAFETY = 4.0
SAFETY = 2.0
# Nor is an estimate further off (L) than this trusted before a step.
FIRST_REACH = 0.03
# A step that reduces L at least to this share shows it.
CONTRACTION = 0.5
# One that reduces it further shows no more than one to this share.
LEAST_SHRUNK = 0.1


@dataclass(frozen=True)
class Sensitivity:
    """How much costs can change with row masses, in one class beside one base.

    Attributes:
        gradient: |q|, the largest of all guides, a scalar.
        spread: sqrt(V), the largest of all guides, a scalar.
    """

    gradient: torch.Tensor
    spread: torch.Tensor

    def bound(self, decrement: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Return the bound of |r|, [p], at L `decrement` [p] and log-scaling steps [p, r]."""
        reach = steps.amax(1) - steps.amin(1)  # R
        growth = (reach / 2.0).exp()
        return growth.square() * decrement * (self.gradient + reach / 2.0 * growth * self.spread)


def decrements(errors: torch.Tensor, steps: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
    """Return L, [p].

    Args:
        errors: Row masses wanted minus those there, [p, r].
        steps: H^-1 times them, [p, r].
        masses: Those wanted [r]. H is at most twice the diagonal matrix of the masses, so L is at
            least what that gives, whatever the steps say.
    """
    least = (errors.square() / (2.0 * masses)).sum(1)
    return torch.maximum((errors * steps).sum(1), least).sqrt()


class Margins:
    """How far the estimates of p problems may be off, step by step.

    Args:
        sensitivity: Of these problems.
        shown: The largest L from which steps have shown that the Hessian is right, [p]; 0: none
            has. Estimates further off are trusted after a step that shows it.

    Attributes:
        shown: The same, by now.
    """

    def __init__(self, sensitivity: Sensitivity, shown: torch.Tensor) -> None:
        self._sensitivity, self.shown = sensitivity, shown
        self._decrements: torch.Tensor | None = None

    def of(self, errors: torch.Tensor, steps: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
        """Return the margins [p]; see `decrements`."""
        decrement = decrements(errors, steps, masses)
        margins = self._sensitivity.bound(decrement, steps)
        if self._decrements is None:
            near = decrement <= self.shown.clamp(max=FIRST_REACH)
            margins = torch.where(near, FIRST_SAFETY * margins, torch.inf)
        else:
            before = self._decrements.nan_to_num(posinf=0.0)  # too far off to show anything
            shrunk = decrement / before
            margins *= SAFETY / (1.0 - shrunk).clamp(min=0.0).square()
            margins = torch.where(shrunk <= CONTRACTION, margins, torch.inf)
            # The share of L that a step leaves is that of a Hessian which is not quite right, and
            # one that grows in proportion to L. So it would still do from as much further off.
            reach = before * (CONTRACTION / shrunk.clamp(min=LEAST_SHRUNK))
            larger = torch.maximum(self.shown, reach)
            self.shown = torch.where(shrunk <= CONTRACTION, larger, 0.0)
        self._decrements = decrement
        return margins

    def keep(self, which: torch.Tensor) -> None:
        """Go on with the problems `which` picks alone, a mask or places."""
        self.shown = self.shown[which]
        if self._decrements is not None:
            self._decrements = self._decrements[which]

    @classmethod
    def joined(cls, parts: Sequence["Margins"]) -> "Margins":
        """Return the margins of several blocks of problems; steps of all have been looked at."""
        joined = cls(parts[0]._sensitivity, torch.cat([part.shown for part in parts]))
        known = [part._decrements for part in parts if part._decrements is not None]
        joined._decrements = torch.cat(known)
        return joined
