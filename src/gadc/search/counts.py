"""How much work a search did."""

from dataclasses import dataclass

from gadc.objective.look import Addition


@dataclass(frozen=True)
class Counts:
    """Work done.

    Attributes:
        n_pruned: Candidates ruled out by a bound, over all steps.
        n_solved: Candidates solved to convergence.
        n_swaps: Exchanges accepted.
    """

    n_pruned: int = 0
    n_solved: int = 0
    n_swaps: int = 0

    def plus(self, more: "Counts | Addition") -> "Counts":
        """Return the sum."""
        return Counts(
            self.n_pruned + more.n_pruned,
            self.n_solved + more.n_solved,
            self.n_swaps + (more.n_swaps if isinstance(more, Counts) else 0),
        )
