import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from gadc.errors import InputError
from gadc.features import probe as probe_module
from gadc.features.probe import (
    fit_probe,
    out_of_fold_confidence_loss,
    out_of_fold_probabilities,
)
from real_data import REAL_DATA, needs_real_data


def blobs(n_rows=60, n_features=4, n_classes=3, *, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n_rows)
    centres = rng.normal(scale=2, size=(n_classes, n_features))
    mixing = rng.normal(size=(n_features, n_features))
    features = centres[labels] + rng.normal(size=(n_rows, n_features)) @ mixing
    return features.astype(np.float32), labels


def left_out_slowly(features, labels, row, n_classes, shrinkage, inverse_temperature, full):
    """Log-probabilities of one row from a discriminant fitted anew without it and its copies."""
    copies = (features == features[row]).all(axis=1) & (labels == labels[row])
    x = features[row].astype(np.float64)
    others, other_labels = features[~copies].astype(np.float64), labels[~copies]
    counts = np.bincount(other_labels, minlength=n_classes)
    grand_mean = others.mean(axis=0)
    scatter = np.zeros((len(x), len(x)))
    means = np.empty((n_classes, len(x)))
    for label in range(n_classes):
        members = others[other_labels == label]
        means[label] = (members.sum(axis=0) + grand_mean) / (counts[label] + 1)
        if len(members):
            gaps = members - members.mean(axis=0)
            scatter += gaps.T @ gaps
    # The ridge is one number of the whole set: it says nothing about the row.
    n_free = max(len(others) - (counts > 0).sum(), 1)
    ridge = shrinkage * np.trace(full) / len(x)
    inverse = n_free * np.linalg.inv((1 - shrinkage) * scatter + ridge * np.eye(len(x)))
    scores = [mean @ inverse @ (x - mean / 2) for mean in means]
    logits = inverse_temperature * np.array(scores)
    logits += np.log((counts + 1) / (counts + 1).sum())
    return logits - np.logaddexp.reduce(logits)


def scatter_within(features, labels):
    total = np.zeros((features.shape[1],) * 2)
    for label in np.unique(labels):
        gaps = features[labels == label] - features[labels == label].mean(axis=0, dtype=np.float64)
        total += gaps.T @ gaps
    return total


@pytest.mark.parametrize("case", ["plain", "copies", "single", "more columns than rows"])
def test_probe_equals_refitting_without_each_row(case):
    features, labels = blobs(n_features=50 if case == "more columns than rows" else 4)
    if case == "copies":
        features[10:13] = features[9]
        labels[10:13] = labels[9]
    if case == "single":
        labels[5] = 3
    n_classes = int(labels.max()) + 1
    probe = fit_probe(features, labels)
    fast = probe.log_probabilities(np.arange(len(features))).numpy()
    full = scatter_within(features, labels)
    slow = [
        left_out_slowly(
            features, labels, row, n_classes, probe.shrinkage, probe.inverse_temperature, full
        )
        for row in range(len(features))
    ]
    np.testing.assert_allclose(fast, slow, atol=1e-8)  # float64, condition below 1e5


def test_probe_rows_sum_to_one_and_match_the_loss():
    features, labels = blobs()
    probabilities = out_of_fold_probabilities(features, labels)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    loss = out_of_fold_confidence_loss(features, labels)
    own = probabilities[np.arange(len(labels)), labels]
    np.testing.assert_allclose(np.exp(-loss), own, rtol=1e-5)


def test_probe_is_permutation_equivariant():
    features, labels = blobs(300)
    order = np.random.default_rng(1).permutation(len(labels))
    np.testing.assert_allclose(
        out_of_fold_probabilities(features[order], labels[order]),
        out_of_fold_probabilities(features, labels)[order],
        atol=1e-6,
    )


@pytest.mark.parametrize("scale", [1e-4, 0.3, 1e4])
def test_probe_is_invariant_to_scale(scale):
    features, labels = blobs(300)
    np.testing.assert_allclose(
        out_of_fold_probabilities(features * np.float32(scale), labels),
        out_of_fold_probabilities(features, labels),
        atol=1e-5,  # float32 rounding of the scaled features
    )


def test_probe_is_invariant_to_rotation_and_offset():
    features, labels = blobs(300)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0]
    turned = (features.astype(np.float64) @ rotation + 3).astype(np.float32)
    np.testing.assert_allclose(
        out_of_fold_probabilities(turned, labels),
        out_of_fold_probabilities(features, labels),
        atol=1e-5,  # float32 rounding of the rotated features
    )


def test_probe_does_not_depend_on_the_block_size(monkeypatch):
    features, labels = blobs(200)
    expected = out_of_fold_probabilities(features, labels)
    monkeypatch.setattr(probe_module, "CHUNK_VALUES", 70)
    np.testing.assert_allclose(out_of_fold_probabilities(features, labels), expected, atol=1e-6)


