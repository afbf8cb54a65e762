"""Kernel discrepancies against closed forms, the kernel written out, and torchmetrics."""

from typing import Any

import numpy as np
import pytest
import torch

from gadc.errors import InputError
from gadc.evaluation.distances import MEDIAN_ROWS, median_distance
from gadc.evaluation.kernel import kernel_distance, kernel_distance_of_subsets, rbf_mmd_squared
from gaussians import gaussian

ROUNDING = 1e-12  # float64, a few thousand additions of numbers near 1


def torchmetrics_kid(generated: np.ndarray, real: np.ndarray, subset_size: int) -> float:
    from torchmetrics.image.kid import KernelInceptionDistance

    oracle = KernelInceptionDistance(torch.nn.Identity(), subsets=1, subset_size=subset_size)
    oracle.update(torch.from_numpy(generated), real=False)
    oracle.update(torch.from_numpy(real), real=True)
    return float(oracle.compute()[0])


def test_kernel_distance_of_two_pairs_matches_the_kernel_written_out() -> None:
    # (x y + 1)^3 at generated 0, 1 and real 0, 2
    expected = 1.0 + 1.0 - 2.0 * (1 + 1 + 1 + 27) / 4
    found = kernel_distance(generated=[[0.0], [1.0]], real=[[0.0], [2.0]])
    assert found == pytest.approx(expected, abs=ROUNDING)


def test_kernel_distance_matches_torchmetrics() -> None:
    generated, real = gaussian(60, 8, 1, 0.5), gaussian(60, 8, 2)
    found = kernel_distance(generated=generated, real=real)
    assert found == pytest.approx(torchmetrics_kid(generated, real, 60), rel=1e-9)


def test_a_linear_kernel_distance_is_the_unbiased_gap_of_the_means() -> None:
    generated, real = gaussian(40, 3, 1, 0.5), gaussian(70, 3, 2)
    expected = ((generated.mean(0) - real.mean(0)) ** 2).sum()
    expected -= np.trace(np.cov(generated.T)) / 40 + np.trace(np.cov(real.T)) / 70
    found = kernel_distance(generated=generated, real=real, degree=1, gamma=1.0, coef0=0.0)
    assert found == pytest.approx(expected, abs=1e-10)


def test_kernel_distance_of_one_distribution_averages_zero() -> None:
    values = [
        kernel_distance(generated=gaussian(12, seed=2 * i), real=gaussian(30, seed=2 * i + 1))
        for i in range(200)
    ]
    standard_error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * standard_error


def test_subsets_as_large_as_the_samples_all_give_the_whole_distance() -> None:
    generated, real = gaussian(40, seed=1), gaussian(40, seed=2, shift=0.3)
    found = kernel_distance_of_subsets(
        generated=generated,
        real=real,
        generator=np.random.default_rng(0),
        n_subsets=3,
        subset_size=40,
    )
    assert found.mean == pytest.approx(kernel_distance(generated=generated, real=real))
    assert found.sd == pytest.approx(0.0, abs=1e-12)


def test_subsets_estimate_the_whole_distance_and_follow_the_generator() -> None:
    samples: dict[str, Any] = {
        "generated": gaussian(300, seed=1),
        "real": gaussian(300, seed=2, shift=0.5),
    }

    def estimate(seed: int) -> Any:
        generator = np.random.default_rng(seed)
        return kernel_distance_of_subsets(
            **samples, generator=generator, n_subsets=60, subset_size=50
        )

    found = estimate(0)
    # Subsets without replacement: every one is an unbiased estimate of the whole.
    assert abs(found.mean - kernel_distance(**samples)) < 4 * found.sd / np.sqrt(60)
    assert estimate(0) == found
    assert estimate(1) != found


