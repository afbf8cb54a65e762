"""The selection as a scikit-learn estimator, for arrays."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_array

from gadc.class_selector import ClassSelector, seed_of
from gadc.errors import InputError
from gadc.job.budget import Shortfall
from gadc.job.duplicates import later_copies, row_digests
from gadc.objective import confidence_losses
from gadc.objective.total import DEFAULT_MEAN_WEIGHT, DEFAULT_STD_WEIGHT, Units
from gadc.objective.transport import DEFAULT_CAPACITY, DEFAULT_RELATIVE_EPSILON
from gadc.objective.weights import as_weights
from gadc.per_class.selection import ClassSettings, ClassTask, Partition, select_class
from gadc.runtime import pick_device
from gadc.search import Nested, Start
from gadc.search.multistart import DEFAULT_PATIENCE, DEFAULT_START
from gadc.search.nested import check_nested


class GeometryAwareSelector(ClassSelector):
    """Select, of each class, the rows whose distribution is closest to that of all its rows.

    It is the selection that `gadc.condense` makes, on arrays. Exact copies of a row are selected
    only where a class has no other rows left.

    Args:
        n_per_class: Rows of each class; of all rows without `y`.
        start: See `gadc.search.search`; so are `max_swaps` and `patience`.
        max_swaps: Most exchanges per start; None for as many as help.
        patience: Failed attempts in a row to leave the best local optimum.
        proof: Whether every exchange is ruled out or solved at the end.
        nested: Sizes of smaller subsets of each class, ascending, or `halves`; the first of a
            class's selected rows are then good subsets of these sizes. See
            `gadc.search.nested.search_nested`.
        partition: Which classes are searched in cells, without a cost matrix: those of more than
            20,000 rows (`auto`), all (`always`) or none (`never`).
        random_state: For those attempts: an integer, a `RandomState`, or None for another result
            each time.
        capacity: See `gadc.Objective`; so are all weights and `units`.
        epsilon: See there.
        mean_weight: See there.
        std_weight: See there.
        confidence_weight: See there; None for 0.03 if `fit` gets probabilities, else 0.
        units: See there.
        shortfall: What happens where a class has fewer rows: see `gadc.job.budget.allocate_budget`.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.

    Attributes:
        indices_: Selected rows, class by class in the order of `classes_`, in the order of
            selection within each, int64 [k].
        gains_: Decrease of its class's objective by each, float64 [k].
        objective_: Mean of the classes' objectives.
        objectives_: Objective of each class, float64 [c].
        terms_: Terms of each class's objective; see `gadc.Objective.terms`.
        classes_: The labels in `y`, sorted; `[0]` without `y`.
        nested_objectives_: Objective of each class's smaller subsets by size; empty without
            `nested`.
        is_swap_optimal_: Whether no exchange of one row would lower an objective; of nested
            subsets, one of those that a size adds.
        n_features_in_: Number of columns.

    On Linux searches go on in forks of this process too, as many as torch may use threads
    (`torch.set_num_threads`); what is selected does not depend on their number.

    Example:
        >>> selector = GeometryAwareSelector(n_per_class=10).fit(X, y)  # doctest: +SKIP
        >>> X[selector.indices_], y[selector.indices_]  # doctest: +SKIP
    """

    def __init__(
        self,
        n_per_class: int = 10,
        *,
        start: Start = DEFAULT_START,
        max_swaps: int | None = None,
        patience: int = DEFAULT_PATIENCE,
        proof: bool = True,
        nested: Nested | None = None,
        partition: Partition = "auto",
        random_state: int | np.random.RandomState | None = 0,
        capacity: float = DEFAULT_CAPACITY,
        epsilon: float = DEFAULT_RELATIVE_EPSILON,
        mean_weight: float = DEFAULT_MEAN_WEIGHT,
        std_weight: float = DEFAULT_STD_WEIGHT,
        confidence_weight: float | None = None,
        units: Units = "relative",
        shortfall: Shortfall = "take-all",
        device: str = "cpu",
    ) -> None:
        self.n_per_class = n_per_class
        self.start = start
        self.max_swaps = max_swaps
        self.patience = patience
        self.proof = proof
        self.nested = nested
        self.partition = partition
        self.random_state = random_state
        self.capacity = capacity
        self.epsilon = epsilon
        self.mean_weight = mean_weight
        self.std_weight = std_weight
        self.confidence_weight = confidence_weight
        self.units = units
        self.shortfall = shortfall
        self.device = device

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        probabilities: ArrayLike | None = None,
        target: ArrayLike | None = None,
    ) -> Self:
        """Select rows.

        Args:
            X: Features [n, d]; arithmetic is float32.
            y: Class of each row [n]; default: all are of one.
            sample_weight: How much each row counts in what its class is matched to [n]; default:
                all the same. A row of weight 0 may still be selected, to stand for others.
            probabilities: p(class | row) [n, c]. Column j is the integer label j, or, where labels
                are no such integers, the j-th of `classes_`.
            target: What each class is to match [t, d]; default: itself.

        Raises:
            InputError: Arrays or parameters that can't be used; it is a `ValueError`.
        """
        if sample_weight is not None and target is not None:
            raise InputError(
                "sample_weight_with_target",
                "sample_weight says how much rows of X count in what is matched, but that is the "
                "target; leave out one of them",
            )
        values, labels = self._validated(X, y)
        weights = None
        if sample_weight is not None:
            weights = np.asarray(sample_weight, dtype=np.float64)
            as_weights(weights, len(values), "sample_weight")
        losses = None
        if probabilities is not None and self.confidence_weight != 0.0:
            losses = confidence_losses(
                *self._own_probabilities(probabilities, labels, has_labels=y is not None)
            )
        tasks = self._tasks(values, labels, losses, target, weights)
        selections = [select_class(task) for _, task in tasks]

        self.indices_ = np.concatenate(
            [rows[found.order] for (rows, _), found in zip(tasks, selections, strict=True)]
        ).astype(np.int64)
        self.gains_ = np.array([gain for found in selections for gain in found.gains])
        self.terms_ = [found.terms for found in selections]
        self.objectives_ = np.array([found.terms["total"] for found in selections])
        self.nested_objectives_ = [
            {smaller["n_selected"]: smaller["terms"]["total"] for smaller in found.nested}
            for found in selections
        ]
        self.objective_ = float(self.objectives_.mean())
        self.is_swap_optimal_ = all(found.is_swap_optimal for found in selections)
        return self

    def fit_resample(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        probabilities: ArrayLike | None = None,
        target: ArrayLike | None = None,
    ) -> tuple[Any, Any]:
        """Select rows, and return them: `X[indices_]` and `y[indices_]`, None without `y`.

        Args:
            X: See `fit`; a data frame stays one.
            y: See there.
            sample_weight: See there.
            probabilities: See there.
            target: See there.
        """
        self.fit(X, y, sample_weight, probabilities=probabilities, target=target)
        return self._selected(X, y)

    def _tasks(
        self,
        values: NDArray[np.float32],
        labels: NDArray[np.int64],
        losses: NDArray[np.float64] | None,
        target: ArrayLike | None,
        weights: NDArray[np.float64] | None,
    ) -> list[tuple[NDArray[np.int64], ClassTask]]:
        """Return the rows of each class and what its selection needs."""
        budgets = list(self._budgets(labels))
        check_nested(self.nested, self.n_per_class)
        matched = None if target is None else check_array(target, dtype=np.float32)
        settings = ClassSettings(
            start=self.start,
            max_swaps=self.max_swaps,
            patience=self.patience,
            proof=self.proof,
            nested=self.nested,
            partition=self.partition,
            seed=seed_of(self.random_state),
            capacity=self.capacity,
            epsilon=self.epsilon,
            mean_weight=self.mean_weight,
            std_weight=self.std_weight,
            confidence_weight=self.confidence_weight,
            units=self.units,
        )
        device = str(pick_device(self.device))
        digests = row_digests(values, "X")
        tasks = []
        for name, rows, n_selected in budgets:
            keep, exclude = _copies([digests[row] for row in rows], n_selected)
            task = ClassTask(
                name=name,
                features=values[rows],
                n_selected=n_selected,
                settings=settings,
                target=matched,
                target_weights=None if weights is None else weights[rows],
                confidence_loss=None if losses is None else losses[rows],
                keep=keep,
                exclude=exclude,
                device=device,
            )
            tasks.append((rows, task))
        return tasks


def _copies(digests: list[bytes], n_selected: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which rows to keep and to exclude so that copies come last."""
    nothing = np.zeros(len(digests), dtype=np.bool_)
    is_copy = later_copies(digests, np.arange(len(digests)), nothing)
    if n_selected <= (~is_copy).sum():
        return (), tuple(np.flatnonzero(is_copy).tolist())
    return tuple(np.flatnonzero(~is_copy).tolist()), ()