def test_probe_tunes_on_a_part_of_many_rows(monkeypatch):
    features, labels = blobs(600)
    expected = out_of_fold_confidence_loss(features, labels)
    monkeypatch.setattr(probe_module, "TUNING_ROWS", 150)
    found = out_of_fold_confidence_loss(features, labels)
    assert abs(found.mean() - expected.mean()) < 0.01  # of 0.1; two numbers, tuned on a quarter
    order = np.random.default_rng(1).permutation(len(labels))
    shuffled = out_of_fold_confidence_loss(features[order], labels[order])
    np.testing.assert_allclose(shuffled, found[order], atol=1e-5)


def test_probe_has_not_seen_the_row():
    # Labels without any relation to the features: nothing can be learnt, only memorised.
    rng = np.random.default_rng(4)
    features = rng.normal(size=(80, 200)).astype(np.float32)
    labels = np.arange(80) % 4
    loss = out_of_fold_confidence_loss(features, labels)
    assert loss.mean() > np.log(4) - 0.05


def test_probe_copies_of_a_row_have_not_seen_it_either():
    rng = np.random.default_rng(4)
    features = np.repeat(rng.normal(size=(40, 100)), 3, axis=0).astype(np.float32)
    labels = np.repeat(np.arange(40) % 4, 3)
    loss = out_of_fold_confidence_loss(features, labels)
    assert loss.mean() > np.log(4) - 0.05


def test_probe_single_image_of_a_class_gets_a_small_probability():
    features, labels = blobs(90)
    labels[17] = 3
    probabilities = out_of_fold_probabilities(features, labels)
    assert 0 < probabilities[17, 3] < 1 / 4


def test_probe_counts_classes_without_images():
    features, labels = blobs()
    assert out_of_fold_probabilities(features, labels, n_classes=7).shape == (60, 7)


@pytest.mark.parametrize("n_rows", [1, 2, 3])
def test_probe_of_very_few_rows_is_finite(n_rows):
    features, labels = np.eye(3, dtype=np.float32)[:n_rows], np.arange(n_rows)
    probabilities = out_of_fold_probabilities(features, labels)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_probe_of_one_class_is_certain():
    features, _ = blobs()
    np.testing.assert_array_equal(out_of_fold_probabilities(features, np.zeros(60, int)), 1)


@pytest.mark.parametrize(
    "case", ["all equal", "equal within classes", "constant column", "outlier"]
)
def test_probe_of_degenerate_features_is_finite(case):
    features, labels = blobs()
    if case == "all equal":
        features[:] = 3.7
    elif case == "equal within classes":
        features = np.eye(3, dtype=np.float32)[labels] + np.float32(0.1)
    elif case == "constant column":
        features[:, 1] = -5
    else:
        features[3, 2] = 1e12
    probabilities = out_of_fold_probabilities(features, labels)
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_probe_separates_equal_rows_of_different_classes():
    _, labels = blobs()
    features = np.eye(3, dtype=np.float32)[labels]
    features[:3] += np.float32(1e-3)  # otherwise all copies of a class leave together
    loss = out_of_fold_confidence_loss(features, labels)
    assert loss[:3].max() < 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_probe_refuses_what_is_not_finite(bad):
    features, labels = blobs()
    features[4, 1] = bad
    with pytest.raises(InputError, match="rows 4;") as caught:
        out_of_fold_probabilities(features, labels)
    assert caught.value.code == "features_not_finite"


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        (np.zeros(59, int), "length_mismatch"),
        (np.full(60, -1), "label_out_of_range"),
        (np.full(60, 0.5), "bad_labels"),
        (np.zeros((60, 1), int), "bad_shape"),
    ],
)
def test_probe_refuses_other_labels(labels, code):
    with pytest.raises(InputError) as caught:
        out_of_fold_probabilities(blobs()[0], labels)
    assert caught.value.code == code


def test_probe_refuses_labels_beyond_n_classes():
    features, labels = blobs()
    with pytest.raises(InputError) as caught:
        out_of_fold_probabilities(features, labels, n_classes=2)
    assert caught.value.code == "label_out_of_range"


def test_probe_is_close_to_logistic_regression_on_digits():
    features, labels = load_digits(return_X_y=True)
    features = features.astype(np.float32) / 16
    loss = out_of_fold_confidence_loss(features, labels).mean()
    regression = cross_val_predict(
        LogisticRegression(C=10, max_iter=500), features, labels, cv=5, method="predict_log_proba"
    )
    regression_loss = -regression[np.arange(len(labels)), labels].mean()
    assert loss < regression_loss + 0.1  # a uniform guess: 2.30
    assert loss < 0.16


@needs_real_data
def test_probe_on_cifar_is_better_calibrated_than_the_networks_own_head():
    from safetensors.numpy import load_file

    given = load_file(REAL_DATA / "cifar10" / "test_resnet56_features.safetensors")
    loss = out_of_fold_confidence_loss(given["features"], given["labels"])
    own = given["probabilities"][np.arange(len(loss)), given["labels"]]
    assert loss.mean() < 0.47  # logistic regression: 0.45
    assert loss.mean() < -np.log(own).mean()


def test_probe_leaves_the_threads_of_torch_alone():
    n_threads = torch.get_num_threads()
    out_of_fold_probabilities(*blobs())
    assert torch.get_num_threads() == n_threads
