"""Every number of an evaluation, from features; too few images give a mark, or a reason."""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.evaluation import inception
from gadc.evaluation.encoding import as_tensor
from gadc.evaluation.frechet import FeatureStatistics, frechet_distance
from gadc.evaluation.inception_score import inception_score_of_logits
from gadc.evaluation.judged import PublishedMoments
from gadc.evaluation.kernel import KID_SUBSET_SIZE, kernel_distance_of_subsets
from gadc.evaluation.measures import BIASED, MEASURES, Better, Undefined
from gadc.evaluation.sample import Sample
from gadc.features.rows import FeatureRows
from gadc.runtime import generator

PAIRWISE = ("kid", "precision", "recall", "density", "coverage")
"""Measures that compare every image of one set with every one of the other."""
ROWS_AT_A_TIME = 4096
SCORE_SPLIT_IMAGES = 5_000
"""Images in a split of the Inception Score, as ADM's evaluator has it."""
NO_IMAGES = "the reference holds statistics only, no images or features"


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        name: Short, for files and tables.
        title: For people.
        better: `lower` or `higher`.
        source: Where it is defined.
        value: None where it is not defined for these sizes.
        note: `biased`, or why there is no value; mostly nothing.
        details: What belongs to this number alone: sizes, splits, a spread.
    """

    name: str
    title: str
    better: Better
    source: str
    value: float | None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it for a file; `biased` is a field of its own."""
        return {**asdict(self), "biased": self.note == BIASED}


@dataclass(frozen=True, eq=False)
class Space:
    """Which columns of a row mean what.

    Attributes:
        features: The vector of the encoder.
        spatial: Inception's spatial features, for sFID; None for other encoders.
        logits: Inception's logits, for its score; None for other encoders.
    """

    features: slice
    spatial: slice | None = None
    logits: slice | None = None

    @property
    def is_inception(self) -> bool:
        """Whether Fréchet distances are the published FID and sFID."""
        return self.spatial is not None


def space_of(encoder_name: str | None) -> Space:
    """Return the columns of an encoder's rows."""
    if encoder_name == inception.NAME:
        return Space(inception.POOL, inception.SPATIAL, inception.LOGITS)
    return Space(slice(None))


def scores(
    *,
    generated: FeatureRows,
    real: FeatureRows | None,
    moments: PublishedMoments | None,
    space: Space,
    pairwise_images: int | None,
    seed: int,
    device: torch.device,
) -> list[Score]:
    """Compute all measures.

    Args:
        generated: Rows [n, d].
        real: Rows [m, d]; None where the reference is statistics alone.
        moments: Published statistics; they come before those of `real`.
        space: Columns of the rows.
        pairwise_images: Of either set, at most so many, drawn by the seed, are compared pair by
            pair; None for all.
        seed: Of what is drawn.
        device: Where to compute.

    Raises:
        InputError: Fewer than two images, features that don't fit, or no positive definite
            covariance in the reference.
    """
    if len(generated) < 2:
        raise InputError(
            "too_few_rows", f"an evaluation needs 2 generated images at least; has {len(generated)}"
        )
    found = [_frechet(generated, real, moments, space, device)]
    if space.spatial is not None:
        found.append(_spatial_frechet(generated, real, moments, space.spatial, device))
    if space.logits is not None:
        found.append(_inception_score(generated, space.logits, seed))
    return found + _pairwise(generated, real, space, pairwise_images, seed, device)


def statistics_of(rows: FeatureRows, columns: slice, device: torch.device) -> FeatureStatistics:
    """Return the statistics of some columns, block by block: rows may be larger than memory."""
    statistics: FeatureStatistics | None = None
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        block = as_tensor(rows[start : start + ROWS_AT_A_TIME][:, columns], device)
        if statistics is None:
            statistics = FeatureStatistics(block.shape[1], device)
        statistics.update(block)
    if statistics is None:
        raise InputError("too_few_rows", "there are no rows")
    return statistics


def _frechet(
    generated: FeatureRows,
    real: FeatureRows | None,
    moments: PublishedMoments | None,
    space: Space,
    device: torch.device,
) -> Score:
    measure = MEASURES["frechet"]
    name, title = (
        ("fid", "Fréchet Inception distance (FID)")
        if space.is_inception
        else (measure.name, measure.title)
    )
    published = None if moments is None else moments.pool
    return _distance(name, title, generated, real, published, space.features, device)


def _spatial_frechet(
    generated: FeatureRows,
    real: FeatureRows | None,
    moments: PublishedMoments | None,
    columns: slice,
    device: torch.device,
) -> Score:
    title = "FID on spatial features (sFID)"
    published = None if moments is None else moments.spatial
    if published is None and moments is not None:
        # One number must not mix the statistics of all images with those of a few.
        return Score(
            "sfid", title, "lower", "Nash et al. 2021", None, "the reference has no mu_s, sigma_s"
        )
    return _distance("sfid", title, generated, real, published, columns, device)


