"""Maximum mean discrepancies: the kernel distance (KID), and the one of a Gaussian kernel."""

import abc
from dataclasses import dataclass

import numpy as np

from gadc.errors import InputError
from gadc.evaluation.distances import (
    TILE_ROWS,
    block_pairs,
    median_distance,
    squared_distance_sum,
)
from gadc.evaluation.sample import (
    Estimator,
    Features,
    Sample,
    as_pair,
    check_estimator,
    require_rows,
)

KID_DEGREE = 3
KID_COEF0 = 1.0
KID_SUBSETS = 100
"""As in the published implementation of KID, with `KID_SUBSET_SIZE`."""
KID_SUBSET_SIZE = 1000


@dataclass(frozen=True)
class KernelEstimate:
    """A kernel distance over subsets.

    Attributes:
        mean: Over the subsets.
        sd: Standard deviation over the subsets (n - 1), which says how much one subset varies;
            0 for a single one.
        n_subsets: How many.
        subset_size: Vectors in each, from either side.
    """

    mean: float
    sd: float
    n_subsets: int
    subset_size: int


def kernel_distance(
    *,
    generated: Features,
    real: Features,
    degree: int = KID_DEGREE,
    gamma: float | None = None,
    coef0: float = KID_COEF0,
) -> float:
    """Return KID, the squared discrepancy under `(gamma x.y + coef0)^degree`, on all vectors.

    Unbiased at any size: 0 on average for two samples of one distribution, hence below 0 half of
    the time. The vectors' origin matters: the kernel is one of inner products. Of all unbiased
    estimates from these vectors it varies least; `kernel_distance_of_subsets` is the published one.

    Args:
        generated: [m, d], m >= 2.
        real: [n, d], n >= 2.
        degree: At least 1.
        gamma: Default: 1 / d.
        coef0: Added to the product.

    Raises:
        InputError: `too_few_rows`, or as `as_pair`.

    Source:
        Binkowski et al., Demystifying MMD GANs, 2018, section 3.1; Gretton et al., A kernel
        two-sample test, 2012, equation 3.
    """
    few, many = as_pair(generated, real)
    require_rows(2, "the unbiased kernel distance", few, many)
    kernel = _Polynomial(degree, 1.0 / many.n_features if gamma is None else gamma, coef0)
    cross = kernel.sum(few, many) / (few.n_rows * many.n_rows)
    return kernel.mean_of_others(few) + kernel.mean_of_others(many) - 2.0 * cross


def kernel_distance_of_subsets(
    *,
    generated: Features,
    real: Features,
    generator: np.random.Generator,
    n_subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
) -> KernelEstimate:
    """Return KID as it is published: mean and spread over random subsets.

    Args:
        generated: [m, d].
        real: [n, d].
        generator: Of the draws, without replacement within a subset.
        n_subsets: At least 1.
        subset_size: 2 to the smaller of m and n.

    Raises:
        InputError: `bad_subsets`, or as `kernel_distance`.

    Source:
        Binkowski et al., Demystifying MMD GANs, 2018, section 4.
    """
    few, many = as_pair(generated, real)
    n_most = min(few.n_rows, many.n_rows)
    if n_subsets < 1 or not 2 <= subset_size <= n_most:
        raise InputError(
            "bad_subsets",
            f"n_subsets={n_subsets} must be at least 1 and subset_size={subset_size} between 2 and "
            f"{n_most}, the vectors there are",
        )
    values = [
        kernel_distance(
            generated=few.drawn(subset_size, generator), real=many.drawn(subset_size, generator)
        )
        for _ in range(n_subsets)
    ]
    sd = float(np.std(values, ddof=1)) if n_subsets > 1 else 0.0
    return KernelEstimate(float(np.mean(values)), sd, n_subsets, subset_size)


