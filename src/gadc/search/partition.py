"""The search for data too large for its cost matrix: cell by cell, and across their borders.

The features are read from where they lie, a few thousand rows at a time. In rounds,

1. the images are divided into cells of neighbours, about four chosen images each, anew every time;
2. the transport of all images onto all chosen ones is solved (`gadc.search.landscape`);
3. in each cell and the ring of images around it that its chosen images serve, these are exchanged
   for the best others, all other chosen images staying where they are and asking the prices that
   the transport of the whole has found (`gadc.objective.window`).

An exchange may end in the ring, so images move from cell to cell. The best round counts. In the
end a certificate says what the transport costs and what it costs at least, over all pairs.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gadc.errors import InputError
from gadc.objective.threads import Threads
from gadc.objective.total import (
    DEFAULT_MEAN_WEIGHT,
    DEFAULT_STD_WEIGHT,
    Units,
    check_settings,
    checked_losses,
)
from gadc.objective.transport import DEFAULT_CAPACITY, DEFAULT_RELATIVE_EPSILON
from gadc.runtime import generator
from gadc.search.candidates import Candidates, check_size
from gadc.search.cell_exchange import SUM_ROWS, Standing, Sums, exchange_in
from gadc.search.cells import divide
from gadc.search.certificate import Certificate, certify
from gadc.search.counts import Counts
from gadc.search.landscape import Chosen, Landscape, Sweep
from gadc.search.multistart import SearchResult
from gadc.search.neighbourhood import apart, neighbourhoods
from gadc.search.scattered import Allowed, scattered_medoids
from gadc.search.spread_order import spread_order
from gadc.search.whole import Rows, Terms, Whole

logger = logging.getLogger(__name__)

# Chosen images in a cell: more make it slower without making it better, because the ring around it
# already lets images leave.
CHOSEN_PER_CELL = 4
LEAST_PER_CELL = 64
# Rounds at most, and the share of the objective that one must gain for another to follow.
MAX_ROUNDS = 6
LEAST_GAIN = 1e-3
# Cells that are far apart are worked on together; more at once would all mend the same
# gap of the moments, each as if it were alone. So many, and this part of all cells, at most.
MOST_TOGETHER = 16
CELLS_PER_ONE_TOGETHER = 16


@dataclass(frozen=True)
class Partitioned:
    """What was found in data too large for its cost matrix.

    Attributes:
        result: The subset. Its transport is the cost of a feasible plan, `is_swap_optimal` is
            false, `start` is `partition`, order and gains are those of `gadc.search.spread_order`.
        scale: The median cost; of more than 4,096 images that of a sample.
        n_cells: Number of cells in the first round.
        values: The objective at the start and after each round, as the solver of the whole sees it.
    """

    result: SearchResult
    scale: float
    n_cells: int
    values: list[float]


def search_partitioned(
    features: Rows,
    n_selected: int,
    *,
    target_weights: np.ndarray | None = None,
    confidence_loss: np.ndarray | None = None,
    capacity: float = DEFAULT_CAPACITY,
    epsilon: float = DEFAULT_RELATIVE_EPSILON,
    mean_weight: float = DEFAULT_MEAN_WEIGHT,
    std_weight: float = DEFAULT_STD_WEIGHT,
    confidence_weight: float | None = None,
    units: Units = "relative",
    candidates: Candidates | None = None,
    n_per_cell: int | None = None,
    max_rounds: int = MAX_ROUNDS,
    seed: int = 0,
    release: Callable[[], None] = lambda: None,
) -> Partitioned:
    """Choose `n_selected` images of a data set whose cost matrix would not fit.

    The result does not depend on how many threads torch may use.

    Args:
        features: [n, d], indexed by arrays of row numbers: an array, a memory map.
        n_selected: m.
        target_weights: See `Objective`; so are all arguments up to `units`.
        confidence_loss: See there.
        capacity: See there.
        epsilon: See there.
        mean_weight: See there.
        std_weight: See there.
        confidence_weight: See there.
        units: See there.
        candidates: Which images may and which must be chosen; default: any may.
        n_per_cell: Images in a cell; default: so many that four of them are chosen, at least 64.
        max_rounds: Rounds of exchanges at most.
        seed: Chooses the cells.
        release: Called after rows were read, to give back the pages of a memory map.

    Raises:
        InputError: What `Objective` and `search` raise, but for the size.
    """
    weight = check_settings(
        capacity=capacity,
        epsilon=epsilon,
        mean_weight=mean_weight,
        std_weight=std_weight,
        confidence_weight=confidence_weight,
        units=units,
        has_losses=confidence_loss is not None,
    )
    if max_rounds < 0 or (n_per_cell is not None and n_per_cell < 1):
        raise InputError(
            "search_limits", f"max_rounds={max_rounds} must be >= 0, n_per_cell={n_per_cell} >= 1"
        )
    threads = Threads(torch.device("cpu"))
    with threads.one_each():
        whole = Whole(features, weights=target_weights, seed=seed, release=release)
        n = whole.n_images
        allowed = _allowed(candidates or Candidates(n), n, n_selected)
        unit = whole.scale if units == "relative" else 1.0
        terms = Terms(capacity, epsilon * unit, mean_weight, std_weight, weight * unit)
        if n_per_cell is None:
            n_per_cell = max(LEAST_PER_CELL, CHOSEN_PER_CELL * n // n_selected)
        losses = np.zeros(n) if confidence_loss is None else checked_losses(confidence_loss, n)
        rounds = _Rounds(whole, terms, allowed, losses, threads, n_per_cell, seed)
        return rounds.search(n_selected, max_rounds)


def _allowed(candidates: Candidates, n_images: int, n_selected: int) -> Allowed:
    check_size(candidates, n_images, n_selected)
    may, must = np.zeros((2, n_images), dtype=bool)
    may[candidates.allowed([])] = True
    must[candidates.keep] = True
    return Allowed(may, must)


class _Rounds:
    """A search, and what all its rounds share."""

    def __init__(
        self,
        whole: Whole,
        terms: Terms,
        allowed: Allowed,
        losses: np.ndarray,
        threads: Threads,
        n_per_cell: int,
        seed: int,
    ) -> None:
        self.whole, self.terms, self.allowed, self.losses = whole, terms, allowed, losses
        self.threads, self.n_per_cell, self.seed = threads, n_per_cell, seed

    def search(self, n_selected: int, max_rounds: int) -> Partitioned:
        """Start, exchange round by round, and certify the best."""
        whole, terms, threads = self.whole, self.terms, self.threads
        cells = self._cells(0)
        n_cells = len(cells)
        images, reach = scattered_medoids(whole, cells, n_selected, self.allowed, terms, threads)
        chosen = Chosen(images, whole.read(images), np.full(n_selected, reach))
        counts = Counts()
        values: list[float] = []
        for number in range(max_rounds + 1):
            if number:
                cells = self._cells(number)
            landscape = Landscape(whole, cells, terms, threads)
            sweep = landscape.solve(chosen)
            value = self._rest(chosen)["weighted"] + float(sweep.costs.sum())
            logger.info("round %d of %d cells: objective %.6g", number, len(cells), value)
            gain = min(values, default=np.inf) - value
            if gain > 0.0:
                best, best_landscape, best_sweep = chosen.copy(), landscape, sweep
            values.append(value)
            if number == max_rounds or not gain > LEAST_GAIN * value:
                break
            counts = counts.plus(self._exchange(number, cells, landscape, chosen, sweep))
        certificate = certify(whole, best_landscape, best, best_sweep, terms, threads)
        result = self._result(best, certificate, values[0], counts)
        return Partitioned(result, whole.scale, n_cells, values)

    def _cells(self, number: int) -> list[np.ndarray]:
        random = generator(self.seed, "cells", number)
        return divide(self.whole, self.n_per_cell, random, self.threads)

    def _exchange(
        self,
        number: int,
        cells: list[np.ndarray],
        landscape: Landscape,
        chosen: Chosen,
        sweep: Sweep,
    ) -> Counts:
        """Exchange in all cells, in random order, and change `chosen`."""
        found = neighbourhoods(
            cells,
            landscape.near,
            chosen,
            sweep,
            may=self.allowed.may,
            must=self.allowed.must,
            number=number,
        )
        order = generator(self.seed, "order", number).permutation(len(found))
        waiting = [found[place] for place in order]
        n_together = max(1, min(MOST_TOGETHER, len(cells) // CELLS_PER_ONE_TOGETHER))
        sums, counts = Sums.of(chosen.features), Counts()
        while waiting:
            together, waiting = apart(waiting, n_together, self.whole.n_images)
            standing = Standing(self.whole, self.terms, self.losses, landscape, chosen, sums)
            work = functools.partial(exchange_in, standing=standing)
            for here, better in zip(together, self.threads.map_apart(work, together), strict=True):
                places = torch.from_numpy(here.places)
                sums = sums.without(chosen.features[places]).plus(better.features)
                chosen.images[here.places] = better.images
                chosen.features[places] = better.features
                chosen.potentials[here.places] = better.potentials
                counts = counts.plus(better.counts)
        return counts

    def _rest(self, chosen: Chosen) -> dict[str, float]:
        """Return the terms other than transport, and their weighted sum."""
        terms, m = self.terms, len(chosen.images)
        sums = Sums.of(chosen.features)
        mean = (sums.total / m).numpy()
        squares = torch.zeros_like(sums.total)
        for rows in chosen.features.split(SUM_ROWS):
            squares += (rows.double() - torch.from_numpy(mean)).square_().sum(0)
        std = np.sqrt(squares.numpy() / max(1, m - 1))
        gaps = {
            "mean": float(np.square(mean - self.whole.mean).sum()),
            "std": float(np.square(std - self.whole.std).sum()),
            "confidence": float(self.losses[chosen.images].mean()),
        }
        gaps["weighted"] = (
            terms.mean_weight * gaps["mean"]
            + terms.std_weight * gaps["std"]
            + terms.confidence_weight * gaps["confidence"]
        )
        return gaps

    def _result(
        self, chosen: Chosen, certificate: Certificate, start_value: float, counts: Counts
    ) -> SearchResult:
        rest = self._rest(chosen)
        total = certificate.transport_cost + rest.pop("weighted")
        order, gains = spread_order(chosen.features, total)
        return SearchResult(
            order=chosen.images[order],
            gains=gains,
            terms={
                "transport": certificate.transport_cost,
                **rest,
                "total": total,
                "transport_lower_bound": certificate.lower_bound,
                "transport_row_error": certificate.row_error,
            },
            is_swap_optimal=False,
            start="partition",
            start_values={"medoids": start_value},
            counts=counts,
        )
