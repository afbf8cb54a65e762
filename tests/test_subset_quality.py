"""The measures against closed forms, plain loops and their invariances."""

import numpy as np
import pytest

from gadc.errors import InputError
from gadc.evaluation import subset_quality
from gadc.evaluation.subset_quality import (
    coverage,
    energy_distance,
    median_distance,
    nearest_neighbour_accuracy,
    rbf_mmd_squared,
    recall,
)

ROUNDING = 1e-12  # float64, a few thousand additions of numbers near 1


def gaussian(n: int, d: int = 4, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (n, d))


def test_energy_distance_of_two_points_is_twice_their_distance() -> None:
    assert energy_distance(selected=[[0.0, 0.0]], real=[[3.0, 4.0]]) == pytest.approx(10.0)


def test_energy_distance_in_one_dimension_is_twice_the_squared_area_between_the_cdfs() -> None:
    few, many = np.array([0.0, 2.0]), np.array([0.0, 1.0, 2.0, 5.0])
    edges = np.unique(np.concatenate([few, many]))
    gaps = [(few <= left).mean() - (many <= left).mean() for left in edges[:-1]]
    area = sum(gap**2 * width for gap, width in zip(gaps, np.diff(edges), strict=True))
    assert energy_distance(selected=few[:, None], real=many[:, None]) == pytest.approx(2 * area)


def test_energy_distance_of_a_set_to_itself_is_zero() -> None:
    rows = gaussian(50)
    assert energy_distance(selected=rows, real=np.repeat(rows, 3, axis=0)) < ROUNDING * 10


def test_mmd_of_two_pairs_matches_the_kernel_written_out() -> None:
    few, many = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    kernel = lambda distance: np.exp(-(distance**2) / 2)  # noqa: E731
    cross = (kernel(0) + kernel(2) + kernel(1) + kernel(1)) / 4
    unbiased = kernel(1) + kernel(2) - 2 * cross
    empirical = (2 + 2 * kernel(1)) / 4 + (2 + 2 * kernel(2)) / 4 - 2 * cross
    given = {"selected": few, "real": many, "bandwidth": 1.0}
    assert rbf_mmd_squared(**given) == pytest.approx(unbiased, abs=ROUNDING)
    assert rbf_mmd_squared(**given, estimator="empirical") == pytest.approx(empirical, abs=ROUNDING)


def test_unbiased_mmd_of_one_distribution_averages_zero() -> None:
    values = [
        rbf_mmd_squared(selected=gaussian(20, seed=2 * i), real=gaussian(20, seed=2 * i + 1))
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
        selected=gaussian(1500, d, 1), real=gaussian(1500, d, 2, shift), bandwidth=h
    )
    assert found == pytest.approx(expected, abs=0.02)  # standard error about 0.006


def test_coverage_counts_the_balls_that_are_hit() -> None:
    real = [[0.0], [1.0], [10.0], [11.0]]  # with k = 1 every ball has radius 1
    assert coverage(selected=[[0.5]], real=real, k=1) == 0.5
    assert coverage(selected=[[2.0]], real=real, k=1) == 0.25
    assert coverage(selected=[[5.0]], real=real, k=1) == 0.0
    assert coverage(selected=real, real=real, k=1) == 1.0


def test_recall_counts_the_real_vectors_inside_the_selected_balls() -> None:
    real = [[0.0], [1.0], [2.5], [10.0]]
    assert recall(selected=[[0.0], [1.0]], real=real, k=1) == 0.5
    assert recall(selected=[[0.0], [2.0]], real=real, k=1) == 0.75
    assert recall(selected=[[30.0], [31.0]], real=real, k=1) == 0.0


@pytest.mark.parametrize("measure", [coverage, recall])
def test_neighbour_measures_match_a_plain_loop(measure: object) -> None:
    few, many, k = gaussian(12, seed=3), gaussian(60, seed=4), 3
    centres, others = (many, few) if measure is coverage else (few, many)
    radii = [np.sort(np.linalg.norm(centres - c, axis=1))[k] for c in centres]
    if measure is coverage:
        hits = [
            min(np.linalg.norm(others - c, axis=1)) <= r
            for c, r in zip(centres, radii, strict=True)
        ]
    else:
        hits = [any(np.linalg.norm(centres - other, axis=1) <= radii) for other in others]
    assert measure(selected=few, real=many, k=k) == np.mean(hits)  # type: ignore[operator]


def test_nearest_neighbour_accuracy_counts_right_answers() -> None:
    accuracy = nearest_neighbour_accuracy(
        selected=[[0.0], [10.0]],
        selected_labels=["a", "b"],
        real=[[1.0], [2.0], [9.0], [4.0]],
        real_labels=["a", "a", "b", "b"],
    )
    assert accuracy == 0.75


def test_median_distance_of_evenly_spaced_points() -> None:
    assert median_distance([[0.0], [1.0], [2.0]]) == 1.0


def test_measures_do_not_depend_on_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = gaussian(9, seed=5), gaussian(41, seed=6)
    measures = (energy_distance, rbf_mmd_squared, coverage, recall)
    whole = [measure(selected=few, real=many) for measure in measures]
    monkeypatch.setattr(subset_quality, "BLOCK_DISTANCES", 100)
    blocks = [measure(selected=few, real=many) for measure in measures]
    assert blocks == pytest.approx(whole, abs=ROUNDING)


@pytest.mark.parametrize(
    "measure", [energy_distance, rbf_mmd_squared, coverage, recall], ids=lambda m: m.__name__
)
def test_measures_do_not_depend_on_rotation_or_shift(measure: object) -> None:
    few, many = gaussian(9, seed=7), gaussian(41, seed=8)
    rotation, _ = np.linalg.qr(gaussian(4, seed=9))
    turned = measure(selected=few @ rotation + 3, real=many @ rotation + 3)  # type: ignore[operator]
    assert turned == pytest.approx(
        measure(selected=few, real=many),  # type: ignore[operator]
        abs=1e-9,
    )


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("width_mismatch", lambda: energy_distance(selected=[[0.0]], real=[[0.0, 1.0]])),
        ("bad_shape", lambda: energy_distance(selected=[0.0], real=[[0.0]])),
        ("features_not_finite", lambda: coverage(selected=[[np.nan]], real=gaussian(9, 1))),
        ("bad_neighbours", lambda: recall(selected=gaussian(5), real=gaussian(9))),
        ("bad_neighbours", lambda: coverage(selected=gaussian(5), real=gaussian(9), k=0)),
        ("too_few_rows", lambda: rbf_mmd_squared(selected=gaussian(1), real=gaussian(9))),
        ("bad_bandwidth", lambda: rbf_mmd_squared(selected=gaussian(3), real=np.ones((4, 4)))),
        (
            "length_mismatch",
            lambda: nearest_neighbour_accuracy(
                selected=gaussian(2), selected_labels=[0], real=gaussian(2), real_labels=[0, 1]
            ),
        ),
    ],
)
def test_bad_input_is_an_error_with_its_code(code: str, call: object) -> None:
    with pytest.raises(InputError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.code == code
