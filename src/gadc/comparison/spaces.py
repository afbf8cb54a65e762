"""The feature spaces that subsets are judged in, and the images that they are judged by."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.features.checks import as_float_matrix
from gadc.features.store import FeatureSet
from gadc.images.source import examples
from gadc.runtime import generator

SELECTION_SPACE = "features"
"""The space that methods select in: the one where gadc, and others, are at home."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Images that no method could select.

    Attributes:
        features: Float32 [h, d].
        labels: Class of each by the pool's numbers, int64 [h]; -1 for other classes.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Space:
    """A feature space.

    Attributes:
        name: What tables call it.
        features: Of the pool's images, in its order, float32 [n, d].
        held_out: Other images; None if there are none.
    """

    name: str
    features: NDArray[np.float32]
    held_out: HeldOut | None


def split_off(
    features: FeatureSet, fraction: float, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the rows into pool and held-out ones, the same share of each class.

    Args:
        features: The images.
        fraction: To hold out, above 0 and below 1.
        seed: For the draw.

    Returns:
        Rows of the pool and held-out rows, both ascending.

    Raises:
        InputError: `holdout_range`: the fraction, or a class that it leaves no image.
    """
    if not 0.0 < fraction < 1.0:
        raise InputError("holdout_range", f"holdout={fraction} must lie between 0 and 1")
    is_held_out = np.zeros(features.n_images, dtype=np.bool_)
    by_id = np.argsort(np.array(features.ids, dtype=object), kind="stable")
    names = features.class_names if features.labels is not None else ["all"]
    for label, name in enumerate(names):
        rows = by_id if features.labels is None else by_id[features.labels[by_id] == label]
        n_held_out = round(fraction * len(rows))
        if len(rows) and n_held_out == len(rows):
            raise InputError(
                "holdout_range",
                f"holdout={fraction} leaves class {name!r} of {len(rows)} images none to select "
                "from; hold out less",
            )
        drawn = generator(seed, "held-out", name).permutation(len(rows))[:n_held_out]
        is_held_out[rows[drawn]] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def same_rows(judge: FeatureSet, pool: FeatureSet, name: str) -> NDArray[np.int64]:
    """Return the judge's rows in the order of the pool's images.

    Rows are matched by id; where one of the two has no ids, they must be as many, in one order.

    Args:
        judge: Features in another space.
        pool: Features that are selected from.
        name: What errors call the judge.

    Raises:
        InputError: `judge_rows`: other images, or labels that contradict each other.
    """
    n_images = pool.n_images
    numbered = {_has_no_ids(judge), _has_no_ids(pool)}
    if True in numbered:
        if judge.n_images != n_images:
            raise InputError(
                "judge_rows",
                f"{name} has {judge.n_images} rows, the features {n_images}; a judge must have the "
                "same images in the same order, or both files ids",
            )
        rows = np.arange(n_images, dtype=np.int64)
    else:
        places = {image: row for row, image in enumerate(judge.ids)}
        if missing := [image for image in pool.ids if image not in places]:
            raise InputError(
                "judge_rows",
                f"{name} lacks {len(missing)} of the {n_images} images that are selected from: "
                f"{examples(missing)}; extract features of the same images",
            )
        rows = np.array([places[image] for image in pool.ids], dtype=np.int64)
    if pool.labels is not None and judge.labels is not None:
        labels = labels_as(pool.class_names, judge.class_names)[judge.labels[rows]]
        differing = np.flatnonzero(labels != pool.labels)
        if differing.size:
            raise InputError(
                "judge_rows",
                f"{differing.size} of {n_images} images have another class in {name}, first "
                f"{pool.ids[int(differing[0])]!r}; its rows must be the same images",
            )
    return rows


def _has_no_ids(features: FeatureSet) -> bool:
    return features.ids == [str(row) for row in range(features.n_images)]


def labels_as(names: list[str], other_names: list[str]) -> NDArray[np.int64]:
    """Return the number in `names` of each of `other_names`; -1 for those that are not there.

    Two lists without a common name number the same classes, if they are as long.
    """
    numbers = {name: number for number, name in enumerate(names)}
    if not set(names) & set(other_names) and len(names) == len(other_names):
        return np.arange(len(other_names), dtype=np.int64)
    return np.array([numbers.get(name, -1) for name in other_names], dtype=np.int64)


def held_out_of(
    features: FeatureSet, class_names: list[str], *, n_features: int, name: str, is_labelled: bool
) -> HeldOut:
    """Return held-out images with the pool's class numbers.

    Args:
        features: The images.
        class_names: Of the pool.
        n_features: Width of the space.
        name: What errors call them.
        is_labelled: Whether the pool has classes; if not, all images are of one.

    Raises:
        InputError: `width_mismatch`, or `held_out_labels`: no labels where the pool has some.
    """
    values = as_float_matrix(np.asarray(features.features), name)
    if values.shape[1] != n_features:
        raise InputError(
            "width_mismatch",
            f"{name} has {values.shape[1]} features, its space {n_features}; use one encoder for "
            "both",
        )
    if not is_labelled:
        return HeldOut(values, np.zeros(len(values), dtype=np.int64))
    if features.labels is None:
        raise InputError(
            "held_out_labels", f"{name} has no classes, the images to select from have; add labels"
        )
    labels = labels_as(class_names, features.class_names)[features.labels]
    if (labels < 0).all():
        raise InputError(
            "held_out_labels",
            f"{name} has none of the classes of the images to select from: {examples(class_names)}",
        )
    return HeldOut(values, labels)
