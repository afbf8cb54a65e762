"""The images of a data set by class, and which of them may be selected."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.features.store import FeatureSet
from gadc.job.clusters import cluster
from gadc.job.duplicates import groups_of_copies, later_copies

ONE_CLASS = "all"
"""Name of the class that images without labels form."""
N_EXAMPLES = 5
"""How many ids an error names."""


@dataclass(frozen=True, eq=False)
class Division:
    """The images by class.

    Attributes:
        kind: What the classes are.
        names: Of the classes.
        labels: Class of each image, int64 [n].
        rows: Images of each class in the order of their ids.
    """

    kind: Literal["labels", "clusters", "all"]
    names: list[str]
    labels: NDArray[np.int64]
    rows: list[NDArray[np.int64]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Images of each class [c]."""
        return np.array([len(rows) for rows in self.rows], dtype=np.int64)


def divide(
    features: FeatureSet, by_id: NDArray[np.int64], *, n_clusters: int | None, seed: int
) -> Division:
    """Divide images by their labels or, without labels, into clusters or not at all.

    Args:
        features: The images.
        by_id: Their rows in the order of their ids.
        n_clusters: For images without labels.
        seed: For the clusters.

    Raises:
        InputError: Clusters of labelled images, or more clusters than images.
    """
    if features.labels is not None:
        if n_clusters is not None:
            raise InputError(
                "clusters_with_labels",
                "clusters are for images without labels; leave out the labels or clusters",
            )
        return _divided("labels", list(features.class_names), features.labels, by_id)
    if n_clusters is None:
        labels = np.zeros(features.n_images, dtype=np.int64)
        return _divided("all", [ONE_CLASS], labels, by_id)
    labels = cluster(features.features, n_clusters, by_id, seed=seed)
    n_found = int(labels.max()) + 1
    width = max(3, len(str(n_found - 1)))
    names = [f"cluster-{number:0{width}d}" for number in range(n_found)]
    return _divided("clusters", names, labels, by_id)


def _divided(
    kind: Literal["labels", "clusters", "all"],
    names: list[str],
    labels: NDArray[np.int64],
    by_id: NDArray[np.int64],
) -> Division:
    by_class = by_id[np.argsort(labels[by_id], kind="stable")]
    ends = np.cumsum(np.bincount(labels, minlength=len(names)))[:-1]
    return Division(kind, names, labels, np.split(by_class, ends))


@dataclass(frozen=True, eq=False)
class Eligibility:
    """Which images must, and which may not, be selected.

    Attributes:
        is_kept: On the list of those to keep [n].
        is_excluded: On the list of those to exclude [n].
        is_barred: Excluded, or a copy of another that stands for it [n].
        n_copies: Copies among them.
        conflicts: Rows of each image that is there with more than one label.
    """

    is_kept: NDArray[np.bool_]
    is_excluded: NDArray[np.bool_]
    is_barred: NDArray[np.bool_]
    n_copies: int
    conflicts: list[list[int]]


def find_eligible(
    features: FeatureSet,
    division: Division,
    by_id: NDArray[np.int64],
    digests: Sequence[str] | Sequence[bytes],
    *,
    keep: Sequence[str],
    exclude: Sequence[str],
    bar_copies: bool,
) -> Eligibility:
    """Read the lists of ids and find exact duplicates.

    Args:
        features: The images.
        division: Their classes.
        by_id: Their rows in the order of their ids.
        digests: What exact duplicates have in common [n].
        keep: Ids that must be selected.
        exclude: Ids that may not, nor may their exact duplicates if copies are barred.
        bar_copies: Of exact duplicates only one may be selected: the kept one, or the first.

    Raises:
        InputError: Ids that are unknown, twice in a list or in both, or two kept duplicates.
    """
    is_kept = _listed(features, keep, "keep")
    is_excluded = _listed(features, exclude, "exclude")
    if (both := is_kept & is_excluded).any():
        raise InputError("keep_and_exclude", f"both kept and excluded: {_examples(features, both)}")
    is_copy = np.zeros(features.n_images, dtype=np.bool_)
    if bar_copies:
        # What is excluded is the image, under whatever name it is found again.
        contents: set[object] = {digests[row] for row in np.flatnonzero(is_excluded).tolist()}
        is_excluded |= ~is_kept & np.array([entry in contents for entry in digests], np.bool_)
        if twice := groups_of_copies(digests, by_id[is_kept[by_id]]):
            raise InputError(
                "keep_duplicates",
                f"exact duplicates are both kept: {shown([features.ids[row] for row in twice[0]])}"
                "; keep one of them, or use dedup='keep'",
            )
        is_copy = later_copies(digests, by_id[~is_excluded[by_id]], is_kept)
    labels = division.labels
    conflicts = [
        rows for rows in groups_of_copies(digests, by_id) if len(set(labels[rows].tolist())) > 1
    ]
    return Eligibility(
        is_kept,
        is_excluded,
        is_excluded | is_copy,
        int(is_copy.sum()),
        conflicts if division.kind == "labels" else [],
    )


def _listed(features: FeatureSet, ids: Sequence[str], name: str) -> NDArray[np.bool_]:
    """Return which images a list of ids names [n]."""
    is_listed = np.zeros(features.n_images, dtype=np.bool_)
    if not ids:
        return is_listed
    unique = set(ids)
    if len(unique) < len(ids):
        twice = sorted(entry for entry, n_times in Counter(ids).items() if n_times > 1)
        raise InputError("listed_twice", f"{name} lists more than once: {shown(twice)}")
    is_listed[[row for row, known in enumerate(features.ids) if known in unique]] = True
    if is_listed.sum() < len(unique):
        missing = sorted(unique - set(features.ids))
        raise InputError(
            "unknown_ids",
            f"{name} lists {len(missing)} ids that are not among the {features.n_images} images: "
            f"{shown(missing)}; ids look like {features.ids[0]!r}",
        )
    return is_listed


def _examples(features: FeatureSet, mask: NDArray[np.bool_]) -> str:
    return shown([features.ids[row] for row in np.flatnonzero(mask)])


def shown(ids: Sequence[str]) -> str:
    """Return the first few of many names, for an error."""
    more = f" and {len(ids) - N_EXAMPLES} more" if len(ids) > N_EXAMPLES else ""
    return ", ".join(repr(name) for name in ids[:N_EXAMPLES]) + more
