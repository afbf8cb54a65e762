"""The images that the search of one cell looks at, for all cells of a large data set."""

from dataclasses import dataclass

import numpy as np

from gadc.search.landscape import Chosen, Sweep

# Images of a cell, and of the ring around it, whose cost matrix is made; of more, every second one
# or every third and so on stands for its neighbours. Rings matter: half as large, they cost one
# per cent of the objective in 768 dimensions, where everything is near a border.
MOST_IN_CELL = 1500
MOST_IN_RING = 1000
# An image elsewhere is in a cell's ring if the cell's chosen images hold this share of it.
RING_SHARE = 0.03


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """A cell and the ring around it.

    Attributes:
        rows: Images: those of the cell, then those elsewhere that its chosen images hold a part of
            [p].
        times: How many images each stands for [p].
        places: The cell's chosen images among all chosen ones [w].
        fixed: Which of these may not be exchanged [w].
        candidates: Which of `rows` may take a place [p].
        near: Places of the chosen images that take part here.
    """

    rows: np.ndarray
    times: np.ndarray
    places: np.ndarray
    fixed: np.ndarray
    candidates: np.ndarray
    near: np.ndarray


def neighbourhoods(
    cells: list[np.ndarray],
    near: list[np.ndarray],
    chosen: Chosen,
    sweep: Sweep,
    *,
    may: np.ndarray,
    must: np.ndarray,
    number: int,
) -> list[Neighbourhood]:
    """Return the neighbourhoods of the cells that have chosen images.

    Args:
        cells: Their rows.
        near: Places of the chosen images that take part in each.
        chosen: The chosen images.
        sweep: Tells who holds what.
        may: Which images may be chosen [n].
        must: Which must [n].
        number: Of the round; where images stand for others, each round takes other ones.
    """
    n = len(may)
    cell_of = np.empty(n, dtype=np.int64)
    for cell, rows in enumerate(cells):
        cell_of[rows] = cell
    owner = cell_of[chosen.images]
    is_candidate = may.copy()
    is_candidate[chosen.images] = False
    places = _grouped(owner, np.arange(len(owner)), len(cells))
    rings = _rings(sweep, owner, cell_of, len(cells))
    found = []
    for cell, here in enumerate(places):
        if not len(here):
            continue
        images = chosen.images[here]
        own, own_times = _thinned(cells[cell], MOST_IN_CELL, number, always=images)
        ring, ring_times = _thinned(rings[cell], MOST_IN_RING, number)
        rows = np.concatenate([own, ring])
        times = np.concatenate([own_times, ring_times])
        found.append(Neighbourhood(rows, times, here, must[images], is_candidate[rows], near[cell]))
    return found


def apart(
    waiting: list[Neighbourhood], n_most: int, n_images: int
) -> tuple[list[Neighbourhood], list[Neighbourhood]]:
    """Return the first `n_most` neighbourhoods, or fewer, without a common image; and the others.

    Args:
        waiting: At least one.
        n_most: How many.
        n_images: n.
    """
    is_taken = np.zeros(n_images, dtype=bool)
    together: list[Neighbourhood] = []
    others: list[Neighbourhood] = []
    for here in waiting:
        if len(together) < n_most and not is_taken[here.rows].any():
            is_taken[here.rows] = True
            together.append(here)
        else:
            others.append(here)
    return together, others


def _rings(sweep: Sweep, owner: np.ndarray, cell_of: np.ndarray, n_cells: int) -> list[np.ndarray]:
    """Return for each cell the images elsewhere of which its chosen images hold a part.

    Args:
        sweep: Tells who holds what.
        owner: The cell of each chosen image [m].
        cell_of: Of each image [n].
        n_cells: Number of cells.
    """
    n = len(cell_of)
    holding = owner[sweep.holders]  # [n, 3]
    rows, place = np.nonzero((holding != cell_of[:, None]) & (sweep.held > 0.0))
    pairs, which = np.unique(holding[rows, place] * n + rows, return_inverse=True)
    shares = np.bincount(which, sweep.held[rows, place], len(pairs))
    pairs = pairs[shares > RING_SHARE]
    return _grouped(pairs // n, pairs % n, n_cells)


def _grouped(keys: np.ndarray, values: np.ndarray, n_groups: int) -> list[np.ndarray]:
    """Return `values` by key, from 0 to n_groups - 1, in their order."""
    order = np.argsort(keys, kind="stable")
    ends = np.cumsum(np.bincount(keys, minlength=n_groups))[:-1]
    return np.split(values[order], ends)


def _thinned(
    rows: np.ndarray, n_most: int, number: int, *, always: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return about `n_most` of `rows`, or all, and how many images each stands for.

    Args:
        rows: Images, ascending.
        n_most: How many may stay.
        number: Of the round.
        always: Rows among them that stay in any case, and stand for themselves.
    """
    every = -(-len(rows) // n_most)
    if every <= 1:
        return rows, np.ones(len(rows))
    is_alone = np.zeros(len(rows), dtype=bool)
    if always is not None:
        is_alone[np.searchsorted(rows, always)] = True
    stays = np.zeros(len(rows), dtype=bool)
    stays[number % every :: every] = True
    n_for_each = (~is_alone).sum() / max(1, (stays & ~is_alone).sum())
    stays |= is_alone
    return rows[stays], np.where(is_alone, 1.0, n_for_each)[stays]
