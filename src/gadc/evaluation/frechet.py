"""The Fréchet distance between two sets of vectors, taken as Gaussians (FID, on any features).

    |mu_g - mu_r|^2 + Tr S_g + Tr S_r - 2 Tr (S_g S_r)^(1/2)

With roots `S = F^T F`, the last trace is the sum of the singular values of `F_g F_r^T`. The
eigenvalues of `S_g S_r` would have to be rooted, which turns a rounding of 1e-16 into 1e-8 for each
direction without variance; the singular values are exact to rounding.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from gadc.errors import InputError
from gadc.evaluation.sample import Features, Sample, as_sample, require_rows

PSD_TOLERANCE = 1e-6
"""A covariance may have eigenvalues this share of the largest below 0: float32 statistics do."""
N_EXTRAPOLATION_POINTS = 15
"""Sizes at which the extrapolated distance looks, as Chong and Forsyth."""
SMALLEST_SHARE = 0.1
"""Of the rows, at the smallest such size: 5,000 of the usual 50,000."""
ROWS_AT_A_TIME = 4096


class FeatureStatistics:
    """Count, mean and scatter of vectors, accumulated in float64.

    The numbers don't depend on how the vectors are cut into batches, beyond rounding, and those of
    several processes can be merged.

    Attributes:
        n_rows: Number of vectors so far.
        mean: Float64 [d].
        scatter: Sum of the outer products of the deviations from the mean, float64 [d, d].

    Source:
        Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample
        variances, 1979, equations 1.5.
    """

    def __init__(self, n_features: int, device: torch.device | str = "cpu") -> None:
        if n_features < 1:
            raise InputError("bad_shape", f"n_features={n_features} must be at least 1")
        self.n_rows = 0
        self.mean = torch.zeros(n_features, dtype=torch.float64, device=device)
        self.scatter = torch.zeros((n_features, n_features), dtype=torch.float64, device=device)
        self._root: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: Features) -> "FeatureStatistics":
        """Return the statistics of `rows` [n, d]."""
        sample = as_sample(rows, "rows")
        return sample.once("statistics", lambda: cls._of(sample))

    @classmethod
    def from_moments(
        cls, mean: ArrayLike, covariance: ArrayLike, *, n_rows: int
    ) -> "FeatureStatistics":
        """Return published statistics, such as a reference's `mu` and `sigma`.

        Args:
            mean: [d].
            covariance: [d, d], unbiased (divided by n - 1).
            n_rows: Number of vectors they were computed from, at least 2.

        Raises:
            InputError: Shapes that don't fit, numbers that aren't finite, or no symmetric matrix.
        """
        centre, spread = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        if centre.ndim != 1 or spread.shape != (len(centre), len(centre)):
            raise InputError(
                "bad_shape",
                f"mean {centre.shape} and covariance {spread.shape} must be [d] and [d, d]",
            )
        if n_rows < 2:
            raise InputError("too_few_rows", f"a covariance needs 2 vectors; n_rows={n_rows}")
        if not (np.isfinite(centre).all() and np.isfinite(spread).all()):
            raise InputError("features_not_finite", "mean or covariance hold NaN or infinity")
        largest = float(np.abs(spread).max())
        if float(np.abs(spread - spread.T).max()) > PSD_TOLERANCE * largest:
            raise InputError(
                "covariance_not_psd", "the covariance is not symmetric; compute it again in float64"
            )
        statistics = cls(len(centre))
        statistics.n_rows = n_rows
        statistics.mean = torch.from_numpy(centre.copy())
        statistics.scatter = torch.from_numpy((spread + spread.T) / 2 * (n_rows - 1))
        return statistics

    def update(self, rows: Features) -> None:
        """Take in a batch [b, d]; 2 b d^2 flops."""
        batch = as_sample(rows, "rows")
        if batch.n_features != self.n_features:
            raise InputError(
                "width_mismatch",
                f"a batch has {batch.n_features} features, the statistics {self.n_features}; "
                "use one encoder for both",
            )
        for _, block in batch.blocks(ROWS_AT_A_TIME):
            values = block.to(self.mean.device)
            mean = values.mean(0)
            centred = values - mean
            self.scatter.addmm_(centred.T, centred)
            self._combine(len(values), mean)

    def merge(self, other: "FeatureStatistics") -> None:
        """Take in what another one has seen."""
        if other.n_features != self.n_features:
            raise InputError(
                "width_mismatch",
                f"statistics of {other.n_features} and of {self.n_features} features; "
                "use one encoder for both",
            )
        self.scatter += other.scatter.to(self.scatter.device)
        self._combine(other.n_rows, other.mean.to(self.mean.device))

    @property
    def n_features(self) -> int:
        """Return d."""
        return len(self.mean)

    @property
    def covariance(self) -> torch.Tensor:
        """Return the unbiased covariance, float64 [d, d].

        Raises:
            InputError: Fewer than two vectors.
        """
        if self.n_rows < 2:
            raise InputError("too_few_rows", f"a covariance needs 2 vectors; n_rows={self.n_rows}")
        return self.scatter / (self.n_rows - 1)

    @property
    def root(self) -> torch.Tensor:
        """Return F with `F^T F` = covariance, float64 [rank, d]; 10 d^3 flops, then remembered.

        Raises:
            InputError: The covariance has negative eigenvalues, or fewer than two vectors.
        """
        if self._root is None:
            self._root = _root_of(self.covariance)
        return self._root

    @classmethod
    def _of(cls, sample: Sample) -> "FeatureStatistics":
        statistics = cls(sample.n_features, sample.rows.device)
        statistics.update(sample)
        return statistics

    def _combine(self, n_others: int, mean: torch.Tensor) -> None:
        """Move the mean for `n_others` more, whose own scatter has been added."""
        n_total = self.n_rows + n_others
        if n_others == 0:
            return
        gap = mean - self.mean
        self.scatter.addr_(gap, gap, alpha=self.n_rows * n_others / n_total)
        self.mean += gap * (n_others / n_total)
        self.n_rows = n_total
        self._root = None


@dataclass(frozen=True)
class FrechetDistance:
    """A Fréchet distance and what it is made of.

    Attributes:
        value: The distance, squared, as FID is reported; >= 0.
        mean_term: `|mu_g - mu_r|^2`.
        covariance_term: The rest.
        biased: One of the samples has no more vectors than features, so its covariance is singular
            and the value far too large: comparable at the same sizes only.
    """

    value: float
    mean_term: float
    covariance_term: float
    biased: bool


def frechet_distance(
    *, generated: Features | FeatureStatistics, real: Features | FeatureStatistics
) -> FrechetDistance:
    """Return the squared Fréchet distance between two Gaussians with the samples' moments.

    Symmetric. Biased upwards by about c / n for samples of n vectors, even with n much above d:
    compare values of equal sizes, or extrapolate with `frechet_distance_extrapolated`.

    Args:
        generated: Vectors [n, d] or their statistics, n >= 2.
        real: Likewise.

    Raises:
        InputError: `too_few_rows`, `width_mismatch`, or a covariance that isn't one.

    Source:
        Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash
        equilibrium, 2017, equation 6; Dowson and Landau, 1982.
    """
    few, many = _moments(generated, "generated"), _moments(real, "real")
    n_features = len(many.mean)
    if len(few.mean) != n_features:
        raise InputError(
            "width_mismatch",
            f"generated has {len(few.mean)} features, real {n_features}; use one encoder for both",
        )
    device = few.mean.device  # a reference's moments come from a file, hence on the CPU
    mean_term = float((few.mean - many.mean.to(device)).square().sum())
    overlap = float(torch.linalg.svdvals(few.root @ many.root.to(device).T).sum())
    covariance_term = few.variance + many.variance - 2.0 * overlap
    return FrechetDistance(
        # Below 0 by rounding only.
        value=max(0.0, mean_term + covariance_term),
        mean_term=mean_term,
        covariance_term=max(0.0, covariance_term),
        biased=is_biased(few.n_rows, many.n_rows, n_features),
    )


def is_biased(n_generated: int, n_real: int, n_features: int) -> bool:
    """Tell whether one of the two covariances can't have full rank."""
    return min(n_generated, n_real) <= n_features


