"""Every peer by hand, against its definition or a reference package, and its invariances."""

import itertools
import logging
import warnings
from typing import Any

import numpy as np
import pytest

from gadc.baselines import METHODS, Pool, margin_difficulty
from gadc.baselines.costs import class_cost
from gadc.baselines.dataset_quantization import graph_cut_bins
from gadc.baselines.difficulty_interval import PUBLISHED_INTERVALS
from gadc.baselines.inner_products import InnerProducts
from gadc.baselines.moments_confidence import _Objective, moments_confidence
from gadc.errors import InputError
from gadc.objective import Objective
from gadc.search import Candidates
from gadc.search.medoids import medoids

DETERMINISTIC = [name for name, method in METHODS.items() if not method.is_random]
RANDOM = [name for name, method in METHODS.items() if method.is_random]


def pool_of(n: int = 40, d: int = 5, seed: int = 0) -> Pool:
    numbers = np.random.default_rng(seed)
    return Pool(
        numbers.normal(size=(n, d)).astype(np.float32),
        confidence_loss=numbers.exponential(size=n),
        difficulty=numbers.normal(size=n),
        difficulty_source="made by hand",
    )


def line(*points: float, **attributes: Any) -> Pool:
    """Return images with one feature each."""
    return Pool(np.array(points, dtype=np.float32)[:, None], **attributes)


def selected(name: str, pool: Pool, n_selected: int, seed: int = 0, **options: Any) -> list[int]:
    found = METHODS[name].select(pool, n_selected, generator=np.random.default_rng(seed), **options)
    assert found.dtype == np.int64
    return found.tolist()


def test_methods_stand_in_the_order_of_tables() -> None:
    assert " ".join(METHODS) == (
        "random k-center herding herding-deepcore ccs dq d2c k-medoids facility-location "
        "moderate confidence moments-confidence"
    )
    assert all(METHODS[name].name == name for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n_selected", [1, 7, 40])
def test_selection_names_each_image_once(name: str, n_selected: int) -> None:
    found = selected(name, pool_of(), n_selected)
    assert len(found) == len(set(found)) == n_selected
    assert set(found) <= set(range(40))


@pytest.mark.parametrize("name", METHODS)
def test_only_what_is_needed_is_used(name: str) -> None:
    full, needs = pool_of(), METHODS[name].needs
    optional = {"confidence_loss", "difficulty"} if name != "moments-confidence" else set()
    bare = Pool(full.features, **{need: getattr(full, need) for need in needs})
    if optional:
        assert selected(name, bare, 6) == selected(name, full, 6)
    for need in needs:
        with pytest.raises(InputError) as raised:
            selected(name, Pool(full.features), 6)
        assert (
            raised.value.code
            == {
                "difficulty": "difficulty_missing",
                "confidence_loss": "confidence_missing",
            }[need]
        )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n_selected", [0, 41])
def test_size_out_of_range_is_refused(name: str, n_selected: int) -> None:
    with pytest.raises(InputError, match=f"n_selected={n_selected} must lie between 1 and 40"):
        selected(name, pool_of(), n_selected)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_methods_do_not_depend_on_the_order_of_rows(name: str) -> None:
    pool = pool_of()
    order = np.random.default_rng(1).permutation(40)
    shuffled = Pool(
        pool.features[order],
        confidence_loss=pool.confidence_loss[order],
        difficulty=pool.difficulty[order],
    )
    # So few that no two gains of facility location are equal: there the first row is taken.
    assert order[selected(name, shuffled, 5)].tolist() == selected(name, pool, 5)
    assert selected(name, pool, 5, seed=1) == selected(name, pool, 5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_does_not_matter(name: str, scale: float) -> None:
    pool = pool_of()
    scaled = Pool(
        pool.features * np.float32(scale),
        confidence_loss=pool.confidence_loss,
        difficulty=pool.difficulty,
    )
    assert selected(name, scaled, 8) == selected(name, pool, 8)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"dq"}))
def test_position_does_not_matter(name: str) -> None:
    # Whole numbers: shifted, they are exact. DQ's cosines do see where zero is.
    pool = pool_of()
    whole = np.round(pool.features * 100.0)
    others = {"confidence_loss": pool.confidence_loss, "difficulty": pool.difficulty}
    assert selected(name, Pool(whole + np.float32(4096.0), **others), 8) == selected(
        name, Pool(whole, **others), 8
    )


