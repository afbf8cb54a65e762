"""The candidates that are still in the running."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Field:
    """Candidates for one addition, float64 [p] each.

    Attributes:
        pool: Their indices, int64.
        rest: The objective's terms other than transport.
        rest_error: By how much these may be off.
        floors: Lower bounds of their objectives.
    """

    pool: torch.Tensor
    rest: torch.Tensor
    rest_error: torch.Tensor
    floors: torch.Tensor

    def keep(self, which: torch.Tensor) -> "Field":
        """Return those that `which`, a mask or places, picks."""
        if which.dtype == torch.bool:
            which = torch.nonzero(which)[:, 0]  # once for all four
        return Field(self.pool[which], self.rest[which], self.rest_error[which], self.floors[which])
