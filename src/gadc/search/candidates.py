"""Which images a search may choose."""

from collections.abc import Sequence

import numpy as np

from gadc.errors import InputError


class Candidates:
    """The images that may be chosen, those that must be, and those that exclude each other.

    Args:
        n_images: Number of images in the class.
        keep: Images that are in every subset.
        exclude: Images that are in none.
        groups: A group number per image, int64 [n]: at most one of a group is chosen (exact
            duplicates). Default: every image is alone.

    Raises:
        InputError: An index out of range, an image both kept and excluded, or two kept
            images of one group.
    """

    def __init__(
        self,
        n_images: int,
        *,
        keep: Sequence[int] = (),
        exclude: Sequence[int] = (),
        groups: np.ndarray | None = None,
    ) -> None:
        self.groups = np.arange(n_images) if groups is None else np.asarray(groups)
        self.keep = sorted({int(i) for i in keep})
        for name, indices in (("keep", self.keep), ("exclude", [int(i) for i in exclude])):
            outside = [i for i in indices if not 0 <= i < n_images]
            if outside:
                raise InputError(
                    "index_range", f"{name} names {outside[:10]}; allowed: 0 to {n_images - 1}"
                )
        both = sorted(set(self.keep) & {int(i) for i in exclude})
        if both:
            raise InputError("keep_and_exclude", f"{both[:10]} are both kept and excluded")
        if len({int(self.groups[i]) for i in self.keep}) < len(self.keep):
            raise InputError(
                "keep_duplicates", "two kept images are exact duplicates; keep one of them"
            )
        self._open = np.ones(n_images, dtype=bool)
        self._open[np.asarray(exclude, dtype=np.int64)] = False

    @property
    def n_selectable(self) -> int:
        """The largest subset possible."""
        return len(np.unique(self.groups[self._open]))

    def allowed(self, chosen: Sequence[int]) -> np.ndarray:
        """Return the images that may join `chosen`, int64, ascending."""
        is_taken = np.isin(self.groups, self.groups[np.asarray(chosen, dtype=np.int64)])
        return np.flatnonzero(self._open & ~is_taken)

    def keep_left(self, chosen: Sequence[int]) -> np.ndarray:
        """Return the images that must still join `chosen`, int64, ascending."""
        return np.setdiff1d(np.asarray(self.keep, dtype=np.int64), np.asarray(chosen, np.int64))

    def only(self, indices: Sequence[int]) -> "Candidates":
        """Return the candidates restricted to `indices`, of which the kept are still kept."""
        outside = np.setdiff1d(np.arange(len(self.groups)), np.asarray(indices, dtype=np.int64))
        kept = [i for i in self.keep if i in set(indices)]
        return Candidates(len(self.groups), keep=kept, exclude=outside.tolist(), groups=self.groups)
