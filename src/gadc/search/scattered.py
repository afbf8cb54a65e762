"""A start for data in cells: medoids of each cell, as many as its share of what will be served."""

from dataclasses import dataclass

import numpy as np
import torch

from gadc.objective.cost import centred, class_costs, squared_distances
from gadc.objective.threads import Threads
from gadc.search.candidates import Candidates
from gadc.search.medoids import medoids
from gadc.search.whole import BLOCK_ROWS, Terms, Whole

# Medoids are sought among this many images of a cell, evenly spread.
MOST_IMAGES = 1500
# Budgets follow from distances, and these from medoids: the second time little changes.
N_ROUNDS = 2


@dataclass(frozen=True, eq=False)
class Allowed:
    """Which images may, and which must, be chosen [n] each."""

    may: np.ndarray
    must: np.ndarray


def scattered_medoids(
    whole: Whole,
    cells: list[np.ndarray],
    n_selected: int,
    allowed: Allowed,
    terms: Terms,
    threads: Threads,
) -> tuple[np.ndarray, float]:
    """Choose medoids of each cell.

    Columns may leave 1 - 1/kappa of their room unused, all together: those that are furthest from
    their medoid will. So a cell gets images in proportion to its columns nearer than the distance
    beyond which that much lies, and not in proportion to its size.

    Args:
        whole: The images.
        cells: Their rows, cell by cell.
        n_selected: m.
        allowed: Which images may, and which must, be chosen.
        terms: The objective's settings.
        threads: Where cells are worked on.

    Returns:
        The rows chosen [m], and that distance, squared.
    """
    least = np.array([int(allowed.must[rows].sum()) for rows in cells])
    most = np.array([int(allowed.may[rows].sum()) for rows in cells])
    shares = np.array([whole.shares[rows].sum() for rows in cells])
    budgets = divided(n_selected, shares, least, most)
    found: dict[int, _Medoids] = {}
    for _ in range(N_ROUNDS):
        changed = [
            (cell, int(budget))
            for cell, budget in enumerate(budgets)
            if cell not in found or len(found[cell].rows) != budget
        ]
        parts = threads.map(lambda job: _medoids(whole, cells[job[0]], job[1], allowed), changed)
        found |= {cell: part for (cell, _), part in zip(changed, parts, strict=True)}
        distances = [found[cell].distances for cell in range(len(cells))]
        reach = _reach(whole, cells, distances, terms)
        served = np.array(
            [
                whole.shares[rows][near <= reach].sum()
                for rows, near in zip(cells, distances, strict=True)
            ]
        )
        budgets = divided(n_selected, served, least, most)
    return np.concatenate([found[cell].rows for cell in range(len(cells))]), reach


def divided(total: int, shares: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Divide `total` in proportion to `shares`, within bounds, by largest remainder.

    Args:
        total: Between the sums of the bounds.
        shares: Of any sum [c].
        least: Lower bounds [c].
        most: Upper bounds [c].
    """
    low, high = 0.0, 1.0
    while np.clip(high * shares, least, most).sum() < total and high < 2.0**1000:
        high *= 2.0
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(middle * shares, least, most).sum() < total:
            low = middle
        else:
            high = middle
    quotas = np.clip(high * shares, least, most)
    counts = np.floor(quotas).astype(np.int64)
    order = np.argsort(counts - quotas, kind="stable")
    while (left := total - int(counts.sum())) > 0:
        counts[order[counts[order] < most[order]][:left]] += 1
    while (over := int(counts.sum()) - total) > 0:
        counts[order[::-1][counts[order[::-1]] > least[order[::-1]]][:over]] -= 1
    return counts


@dataclass(frozen=True, eq=False)
class _Medoids:
    """The medoids of a cell, and how far from the nearest its images are [c]; infinite: none."""

    rows: np.ndarray
    distances: np.ndarray


def _medoids(whole: Whole, rows: np.ndarray, n_selected: int, allowed: Allowed) -> _Medoids:
    if not n_selected:
        return _Medoids(rows[:0], np.full(len(rows), np.inf, dtype=np.float32))
    n_tried = min(len(rows), max(MOST_IMAGES, n_selected))
    is_tried = np.zeros(len(rows), dtype=bool)
    is_tried[np.arange(n_tried) * len(rows) // n_tried] = True
    is_tried |= allowed.must[rows]
    if allowed.may[rows[is_tried]].sum() < n_selected:
        is_tried[:] = True
    tried = rows[is_tried]
    images = whole.read(tried)
    near = centred(images, images.mean(0, dtype=torch.float64))
    weights = whole.shares[tried]
    chosen = medoids(
        class_costs(images, images, near, near),
        n_selected,
        Candidates(
            len(tried),
            keep=np.flatnonzero(allowed.must[tried]).tolist(),
            exclude=np.flatnonzero(~allowed.may[tried]).tolist(),
        ),
        column_weights=None if (weights == weights[0]).all() else torch.from_numpy(weights),
    )
    distances = [
        squared_distances(whole.read(rows[start : start + BLOCK_ROWS]), images[chosen]).amin(1)
        for start in range(0, len(rows), BLOCK_ROWS)
    ]
    return _Medoids(tried[chosen], torch.cat(distances).numpy())


def _reach(
    whole: Whole, cells: list[np.ndarray], distances: list[np.ndarray], terms: Terms
) -> float:
    """Return the distance within which 1/kappa of all columns lie."""
    every = np.concatenate(distances)
    shares = np.concatenate([whole.shares[rows] for rows in cells])
    order = np.argsort(every, kind="stable")
    place = int(np.searchsorted(np.cumsum(shares[order]), 1.0 / terms.capacity))
    distance = float(every[order[min(place, len(order) - 1)]])
    return distance if np.isfinite(distance) else whole.scale
