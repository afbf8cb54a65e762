"""Judge a subset: every measure, of every class, in every space, against pool and held-out."""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gadc.comparison.spaces import SELECTION_SPACE, Space
from gadc.comparison.transport import TRANSPORT
from gadc.errors import ConvergenceWarning, InputError
from gadc.evaluation.kernel import rbf_mmd_squared
from gadc.evaluation.measures import MEASURES, Better, Measure, Undefined
from gadc.evaluation.sample import Sample
from gadc.forks import on_cores

POOL, HELD_OUT = "pool", "held-out"
WHOLE_SET = ""
"""Class name of what is said of all classes together."""


@dataclass(frozen=True)
class Title:
    """What a table says of a measure."""

    title: str
    better: Better


FRECHET_ALL = dataclasses.replace(
    MEASURES["frechet"], name="frechet-all", title="Fréchet distance, all classes together"
)
MMD_OF_SETS = Measure(
    "mmd-set",
    "MMD², Gaussian kernel, of the two sets themselves",
    "lower",
    "Gretton et al. 2012, equation 5",
    lambda selected, real: rbf_mmd_squared(generated=selected, real=real, estimator="empirical"),
    n_real_least=2,
)
"""Beside the unbiased one: a choice is no draw, and one more even than a draw goes below zero."""
UNBIASED = frozenset(["kid", "mmd-rbf"])
"""Estimates that may be negative; below zero, lower is not better."""
PER_CLASS: dict[str, Measure] = {
    measure.name: measure for measure in (TRANSPORT, MMD_OF_SETS, *MEASURES.values())
}
OF_SELECTION = {
    "confidence": Title("Mean -log p(own class | image)", "lower"),
    "seconds": Title("CPU seconds to select, one thread", "lower"),
    "peak-memory": Title("Most memory taken while selecting, MB", "lower"),
}
"""Measures that depend on no judge; they stand with the selection's own space and the pool."""
OF_COST = frozenset(["seconds", "peak-memory"])
TITLES: dict[str, Title] = {
    **{
        name: Title(measure.title, measure.better)
        for name, measure in {**PER_CLASS, FRECHET_ALL.name: FRECHET_ALL}.items()
    },
    **OF_SELECTION,
}
"""Every measure by name, in the order of tables."""


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        space: The feature space.
        split: `pool` or `held-out`.
        class_name: Empty for the mean over classes, or the whole set.
        measure: A name in `TITLES`.
        value: None where it is not defined.
        note: Why it is not, or a mark such as `biased`.
    """

    space: str
    split: str
    class_name: str
    measure: str
    value: float | None
    note: str = ""


def chosen_measures(names: Sequence[str]) -> list[str]:
    """Return the names of measures in the order of tables; none given stand for all.

    Raises:
        InputError: `unknown_measure`, with the valid ones.
    """
    if unknown := sorted(set(names) - set(TITLES)):
        raise InputError(
            "unknown_measure",
            f"there is no measure {', '.join(map(repr, unknown))}; there are {', '.join(TITLES)}",
        )
    return [name for name in TITLES if not names or name in names]


class Judge:
    """Scores subsets; what depends on the real images alone is computed once.

    Args:
        spaces: Where to judge; the first is that of the selection.
        class_names: The classes.
        class_labels: Their numbers, as held-out images have them.
        class_rows: Rows of the pool by class.
        losses: -log p(own class | x) of the pool [n]; None if nothing says so.
        measures: Names in `TITLES`.
    """

    def __init__(
        self,
        spaces: Sequence[Space],
        class_names: Sequence[str],
        class_labels: Sequence[int],
        class_rows: Sequence[NDArray[np.int64]],
        losses: NDArray[np.float64] | None,
        measures: Sequence[str],
    ) -> None:
        self._spaces, self._names, self._rows = spaces, list(class_names), class_rows
        self._labels = dict(zip(class_names, class_labels, strict=True))
        self._losses, self._measures = losses, measures
        self._known: dict[tuple[str, str, str], Sample | None] = {}

    def scores(self, selected: Sequence[NDArray[np.int64]]) -> list[Score]:
        """Judge a subset.

        Args:
            selected: Rows of the pool by class.
        """
        with on_cores(1), warnings.catch_warnings():
            # Said in the note of the number.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = self._confidence(selected)
            for space in self._spaces:
                for split in (POOL, HELD_OUT):
                    if split == POOL or space.held_out is not None:
                        found += self._scores_in(space, split, selected)
        return found

    def reference(self) -> list[Score]:
        """Judge all images of the pool by the held-out ones, and by their mean confidence."""
        with on_cores(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = self._confidence(self._rows)
            for space in self._spaces:
                if space.held_out is not None:
                    found += self._scores_in(space, HELD_OUT, self._rows)
        return found

    def _scores_in(
        self, space: Space, split: str, selected: Sequence[NDArray[np.int64]]
    ) -> list[Score]:
        subsets = [
            Sample(space.features[rows], "selected") if len(rows) else None for rows in selected
        ]
        found = []
        for name in self._measures:
            if name in PER_CLASS:
                measure = PER_CLASS[name]
                scores = [
                    self._score(measure, space, split, class_name, subset)
                    for class_name, subset in zip(self._names, subsets, strict=True)
                ]
                found += [*scores, mean_score(scores)]
            elif name == FRECHET_ALL.name:
                rows = np.concatenate(list(selected))
                whole = Sample(space.features[rows], "selected")
                found.append(self._score(FRECHET_ALL, space, split, WHOLE_SET, whole))
        return found

    def _score(
        self, measure: Measure, space: Space, split: str, class_name: str, subset: Sample | None
    ) -> Score:
        real = self._real(space, split, class_name)
        where = (space.name, split, class_name, measure.name)
        if subset is None:
            return Score(*where, None, "nothing was selected")
        if real is None:
            return Score(*where, None, f"no {split} images")
        try:
            value = measure.compute(subset, real)
        except Undefined as undefined:
            return Score(*where, None, undefined.reason)
        note = measure.mark(subset.n_rows, real.n_rows, real.n_features)
        return Score(*where, value, note)

    def _real(self, space: Space, split: str, class_name: str) -> Sample | None:
        key = (space.name, split, class_name)
        if key not in self._known:
            rows = self._real_rows(space, split, class_name)
            self._known[key] = Sample(rows, split) if len(rows) else None
        return self._known[key]

    def _real_rows(self, space: Space, split: str, class_name: str) -> NDArray[np.float32]:
        if split == POOL:
            if class_name == WHOLE_SET:
                return space.features
            return space.features[self._rows[self._names.index(class_name)]]
        held_out = space.held_out
        if held_out is None:
            return space.features[:0]
        if class_name == WHOLE_SET:
            return held_out.features[held_out.labels >= 0]
        label = self._labels[class_name]
        return np.asarray(held_out.features[held_out.labels == label])

    def _confidence(self, selected: Sequence[NDArray[np.int64]]) -> list[Score]:
        if "confidence" not in self._measures:
            return []
        scores = [
            self._class_confidence(class_name, rows)
            for class_name, rows in zip(self._names, selected, strict=True)
        ]
        return [*scores, mean_score(scores)]

    def _class_confidence(self, class_name: str, rows: NDArray[np.int64]) -> Score:
        where = (SELECTION_SPACE, POOL, class_name, "confidence")
        if self._losses is None:
            return Score(*where, None, "there are no class probabilities")
        if not len(rows):
            return Score(*where, None, "nothing was selected")
        return Score(*where, float(self._losses[rows].mean()))


def mean_score(scores: Sequence[Score]) -> Score:
    """Return the mean over classes; not defined unless every class's number is.

    A mean over other classes for every method would compare nothing.
    """
    first = scores[0]
    where = (first.space, first.split, WHOLE_SET, first.measure)
    undefined = [score for score in scores if score.value is None]
    if undefined:
        example = undefined[0]
        share = f"{len(undefined)} of {len(scores)} classes"
        return Score(*where, None, f"{share}: {example.class_name}: {example.note}")
    values = [score.value for score in scores if score.value is not None]
    marks = {score.note for score in scores if score.note}
    return Score(*where, float(np.mean(values)), ", ".join(sorted(marks)))


def own_scores(seconds: float, peak_bytes: int, measures: Sequence[str]) -> Iterator[Score]:
    """Yield what selecting cost."""
    for name, value in (("seconds", seconds), ("peak-memory", peak_bytes / 1e6)):
        if name in measures:
            yield Score(SELECTION_SPACE, POOL, WHOLE_SET, name, value)
