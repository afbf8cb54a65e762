"""Weighted target marginals, against the linear programme, repeated columns, the slow search."""

import numpy as np
import ot
import pytest
import torch

from gadc import InputError, Objective, exact_partial_transport, partial_transport
from gadc.objective.cost import cost_scale
from gadc.objective.weights import as_weights, weighted_median
from gadc.search import search
from gadc.search.candidates import Candidates
from gadc.search.greedy import greedy
from gadc.search.medoids import medoids
from slow_search import slow_best_addition, slow_greedy


def blobs(n: int = 60, d: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(4, d))[rng.integers(0, 4, n)] * 3 + rng.normal(size=(n, d))


def random_weights(n: int, seed: int = 0) -> np.ndarray:
    """Exponential numbers, some of them zero."""
    rng = np.random.default_rng(seed)
    return rng.exponential(size=n) * (rng.random(n) > 0.2)


def squared(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return ((rows[:, None] - columns[None]) ** 2).sum(2)


def pot_optimum(cost: np.ndarray, capacity: float, weights: np.ndarray) -> float:
    """POT's exact solution, the slack as a row of zero cost."""
    m, n = cost.shape
    rows = np.append(np.full(m, 1 / m), capacity - 1.0)
    columns = capacity * weights / weights.sum()
    plan = ot.emd(rows, columns * rows.sum() / columns.sum(), np.vstack([cost, np.zeros(n)]))
    return float((plan[:m] * cost).sum())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("capacity", [1.0, 1.05, 2.0])
def test_exact_transport_equals_pot(seed: int, capacity: float) -> None:
    cost, weights = squared(blobs(6, seed=seed), blobs(30, seed=seed + 1)), random_weights(30, seed)
    found = exact_partial_transport(cost, capacity=capacity, column_weights=weights)
    assert found.transport_cost == pytest.approx(pot_optimum(cost, capacity, weights), rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("capacity", [1.0, 1.05, 2.0])
def test_small_epsilon_matches_the_linear_programme(seed: int, capacity: float) -> None:
    cost, weights = squared(blobs(6, seed=seed), blobs(30, seed=seed + 1)), random_weights(30, seed)
    solved = partial_transport(cost, capacity=capacity, epsilon=1e-3, column_weights=weights)
    optimum = exact_partial_transport(
        cost, capacity=capacity, column_weights=weights
    ).transport_cost
    assert solved.converged
    assert solved.lower_bound <= optimum * (1 + 1e-6) + 1e-9
    assert optimum * (1 - 1e-6) <= solved.transport_cost <= optimum + 5e-3
    shares = weights / weights.sum()
    assert (solved.plan.sum(0) <= capacity * shares * (1 + 1e-6)).all()
    np.testing.assert_allclose(solved.plan.sum(1), 1 / 6, atol=1e-6)


@pytest.mark.parametrize("capacity", [1.0, 1.05])
def test_weight_two_is_a_column_twice(capacity: float) -> None:
    cost = squared(blobs(5), blobs(20, seed=1))
    times = np.random.default_rng(2).integers(1, 4, 20)
    weighted = partial_transport(cost, capacity=capacity, epsilon=0.3, column_weights=times)
    repeated = partial_transport(np.repeat(cost, times, axis=1), capacity=capacity, epsilon=0.3)
    assert weighted.transport_cost == pytest.approx(repeated.transport_cost, rel=1e-9)
    assert weighted.lower_bound == pytest.approx(repeated.lower_bound, rel=1e-9)
    # 1e-7: what a row mass that is off by the solver's tolerance can do to a potential.
    np.testing.assert_allclose(weighted.row_potentials, repeated.row_potentials, rtol=1e-7)


def test_column_of_weight_zero_is_not_there() -> None:
    cost, weights = squared(blobs(5), blobs(20, seed=1)), random_weights(20)
    assert (weights == 0).any()
    there = weights > 0
    every = partial_transport(cost, column_weights=weights)
    some = partial_transport(cost[:, there], column_weights=weights[there])
    # They cool from different temperatures, so they agree to the solver's tolerance.
    assert every.transport_cost == pytest.approx(some.transport_cost, rel=1e-7)
    assert (every.plan[:, ~there] == 0).all()


def test_only_ratios_of_weights_count() -> None:
    cost, weights = squared(blobs(5), blobs(20, seed=1)), random_weights(20)
    expected = partial_transport(cost, column_weights=weights).transport_cost
    for factor in (1e-300, 7.0, 1e307):
        found = partial_transport(cost, column_weights=weights * factor).transport_cost
        assert found == pytest.approx(expected, rel=1e-12)


def test_objective_with_equal_weights_is_that_without() -> None:
    plain, equal = Objective(blobs()), Objective(blobs(), target_weights=np.full(60, 3.0))
    assert equal.terms([1, 5, 9]) == plain.terms([1, 5, 9])
    assert search(equal, 4).order.tolist() == search(plain, 4).order.tolist()


def test_objective_with_repeated_targets() -> None:
    pool, target = blobs(40), blobs(25, seed=1)
    times = np.random.default_rng(3).integers(1, 4, 25)
    weighted = Objective(pool, target, target_weights=times, std_weight=0.0)
    repeated = Objective(pool, np.repeat(target, times, axis=0), std_weight=0.0)
    # Both are centred on the mean of the rows given, so float32 costs round differently.
    assert weighted.scale == pytest.approx(repeated.scale, rel=1e-6)
    assert weighted.value([3, 8, 30]) == pytest.approx(repeated.value([3, 8, 30]), rel=1e-6)
    assert search(weighted, 5).order.tolist() == search(repeated, 5).order.tolist()


def test_moments_by_hand() -> None:
    # w = 1/4, 3/4 at 0 and 4: mean 3, variance (9/4 + 3/4) / (1 - 1/16 - 9/16) = 8.
    objective = Objective(np.array([[0.0], [4.0]]), target_weights=[1.0, 3.0])
    terms = objective.terms([1])
    assert terms["mean"] == pytest.approx(1.0)
    assert terms["std"] == pytest.approx(8.0)


def test_images_that_do_not_count_may_be_chosen_and_are_not_matched() -> None:
    features, weights = blobs(), random_weights(60)
    there = np.flatnonzero(weights)
    whole = Objective(features, target_weights=weights)
    apart = Objective(features, features[there], target_weights=weights[there], units="absolute")
    assert whole.cost.shape == (60, len(there))
    assert bool((whole.cost[there, np.arange(len(there))] == 0.0).all())
    assert whole.terms([0, 7, 20])["mean"] == pytest.approx(apart.terms([0, 7, 20])["mean"])
    outside = int(np.flatnonzero(weights == 0)[0])
    assert np.isfinite(whole.value([outside]))


@pytest.mark.parametrize("capacity", [1.0, 1.05, 3.0])
@pytest.mark.parametrize("base", [[], [7], [3, 20, 41], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_best_addition_equals_solving_every_candidate(capacity: float, base: list[int]) -> None:
    objective = Objective(blobs(), target_weights=random_weights(60), capacity=capacity)
    index, value = slow_best_addition(objective, base)
    best = objective.best_addition(base, np.setdiff1d(np.arange(60), base))
    assert best.index == index
    assert best.value == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_greedy_equals_the_slow_greedy(seed: int) -> None:
    objective = Objective(blobs(120, seed=seed), target_weights=random_weights(120, seed))
    assert greedy(objective, 6, Candidates(120)).indices == slow_greedy(objective, 6)


def test_best_addition_among_many_equals_solving_every_candidate() -> None:
    # So many that the guides take part.
    objective = Objective(blobs(500), target_weights=random_weights(500))
    base = [3, 77, 200, 410]
    index, value = slow_best_addition(objective, base)
    best = objective.best_addition(base, np.setdiff1d(np.arange(500), base))
    assert (best.index, best.value) == (index, pytest.approx(value, rel=1e-7))


def test_search_is_invariant_under_permutation_and_scale() -> None:
    features, weights = blobs(120), random_weights(120)
    plain = search(Objective(features, target_weights=weights), 5).order
    permutation = np.random.default_rng(3).permutation(120)
    permuted = search(Objective(features[permutation], target_weights=weights[permutation]), 5)
    assert set(permutation[permuted.order].tolist()) == set(plain.tolist())
    scaled = search(Objective(features * 1e3, target_weights=weights), 5)
    assert scaled.order.tolist() == plain.tolist()


def test_medoids_with_repeated_columns() -> None:
    cost = torch.from_numpy(squared(blobs(40), blobs(30, seed=1))).float()
    times = np.random.default_rng(4).integers(1, 4, 30)
    weighted = medoids(cost, 5, Candidates(40), column_weights=torch.from_numpy(times))
    columns = torch.from_numpy(np.repeat(np.arange(30), times))
    assert weighted == medoids(cost[:, columns], 5, Candidates(40))


@pytest.mark.parametrize("seed", range(20))
def test_weighted_median_is_that_of_repeated_columns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=(7, 9)).astype(np.float32) * (rng.random((7, 9)) > 0.3)
    values = np.ascontiguousarray(values, dtype=np.float32)
    times = rng.integers(1, 5, 9)
    sorted_values = np.sort(np.repeat(values, times, axis=1).ravel())
    for n_zeros in (0, int((sorted_values == 0).sum())):
        counted = sorted_values[n_zeros:]
        found = weighted_median(values, times.astype(float), zeros_left_out=float(n_zeros))
        assert found == counted[(len(counted) - 1) // 2]


def test_scale_leaves_out_the_diagonal() -> None:
    objective = Objective(blobs())
    weights = torch.full((60,), 1 / 60, dtype=torch.float64)
    assert cost_scale(objective.cost, is_square=True, column_weights=weights) == objective.scale


@pytest.mark.parametrize(
    ("weights", "code"),
    [
        (np.ones(9), "weights_length"),
        (np.ones((10, 1)), "weights_length"),
        (np.zeros(10), "weights_range"),
        (np.append(np.ones(9), -1e-9), "weights_range"),
        (np.append(np.ones(9), np.nan), "weights_range"),
        (np.append(np.ones(9), np.inf), "weights_range"),
    ],
)
def test_bad_weights_are_refused(weights: np.ndarray, code: str) -> None:
    with pytest.raises(InputError) as raised:
        Objective(blobs(10), target_weights=weights)
    assert raised.value.code == code
    with pytest.raises(InputError) as raised:
        partial_transport(np.ones((2, 10)), column_weights=weights)
    assert raised.value.code == code
    with pytest.raises(InputError) as raised:
        exact_partial_transport(np.ones((2, 10)), column_weights=weights)
    assert raised.value.code == code


def test_bad_weights_are_named() -> None:
    with pytest.raises(InputError, match=r"\[3\]"):
        as_weights(np.array([1.0, 0.0, 2.0, -1.0]), 4, "weights")


def test_extreme_weights_are_finite() -> None:
    for weights in ([1e-300, 1.0, 1e300], [5e-324, 1.0, 1.0], [1.0, 1e-17, 1e-17]):
        objective = Objective(blobs(3), target_weights=weights)
        assert np.isfinite(objective.value([0, 1]))