@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_follow_their_generator(name: str) -> None:
    found = [selected(name, pool_of(), 8, seed=seed) for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("name", METHODS)
def test_equal_images_are_selected_without_fuss(name: str) -> None:
    pool = Pool(
        np.ones((6, 2), dtype=np.float32), confidence_loss=np.ones(6), difficulty=np.ones(6)
    )
    assert len(set(selected(name, pool, 4))) == 4


def test_random_draws_every_image_equally_often() -> None:
    counts = np.zeros(10)
    for seed in range(1000):
        counts[selected("random", pool_of(10), 3, seed=seed)] += 1
    # 300 expected of each, standard deviation 14.5.
    assert np.abs(counts - 300).max() < 5 * 14.5


def test_random_subsets_of_one_generator_are_nested() -> None:
    assert selected("random", pool_of(), 9)[:4] == selected("random", pool_of(), 4)


def test_k_center_takes_the_farthest_by_hand() -> None:
    pool = line(0.0, 1.0, 10.0, 4.0)
    by_start = {}
    for seed in range(40):
        order = selected("k-center", pool, 4, seed=seed)
        by_start[order[0]] = order
    assert by_start == {0: [0, 2, 3, 1], 1: [1, 2, 3, 0], 2: [2, 0, 3, 1], 3: [3, 2, 0, 1]}


@pytest.mark.parametrize("seed", range(5))
def test_k_center_is_within_twice_the_least_radius(seed: int) -> None:
    pool = pool_of(12, 2, seed)
    rows = pool.features.astype(np.float64)
    distances = np.linalg.norm(rows[:, None] - rows, axis=2)
    radius = distances[selected("k-center", pool, 3, seed=seed)].min(0).max()
    least = min(distances[list(rows)].min(0).max() for rows in itertools.combinations(range(12), 3))
    assert radius <= 2.0 * least


def test_herding_brings_the_mean_near_by_hand() -> None:
    # mu = 3: |3 - x| is least for 2; |6 - 2 - x| for 1; |9 - 3 - x| for 9.
    assert selected("herding", line(0.0, 1.0, 2.0, 9.0), 3) == [2, 1, 3]


def test_herding_of_deepcore_takes_the_mean_away_by_hand() -> None:
    # |3 - x| is greatest for 9; |6 - 9 - x| for 2; |9 - 11 - x| for 1.
    assert selected("herding-deepcore", line(0.0, 1.0, 2.0, 9.0), 3) == [3, 2, 1]


@pytest.mark.parametrize(
    ("name", "pick"), [("herding", np.argmin), ("herding-deepcore", np.argmax)]
)
def test_herding_is_its_definition(name: str, pick: Any) -> None:
    pool = pool_of()
    rows = pool.features.astype(np.float64)
    chosen: list[int] = []
    for step in range(12):
        left = np.setdiff1d(np.arange(40), chosen)
        goal = (step + 1) * rows.mean(0) - rows[chosen].sum(0)
        chosen.append(int(left[pick(np.linalg.norm(goal - rows[left], axis=1))]))
    assert selected(name, pool, 12) == chosen


# Two hardest apart, the others in [0, 1]: five below the middle, three above.
HARD = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0, 0.9, 60.0, 50.0])


def test_ccs_drops_the_hardest_and_draws_evenly_by_hand() -> None:
    pool = line(*range(10), difficulty=HARD)
    for seed in range(20):
        found = selected("ccs", pool, 6, seed=seed, hard_cutoff=0.2, n_strata=2)
        assert set(found[:3]) == {5, 6, 7}  # the smaller stratum, all of it: 6 // 2
        assert len(set(found[3:])) == 3
        assert set(found[3:]) < {0, 1, 2, 3, 4}


def test_ccs_keeps_enough_of_the_hardest_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    pool = line(*range(10), difficulty=HARD)
    with caplog.at_level(logging.WARNING):
        found = selected("ccs", pool, 9, hard_cutoff=0.2)
    assert set(found) == set(range(10)) - {8}
    assert "only the 1 hardest are dropped" in caplog.text


