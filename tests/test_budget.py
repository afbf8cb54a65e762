import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadc.errors import InputError
from gadc.job.budget import allocate_budget

SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any)
RULES = st.sampled_from(["equal", "proportional", "sqrt"])


def counts(sizes: list[int], **request: object) -> list[int]:
    return allocate_budget(sizes, **request).counts.tolist()  # type: ignore[arg-type]


def test_per_class_gives_every_class_the_same():
    assert counts([9, 20, 9], per_class=4) == [4, 4, 4]


def test_equal_shares_give_what_is_left_to_the_first_classes():
    assert counts([9, 9, 9], budget=11) == [4, 4, 3]


def test_proportional_shares_round_by_largest_remainder():
    # Quotas 3.5, 5.25, 1.25.
    assert counts([14, 21, 5], budget=10, allocate="proportional") == [4, 5, 1]


def test_square_root_shares():
    # Roots 2, 4, 10 of 16.
    assert counts([4, 16, 100], budget=16, allocate="sqrt") == [2, 4, 10]


def test_fraction_is_of_all_images():
    assert counts([20, 80], fraction=0.1, allocate="proportional") == [2, 8]


def test_fraction_gives_at_least_one_image():
    assert counts([5, 2], fraction=1e-6, allocate="proportional") == [1, 0]


def test_allocation_alone_is_taken_as_it_is():
    assert counts([9, 9, 9], allocate="file", allocation={0: 2, 2: 7}) == [2, 0, 7]


def test_allocation_with_budget_is_a_share():
    assert counts([9, 9, 9], budget=8, allocate="file", allocation={0: 1, 2: 3}) == [2, 0, 6]


def test_empty_class_has_no_share_of_a_budget():
    assert counts([0, 9, 9], budget=6) == [0, 3, 3]


def test_empty_class_falls_short_per_class():
    allocated = allocate_budget([0, 9], per_class=3)
    assert (allocated.wanted.tolist(), allocated.counts.tolist()) == ([3, 3], [0, 3])


@pytest.mark.parametrize(
    ("shortfall", "expected"), [("take-all", [2, 4, 4]), ("redistribute", [2, 5, 5])]
)
def test_shortfall_policies(shortfall: str, expected: list[int]):
    allocated = allocate_budget([2, 9, 9], per_class=4, shortfall=shortfall)  # type: ignore[arg-type]
    assert allocated.counts.tolist() == expected
    assert allocated.wanted.tolist() == [4, 4, 4]


def test_shortfall_error_names_the_class():
    with pytest.raises(InputError, match=r"'dog' \(2 of 4\)") as raised:
        allocate_budget([9, 2], per_class=4, shortfall="error", class_names=["cat", "dog"])
    assert raised.value.code == "class_too_small"


def test_what_may_not_be_selected_counts_in_the_share_but_not_in_the_limit():
    allocated = allocate_budget(
        [10, 10], budget=10, allocate="proportional", n_selectable=[1, 10], shortfall="redistribute"
    )
    assert (allocated.wanted.tolist(), allocated.counts.tolist()) == ([5, 5], [1, 9])


@given(sizes=SIZES, share=st.floats(0.01, 1.0), allocate=RULES)
def test_redistributed_budget_is_exact_and_within_the_classes(sizes, share, allocate):
    budget = max(1, int(share * sum(sizes)))
    found = np.array(counts(sizes, budget=budget, allocate=allocate, shortfall="redistribute"))
    assert found.sum() == budget
    assert (found >= 0).all()
    assert (found <= sizes).all()


@given(sizes=SIZES, share=st.floats(0.01, 1.0), allocate=RULES)
def test_wanted_sums_to_the_budget_and_is_within_one_of_its_quota(sizes, share, allocate):
    budget = max(1, int(share * sum(sizes)))
    wanted = allocate_budget(sizes, budget=budget, allocate=allocate).wanted
    shares = {
        "equal": np.array(sizes) > 0,
        "proportional": np.array(sizes),
        "sqrt": np.sqrt(sizes),
    }[allocate]
    assert wanted.sum() == budget
    # Rounding of the quota in float64 is far below 1e-9.
    assert (np.abs(wanted - budget * shares / shares.sum()) < 1 + 1e-9).all()


@given(sizes=SIZES, per_class=st.integers(1, 80))
def test_redistribution_never_takes_from_a_class(sizes, per_class):
    taken = np.array(counts(sizes, per_class=per_class))
    redistributed = np.array(counts(sizes, per_class=per_class, shortfall="redistribute"))
    assert (redistributed >= taken).all()
    assert redistributed.sum() == min(sum(sizes), per_class * len(sizes))


@pytest.mark.parametrize(
    "request_",
    [
        {"per_class": 0},
        {"per_class": -1},
        {"budget": 0},
        {"budget": 19},
        {"fraction": 0.0},
        {"fraction": 1.5},
        {"fraction": float("nan")},
        {"allocate": "file", "allocation": {0: -1}},
        {"allocate": "file", "allocation": {}},
        {"allocate": "file", "allocation": {0: 10}, "budget": 19},
    ],
)
def test_budgets_out_of_bounds_are_refused(request_: dict[str, object]):
    with pytest.raises(InputError) as raised:
        counts([9, 9], **request_)
    assert raised.value.code == "budget_range"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({}, "budget_choice"),
        ({"per_class": 1, "budget": 1}, "budget_choice"),
        ({"budget": 1, "allocate": "file"}, "allocation_choice"),
        ({"budget": 1, "allocation": {0: 1}}, "allocation_choice"),
        ({"budget": 1, "allocate": "fair"}, "unknown_allocate"),
        ({"budget": 1, "shortfall": "ignore"}, "unknown_shortfall"),
    ],
)
def test_contradictory_requests_are_refused(request_: dict[str, object], code: str):
    with pytest.raises(InputError) as raised:
        counts([9, 9], **request_)
    assert raised.value.code == code
