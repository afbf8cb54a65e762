"""The search in cells, against the search of the whole and the exact transport."""

import functools

import numpy as np
import pytest
import torch

from gadc import InputError, Objective, exact_partial_transport
from gadc.objective.threads import Threads
from gadc.objective.window import Others, Window
from gadc.search import Candidates, overlap_sum, search, search_partitioned
from gadc.search import landscape as landscapes
from gadc.search.cells import divide
from gadc.search.landscape import Chosen, Landscape
from gadc.search.scattered import divided
from gadc.search.spread_order import spread_order
from gadc.search.whole import Terms, Whole

THREADS = Threads(torch.device("cpu"))


def blobs(n: int = 300, d: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, d)) * 2
    return (centres[rng.integers(0, 5, n)] + rng.normal(size=(n, d))).astype(np.float32)


def chosen_of(whole: Whole, images: np.ndarray) -> Chosen:
    return Chosen(images, whole.read(images), np.full(len(images), whole.scale / 4))


def terms_of(whole: Whole, capacity: float = 1.05) -> Terms:
    return Terms(capacity, 0.025 * whole.scale, 1.0, 1.0, 0.0)


@functools.cache
def searched_as_a_whole() -> tuple[Objective, float]:
    """Return the objective of 900 images, and its value for the 15 that the whole search finds."""
    objective = Objective(blobs(900))
    return objective, search(objective, 15, patience=0).objective


# The objective.


@pytest.mark.parametrize("n_per_cell", [75, 150])
def test_search_in_cells_is_within_three_per_cent_of_the_search_of_the_whole(
    n_per_cell: int,
) -> None:
    objective, whole = searched_as_a_whole()
    found = search_partitioned(blobs(900), 15, n_per_cell=n_per_cell)
    assert found.n_cells >= 900 // (1.6 * n_per_cell)
    ratio = objective.value(found.result.order) / whole
    print(f"{n_per_cell} in a cell: {ratio:.4f}")  # noqa: T201
    assert ratio <= 1.03


@pytest.mark.parametrize("capacity", [1.0, 1.05, 1.5])
def test_weights_and_losses_count_as_in_the_objective(capacity: float) -> None:
    features = blobs(300)
    rng = np.random.default_rng(1)
    weights, losses = rng.exponential(size=300), rng.exponential(size=300)
    settings = {"capacity": capacity, "target_weights": weights}
    objective = Objective(features, confidence_loss=losses, **settings)
    found = search_partitioned(features, 9, confidence_loss=losses, n_per_cell=80, **settings)
    terms = objective.terms(found.result.order)
    assert found.scale == pytest.approx(objective.scale, rel=1e-5)
    for name in ("mean", "std", "confidence"):
        assert found.result.terms[name] == pytest.approx(terms[name], rel=1e-4), name
    # 1e-3: potentials are found to a row error of 1e-4, and float32 shares.
    assert found.result.terms["transport"] == pytest.approx(terms["transport"], rel=1e-3)
    assert found.result.objective == pytest.approx(terms["total"], rel=1e-3)
    assert terms["total"] <= 1.05 * search(objective, 9, patience=0).objective


def test_every_part_of_the_subset_is_worth_its_place() -> None:
    # Rounds only ever keep what is better than what was before.
    found = search_partitioned(blobs(600), 12, n_per_cell=100)
    assert found.result.terms["total"] <= min(found.values) * (1 + 1e-3)
    assert found.result.start == "partition"
    assert not found.result.is_swap_optimal
    assert len(set(found.result.order.tolist())) == 12


def test_many_images_in_a_cell_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gadc.search.neighbourhood.MOST_IN_CELL", 60)
    monkeypatch.setattr("gadc.search.neighbourhood.MOST_IN_RING", 40)
    monkeypatch.setattr("gadc.search.scattered.MOST_IMAGES", 60)
    features = blobs(900)
    objective = Objective(features)
    found = search_partitioned(features, 10, n_per_cell=300)
    assert objective.value(found.result.order) <= 1.1 * search(objective, 10, patience=0).objective


# What is certified.


