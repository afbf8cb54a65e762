"""What is compared on: the pool, its classes, the spaces to judge in, the held-out images."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadc.baselines import MARGIN_SOURCE, margin_difficulty
from gadc.comparison.methods import Case
from gadc.comparison.scores import read_scores
from gadc.comparison.spaces import (
    SELECTION_SPACE,
    HeldOut,
    Space,
    held_out_of,
    same_rows,
    split_off,
)
from gadc.errors import InputError
from gadc.features.checks import as_float_matrix, as_probabilities
from gadc.features.probe import out_of_fold_probabilities
from gadc.features.store import FeatureSet
from gadc.forks import on_cores
from gadc.job.config import CondenseConfig
from gadc.job.prepare import GIVEN, Job, prepare
from gadc.objective import confidence_losses
from gadc.runs.inputs import comparable_target, is_features, load_any
from gadc.runs.planned_data import rows_of
from gadc.runs.selection import FEATURES_FOLDER, Request, features_of
from gadc.runtime import ProgressStyle

logger = logging.getLogger(__name__)

JUDGE_SPACE = "judge"
GIVEN_SCORES = "given: {}"
PROBE_SOURCE = "negative margin of a linear probe that has not seen the image"


@dataclass(frozen=True)
class Comparison:
    """What a comparison is asked for.

    Attributes:
        request: The data, and gadc's settings; its budget is not looked at.
        methods: Names, or `all`.
        per_class: Budgets.
        n_seeds: Runs of a random method, with the seeds from `request.config.seed` on.
        measures: Names; none for all.
        judge: Features of the same images in another space.
        held_out: Features of other images.
        judge_held_out: Features of these in the judge's space.
        holdout: Share of each class that is split off as held-out images instead.
        scores: A file with the difficulty of each image.
    """

    request: Request
    methods: tuple[str, ...] = ("all",)
    per_class: tuple[int, ...] = (10,)
    n_seeds: int = 5
    measures: tuple[str, ...] = ()
    judge: Path | None = None
    held_out: Path | None = None
    judge_held_out: Path | None = None
    holdout: float | None = None
    scores: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be compared.

        Raises:
            InputError: `comparison_range` or `held_out_choice`.
        """
        if self.n_seeds < 1 or not self.per_class or min(self.per_class) < 1:
            raise InputError(
                "comparison_range",
                f"per_class={list(self.per_class)} and seeds={self.n_seeds} must be at least 1",
            )
        if self.holdout is not None and (self.held_out or self.judge_held_out):
            raise InputError(
                "held_out_choice",
                f"holdout={self.holdout} splits images off, and a file of held-out images is "
                "given; leave out one of them",
            )
        if self.judge_held_out is not None and self.judge is None:
            raise InputError(
                "held_out_choice",
                f"judge_held_out={self.judge_held_out} needs a judge; give --judge FILE as well",
            )


@dataclass(frozen=True, eq=False)
class Problem:
    """What every method is given, and what it is judged by.

    Attributes:
        jobs: By budget; they differ in nothing else.
        spaces: The selection's own, then the judge's.
        difficulty: Of each image of the pool [n], or None.
        difficulty_source: Where it comes from, or why there is none.
        losses: -log p(own class | x) of each image of the pool [n], or None.
        about: What the files say of the data.
    """

    jobs: dict[int, Job]
    spaces: list[Space]
    difficulty: NDArray[np.float64] | None
    difficulty_source: str
    losses: NDArray[np.float64] | None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        """One of them, for what they have in common."""
        return next(iter(self.jobs.values()))

    @property
    def labels(self) -> list[int]:
        """Numbers of the classes that have images."""
        return np.flatnonzero(self.job.division.sizes).tolist()

    @property
    def known(self) -> set[str]:
        """What methods may need, as far as it is there."""
        return {
            name
            for name, values in (("difficulty", self.difficulty), ("confidence_loss", self.losses))
            if values is not None
        }

    def case(self, label: int) -> Case:
        """Return a class; the number to select is that of no budget in particular."""
        rows = self.job.division.rows[label]
        task = dataclasses.replace(self.job.task(label), device="cpu")
        features = self.job.pool.features.features
        task = dataclasses.replace(
            task,
            features=np.asarray(features[rows], dtype=np.float32),
            confidence_loss=None if self.losses is None else self.losses[rows],
            exclude=tuple(np.flatnonzero(self.job.eligibility.is_barred[rows]).tolist()),
        )
        difficulty = None if self.difficulty is None else self.difficulty[rows]
        return Case(task, difficulty, self.difficulty_source)


def pose(asked: Comparison, *, show: ProgressStyle = "silent") -> Problem:
    """Read all data, and decide what does not depend on methods.

    Raises:
        InputError: Files that can't be used, or don't belong together.
    """
    request = asked.request
    everything, _ = features_of(request, show)
    difficulty = None if asked.scores is None else read_scores(asked.scores, everything)
    pool_rows = np.arange(everything.n_images, dtype=np.int64)
    held_out_rows = pool_rows[:0]
    if asked.holdout is not None:
        pool_rows, held_out_rows = split_off(everything, asked.holdout, seed=request.config.seed)
    pool = everything if not len(held_out_rows) else rows_of(everything, pool_rows)
    spaces = [_selection_space(asked, everything, pool, held_out_rows)]
    if asked.judge is not None:
        spaces.append(_judge_space(asked, asked.judge, everything, pool_rows, held_out_rows))
    given = None
    if difficulty is not None:
        given = (difficulty[pool_rows], GIVEN_SCORES.format(asked.scores))
    problem = problem_of(pool, request.config, asked.per_class, spaces=spaces, difficulty=given)
    job = problem.job
    about = {
        "source": str(request.data),
        "n_images": pool.n_images,
        "n_features": pool.n_features,
        "n_classes": len(job.division.names),
        "division": job.division.kind,
        "confidence": job.confidence,
        "difficulty": problem.difficulty_source,
        "holdout": asked.holdout,
        "spaces": [
            {
                "name": space.name,
                "is_selection": space is spaces[0],
                "n_features": int(space.features.shape[1]),
                "n_held_out": 0 if space.held_out is None else len(space.held_out.features),
            }
            for space in spaces
        ],
    }
    return dataclasses.replace(problem, about=about)


