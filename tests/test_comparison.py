"""Parts of the comparison: judges, scores, signs against random, tables made by hand."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from feature_sets import feature_set, rows_of
from gadc import Objective, exact_partial_transport
from gadc.baselines import METHODS
from gadc.cli.many_values import ManyValues
from gadc.comparison.judge import HELD_OUT, POOL, TITLES, Judge, Score, mean_score
from gadc.comparison.methods import COMPARED, Case, chosen_methods
from gadc.comparison.scores import read_scores
from gadc.comparison.spaces import HeldOut, Space, held_out_of, same_rows, split_off
from gadc.comparison.table import Run, aggregated, beating, paired_signs
from gadc.comparison.transport import MAX_SELECTED, TRANSPORT
from gadc.comparison.work import Unit
from gadc.errors import InputError
from gadc.evaluation.measures import Undefined
from gadc.per_class.selection import ClassSettings, ClassTask
from gadc.runtime import generator


def case(n_images: int = 24, n_selected: int = 4, *, exclude: tuple[int, ...] = ()) -> Case:
    rng = np.random.default_rng(0)
    task = ClassTask(
        name="one",
        features=rng.normal(size=(n_images, 5)).astype(np.float32),
        n_selected=n_selected,
        settings=ClassSettings(patience=0),
        confidence_loss=rng.random(n_images),
        exclude=exclude,
    )
    return Case(task, rng.random(n_images), "given")


@pytest.mark.parametrize("name", COMPARED)
def test_method_selects_distinct_rows_that_are_not_excluded(name: str) -> None:
    excluded = (0, 7, 8)
    found = COMPARED[name].select(case(exclude=excluded), generator(0, name))
    assert len(set(found.tolist())) == 4
    assert not set(found.tolist()) & set(excluded)
    assert found.max() < 24


def test_ablation_minimises_its_own_objective() -> None:
    given = case()
    features, losses = given.task.features, given.task.confidence_loss
    without = Objective(features, None, losses, mean_weight=0.0, std_weight=0.0)
    ablation = COMPARED["gadc-no-moments"].select(given, generator(0))
    whole = COMPARED["gadc"].select(given, generator(0))
    assert without.value(ablation) < without.value(whole)
    full = Objective(features, None, losses)
    assert full.value(whole) < full.value(ablation)


def test_every_peer_is_compared() -> None:
    assert set(METHODS) - {"moments-confidence"} <= set(COMPARED)


def test_unknown_method_lists_valid_ones() -> None:
    with pytest.raises(InputError, match="k-medoids") as caught:
        chosen_methods(["random", "kmedoid"])
    assert caught.value.code == "unknown_method"
    assert "'kmedoid'" in caught.value.message


def test_methods_stand_in_the_order_of_tables() -> None:
    assert [method.name for method in chosen_methods(["random", "gadc"])] == ["gadc", "random"]
    assert len(chosen_methods(["all", "random"])) == len(COMPARED)


def test_transport_of_a_subset_is_that_of_its_objective() -> None:
    features = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    objective = Objective(features)
    subset = [3, 9, 21, 30]
    expected = objective.terms(subset)["transport"] / objective.scale
    assert TRANSPORT.compute(features[subset], features) == pytest.approx(expected, rel=1e-4)


def test_transport_to_other_images_is_near_the_linear_programme() -> None:
    rng = np.random.default_rng(2)
    few, many = rng.normal(size=(4, 3)), rng.normal(size=(30, 3)) + 1.0
    cost = ((few[:, None] - many) ** 2).sum(2)
    squared = ((many[:, None] - many) ** 2).sum(2)
    scale = np.sort(squared[~np.eye(30, dtype=bool)])[(30 * 29 - 1) // 2]
    exact = exact_partial_transport(cost)
    optimum = exact.transport_cost
    found = TRANSPORT.compute(few, many) * scale
    assert optimum * (1 - 1e-5) <= found <= 1.1 * optimum


def test_transport_of_too_many_is_undefined() -> None:
    with pytest.raises(Undefined, match="2,000"):
        TRANSPORT.compute(np.ones((MAX_SELECTED + 1, 1)), np.ones((3, 1)))


def test_mean_over_classes_by_hand() -> None:
    scores = [Score("s", POOL, name, "energy", value) for name, value in (("a", 1.0), ("b", 2.0))]
    assert mean_score(scores) == Score("s", POOL, "", "energy", 1.5)


def test_mean_is_undefined_where_a_class_is() -> None:
    scores = [
        Score("s", POOL, "a", "energy", 1.0),
        Score("s", POOL, "b", "energy", None, "too few"),
    ]
    found = mean_score(scores)
    assert found.value is None
    assert found.note == "1 of 2 classes: b: too few"


def judge_of(n_held_out: int) -> Judge:
    features = np.random.default_rng(3).normal(size=(20, 2)).astype(np.float32)
    held_out = HeldOut(features[:n_held_out], np.zeros(n_held_out, dtype=np.int64))
    rows = [np.arange(10), np.arange(10, 20)]
    return Judge(
        [Space("features", features, held_out)], ["a", "b"], [0, 1], rows, None, list(TITLES)
    )


def test_judge_leaves_undefined_numbers_empty_and_says_why() -> None:
    scores = judge_of(3).scores([np.array([0]), np.array([11, 12, 13, 14])])
    by_place = {(score.split, score.class_name, score.measure): score for score in scores}
    alone = by_place[POOL, "a", "kid"]
    assert alone.value is None
    assert alone.note == "needs 2 selected vectors, has 1"
    assert by_place[POOL, "", "kid"].value is None
    absent = by_place[HELD_OUT, "b", "energy"]
    assert absent.value is None
    assert absent.note == "no held-out images"
    assert by_place[POOL, "", "confidence"].note.endswith("there are no class probabilities")
    assert by_place[POOL, "a", "energy"].value is not None


def test_reference_is_judged_by_held_out_images_alone() -> None:
    scores = [score for score in judge_of(3).reference() if score.measure != "confidence"]
    assert {score.split for score in scores} == {HELD_OUT}


def test_paired_signs_by_hand() -> None:
    chance = {0: (1.0, ""), 1: (2.0, ""), 2: (3.0, ""), 3: (None, "no")}
    own = {0: (0.5, ""), 1: (2.0, ""), 2: (4.0, ""), 3: (0.0, "")}
    assert paired_signs(own, chance, "lower") == {"better": 1, "worse": 1, "equal": 1, "p": 1.0}
    once = {None: (0.0, "")}
    assert paired_signs(once, chance, "lower") == {"better": 3, "worse": 0, "equal": 0, "p": 0.25}
    assert paired_signs(once, chance, "higher")["worse"] == 3  # type: ignore[index]
    assert paired_signs(once, {}, "lower") is None


def runs(values: dict[tuple[str, int | None], float], measure: str = "energy") -> list[Run]:
    return [
        Run(Unit(name, 5, seed), [Score("features", POOL, "", measure, value)])
        for (name, seed), value in values.items()
    ]


def test_table_by_hand() -> None:
    rows = aggregated(
        runs({("gadc", None): 2.0, ("random", 0): 1.0, ("random", 1): 4.0, ("dq", 0): 3.0}),
        COMPARED,
    )
    gadc, chance, dq = rows
    assert (gadc["mean"], gadc["sd"], gadc["n_seeds"]) == (2.0, None, 1)
    assert gadc["against_random"] == {"better": 1, "worse": 1, "equal": 0, "p": 1.0}
    assert chance["mean"] == 2.5
    assert chance["sd"] == pytest.approx(3.0 / np.sqrt(2.0))
    assert chance["against_random"] is None
    assert dq["against_random"] == {"better": 0, "worse": 1, "equal": 0, "p": 1.0}
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_those_ahead_of_gadc_are_named_best_first() -> None:
    found = beating(
        aggregated(
            runs({("gadc", None): 2.0, ("random", 0): 1.9, ("dq", 0): 1.0, ("d2c", None): 2.0}),
            COMPARED,
        )
    )
    assert [entry["methods"] for entry in found] == [["dq", "random"]]


def test_unbiased_estimates_below_zero_are_no_lead() -> None:
    values = {("gadc", None): -1.0, ("random", 0): -3.0}
    assert beating(aggregated(runs(values, "kid"), COMPARED)) == []
    assert len(beating(aggregated(runs(values, "mean-gap"), COMPARED))) == 1


def test_judge_rows_are_matched_by_id() -> None:
    pool = feature_set(4, 5)
    order = np.random.default_rng(4).permutation(9)
    assert np.array_equal(order[same_rows(rows_of(pool, order), pool, "j")], np.arange(9))


def test_judge_of_other_images_is_refused() -> None:
    pool = feature_set(4, 5)
    with pytest.raises(InputError, match="lacks 2 of the 9") as caught:
        same_rows(rows_of(pool, np.arange(7)), pool, "judge.npz")
    assert caught.value.code == "judge_rows"


def test_judge_without_ids_needs_as_many_rows_and_the_same_classes() -> None:
    pool = feature_set(4, 5)
    numbered = dataclasses.replace(pool, ids=[str(row) for row in range(9)])
    assert np.array_equal(same_rows(numbered, pool, "j"), np.arange(9))
    assert pool.labels is not None
    other = dataclasses.replace(numbered, labels=pool.labels[::-1].copy())
    with pytest.raises(InputError, match="another class in j, first"):
        same_rows(other, pool, "j")
    fewer = rows_of(feature_set(4, 5), np.arange(8))
    fewer = dataclasses.replace(fewer, ids=[str(row) for row in range(8)])
    with pytest.raises(InputError, match="8 rows, the features 9"):
        same_rows(fewer, pool, "j")


def test_held_out_classes_are_matched_by_name() -> None:
    pool = feature_set(2, 2, 2)
    other = dataclasses.replace(feature_set(3, 1), class_names=["class 2", "else"])
    found = held_out_of(other, pool.class_names, n_features=6, name="h", is_labelled=True)
    assert found.labels.tolist() == [2, 2, 2, -1]


def test_holdout_takes_its_share_of_each_class_whatever_the_order() -> None:
    features = feature_set(10, 20)
    kept, held = split_off(features, 0.2, seed=1)
    assert features.labels is not None
    assert np.bincount(features.labels[held]).tolist() == [2, 4]
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(30))
    order = np.random.default_rng(5).permutation(30)
    shuffled = rows_of(features, order)
    again = split_off(shuffled, 0.2, seed=1)[1]
    assert {shuffled.ids[row] for row in again} == {features.ids[row] for row in held}


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan"), 0.95])
def test_holdout_that_leaves_nothing_is_refused(fraction: float) -> None:
    with pytest.raises(InputError) as caught:
        split_off(feature_set(4, 5), fraction, seed=0)
    assert caught.value.code == "holdout_range"


def test_scores_say_by_their_name_what_is_hard(tmp_path: Path) -> None:
    features = feature_set(2, 1)
    expected = [0.5, -1.0, 2.0]
    np.save(tmp_path / "s.npy", np.array(expected))
    halves = [{features.ids[0]: 0.5}, {features.ids[2]: 2.0, features.ids[1]: -1.0, "more": 9}]
    (tmp_path / "s.json").write_text(json.dumps(halves))
    lines = [f"{name},{-score}" for name, score in zip(features.ids, expected, strict=True)]
    (tmp_path / "s.csv").write_text("\n".join(["id,aum", *lines]))
    table = pyarrow.table({"path": features.paths, "loss": expected})
    pyarrow.parquet.write_table(table, tmp_path / "s.parquet")
    for suffix in ("npy", "json", "csv", "parquet"):
        assert read_scores(tmp_path / f"s.{suffix}", features).tolist() == expected


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("absent.npy", None, "scores_missing"),
        ("s.json", '{"class 0/0000.png": 1.0}', "scores_missing"),
        ("s.json", "no json", "bad_scores"),
        ("s.json", "[1, 2]", "bad_scores"),
        ("s.csv", "id,score\na,1\n", "bad_scores"),
        ("s.csv", "id,loss\nclass 0/0000.png,1\nclass 0/0001.png,nan\n", "bad_scores"),
        ("s.txt", "1\n2\n", "bad_scores"),
    ],
)
def test_scores_that_cannot_be_used(
    tmp_path: Path, name: str, content: str | None, code: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        read_scores(tmp_path / name, feature_set(2))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("DATA --per-class 10 50 --seeds 5", "DATA --per-class 10 --per-class 50 --seeds 5"),
        ("--per-class 10,50 DATA", "--per-class 10 --per-class 50 DATA"),
        ("--per-class=10,50 20 DATA", "--per-class 10 --per-class 50 --per-class 20 DATA"),
        ("--methods gadc d2c --json", "--methods gadc --methods d2c --json"),
        ("--methods gadc /tmp", "--methods gadc /tmp"),
        ("-o out DATA", "-o out DATA"),
        ("--per-class", "--per-class"),
    ],
)
def test_options_take_several_values(given: str, expected: str) -> None:
    command = ManyValues("compare")
    assert command._spread(given.split()) == expected.split()