def rbf_mmd_squared(
    *,
    generated: Features,
    real: Features,
    bandwidth: float | None = None,
    estimator: Estimator = "unbiased",
) -> float:
    """Return the squared maximum mean discrepancy under the kernel `exp(-|x - y|^2 / (2 h^2))`.

    Args:
        generated: [m, d], m >= 2 for `unbiased`.
        real: [n, d], n >= 2 for `unbiased` and without a bandwidth.
        bandwidth: h; default: the median distance between two vectors of `real`.
        estimator: `unbiased` estimates the discrepancy of the distributions that both were drawn
            from, and may be negative: for a spread-out choice, it is. `empirical` compares the
            two sets themselves, is never negative, is biased upwards by about (1 - E k) (1/m + 1/n)
            as an estimate, and is what to compare choices of one size by.

    Raises:
        InputError: `too_few_rows`, `bad_bandwidth`, or as `as_pair`.

    Source:
        Gretton et al., A kernel two-sample test, 2012, equations 3 (unbiased) and 5 (empirical).
    """
    few, many = as_pair(generated, real)
    check_estimator(estimator)
    if estimator == "unbiased":
        require_rows(2, "the unbiased estimate (there is estimator='empirical')", few, many)
    if bandwidth is None:
        bandwidth = median_distance(many)
    if not (np.isfinite(bandwidth) and bandwidth > 0.0):
        raise InputError("bad_bandwidth", f"bandwidth={bandwidth} must be finite and above 0")
    kernel = _Gaussian(bandwidth)
    within = kernel.mean_of_others if estimator == "unbiased" else kernel.mean_of_all
    cross = kernel.sum(few, many) / (few.n_rows * many.n_rows)
    return within(few) + within(many) - 2.0 * cross


class _Kernel(abc.ABC):
    """Sums of a kernel over pairs; those within a sample are remembered by it."""

    key: tuple[object, ...]

    @abc.abstractmethod
    def sum(self, some: Sample, others: Sample) -> float:
        """Return the sum over all pairs."""

    @abc.abstractmethod
    def diagonal(self, sample: Sample) -> float:
        """Return the sum over the pairs of a vector with itself."""

    def mean_of_all(self, sample: Sample) -> float:
        return self._within(sample) / sample.n_rows**2

    def mean_of_others(self, sample: Sample) -> float:
        n = sample.n_rows
        return (self._within(sample) - self.diagonal(sample)) / (n * (n - 1))

    def _within(self, sample: Sample) -> float:
        return sample.once(self.key, lambda: self.sum(sample, sample))


class _Polynomial(_Kernel):
    def __init__(self, degree: int, gamma: float, coef0: float) -> None:
        if degree < 1 or not (np.isfinite(gamma) and gamma > 0.0 and np.isfinite(coef0)):
            raise InputError(
                "bad_kernel",
                f"degree={degree} must be at least 1, gamma={gamma} finite and above 0, "
                f"coef0={coef0} finite",
            )
        self.degree, self.gamma, self.coef0 = degree, gamma, coef0
        self.key = ("polynomial", degree, gamma, coef0)

    def sum(self, some: Sample, others: Sample) -> float:
        total = 0.0
        for left, right, n_times in block_pairs(some, others):
            products = (left @ right.T).mul_(self.gamma).add_(self.coef0)
            total += n_times * float(products.pow_(self.degree).sum())
        return total

    def diagonal(self, sample: Sample) -> float:
        return sum(
            float((rows.square().sum(1) * self.gamma + self.coef0).pow(self.degree).sum())
            for _, rows in sample.blocks(TILE_ROWS)
        )


class _Gaussian(_Kernel):
    def __init__(self, bandwidth: float) -> None:
        self.scale = -0.5 / bandwidth**2
        self.key = ("gaussian", bandwidth)

    def sum(self, some: Sample, others: Sample) -> float:
        return squared_distance_sum(some, others, lambda squared: squared.mul_(self.scale).exp_())

    def diagonal(self, sample: Sample) -> float:
        return float(sample.n_rows)