@pytest.mark.parametrize("n_near", [4, 192])
@pytest.mark.parametrize("capacity", [1.0, 1.05, 2.0])
def test_bounds_enclose_the_exact_transport(
    monkeypatch: pytest.MonkeyPatch, capacity: float, n_near: int
) -> None:
    monkeypatch.setattr(landscapes, "N_NEAR", n_near)
    features, weights = blobs(200), np.random.default_rng(1).exponential(size=200)
    found = search_partitioned(
        features, 8, capacity=capacity, target_weights=weights, n_per_cell=50, max_rounds=1
    )
    chosen = features[found.result.order].astype(np.float64)
    cost = ((chosen[:, None] - features[None]) ** 2).sum(2)
    exact = exact_partial_transport(cost, capacity=capacity, column_weights=weights)
    terms = found.result.terms
    assert terms["transport_lower_bound"] <= exact.transport_cost * (1 + 1e-6)
    assert terms["transport"] >= exact.transport_cost * (1 - 1e-5)  # float32 plans
    if n_near == 192:
        assert terms["transport_lower_bound"] >= 0.8 * exact.transport_cost
        assert terms["transport"] <= 1.3 * exact.transport_cost


@pytest.mark.parametrize("capacity", [1.0, 1.05])
def test_landscape_has_the_potentials_of_the_whole_problem(capacity: float) -> None:
    features = blobs(300)
    objective = Objective(features, capacity=capacity)
    whole = Whole(features)
    images = np.arange(0, 300, 30)
    cells = divide(whole, 50, np.random.default_rng(0), THREADS)
    chosen = chosen_of(whole, images)
    sweep = Landscape(whole, cells, terms_of(whole, capacity), THREADS).solve(chosen)
    costs = objective.cost[images].double()[None]
    potentials = objective.problem.solve(costs).potentials[0, :10].numpy()
    found = chosen.potentials - (0.0 if capacity > 1 else chosen.potentials.mean())
    np.testing.assert_allclose(found, potentials, atol=2e-3 * objective.scale)
    assert sweep.error <= landscapes.TOL
    assert sweep.costs.sum() == pytest.approx(objective.terms(images)["transport"], rel=1e-3)


# Windows.


def window_of(features: np.ndarray, n_chosen: int, n_here: int, others: Others) -> Window:
    """A window that holds every image, its columns as the whole problem has them."""
    n = len(features)
    whole = Whole(features)
    return Window(
        torch.from_numpy(features),
        torch.full((n,), 1.05 / n, dtype=torch.float64),
        torch.zeros(n, dtype=torch.float64),
        epsilon=0.025 * whole.scale,
        n_here=n_here,
        others=others,
        losses=torch.zeros(n, dtype=torch.float64),
        scale=whole.scale,
    )


def others_of(features: np.ndarray, images: list[int], n_chosen: int) -> Others:
    held = torch.from_numpy(features[images]).double()
    every = torch.from_numpy(features).double()
    return Others(
        n_chosen, held.sum(0), held.square().sum(0), every.mean(0), every.std(0), 1.0, 1.0, 0.0
    )


def test_window_without_others_is_the_objective() -> None:
    features = blobs(120)
    objective = Objective(features)
    window = window_of(features, 5, 5, others_of(features, [], 5))
    for subset in ([0, 9, 30, 70, 111], [3, 8, 21, 60, 90]):
        assert window.value(subset) == pytest.approx(objective.value(subset), rel=1e-5)
    base, pool = [0, 9, 30, 70], np.arange(71, 120)
    best = window.best_addition(base, pool, below=np.inf)
    assert best.index == objective.best_addition(base, pool).index
    assert best.value == pytest.approx(window.value([*base, best.index]), rel=1e-7)


def test_window_counts_the_moments_of_the_others() -> None:
    features = blobs(120)
    elsewhere, here = [100, 103, 108, 115], [0, 9, 30]
    # Only the moments differ between these two objectives of all seven images.
    pair = [
        Objective(features, mean_weight=weight, std_weight=weight).value([*here, *elsewhere])
        for weight in (0.0, 1.0)
    ]
    others = others_of(features, elsewhere, 7)
    window = window_of(features, 7, 3, others)
    rest, _ = window._rest_with(torch.tensor(here[:2]), torch.tensor(here[2:]), False)
    assert float(rest) * 3 / 7 == pytest.approx(pair[1] - pair[0], rel=1e-5)
    fast, error = window._rest_with(torch.tensor(here[:2]), torch.arange(40, 90), True)
    exact, _ = window._rest_with(torch.tensor(here[:2]), torch.arange(40, 90), False)
    assert bool(((fast - exact).abs() <= error).all())


# Parts.


def test_cells_hold_every_image_once() -> None:
    whole = Whole(blobs(1000))
    cells = divide(whole, 40, np.random.default_rng(0), THREADS)
    assert sorted(np.concatenate(cells).tolist()) == list(range(1000))
    assert max(len(rows) for rows in cells) <= 64


