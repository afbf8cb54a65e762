"""Squared Euclidean costs between images, and the scale they live on."""

import numpy as np
import torch

from gadc.errors import InputError
from gadc.objective.weights import weighted_median

# Above this ratio of the largest squared norm to the typical one, the float32 identity
# |x - y|^2 = |x|^2 + |y|^2 - 2 x.y loses more than about three digits, so float64 is used.
FLOAT32_NORM_RATIO = 1e3
# A squared distance below this share of the two squared norms has lost more than two digits.
DROWNED = 1e-4
# That share of the distances may be so, as they are between near-duplicates.
FEW_DROWNED = 0.01
# Costs are looked through in blocks of about this many.
BLOCK_ENTRIES = 1 << 20
# Of float64 copies less, so that they stay in a core's cache.
SUMMED_ENTRIES = 1 << 18
# The median is sought between two values of a sorted sample, so many places apart.
SAMPLED = 100_000
SAMPLE_MARGIN = 2_000
# Rows at a time when differences are squared one by one.
DIRECT_ROWS = 1024
# Distances among the same images are symmetric: of so many stripes only what lies below the
# diagonal is multiplied. Of fewer features, copying the rest takes longer than it saves.
N_STRIPES = 8
LEAST_MIRRORED_FEATURES = 512


def as_features(features: np.ndarray | torch.Tensor, name: str = "features") -> torch.Tensor:
    """Check features and return them as a float32 or float64 tensor [n, d] on their own device.

    Raises:
        InputError: Not two-dimensional, empty, or not finite (the first ten rows are named).
    """
    if isinstance(features, torch.Tensor):
        tensor = features.detach()
    else:
        # A copy for negative strides and read-only maps, which torch does not take.
        tensor = torch.from_numpy(np.array(features, order="C"))
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise InputError(
            "features_shape", f"{name} must be [n, d] with n, d >= 1; got {list(tensor.shape)}"
        )
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.float32)
    bad_rows = torch.nonzero(~torch.isfinite(tensor).all(1))[:10, 0].tolist()
    if bad_rows:
        raise InputError(
            "features_not_finite",
            f"{name} hold NaN or infinity in rows {bad_rows} (first ten shown); "
            "remove these images or extract their features again",
        )
    return tensor


def centre_of(features: torch.Tensor) -> torch.Tensor:
    """Return a point in the middle of `features`, float64 [d].

    The mean, which is cheap; the median where an outlier has dragged the mean so far away that
    the distances between the others would lose their digits.
    """
    mean = column_sums(features) / len(features)
    norms = _squared_norms(features - mean.to(features.dtype))
    if norms.max() > FLOAT32_NORM_RATIO * norms.median():
        return features.double().median(0).values
    return mean