def problem_of(
    pool: FeatureSet,
    config: CondenseConfig,
    per_class: Sequence[int],
    *,
    spaces: Sequence[Space] = (),
    difficulty: tuple[NDArray[np.float64], str] | None = None,
) -> Problem:
    """Divide and check a pool, and find out how hard its images are.

    Args:
        pool: What is selected from.
        config: gadc's settings; its budget is not looked at.
        per_class: Budgets.
        spaces: To judge in.
        difficulty: Of each image [n], and where it comes from; default: by what is known.

    Raises:
        InputError: Features or numbers that can't be used.
    """
    jobs = {
        n: prepare(
            pool,
            config.model_copy(update={"per_class": n}),
            target=None,
            keep=(),
            exclude=(),
            device="cpu",
        )
        for n in sorted(set(per_class))
    }
    job = next(iter(jobs.values()))
    values, source = difficulty or _difficulty(pool, job)
    return Problem(jobs, list(spaces), values, source, _losses(job))


def _selection_space(
    asked: Comparison,
    everything: FeatureSet,
    pool: FeatureSet,
    held_out_rows: NDArray[np.int64],
) -> Space:
    own = as_float_matrix(np.asarray(pool.features), "features")
    if len(held_out_rows):
        held_out = _split_rows(everything, everything, held_out_rows)
        return Space(SELECTION_SPACE, own, held_out)
    if asked.held_out is None:
        return Space(SELECTION_SPACE, own, None)
    request = asked.request
    folder = request.data if is_features(request.data) else request.out / FEATURES_FOLDER
    found = comparable_target(_load(asked.held_out), asked.held_out, everything, folder)
    return Space(SELECTION_SPACE, own, _other_images(found, pool, pool.n_features, asked.held_out))


def _judge_space(
    asked: Comparison,
    path: Path,
    everything: FeatureSet,
    pool_rows: NDArray[np.int64],
    held_out_rows: NDArray[np.int64],
) -> Space:
    judge = _load(path)
    rows = same_rows(judge, everything, str(path))
    values = as_float_matrix(np.asarray(judge.features), str(path))
    own = values[rows[pool_rows]]
    name = _space_name(judge)
    if len(held_out_rows):
        held_out = _split_rows(everything, judge, rows[held_out_rows], held_out_rows)
        return Space(name, own, held_out)
    if asked.judge_held_out is None:
        return Space(name, own, None)
    other = asked.judge_held_out
    found = comparable_target(_load(other), other, judge, path)
    return Space(name, own, _other_images(found, everything, values.shape[1], other))


def _space_name(judge: FeatureSet) -> str:
    encoder = judge.provenance.get("encoder")
    name = str(encoder["name"]) if isinstance(encoder, dict) and "name" in encoder else JUDGE_SPACE
    return JUDGE_SPACE if name == SELECTION_SPACE else name


def _split_rows(
    everything: FeatureSet,
    space: FeatureSet,
    rows: NDArray[np.int64],
    own_rows: NDArray[np.int64] | None = None,
) -> HeldOut:
    values = as_float_matrix(np.asarray(space.features[rows]), "held-out features")
    if everything.labels is None:
        return HeldOut(values, np.zeros(len(rows), dtype=np.int64))
    return HeldOut(values, everything.labels[rows if own_rows is None else own_rows])


def _other_images(found: FeatureSet, pool: FeatureSet, n_features: int, path: Path) -> HeldOut:
    return held_out_of(
        found,
        pool.class_names,
        n_features=n_features,
        name=str(path),
        is_labelled=pool.labels is not None,
    )


def _load(path: Path) -> FeatureSet:
    if path.exists() and not is_features(path):
        raise InputError(
            "not_features",
            f"{path} holds images, or nothing that gadc knows; judges and held-out images are "
            "features: run `gadc features` on them first",
        )
    return load_any(path)


def _difficulty(pool: FeatureSet, job: Job) -> tuple[NDArray[np.float64] | None, str]:
    """Return a difficulty that needs no training, or None and why not."""
    labels, division = pool.labels, job.division
    if labels is None:
        return None, "none: the images have no labels; give --scores FILE"
    if len(division.names) < 2:
        return None, "none: there is only one class; give --scores FILE"
    if pool.probabilities is not None:
        return margin_difficulty(np.asarray(pool.probabilities), labels), MARGIN_SOURCE
    if np.count_nonzero(division.sizes) < 2 or not job.config.probe:
        return None, "none: no class probabilities, and no probe; give --scores FILE"
    with on_cores(1):
        probabilities = out_of_fold_probabilities(
            pool.features, labels, n_classes=len(division.names)
        )
    return margin_difficulty(probabilities, labels), PROBE_SOURCE


def _losses(job: Job) -> NDArray[np.float64] | None:
    probabilities = job.pool.features.probabilities
    if job.confidence != GIVEN or probabilities is None:
        return job.losses
    checked = as_probabilities(np.asarray(probabilities), "probabilities")
    return confidence_losses(checked, job.division.labels)
