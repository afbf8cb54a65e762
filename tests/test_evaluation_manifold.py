"""Precision, recall, density and coverage against counts by hand, plain loops and expectations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gadc.errors import InputError
from gadc.evaluation.manifold import coverage, density, precision, recall
from gadc.evaluation.sample import Sample
from gaussians import gaussian

Measure = Callable[..., float]
MEASURES: list[Measure] = [precision, recall, density, coverage]

REAL = [[0.0], [1.0], [10.0], [11.0]]
GENERATED = [[0.5], [7.0]]


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (precision, 1 / 2),  # 0.5 lies in two balls, 7 in none
        (density, 2 / 2),  # two hits, of two vectors, k = 1
        (coverage, 2 / 4),  # the balls of 0 and 1
        (recall, 4 / 4),  # [-6, 7] and [0.5, 13.5]
    ],
)
def test_which_side_is_real(measure: Measure, expected: float) -> None:
    assert measure(generated=GENERATED, real=REAL, k=1) == expected


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (precision, 4 / 4),
        (density, (1 + 2 + 1 + 1) / 4),  # 0, 1, 10 and 11 in [-6, 7] and [0.5, 13.5]
        (coverage, 2 / 2),
        (recall, 1 / 2),
    ],
)
def test_the_other_way_round_the_numbers_differ(measure: Measure, expected: float) -> None:
    assert measure(generated=REAL, real=GENERATED, k=1) == expected


def test_coverage_counts_the_balls_that_are_hit() -> None:
    real = [[0.0], [1.0], [10.0], [11.0]]  # with k = 1 every ball has radius 1
    assert coverage(generated=[[0.5]], real=real, k=1) == 0.5
    assert coverage(generated=[[2.0]], real=real, k=1) == 0.25
    assert coverage(generated=[[5.0]], real=real, k=1) == 0.0
    assert coverage(generated=real, real=real, k=1) == 1.0


def test_recall_counts_the_real_vectors_inside_the_generated_balls() -> None:
    real = [[0.0], [1.0], [2.5], [10.0]]
    assert recall(generated=[[0.0], [1.0]], real=real, k=1) == 0.5
    assert recall(generated=[[0.0], [2.0]], real=real, k=1) == 0.75
    assert recall(generated=[[30.0], [31.0]], real=real, k=1) == 0.0


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.__name__)
def test_measures_match_a_plain_loop(measure: Measure) -> None:
    few, many, k = gaussian(12, seed=3), gaussian(60, seed=4), 3
    centres, points = (few, many) if measure is recall else (many, few)
    radii = [np.sort(np.linalg.norm(centres - centre, axis=1))[k] for centre in centres]
    hits = np.array(
        [
            [np.linalg.norm(centre - point) <= radius for point in points]
            for centre, radius in zip(centres, radii, strict=True)
        ]
    )
    expected = {
        precision: hits.any(0).mean(),
        recall: hits.any(0).mean(),
        density: hits.sum() / (k * len(points)),
        coverage: hits.any(1).mean(),
    }[measure]
    assert measure(generated=few, real=many, k=k) == pytest.approx(expected, abs=1e-15)


def test_density_of_one_distribution_averages_one_at_any_sizes() -> None:
    values = [
        density(generated=gaussian(15, seed=2 * i), real=gaussian(40, seed=2 * i + 1))
        for i in range(150)
    ]
    assert abs(np.mean(values) - 1.0) < 4 * np.std(values) / np.sqrt(len(values))


def test_coverage_of_one_distribution_averages_its_closed_form() -> None:
    # Naeem et al., lemma 2: 1 - (n - 1) ... (n - k) / ((m + n - 1) ... (m + n - k)).
    m, n, k = 15, 40, 5
    steps = np.arange(1, k + 1)
    expected = 1.0 - np.prod((n - steps) / (m + n - steps))
    values = [
        coverage(generated=gaussian(m, seed=2 * i), real=gaussian(n, seed=2 * i + 1), k=k)
        for i in range(150)
    ]
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(len(values))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_part_of_the_real_vectors_lies_within_them_wherever_they_are(dtype: Any) -> None:
    # Every neighbour is one of the set: many distances equal a radius, to rounding.
    real = (1e3 + gaussian(300, 40)).astype(dtype)
    part = real[::7]
    assert precision(generated=part, real=real, k=1) == 1.0
    found = coverage(generated=part, real=real, k=2)
    gaps = np.linalg.norm(real.astype(np.float64)[:, None] - real, axis=2)
    order = np.argsort(gaps, axis=1)[:, :3]
    assert found == np.mean((order % 7 == 0).any(axis=1))


def test_repeated_vectors_have_balls_of_radius_zero() -> None:
    real = np.repeat(gaussian(5), 3, axis=0)
    assert precision(generated=real[:1], real=real, k=2) == 1.0
    assert precision(generated=real[:1] + 1e-6, real=real, k=2) == 0.0


def test_a_sample_that_is_asked_twice_gives_each_k_its_own_answer() -> None:
    few, many = gaussian(30, seed=1), gaussian(50, seed=2)
    generated, real, other = Sample(few), Sample(many), Sample(many + 1.0)
    for k in (1, 4):
        for rows, sample in ((many, real), (many + 1.0, other)):
            for measure in MEASURES:
                found = measure(generated=generated, real=sample, k=k)
                assert found == measure(generated=few, real=rows, k=k)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.__name__)
@pytest.mark.parametrize("k", [0, 5, 9])
def test_more_neighbours_than_there_are_is_an_error(measure: Measure, k: int) -> None:
    sizes = {"generated": 9, "real": 9}
    sizes["generated" if measure is recall else "real"] = 5
    with pytest.raises(InputError) as caught:
        measure(**{name: gaussian(n) for name, n in sizes.items()}, k=k)
    assert caught.value.code == "bad_neighbours"
