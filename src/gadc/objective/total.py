"""The objective that a subset minimises: transport, moments and confidence in one place."""

import logging
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np
import torch

from gadc.errors import ConvergenceWarning, InputError
from gadc.forks import Fork, Item, Result
from gadc.objective.addition import Additions
from gadc.objective.cost import (
    as_features,
    centre_of,
    centred,
    class_costs,
    cost_scale,
    squared_distances,
)
from gadc.objective.guides import Guides
from gadc.objective.look import Addition
from gadc.objective.moments import Moments
from gadc.objective.transport import (
    DEFAULT_CAPACITY,
    DEFAULT_RELATIVE_EPSILON,
    Array,
    Problem,
    check_capacity,
    check_epsilon,
)
from gadc.objective.weights import as_weights, counting

logger = logging.getLogger(__name__)

Units = Literal["relative", "absolute"]

DEFAULT_MEAN_WEIGHT = 1.0
DEFAULT_STD_WEIGHT = 1.0
DEFAULT_CONFIDENCE_WEIGHT = 0.03
# A class's cost matrix may take this much memory unless the caller knows better.
MAX_COST_BYTES = 4 << 30
# Costs above this multiple of the median leave no digits for differences of epsilon.
MAX_COST_RATIO = 1e6
# Relative rounding of moments computed in float32, generously.
FAST_ROUNDING = 1e-5
# That of a difference, relative to what it is a difference of.
DIFFERENCE_ROUNDING = 4.0 * torch.finfo(torch.float32).eps