def centred(features: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Return `features - centre`, float32, rounded once."""
    return torch.cat([(block.double() - centre).float() for block in _blocks(features)])


def class_costs(
    images: torch.Tensor, goal: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Return `||images_i - goal_j||^2`, float32 [n, k].

    Matrix products on centred features, 2 n k d flops, or little more than half as many among the
    same images. Far-off images or distant groups can make the norms so much larger than the
    distances that these drown in rounding; then the differences are squared one by one, in float64,
    which takes some fifty times as long.

    Args:
        images: Features [n, d].
        goal: Features [k, d].
        rows: The images, `centred`.
        columns: The goal, `centred` likewise.
    """
    row_norms, column_norms = _norms_of(rows, columns)
    cost = _squared_distances(rows, row_norms, columns, column_norms)
    row_norms, column_norms = row_norms.float(), column_norms.float()
    block = max(1, BLOCK_ENTRIES // cost.shape[1])
    n_drowned = sum(
        int((some < torch.add(norms[:, None], column_norms).mul_(DROWNED)).sum())
        for some, norms in zip(cost.split(block), row_norms.split(block), strict=True)
    )
    n_equal = max(len(images), len(goal))  # every image may be in the goal too
    if n_drowned - n_equal <= FEW_DROWNED * cost.numel():
        return cost
    goal = goal.double()
    blocks = [
        torch.cdist(block.double(), goal, compute_mode="donot_use_mm_for_euclid_dist").square()
        for block in images.split(DIRECT_ROWS)
    ]
    return torch.cat([block.float() for block in blocks])


def squared_distances(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return `||rows_i - columns_j||^2` by matrix products, float32 [n_rows, n_columns].

    Args:
        rows: Features [n_rows, d], centred.
        columns: Features [n_columns, d], centred likewise; perhaps the same tensor.
    """
    row_norms, column_norms = _norms_of(rows, columns)
    return _squared_distances(rows, row_norms, columns, column_norms)


def _squared_distances(
    rows: torch.Tensor, row_norms: torch.Tensor, columns: torch.Tensor, column_norms: torch.Tensor
) -> torch.Tensor:
    """Return what `squared_distances` does, given squared norms, float64."""
    is_same = columns is rows
    typical = (row_norms.median() + column_norms.median()).item()
    largest = max(row_norms.max().item(), column_norms.max().item())
    if largest > FLOAT32_NORM_RATIO * typical:
        rows, columns = rows.double(), columns.double()
    row_norms, column_norms = row_norms.to(rows.dtype), column_norms.to(rows.dtype)
    if is_same and rows.shape[1] >= LEAST_MIRRORED_FEATURES:
        return _mirrored(rows, row_norms)
    return _expanded(rows, row_norms, columns, column_norms).float()


def _norms_of(rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the squared norms of both, which may be the same, float64."""
    row_norms = _squared_norms(rows)
    return row_norms, row_norms if columns is rows else _squared_norms(columns)


def _squared_norms(features: torch.Tensor) -> torch.Tensor:
    """Return them, float64 [n]."""
    return torch.cat([block.square().sum(1, dtype=torch.float64) for block in _blocks(features)])


def _blocks(matrix: torch.Tensor) -> list[torch.Tensor]:
    """Split rows into blocks whose float64 copies stay in a core's cache."""
    return list(matrix.split(max(1, SUMMED_ENTRIES // matrix.shape[1])))


def _expanded(
    rows: torch.Tensor, row_norms: torch.Tensor, columns: torch.Tensor, column_norms: torch.Tensor
) -> torch.Tensor:
    """Return `|x|^2 + |y|^2 - 2 x.y`, where that is positive, [n_rows, n_columns]."""
    cost = torch.addmm(column_norms, rows, columns.T, alpha=-2.0)
    cost += row_norms[:, None]
    return cost.clamp_(min=0.0)


def _mirrored(features: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Return squared distances among `features` [n, d], float32 [n, n]."""
    n = len(features)
    cost = torch.empty(n, n, device=features.device)
    width = -(-n // N_STRIPES)
    for first in range(0, n, width):
        here, below = slice(first, first + width), slice(first + width, None)
        cost[first:, here] = _expanded(features[first:], norms[first:], features[here], norms[here])
        cost[here, below] = cost[below, here].T
    return cost


def column_sums(matrix: torch.Tensor) -> torch.Tensor:
    """Return the sum of each column of `matrix` [n_rows, n_columns], float64 [n_columns]."""
    return torch.stack([block.double().sum(0) for block in _blocks(matrix)]).sum(0)


def cost_scale(
    cost: torch.Tensor, *, is_square: bool, column_weights: torch.Tensor | None = None
) -> float:
    """Return the median cost, the unit of relative weights.

    Args:
        cost: [n_rows, n_columns].
        is_square: The columns are images of the rows, so each one's zero with itself is left out.
        column_weights: How much each column counts, summing to one [n_columns]; default: all the
            same.

    Returns:
        The median; the mean where more than half the costs are zero; 1.0 where all are.
    """
    if column_weights is not None:
        return _weighted_scale(cost.cpu().numpy(), column_weights.cpu().numpy(), is_square)
    values = cost.cpu().numpy().ravel()
    n_zeros = len(cost) if is_square else 0
    n_costs = values.size - n_zeros
    if n_costs == 0:
        return 1.0
    # Zeros sort first: skipping the diagonal's is skipping that many of the smallest values.
    median = _kth_smallest(values, n_zeros + (n_costs - 1) // 2)
    if median > 0.0:
        return median
    mean = float(values.sum(dtype=np.float64)) / n_costs
    return mean if mean > 0.0 else 1.0


def _kth_smallest(values: np.ndarray, k: int) -> float:
    """Return the value that would stand at place `k` if `values` [n] were sorted.

    A sample tells between which values it lies, and only those there are put in order.
    """
    sample = np.sort(values[:: max(1, values.size // SAMPLED)])
    place = k * len(sample) // values.size
    low = sample[max(0, place - SAMPLE_MARGIN)]
    high = sample[min(len(sample) - 1, place + SAMPLE_MARGIN)]
    n_below = int(np.count_nonzero(values < low))
    between = values[(values >= low) & (values <= high)]
    if not n_below <= k < n_below + len(between):  # a sample that misleads
        n_below, between = 0, values
    return float(np.partition(between, k - n_below)[k - n_below])


def _weighted_scale(costs: np.ndarray, weights: np.ndarray, is_square: bool) -> float:
    zeros = float(is_square)  # every column counts its weight once, and these sum to one
    median = weighted_median(costs, weights, zeros_left_out=zeros)
    if median > 0.0:
        return median
    total = float(costs.sum(0, dtype=np.float64) @ weights)
    return total / (len(costs) - zeros) if total > 0.0 else 1.0
