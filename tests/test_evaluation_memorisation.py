"""Copies: of training data by a generator, and of one another in a sample."""

import numpy as np
import pytest

from gadc.errors import InputError
from gadc.evaluation.duplicates import duplicate_share, near_duplicate_share
from gadc.evaluation.memorisation import memorisation
from gaussians import gaussian

TRAINING = [[0.0], [10.0]]
HELD_OUT = [[4.0], [13.0]]
GENERATED = [[0.5], [3.0], [10.0], [4.0], [14.0]]
RATIOS = [0.5 / 3.5, 3.0 / 1.0, 0.0, np.inf, 4.0 / 1.0]


def test_ratios_compare_training_with_held_out() -> None:
    found = memorisation(generated=GENERATED, training=TRAINING, held_out=HELD_OUT)
    np.testing.assert_allclose(found.ratios, RATIOS)
    assert found.near_copies == 2 / 5
    assert found.closer_to_training == 2 / 5
    # Held out: 4 is 4 from the training data and 9 from the other; 13 is 3 and 9 away.
    assert found.closer_by_chance == 1.0
    assert found.near_copies_by_chance == 0.0


def test_the_worst_pairs_name_both_neighbours() -> None:
    found = memorisation(generated=GENERATED, training=TRAINING, held_out=HELD_OUT, n_worst=2)
    assert [pair.generated_row for pair in found.worst] == [2, 0]
    copy, near = found.worst
    assert (copy.training_row, copy.training_distance, copy.ratio) == (1, 0.0, 0.0)
    assert (copy.held_out_row, copy.held_out_distance) == (1, 3.0)
    assert (near.training_row, near.training_distance) == (0, 0.5)
    assert (near.held_out_row, near.held_out_distance) == (0, 3.5)


def test_an_image_that_is_in_both_sets_is_no_copy() -> None:
    found = memorisation(generated=[[0.0]], training=[[0.0]], held_out=[[0.0], [5.0]])
    assert found.ratios.tolist() == [1.0]
    assert found.near_copies == found.closer_to_training == 0.0


@pytest.mark.parametrize("n_held_out", [100, 1600])
def test_honest_samples_look_like_held_out_ones_at_any_sizes(n_held_out: int) -> None:
    generated, training = gaussian(800, 6, 1), gaussian(400, 6, 2)
    found = memorisation(
        generated=generated,
        training=training,
        held_out=gaussian(n_held_out, 6, 3),
        rule="calibrated",
        quantile=0.05,
    )
    # Binomial spread of the smaller of the two shares' samples, four sigma.
    spread = 4 * np.sqrt(0.25 / min(800, n_held_out) + 0.25 / 800)
    assert abs(found.closer_to_training - found.closer_by_chance) < spread
    assert abs(found.near_copies - 0.05) < 4 * np.sqrt(0.05 * 0.95 * (1 / 800 + 1 / n_held_out))
    assert found.near_copies_by_chance == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("rule", ["ratio", "calibrated"])
def test_copies_with_noise_are_found_and_counted(rule: str) -> None:
    training = gaussian(400, 16, 2)
    copies = training[:150] + 1e-2 * gaussian(150, 16, 4)
    found = memorisation(
        generated=np.concatenate([gaussian(450, 16, 1), copies]),
        training=training,
        held_out=gaussian(400, 16, 3),
        rule=rule,  # type: ignore[arg-type]
    )
    by_chance = found.near_copies_by_chance * 450
    assert 150 <= found.near_copies * 600 <= 150 + by_chance + 4 * np.sqrt(by_chance + 1)
    assert {pair.generated_row for pair in found.worst} <= set(range(450, 600))
    for pair in found.worst:
        assert pair.training_row == pair.generated_row - 450


def test_duplicate_share_counts_all_of_a_group() -> None:
    rows = np.array([[0.0], [0.0], [0.0], [5.0], [6.0], [9.0]])
    assert duplicate_share(rows) == 3 / 6
    assert duplicate_share(rows, threshold=1.0) == 5 / 6
    assert duplicate_share(rows, threshold=0.99) == 3 / 6


def test_exact_duplicates_are_found_far_from_the_origin() -> None:
    rows = (1e6 + gaussian(200, 50)).astype(np.float32)
    assert duplicate_share(np.concatenate([rows, rows[:50]])) == 100 / 250
    assert duplicate_share(rows) == 0.0


def test_near_duplicates_are_near_in_the_real_vectors_own_unit() -> None:
    real = np.arange(10.0)[:, None]  # neighbours are 1 apart
    selected = np.array([[0.0], [0.3], [5.0], [5.4]])
    assert near_duplicate_share(selected=selected, real=real) == 0.5
    assert near_duplicate_share(selected=100 * selected, real=100 * real) == 0.5
    assert near_duplicate_share(selected=selected, real=100 * real) == 1.0
    assert near_duplicate_share(selected=selected, real=real, ratio=0.0) == 0.0


@pytest.mark.parametrize(
    ("code", "call"),
    [
        (
            "too_few_rows",
            lambda: memorisation(generated=gaussian(3), training=gaussian(3), held_out=gaussian(1)),
        ),
        (
            "width_mismatch",
            lambda: memorisation(
                generated=gaussian(3), training=gaussian(3), held_out=gaussian(3, 2)
            ),
        ),
        (
            "bad_choice",
            lambda: memorisation(
                generated=gaussian(3),
                training=gaussian(3),
                held_out=gaussian(3),
                rule="best",  # type: ignore[arg-type]
            ),
        ),
        (
            "bad_threshold",
            lambda: memorisation(
                generated=gaussian(3), training=gaussian(3), held_out=gaussian(3), quantile=1.0
            ),
        ),
        ("too_few_rows", lambda: duplicate_share(gaussian(1))),
        ("bad_threshold", lambda: duplicate_share(gaussian(3), threshold=-1.0)),
        (
            "bad_threshold",
            lambda: near_duplicate_share(selected=gaussian(3), real=gaussian(3), ratio=np.nan),
        ),
    ],
)
def test_bad_input_is_an_error_with_its_code(code: str, call: object) -> None:
    with pytest.raises(InputError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.code == code
