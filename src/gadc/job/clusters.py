"""Clusters of images without labels, which then take the place of classes."""

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gadc.errors import InputError
from gadc.features.rows import FeatureRows, release_rows
from gadc.runtime import generator

# Centres are found on this many rows, or this many per cluster if that is more: they are means.
FIT_ROWS = 50_000
FIT_ROWS_PER_CLUSTER = 16
ROWS_AT_A_TIME = 16_384


def cluster(
    features: FeatureRows, n_clusters: int, order: NDArray[np.int64], *, seed: int
) -> NDArray[np.int64]:
    """Divide images into clusters by k-means.

    In one thread: with several, the order of scikit-learn's sums changes from run to run.

    Args:
        features: [n, d]; a memory map is read in blocks.
        n_clusters: Number of clusters; fewer are found if fewer images differ.
        order: The rows in an order that doesn't depend on where they stand, such as that of
            their ids [n]. Clusters are numbered by their first image in it.
        seed: Chooses the first centres.

    Returns:
        The cluster of each row, int64 [n].

    Raises:
        InputError: More clusters than images.

    Source: Lloyd 1982; Arthur & Vassilvitskii 2007 (k-means++).
    """
    from sklearn.cluster import KMeans  # takes seconds to import, and few commands need it

    n_images = len(features)
    if not 1 <= n_clusters <= n_images:
        raise InputError(
            "clusters_range", f"clusters={n_clusters} must lie between 1 and {n_images}, the images"
        )
    random = generator(seed, "clusters")
    n_fit = min(n_images, max(FIT_ROWS, FIT_ROWS_PER_CLUSTER * n_clusters))
    sample = order[np.sort(random.choice(n_images, n_fit, replace=False))]
    model = KMeans(n_clusters, n_init=1, random_state=int(random.integers(1 << 31)))
    with threadpool_limits(1):  # type: ignore[no-untyped-call]
        model.fit(features[sample])
        found = np.empty(n_images, dtype=np.int64)
        for start in range(0, n_images, ROWS_AT_A_TIME):
            found[start : start + ROWS_AT_A_TIME] = model.predict(
                features[start : start + ROWS_AT_A_TIME]
            )
            release_rows(features)
    numbers, first = np.unique(found[order], return_index=True)
    renumbered = np.empty(int(numbers.max()) + 1, dtype=np.int64)
    renumbered[numbers[np.argsort(first)]] = np.arange(len(numbers))
    return np.asarray(renumbered[found])
