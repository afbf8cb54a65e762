"""How hard a classifier finds an image, where no score says so."""

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError

MARGIN_SOURCE = "negative margin of the class probabilities"


def margin_difficulty(
    probabilities: NDArray[np.floating], columns: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return `-(p_y - max_{k != y} p_k)`, float64 [n]: -1 for a sure image, 1 for a sure mistake.

    The area under the margin (AUM) is the mean of `p_y - max_{k != y} p_k` over the epochs of a
    training; this is its negative at one classifier.

    Args:
        probabilities: p(k | x) [n, c], rows summing to 1; c >= 2.
        columns: Each image's own class y, as a column, int64 [n].

    Raises:
        InputError: `one_class`: with a single column there is no other class.

    Source: Pleiss et al. 2020, "Identifying mislabeled data using the area under the margin
    ranking", eq. 1.
    """
    if probabilities.shape[1] < 2:
        raise InputError(
            "one_class",
            "a margin needs probabilities of at least 2 classes, got 1; give a difficulty instead",
        )
    rows = np.arange(len(columns))
    others = probabilities.astype(np.float64)
    own = others[rows, columns]  # a copy
    others[rows, columns] = -np.inf
    return np.asarray(others.max(1) - own)
