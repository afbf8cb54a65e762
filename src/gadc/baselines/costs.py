"""The cost matrix of a class, for the methods that need all of it."""

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.objective.cost import as_features, centre_of, centred, class_costs
from gadc.objective.total import MAX_COST_BYTES


def class_cost(features: NDArray[np.float32]) -> torch.Tensor:
    """Return `||x_i - x_j||^2`, float32 [n, n], as `gadc.Objective` has it.

    Args:
        features: x [n, d].

    Raises:
        InputError: `class_too_large`: the matrix would need more than 4 GiB.
    """
    images = as_features(features)
    n_bytes = 4 * len(images) ** 2
    if n_bytes > MAX_COST_BYTES:
        raise InputError(
            "class_too_large",
            f"{len(images)} x {len(images)} costs need {n_bytes / 2**30:.1f} GiB, more than "
            f"{MAX_COST_BYTES >> 30} GiB; leave out this method, or take fewer images per class",
        )
    rows = centred(images, centre_of(images))
    return class_costs(images, images, rows, rows).fill_diagonal_(0.0)