def test_cells_of_images_all_alike() -> None:
    cells = divide(Whole(np.ones((500, 3))), 40, np.random.default_rng(0), THREADS)
    assert sorted(np.concatenate(cells).tolist()) == list(range(500))
    assert max(len(rows) for rows in cells) <= 64


@pytest.mark.parametrize("seed", range(20))
def test_divided_keeps_its_bounds_and_its_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    least = rng.integers(0, 3, 12)
    most = least + rng.integers(0, 9, 12)
    total = int(rng.integers(least.sum(), most.sum() + 1))
    counts = divided(total, rng.random(12) * (rng.random(12) > 0.3), least, most)
    assert counts.sum() == total
    assert ((least <= counts) & (counts <= most)).all()


def test_order_is_that_of_greedy_medoids() -> None:
    features = torch.from_numpy(blobs(40))
    order, gains = spread_order(features, 3.0)
    cost = torch.cdist(features, features).square().numpy()
    nearest, chosen = np.full(40, np.inf), []
    for _ in range(40):
        totals = [np.minimum(nearest, row).sum() for row in cost]
        best = min((j for j in range(40) if j not in chosen), key=totals.__getitem__)
        chosen.append(best)
        nearest = np.minimum(nearest, cost[best])
    assert order.tolist() == chosen
    assert gains.sum() == pytest.approx(-3.0)
    assert (gains[1:] >= 0).all()


# What it must not depend on, and what it must obey.


def test_result_does_not_depend_on_threads_or_storage(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gadc.search.whole.LARGE_PAGE_BYTES", 4096)
    features = blobs(400)
    path = f"{tmp_path}/features.npy"
    np.save(path, features)
    n_released = []
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = search_partitioned(features, 12, n_per_cell=60)
        torch.set_num_threads(4)
        mapped = search_partitioned(
            np.load(path, mmap_mode="r"),
            12,
            n_per_cell=60,
            release=lambda: n_released.append(1),
        )
    finally:
        torch.set_num_threads(n_threads)
    assert mapped.result.order.tolist() == alone.result.order.tolist()
    assert mapped.result.terms == alone.result.terms
    assert mapped.values == alone.values
    assert n_released


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_scaling_and_shifting_do_not_change_the_selection(factor: float) -> None:
    features = blobs(300)
    plain = search_partitioned(features, 8, n_per_cell=60).result.order.tolist()
    moved = search_partitioned((features + 3.0) * factor, 8, n_per_cell=60).result.order.tolist()
    assert set(moved) == set(plain)


def test_keep_and_exclude_are_obeyed() -> None:
    features = blobs(400)
    free = search_partitioned(features, 8, n_per_cell=60).result.order.tolist()
    candidates = Candidates(400, keep=[5, 77], exclude=free[:3])
    found = search_partitioned(features, 8, n_per_cell=60, candidates=candidates).result.order
    assert {5, 77} <= set(found.tolist())
    assert not set(free[:3]) & set(found.tolist())


@pytest.mark.parametrize("n_selected", [1, 2, 59, 60])
@pytest.mark.parametrize("capacity", [1.0, 1.05])
def test_any_number_may_be_selected(n_selected: int, capacity: float) -> None:
    features = blobs(60)
    found = search_partitioned(features, n_selected, capacity=capacity, n_per_cell=20).result
    assert len(set(found.order.tolist())) == n_selected
    expected = Objective(features, capacity=capacity).value(found.order)
    # 1e-3 of the scale: where all are chosen nothing is left but rounding.
    scale = Objective(features).scale
    assert found.objective == pytest.approx(expected, rel=2e-3, abs=1e-3 * scale)


def test_single_image_and_images_all_alike() -> None:
    assert search_partitioned(np.ones((1, 4)), 1).result.order.tolist() == [0]
    found = search_partitioned(np.ones((200, 3)), 5, n_per_cell=30).result
    assert len(set(found.order.tolist())) == 5
    assert found.objective == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"features": np.full((40, 3), 1e30) * np.arange(40)[:, None]}, "features_too_large"),
        ({"features": np.zeros((0, 3))}, "features_shape"),
        ({"features": np.zeros(3)}, "features_shape"),
        ({"features": np.array([[0.0], [np.nan]])}, "features_not_finite"),
        ({"n_selected": 0}, "n_selected_range"),
        ({"n_selected": 41}, "n_selected_range"),
        ({"candidates": Candidates(7)}, "candidates_length"),
        ({"target_weights": np.ones(3)}, "weights_length"),
        ({"target_weights": -np.ones(40)}, "weights_range"),
        ({"confidence_loss": np.ones(3)}, "confidence_shape"),
        ({"confidence_weight": 1.0}, "confidence_missing"),
        ({"capacity": 0.9}, "capacity_range"),
        ({"epsilon": 0.0}, "epsilon_range"),
        ({"units": "metres"}, "units"),
        ({"max_rounds": -1}, "search_limits"),
        ({"n_per_cell": 0}, "search_limits"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, object], code: str) -> None:
    with pytest.raises(InputError) as raised:
        search_partitioned(**({"features": blobs(40), "n_selected": 4} | arguments))
    assert raised.value.code == code


