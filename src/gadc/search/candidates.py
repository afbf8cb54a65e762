"""Which images a search may choose."""

from collections.abc import Sequence

import numpy as np

from gadc.errors import InputError


class Candidates:
    """The images that may be chosen, and those that must be.

    Args:
        n_images: Number of images in the class.
        keep: Images that are in every subset.
        exclude: Images that are in none.

    Raises:
        InputError: An index out of range, or an image both kept and excluded.
    """

    def __init__(
        self, n_images: int, *, keep: Sequence[int] = (), exclude: Sequence[int] = ()
    ) -> None:
        self.n_images = n_images
        self.keep = sorted({int(i) for i in keep})
        excluded = {int(i) for i in exclude}
        for name, indices in (("keep", self.keep), ("exclude", sorted(excluded))):
            outside = [i for i in indices if not 0 <= i < n_images]
            if outside:
                raise InputError(
                    "index_range", f"{name} names {outside[:10]}; allowed: 0 to {n_images - 1}"
                )
        both = sorted(excluded.intersection(self.keep))
        if both:
            raise InputError("keep_and_exclude", f"{both[:10]} are both kept and excluded")
        self._may_be_chosen = np.ones(n_images, dtype=bool)
        self._may_be_chosen[sorted(excluded)] = False

    @property
    def n_selectable(self) -> int:
        """The size of the largest subset possible."""
        return int(self._may_be_chosen.sum())

    def allowed(self, chosen: Sequence[int]) -> np.ndarray:
        """Return the images that may join `chosen`, int64, ascending."""
        return np.flatnonzero(self.is_allowed(chosen))

    def is_allowed(self, chosen: Sequence[int]) -> np.ndarray:
        """Return which images may join `chosen`, bool [n_images]."""
        free = self._may_be_chosen.copy()
        free[np.asarray(chosen, dtype=np.int64)] = False
        return free

    def keep_left(self, chosen: Sequence[int]) -> np.ndarray:
        """Return the images that must still join `chosen`, int64, ascending."""
        return np.setdiff1d(np.asarray(self.keep, dtype=np.int64), np.asarray(chosen, np.int64))

    def keeping(self, indices: Sequence[int]) -> "Candidates":
        """Return the candidates of which `indices` must be chosen as well."""
        excluded = np.flatnonzero(~self._may_be_chosen).tolist()
        return Candidates(self.n_images, keep=[*self.keep, *indices], exclude=excluded)

    def only(self, indices: Sequence[int]) -> "Candidates":
        """Return the candidates restricted to `indices`, of which the kept are still kept."""
        outside = np.setdiff1d(np.arange(self.n_images), np.asarray(indices, dtype=np.int64))
        kept = [i for i in self.keep if i in set(indices)]
        return Candidates(self.n_images, keep=kept, exclude=outside.tolist())


def check_size(candidates: Candidates, n_images: int, n_selected: int) -> None:
    """Refuse candidates of other images, and subsets that can't be chosen among them.

    Raises:
        InputError: `candidates_length` or `n_selected_range`.
    """
    if candidates.n_images != n_images:
        raise InputError(
            "candidates_length",
            f"candidates of {candidates.n_images} images, but the class has {n_images}",
        )
    least = max(1, len(candidates.keep))
    if not least <= n_selected <= candidates.n_selectable:
        raise InputError(
            "n_selected_range",
            f"n_selected={n_selected} must lie between {least} and {candidates.n_selectable}, the "
            f"images that may be chosen of {n_images}",
        )
