"""What the features say about a subset: a map, neighbours, and images that nothing stands for."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.features.rows import FeatureRows, SelectedRows
from gadc.objective.cost import as_features, centre_of, centred, class_costs
from gadc.objective.transport import partial_transport
from gadc.runtime import generator

FIT_ROWS = 10_000
"""The two main directions of so many rows are those of all of them, for the eye."""
PLAN_ENTRIES = 20_000_000
"""Costs of a class: 160 MB. Of a larger class evenly spaced images are looked at."""
MIN_COLUMNS_PER_ROW = 2
"""Fewer images than this per chosen one say nothing about the rest of a class."""
N_NEIGHBOURS = 6
UNMATCHED_SHARE = 0.5
"""An image that gives less than half of what it could counts as left unmatched."""


@dataclass(frozen=True, eq=False)
class PoolMap:
    """Images as points in the plane.

    Attributes:
        rows: Which images: a sample of the pool, and all of the subset, int64 [s].
        positions: Along the first two principal components [s, 2].
        explained: Share of the total variance along each.
        n_pool: Images in the sample, those of the subset that fell into it among them.
    """

    rows: NDArray[np.int64]
    positions: NDArray[np.float32]
    explained: tuple[float, float]
    n_pool: int


@dataclass(frozen=True, eq=False)
class ClassGeometry:
    """A class, seen from its chosen images.

    Attributes:
        neighbours: The nearest other images of each chosen one, nearest first, int64 [m, k].
        neighbour_distances: Theirs, in units of the class's typical distance [m, k].
        looked_at: The images that the two below speak of: all of the class, or evenly spaced ones.
        unused: Share of its capacity that the transport plan leaves each image [s]; 0 to 1.
            None where the plan leaves nothing unused, or can't be computed here.
        distance: From each to the nearest chosen one, in units of the typical distance [s].
    """

    neighbours: NDArray[np.int64]
    neighbour_distances: NDArray[np.float64]
    looked_at: NDArray[np.int64]
    unused: NDArray[np.float64] | None
    distance: NDArray[np.float64]

    @property
    def is_unmatched(self) -> NDArray[np.bool_]:
        """Which of `looked_at` the plan leaves unmatched [s]."""
        if self.unused is None:
            return np.zeros(len(self.looked_at), np.bool_)
        return self.unused > UNMATCHED_SHARE


def map_of(
    features: FeatureRows, chosen: NDArray[np.int64], *, n_sampled: int, seed: int
) -> PoolMap:
    """Project a sample of the pool, and the subset, on the pool's two main directions.

    Args:
        features: Of the pool [n, d].
        chosen: Rows of the subset [m].
        n_sampled: Images of the pool to show at most; drawn at random, so that the density on
            the map is that of the pool.
        seed: Of the draw.
    """
    from sklearn.decomposition import PCA

    n_images, n_features = features.shape
    step = -(-n_images // FIT_ROWS)
    fitted = np.asarray(features[::step], dtype=np.float32)
    n_components = min(2, *fitted.shape)
    pca = PCA(n_components, svd_solver="randomized" if min(fitted.shape) > 2 else "full")
    with np.errstate(invalid="ignore", divide="ignore"):  # images that are all the same
        pca.set_params(random_state=0).fit(fitted)
    sampled = np.arange(n_images)
    if n_images > n_sampled:
        sampled = generator(seed, "map").choice(n_images, n_sampled, replace=False)
    rows = np.unique(np.concatenate([sampled, chosen]).astype(np.int64))
    positions = np.zeros((len(rows), 2), np.float32)
    positions[:, :n_components] = pca.transform(np.asarray(features[rows], dtype=np.float32))
    explained = np.zeros(2)
    explained[:n_components] = np.nan_to_num(pca.explained_variance_ratio_)
    shares = (float(explained[0]), float(explained[1]))
    return PoolMap(rows, positions, shares, len(sampled))


def class_geometry(
    features: NDArray[np.float32] | SelectedRows,
    chosen: NDArray[np.int64],
    *,
    scale: float,
    capacity: float,
    epsilon: float,
    has_plan: bool = True,
) -> ClassGeometry:
    """Find the neighbours of a class's chosen images, and the images that they leave unmatched.

    Args:
        features: Of the whole class [n, d]; only the rows that are looked at are read.
        chosen: Places of the chosen images in it [m].
        scale: The class's median squared distance.
        capacity: kappa: an image takes at most so many times its share of the mass.
        epsilon: In units of squared distance.
        has_plan: The subset was matched to the class itself.

    Source:
        The plan is the one of the objective's transport term; see `gadc.objective.transport`.
    """
    n_images, n_chosen = len(features), len(chosen)
    step = -(-n_images * n_chosen // PLAN_ENTRIES)
    looked_at = np.arange(0, n_images, step)
    goal = as_features(np.asarray(features[looked_at], dtype=np.float32))
    picked = as_features(np.asarray(features[chosen], dtype=np.float32))
    centre = centre_of(goal)
    cost = class_costs(picked, goal, centred(picked, centre), centred(goal, centre))
    costs = cost.double().numpy()  # [m, s]
    places = np.searchsorted(looked_at, chosen)
    is_there = (places < len(looked_at)) & (
        looked_at[np.minimum(places, len(looked_at) - 1)] == chosen
    )
    costs[np.flatnonzero(is_there), places[is_there]] = 0.0  # exactly, as in the objective

    unit = scale if scale > 0.0 else 1.0
    is_enough = step == 1 or len(looked_at) >= MIN_COLUMNS_PER_ROW * n_chosen
    has_plan = has_plan and capacity > 1.0 and is_enough
    unused = _unused(costs, capacity, epsilon) if has_plan else None
    distance = np.sqrt(costs.min(0) / unit)
    others = costs.copy()
    others[np.flatnonzero(is_there), places[is_there]] = np.inf
    k = min(N_NEIGHBOURS, len(looked_at) - 1)
    nearest = np.argsort(others, axis=1, kind="stable")[:, :k]
    return ClassGeometry(
        neighbours=looked_at[nearest],
        neighbour_distances=np.sqrt(np.take_along_axis(others, nearest, 1) / unit),
        looked_at=looked_at,
        unused=unused,
        distance=distance,
    )


def _unused(costs: NDArray[np.float64], capacity: float, epsilon: float) -> NDArray[np.float64]:
    """Return the share of its capacity that the plan leaves each column, [n]."""
    solved = partial_transport(torch.from_numpy(costs), capacity=capacity, epsilon=epsilon)
    taken = np.asarray(solved.plan).sum(0)  # [n]
    unused: NDArray[np.float64] = np.clip(1.0 - taken * costs.shape[1] / capacity, 0.0, 1.0)
    return unused