def test_mmd_of_two_pairs_matches_the_kernel_written_out() -> None:
    few, many = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    kernel = lambda distance: np.exp(-(distance**2) / 2)  # noqa: E731
    cross = (kernel(0) + kernel(2) + kernel(1) + kernel(1)) / 4
    unbiased = kernel(1) + kernel(2) - 2 * cross
    empirical = (2 + 2 * kernel(1)) / 4 + (2 + 2 * kernel(2)) / 4 - 2 * cross
    given: dict[str, Any] = {"generated": few, "real": many, "bandwidth": 1.0}
    assert rbf_mmd_squared(**given) == pytest.approx(unbiased, abs=ROUNDING)
    assert rbf_mmd_squared(**given, estimator="empirical") == pytest.approx(empirical, abs=ROUNDING)


def test_unbiased_mmd_of_one_distribution_averages_zero() -> None:
    values = [
        rbf_mmd_squared(generated=gaussian(20, seed=2 * i), real=gaussian(20, seed=2 * i + 1))
        for i in range(200)
    ]
    standard_error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * standard_error


def test_mmd_of_two_gaussians_approaches_its_closed_form() -> None:
    # E k(x, y) for x - y ~ N(delta, 2 I) in d dimensions, bandwidth h:
    # (h^2 / (h^2 + 2))^(d/2) exp(-|delta|^2 / (2 (h^2 + 2))).
    d, h, shift = 2, 1.5, 1.0
    same = (h**2 / (h**2 + 2)) ** (d / 2)
    expected = 2 * same - 2 * same * np.exp(-d * shift**2 / (2 * (h**2 + 2)))
    found = rbf_mmd_squared(
        generated=gaussian(1500, d, 1), real=gaussian(1500, d, 2, shift), bandwidth=h
    )
    assert found == pytest.approx(expected, abs=0.02)  # standard error about 0.006


def test_the_bandwidth_is_the_real_sample_s() -> None:
    wide, narrow = gaussian(30, seed=1) * 5, gaussian(40, seed=2)
    found = rbf_mmd_squared(generated=wide, real=narrow)
    assert found == rbf_mmd_squared(generated=wide, real=narrow, bandwidth=median_distance(narrow))
    assert found != pytest.approx(rbf_mmd_squared(generated=narrow, real=wide), rel=0.01)


def test_median_distance_of_evenly_spaced_points() -> None:
    assert median_distance([[0.0], [1.0], [2.0]]) == 1.0


def test_median_distance_is_that_of_all_pairs() -> None:
    rows = gaussian(60, 3)
    gaps = np.linalg.norm(rows[:, None] - rows, axis=2)[np.triu_indices(60, k=1)]
    assert median_distance(rows) == pytest.approx(np.median(gaps), rel=1e-12)


def test_median_distance_of_many_does_not_depend_on_their_order() -> None:
    rows = gaussian(MEDIAN_ROWS + 500, 3)
    found = median_distance(rows)
    assert median_distance(rows[np.random.default_rng(1).permutation(len(rows))]) == found
    # sqrt(2) times the median of a chi variable with three degrees of freedom.
    assert found == pytest.approx(np.sqrt(2) * 1.5382, rel=0.03)


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("too_few_rows", lambda: kernel_distance(generated=gaussian(1), real=gaussian(9))),
        ("too_few_rows", lambda: kernel_distance(generated=gaussian(9), real=gaussian(1))),
        ("bad_kernel", lambda: kernel_distance(generated=gaussian(9), real=gaussian(9), degree=0)),
        ("bad_kernel", lambda: kernel_distance(generated=gaussian(9), real=gaussian(9), gamma=0.0)),
        (
            "bad_subsets",
            lambda: kernel_distance_of_subsets(
                generated=gaussian(9), real=gaussian(20), generator=np.random.default_rng(0)
            ),
        ),
        ("too_few_rows", lambda: rbf_mmd_squared(generated=gaussian(1), real=gaussian(9))),
        ("too_few_rows", lambda: median_distance(gaussian(1))),
        ("bad_bandwidth", lambda: rbf_mmd_squared(generated=gaussian(3), real=np.ones((4, 4)))),
        (
            "bad_choice",
            lambda: rbf_mmd_squared(generated=gaussian(3), real=gaussian(3), estimator="best"),  # type: ignore[arg-type]
        ),
    ],
)
def test_bad_input_is_an_error_with_its_code(code: str, call: object) -> None:
    with pytest.raises(InputError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.code == code
