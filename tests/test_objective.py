import numpy as np
import pytest
import torch

from gadc import InputError, Objective, exact_partial_transport
from gadc.objective.cost import LEAST_MIRRORED_FEATURES, cost_scale, squared_distances
from golden import N_CASES, golden
from real_data import needs_real_data
from slow_search import slow_best_addition


def blobs(n: int = 60, d: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(4, d))[rng.integers(0, 4, n)] * 3 + rng.normal(size=(n, d))


@needs_real_data
@pytest.mark.parametrize("case", range(N_CASES))
def test_golden_terms(case: int) -> None:
    problem = golden(case)
    terms = problem.objective().terms(problem.numbers["subset"])
    assert terms["mean"] == pytest.approx(problem.numbers["mean_gap_sq"], rel=1e-5)
    assert terms["std"] == pytest.approx(problem.numbers["std_gap_sq"], rel=1e-5)
    assert terms["confidence"] == pytest.approx(problem.numbers["confidence"], rel=1e-5)
    # Case 6: see test_golden_converged.
    tolerance = 1e-4 if case == 6 else 1e-5
    assert terms["transport"] == pytest.approx(problem.numbers["ot_converged"], rel=tolerance)
    assert terms["transport_lower_bound"] <= problem.numbers["ot_exact_lp"] * (1 + 1e-6)


@pytest.mark.parametrize("d", [LEAST_MIRRORED_FEATURES, LEAST_MIRRORED_FEATURES - 1])
@pytest.mark.parametrize("n", [1, 3, 8, 61])
def test_distances_among_the_same_images(n: int, d: int) -> None:
    images = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    plain = torch.cdist(images.double(), images.double()).square()
    distances = squared_distances(images, images)
    assert torch.allclose(distances.double(), plain, atol=1e-3)
    assert torch.allclose(distances, distances.T, atol=1e-3)
    assert torch.allclose(distances, squared_distances(images, images.clone()), atol=1e-3)


def test_value_by_hand() -> None:
    # Targets 0, 2 on a line, both chosen, balanced: nothing moves and the moments agree.
    objective = Objective(np.array([[0.0], [2.0]]), capacity=1.0, epsilon=1e-3)
    terms = objective.terms([0, 1])
    assert terms["transport"] == pytest.approx(0.0, abs=1e-9)
    assert (terms["mean"], terms["std"]) == (0.0, 0.0)
    # One of them: half the mass crosses a distance of 2; mean off by 1; sigma 0 against sqrt(2).
    terms = objective.terms([0])
    assert terms["transport"] == pytest.approx(2.0)
    assert terms["mean"] == pytest.approx(1.0)
    assert terms["std"] == pytest.approx(2.0)
    assert terms["total"] == pytest.approx(5.0)


def test_relative_units_scale_with_the_median_cost() -> None:
    features = blobs()
    losses = np.linspace(0, 1, len(features))
    relative = Objective(features, confidence_loss=losses, epsilon=0.1, confidence_weight=0.2)
    absolute = Objective(
        features,
        confidence_loss=losses,
        epsilon=0.1 * relative.scale,
        confidence_weight=0.2 * relative.scale,
        units="absolute",
    )
    assert relative.value([1, 5, 9]) == pytest.approx(absolute.value([1, 5, 9]), rel=1e-12)


