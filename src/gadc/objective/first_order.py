"""Between which values a transport cost lies when its problem is not quite solved.

Potentials whose row masses are off by `error` solve exactly the problem with those row masses, and

    <C, pi*> = <C, pi> + slope . error + O(error^2).

What the correction could be at most, `max |slope| * sum |error|`, bounds what is left out when the
steps converge: the slope of a neighbouring problem stands for this one's, and second-order terms
shrink with the error. A problem whose error has not halved with the last step gets no bound.
"""

from dataclasses import dataclass

import torch

# In units of the largest correction: before the first step, when nothing shows yet that steps
# converge, and after. Over some 10^5 random problems what was left out reached 1.8 and 1.5 of it;
# where guides and images are many, as in a class of images, it rarely reached 0.3.
FIRST_MARGIN = 3.0
MARGIN = 2.0
# A step that reduces the error at least to this share shows that its Hessian is right.
CONTRACTION = 0.5


@dataclass(frozen=True)
class Rule:
    """When a candidate is given up before it is solved.

    Attributes:
        ceilings: It is when its cost is above its ceiling, [p].
        slope: Change of its cost by that of its row masses, approximately, [p, r + 1]; without it
            only the linear programme's bound tells.
        steepest: The largest of all slopes.
    """

    ceilings: torch.Tensor
    slope: torch.Tensor | None = None
    steepest: torch.Tensor | None = None


class Margins:
    """How far the estimates of p problems may be off, step by step.

    Args:
        steepest: The largest change of a transport cost by its row masses.
    """

    def __init__(self, steepest: torch.Tensor | None) -> None:
        self._steepest = torch.inf if steepest is None else steepest
        self._errors: torch.Tensor | None = None

    def of(self, errors: torch.Tensor) -> torch.Tensor:
        """Return the margins at summed row errors `errors` [p]; infinite where none is known."""
        if self._errors is None:
            margins = FIRST_MARGIN * self._steepest * errors
        else:
            margins = MARGIN * self._steepest * errors
            margins = torch.where(errors <= CONTRACTION * self._errors, margins, torch.inf)
        self._errors = errors
        return margins

    def keep(self, mask: torch.Tensor) -> None:
        """Go on with the problems in `mask` alone."""
        if self._errors is not None:
            self._errors = self._errors[mask]
