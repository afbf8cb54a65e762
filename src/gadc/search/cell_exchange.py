"""Exchanges in one cell of a large data set, all chosen images elsewhere staying as they are."""

from dataclasses import dataclass

import numpy as np
import torch

from gadc.objective.window import Others, Window
from gadc.search.counts import Counts
from gadc.search.landscape import Chosen, Landscape
from gadc.search.neighbourhood import Neighbourhood
from gadc.search.whole import Terms, Whole

# An exchange must lower a cell's objective by this share of the typical cost: what is gained by a
# smaller one is less than what the prices of the others change meanwhile.
LEAST_GAIN = 1e-5
# The room that a window's columns keep, where balanced transport leaves none.
LEAST_ROOM = 1e-3
# A share of a column below this is nothing: the logarithm needs something.
LEAST_SHARE = 1e-37
# Features summed in float64 at a time.
SUM_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over chosen images: of their features, and of the squares, float64 [d] each."""

    total: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> "Sums":
        """Return the sums over `features` [m, d], without a float64 copy of all."""
        total = torch.zeros(features.shape[1], dtype=torch.float64)
        squares = torch.zeros_like(total)
        for rows in features.split(SUM_ROWS):
            total += rows.double().sum(0)
            squares += rows.double().square_().sum(0)
        return cls(total, squares)

    def without(self, features: torch.Tensor) -> "Sums":
        """Return the sums less those over `features`."""
        less = Sums.of(features)
        return Sums(self.total - less.total, self.squares - less.squares)

    def plus(self, features: torch.Tensor) -> "Sums":
        """Return the sums with those over `features`."""
        more = Sums.of(features)
        return Sums(self.total + more.total, self.squares + more.squares)


@dataclass(frozen=True, eq=False)
class Standing:
    """How a search stands.

    Attributes:
        whole: All images.
        terms: The objective's settings.
        losses: `-log p(c | x)` of all images [n].
        landscape: Their transport.
        chosen: The chosen images.
        sums: Over the chosen images.
    """

    whole: Whole
    terms: Terms
    losses: np.ndarray
    landscape: Landscape
    chosen: Chosen
    sums: Sums


@dataclass(frozen=True, eq=False)
class Exchanged:
    """What became of a cell.

    Attributes:
        images: Rows of the chosen images, in their places [w].
        features: Theirs, float32 [w, d].
        potentials: f [w].
        counts: The work done.
    """

    images: np.ndarray
    features: torch.Tensor
    potentials: np.ndarray
    counts: Counts


def exchange_in(here: Neighbourhood, standing: Standing) -> Exchanged:
    """Try every chosen image of a cell once, and exchange it for the best other if that helps.

    Once, because the next round comes with other cells and new prices.

    Args:
        here: The cell and its ring.
        standing: How the search stands; nothing in it is changed.
    """
    whole, chosen = standing.whole, standing.chosen
    features = whole.read(here.rows)
    window = _window(here, features, standing)
    place_of = {row: place for place, row in enumerate(here.rows.tolist())}
    local = [place_of[row] for row in chosen.images[here.places].tolist()]
    is_free = here.candidates.copy()
    counts = Counts()
    value = window.value(local)
    for place in np.flatnonzero(~here.fixed).tolist():
        pool = np.flatnonzero(is_free)
        if not len(pool):
            break
        base = local[:place] + local[place + 1 :]
        best = window.best_addition(base, pool, below=value - LEAST_GAIN * whole.scale)
        counts = counts.plus(best)
        if best.index is not None:
            is_free[local[place]], is_free[best.index] = True, False
            local[place], value = best.index, best.value
            counts = counts.plus(Counts(n_swaps=1))
    potentials = window.potentials(local).numpy()
    return Exchanged(here.rows[local], features[local], potentials, counts)


def _window(here: Neighbourhood, features: torch.Tensor, standing: Standing) -> Window:
    """Return the objective that a cell sees."""
    whole, terms, chosen = standing.whole, standing.terms, standing.chosen
    near = np.union1d(here.near, here.places)
    found = standing.landscape.shares(features, here.rows, near, chosen)
    is_here = torch.from_numpy(np.isin(near, here.places))
    inside = found.share[is_here].sum(0, dtype=torch.float64)
    outside = found.share[~is_here].sum(0, dtype=torch.float64)
    if terms.has_slack:
        outside += (-found.log_total.double()).exp()
    # In units of what its rows hold here: what they hold elsewhere is taken as held here, so that
    # their potentials are right as they are.
    masses = found.masses * torch.from_numpy(here.times)
    masses /= (masses * inside).sum()
    masses *= max(1.0, (1.0 + LEAST_ROOM) / float(masses.sum()))
    others = standing.sums.without(chosen.features[torch.from_numpy(here.places)])
    return Window(
        features,
        masses,
        terms.epsilon * (outside.clamp(min=LEAST_SHARE).log() + found.log_total),
        epsilon=terms.epsilon,
        n_here=len(here.places),
        others=Others(
            len(chosen.images),
            others.total,
            others.squares,
            torch.from_numpy(whole.mean),
            torch.from_numpy(whole.std),
            terms.mean_weight,
            terms.std_weight,
            terms.confidence_weight,
        ),
        losses=torch.from_numpy(standing.losses[here.rows]),
        scale=whole.scale,
    )
