"""The Inception score against its bounds, torchmetrics, and its splits."""

import numpy as np
import pytest
import torch

from gadc.errors import InputError
from gadc.evaluation.inception_score import inception_score, inception_score_of_logits
from gaussians import gaussian


def test_sure_and_varied_images_score_the_number_of_classes() -> None:
    found = inception_score(np.tile(np.eye(7), (6, 1)), n_splits=3)
    assert found.mean == pytest.approx(7.0)
    assert found.sd == pytest.approx(0.0)
    assert found.n_per_split == 14


def test_images_that_all_look_the_same_score_one() -> None:
    assert inception_score(np.tile([0.7, 0.2, 0.1], (20, 1)), n_splits=2).mean == pytest.approx(1.0)


def test_two_images_match_the_divergence_written_out() -> None:
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    expected = np.exp(np.mean((p * np.log(p / p.mean(0))).sum(1)))
    assert inception_score(p, n_splits=1).mean == pytest.approx(expected, rel=1e-14)


def test_score_matches_torchmetrics() -> None:
    from torchmetrics.image.inception import InceptionScore

    logits = gaussian(120, 10, shift=2.0) * 3
    oracle = InceptionScore(feature=torch.nn.Identity(), splits=1)
    oracle.update(torch.from_numpy(logits))
    found = inception_score_of_logits(logits, n_splits=1)
    assert found.mean == pytest.approx(float(oracle.compute()[0]), rel=1e-10)
    assert found.sd == 0.0


def test_logits_and_their_probabilities_score_the_same() -> None:
    logits = gaussian(60, 5) * 4
    powers = np.exp(logits)
    found = inception_score(powers / powers.sum(1, keepdims=True), n_splits=4)
    expected = inception_score_of_logits(logits, n_splits=4)
    assert found.mean == pytest.approx(expected.mean, rel=1e-12)
    assert found.sd == pytest.approx(expected.sd, rel=1e-10)


def test_logits_of_any_size_give_a_finite_score() -> None:
    logits = np.tile(np.eye(4) * 1e5, (5, 1))
    assert inception_score_of_logits(logits, n_splits=1).mean == pytest.approx(4.0)


def test_splits_are_consecutive_unless_shuffled() -> None:
    in_order = np.repeat(np.eye(5), 20, axis=0)
    assert inception_score(in_order, n_splits=5).mean == pytest.approx(1.0)
    shuffled = inception_score(in_order, n_splits=5, generator=np.random.default_rng(0))
    assert shuffled.mean > 4.0
    assert shuffled == inception_score(in_order, n_splits=5, generator=np.random.default_rng(0))


def test_splits_of_other_sizes_keep_every_image() -> None:
    p = np.tile(np.eye(2), (5, 1))
    found = inception_score(p, n_splits=3)  # 4, 3 and 3 images
    third = np.exp(np.log(3) - 2 / 3 * np.log(2))  # exp of the entropy of (1/3, 2/3)
    assert found.mean == pytest.approx((2 + 2 * third) / 3)
    assert found.n_per_split == 3


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("bad_splits", lambda: inception_score(np.eye(3), n_splits=4)),
        ("bad_splits", lambda: inception_score(np.eye(3), n_splits=0)),
        ("probabilities_not_normalised", lambda: inception_score(gaussian(20, 3))),
        ("probabilities_not_normalised", lambda: inception_score([[1.5, -0.5]], n_splits=1)),
        ("features_not_finite", lambda: inception_score_of_logits([[np.nan, 0.0]], n_splits=1)),
        ("bad_shape", lambda: inception_score([0.5, 0.5], n_splits=1)),
    ],
)
def test_bad_input_is_an_error_with_its_code(code: str, call: object) -> None:
    with pytest.raises(InputError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.code == code
