"""Precision, recall, density and coverage: who lies in whose neighbourhoods.

The neighbourhood of a vector is the ball that reaches its k-th nearest other vector of the same
sample, border included. Distances within 1e-9 of a radius lie on the border: a subset's vectors are
often exactly someone's k-th neighbour.
"""

from dataclasses import dataclass

import torch

from gadc.evaluation.distances import TIE, squared_distance_tiles, squared_radii
from gadc.evaluation.sample import Features, Sample, as_pair

PRECISION_NEIGHBOURS = 3
"""k of precision and recall, as Kynkaanniemi et al."""
DENSITY_NEIGHBOURS = 5
"""k of density and coverage, as Naeem et al."""


def precision(*, generated: Features, real: Features, k: int = PRECISION_NEIGHBOURS) -> float:
    """Return the share of generated vectors inside the manifold of the real ones.

    1 for a part of `real`, by definition. Depends on the size of `real`: the more there are, the
    smaller the balls.

    Args:
        generated: [m, d].
        real: [n, d], n > k.
        k: Number of neighbours.

    Returns:
        0 to 1; higher is better.

    Raises:
        InputError: `bad_neighbours`, or as `as_pair`.

    Source:
        Kynkaanniemi et al., Improved precision and recall metric for assessing generative models,
        2019, equations 1 and 2.
    """
    few, many = as_pair(generated, real)
    return float((_hits(many, few, k).of_points > 0).double().mean())


def recall(*, generated: Features, real: Features, k: int = PRECISION_NEIGHBOURS) -> float:
    """Return the share of real vectors inside the manifold that the generated ones span.

    The fewer are generated, the larger the balls, so only sets of one size compare.

    Args:
        generated: [m, d], m > k.
        real: [n, d].
        k: Number of neighbours.

    Returns:
        0 to 1; higher is better.

    Raises:
        InputError: `bad_neighbours`, or as `as_pair`.

    Source:
        Kynkaanniemi et al., 2019, equations 1 and 2.
    """
    few, many = as_pair(generated, real)
    return float((_hits(few, many, k).of_points > 0).double().mean())


def density(*, generated: Features, real: Features, k: int = DENSITY_NEIGHBOURS) -> float:
    """Return in how many real neighbourhoods a generated vector lies on average, over k.

    Unbiased: 1 on average when both come from one distribution, at any sizes; above 1 when the
    generated ones crowd where the real ones are dense.

    Args:
        generated: [m, d].
        real: [n, d], n > k.
        k: Number of neighbours.

    Returns:
        >= 0; higher is better.

    Raises:
        InputError: `bad_neighbours`, or as `as_pair`.

    Source:
        Naeem et al., Reliable fidelity and diversity metrics for generative models, 2020,
        equation 3.
    """
    few, many = as_pair(generated, real)
    return float(_hits(many, few, k).of_points.double().mean()) / k


def coverage(*, generated: Features, real: Features, k: int = DENSITY_NEIGHBOURS) -> float:
    """Return the share of real vectors with a generated one in their neighbourhood.

    Grows with the number of generated vectors; for samples of one distribution and size, it is
    about 1 - 2^-k (n large).

    Args:
        generated: [m, d].
        real: [n, d], n > k.
        k: Number of neighbours.

    Returns:
        0 to 1; higher is better.

    Raises:
        InputError: `bad_neighbours`, or as `as_pair`.

    Source:
        Naeem et al., 2020, equation 4 and lemma 2.
    """
    few, many = as_pair(generated, real)
    return float((_hits(many, few, k).of_balls > 0).double().mean())


@dataclass(frozen=True)
class _Hits:
    of_balls: torch.Tensor  # points in each ball, int64 [n_balls]
    of_points: torch.Tensor  # balls around each point, int64 [n_points]


def _hits(centres: Sample, points: Sample, k: int) -> _Hits:
    """Count which points lie in the balls around which centres; the points remember it."""
    reach = squared_radii(centres, k) * (1.0 + TIE)
    return points.once(("hits", centres, k), lambda: _count(centres, points, reach))


def _count(centres: Sample, points: Sample, reach: torch.Tensor) -> _Hits:
    device = points.rows.device
    of_balls = torch.zeros(centres.n_rows, dtype=torch.int64, device=device)
    of_points = torch.zeros(points.n_rows, dtype=torch.int64, device=device)
    for rows, columns, squared in squared_distance_tiles(points, centres):
        inside = squared <= reach[columns]
        of_balls[columns] += inside.sum(0)
        of_points[rows] += inside.sum(1)
    return _Hits(of_balls, of_points)