@pytest.mark.parametrize("outlier", [1e4, 1e8])
@pytest.mark.parametrize("capacity", [1.0, 1.05])
def test_one_outlier_does_no_harm_to_the_others(outlier: float, capacity: float) -> None:
    features = blobs(300)
    features[17] = outlier
    settings = {"capacity": capacity, "mean_weight": 0.0, "std_weight": 0.0}
    found = search_partitioned(features, 8, n_per_cell=60, **settings).result
    assert np.isfinite(found.objective)
    others = found.order[found.order != 17]
    near = np.delete(features, 17, axis=0)
    covered = ((near[:, None] - features[others]) ** 2).sum(2).min(1).mean()
    typical = ((near[:, None] - near[None, :8]) ** 2).sum(2).min(1).mean()
    assert covered < typical


def test_a_row_that_is_not_finite_is_named() -> None:
    features = blobs(50)
    features[[3, 41]] = np.inf
    with pytest.raises(InputError, match=r"\[3, 41\]"):
        search_partitioned(features, 4)


def test_transport_between_clusters_far_apart_converges() -> None:
    # Mass has to flow between clusters at a cost of hundreds of epsilon: from where the search is,
    # Newton's steps don't get there, and from a higher temperature they do.
    draw = np.random.default_rng(0)
    centres = 100.0 * draw.normal(size=(8, 2))
    sizes = (1.0 / np.arange(1, 9)) ** 2
    labels = draw.choice(8, 1500, p=sizes / sizes.sum())
    features = (centres[labels] + draw.normal(size=(1500, 2))).astype(np.float32)

    found = search_partitioned(features, 30, epsilon=0.005).result

    assert found.terms["transport_row_error"] <= landscapes.TOL
    exact = Objective(features, epsilon=0.005).terms(found.order)
    assert found.terms["total"] == pytest.approx(exact["total"], rel=2e-3)


@pytest.mark.parametrize("n_near", [6, 12])
def test_a_chosen_image_that_is_near_nothing_finds_its_mass(
    monkeypatch: pytest.MonkeyPatch, n_near: int
) -> None:
    # Half of the chosen images lie in a cluster with a tenth of the mass: most of them have to be
    # served from cells where others are nearer, and more of those as potentials rise.
    monkeypatch.setattr(landscapes, "N_NEAR", n_near)
    draw = np.random.default_rng(0)
    centres = 4.0 * draw.normal(size=(10, 4))
    labels = np.arange(1200) % 10
    features = (centres[labels] + draw.normal(size=(1200, 4))).astype(np.float32)
    whole = Whole(features)
    images = np.concatenate([np.flatnonzero(labels == 0)[:15], np.flatnonzero(labels)[:15]])
    cells = divide(whole, 60, np.random.default_rng(0), THREADS)
    chosen = chosen_of(whole, images)
    sweep = Landscape(whole, cells, terms_of(whole), THREADS).solve(chosen)
    assert sweep.error <= landscapes.TOL


@pytest.mark.parametrize("most_dense", [0, 100])
def test_sums_of_overlaps_are_those_of_matrices(
    monkeypatch: pytest.MonkeyPatch, most_dense: int
) -> None:
    monkeypatch.setattr(overlap_sum, "MOST_DENSE", most_dense)
    draw = np.random.default_rng(0)
    expected, found = np.zeros((9, 9)), overlap_sum.OverlapSum(9)
    for _ in range(3):
        near = [np.sort(draw.choice(9, 4, replace=False)) for _ in range(5)]
        parts = [draw.random((4, 4), np.float32) * draw.integers(0, 2, (4, 4)) for _ in near]
        found.add(near, [part.astype(np.float32) for part in parts])
        for places, part in zip(near, parts, strict=True):
            expected[np.ix_(places, places)] += part
    np.testing.assert_allclose(found.total().toarray(), expected, rtol=1e-6)
