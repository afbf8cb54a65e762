"""Where solutions were last. What they know saves time; it moves estimates a little, no bound."""

import torch

from gadc.objective.extension import Extension
from gadc.objective.linear_bound import best_newcomers

# Beside smaller sets what was seen beside another one tells too little.
LEAST_ALIKE = 12


class Starts:
    """Potentials to start from.

    Args:
        potentials: Of each image's row when it was last in a set, [n_images]; NaN: never.
        shifts: Change of each image's potential when a guide joined a set that held the image,
            float32 [k, n_images]; NaN: never.
    """

    def __init__(self, potentials: torch.Tensor, shifts: torch.Tensor) -> None:
        self._potentials, self._shifts = potentials, shifts
        # Of the last base that all candidates joined: its images, and float32 [n_images, r + 1] and
        # [n_images].
        self._differences: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._written = torch.zeros_like(potentials, dtype=torch.bool)
        self._written_shifts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        # Base sizes from which on the linear bound rules out too little to be worth a pass.
        self.linear_pays_below = torch.inf

    def differences(
        self, base: torch.Tensor, pool: torch.Tensor, n_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return by what the solutions of `base + [j]` differ from those of j's guide, if known.

        Args:
            base: [m - 1].
            pool: The candidates j [p].
            n_rows: r + 1; the slack if there is one, and last the newcomer, follow the base.

        Returns:
            Differences of potentials, float32 [p, r + 1], 0 where unknown; and from how far off
            the guides' Hessians were seen to be right, [p]: see `Margins`; NaN where unknown.
        """
        found = torch.zeros(len(pool), n_rows, device=pool.device)
        if self._differences is None or len(base) < LEAST_ALIKE:
            return found, torch.full_like(found[:, 0], torch.nan)
        images, differences, shown = self._differences
        same = images[:, None] == base  # [r', m - 1]
        before = differences[pool]
        which = same.any(0)
        found[:, : len(base)][:, which] = before[:, same.long().argmax(0)[which]]
        n_others = n_rows - len(base)
        found[:, len(base) :] = before[:, -n_others:]
        is_known = found.isfinite().all(1)
        found = torch.where(is_known[:, None], found, 0.0)
        return found, torch.where(is_known, shown[pool], torch.nan)

    def remember_differences(
        self,
        base: torch.Tensor,
        pool: torch.Tensor,
        differences: torch.Tensor,
        shown: torch.Tensor,
    ) -> None:
        """Keep them, float [p, r + 1] and [p]; those of all others are forgotten."""
        kept = differences.new_full(
            (len(self._potentials), differences.shape[1]), torch.nan, dtype=torch.float32
        )
        kept[pool] = differences.float()
        kept_shown = torch.zeros_like(kept[:, 0])
        kept_shown[pool] = shown
        self._differences = base, kept, kept_shown

    @classmethod
    def unknown(cls, n_images: int, n_guides: int, device: torch.device) -> "Starts":
        """Return starts that know nothing."""
        potentials = torch.full((n_images,), torch.nan, dtype=torch.float64, device=device)
        return cls(potentials, torch.full((n_guides, n_images), torch.nan, device=device))

    def copy(self) -> "Starts":
        """Return one that learns by itself."""
        copied = Starts(self._potentials.clone(), self._shifts.clone())
        copied.linear_pays_below = self.linear_pays_below
        copied._differences = self._differences
        return copied

    def learn(self, other: "Starts") -> None:
        """Take over what a copy has learnt."""
        written = other._written
        self._potentials[written] = other._potentials[written]
        self._written |= written
        for which, base, shift in other._written_shifts:
            self.remember_shifts(which, base, shift)
        self._differences = other._differences
        self.linear_pays_below = min(self.linear_pays_below, other.linear_pays_below)

    def potentials(self, images: torch.Tensor) -> torch.Tensor:
        """Return the potentials of `images`, NaN where unknown."""
        return self._potentials[images]

    def met(self, extension: Extension, images: torch.Tensor) -> torch.Tensor:
        """Return the potentials of `images`, the unknown ones found beside the base."""
        unknown = images[~self._potentials[images].isfinite()]
        if len(unknown):
            self.remember(unknown, best_newcomers(extension, unknown))
        return self._potentials[images]

    def remember(self, images: torch.Tensor, potentials: torch.Tensor) -> None:
        """Keep the potentials of `images`."""
        self._potentials[images] = potentials
        self._written[images] = True

    def shifts(self, which: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Return how the base's potentials move when guides `which` join it, 0 where unknown."""
        return self._shifts[which[:, None], base[None]].double().nan_to_num(nan=0.0)

    def remember_shifts(
        self, which: torch.Tensor, base: torch.Tensor, shifts: torch.Tensor
    ) -> None:
        """Keep how they did move, [k, m - 1]."""
        self._shifts[which[:, None], base[None]] = shifts.float()
        self._written_shifts.append((which, base, shifts))
