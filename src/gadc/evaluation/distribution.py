"""How far two samples are apart as distributions, without kernels or neighbours."""

import torch

from gadc.errors import InputError
from gadc.evaluation.distances import distance_sum, distance_sum_within
from gadc.evaluation.frechet import FeatureStatistics
from gadc.evaluation.sample import (
    Estimator,
    Features,
    Sample,
    as_pair,
    check_estimator,
    require_rows,
)


def energy_distance(
    *, generated: Features, real: Features, estimator: Estimator = "empirical"
) -> float:
    """Return the energy distance `2 E|G - R| - E|G - G'| - E|R - R'|`.

    Zero if and only if both are the same distribution; in one dimension twice the squared area
    between the distribution functions.

    Args:
        generated: [m, d], m >= 2 for `unbiased`.
        real: [n, d], n >= 2 for `unbiased`.
        estimator: `empirical` compares the two sets themselves, with equal weights, so that a
            vector's distance to itself counts; as an estimate for the distributions it is biased
            upwards by E|G - G'| / m + E|R - R'| / n. `unbiased` leaves the distances to itself
            out, and may be negative: for a spread-out choice, it is.

    Returns:
        In the unit of a distance; >= 0 for `empirical`.

    Raises:
        InputError: `too_few_rows`, or as `as_pair`.

    Source:
        Szekely and Rizzo, Energy statistics: a class of statistics based on distances, 2013,
        section 2.
    """
    few, many = as_pair(generated, real)
    check_estimator(estimator)
    cross = distance_sum(few, many) / (few.n_rows * many.n_rows)
    if estimator == "empirical":
        within = sum(distance_sum_within(rows) / rows.n_rows**2 for rows in (few, many))
        return max(0.0, 2.0 * cross - within)
    require_rows(2, "the unbiased estimate (there is estimator='empirical')", few, many)
    return 2.0 * cross - sum(
        distance_sum_within(rows) / (rows.n_rows * (rows.n_rows - 1)) for rows in (few, many)
    )


def squared_mean_gap(
    *, generated: Features, real: Features, estimator: Estimator = "empirical"
) -> float:
    """Return `|mu_g - mu_r|^2`, in squared units of a feature.

    Args:
        generated: [m, d], m >= 2 for `unbiased`.
        real: [n, d], n >= 2 for `unbiased`.
        estimator: `empirical` compares the two sets themselves; as an estimate for the
            distributions it is biased upwards by Tr S_g / m + Tr S_r / n, which `unbiased`
            takes off again, so that it may be negative.

    Raises:
        InputError: `too_few_rows`, or as `as_pair`.
    """
    few, many = as_pair(generated, real)
    check_estimator(estimator)
    gap = float((few.centre - many.centre).square().sum())
    if estimator == "empirical":
        return gap
    require_rows(2, "the unbiased estimate (there is estimator='empirical')", few, many)
    return gap - sum(_variance(rows) / rows.n_rows for rows in (few, many))


def covariance_gap(*, generated: Features, real: Features) -> float:
    """Return `|S_g - S_r|_F / |S_r|_F`, of unbiased covariances.

    Biased upwards in small samples, its square by (1 + Tr(S)^2 / |S|_F^2) / m for m vectors of a
    Gaussian: compare sets of one size.

    Args:
        generated: [m, d], m >= 2.
        real: [n, d], n >= 2, not all the same vector.

    Returns:
        >= 0; 1 is what a generated set without any spread has.

    Raises:
        InputError: `too_few_rows`, `no_spread`, or as `as_pair`.
    """
    few, many = as_pair(generated, real)
    require_rows(2, "a covariance", few, many)
    if many.n_features <= max(few.n_rows, many.n_rows):
        theirs = FeatureStatistics.of(many).covariance
        gap = float((FeatureStatistics.of(few).covariance - theirs).norm())
        size = float(theirs.norm())
    else:
        # With S = F^T F, <S_g, S_r> = |F_g F_r^T|^2: never a matrix of d x d.
        own = many.once("squared overlap", lambda: _squared_overlap(many, many))
        size = own**0.5
        squared = _squared_overlap(few, few) + own - 2.0 * _squared_overlap(few, many)
        gap = max(0.0, squared) ** 0.5
    if size == 0.0:
        raise InputError(
            "no_spread", f"all vectors of {many.name} are equal; there is no covariance to compare"
        )
    return gap / size


def _variance(sample: Sample) -> float:
    """Return the trace of the unbiased covariance."""
    return float(_centred(sample).square().sum()) / (sample.n_rows - 1)


def _squared_overlap(some: Sample, others: Sample) -> float:
    products = _centred(some) @ _centred(others).T
    return float(products.square().sum()) / ((some.n_rows - 1) * (others.n_rows - 1))


def _centred(sample: Sample) -> torch.Tensor:
    return sample.rows.double() - sample.centre
