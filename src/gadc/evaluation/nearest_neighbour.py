"""A classifier without training, which knows the selected vectors only."""

import numpy as np
from numpy.typing import ArrayLike

from gadc.errors import InputError
from gadc.evaluation.distances import nearest
from gadc.evaluation.sample import Features, as_pair


def nearest_neighbour_accuracy(
    *,
    selected: Features,
    selected_labels: ArrayLike,
    real: Features,
    real_labels: ArrayLike,
) -> float:
    """Return how often the nearest selected vector has the class of a real one.

    Args:
        selected: What the classifier knows [m, d].
        selected_labels: Their classes [m].
        real: What it is asked [n, d]; leave the selected ones out, or they answer for themselves.
        real_labels: Their classes [n].

    Returns:
        0 to 1; of several nearest, the one that stands first in `selected` answers.

    Raises:
        InputError: `length_mismatch`, or as `as_pair`.
    """
    few, many = as_pair(selected, real, ("selected", "real"))
    few_labels, many_labels = np.asarray(selected_labels), np.asarray(real_labels)
    for name, labels, rows in (
        ("selected_labels", few_labels, few),
        ("real_labels", many_labels, many),
    ):
        if labels.shape != (rows.n_rows,):
            raise InputError(
                "length_mismatch", f"{name} has shape {labels.shape}, expected ({rows.n_rows},)"
            )
    _, answers = nearest(many, few)
    return float(np.mean(few_labels[answers.cpu().numpy()] == many_labels))
