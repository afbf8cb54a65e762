from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import gadc
from gadc import InputError
from gadc.baselines import METHODS, Pool, margin_difficulty
from gadc.runtime import generator

X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
Y = np.array(["cat", "dog", "ant", "dog"] * 10)
PROBABILITIES = np.random.default_rng(1).dirichlet(np.ones(3), size=40)
OWN = np.searchsorted(["ant", "cat", "dog"], Y)

BY_METHOD = {
    "random": gadc.RandomSelector,
    "k-center": gadc.KCenterSelector,
    "herding": gadc.HerdingSelector,
    "ccs": gadc.CCSSelector,
    "dq": gadc.DatasetQuantizationSelector,
    "d2c": gadc.DifficultyIntervalSelector,
    "k-medoids": gadc.KMedoidsSelector,
    "facility-location": gadc.FacilityLocationSelector,
    "moderate": gadc.ModerateSelector,
    "confidence": gadc.ConfidenceSelector,
}


class Scored:
    """Makes up what a method needs, so that the contract can be checked with X and y alone."""

    def _pool(self, values: np.ndarray, *args: Any, **kwargs: Any) -> Pool:
        score = np.abs(values).sum(1).astype(np.float64)
        return Pool(values, confidence_loss=score, difficulty=score)


class ScoredCCSSelector(Scored, gadc.CCSSelector):
    pass


class ScoredDifficultyIntervalSelector(Scored, gadc.DifficultyIntervalSelector):
    pass


class ScoredConfidenceSelector(Scored, gadc.ConfidenceSelector):
    pass


@parametrize_with_checks(
    [
        gadc.RandomSelector(2),
        gadc.KCenterSelector(2),
        gadc.HerdingSelector(2),
        gadc.DatasetQuantizationSelector(2),
        gadc.KMedoidsSelector(2),
        gadc.FacilityLocationSelector(2),
        gadc.ModerateSelector(2),
        ScoredCCSSelector(2),
        ScoredDifficultyIntervalSelector(2),
        ScoredConfidenceSelector(2),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", BY_METHOD)
def test_each_class_is_selected_from_by_the_method(name: str) -> None:
    selector = BY_METHOD[name](3).fit(X, Y, probabilities=PROBABILITIES)
    assert selector.indices_.dtype == np.int64
    assert selector.classes_.tolist() == ["ant", "cat", "dog"]
    assert Y[selector.indices_].tolist() == ["ant"] * 3 + ["cat"] * 3 + ["dog"] * 3
    rows = np.flatnonzero(Y == "dog")
    pool = Pool(
        X[rows],
        confidence_loss=-np.log(PROBABILITIES[rows, 2]),
        difficulty=margin_difficulty(PROBABILITIES.astype(np.float32), OWN)[rows],
    )
    expected = METHODS[name].select(pool, 3, generator=generator(0, name, "dog"))
    assert selector.indices_[6:].tolist() == rows[expected].tolist()


@pytest.mark.parametrize("name", BY_METHOD)
def test_seed_is_a_parameter_of_random_methods_alone(name: str) -> None:
    has_seed = "random_state" in BY_METHOD[name]().get_params()
    assert has_seed == METHODS[name].is_random
    if has_seed:
        found = [
            BY_METHOD[name](3, random_state=seed)
            .fit(X, Y, probabilities=PROBABILITIES)
            .indices_.tolist()
            for seed in (1, 1, 2)
        ]
        assert found[0] == found[1] != found[2]
        state = np.random.RandomState(0)
        fresh = BY_METHOD[name](3, random_state=state).fit(X, Y, probabilities=PROBABILITIES)
        assert len(fresh.indices_) == 9


@pytest.mark.parametrize("name", BY_METHOD)
def test_parameters_survive_cloning_and_reach_the_method(name: str) -> None:
    options: dict[str, Any] = {
        "herding": {"variant": "herding-deepcore"},
        "ccs": {"hard_cutoff": 0.0, "n_strata": 2},
        "dq": {"n_bins": 2},
        "d2c": {"interval": 1},
    }.get(name, {})
    selector = clone(BY_METHOD[name](4, shortfall="error", **options))
    found = selector.get_params()
    assert {key: found[key] for key in options} == options
    assert (found["n_per_class"], found["shortfall"]) == (4, "error")
    if options:
        changed = selector.fit(X, Y, probabilities=PROBABILITIES).indices_.tolist()
        usual = BY_METHOD[name](4).fit(X, Y, probabilities=PROBABILITIES).indices_.tolist()
        assert changed != usual


def test_given_difficulty_comes_before_the_margin_and_is_named() -> None:
    difficulty = np.arange(40.0)
    selector = gadc.DifficultyIntervalSelector(4).fit(
        X, difficulty=difficulty, probabilities=PROBABILITIES
    )
    assert selector.indices_.tolist() == [0, 10, 20, 30]
    assert selector.difficulty_source_ == "given"
    derived = gadc.DifficultyIntervalSelector(4).fit(X, Y, probabilities=PROBABILITIES)
    assert derived.difficulty_source_ == "negative margin of the class probabilities"
    assert gadc.ModerateSelector(4).fit(X, Y).difficulty_source_ == ""


@pytest.mark.parametrize("selector", [gadc.CCSSelector(3), gadc.DifficultyIntervalSelector(3)])
def test_missing_difficulty_tells_how_to_give_it(selector: Any) -> None:
    with pytest.raises(InputError, match="give one number each .*or class probabilities"):
        selector.fit(X, Y)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"probabilities": PROBABILITIES[:, :2]}, "probabilities_not_normalised"),
        ({"probabilities": PROBABILITIES[:9]}, "length_mismatch"),
        ({"probabilities": np.full((40, 2), 0.5)}, "class_mismatch"),
        ({"difficulty": np.ones(9)}, "difficulty_shape"),
        ({}, "difficulty_missing"),
    ],
)
def test_bad_scores_are_refused(arguments: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as raised:
        gadc.CCSSelector(3).fit(X, Y, **arguments)
    assert raised.value.code == code


def test_margin_of_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 classes"):
        gadc.CCSSelector(3).fit(X, probabilities=np.ones((40, 1)))


def test_confidence_needs_probabilities() -> None:
    with pytest.raises(InputError, match="give class probabilities"):
        gadc.ConfidenceSelector(3).fit(X, Y)


def test_unknown_variant_lists_the_valid_ones() -> None:
    with pytest.raises(InputError, match="'argmax'; use herding or herding-deepcore"):
        gadc.HerdingSelector(3, variant="argmax").fit(X)


def test_small_class_is_taken_whole_or_refused() -> None:
    assert len(gadc.RandomSelector(11).fit(X, Y).indices_) == 10 + 10 + 11
    with pytest.raises(InputError, match="'ant'"):
        gadc.RandomSelector(11, shortfall="error").fit(X, Y)


def test_fit_resample_returns_rows_of_the_same_kind() -> None:
    frame, labels = pd.DataFrame(X), pd.Series(Y)
    selector = gadc.ModerateSelector(3)
    rows, classes = selector.fit_resample(frame, labels)
    assert isinstance(rows, pd.DataFrame)
    assert rows.index.tolist() == selector.indices_.tolist()
    assert classes.tolist() == Y[selector.indices_].tolist()
    assert selector.fit_resample(X)[1] is None