@dataclass(frozen=True)
class ExtrapolatedFrechet:
    """The Fréchet distance that infinitely many generated vectors would have.

    Attributes:
        value: The intercept; may be a little below 0.
        slope: How much one more in 1 / n adds.
        sizes: At how many vectors it was looked.
        distances: What was found there.
    """

    value: float
    slope: float
    sizes: list[int]
    distances: list[float]


def frechet_distance_extrapolated(
    *,
    generated: Features,
    real: Features | FeatureStatistics,
    generator: np.random.Generator,
    n_points: int = N_EXTRAPOLATION_POINTS,
    smallest: int | None = None,
) -> ExtrapolatedFrechet:
    """Return FID-infinity: the distance at several sizes, extended on a line in 1 / n to 0.

    Corrects the bias of a finite `generated`; the one of a finite `real` stays.

    Args:
        generated: [n, d].
        real: [m, d], or its statistics.
        generator: Of the draws, one of each size, without replacement.
        n_points: Number of sizes, evenly spaced up to n; at least 2.
        smallest: The smallest size; default: a tenth of n, or d + 1 where that is more.

    Raises:
        InputError: As `frechet_distance`, or `smallest` is not between d + 1 and n - 1.

    Source:
        Chong and Forsyth, Effectively unbiased FID and Inception score and where to find them,
        2020, algorithm 1 (with random draws in place of Sobol points, which need the generator
        network).
    """
    sample = as_sample(generated, "generated")
    n, d = sample.n_rows, sample.n_features
    if smallest is None:
        smallest = max(d + 1, round(SMALLEST_SHARE * n))
    if not d < smallest < n:
        raise InputError(
            "too_few_rows",
            f"smallest={smallest} must lie between {d + 1}, one more than the features, and "
            f"{n - 1}; generate more images",
        )
    if n_points < 2:
        raise InputError("bad_choice", f"n_points={n_points}; a line needs 2")
    sizes = np.unique(np.linspace(smallest, n, n_points).astype(np.int64)).tolist()
    distances = [
        frechet_distance(generated=sample.drawn(size, generator), real=real).value for size in sizes
    ]
    slope, intercept = np.polyfit(1.0 / np.array(sizes), distances, 1)
    return ExtrapolatedFrechet(float(intercept), float(slope), sizes, distances)


