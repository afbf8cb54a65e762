import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import gadc
from gadc import GeometryAwareSelector, InputError, Objective

X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
Y = np.array(["cat", "dog", "ant", "dog"] * 10)


def quick(n_per_class: int = 3, **options: Any) -> GeometryAwareSelector:
    return GeometryAwareSelector(n_per_class, **{"start": "greedy", "patience": 0, **options})


@parametrize_with_checks([quick(n_per_class=2)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([GeometryAwareSelector()])
def test_scikit_learn_contract_by_default(estimator, check):
    check(estimator)


def test_indices_are_int64_and_unlabelled_rows_are_one_class():
    selector = quick().fit(X)
    assert selector.indices_.dtype == np.int64
    assert len(set(selector.indices_.tolist())) == 3


def test_objective_is_that_of_the_selected_rows():
    selector = quick().fit(X)
    # The solver's tolerance on row masses.
    assert selector.objective_ == pytest.approx(Objective(X).value(selector.indices_), rel=1e-7)


def test_gains_sum_to_minus_the_objective():
    selector = quick().fit(X)
    # Sums of solved values, each accurate to the solver's tolerance.
    assert selector.gains_.sum() == pytest.approx(-selector.objective_, rel=1e-7)


def test_classes_are_selected_from_one_by_one():
    selector = quick().fit(X, Y)
    assert selector.classes_.tolist() == ["ant", "cat", "dog"]
    assert Y[selector.indices_].tolist() == ["ant"] * 3 + ["cat"] * 3 + ["dog"] * 3
    rows = np.flatnonzero(Y == "dog")
    assert rows[quick().fit(X[rows]).indices_].tolist() == selector.indices_[6:].tolist()


def test_objective_is_the_mean_of_the_classes():
    selector = quick().fit(X, Y)
    assert [terms["total"] for terms in selector.terms_] == selector.objectives_.tolist()
    assert selector.objective_ == selector.objectives_.mean()


def test_exchanges_until_none_helps():
    assert GeometryAwareSelector(3).fit(X).is_swap_optimal_
    assert not quick(max_swaps=0).fit(X).is_swap_optimal_


def test_small_class_is_taken_whole():
    assert len(quick(n_per_class=11).fit(X, Y).indices_) == 10 + 10 + 11


def test_small_class_is_an_error_where_that_is_asked_for():
    with pytest.raises(InputError, match="'ant'"):
        quick(n_per_class=11, shortfall="error").fit(X, Y)


def test_copies_are_selected_last():
    doubled = np.concatenate([X[:4], X[:4]])
    assert sorted(quick(n_per_class=4).fit(doubled).indices_.tolist()) == [0, 1, 2, 3]
    assert set(quick(n_per_class=6).fit(doubled).indices_.tolist()) > {0, 1, 2, 3}


def test_equal_rows_are_taken_in_order():
    assert quick().fit(np.ones((9, 2))).indices_.tolist() == [0, 1, 2]


def test_target_draws_the_selection():
    pool = np.concatenate([X, X + 20])
    assert quick().fit(pool, target=X[:9] + 20).indices_.min() >= 40


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_does_not_matter(scale: float):
    assert quick().fit(X * scale).indices_.tolist() == quick().fit(X).indices_.tolist()


def test_order_of_rows_does_not_matter():
    shuffled = np.random.default_rng(1).permutation(len(X))
    found = shuffled[quick().fit(X[shuffled]).indices_]
    assert found.tolist() == quick().fit(X).indices_.tolist()


@pytest.mark.parametrize(
    "other",
    [
        X.astype(np.float64),
        np.asfortranarray(X),
        X[::-1][::-1],
        pd.DataFrame(X, columns=list("abcd")),
        X.tolist(),
    ],
    ids=["float64", "fortran", "strides", "frame", "list"],
)
def test_type_and_layout_do_not_matter(other: Any):
    assert quick().fit(other).indices_.tolist() == quick().fit(X).indices_.tolist()


def test_same_random_state_gives_the_same():
    found = [GeometryAwareSelector(4, random_state=5).fit(X).indices_.tolist() for _ in range(2)]
    assert found[0] == found[1]


def test_random_state_may_be_an_object():
    state = np.random.RandomState(0)
    assert len(GeometryAwareSelector(4, random_state=state).fit(X).indices_) == 4


def test_fit_resample_returns_rows_of_the_same_kind():
    frame, labels = pd.DataFrame(X), pd.Series(Y)
    selector = quick()
    rows, classes = selector.fit_resample(frame, labels)
    assert isinstance(rows, pd.DataFrame)
    assert rows.index.tolist() == selector.indices_.tolist()
    assert classes.tolist() == Y[selector.indices_].tolist()
    assert selector.fit_resample(X)[1] is None


def one_sure_row(n_columns: int, column: int, row: int) -> np.ndarray:
    """Return probabilities that are uniform but for a row that surely belongs to `column`."""
    probabilities = np.full((len(X), n_columns), 1 / n_columns)
    probabilities[row] = 0.0
    probabilities[row, column] = 1.0
    return probabilities


@pytest.mark.parametrize(
    ("labels", "n_columns", "column"),
    [
        (np.repeat([0, 1], 20), 2, 1),
        (np.repeat([0, 2], 20), 3, 2),  # integers are columns
        (np.repeat([5, 7], 20), 2, 1),  # or else places in `classes_`
        (np.repeat([-1, 1], 20), 2, 1),
        (np.repeat(["a", "b"], 20), 2, 1),
        (np.repeat([False, True], 20), 2, 1),
    ],
    ids=str,
)
def test_column_of_a_class(labels: np.ndarray, n_columns: int, column: int):
    # So much weight that the surest row of the second class comes first.
    selector = quick(n_per_class=1, confidence_weight=1e3)
    selector.fit(X, labels, probabilities=one_sure_row(n_columns, column, row=30))
    assert selector.indices_[1] == 30


def test_confidence_is_on_with_probabilities_and_off_without():
    probabilities = np.full((40, 3), 1 / 3)
    given = quick().fit(X, Y, probabilities=probabilities)
    assert given.terms_[0]["confidence"] == pytest.approx(np.log(3), rel=1e-6)  # float32
    assert quick().fit(X, Y).terms_[0]["confidence"] == 0.0


def test_weight_zero_needs_no_probabilities_and_ignores_them():
    selector = quick(confidence_weight=0.0).fit(X, Y, probabilities=np.full((3, 9), np.nan))
    assert selector.terms_[0]["confidence"] == 0.0


@pytest.mark.parametrize(
    ("options", "probabilities", "code"),
    [
        ({"confidence_weight": 0.1}, None, "confidence_missing"),
        ({}, np.full((40, 2), 0.5), "class_mismatch"),
        ({}, np.full((39, 3), 1 / 3), "length_mismatch"),
        ({}, np.full((40, 3), 0.5), "probabilities_not_normalised"),
        ({}, np.full((40, 3), np.nan), "features_not_finite"),
    ],
)
def test_probabilities_that_can_not_be_used_are_refused(options, probabilities, code):
    with pytest.raises(InputError) as raised:
        quick(**options).fit(X, Y, probabilities=probabilities)
    assert raised.value.code == code


@pytest.mark.parametrize(
    "options",
    [
        {"n_per_class": 0},
        {"start": "middle"},
        {"capacity": 0.5},
        {"epsilon": 0.0},
        {"mean_weight": -1.0},
        {"units": "metric"},
        {"shortfall": "ignore"},
        {"device": "abacus"},
    ],
)
def test_parameters_out_of_bounds_are_value_errors(options: dict[str, Any]):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        quick(**options).fit(X)


def test_parameters_are_stored_untouched():
    options = {"n_per_class": 7, "epsilon": 0.5, "random_state": 3, "units": "absolute"}
    found = clone(GeometryAwareSelector(**options)).get_params()
    assert {name: found[name] for name in options} == options


def test_import_loads_nothing_heavy():
    run_python("import sys, gadc; assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules)")


def test_no_public_name_needs_torchvision():
    run_python(
        "import sys, gadc\n"
        "sys.modules['torchvision'] = None\n"
        "assert all(getattr(gadc, name) for name in gadc.__all__)\n"
    )


def test_condense_stays_a_function_when_its_module_is_imported():
    run_python(
        "import gadc.condense, gadc; from gadc.condense import condense\ngadc.condense.__call__"
    )


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="selct"):
        gadc.selct  # noqa: B018


def test_sample_weight_is_the_weight_in_what_is_matched():
    weights = np.random.default_rng(1).exponential(size=len(X))
    selector = quick().fit(X, Y, weights)
    rows = np.flatnonzero(Y == "dog")
    objective = Objective(X[rows], target_weights=weights[rows])
    chosen = selector.indices_[6:]
    assert set(chosen.tolist()) <= set(rows.tolist())
    expected = objective.value(np.searchsorted(rows, chosen))
    assert selector.objectives_[2] == pytest.approx(expected, rel=1e-7)
    assert quick().fit(X, Y, np.full(len(X), 2.0)).objectives_.tolist() == (
        quick().fit(X, Y).objectives_.tolist()
    )


@pytest.mark.parametrize("weights", [np.ones(3), -np.ones(40), (Y != "dog").astype(float)])
def test_bad_sample_weight_is_refused(weights):
    with pytest.raises(InputError, match="must be"):
        quick().fit(X, Y, weights)


def test_sample_weight_beside_a_target_is_refused():
    with pytest.raises(InputError, match="leave out one"):
        quick().fit(X, Y, np.ones(40), target=X)