class Objective:
    """One class's objective L(S) = transport + a_mean |mean gap|^2 + a_std |std gap|^2 + b conf.

    Args:
        features: The images to choose from [n, d]; NumPy or torch, float32 arithmetic.
        target: The images to match [k, d]; default: the class itself.
        target_weights: How much each image to match counts, numbers >= 0 of which only the ratios
            matter [k]; default: all the same. An image that counts nothing may still be chosen.
        confidence_loss: `-log p(c | x)` of each image [n]; see `confidence_losses`.
        capacity: kappa >= 1: a target image takes at most kappa times its weight of the subset's
            mass; kappa/k without weights.
        epsilon: Entropic regularisation; in units of the class's median cost when relative.
        mean_weight: Weight of `||mu_S - mu||^2`.
        std_weight: Weight of `||sigma_S - sigma||^2`.
        confidence_weight: Weight of the mean confidence loss, in units of the median cost when
            relative. Default: 0.03 when `confidence_loss` is given, else 0.
        units: `relative` makes the selection independent of the features' scale; `absolute`
            takes `epsilon` and `confidence_weight` as they are.
        device: Where to compute.

    Attributes:
        scale: The median cost.
        cost: [n, k], float32; without the columns of images that count nothing.
        target_weights: Of those columns, float64 [k], summing to one; None if all are equal.
        problem: The transport problem's settings, in absolute units.

    Raises:
        InputError: Bad shapes, non-finite numbers, arguments out of their bounds, or a cost
            matrix too large for memory.
    """

    def __init__(
        self,
        features: Array,
        target: Array | None = None,
        confidence_loss: Array | None = None,
        *,
        target_weights: Array | None = None,
        capacity: float = DEFAULT_CAPACITY,
        epsilon: float = DEFAULT_RELATIVE_EPSILON,
        mean_weight: float = DEFAULT_MEAN_WEIGHT,
        std_weight: float = DEFAULT_STD_WEIGHT,
        confidence_weight: float | None = None,
        units: Units = "relative",
        device: str | torch.device = "cpu",
    ) -> None:
        confidence_weight = check_settings(
            capacity=capacity,
            epsilon=epsilon,
            mean_weight=mean_weight,
            std_weight=std_weight,
            confidence_weight=confidence_weight,
            units=units,
            has_losses=confidence_loss is not None,
        )
        images = as_features(features).to(device)
        goal = images if target is None else as_features(target, "target").to(device)
        if goal.shape[1] != images.shape[1]:
            raise InputError(
                "target_width",
                f"target has {goal.shape[1]} features, the images {images.shape[1]}; "
                "extract both with the same encoder",
            )
        columns = torch.arange(len(goal), device=device)
        self.target_weights: torch.Tensor | None = None
        if target_weights is not None:
            weights_given = as_weights(target_weights, len(goal), "target_weights")
            columns, self.target_weights = counting(weights_given.to(device))
            goal = goal[columns]
        needed_bytes = 4 * len(images) * len(goal)
        if needed_bytes > MAX_COST_BYTES:
            raise InputError(
                "class_too_large",
                f"{len(images)} x {len(goal)} costs need {needed_bytes / 2**30:.1f} GiB, more "
                f"than {MAX_COST_BYTES >> 30} GiB; search them in cells (--partition auto, "
                "search_partitioned), or split them into classes or clusters (--clusters K)",
            )
        # Costs and gaps do not change when everything is shifted; float32 is happier centred.
        centre = centre_of(goal)
        self._features = centred(images, centre)
        centred_goal = self._features if goal is images else centred(goal, centre)
        self.cost = class_costs(images, goal, self._features, centred_goal)
        # Rows and columns are the same images, all of them.
        self._is_square = target is None and len(columns) == len(images)
        if target is None:
            self.cost[columns, torch.arange(len(columns), device=device)] = 0.0
        if not bool(torch.isfinite(self.cost.max())):
            raise InputError(
                "features_too_large",
                "squared distances overflow float32; scale the features down (their largest "
                f"magnitude is {float(images.abs().max()):.3g})",
            )
        self.scale = cost_scale(
            self.cost, is_square=target is None, column_weights=self.target_weights
        )
        self._cap_costs()
        self._moments = Moments(self._features, centred_goal, self.target_weights)
        n = len(images)
        losses = np.zeros(n) if confidence_loss is None else checked_losses(confidence_loss, n)
        self.confidence_loss = torch.from_numpy(losses).to(device)
        unit = self.scale if units == "relative" else 1.0
        self.mean_weight, self.std_weight = float(mean_weight), float(std_weight)
        self.confidence_weight = float(confidence_weight) * unit
        self.problem = Problem(
            float(capacity), float(epsilon) * unit, column_weights=self.target_weights
        )
        self._additions = Additions(
            self.problem,
            self.cost,
            scale=self.scale,
            rest_of=self._rest_with,
            guides=Guides.among(self._features, self.cost),
        )

    def _cap_costs(self) -> None:
        """Cap costs that float64 can't hold together with differences of epsilon, and say so."""
        cap = MAX_COST_RATIO * self.scale
        if float(self.cost.max()) > cap:
            n_far = int((self.cost > cap).any(1).sum())
            logger.warning(
                "%d images are more than %.0e times the typical distance from others; these "
                "squared distances count as %.3g: look at the outliers",
                n_far,
                MAX_COST_RATIO**0.5,
                cap,
            )
            self.cost.clamp_(max=cap)

    def distances(self, indices: Sequence[int]) -> np.ndarray:
        """Return the squared distances of k images to all, float32 [k, n_images]."""
        rows = torch.tensor(indices, dtype=torch.int64, device=self.cost.device)
        if self._is_square:
            return np.asarray(self.cost[rows].cpu().numpy())
        return np.asarray(squared_distances(self._features[rows], self._features).cpu().numpy())

    def nearest(self, indices: Sequence[int], n: int) -> np.ndarray:
        """Return the `n` images nearest to each of k, that one among them, int64 [k, n] at most."""
        if n >= self.n_images:
            return np.tile(np.arange(self.n_images), (len(indices), 1))
        return np.argpartition(self.distances(indices), n, axis=1)[:, :n]

    @property
    def n_images(self) -> int:
        """Number of images to choose from."""
        return len(self._features)

    def value(self, indices: Array | list[int]) -> float:
        """Return L(S) for the images `indices` [m], converged."""
        return self.terms(indices)["total"]

    def terms(self, indices: Array | list[int]) -> dict[str, float]:
        """Return the unweighted terms of L(S), and their weighted sum.

        Returns:
            `transport`, `mean`, `std`, `confidence`, `total`, and `transport_lower_bound`: no
            plan of this subset, at any epsilon, costs less.
        """
        subset = self._checked_subsets(indices)[None]  # [1, m]
        costs = self.cost[subset].double()
        solution = self.problem.solve(costs)
        mean, std = self._moments.gaps(subset)
        confidence = self.confidence_loss[subset].mean(1)
        transport = self.problem.transport_costs(costs, solution.potentials)
        lower_bound = self.problem.lower_bound(costs, solution.potentials)
        total = transport + self._weighted(mean, std, confidence)
        if not bool(solution.converged):
            warnings.warn(
                f"the transport term of this subset has not converged: row error "
                f"{solution.row_error.item():.1e}; raise epsilon",
                ConvergenceWarning,
                stacklevel=2,
            )
        return {
            "transport": transport.item(),
            "mean": mean.item(),
            "std": std.item(),
            "confidence": confidence.item(),
            "total": total.item(),
            "transport_lower_bound": max(lower_bound.item(), 0.0),  # costs are not negative
            "transport_row_error": solution.row_error.item(),
        }

    def values(self, subsets: Array) -> np.ndarray:
        """Return L(S) of each row of `subsets` [b, m], float64 [b]: every one solved from cold.

        The plain way, and the yardstick of `best_addition`.
        """
        return self.values_and_floors(subsets)[0]

    def values_and_floors(self, subsets: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return `values`, and what L(S) can't be below: less where one has not converged."""
        sets = self._checked_subsets(subsets).reshape(-1, np.shape(subsets)[-1])
        _, transport, least = self.problem.solve_subsets(self.cost, sets)
        rest = self._rest(sets)
        values, floors = torch.stack([transport + rest, least + rest]).cpu().numpy()
        return values, floors

    def best_addition(
        self,
        base: list[int],
        pool: np.ndarray,
        *,
        below: float = np.inf,
    ) -> Addition:
        """Find the image whose addition to `base` gives the lowest objective below `below`.

        Branch and bound over `pool`: the moments and confidence of every candidate are exact, its
        transport cost is bounded, and only what the bounds leave is solved. The answer is that of
        solving every candidate.

        Args:
            base: The images already chosen.
            pool: The candidates, int64 [p], none of them in `base`.
            below: Candidates that can't stay below this value are of no interest.

        Returns:
            The best candidate; between equals, the one with the lowest index.
        """
        return self._additions.best(base, pool, below=below)

    def forget(self) -> None:
        """Forget earlier solutions, from which later ones start.

        Estimates depend on them a little, so a search begins with this: it then gives the same
        subset however often it is run.
        """
        self._additions.forget()

    def one_thread_each(self) -> AbstractContextManager[None]:
        """Return a context in which torch uses one thread in each of the search's own."""
        return self._additions.one_thread_each()

    def likely_addition(
        self, base: list[int], pool: np.ndarray, *, below: float = np.inf
    ) -> Addition:
        """Find a good image to add: those of the lowest estimates are solved, the best is taken.

        Much cheaper than `best_addition`, with no promise that nothing better is left.
        """
        return self._additions.likely(base, pool, below=below)

    def best_exchanges(
        self,
        chosen: list[int],
        places: Sequence[int],
        pools: Sequence[np.ndarray],
        *,
        below: float,
    ) -> Generator[list[Addition], None, None]:
        """Find the best image for one place after another, the others staying, on several cores.

        To be closed where not all are wanted.

        Args:
            chosen: The subset.
            places: Positions in it.
            pools: The candidates for each; see `best_addition`.
            below: Candidates that can't stay below this value are of no interest.

        Yields:
            What the next few places, in their order, are best filled with.
        """
        return self._additions.best_exchanges(chosen, places, pools, below=below)

    def independently(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> list[Result]:
        """Return `function` of each item, in order, on several cores.

        Each starts from what is known now, and what it learns is known after all are done: so
        the order in which they finish does not matter.

        Args:
            function: It may use this objective; what else it changes may be lost.
            items: What is worked on.
        """
        return self._additions.independently(function, items)

    def meanwhile(self, work: Callable[[], Result]) -> Fork[Result]:
        """Return what gives the result of `work`, which goes on in a fork of this process.

        Without a core for it, the work is done when it is asked for its result. To be closed.
        """
        return self._additions.meanwhile(work)

    def likely_exchanges(
        self,
        chosen: list[int],
        places: Sequence[int],
        pools: Sequence[np.ndarray],
        *,
        below: float,
    ) -> list[Addition]:
        """Find good images for several places, as `likely_addition` does; see `best_exchanges`."""
        return self._additions.likely_exchanges(chosen, places, pools, below=below)

    def promising(self, base: list[int], pool: np.ndarray, n: int) -> np.ndarray:
        """Return about the `n` images whose addition to `base` leaves the lowest objective.

        By estimates, no promise: to find candidates that are worth solving.

        Args:
            base: The images already chosen.
            pool: The candidates, int64 [p], none of them in `base`.
            n: How many.

        Returns:
            The best first, int64 [min(n, p)].
        """
        return self._additions.promising(base, pool, n)

    def _rest(self, subsets: torch.Tensor) -> torch.Tensor:
        """Return the weighted terms other than transport, [b]."""
        confidence = self.confidence_loss[subsets].mean(1)
        if not self._has_moments:
            return self.confidence_weight * confidence
        return self._weighted(*self._moments.gaps(subsets), confidence)

    @property
    def _has_moments(self) -> bool:
        return self.mean_weight > 0.0 or self.std_weight > 0.0

    def _rest_with(
        self, base: torch.Tensor, pool: torch.Tensor, fast: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted terms other than transport of `base + [j]`, and their error, [p]."""
        m = len(base) + 1
        losses = (self.confidence_loss[base].sum() + self.confidence_loss[pool]) / m
        confidence = self.confidence_weight * losses
        if not self._has_moments:
            return confidence, torch.zeros_like(confidence)
        dtype = torch.float32 if fast else torch.float64
        mean, std, reach = self._moments.gaps_with(base, pool, dtype=dtype)
        rest = self._weighted(mean, std, losses)
        if not fast:
            return rest, torch.zeros_like(rest)
        error = FAST_ROUNDING * (rest + (self.mean_weight + self.std_weight) * self.scale)
        # Of squared differences of numbers that are larger than they are, with images far off.
        off = DIFFERENCE_ROUNDING * reach
        error += off * (self.mean_weight * (2.0 * mean.sqrt() + off))
        error += off * (self.std_weight * (2.0 * std.sqrt() + off))
        return rest, error

    def _weighted(
        self, mean: torch.Tensor, std: torch.Tensor, confidence: torch.Tensor
    ) -> torch.Tensor:
        return self.mean_weight * mean + self.std_weight * std + self.confidence_weight * confidence

    def _checked_subsets(self, subsets: Array | list[int]) -> torch.Tensor:
        sets = torch.as_tensor(subsets, device=self.cost.device)
        if sets.is_floating_point() or sets.ndim not in (1, 2) or sets.numel() == 0:
            raise InputError("subset_shape", "a subset is a non-empty list of integer indices")
        sets = sets.to(torch.int64)
        low, high = int(sets.min()), int(sets.max())
        if low < 0 or high >= self.n_images:
            raise InputError(
                "index_range",
                f"indices run from {low} to {high}; allowed: 0 to {self.n_images - 1}",
            )
        ordered = sets.sort(-1).values
        if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
            raise InputError("index_repeated", "a subset names an image twice; name each once")
        return sets


def check_settings(
    *,
    capacity: float,
    epsilon: float,
    mean_weight: float,
    std_weight: float,
    confidence_weight: float | None,
    units: str,
    has_losses: bool,
) -> float:
    """Refuse settings that can't be used; return the confidence weight, or its default.

    Raises:
        InputError: See `Objective`.
    """
    check_capacity(capacity)
    check_epsilon(epsilon)
    if confidence_weight is None:
        confidence_weight = DEFAULT_CONFIDENCE_WEIGHT if has_losses else 0.0
    weights = {
        "mean_weight": mean_weight,
        "std_weight": std_weight,
        "confidence_weight": confidence_weight,
    }
    for name, weight in weights.items():
        if not (np.isfinite(weight) and weight >= 0.0):
            raise InputError("weight_range", f"{name}={weight} must be finite and >= 0")
    if units not in ("relative", "absolute"):
        raise InputError("units", f"units={units!r}; use 'relative' or 'absolute'")
    if confidence_weight > 0.0 and not has_losses:
        raise InputError(
            "confidence_missing",
            f"confidence_weight={confidence_weight} needs confidence losses (class "
            "probabilities); give them, or set the weight to 0",
        )
    return confidence_weight


def checked_losses(confidence_loss: Array, n_images: int) -> np.ndarray:
    """Return confidence losses as float64 [n].

    Raises:
        InputError: `confidence_shape`.
    """
    losses = torch.as_tensor(confidence_loss).detach().to("cpu", torch.float64)
    if losses.shape != (n_images,) or not bool(torch.isfinite(losses).all()):
        raise InputError(
            "confidence_shape",
            f"confidence_loss must be {n_images} finite numbers, one per image; got shape "
            f"{list(losses.shape)}",
        )
    return np.asarray(losses.numpy())