def test_ccs_spends_a_small_budget_in_the_fullest_strata() -> None:
    difficulty = np.concatenate([np.linspace(0.0, 1.0, 11), np.full(5, 0.51)])
    for seed in range(20):
        (row,) = selected("ccs", line(*range(16), difficulty=difficulty), 1, seed=seed)
        assert row >= 11


@pytest.mark.parametrize("n_selected", range(1, 31))
def test_ccs_spends_its_budget_whatever_the_strata(n_selected: int) -> None:
    pool = pool_of(30)
    found = selected("ccs", pool, n_selected, hard_cutoff=0.0, n_strata=7)
    assert len(set(found)) == n_selected


@pytest.mark.parametrize("seed", range(3))
def test_dq_bins_are_their_definition(seed: int) -> None:
    features = pool_of(23, 4, seed).features
    rows = features.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = 0.5 + 0.5 * rows @ rows.T
    left, expected = list(range(23)), []
    for size in (6, 6, 6, 5):
        chosen: list[int] = []
        for _ in range(size):
            waiting = [x for x in left if x not in chosen]
            gains = [similarity[left, x].sum() - 2 * similarity[chosen, x].sum() for x in waiting]
            chosen.append(waiting[int(np.argmax(gains))])
        left = [x for x in left if x not in chosen]
        expected.append(chosen)
    assert [rows.tolist() for rows in graph_cut_bins(features, 4)] == expected


def test_dq_bins_by_hand() -> None:
    # At 0, 50, 90 and 150 degrees. Sums of similarities: 2.39, 3.12, 3.13, 2.23, so the third is
    # first; less twice its similarity: 1.39, 1.35, -, 0.73.
    angles = np.deg2rad([0.0, 50.0, 90.0, 150.0])
    bins = graph_cut_bins(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32), 2)
    assert bins[0].tolist() == [2, 0]
    assert set(bins[1].tolist()) == {1, 3}


@pytest.mark.parametrize(("n_selected", "least", "most"), [(10, 1, 1), (20, 2, 2), (7, 0, 1)])
def test_dq_draws_evenly_from_its_bins(n_selected: int, least: int, most: int) -> None:
    pool = pool_of()
    bins = graph_cut_bins(pool.features, 10)
    for seed in range(10):
        found = set(selected("dq", pool, n_selected, seed=seed))
        counts = [len(found & set(rows.tolist())) for rows in bins]
        assert least <= min(counts)
        assert max(counts) <= most


def test_d2c_takes_every_kth_from_the_easiest_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    pool = line(*range(6), difficulty=np.array([5.0, 1.0, 4.0, 2.0, 3.0, 0.0]))
    assert selected("d2c", pool, 2) == [5, 4]  # k = 6 // 2: ranks 0 and 3
    assert selected("d2c", pool, 2, interval=2) == [5, 3]
    assert selected("d2c", pool, 2, interval=5) == [5, 0]
    with caplog.at_level(logging.WARNING):
        assert selected("d2c", pool, 2, interval=6) == [5, 4]
    assert "interval=6 is too wide for 2 of 6 images: 3 is used" in caplog.text


def test_d2c_published_intervals_fit_imagenet() -> None:
    last_ranks = {m: (m - 1) * k for m, k in PUBLISHED_INTERVALS.items()}
    assert last_ranks == {10: 864, 50: 784, 100: 990}
    difficulty = np.arange(1300.0)
    for m, k in PUBLISHED_INTERVALS.items():
        found = selected("d2c", line(*range(1300), difficulty=difficulty), m, interval=k)
        assert found == list(range(0, m * k, k))


def test_k_medoids_are_the_middles_by_hand() -> None:
    assert sorted(selected("k-medoids", line(0.0, 1.0, 2.0, 10.0, 11.0, 12.0), 2)) == [1, 4]


def test_k_medoids_lazy_construction_is_that_of_the_search() -> None:
    pool = pool_of(200)
    cost = class_cost(pool.features)
    assert selected("k-medoids", pool, 12) == medoids(cost, 12, Candidates(200))


@pytest.mark.parametrize("seed", range(3))
def test_k_medoids_of_the_reference_package(seed: int) -> None:
    kmedoids = pytest.importorskip("kmedoids", reason="optional check: kmedoids is GPL")
    pool = pool_of(120, seed=seed)
    rows = pool.features.astype(np.float64)
    cost = np.square(rows[:, None] - rows).sum(2)
    # BUILD, then always the best exchange: the same medoids, not only as good ones.
    reference = kmedoids.pam(cost, 8, init="build")
    assert sorted(selected("k-medoids", pool, 8)) == sorted(reference.medoids.tolist())


