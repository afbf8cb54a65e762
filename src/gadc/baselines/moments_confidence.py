"""The objective without its transport term: moments and confidence.

    L(S) = a_mean ||mu_S - mu||^2 + a_std ||sigma_S - sigma||^2 + b mean_{i in S} -log p(c | x_i)

Its best exchange is found among all m (n - m) by branch and bound. Only sigma is no quadratic
form in what comes and goes, and for every tangent point a > 0 it lies below one of its square:

    sigma <= (sigma^2 / a + a) / 2,   so   (sigma - s)^2 >= (1 - s/a) sigma^2 + s^2 - s a

A lower bound of all exchanges is therefore one matrix product; few of them are then evaluated.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.baselines.costs import class_cost
from gadc.baselines.pool import Pool, check_n_selected
from gadc.objective.cost import as_features, centre_of, centred, cost_scale
from gadc.objective.moments import Moments
from gadc.objective.total import DEFAULT_MEAN_WEIGHT, DEFAULT_STD_WEIGHT, check_settings
from gadc.objective.transport import DEFAULT_CAPACITY, DEFAULT_RELATIVE_EPSILON

# An exchange must lower the objective by this share of the class's variance.
LEAST_GAIN = 1e-6
# Bounds are rounded by far less than this share of the variance.
ROUNDING = 1e-9
# Candidates evaluated at first, to have a value that rules others out; then as many at a time.
N_FIRST = 64
N_TOGETHER = 512


def moments_confidence(
    pool: Pool,
    n_selected: int,
    *,
    generator: np.random.Generator,
    mean_weight: float = DEFAULT_MEAN_WEIGHT,
    std_weight: float = DEFAULT_STD_WEIGHT,
    confidence_weight: float | None = None,
) -> NDArray[np.int64]:
    """Select greedily, then make the best exchange again and again until none helps.

    Args:
        pool: The class [n]; without `confidence_loss` moments alone count.
        n_selected: m <= n.
        generator: Unused: the method has no randomness.
        mean_weight: As in `gadc.Objective`; so are the other weights, relative to the class's
            scale.
        std_weight: See there.
        confidence_weight: See there; default: 0.03 with `confidence_loss`, else 0.

    Returns:
        Rows in the order of selection, exchanged ones in the places of the replaced, int64 [m].

    Raises:
        InputError: `n_selected_range`, `weight_range`, `confidence_missing` or `class_too_large`.

    Source: GADC's ablation "without L_OT"; the exchanges are its stage II.
    """
    check_n_selected(pool, n_selected)
    confidence_weight = check_settings(
        capacity=DEFAULT_CAPACITY,
        epsilon=DEFAULT_RELATIVE_EPSILON,
        mean_weight=mean_weight,
        std_weight=std_weight,
        confidence_weight=confidence_weight,
        units="relative",
        has_losses=pool.confidence_loss is not None,
    )
    if confidence_weight > 0.0:
        confidence_weight *= cost_scale(class_cost(pool.features), is_square=True)
    objective = _Objective(
        pool,
        mean_weight=mean_weight,
        std_weight=std_weight,
        confidence_weight=confidence_weight,
    )
    chosen: list[int] = []
    value = np.inf
    for _ in range(n_selected):
        _, index, value = objective.best_newcomer([chosen], below=np.inf)
        chosen.append(index)
    while True:
        bases = [chosen[:place] + chosen[place + 1 :] for place in range(n_selected)]
        place, index, lower = objective.best_newcomer(
            bases, below=value - LEAST_GAIN * objective.variance
        )
        if index < 0:
            return np.array(chosen, dtype=np.int64)
        chosen[place], value = index, lower


class _Objective:
    """L for subsets of one class, and its best newcomers.

    Attributes:
        variance: Of the class, summed over features; 1 if there is none.
    """

    def __init__(
        self, pool: Pool, *, mean_weight: float, std_weight: float, confidence_weight: float
    ) -> None:
        images = as_features(pool.features)
        rows = centred(images, centre_of(images))
        self._moments = Moments(rows, rows)
        self._mean, self._std = self._moments.mean.numpy(), self._moments.std.numpy()
        self._rows = rows.numpy().astype(np.float64)  # [n, d]
        self._squares = self._rows**2
        self._mean_square = self._squares.mean(0)  # [d]
        self._weights = mean_weight, std_weight, confidence_weight
        self._losses = np.zeros(pool.n_images)
        if confidence_weight > 0.0:
            self._losses = pool.needed_confidence("moments-confidence")
        self.variance = float(np.square(self._std).sum()) or 1.0

    def best_newcomer(self, bases: Sequence[list[int]], *, below: float) -> tuple[int, int, float]:
        """Return the base and the image whose union has the lowest L, and that value.

        Args:
            bases: Subsets of one size.
            below: Values from here on are of no interest.

        Returns:
            The place of the base, the image, L; the image is -1 if there is none below `below`.
        """
        bounds = self._bounds(bases)
        bounds[:, sorted(set().union(*bases))] = np.inf
        flat = bounds.ravel()
        first = np.argpartition(flat, min(N_FIRST, flat.size) - 1)[:N_FIRST]
        first = first[np.isfinite(flat[first])]
        best = self._best_of(bases, first, (-1, -1, below))
        left = np.setdiff1d(np.flatnonzero(flat < best[2] + ROUNDING * self.variance), first)
        left = left[np.argsort(flat[left], kind="stable")]
        for start in range(0, len(left), N_TOGETHER):
            if flat[left[start]] >= best[2] + ROUNDING * self.variance:
                break
            best = self._best_of(bases, left[start : start + N_TOGETHER], best)
        return best

    def _best_of(
        self, bases: Sequence[list[int]], pairs: NDArray[np.int64], best: tuple[int, int, float]
    ) -> tuple[int, int, float]:
        """Return the best of (base, image) pairs, numbered row by row, if better than `best`."""
        places, images = np.divmod(pairs, len(self._rows))
        for place in np.unique(places).tolist():
            candidates = np.sort(images[places == place])
            values = self._values_with(bases[place], candidates)
            if values.min() < best[2]:
                best = (place, int(candidates[values.argmin()]), float(values.min()))
        return best

    def _values_with(self, base: list[int], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return L(base + [j]) for each candidate j, float64 [p]."""
        mean, std = self._moments.gaps_with(
            torch.tensor(base, dtype=torch.int64),
            torch.from_numpy(candidates),
            dtype=torch.float64,
        )
        losses = (self._losses[base].sum() + self._losses[candidates]) / (len(base) + 1)
        mean_weight, std_weight, confidence_weight = self._weights
        weighted = mean_weight * mean.numpy() + std_weight * std.numpy()
        return np.asarray(weighted + confidence_weight * losses)

    def _bounds(self, bases: Sequence[list[int]]) -> NDArray[np.float64]:
        """Return lower bounds of L(base + [j]) for every base and every image j, [b, n]."""
        mean_weight, std_weight, confidence_weight = self._weights
        m = len(bases[0]) + 1
        totals = np.stack([self._rows[base].sum(0) for base in bases])  # [b, d]
        squares = np.stack([self._squares[base].sum(0) for base in bases])
        # Of T = sum x and Q = sum x^2 of the union, L's bound is <t2, T^2> + <t1, T> + <q, Q>.
        t2 = np.full_like(self._mean, mean_weight / m**2)
        t1 = -2.0 * mean_weight / m * self._mean
        q = np.zeros_like(t1)
        constant = mean_weight * np.square(self._mean).sum()
        if m == 1:
            constant += std_weight * np.square(self._std).sum()
        else:
            tangent = self._usual_std(totals, squares, m)
            slope = std_weight * (1.0 - self._std / tangent)
            q = slope / (m - 1)
            t2 -= slope / (m * (m - 1))
            constant += std_weight * (self._std * (self._std - tangent)).sum()
        of_base = np.square(totals) @ t2 + totals @ t1 + squares @ q + constant  # [b]
        bounds = (t1 + 2.0 * totals * t2) @ self._rows.T  # [b, n]
        bounds += self._squares @ (t2 + q)
        bounds += of_base[:, None]
        losses = np.array([self._losses[base].sum() for base in bases])
        bounds += confidence_weight / m * (losses[:, None] + self._losses)
        return bounds

    def _usual_std(
        self, totals: NDArray[np.float64], squares: NDArray[np.float64], m: int
    ) -> NDArray[np.float64]:
        """Return sigma of a base with an image more, typically: where the bound is tight, [d]."""
        mean_square = self._mean_square
        total_square = np.square(totals) + 2.0 * totals * self._mean + mean_square
        variance = (squares + mean_square - total_square / m).mean(0) / (m - 1)
        usual = np.sqrt(np.maximum(variance, 0.0))
        # A feature that never varies has neither variance nor gap: any tangent point does.
        return np.where(usual > 0.0, usual, 1.0)