def test_target_gives_rectangular_costs() -> None:
    pool, target = blobs(40), blobs(25, seed=1)
    objective = Objective(pool, target, mean_weight=1.0, std_weight=0.5)
    terms = objective.terms([3, 4, 11])
    chosen = pool[[3, 4, 11]]
    cost = ((chosen[:, None] - target[None]) ** 2).sum(2)
    exact = exact_partial_transport(cost).transport_cost
    assert terms["transport_lower_bound"] <= exact * (1 + 1e-6) <= terms["transport"] * (1 + 2e-6)
    assert terms["mean"] == pytest.approx(((chosen.mean(0) - target.mean(0)) ** 2).sum(), rel=1e-5)
    expected = ((chosen.std(0, ddof=1) - target.std(0, ddof=1)) ** 2).sum()
    assert terms["std"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("capacity", [1.0, 1.05, 3.0])
@pytest.mark.parametrize("epsilon", [0.3, 0.025, 1e-4])
@pytest.mark.parametrize("base", [[], [7], [3, 20, 41], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_best_addition_equals_solving_every_candidate(
    capacity: float, epsilon: float, base: list[int]
) -> None:
    features = blobs()
    losses = np.random.default_rng(1).exponential(size=len(features))
    objective = Objective(features, confidence_loss=losses, capacity=capacity, epsilon=epsilon)
    index, value = slow_best_addition(objective, base)
    pool = np.setdiff1d(np.arange(len(features)), base)
    best = objective.best_addition(base, pool)
    assert best.index == index
    assert best.value == pytest.approx(value, rel=1e-7)
    assert best.n_solved + best.n_pruned == len(pool)
    # Below its own value nothing is found; just above it, it is.
    assert objective.best_addition(base, pool, below=value * (1 - 1e-6)).index is None
    assert objective.best_addition(base, pool, below=value * (1 + 1e-6)).index == index


def test_equal_candidates_resolve_to_the_lowest_index() -> None:
    features = np.repeat(blobs(12), 3, axis=0)
    objective = Objective(features)
    assert objective.best_addition([], np.arange(36)).index % 3 == 0


def test_identical_features_are_finite() -> None:
    objective = Objective(np.ones((20, 3)))
    assert objective.value([0, 1, 2]) == 0.0
    assert objective.best_addition([4], np.array([5, 6])).index == 5


def test_outlier_leaves_the_others_their_digits() -> None:
    features = blobs(50)
    features[17] = 1e9
    near = np.delete(np.arange(50), 17)[:3]
    plain = ((features[near][:, None] - features[near][None]) ** 2).sum(2)
    cost = Objective(features).cost[near][:, near].numpy()
    np.testing.assert_allclose(cost, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.float64])
def test_any_number_type_and_layout_gives_the_same_value(dtype: torch.dtype) -> None:
    features = torch.randint(-8, 8, (30, 4), generator=torch.Generator().manual_seed(0))
    expected = Objective(features.float()).value([1, 2, 3])
    assert Objective(features.to(dtype)).value([1, 2, 3]) == pytest.approx(expected, rel=1e-12)
    fortran = np.asfortranarray(features.numpy().astype(np.float32))
    assert Objective(fortran).value([1, 2, 3]) == pytest.approx(expected, rel=1e-12)
    flipped = features.numpy().astype(np.float32)[::-1]
    assert Objective(flipped).value([28, 27, 26]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"features": np.zeros((0, 3))}, "features_shape"),
        ({"features": np.zeros(3)}, "features_shape"),
        ({"features": np.array([[0.0], [np.nan]])}, "features_not_finite"),
        ({"target": np.zeros((4, 2))}, "target_width"),
        ({"capacity": 0.5}, "capacity_range"),
        ({"epsilon": -1.0}, "epsilon_range"),
        ({"mean_weight": -1.0}, "weight_range"),
        ({"std_weight": np.inf}, "weight_range"),
        ({"units": "metres"}, "units"),
        ({"confidence_weight": 0.5}, "confidence_missing"),
        ({"confidence_loss": np.zeros(3)}, "confidence_shape"),
        ({"features": np.full((5, 3), 1e30) * np.arange(5)[:, None]}, "features_too_large"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, object], code: str) -> None:
    with pytest.raises(InputError) as raised:
        Objective(**({"features": blobs(10)} | arguments))
    assert raised.value.code == code


def test_non_finite_rows_are_named() -> None:
    features = blobs(20)
    features[[3, 11]] = np.inf
    with pytest.raises(InputError, match=r"\[3, 11\]"):
        Objective(features)