def test_facility_location_by_hand() -> None:
    # Summed distances 42, 39, 38, 45, 112: 2 is first. Then 30 saves 28, 9 saves 14; then 9.
    assert selected("facility-location", line(0.0, 1.0, 2.0, 9.0, 30.0), 3) == [2, 4, 3]


def test_facility_location_lazy_is_plain_greedy() -> None:
    pool = pool_of(300)
    rows = pool.features.astype(np.float64)
    distances = np.linalg.norm(rows[:, None] - rows, axis=2)
    chosen: list[int] = []
    nearest = np.full(300, distances.max())
    for _ in range(40):
        gains = np.maximum(nearest - distances, 0.0).sum(1)
        gains[chosen] = 0.0
        chosen.append(int(np.flatnonzero(gains >= gains.max() * (1.0 - 1e-6))[0]))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    assert selected("facility-location", pool, 40) == chosen


@pytest.mark.filterwarnings("ignore")
def test_facility_location_of_the_reference_package() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apricot = pytest.importorskip("apricot", reason="pip install apricot-select")
    pool = pool_of(100)
    rows = pool.features.astype(np.float64)
    distances = np.linalg.norm(rows[:, None] - rows, axis=2)
    reference = apricot.FacilityLocationSelection(15, metric="precomputed", optimizer="lazy")
    reference.fit(distances.max() - distances)
    assert selected("facility-location", pool, 15) == reference.ranking.tolist()


@pytest.mark.parametrize("name", ["facility-location", "dq"])
def test_products_need_not_be_stored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = selected(name, pool_of(), 9)
    monkeypatch.setattr("gadc.baselines.inner_products.STORED_BYTES", 0)
    assert InnerProducts(pool_of().features)._stored is None
    assert selected(name, pool_of(), 9) == stored


def test_moderate_takes_the_median_distance_by_hand() -> None:
    # mean 4: distances 4, 3, 2, 1, 10, their median 3.
    assert selected("moderate", line(0.0, 1.0, 2.0, 3.0, 14.0), 5) == [1, 0, 2, 3, 4]


def test_confidence_takes_the_surest_by_hand() -> None:
    pool = line(*range(4), confidence_loss=np.array([0.5, 0.1, 0.9, 0.1]))
    assert selected("confidence", pool, 3) == [1, 3, 0]


def slow_moments_confidence(pool: Pool, n_selected: int) -> list[int]:
    """Every candidate and every exchange evaluated from scratch, in float64."""
    rows = pool.features.astype(np.float64)
    n = len(rows)
    unit = 0.03 * Objective(pool.features).scale

    def value(subset: list[int]) -> float:
        chosen = rows[subset]
        std = chosen.std(0, ddof=1) if len(subset) > 1 else np.zeros(rows.shape[1])
        gaps = np.square(chosen.mean(0) - rows.mean(0)) + np.square(std - rows.std(0, ddof=1))
        return float(gaps.sum() + unit * pool.confidence_loss[subset].mean())

    chosen: list[int] = []
    for _ in range(n_selected):
        left = [j for j in range(n) if j not in chosen]
        chosen.append(min(left, key=lambda j: value([*chosen, j])))
    while True:
        exchanges = [
            [*chosen[:place], j, *chosen[place + 1 :]]
            for place in range(n_selected)
            for j in range(n)
            if j not in chosen
        ]
        best = min(exchanges, key=value, default=chosen)
        if value(best) >= value(chosen) - 1e-6 * rows.var(0, ddof=1).sum():
            return chosen
        chosen = best


