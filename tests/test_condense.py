import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_sets import feature_set, quick, records, rows_of, with_features, without_labels
from gadc.condense import CondenseConfig, condense
from gadc.errors import InputError
from gadc.features.probe import out_of_fold_probabilities
from gadc.features.store import FeatureSet
from gadc.images.source import Excluded, Quarantined
from gadc.objective import Objective
from gadc.selector import GeometryAwareSelector


def test_rows_are_by_class_and_rank():
    subset = condense(feature_set(12, 9), quick())
    assert subset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert subset.rank.tolist() == [0, 1, 2, 0, 1, 2]
    assert subset.class_name == ["class 0"] * 3 + ["class 1"] * 3


def test_columns_describe_the_same_image():
    features = feature_set(12, 9)
    subset = condense(features, quick())
    assert subset.paths == [features.ids[row] for row in subset.index]
    assert subset.sha256 == [features.sha256[row] for row in subset.index]
    assert subset.labels.tolist() == features.labels[subset.index].tolist()


def test_weights_of_a_class_sum_to_its_size():
    subset = condense(feature_set(12, 9), quick())
    sums = np.bincount(subset.labels, subset.weight)
    np.testing.assert_allclose(sums, [12, 9], rtol=1e-12)


def test_gains_of_a_class_sum_to_minus_its_objective():
    subset = condense(feature_set(12, 9), quick())
    # Sums of three solved values, each accurate to the solver's tolerance.
    np.testing.assert_allclose(
        np.bincount(subset.labels, subset.gain),
        [-record["objective"] for record in records(subset)],
        rtol=1e-7,
    )


def test_recorded_objective_is_that_of_the_selected_images():
    features = feature_set(15)
    subset = condense(features, quick(confidence_weight=0.0))
    value = Objective(features.features).value(subset.index)
    # The solver's tolerance on row masses.
    assert records(subset)[0]["objective"] == pytest.approx(value, rel=1e-7)


def test_record_certifies_the_transport_cost():
    record = records(condense(feature_set(15), quick()))[0]
    assert 0 <= record["transport_gap"] < record["terms"]["transport"]
    assert record["is_swap_optimal"]
    assert record["has_converged"]


def test_condense_and_the_estimator_select_the_same():
    features = feature_set(12, 9)
    subset = condense(features, CondenseConfig(per_class=3, confidence_weight=0.0))
    selector = GeometryAwareSelector(n_per_class=3).fit(features.features, features.labels)
    assert subset.index.tolist() == selector.indices_.tolist()


def test_every_scanned_file_is_accounted_for():
    features = dataclasses.replace(
        feature_set(12),
        quarantined=[Quarantined("bad.png", "truncated", "cut short")],
        excluded=[Excluded("notes.txt", "no image suffix"), Excluded(".x", "hidden")],
        n_scanned=15,
    )
    subset = condense(features, quick())
    assert subset.reconciliation == "15 scanned = 12 in the pool + 1 quarantined + 2 excluded"


def test_counts_that_do_not_add_up_are_refused():
    with pytest.raises(InputError) as raised:
        condense(dataclasses.replace(feature_set(12), n_scanned=13), quick())
    assert raised.value.code == "not_reconciled"


@pytest.fixture(scope="module")
def reference() -> tuple[FeatureSet, list[str]]:
    features = feature_set(30, 25, n_features=5, seed=3)
    return features, condense(features, CondenseConfig(per_class=4)).paths


def selected(features: FeatureSet) -> list[str]:
    return condense(features, CondenseConfig(per_class=4)).paths


@pytest.mark.parametrize("seed", range(3))
def test_order_of_images_does_not_matter(reference, seed: int):
    features, expected = reference
    shuffled = np.random.default_rng(seed).permutation(features.n_images)
    assert selected(rows_of(features, shuffled)) == expected


@pytest.mark.parametrize("seed", range(3))
def test_rotation_of_the_features_does_not_matter(seed: int):
    # The std term compares dimension by dimension, which no rotation keeps; all others are kept.
    config = CondenseConfig(per_class=4, std_weight=0.0)
    features = feature_set(30, 25, n_features=5, seed=3)
    generator = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(generator.normal(size=(features.n_features,) * 2))
    rotated = with_features(features, (features.features @ rotation).astype(np.float32))
    assert condense(rotated, config).paths == condense(features, config).paths


@pytest.mark.parametrize("scale", [1e-4, 3e-2, 30.0, 1e4])
def test_scale_of_the_features_does_not_matter(reference, scale: float):
    features, expected = reference
    assert selected(with_features(features, features.features * np.float32(scale))) == expected


@pytest.mark.parametrize("dtype", ["float16", "int32", "float64", "fortran"])
def test_type_and_layout_of_the_features_do_not_matter(dtype: str):
    features = feature_set(14)
    values = np.rint(features.features * 50)  # exact in all types
    expected = condense(with_features(features, values), quick()).paths
    other = np.asfortranarray(values) if dtype == "fortran" else values.astype(dtype)
    assert condense(with_features(features, other), quick()).paths == expected


