"""DQ: dataset quantization, a draw from bins of which each is diverse in itself."""

import numpy as np
from numpy.typing import NDArray

from gadc.baselines.inner_products import InnerProducts
from gadc.baselines.pool import Pool, check_n_selected
from gadc.errors import InputError

# As in the published code.
N_BINS = 10


def dataset_quantization(
    pool: Pool, n_selected: int, *, generator: np.random.Generator, n_bins: int = N_BINS
) -> NDArray[np.int64]:
    """Divide the class into bins by graph cut, and draw from each in proportion to its size.

    The published code takes gradients of the last layer as features, 1000 (d + 1) numbers for an
    image of ImageNet; here it is the embeddings themselves. Its masking of patches, which changes
    images, is left out.

    Args:
        pool: The class [n].
        n_selected: m <= n.
        generator: Draws within bins, and which bins give one more where m does not divide; there
            the published code rounds, so that it may select more or fewer than m.
        n_bins: Number of bins, equal in size but for one image.

    Returns:
        Rows, bin by bin, int64 [m].

    Raises:
        InputError: `n_selected_range` or `bins_range`.

    Source: Zhou et al. 2023, "Dataset quantization", algorithm 1.
    """
    check_n_selected(pool, n_selected)
    if n_bins < 1:
        raise InputError("bins_range", f"n_bins={n_bins} must be >= 1")
    bins = graph_cut_bins(pool.features, n_bins)
    sizes = np.array([len(rows) for rows in bins])
    quotas, remainders = np.divmod(n_selected * sizes, pool.n_images)
    # More bins have a remainder than images are left over, as each stands for less than one.
    lucky = generator.choice(
        np.flatnonzero(remainders), n_selected - int(quotas.sum()), replace=False
    )
    quotas[lucky] += 1
    drawn = [
        generator.choice(rows, quota, replace=False)
        for rows, quota in zip(bins, quotas.tolist(), strict=True)
    ]
    return np.concatenate(drawn)


def graph_cut_bins(features: NDArray[np.float32], n_bins: int) -> list[NDArray[np.int64]]:
    """Divide a class into bins, the first the most representative of it.

    Each bin S is selected greedily from the images D that no earlier bin has, by the gain

        sum_{p in D} s(p, x) - 2 sum_{p in S} s(p, x),    s(p, x) = (1 + cos(p, x)) / 2

    O(n^2 d) for the cosines, all of which are needed: every image goes into a bin.

    Args:
        features: [n, d].
        n_bins: Number of bins; those beyond n are empty.

    Returns:
        The rows of each bin in the order of selection, int64.

    Source: `GraphCut` with lambda = 1 in the published code.
    """
    n = len(features)
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    directions = (features / np.where(lengths > 0.0, lengths, 1.0)).astype(np.float32)
    cosines = InnerProducts(directions)
    is_left = np.ones(n, dtype=np.bool_)
    bins = []
    for place in range(n_bins):
        total = directions[is_left].sum(0, dtype=np.float64)  # [d]
        gain = 0.5 * (is_left.sum() + directions @ total)  # [n]
        gain[~is_left] = -np.inf
        size = n // n_bins + (place < n % n_bins)
        rows = np.empty(size, dtype=np.int64)
        for rank in range(size):
            rows[rank] = best = int(gain.argmax())
            gain -= 1.0 + cosines.of([best])[0]
            gain[best] = -np.inf
        is_left[rows] = False
        bins.append(rows)
    return bins
