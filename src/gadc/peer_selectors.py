"""Published methods of selection as scikit-learn estimators; the methods are `gadc.baselines`."""

from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gadc.baselines import MARGIN_SOURCE, METHODS, Pool, margin_difficulty
from gadc.baselines.coverage_centric import HARD_CUTOFF, N_STRATA
from gadc.baselines.dataset_quantization import N_BINS
from gadc.class_selector import ClassSelector, seed_of
from gadc.errors import InputError
from gadc.job.budget import Shortfall
from gadc.objective import confidence_losses
from gadc.runtime import generator

GIVEN_SOURCE = "given"


class PeerSelector(ClassSelector):
    """Select rows of each class by a method of `gadc.baselines`.

    Attributes:
        indices_: Selected rows, class by class in the order of `classes_`, in the order of
            selection within each, int64 [k].
        classes_: The labels in `y`, sorted; `[0]` without `y`.
        difficulty_source_: Where the difficulty came from: `given`, or what it was computed from;
            empty for methods that need none.
        n_features_in_: Number of columns.
    """

    _method: ClassVar[str]
    _options: ClassVar[tuple[str, ...]] = ()
    """Parameters that the method takes by the same name."""

    def __init__(self, n_per_class: int = 10, *, shortfall: Shortfall = "take-all") -> None:
        self.n_per_class = n_per_class
        self.shortfall = shortfall

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        probabilities: ArrayLike | None = None,
        difficulty: ArrayLike | None = None,
    ) -> Self:
        """Select rows.

        Args:
            X: Features [n, d].
            y: Class of each row [n]; default: all are of one.
            probabilities: p(class | row) [n, c], for methods that need confidence; their negative
                margin is the difficulty of methods that need one, unless it is given. Column j is
                the integer label j, or, where labels are no such integers, the j-th of `classes_`.
            difficulty: How hard each row is, higher for harder [n].

        Raises:
            InputError: Arrays or parameters that can't be used; it is a `ValueError`.
        """
        values, labels = self._validated(X, y)
        pool = self._pool(values, labels, probabilities, difficulty, has_labels=y is not None)
        method = METHODS[self._method_name()]
        options = {name: getattr(self, name) for name in self._options}
        seed = seed_of(getattr(self, "random_state", 0))
        chosen = []
        for name, rows, n_selected in self._budgets(labels):
            found = method.select(
                _rows_of(pool, rows),
                n_selected,
                generator=generator(seed, method.name, name),
                **options,
            )
            chosen.append(rows[found])
        self.indices_ = np.concatenate(chosen).astype(np.int64)
        self.difficulty_source_ = pool.difficulty_source
        return self

    def fit_resample(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        probabilities: ArrayLike | None = None,
        difficulty: ArrayLike | None = None,
    ) -> tuple[Any, Any]:
        """Select rows, and return them: `X[indices_]` and `y[indices_]`, None without `y`.

        Args:
            X: See `fit`; a data frame stays one.
            y: See there.
            probabilities: See there.
            difficulty: See there.
        """
        self.fit(X, y, probabilities=probabilities, difficulty=difficulty)
        return self._selected(X, y)

    def _method_name(self) -> str:
        return self._method

    def _pool(
        self,
        values: NDArray[np.float32],
        labels: NDArray[np.int64],
        probabilities: ArrayLike | None,
        difficulty: ArrayLike | None,
        *,
        has_labels: bool,
    ) -> Pool:
        """Return all rows with what the method needs."""
        needs = METHODS[self._method_name()].needs
        if "confidence_loss" in needs and probabilities is not None:
            own = self._own_probabilities(probabilities, labels, has_labels=has_labels)
            return Pool(values, confidence_loss=confidence_losses(*own))
        if "difficulty" in needs and difficulty is not None:
            given = np.asarray(difficulty, dtype=np.float64)
            return Pool(values, difficulty=given, difficulty_source=GIVEN_SOURCE)
        if "difficulty" in needs and probabilities is not None:
            own = self._own_probabilities(probabilities, labels, has_labels=has_labels)
            return Pool(values, difficulty=margin_difficulty(*own), difficulty_source=MARGIN_SOURCE)
        return Pool(values)


def _rows_of(pool: Pool, rows: NDArray[np.int64]) -> Pool:
    """Return these rows as a pool of their own."""
    return Pool(
        pool.features[rows],
        confidence_loss=None if pool.confidence_loss is None else pool.confidence_loss[rows],
        difficulty=None if pool.difficulty is None else pool.difficulty[rows],
        difficulty_source=pool.difficulty_source,
    )