@pytest.mark.parametrize(
    ("indices", "code"),
    [
        ([], "subset_shape"),
        ([0, 0], "index_repeated"),
        ([-1], "index_range"),
        ([10], "index_range"),
        ([0.5], "subset_shape"),
    ],
)
def test_bad_subsets_are_refused(indices: list[int], code: str) -> None:
    with pytest.raises(InputError) as raised:
        Objective(blobs(10)).value(indices)
    assert raised.value.code == code


@pytest.mark.parametrize("n_images", [5, 20, 30, 60])
@pytest.mark.parametrize("outlier", [1e4, 1e6, 1e12])
def test_one_outlier_leaves_the_other_distances_right(n_images: int, outlier: float) -> None:
    features = np.random.default_rng(0).normal(size=(n_images, 8))
    features[0] = outlier
    others = features[1:]
    expected = ((others[:, None] - others[None]) ** 2).sum(2)
    objective = Objective(features)
    np.testing.assert_allclose(objective.cost[1:, 1:].numpy(), expected, rtol=1e-3, atol=1e-5)
    assert np.isfinite(objective.value([0, 1, 2]))


@pytest.mark.parametrize("distance", [1e3, 1e5])
def test_two_distant_groups_leave_the_distances_within_them_right(distance: float) -> None:
    features = np.random.default_rng(0).normal(size=(100, 8))
    features[:30] += distance
    within = features[30:]
    expected = ((within[:, None] - within[None]) ** 2).sum(2)
    cost = Objective(features).cost[30:, 30:].numpy()
    np.testing.assert_allclose(cost, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 1500])
def test_scale_is_the_lower_median_of_the_costs_between_different_images(n: int) -> None:
    rng = np.random.default_rng(n)
    for features in (
        rng.normal(size=(n, 3)),
        rng.integers(0, 2, size=(n, 2)).astype(float),  # few different costs, many ties
        np.sort(rng.exponential(size=(n, 1)) ** 4, axis=0),
    ):
        cost = torch.cdist(torch.from_numpy(features), torch.from_numpy(features)).square().float()
        between = np.sort(cost.numpy()[~np.eye(n, dtype=bool)])
        expected = between[(len(between) - 1) // 2] if len(between) else 1.0
        if expected > 0.0:
            assert cost_scale(cost, is_square=True) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n_features", [1, 2, 8])
def test_screened_moments_are_within_their_error_beside_near_copies(n_features: int) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        images = random.normal(size=(60, n_features))
        distances = 10.0 ** random.uniform(-6.0, 0.0, (29, 1))
        images[1:30] = images[0] + distances * random.normal(size=(29, n_features))
        objective = Objective(images.astype(np.float32))
        for base in (torch.tensor([0]), torch.tensor([2, 5]), torch.tensor([0, 1, 2])):
            pool = torch.arange(6, 60)
            fast, error = objective._rest_with(base, pool, True)
            exact, _ = objective._rest_with(base, pool, False)
            assert bool(((fast - exact).abs() <= error).all())
            subset = [*base.tolist(), 7]
            assert float(exact[1] + objective.terms(subset)["transport"]) == pytest.approx(
                objective.value(subset), rel=1e-9
            )


def test_screened_moments_are_within_their_error_beside_far_images() -> None:
    for seed in range(300):
        random = np.random.default_rng(seed)
        n = int(random.integers(10, 60))
        images = random.normal(size=(n, 1 + seed % 3))
        images[: max(1, n // 5)] += 10.0 ** random.uniform(3.0, 6.0)
        objective = Objective(images)
        for _ in range(6):
            m = int(random.integers(1, n - 1))
            order = torch.from_numpy(random.permutation(n))
            fast, error = objective._rest_with(order[:m], order[m:], True)
            exact, _ = objective._rest_with(order[:m], order[m:], False)
            assert bool(((fast - exact).abs() <= error).all())