def test_memory_map_gives_the_same(tmp_path: Path):
    features = feature_set(14, 12)
    np.save(tmp_path / "features.npy", features.features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    expected = condense(features, quick()).paths
    assert condense(with_features(features, mapped), quick()).paths == expected


def test_confidence_comes_from_given_probabilities_before_the_probe():
    features = feature_set(8, 8, n_features=3)
    probabilities = np.full((16, 2), 0.5, dtype=np.float32)
    given = dataclasses.replace(features, probabilities=probabilities)
    subset = condense(given, quick())
    assert subset.provenance["confidence"] == "given"
    assert records(subset)[0]["terms"]["confidence"] == pytest.approx(np.log(2), rel=1e-6)


def test_probe_stands_in_for_missing_probabilities():
    features = feature_set(8, 8, n_features=3)
    probabilities = out_of_fold_probabilities(features.features, features.labels)
    given = condense(dataclasses.replace(features, probabilities=probabilities), quick())
    probed = condense(features, quick())
    assert probed.provenance["confidence"] == "probe"
    assert probed.paths == given.paths


def test_confidence_without_probe_is_off_and_says_why():
    subset = condense(feature_set(8, 8), quick(probe=False))
    assert subset.provenance["confidence"].startswith("off: there are no class probabilities")
    assert records(subset)[0]["terms"]["confidence"] == 0.0


@pytest.mark.parametrize(
    ("features", "options"),
    [(feature_set(8, 8), {"probe": False}), (without_labels(feature_set(8)), {})],
)
def test_confidence_weight_without_probabilities_is_refused(features: FeatureSet, options: Any):
    with pytest.raises(InputError) as raised:
        condense(features, quick(confidence_weight=0.1, **options))
    assert raised.value.code == "confidence_missing"


def test_unlabelled_target_draws_the_selection():
    pool = without_labels(feature_set(20, 20, seed=2))
    target = without_labels(rows_of(feature_set(20, 20, seed=2), np.arange(20, 30)))
    subset = condense(pool, quick(per_class=4), target=target)
    # The target is of the second class alone.
    assert {path.split("/")[0] for path in subset.paths} == {"class 1"}


def test_labelled_target_is_matched_class_by_class():
    pool, target = feature_set(12, 9), feature_set(5, 7, seed=5)
    config = quick(confidence_weight=0.0)
    subset = condense(pool, config, target=target)
    for label in (0, 1):
        own = pool.class_rows(label)
        objective = Objective(pool.features[own], target.features[target.class_rows(label)])
        rows = np.searchsorted(own, subset.index[subset.labels == label])
        # The solver's tolerance.
        value = pytest.approx(objective.value(rows), rel=1e-7)
        assert records(subset)[label]["objective"] == value


def test_target_changes_the_record(tmp_path: Path):
    pool = feature_set(12)
    condense(pool, quick(), target=feature_set(5, seed=5), out=tmp_path)
    again = condense(pool, quick(), target=feature_set(5, seed=6), out=tmp_path)
    assert again.run_counts["computed"] == 1


def test_target_without_a_class_is_refused():
    with pytest.raises(InputError, match="'class 1'") as raised:
        condense(feature_set(12, 9), quick(), target=feature_set(5))
    assert raised.value.code == "target_class_missing"


def test_target_of_other_width_is_refused():
    with pytest.raises(InputError) as raised:
        condense(feature_set(12), quick(), target=feature_set(5, n_features=7))
    assert raised.value.code == "target_width"


def test_bad_rows_are_named():
    features = feature_set(12, 9)
    values = features.features.copy()
    values[[4, 17]] = np.nan
    with pytest.raises(InputError, match="rows 4, 17") as raised:
        condense(with_features(features, values), quick())
    assert raised.value.code == "features_not_finite"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"labels": np.zeros(8, dtype=np.int64)}, "length_mismatch"),
        ({"features": np.zeros((8, 3), dtype=np.float32)}, "length_mismatch"),
        ({"sha256": ["0"] * 8}, "length_mismatch"),
        ({"labels": np.full(9, 2)}, "label_out_of_range"),
        ({"labels": np.full(9, -1)}, "label_out_of_range"),
        ({"ids": ["same"] * 9}, "duplicate_ids"),
        ({"probabilities": np.ones((9, 3), dtype=np.float32)}, "class_mismatch"),
    ],
)
def test_inconsistent_features_are_refused(changes: dict[str, Any], code: str):
    with pytest.raises(InputError) as raised:
        condense(dataclasses.replace(feature_set(9), **changes), quick())
    assert raised.value.code == code


def test_no_images_are_refused():
    with pytest.raises(InputError) as raised:
        condense(rows_of(feature_set(3), np.arange(0)), quick())
    assert raised.value.code == "no_images"


def test_equal_features_of_different_images_are_taken_in_order():
    features = feature_set(9)
    same = with_features(features, np.ones_like(features.features))
    subset = condense(same, CondenseConfig(per_class=3))
    assert subset.index.tolist() == [0, 1, 2]
    assert np.isfinite(subset.gain).all()


@pytest.mark.parametrize("kind", ["constant columns", "one dimension", "outlier"])
def test_degenerate_features_finish(kind: str):
    features = feature_set(12)
    values = features.features.copy()
    if kind == "constant columns":
        values[:, 1:] = 7.0
    elif kind == "one dimension":
        values = np.outer(values[:, 0], np.arange(1, 7)).astype(np.float32)
    else:
        values[5] = 1e12
    subset = condense(with_features(features, values), quick())
    assert subset.n_images == 3
    assert np.isfinite(subset.gain).all()
