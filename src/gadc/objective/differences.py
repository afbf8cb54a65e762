"""By what the solutions of candidates differ from those of their guides, on average.

What sets j apart from its guide is nearly the same beside every base that lacks another image of
one set. Beside a base whose missing image is near j it is not, so what several have shown is
averaged.
"""

from dataclasses import dataclass

import torch

# Beside smaller sets what was seen beside another one tells too little.
LEAST_ALIKE = 9
# The average is one of about so many bases, the last ones.
MOST_AVERAGED = 4
# Of bases before the last one so many images are remembered.
MOST_ABSENT = 4


@dataclass(frozen=True)
class Seen:
    """What one base has shown.

    Attributes:
        base: Its images [m - 1].
        pool: Candidates j [p].
        differences: Potentials of the base's images, the slack and j in "base + j" less those that
            j's guide gives them, float32 [p, r + 1].
        shown: From how far off the guides' Hessians are thought right, [p]: see `Margins`.
    """

    base: torch.Tensor
    pool: torch.Tensor
    differences: torch.Tensor
    shown: torch.Tensor


@dataclass(frozen=True)
class Differences:
    """What the last bases have shown.

    Attributes:
        images: The last one's, and some of those before [q].
        values: Of these images, the slack and the newcomer, float32 [n_images, q + 1 or 2]; NaN
            where unknown.
        shown: See `Seen`, [n_images].
        n_bases: How many have been seen.
    """

    images: torch.Tensor
    values: torch.Tensor
    shown: torch.Tensor
    n_bases: int

    @classmethod
    def unknown(cls, n_images: int, device: torch.device) -> "Differences":
        """Return those of no base."""
        return cls(
            torch.empty(0, dtype=torch.int64, device=device),
            torch.empty(n_images, 0, device=device),
            torch.zeros(n_images, device=device),
            0,
        )

    def beside(
        self, base: torch.Tensor, pool: torch.Tensor, n_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return them for candidates `pool` [p].

        Args:
            base: [m - 1].
            pool: The candidates.
            n_rows: r + 1; the slack if there is one, and last the newcomer, follow the base.

        Returns:
            Differences of potentials, float32 [p, r + 1], 0 where unknown; and `shown` [p], NaN
            for candidates of which nothing is known.
        """
        if not self.n_bases or len(base) < LEAST_ALIKE:
            found = torch.zeros(len(pool), n_rows, device=pool.device)
            return found, torch.full_like(found[:, 0], torch.nan)
        is_known, where = self._columns_of(base, n_rows - len(base))
        found = torch.where(is_known, self.values[pool][:, where], 0.0)
        has_values = found.isfinite().all(1)
        found = torch.where(has_values[:, None], found, 0.0)
        return found, torch.where(has_values, self.shown[pool], torch.nan)

    def plus(self, seen: Seen) -> "Differences":
        """Return them with what one more base has shown."""
        base, n_others = seen.base, seen.differences.shape[1] - len(seen.base)
        absent = self.images[~torch.isin(self.images, base)][:MOST_ABSENT]
        images = torch.cat([base, absent])
        if self.n_bases:
            is_known, where = self._columns_of(images, n_others)
            values = torch.where(is_known, self.values[:, where], torch.nan)
        else:
            values = self.values.new_full((len(self.values), len(images) + n_others), torch.nan)
        columns = torch.arange(values.shape[1], device=base.device)
        columns = torch.cat([columns[: len(base)], columns[-n_others:]])
        updated, now = values[seen.pool], seen.differences
        weight = 1.0 / min(self.n_bases + 1, MOST_AVERAGED)
        mean = updated[:, columns].lerp(now, weight)
        updated[:, columns] = torch.where(mean.isfinite(), mean, now)
        values[seen.pool] = updated
        shown = self.shown.index_copy(0, seen.pool, seen.shown)
        return Differences(images, values, shown, self.n_bases + 1)

    def _columns_of(self, images: torch.Tensor, n_others: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which of `images` and others are known, bool, and their columns, or any."""
        same = self.images[:, None] == images
        n_known = len(self.images)
        others = torch.arange(n_known, n_known + n_others, device=images.device)
        is_known = torch.cat([same.any(0), torch.ones_like(others, dtype=torch.bool)])
        return is_known, torch.cat([same.long().argmax(0), others])
