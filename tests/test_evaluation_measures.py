"""The measures of distributions, and what holds for all measures: blocks, invariance, sizes."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from gadc.errors import InputError
from gadc.evaluation import distances, sample
from gadc.evaluation.distances import nearest, squared_distance_tiles
from gadc.evaluation.distribution import covariance_gap, energy_distance, squared_mean_gap
from gadc.evaluation.measures import MEASURES, Undefined
from gadc.evaluation.nearest_neighbour import nearest_neighbour_accuracy
from gadc.evaluation.sample import Sample
from gaussians import a_covariance, gaussian, with_moments

ROUNDING = 1e-12  # float64, a few thousand additions of numbers near 1
NAMES = [
    "frechet",
    "kid",
    "mmd-rbf",
    "precision",
    "recall",
    "density",
    "coverage",
    "energy",
    "mean-gap",
    "cov-gap",
    "duplicates",
]


def test_energy_distance_of_two_points_is_twice_their_distance() -> None:
    assert energy_distance(generated=[[0.0, 0.0]], real=[[3.0, 4.0]]) == pytest.approx(10.0)


def test_energy_distance_in_one_dimension_is_twice_the_squared_area_between_the_cdfs() -> None:
    few, many = np.array([0.0, 2.0]), np.array([0.0, 1.0, 2.0, 5.0])
    edges = np.unique(np.concatenate([few, many]))
    gaps = [(few <= left).mean() - (many <= left).mean() for left in edges[:-1]]
    area = sum(gap**2 * width for gap, width in zip(gaps, np.diff(edges), strict=True))
    assert energy_distance(generated=few[:, None], real=many[:, None]) == pytest.approx(2 * area)


def test_energy_distance_of_a_set_to_itself_is_zero() -> None:
    rows = gaussian(50)
    assert energy_distance(generated=rows, real=np.repeat(rows, 3, axis=0)) < ROUNDING * 10


def test_unbiased_energy_distance_of_one_distribution_averages_zero() -> None:
    samples = [(gaussian(10, seed=2 * i), gaussian(25, seed=2 * i + 1)) for i in range(200)]
    values = [energy_distance(generated=g, real=r, estimator="unbiased") for g, r in samples]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert np.mean([energy_distance(generated=g, real=r) for g, r in samples]) > 0.2


def test_mean_gap_is_that_of_known_means_and_is_corrected_for_the_noise() -> None:
    generated = with_moments(20, np.array([3.0, 0.0]), np.diag([4.0, 1.0]))
    real = with_moments(50, np.array([0.0, 4.0]), np.eye(2), seed=1)
    assert squared_mean_gap(generated=generated, real=real) == pytest.approx(25.0)
    unbiased = squared_mean_gap(generated=generated, real=real, estimator="unbiased")
    assert unbiased == pytest.approx(25.0 - 5 / 20 - 2 / 50)


@pytest.mark.parametrize("d", [3, 60], ids=["by covariances", "by products"])
def test_covariance_gap_is_relative_to_the_real_covariance(d: int) -> None:
    generated, real = gaussian(20, d, 1) * 2.0, gaussian(30, d, 2)
    ours, theirs = np.cov(generated.T), np.cov(real.T)
    expected = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert covariance_gap(generated=generated, real=real) == pytest.approx(expected, rel=1e-9)
    swapped = covariance_gap(generated=real, real=generated)
    assert swapped == pytest.approx(np.linalg.norm(ours - theirs) / np.linalg.norm(ours), rel=1e-9)
    assert covariance_gap(generated=real[::-1].copy(), real=real) < 1e-7


def test_covariance_gap_of_known_covariances() -> None:
    covariance = a_covariance(5)
    generated = with_moments(30, np.zeros(5), 1.5 * covariance)
    real = with_moments(40, np.ones(5), covariance, seed=1)
    assert covariance_gap(generated=generated, real=real) == pytest.approx(0.5)


def test_nearest_neighbour_accuracy_counts_right_answers() -> None:
    accuracy = nearest_neighbour_accuracy(
        selected=[[0.0], [10.0]],
        selected_labels=["a", "b"],
        real=[[1.0], [2.0], [9.0], [4.0]],
        real_labels=["a", "a", "b", "b"],
    )
    assert accuracy == 0.75


@pytest.mark.parametrize("shift", [0.0, 1e5])
@pytest.mark.parametrize("n_groups", [1, 2])
def test_squared_distances_are_right_to_nine_digits_wherever_they_are(
    shift: float, n_groups: int
) -> None:
    # Close pairs, equal vectors, and groups a million times as far apart as their width.
    rows = gaussian(40, 20) + shift
    rows[20:] += 1e6 * (n_groups - 1)
    rows[1] = rows[0]
    rows[3] = rows[2] + 1e-3
    exact = np.square(rows[:, None] - rows).sum(2)
    some = Sample(rows)
    ((_, _, found),) = squared_distance_tiles(some, some)
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    assert found[0, 1] == 0.0


def test_nearest_leaves_itself_out_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "TILE_ROWS", 7)
    rows = gaussian(30)
    gaps = np.square(rows[:, None] - rows).sum(2)
    squared, where = nearest(Sample(rows), Sample(rows))
    assert (squared == 0.0).all()
    assert where.tolist() == list(range(30))
    np.fill_diagonal(gaps, np.inf)
    squared, where = nearest(Sample(rows), Sample(rows), leave_out_self=True)
    np.testing.assert_allclose(squared, gaps.min(1), rtol=1e-9)
    assert where.tolist() == gaps.argmin(1).tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", ["rows", "values"])
def test_measures_do_not_depend_on_block_size(
    name: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = gaussian(23, seed=5), gaussian(41, seed=6)
    whole = MEASURES[name].compute(few, many)
    if limit == "rows":
        for module in ("distances", "kernel"):
            monkeypatch.setattr(f"gadc.evaluation.{module}.TILE_ROWS", 5)
        monkeypatch.setattr("gadc.evaluation.frechet.ROWS_AT_A_TIME", 5)
    else:
        monkeypatch.setattr(sample, "BLOCK_VALUES", 14)
        monkeypatch.setattr(distances, "BLOCK_VALUES", 14)
    assert MEASURES[name].compute(few, many) == pytest.approx(whole, abs=ROUNDING * 10)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "kid"])  # its origin matters
def test_measures_do_not_depend_on_rotation_shift_or_order(name: str) -> None:
    few, many = gaussian(9, seed=7), gaussian(41, seed=8)
    rotation, _ = np.linalg.qr(gaussian(4, seed=9))
    expected = MEASURES[name].compute(few, many)
    turned = MEASURES[name].compute(few @ rotation + 3, many @ rotation + 3)
    assert turned == pytest.approx(expected, abs=1e-9)
    backwards = MEASURES[name].compute(few[::-1], many[::-1])
    assert backwards == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_shared_sample_gives_what_its_vectors_give(name: str) -> None:
    real = Sample(gaussian(41, seed=8))
    for seed in (1, 2):
        few = gaussian(12, seed=seed)
        expected = MEASURES[name].compute(few, gaussian(41, seed=8))
        for _ in range(2):
            assert MEASURES[name].compute(few, real) == expected


@pytest.mark.parametrize("name", NAMES)
def test_types_of_vectors_make_no_difference(name: str) -> None:
    few, many = (np.rint(8 * gaussian(n, seed=n)) for n in (12, 30))
    expected = MEASURES[name].compute(few, many)
    read_only = many.astype(np.float32)
    read_only.setflags(write=False)
    for others in (many.astype(np.int64), torch.from_numpy(many), many.tolist(), read_only):
        assert MEASURES[name].compute(few.astype(np.float16), others) == pytest.approx(expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_same_numbers(name: str) -> None:
    few, many = gaussian(500, 48, 1), gaussian(6000, 48, 2)
    expected = MEASURES[name].compute(few, many)
    found = MEASURES[name].compute(torch.from_numpy(few).cuda(), torch.from_numpy(many).cuda())
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_measures_are_those_that_tables_name() -> None:
    assert list(MEASURES) == NAMES
    assert all(measure.name == name for name, measure in MEASURES.items())


@pytest.mark.parametrize("name", NAMES)
def test_better_is_the_direction_of_a_better_subset(name: str) -> None:
    real = gaussian(200, seed=1)
    good, bad = real[::5], np.repeat(0.3 * gaussian(20, seed=2) + 1.0, 2, axis=0) * [3, 0, 0, 0]
    values = [MEASURES[name].compute(rows, real) for rows in (good, bad)]
    assert (values[0] < values[1]) == (MEASURES[name].better == "lower")
    assert values[0] != values[1]


@pytest.mark.parametrize(
    ("name", "n_selected", "n_real"),
    [
        *[(name, 1, 30) for name in ("frechet", "kid", "mmd-rbf", "cov-gap", "duplicates")],
        *[(name, 5, 1) for name in ("frechet", "kid", "mmd-rbf", "cov-gap", "duplicates")],
        ("recall", 3, 30),
        ("precision", 9, 3),
        ("density", 9, 5),
        ("coverage", 9, 5),
    ],
)
def test_a_measure_without_a_value_says_why(name: str, n_selected: int, n_real: int) -> None:
    with pytest.raises(Undefined, match=r"needs \d (selected|real) vectors, has \d") as caught:
        MEASURES[name].compute(gaussian(n_selected), gaussian(n_real))
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


@pytest.mark.parametrize("name", NAMES)
def test_the_least_sizes_have_a_value(name: str) -> None:
    measure = MEASURES[name]
    value = measure.compute(gaussian(measure.n_selected_least), gaussian(measure.n_real_least))
    assert np.isfinite(value)


@pytest.mark.parametrize("name", ["mmd-rbf", "cov-gap"])
def test_real_vectors_that_are_all_equal_leave_no_scale(name: str) -> None:
    with pytest.raises(Undefined):
        MEASURES[name].compute(gaussian(9), np.ones((9, 4)))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_frechet_distance_is_marked_in_small_samples(name: str) -> None:
    expected = "biased" if name == "frechet" else ""
    assert MEASURES[name].mark(64, 5000, 64) == expected
    assert MEASURES[name].mark(5000, 64, 64) == expected
    assert MEASURES[name].mark(65, 65, 64) == ""


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("width_mismatch", lambda: energy_distance(generated=[[0.0]], real=[[0.0, 1.0]])),
        ("bad_shape", lambda: energy_distance(generated=[0.0], real=[[0.0]])),
        ("bad_shape", lambda: energy_distance(generated=np.empty((0, 2)), real=[[0.0]])),
        ("features_not_finite", lambda: energy_distance(generated=[[np.nan]], real=[[0.0]])),
        ("features_not_finite", lambda: MEASURES["kid"].compute([[np.inf]], gaussian(9, 1))),
        ("width_mismatch", lambda: MEASURES["kid"].compute(gaussian(9, 3), gaussian(9, 2))),
        (
            "devices_differ",
            lambda: energy_distance(generated=[[0.0]], real=_elsewhere(torch.zeros(1, 1))),
        ),
        (
            "too_few_rows",
            lambda: energy_distance(generated=[[0.0]], real=gaussian(3, 1), estimator="unbiased"),
        ),
        ("too_few_rows", lambda: covariance_gap(generated=gaussian(1), real=gaussian(9))),
        ("no_spread", lambda: covariance_gap(generated=gaussian(3), real=np.ones((9, 4)))),
        (
            "bad_choice",
            lambda: squared_mean_gap(generated=[[0.0]], real=[[0.0]], estimator="no"),  # type: ignore[arg-type]
        ),
        (
            "length_mismatch",
            lambda: nearest_neighbour_accuracy(
                selected=gaussian(2), selected_labels=[0], real=gaussian(2), real_labels=[0, 1]
            ),
        ),
    ],
)
def test_bad_input_is_an_error_with_its_code(code: str, call: Any) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.code == code


def _elsewhere(rows: torch.Tensor) -> Sample:
    """Return a sample on a device that every machine has besides the first."""
    moved = Sample(rows)
    moved.rows = rows.to("meta")
    return moved
