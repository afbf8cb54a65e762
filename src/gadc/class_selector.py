"""What the scikit-learn style selectors have in common: validation and the way through classes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from gadc.errors import InputError
from gadc.features.checks import as_probabilities
from gadc.job.budget import Shortfall, allocate_budget


class ClassSelector(BaseEstimator):
    """Select rows of each class; what a method adds is `fit`.

    Attributes:
        indices_: Selected rows, class by class in the order of `classes_`, in the order of
            selection within each, int64 [k].
        classes_: The labels in `y`, sorted; `[0]` without `y`.
        n_features_in_: Number of columns.
    """

    n_per_class: int
    shortfall: Shortfall
    classes_: NDArray[Any]
    indices_: NDArray[np.int64]

    def _validated(
        self, X: ArrayLike, y: ArrayLike | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return features [n, d] and each row's place in `classes_` [n].

        Raises:
            InputError: `n_per_class_type`; arrays that can't be used are a `ValueError`.
        """
        if isinstance(self.n_per_class, bool) or not isinstance(self.n_per_class, int | np.integer):
            raise InputError(
                "n_per_class_type", f"n_per_class={self.n_per_class!r} must be a whole number >= 1"
            )
        if y is None:
            values = validate_data(self, X, dtype=np.float32)
            self.classes_ = np.zeros(1, dtype=np.int64)
            return values, np.zeros(len(values), dtype=np.int64)
        values, given = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(given)
        self.classes_, labels = np.unique(given, return_inverse=True)
        return values, labels

    def _budgets(self, labels: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.int64], int]]:
        """Yield the name of each class, its rows, and how many of them to select."""
        names = [str(name) for name in self.classes_]
        allocation = allocate_budget(
            np.bincount(labels, minlength=len(names)),
            per_class=self.n_per_class,
            shortfall=self.shortfall,
            class_names=names,
        )
        for label, n_selected in enumerate(allocation.counts.tolist()):
            yield names[label], np.flatnonzero(labels == label), n_selected

    def _own_probabilities(
        self, probabilities: ArrayLike, labels: NDArray[np.int64], *, has_labels: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return probabilities [n, c], and the column of each row's own class [n].

        Raises:
            InputError: `length_mismatch`, `labels_missing` or `class_mismatch`.
        """
        found = as_probabilities(np.asarray(probabilities), "probabilities")
        if len(found) != len(labels):
            raise InputError(
                "length_mismatch", f"{len(labels)} rows of X but {len(found)} of probabilities"
            )
        n_columns = found.shape[1]
        classes = self.classes_
        if not has_labels and n_columns > 1:
            raise InputError(
                "labels_missing",
                f"probabilities have {n_columns} columns, but there is no y to say which is a "
                "row's own; give y, or one column",
            )
        if classes.dtype.kind in "iu" and classes[0] >= 0 and classes[-1] < n_columns:
            columns = classes.astype(np.int64)
        elif n_columns == len(classes):
            columns = np.arange(n_columns)
        else:
            raise InputError(
                "class_mismatch",
                f"probabilities have {n_columns} columns for {len(classes)} classes; give one "
                "column for each, in sorted order",
            )
        return found, columns[labels]

    def _selected(self, X: ArrayLike, y: ArrayLike | None) -> tuple[Any, Any]:
        """Return `X[indices_]` and `y[indices_]`; a data frame stays one."""
        selected = _safe_indexing(X, self.indices_)
        return selected, None if y is None else _safe_indexing(y, self.indices_)


def seed_of(random_state: int | np.random.RandomState | None) -> int:
    """Return a seed: the integer itself, or one drawn."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