@dataclass(frozen=True)
class _Moments:
    n_rows: int
    mean: torch.Tensor
    variance: float  # trace of the covariance
    root: torch.Tensor


def _moments(values: Features | FeatureStatistics, name: str) -> _Moments:
    if isinstance(values, FeatureStatistics):
        variance = float(values.covariance.trace())
        return _Moments(values.n_rows, values.mean, variance, values.root)
    sample = as_sample(values, name)
    require_rows(2, "a covariance", sample)
    return sample.once("moments", lambda: _moments_of(sample))


def _moments_of(sample: Sample) -> _Moments:
    if sample.n_rows > sample.n_features:
        return _moments(FeatureStatistics.of(sample), sample.name)
    # The centred vectors themselves are the root, of fewer rows than a square one.
    root = (sample.rows.double() - sample.centre) / (sample.n_rows - 1) ** 0.5
    return _Moments(sample.n_rows, sample.centre, float(root.square().sum()), root)


def _root_of(covariance: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    largest = max(float(values[-1]), 0.0)
    if float(values[0]) < -PSD_TOLERANCE * largest or (largest == 0.0 and float(values[0]) < 0.0):
        raise InputError(
            "covariance_not_psd",
            f"the covariance has the eigenvalue {float(values[0]):.3g}; none may be below 0: "
            "compute it again in float64",
        )
    # What is left of a direction without variance is rounding, and its root would not be small.
    rounding = len(values) * torch.finfo(torch.float64).eps * largest
    kept = values > rounding
    root: torch.Tensor = values[kept].sqrt()[:, None] * vectors[:, kept].T
    return root
