"""Where solutions were last. What they know saves time; it moves estimates a little, no bound."""

import torch

from gadc.objective.differences import Differences, Seen
from gadc.objective.extension import Extension
from gadc.objective.linear_bound import best_newcomers


class Starts:
    """Potentials to start from.

    Args:
        potentials: Of each image's row when it was last in a set, [n_images]; NaN: never.
        shifts: Change of each image's potential when a guide joined a set that held the image,
            float32 [k, n_images]; NaN: never.
    """

    def __init__(self, potentials: torch.Tensor, shifts: torch.Tensor) -> None:
        self._potentials, self._shifts = potentials, shifts
        # Of candidates from their guides.
        self.differences = Differences.unknown(len(potentials), potentials.device)
        self._written = torch.zeros_like(potentials, dtype=torch.bool)
        # Base sizes from which on the linear bound rules out too little to be worth a pass.
        self.linear_pays_below = torch.inf

    @classmethod
    def unknown(cls, n_images: int, n_guides: int, device: torch.device) -> "Starts":
        """Return starts that know nothing."""
        potentials = torch.full((n_images,), torch.nan, dtype=torch.float64, device=device)
        return cls(potentials, torch.full((n_guides, n_images), torch.nan, device=device))

    def copy(self) -> "Starts":
        """Return one that learns by itself."""
        copied = Starts(self._potentials.clone(), self._shifts.clone())
        copied.linear_pays_below = self.linear_pays_below
        copied.differences = self.differences
        return copied

    def learn(self, other: "Starts") -> None:
        """Take over the potentials that a copy has learnt."""
        written = other._written
        self._potentials[written] = other._potentials[written]
        self._written |= written
        self.linear_pays_below = min(self.linear_pays_below, other.linear_pays_below)

    def remember_differences(self, seen: Seen) -> None:
        """Take them into the average."""
        self.differences = self.differences.plus(seen)

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