def _distance(
    name: str,
    title: str,
    generated: FeatureRows,
    real: FeatureRows | None,
    published: FeatureStatistics | None,
    columns: slice,
    device: torch.device,
) -> Score:
    source = "Nash et al. 2021" if name == "sfid" else MEASURES["frechet"].source
    few = _moments_of(generated, "generated", columns, device)
    if published is not None:
        many: Sample | FeatureStatistics = published
    elif real is not None and len(real) >= 2:
        many = _moments_of(real, "real", columns, device)
    else:
        raise InputError(
            "too_few_rows", "the reference needs 2 images at least, or published statistics"
        )
    found = frechet_distance(generated=few, real=many)
    return Score(
        name,
        title,
        "lower",
        source,
        found.value,
        BIASED if found.biased else "",
        {
            "mean_term": found.mean_term,
            "covariance_term": found.covariance_term,
            "n_generated": few.n_rows,
            "n_real": None if published is not None else many.n_rows,
            "n_features": few.n_features,
        },
    )


def _moments_of(
    rows: FeatureRows, name: str, columns: slice, device: torch.device
) -> Sample | FeatureStatistics:
    """Return rows as their statistics or, where they are fewer than features, as they are.

    A covariance of few rows is all but empty; `frechet_distance` spares itself its eigenvectors.
    """
    n_features = len(range(*columns.indices(rows.shape[1])))
    if len(rows) > n_features:
        return statistics_of(rows, columns, device)
    return _drawn(rows, name, columns, None, 0, device)


def _inception_score(generated: FeatureRows, columns: slice, seed: int) -> Score:
    n_images = len(generated)
    logits = np.concatenate(
        [
            np.asarray(generated[start : start + ROWS_AT_A_TIME][:, columns])
            for start in range(0, n_images, ROWS_AT_A_TIME)
        ]
    )
    # Samples may be sorted by class, and a split of one class would score 1.
    found = inception_score_of_logits(
        logits,
        n_splits=max(1, round(n_images / SCORE_SPLIT_IMAGES)),
        generator=generator(seed, "inception score"),
    )
    is_short = found.n_per_split < SCORE_SPLIT_IMAGES // 2
    return Score(
        "inception-score",
        "Inception Score",
        "higher",
        "Salimans et al. 2016, section 4",
        found.mean,
        BIASED if is_short else "",
        {"sd": found.sd, "n_splits": found.n_splits, "n_per_split": found.n_per_split},
    )


def _pairwise(
    generated: FeatureRows,
    real: FeatureRows | None,
    space: Space,
    n_most: int | None,
    seed: int,
    device: torch.device,
) -> list[Score]:
    if real is None:
        return [_of_measure(name, lambda: _undefined(NO_IMAGES), {}) for name in PAIRWISE]
    few = _drawn(generated, "generated", space.features, n_most, seed, device)
    many = _drawn(real, "real", space.features, n_most, seed, device)
    sizes = {"n_generated": few.n_rows, "n_real": many.n_rows}
    found = []
    for name in PAIRWISE:
        compute = functools.partial(MEASURES[name].compute, few, many)
        found.append(_of_measure(name, compute, sizes))
        if name == "kid":
            found.append(_kid_of_subsets(few, many, seed))
    return found


def _drawn(
    rows: FeatureRows,
    name: str,
    columns: slice,
    n_most: int | None,
    seed: int,
    device: torch.device,
) -> Sample:
    if n_most is None or n_most >= len(rows):
        chosen: NDArray[np.int64] = np.arange(len(rows))
    else:
        drawn = generator(seed, "pairwise", name).choice(len(rows), n_most, replace=False)
        chosen = np.sort(drawn)
    blocks = [
        np.asarray(rows[chosen[start : start + ROWS_AT_A_TIME]])[:, columns]
        for start in range(0, len(chosen), ROWS_AT_A_TIME)
    ]
    return Sample(as_tensor(np.concatenate(blocks), device), name)


def _of_measure(name: str, compute: Callable[[], float], details: dict[str, Any]) -> Score:
    measure = MEASURES[name]
    value, note = None, ""
    try:
        value = compute()
    except Undefined as error:
        note = error.reason
    return Score(name, measure.title, measure.better, measure.source, value, note, details)


def _undefined(reason: str) -> float:
    raise Undefined(reason)


def _kid_of_subsets(few: Sample, many: Sample, seed: int) -> Score:
    title, source = "KID of random subsets", "Binkowski et al. 2018, section 4"
    n_most = min(few.n_rows, many.n_rows)
    if n_most < KID_SUBSET_SIZE:
        reason = f"needs {KID_SUBSET_SIZE} images of either set, has {n_most}"
        return Score("kid-subsets", title, "lower", source, None, reason)
    found = kernel_distance_of_subsets(
        generated=few, real=many, generator=generator(seed, "kid subsets")
    )
    return Score(
        "kid-subsets",
        title,
        "lower",
        source,
        found.mean,
        "",
        {"sd": found.sd, "n_subsets": found.n_subsets, "subset_size": found.subset_size},
    )
