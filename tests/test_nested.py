"""One order whose prefixes are good subsets."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from feature_sets import feature_set, quick, records
from gadc import InputError, Objective
from gadc.condense import condense
from gadc.search import Candidates, search, search_nested
from gadc.search.nested import check_nested, halves, nested_sizes
from gadc.search.swap import LEAST_GAIN
from gadc.selector import GeometryAwareSelector
from gadc.subset import Subset
from real_data import REAL_DATA, needs_real_data

SIZES = [3, 6, 12]


def class_features(n: int = 90, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(5, 6))[rng.integers(0, 5, n)] * 2 + rng.normal(size=(n, 6))


@pytest.fixture(scope="module")
def objective() -> Objective:
    return Objective(class_features())


@pytest.fixture(scope="module")
def found(objective: Objective):
    return search_nested(objective, SIZES)


def test_each_order_begins_with_the_smaller_one(found) -> None:
    for smaller, larger in zip(found, found[1:], strict=False):
        n_smaller = len(smaller.order)
        assert larger.order[:n_smaller].tolist() == smaller.order.tolist()
        assert larger.gains[:n_smaller].tolist() == smaller.gains.tolist()
    assert [len(result.order) for result in found] == SIZES
    assert len(set(found[-1].order.tolist())) == SIZES[-1]


def test_gains_up_to_a_size_sum_to_minus_its_objective(objective: Objective, found) -> None:
    for result in found:
        assert result.gains.sum() == pytest.approx(-objective.value(result.order), rel=1e-7)
        assert result.objective == pytest.approx(objective.value(result.order), rel=1e-7)


def test_smallest_is_that_of_a_search_of_its_own(objective: Objective, found) -> None:
    assert found[0].order.tolist() == search(objective, SIZES[0]).order.tolist()


def test_one_size_is_the_plain_search(objective: Objective) -> None:
    (alone,) = search_nested(objective, [5])
    plain = search(objective, 5)
    assert alone.order.tolist() == plain.order.tolist()
    assert alone.gains.tolist() == plain.gains.tolist()


def test_ring_is_swap_optimal_given_the_smaller_subset(objective: Objective, found) -> None:
    inner, outer = found[0].order.tolist(), found[1]
    assert outer.is_swap_optimal
    order = outer.order.tolist()
    others = np.setdiff1d(np.arange(objective.n_images), order)
    for place in range(len(inner), len(order)):
        base = order[:place] + order[place + 1 :]
        values = objective.values(np.array([[*base, j] for j in others]))
        assert values.min() >= outer.objective - 1.1 * LEAST_GAIN * objective.scale


def test_images_of_a_ring_are_in_greedy_order(objective: Objective, found) -> None:
    order = found[1].order.tolist()
    for place in range(SIZES[0], SIZES[1]):
        sets = np.array([[*order[:place], j] for j in order[place:]])
        assert objective.values(sets).argmin() == 0


def test_excluded_images_are_in_no_subset_and_kept_ones_in_all(objective: Objective) -> None:
    candidates = Candidates(90, keep=[7, 30], exclude=range(40, 60))
    results = search_nested(objective, SIZES, candidates=candidates)
    for result in results:
        assert {7, 30} <= set(result.order.tolist())
        assert not set(range(40, 60)) & set(result.order.tolist())


@pytest.mark.parametrize("n_kept", [3, 4, 6, 8, 12])
def test_kept_images_come_first_and_small_subsets_are_chosen_among_them(
    objective: Objective, n_kept: int
) -> None:
    kept = list(range(20, 20 + n_kept))
    results = search_nested(objective, SIZES, candidates=Candidates(90, keep=kept))
    order = results[-1].order.tolist()
    assert set(order[:n_kept]) == set(kept)
    for size, result in zip(SIZES, results, strict=True):
        assert result.order.tolist() == order[:size]
    among = Candidates(90, exclude=np.setdiff1d(np.arange(90), kept).tolist())
    best = search(objective, SIZES[0], candidates=among)
    assert results[0].objective == pytest.approx(best.objective, rel=1e-9)


def test_more_kept_images_than_the_largest_subset_are_refused(objective: Objective) -> None:
    with pytest.raises(InputError) as raised:
        search_nested(objective, SIZES, candidates=Candidates(90, keep=range(13)))
    assert raised.value.code == "n_selected_range"


@needs_real_data
@pytest.mark.parametrize("label", [0, 3])
def test_real_subsets_are_within_3_percent_of_separate_searches(label: int) -> None:
    tensors = load_file(REAL_DATA / "cifar10" / "test_resnet56_features.safetensors")
    rows = np.flatnonzero(tensors["labels"] == label)[:300]
    losses = -np.log(tensors["probabilities"][rows, label].astype(np.float64))
    objective = Objective(tensors["features"][rows], confidence_loss=losses)
    for result in search_nested(objective, [5, 10, 20], patience=1):
        alone = search(objective, len(result.order), patience=1)
        assert result.objective <= 1.03 * alone.objective


@pytest.mark.parametrize(
    ("n_selected", "expected"),
    [(100, [12, 25, 50]), (20, [10]), (19, []), (1000, [15, 31, 62, 125, 250, 500])],
)
def test_halves_end_at_ten(n_selected: int, expected: list[int]) -> None:
    assert halves(n_selected) == expected


def test_sizes_that_a_class_does_not_reach_are_left_out() -> None:
    assert nested_sizes((5, 10, 50), 10) == [5, 10]
    assert nested_sizes((5, 10, 50), 12) == [5, 10, 12]
    assert nested_sizes(None, 7) == [7]
    assert nested_sizes("halves", 40) == [10, 20, 40]


@pytest.mark.parametrize(
    ("nested", "n_selected"),
    [
        ((), None),
        ((0, 5), None),
        ((5, 5), None),
        ((10, 5), None),
        ("thirds", None),
        ((5, 10), 10),
        ("halves", 19),
    ],
)
def test_sizes_that_cannot_be_nested_are_refused(nested, n_selected) -> None:
    with pytest.raises(InputError) as raised:
        check_nested(nested, n_selected)
    assert raised.value.code == "nested_sizes"


@pytest.mark.parametrize(
    "options", [{"nested": (5, 3)}, {"nested": (3,), "per_class": 3}, {"nested": "halves"}]
)
def test_config_refuses_bad_sizes_before_anything_runs(options) -> None:
    with pytest.raises(InputError) as raised:
        quick(**options)
    assert raised.value.code == "bad_config"


def test_sizes_above_what_a_budget_gives_are_refused() -> None:
    with pytest.raises(InputError) as raised:
        condense(feature_set(12, 9), quick(per_class=None, budget=8, nested=(2, 4)))
    assert raised.value.code == "nested_sizes"


@pytest.fixture(scope="module")
def subset() -> Subset:
    return condense(feature_set(40, 30, 5), quick(per_class=8, nested=(2, 4)))


def test_records_tell_every_size_and_its_objective(subset: Subset) -> None:
    assert subset.provenance["config"]["nested"] == [2, 4]
    for record in records(subset):
        assert [entry["n_selected"] for entry in record["nested"]] == [2, 4]
        is_class = subset.labels == record["label"]
        losses = subset.gain[is_class]
        for entry in record["nested"]:
            assert entry["objective"] == pytest.approx(-losses[: entry["n_selected"]].sum())
            assert 0 <= entry["transport_gap"] < entry["terms"]["transport"]


def test_first_gives_the_nested_subset_with_its_record(subset: Subset) -> None:
    small = subset.first(4)
    assert small.rank.tolist() == [0, 1, 2, 3] * 3
    assert small.paths == [
        path for path, rank in zip(subset.paths, subset.rank, strict=True) if rank < 4
    ]
    np.testing.assert_allclose(np.bincount(small.labels, small.weight), [40, 30, 5])
    for before, after in zip(records(subset), records(small), strict=True):
        assert after["n_selected"] == 4
        assert after["objective"] == before["nested"][1]["objective"]
        assert after["nested"] == before["nested"][:1]


def test_first_between_sizes_knows_the_objective_alone(subset: Subset) -> None:
    small = subset.first(3)
    for record in records(small):
        gains = small.gain[small.labels == record["label"]]
        assert record["objective"] == pytest.approx(-gains.sum())
        assert record["terms"] == {}
        assert not record["is_swap_optimal"]


def test_first_leaves_smaller_classes_whole(subset: Subset) -> None:
    small = subset.first(6)
    assert np.bincount(small.labels).tolist() == [6, 6, 5]
    assert records(small)[2] == records(subset)[2]


def test_first_survives_saving(subset: Subset, tmp_path: Path) -> None:
    small = subset.first(4)
    loaded = Subset.load(small.save(tmp_path / "small.parquet"))
    assert loaded.paths == small.paths
    assert loaded.provenance["first"] == 4


@pytest.mark.parametrize("n_selected", [0, -1, 9])
def test_first_out_of_range_is_refused(subset: Subset, n_selected: int) -> None:
    with pytest.raises(InputError) as raised:
        subset.first(n_selected)
    assert raised.value.code == "first_range"


def test_nested_bytes_do_not_depend_on_workers(tmp_path: Path) -> None:
    features = feature_set(25, 20)
    contents = []
    for n_workers in (1, 2):
        config = quick(per_class=6, nested=(3,), start="best", patience=1)
        condense(features, config, workers=n_workers).save(tmp_path / f"{n_workers}.parquet")
        contents.append((tmp_path / f"{n_workers}.parquet").read_bytes())
    assert contents[0] == contents[1]


def test_nested_run_is_taken_up_from_its_records(tmp_path: Path) -> None:
    features, config = feature_set(25, 20), quick(per_class=6, nested=(3,))
    first = condense(features, config, out=tmp_path)
    second = condense(features, config, out=tmp_path)
    assert second.run_counts["reused"] == 2
    assert records(second) == records(first)


def test_selector_orders_rows_likewise() -> None:
    features = feature_set(25, 20)
    options = {"start": "greedy", "patience": 0}
    selector = GeometryAwareSelector(6, nested=(3,), **options)
    selector.fit(features.features, features.labels)
    config = quick(per_class=6, nested=(3,), confidence_weight=0.0)
    assert selector.indices_.tolist() == condense(features, config).index.tolist()
    for objectives, gains in zip(
        selector.nested_objectives_, np.split(selector.gains_, 2), strict=True
    ):
        assert objectives == {3: pytest.approx(-gains[:3].sum())}


def test_selector_refuses_bad_sizes() -> None:
    with pytest.raises(InputError) as raised:
        GeometryAwareSelector(6, nested=(6,)).fit(class_features())
    assert raised.value.code == "nested_sizes"
