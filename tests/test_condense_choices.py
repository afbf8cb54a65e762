"""Which images a class may give, and how many."""

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest

from feature_sets import feature_set, quick, records, rows_of, without_labels
from gadc import Subset
from gadc.condense import CondenseConfig, condense
from gadc.errors import InputError
from gadc.features.store import FeatureSet


def ids_by_class(subset: Subset) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, path in zip(subset.class_name, subset.paths, strict=True):
        found.setdefault(name, []).append(path)
    return found


def test_kept_images_are_selected_and_excluded_ones_are_not():
    features = feature_set(12, 9)
    keep, free = [features.ids[11], features.ids[12]], condense(features, quick())
    exclude = [path for path in free.paths if path not in keep]
    subset = condense(features, quick(), keep=keep, exclude=exclude)
    assert set(keep) <= set(subset.paths)
    assert not set(exclude) & set(subset.paths)
    assert subset.n_images == 6
    assert [subset.provenance["keep"], subset.provenance["exclude"]] == [keep, sorted(exclude)]


@pytest.mark.parametrize(
    ("lists", "code"),
    [
        ({"keep": ["nowhere.png"]}, "unknown_ids"),
        ({"exclude": ["nowhere.png"]}, "unknown_ids"),
        ({"keep": ["class 0/0001.png"] * 2}, "listed_twice"),
        ({"keep": ["class 0/0001.png"], "exclude": ["class 0/0001.png"]}, "keep_and_exclude"),
        ({"keep": [f"class 0/000{row}.png" for row in range(4)]}, "keep_over_budget"),
    ],
)
def test_lists_that_can_not_be_followed_are_refused(lists: dict[str, list[str]], code: str):
    with pytest.raises(InputError, match=r"nowhere\.png|class 0") as raised:
        condense(feature_set(12, 9), quick(), **lists)  # type: ignore[arg-type]
    assert raised.value.code == code


def doubled(features: FeatureSet) -> FeatureSet:
    """Return every image twice, the second time under a name that sorts later."""
    twice = rows_of(features, np.tile(np.arange(features.n_images), 2))
    ids = [*features.ids, *(f"{name} copy" for name in features.ids)]
    return dataclasses.replace(twice, ids=ids, paths=ids)


@pytest.mark.parametrize("has_sha256", [True, False])
def test_of_copies_only_the_first_is_selected(has_sha256: bool):
    features = doubled(feature_set(6, 5, has_sha256=has_sha256))
    subset = condense(features, quick(per_class=6))
    assert [len(ids) for ids in ids_by_class(subset).values()] == [6, 5]
    assert not any(path.endswith("copy") for path in subset.paths)
    assert subset.provenance["n_copies"] == 11


def test_kept_copy_stands_for_the_others():
    features = doubled(feature_set(6))
    copy = "class 0/0002.png copy"
    subset = condense(features, quick(per_class=6), keep=[copy])
    assert copy in subset.paths
    assert "class 0/0002.png" not in subset.paths


def test_copy_of_an_excluded_image_is_excluded_too():
    features = doubled(feature_set(6))
    subset = condense(features, quick(per_class=6), exclude=["class 0/0002.png"])
    assert "class 0/0002.png copy" not in subset.paths


def test_two_kept_copies_are_refused():
    keep = ["class 0/0002.png", "class 0/0002.png copy"]
    with pytest.raises(InputError, match=r"0002\.png copy") as raised:
        condense(doubled(feature_set(6)), quick(), keep=keep)
    assert raised.value.code == "keep_duplicates"


def test_copies_are_selected_where_that_is_asked_for():
    subset = condense(doubled(feature_set(4)), quick(per_class=8, dedup="keep"))
    assert subset.n_images == 8


def test_copies_with_different_labels_are_reported_and_only_one_is_selected():
    features = feature_set(4, 4)
    digests = list(features.sha256)
    digests[5] = digests[1]
    subset = condense(dataclasses.replace(features, sha256=digests), quick(per_class=4))
    assert subset.provenance["label_conflicts"] == [
        [
            {"id": "class 0/0001.png", "class_name": "class 0"},
            {"id": "class 1/0005.png", "class_name": "class 1"},
        ]
    ]
    assert [len(ids) for ids in ids_by_class(subset).values()] == [4, 3]


def test_small_class_gives_all_it_has_and_says_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "gadc"):
        subset = condense(feature_set(2, 9), quick())
    assert [record["n_short"] for record in records(subset)] == [1, 0]
    assert "class 'class 0' gives 2 of the 3" in caplog.text


def test_other_classes_stand_in_for_a_small_one():
    subset = condense(feature_set(2, 9), quick(shortfall="redistribute"))
    assert [record["n_selected"] for record in records(subset)] == [2, 4]


