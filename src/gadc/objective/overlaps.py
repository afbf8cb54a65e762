"""Which rows of a plan meet in a column, and by how much: what Hessians are made of."""

from dataclasses import dataclass

import torch

# Two rows whose plans overlap by less than this are taken as independent in Hessians: with many
# rows, most pairs never meet.
LEAST_OVERLAP = 1e-5
# Columns scaled by more than this held nothing in float32 before; the square is within its range.
MOST_SCALED = 1e18


@dataclass(frozen=True)
class Overlaps:
    """Pairs of rows that meet, and the products of their plans; float32, Hessians only steer.

    Attributes:
        pairs: Rows, [2, n_pairs], the first not above the second.
        products: By pair and column, [n_products, n].
        kept: Which products belong to `pairs`, [n_pairs - n_extra]; None for all.
        thinning: What columns of `products` must be scaled by, squared, [n]; None for 1.
        scaling: What the sums of kept products must be scaled by, [n_pairs - n_extra]; None for 1.
        extra: Products of the last pairs, unscaled, [n_extra, n]; None for none.
    """

    pairs: torch.Tensor
    products: torch.Tensor
    kept: torch.Tensor | None = None
    thinning: torch.Tensor | None = None
    scaling: torch.Tensor | None = None
    extra: torch.Tensor | None = None

    @classmethod
    def of(cls, plan: torch.Tensor) -> "Overlaps":
        """Return those of `plan` [r, n], float32."""
        pairs = torch.nonzero(_meet(plan).triu()).T
        return cls(pairs, plan[pairs[0]] * plan[pairs[1]])

    def without(
        self, row: int, plan: torch.Tensor, thinning: torch.Tensor, scaling: torch.Tensor
    ) -> "Overlaps":
        """Return those of the plan that lacks one row.

        Args:
            row: Which.
            plan: What is left of it, columns scaled to sum to one again, [r - 1, n].
            thinning: What columns were scaled by, [n].
            scaling: What rows were scaled by, [r - 1].
        """
        meet = _meet(plan).triu()
        renumbered = self.pairs - (self.pairs > row).long()
        stays = (self.pairs != row).all(0)
        # Not worth a look: both rows may be the last one now, where `row` was.
        stays &= meet[
            renumbered[0].clamp(max=len(meet) - 1), renumbered[1].clamp(max=len(meet) - 1)
        ]
        kept = torch.nonzero(stays)[:, 0]
        meet[renumbered[0, kept], renumbered[1, kept]] = False
        new = torch.nonzero(meet).T
        extra = plan[new[0]] * plan[new[1]] if new.shape[1] else None
        pairs = renumbered[:, kept]
        both = scaling[pairs[0]] * scaling[pairs[1]]
        return Overlaps(torch.cat([pairs, new], 1), self.products, kept, thinning, both, extra)

    def sums(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `sum_l weight_l^2 P_il P_kl` of each pair, [p, n_pairs], for weights [p, n]."""
        scaled = weight if self.thinning is None else weight * self.thinning
        sums = scaled.clamp(max=MOST_SCALED).square_() @ self.products.T
        if self.kept is not None:
            sums = sums[:, self.kept]
        if self.scaling is not None:
            sums *= self.scaling
        if self.extra is None:
            return sums
        return torch.cat([sums, weight.clamp(max=MOST_SCALED).square_() @ self.extra.T], 1)


def _meet(plan: torch.Tensor) -> torch.Tensor:
    """Return which rows meet, bool [r, r]."""
    overlap = plan @ plan.T
    norms = overlap.diagonal().sqrt()
    return overlap >= LEAST_OVERLAP * norms[:, None] * norms