class _SeededPeerSelector(PeerSelector):
    def __init__(
        self,
        n_per_class: int = 10,
        *,
        shortfall: Shortfall = "take-all",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        super().__init__(n_per_class, shortfall=shortfall)
        self.random_state = random_state


class RandomSelector(_SeededPeerSelector):
    """Draw rows of each class at random: see `gadc.baselines.uniform`.

    Args:
        n_per_class: Rows of each class; of all rows without `y`.
        shortfall: What happens where a class has fewer: see `gadc.job.budget.allocate_budget`.
        random_state: An integer, a `RandomState`, or None for another result each time.
    """

    _method = "random"


class KCenterSelector(_SeededPeerSelector):
    """Keep the farthest row of each class near: see `gadc.baselines.k_center`.

    Args:
        n_per_class: See `RandomSelector`.
        shortfall: See there.
        random_state: For the first row of each class; see there.
    """

    _method = "k-center"


class HerdingSelector(PeerSelector):
    """Follow the mean of each class: see `gadc.baselines.herding`.

    Args:
        n_per_class: See `RandomSelector`.
        variant: `herding`, or `herding-deepcore`, which goes away from the mean as DeepCore does.
        shortfall: See there.
    """

    def __init__(
        self,
        n_per_class: int = 10,
        *,
        variant: Literal["herding", "herding-deepcore"] = "herding",
        shortfall: Shortfall = "take-all",
    ) -> None:
        super().__init__(n_per_class, shortfall=shortfall)
        self.variant = variant

    def _method_name(self) -> str:
        if self.variant not in ("herding", "herding-deepcore"):
            raise InputError(
                "unknown_variant", f"variant={self.variant!r}; use herding or herding-deepcore"
            )
        return self.variant


class CCSSelector(_SeededPeerSelector):
    """Draw evenly over difficulty: see `gadc.baselines.coverage_centric`.

    Args:
        n_per_class: See `RandomSelector`.
        hard_cutoff: Share of the hardest rows of each class that are dropped.
        n_strata: Strata of difficulty.
        shortfall: See there.
        random_state: See there.
    """

    _method = "ccs"
    _options = ("hard_cutoff", "n_strata")

    def __init__(
        self,
        n_per_class: int = 10,
        *,
        hard_cutoff: float = HARD_CUTOFF,
        n_strata: int = N_STRATA,
        shortfall: Shortfall = "take-all",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        super().__init__(n_per_class, shortfall=shortfall, random_state=random_state)
        self.hard_cutoff = hard_cutoff
        self.n_strata = n_strata


class DatasetQuantizationSelector(_SeededPeerSelector):
    """Draw from bins that are diverse in themselves: see `gadc.baselines.dataset_quantization`.

    Args:
        n_per_class: See `RandomSelector`.
        n_bins: Bins of each class.
        shortfall: See there.
        random_state: See there.
    """

    _method = "dq"
    _options = ("n_bins",)

    def __init__(
        self,
        n_per_class: int = 10,
        *,
        n_bins: int = N_BINS,
        shortfall: Shortfall = "take-all",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        super().__init__(n_per_class, shortfall=shortfall, random_state=random_state)
        self.n_bins = n_bins


class DifficultyIntervalSelector(PeerSelector):
    """Take every k-th row by difficulty: see `gadc.baselines.difficulty_interval`.

    Args:
        n_per_class: See `RandomSelector`.
        interval: k; default: as wide as each class allows.
        shortfall: See there.
    """

    _method = "d2c"
    _options = ("interval",)

    def __init__(
        self,
        n_per_class: int = 10,
        *,
        interval: int | None = None,
        shortfall: Shortfall = "take-all",
    ) -> None:
        super().__init__(n_per_class, shortfall=shortfall)
        self.interval = interval


class KMedoidsSelector(PeerSelector):
    """Keep the rows of each class near on average: see `gadc.baselines.k_medoids`.

    Args:
        n_per_class: See `RandomSelector`.
        shortfall: See there.
    """

    _method = "k-medoids"


class FacilityLocationSelector(PeerSelector):
    """Serve each row by a similar one: see `gadc.baselines.facility_location`.

    Args:
        n_per_class: See `RandomSelector`.
        shortfall: See there.
    """

    _method = "facility-location"


class ModerateSelector(PeerSelector):
    """Take rows at the usual distance from their class's mean: see `gadc.baselines.moderate`.

    Args:
        n_per_class: See `RandomSelector`.
        shortfall: See there.
    """

    _method = "moderate"


class ConfidenceSelector(PeerSelector):
    """Take the rows of which a classifier is surest: see `gadc.baselines.confidence`.

    Args:
        n_per_class: See `RandomSelector`.
        shortfall: See there.
    """

    _method = "confidence"
