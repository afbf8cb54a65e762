"""The objective without its transport term: moments and confidence.

    L(S) = a_mean ||mu_S - mu||^2 + a_std ||sigma_S - sigma||^2 + b mean_{i in S} -log p(c | x_i)

Its best exchange is found among all m (n - m) by branch and bound. Only sigma is no quadratic
form in what comes and goes, and for every tangent point a > 0 it lies below one of its square:

    sigma <= (sigma^2 / a + a) / 2,   so   (sigma - s)^2 >= (1 - s/a) sigma^2 + s^2 - s a

A lower bound of all exchanges is therefore two matrix products; what it leaves is evaluated.
"""

from dataclasses import dataclass

import numpy as np
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
# Exchanges evaluated at first, to have a value that rules others out; then in blocks of about this
# many features, which stay in cache.
N_FIRST = 64
BLOCK_ENTRIES = 1 << 17


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
        addition = objective.best_newcomer(chosen, np.zeros((1, 0), dtype=np.int64), below=np.inf)
        chosen.append(addition.index)
        value = addition.value
    places = np.arange(n_selected)[:, None]
    least_gain = LEAST_GAIN * objective.variance
    while True:
        exchange = objective.best_newcomer(chosen, places, below=value - least_gain)
        if exchange.index < 0:
            return np.array(chosen, dtype=np.int64)
        chosen[exchange.place], value = exchange.index, exchange.value


@dataclass(frozen=True)
class _Newcomer:
    """An image that joins a base; `index` is -1 if there is none good enough."""

    place: int
    index: int
    value: float


@dataclass(frozen=True)
class _Bases:
    """Subsets that lack one image: how many they will be, sums and sums of squares, losses."""

    m: int
    totals: NDArray[np.float64]  # [b, d]
    squares: NDArray[np.float64]  # [b, d]
    losses: NDArray[np.float64]  # [b]


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

    def best_newcomer(
        self, chosen: list[int], leaving: NDArray[np.int64], *, below: float
    ) -> _Newcomer:
        """Return the image that gives the lowest L when it joins what stays of the chosen.

        Args:
            chosen: Images.
            leaving: Places in `chosen`, of each alternative those that leave, [b, 0] or [b, 1].
            below: Values from here on are of no interest.

        Returns:
            The number of the alternative, the image, and L.
        """
        bases = self.bases(chosen, leaving)
        bounds = self.bounds(bases)
        bounds[:, chosen] = np.inf
        flat = bounds.ravel()
        slack = ROUNDING * self.variance
        first = np.argpartition(flat, min(N_FIRST, flat.size) - 1)[:N_FIRST]
        best = self._best_of(bases, first[np.isfinite(flat[first])], _Newcomer(-1, -1, below))
        left = np.setdiff1d(np.flatnonzero(flat < best.value + slack), first)
        left = left[np.argsort(flat[left], kind="stable")]
        n_together = max(1, BLOCK_ENTRIES // self._rows.shape[1])
        for start in range(0, len(left), n_together):
            if flat[left[start]] >= best.value + slack:
                break
            best = self._best_of(bases, left[start : start + n_together], best)
        return best

    def bases(self, chosen: list[int], leaving: NDArray[np.int64]) -> _Bases:
        """Return what stays of the chosen images; see `best_newcomer`."""
        gone = np.array(chosen, dtype=np.int64)[leaving]  # [b, 0] or [b, 1]
        return _Bases(
            len(chosen) + 1 - leaving.shape[1],
            self._rows[chosen].sum(0) - self._rows[gone].sum(1),
            self._squares[chosen].sum(0) - self._squares[gone].sum(1),
            self._losses[chosen].sum() - self._losses[gone].sum(1),
        )

    def _best_of(self, bases: _Bases, pairs: NDArray[np.int64], best: _Newcomer) -> _Newcomer:
        """Return the best of (base, image) pairs, numbered row by row, if better than `best`."""
        if not len(pairs):
            return best
        pairs = np.sort(pairs)  # between equals, the first
        places, images = np.divmod(pairs, len(self._rows))
        values = self.values(bases, places, images)
        least = int(values.argmin())
        if not values[least] < best.value:
            return best
        return _Newcomer(int(places[least]), int(images[least]), float(values[least]))

    def values(
        self, bases: _Bases, places: NDArray[np.int64], images: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return L of each base with its image, float64 [p]; the formulas of `Moments.gaps`."""
        mean_weight, std_weight, confidence_weight = self._weights
        m = bases.m
        mean = (bases.totals[places] + self._rows[images]) / m  # [p, d]
        std = np.zeros_like(mean)
        if m > 1:
            std = bases.squares[places] + self._squares[images]
            std -= m * np.square(mean)
            std /= m - 1
            np.sqrt(np.maximum(std, 0.0, out=std), out=std)
        mean -= self._mean
        std -= self._std
        return np.asarray(
            mean_weight * np.einsum("pd,pd->p", mean, mean)
            + std_weight * np.einsum("pd,pd->p", std, std)
            + confidence_weight / m * (bases.losses[places] + self._losses[images])
        )

    def bounds(self, bases: _Bases) -> NDArray[np.float64]:
        """Return lower bounds of L of every base with every image, [b, n]."""
        mean_weight, std_weight, confidence_weight = self._weights
        m, totals, squares = bases.m, bases.totals, bases.squares
        # Of T = sum x and Q = sum x^2 of the union, the bound is <t2, T^2> + <t1, T> + <q, Q>.
        t2 = np.full_like(totals, mean_weight / m**2)
        t1 = -2.0 * mean_weight / m * self._mean
        q = np.zeros_like(totals)
        constant = np.full(len(totals), mean_weight * np.square(self._mean).sum())
        if m == 1:
            constant += std_weight * np.square(self._std).sum()
        else:
            tangent = self._usual_std(bases)
            slope = std_weight * (1.0 - self._std / tangent)
            q = slope / (m - 1)
            t2 -= slope / (m * (m - 1))
            constant += std_weight * (self._std * (self._std - tangent)).sum(1)
        constant += (np.square(totals) * t2 + totals * t1 + squares * q).sum(1)
        bounds = (t1 + 2.0 * totals * t2) @ self._rows.T  # [b, n]
        bounds += (t2 + q) @ self._squares.T
        bounds += constant[:, None]
        bounds += confidence_weight / m * (bases.losses[:, None] + self._losses)
        return np.asarray(bounds)

    def _usual_std(self, bases: _Bases) -> NDArray[np.float64]:
        """Return about sigma of each base with one image more: where bounds are tight, [b, d]."""
        totals, mean_square = bases.totals, self._mean_square
        total_square = np.square(totals) + 2.0 * totals * self._mean + mean_square
        variance = (bases.squares + mean_square - total_square / bases.m) / (bases.m - 1)
        usual = np.sqrt(np.maximum(variance, 0.0))
        # A feature that never varies has neither variance nor gap: any tangent point does.
        return np.where(usual > 0.0, usual, 1.0)
