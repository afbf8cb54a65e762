"""Euclidean distances between two samples, in tiles of bounded memory.

All in float64. A tile is one matrix product of centred vectors; the few distances that are so much
smaller than the vectors that they drown in its rounding are taken again from the differences. So
each squared distance is right to a relative 1e-10 (of vectors that lie a thousand times their
spread from the origin and more, to what centring them leaves), and equal vectors are at distance 0.
"""

from collections.abc import Callable, Iterator

import torch

from gadc.errors import InputError
from gadc.evaluation.sample import BLOCK_VALUES, Features, Sample, as_sample, require_rows

TILE_ROWS = 2048
"""Side of a tile: 32 MB of distances."""
DROWNED = 1e-4
"""A squared distance below this share of the two squared norms has lost six digits or more."""
FEW_DROWNED = 0.01
"""Above this share of a tile, taking all of it again is quicker than picking."""
TIE = 1e-9
"""Two squared distances are equal to within this share: ten times the largest rounding."""
MEDIAN_ROWS = 2_000
"""The median distance of this many rows is that of all of them, to a per cent or two."""

Tile = tuple[slice, slice, torch.Tensor]


def block_pairs(some: Sample, others: Sample) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Yield pairs of blocks, and how often what is symmetric in them counts in a sum over pairs.

    Of a sample with itself, each pair of different blocks comes once and counts twice.
    """
    for rows, left in some.blocks(TILE_ROWS):
        for columns, right in others.blocks(TILE_ROWS):
            if some is not others:
                yield left, right, 1
            elif rows.start <= columns.start:
                yield left, right, 1 if rows.start == columns.start else 2


def squared_distance_tiles(some: Sample, others: Sample) -> Iterator[Tile]:
    """Yield `|some_i - others_j|^2` for all pairs: rows, columns and values, float64.

    The tiles of a row follow each other. 2 n m d flops.
    """
    for rows, left in some.blocks(TILE_ROWS):
        for columns, right in others.blocks(TILE_ROWS):
            yield rows, columns, _tile(left, right, others.centre)


def nearest(
    some: Sample, others: Sample, *, leave_out_self: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the squared distance of each vector to its nearest other, and which that is.

    Args:
        some: [n, d].
        others: [m, d].
        leave_out_self: The i-th of both is the same vector, and not its own neighbour.

    Returns:
        Squared distances float64 [n] and rows of `others` int64 [n]; the first of equal ones.
    """
    device = some.rows.device
    best = torch.full((some.n_rows,), torch.inf, dtype=torch.float64, device=device)
    where = torch.zeros(some.n_rows, dtype=torch.int64, device=device)
    for rows, columns, squared in squared_distance_tiles(some, others):
        if leave_out_self:
            itself = torch.arange(rows.start, rows.stop, device=device)
            inside = (itself >= columns.start) & (itself < columns.stop)
            squared[itself[inside] - rows.start, itself[inside] - columns.start] = torch.inf
        values, places = squared.min(1)
        is_nearer = values < best[rows]
        best[rows] = torch.where(is_nearer, values, best[rows])
        where[rows] = torch.where(is_nearer, places + columns.start, where[rows])
    return best, where


def nearest_others(sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `nearest` within one sample of at least two vectors."""
    require_rows(2, "the nearest other vector", sample)
    return sample.once("nearest", lambda: nearest(sample, sample, leave_out_self=True))


def squared_radii(sample: Sample, k: int) -> torch.Tensor:
    """Return the squared distance of each vector to its k-th nearest other one, float64 [n].

    Raises:
        InputError: k is not between 1 and n - 1.
    """
    if not 1 <= k < sample.n_rows:
        raise InputError(
            "bad_neighbours",
            f"k={k} must lie between 1 and {sample.n_rows - 1}, the other {sample.name} rows",
        )
    return sample.once(("radii", k), lambda: _squared_radii(sample, k))


def squared_distance_sum(
    some: Sample, others: Sample, of: Callable[[torch.Tensor], torch.Tensor]
) -> float:
    """Return the sum over all pairs of a function of the squared distance.

    Args:
        some: [n, d].
        others: [m, d].
        of: Elementwise; may work in place.
    """
    return sum(
        n_times * float(of(_tile(left, right, others.centre)).sum())
        for left, right, n_times in block_pairs(some, others)
    )


def distance_sum(some: Sample, others: Sample) -> float:
    """Return the sum of the distances of all pairs."""
    return squared_distance_sum(some, others, torch.Tensor.sqrt_)


def distance_sum_within(sample: Sample) -> float:
    """Return the sum of the distances of all ordered pairs of one sample."""
    return sample.once("distance sum", lambda: distance_sum(sample, sample))


def median_distance(rows: Features) -> float:
    """Return the median distance between two different rows.

    Of more than `MEDIAN_ROWS` rows, that many are taken evenly from the middle to the outside, so
    that the order in which they come has no influence.

    Args:
        rows: [n, d], n >= 2.

    Raises:
        InputError: Fewer than two rows.
    """
    sample = as_sample(rows, "rows")
    require_rows(2, "a distance", sample)
    return sample.once("median", lambda: _median_distance(sample))


def _tile(left: torch.Tensor, right: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    rows, columns = left - centre, right - centre
    norms = rows.square().sum(1)[:, None] + columns.square().sum(1)  # [n, m]
    squared = torch.addmm(norms, rows, columns.T, alpha=-2.0)
    drowned = squared < norms.mul_(DROWNED)
    n_drowned = int(drowned.sum())
    # In a tile on the diagonal every vector meets itself.
    if n_drowned - min(drowned.shape) > FEW_DROWNED * drowned.numel():
        mode = "donot_use_mm_for_euclid_dist"
        return torch.cdist(left, right, compute_mode=mode).square_()
    n_pairs = max(1, BLOCK_VALUES // left.shape[1])
    for pairs in torch.nonzero(drowned).split(n_pairs):
        some, others = pairs.T
        squared[some, others] = (left[some] - right[others]).square_().sum(1)
    return squared


def _squared_radii(sample: Sample, k: int) -> torch.Tensor:
    # k + 1 smallest: every vector is its own nearest.
    n_kept = k + 1
    smallest = torch.full(
        (sample.n_rows, n_kept), torch.inf, dtype=torch.float64, device=sample.rows.device
    )
    for rows, _, squared in squared_distance_tiles(sample, sample):
        candidates = torch.cat([smallest[rows], _smallest(squared, n_kept)], dim=1)
        smallest[rows] = _smallest(candidates, n_kept)
    return smallest.amax(1)


def _smallest(values: torch.Tensor, n_kept: int) -> torch.Tensor:
    return values.topk(min(n_kept, values.shape[1]), dim=1, largest=False, sorted=False).values


def _median_distance(sample: Sample) -> float:
    if sample.n_rows > MEDIAN_ROWS:
        to_centre = torch.cat(
            [(rows - sample.centre).square_().sum(1) for _, rows in sample.blocks(TILE_ROWS)]
        )
        step = -(-sample.n_rows // MEDIAN_ROWS)
        sample = Sample(sample.rows[to_centre.argsort()[::step]], sample.name)
    n = sample.n_rows
    squared = torch.zeros((n, n), dtype=torch.float64, device=sample.rows.device)
    for rows, columns, values in squared_distance_tiles(sample, sample):
        squared[rows, columns] = values
    above = torch.triu_indices(n, n, offset=1, device=squared.device)
    # The mean of the two middle ones, where torch.median takes the lower.
    distances = squared[above[0], above[1]].sqrt_().sort().values
    return float((distances[(len(distances) - 1) // 2] + distances[len(distances) // 2]) / 2)