def test_small_class_stops_the_run_where_that_is_asked_for():
    with pytest.raises(InputError, match=r"'class 0' \(2 of 3\)") as raised:
        condense(feature_set(2, 9), quick(shortfall="error"))
    assert raised.value.code == "class_too_small"


def test_empty_class_has_a_record_and_no_images():
    features = feature_set(0, 9, 1)
    subset = condense(features, quick())
    assert [record["n_selected"] for record in records(subset)] == [0, 3, 1]
    assert records(subset)[0]["objective"] is None


def test_single_image_is_selected():
    subset = condense(feature_set(1), quick(per_class=1))
    assert subset.n_images == 1
    assert records(subset)[0]["terms"]["std"] == 0.0


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"budget": 7}, [4, 3]),
        ({"budget": 7, "allocate": "proportional"}, [5, 2]),
        ({"fraction": 0.25}, [5, 2]),
        ({"budget": 6, "allocate": "file", "allocation": {"class 1": 2, "class 0": 1}}, [2, 4]),
        ({"allocate": "file", "allocation": {"class 1": 2}}, [0, 2]),
    ],
)
def test_budget_is_divided(request_: dict[str, Any], expected: list[int]):
    subset = condense(feature_set(20, 9), quick(**{"per_class": None, **request_}))
    assert [record["n_selected"] for record in records(subset)] == expected


@pytest.mark.parametrize(
    "request_",
    [
        {"per_class": 22},
        {"per_class": None, "budget": 22},
        {"per_class": None, "allocate": "file", "allocation": {"class 0": 22}},
    ],
)
def test_more_than_there_is_can_not_be_asked_for(request_: dict[str, Any]):
    with pytest.raises(InputError, match="22") as raised:
        condense(feature_set(12, 9), quick(**request_))
    assert raised.value.code == "budget_range"


def test_allocation_of_an_unknown_class_is_refused():
    config = quick(per_class=None, allocate="file", allocation={"clas 0": 3})
    with pytest.raises(InputError, match="'clas 0'") as raised:
        condense(feature_set(12, 9), config)
    assert raised.value.code == "unknown_classes"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_class": 1, "budget": 1},
        {"per_class": 0},
        {"per_class": 1.5},
        {"budget": -1},
        {"fraction": 0.0},
        {"fraction": 1.01},
        {"fraction": float("nan")},
        {"per_class": 1, "allocate": "sqrt"},
        {"budget": 1, "allocate": "file"},
        {"per_class": 1, "capacity": 0.99},
        {"per_class": 1, "epsilon": 0.0},
        {"per_class": 1, "mean_weight": float("inf")},
        {"per_class": 1, "start": "middle"},
        {"per_class": 1, "clusters": 0},
        {"per_class": 1, "max_swap": 3},
    ],
)
def test_config_is_validated_at_the_edge(options: dict[str, Any]):
    with pytest.raises(InputError) as raised:
        CondenseConfig(**options)
    assert raised.value.code == "bad_config"


def test_unknown_option_lists_the_known_ones():
    with pytest.raises(InputError, match=r"max_swap is no option.*max_swaps"):
        CondenseConfig(per_class=1, max_swap=3)


def test_images_without_labels_are_one_class():
    subset = condense(without_labels(feature_set(9, 9)), quick())
    assert set(subset.class_name) == {"all"}
    assert set(subset.labels.tolist()) == {0}
    assert subset.provenance["confidence"] == "off: the images have no labels"


def test_clusters_take_the_place_of_classes():
    features = without_labels(feature_set(9, 9, 9))
    subset = condense(features, quick(clusters=3))
    assert sorted(set(subset.class_name)) == ["cluster-000", "cluster-001", "cluster-002"]
    # The classes are far apart: each is a cluster, numbered by its first image.
    assert [path.split("/")[0] for path in subset.paths] == sorted(
        ["class 0", "class 1", "class 2"] * 3
    )


def test_clusters_do_not_depend_on_the_order_of_images():
    features = without_labels(feature_set(40, seed=1))
    shuffled = np.random.default_rng(0).permutation(40)
    config = quick(clusters=4, per_class=2)
    assert condense(rows_of(features, shuffled), config).paths == condense(features, config).paths


def test_budget_of_clusters_is_in_proportion_to_their_sizes():
    features = without_labels(feature_set(4, 16))
    subset = condense(features, quick(per_class=None, budget=5, clusters=2))
    assert [record["n_selected"] for record in records(subset)] == [1, 4]


@pytest.mark.parametrize(
    ("features", "options", "code"),
    [
        (feature_set(9), {"clusters": 2}, "clusters_with_labels"),
        (without_labels(feature_set(9)), {"clusters": 10}, "clusters_range"),
    ],
)
def test_clusters_that_can_not_be_are_refused(features: FeatureSet, options: Any, code: str):
    with pytest.raises(InputError) as raised:
        condense(features, quick(**options))
    assert raised.value.code == code