@pytest.mark.parametrize("n_selected", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_moments_confidence_is_its_definition(seed: int, n_selected: int) -> None:
    pool = pool_of(16, 3, seed)
    expected = slow_moments_confidence(pool, n_selected)
    assert selected("moments-confidence", pool, n_selected) == expected


@pytest.mark.parametrize("n_chosen", [1, 2, 6, 40])
def test_moments_confidence_bounds_are_below_the_values(n_chosen: int) -> None:
    pool = pool_of(60, 8)
    objective = _Objective(pool, mean_weight=0.7, std_weight=1.3, confidence_weight=0.2)
    places, images = np.divmod(np.arange(n_chosen * 60), 60)
    bases = objective.bases([*range(n_chosen)], np.arange(n_chosen)[:, None])
    values = objective.values(bases, places, images)
    margins = values - objective.bounds(bases).ravel()
    assert margins.min() > -1e-12  # float64 rounding
    if n_chosen == 40:
        # One of many images changes sigma little: then the bounds are nearly the values.
        assert np.median(margins) < 0.25 * values.std()


def test_moments_confidence_values_are_the_terms_of_the_objective() -> None:
    pool = pool_of(60, 8)
    terms = Objective(pool.features, None, pool.confidence_loss).terms([3, 1, 4, 15])
    objective = _Objective(pool, mean_weight=0.7, std_weight=1.3, confidence_weight=0.2)
    bases = objective.bases([3, 1, 4, 9], np.array([[3]]))
    (value,) = objective.values(bases, np.array([0]), np.array([15]))
    expected = 0.7 * terms["mean"] + 1.3 * terms["std"] + 0.2 * terms["confidence"]
    assert value == pytest.approx(expected, rel=1e-9)


def test_moments_confidence_looks_beyond_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(60, 8)
    expected = selected("moments-confidence", pool, 6)
    for name in ("N_FIRST", "BLOCK_ENTRIES"):
        monkeypatch.setattr(f"gadc.baselines.moments_confidence.{name}", 1)
    assert selected("moments-confidence", pool, 6) == expected


def test_moments_confidence_lowers_the_terms_of_the_objective() -> None:
    pool = pool_of(80, 6)
    terms = Objective(pool.features, None, pool.confidence_loss).terms
    found = terms(selected("moments-confidence", pool, 6))
    others = [terms(selected("random", pool, 6, seed=seed)) for seed in range(20)]

    def rest(term: dict[str, float]) -> float:
        return term["total"] - term["transport"]

    assert rest(found) < min(rest(other) for other in others)


def test_moments_confidence_weights_switch_terms_off() -> None:
    pool = pool_of()
    generator = np.random.default_rng(0)
    surest = moments_confidence(
        pool, 5, generator=generator, mean_weight=0.0, std_weight=0.0, confidence_weight=1.0
    )
    assert sorted(surest.tolist()) == sorted(selected("confidence", pool, 5))
    with pytest.raises(InputError, match="std_weight=-1"):
        moments_confidence(pool, 5, generator=generator, std_weight=-1.0)


def test_margin_difficulty_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]])
    found = margin_difficulty(probabilities, np.array([0, 2, 2]))
    assert found == pytest.approx([-0.5, 0.2, -1.0])
    with pytest.raises(InputError, match="at least 2 classes"):
        margin_difficulty(np.ones((3, 1)), np.zeros(3, dtype=np.int64))


def test_missing_difficulty_tells_how_to_give_it() -> None:
    with pytest.raises(InputError, match="ccs needs a difficulty.*higher = harder.*probabilities"):
        selected("ccs", Pool(pool_of().features), 3)


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"features": np.ones(3, dtype=np.float32)}, "features_shape"),
        ({"features": np.array([[np.nan]], dtype=np.float32)}, "features_not_finite"),
        ({"difficulty": np.ones(3)}, "difficulty_shape"),
        ({"difficulty": np.full(4, np.inf)}, "difficulty_shape"),
        ({"confidence_loss": np.ones(3)}, "confidence_shape"),
    ],
)
def test_bad_pools_are_refused(attributes: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as raised:
        Pool(**{"features": np.ones((4, 2), dtype=np.float32), **attributes})
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("ccs", {"hard_cutoff": 1.0}, "hard_cutoff_range"),
        ("ccs", {"n_strata": 0}, "strata_range"),
        ("dq", {"n_bins": 0}, "bins_range"),
        ("d2c", {"interval": 0}, "interval_range"),
    ],
)
def test_bad_parameters_are_refused(name: str, options: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as raised:
        selected(name, pool_of(), 3, **options)
    assert raised.value.code == code


def test_cost_matrix_too_large_is_refused() -> None:
    pool = Pool(np.zeros((40_000, 1), dtype=np.float32))
    with pytest.raises(InputError, match="leave out this method"):
        selected("k-medoids", pool, 3)
