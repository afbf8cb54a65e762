"""How many images each class gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError

Allocate = Literal["equal", "proportional", "sqrt", "file"]
Shortfall = Literal["take-all", "redistribute", "error"]

N_EXAMPLES = 5
"""How many classes an error names."""


@dataclass(frozen=True, eq=False)
class Allocation:
    """Images per class.

    Attributes:
        wanted: Each class's share, whether or not it has so many, int64 [c].
        counts: What each class gives, int64 [c]; below `wanted` where it falls short, above where
            it stands in for others.
    """

    wanted: NDArray[np.int64]
    counts: NDArray[np.int64]


def allocate_budget(
    n_images: Sequence[int] | NDArray[np.int64],
    *,
    per_class: int | None = None,
    fraction: float | None = None,
    budget: int | None = None,
    allocate: Allocate = "equal",
    allocation: Mapping[int, int] | None = None,
    shortfall: Shortfall = "take-all",
    n_selectable: Sequence[int] | NDArray[np.int64] | None = None,
    class_names: Sequence[str] | None = None,
) -> Allocation:
    """Divide a budget among classes.

    Shares are rounded by largest remainder, between equal ones for the first class, so that they
    sum to the budget exactly. A class without images has no share of `fraction` or `budget`.

    Args:
        n_images: Size of each class [c].
        per_class: This many from each class.
        fraction: This part of all images, rounded, at least 1, divided by `allocate`.
        budget: This many in all, divided by `allocate`.
        allocate: Shares `equal`, `proportional` to the size or to its square root (`sqrt`), or as
            in `allocation` (`file`).
        allocation: Share by class number, 0 for the others; the very counts if neither `fraction`
            nor `budget` is given.
        shortfall: What happens where a class has fewer images than its share: it gives all
            (`take-all`), others give more in proportion to their shares as well
            (`redistribute`), or an error.
        n_selectable: How many of each class may be selected; default: all.
        class_names: Names for errors; default: the numbers.

    Raises:
        InputError: A number out of its bounds, more than there are images, or a class that falls
            short with `shortfall="error"`.

    Source: the largest remainder method (Hamilton).
    """
    sizes = np.asarray(n_images, dtype=np.int64)
    limits = sizes if n_selectable is None else np.asarray(n_selectable, dtype=np.int64)
    if shortfall not in get_args(Shortfall):
        raise InputError(
            "unknown_shortfall", f"shortfall={shortfall!r}; use {', '.join(get_args(Shortfall))}"
        )
    n_given = sum(given is not None for given in (per_class, fraction, budget))
    if n_given > 1 or (n_given == 0 and allocation is None):
        raise InputError("budget_choice", "give one of per_class, fraction, budget or allocation")

    shares = _shares(sizes, "equal" if per_class is not None else allocate, allocation)
    if per_class is not None:
        _check_positive("per_class", per_class)
        wanted = np.full(len(sizes), per_class, dtype=np.int64)
    elif fraction is not None or budget is not None:
        wanted = _largest_remainder(_total(fraction, budget, int(sizes.sum())), shares)
    else:
        wanted = np.array([int(share) for share in shares], dtype=np.int64)
    total = int(wanted.sum())
    if per_class is None and not 1 <= total <= sizes.sum():
        raise InputError(
            "budget_range", f"{total} images are asked for; there are {sizes.sum()}, at least 1"
        )

    short = np.flatnonzero(wanted > limits)
    if short.size and shortfall == "error":
        names = [str(label) for label in range(len(sizes))] if class_names is None else class_names
        listed = ", ".join(
            f"{names[label]!r} ({limits[label]} of {wanted[label]})" for label in short[:N_EXAMPLES]
        )
        raise InputError(
            "class_too_small",
            f"{short.size} classes have fewer images than asked for: {listed}; lower the budget, "
            "or use shortfall take-all or redistribute",
        )
    if short.size and shortfall == "redistribute":
        given = np.minimum(wanted, limits)
        return Allocation(wanted, given + _fill(total - int(given.sum()), shares, limits - given))
    return Allocation(wanted, np.minimum(wanted, limits))


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError("budget_range", f"{name}={value} must be >= 1")


def _total(fraction: float | None, budget: int | None, n_images: int) -> int:
    if budget is not None:
        _check_positive("budget", budget)
        return budget
    if fraction is None or not 0.0 < fraction <= 1.0:
        raise InputError("budget_range", f"fraction={fraction} must be above 0 and at most 1")
    return max(1, int(fraction * n_images + 0.5))


def _shares(
    sizes: NDArray[np.int64], allocate: Allocate, allocation: Mapping[int, int] | None
) -> list[Fraction]:
    if allocate not in get_args(Allocate):
        raise InputError(
            "unknown_allocate", f"allocate={allocate!r}; use {', '.join(get_args(Allocate))}"
        )
    if (allocate == "file") != (allocation is not None):
        raise InputError("allocation_choice", "allocate='file' and an allocation go together")
    if allocation is not None:
        negative = [label for label, share in allocation.items() if share < 0]
        if negative:
            raise InputError(
                "budget_range", f"the allocation of class {negative[0]} is negative; use 0 or more"
            )
        return [Fraction(allocation.get(label, 0)) for label in range(len(sizes))]
    if allocate == "proportional":
        return [Fraction(int(size)) for size in sizes]
    if allocate == "sqrt":
        return [Fraction(float(np.sqrt(size))) for size in sizes]
    return [Fraction(int(size > 0)) for size in sizes]


def _largest_remainder(total: int, shares: Sequence[Fraction]) -> NDArray[np.int64]:
    """Round `total * share / sum(shares)` so that the sum is `total`; 0 if there are no shares."""
    whole = sum(shares)
    if not whole:
        return np.zeros(len(shares), dtype=np.int64)
    quotas = [total * share / whole for share in shares]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda label: counts[label] - quotas[label])
    for label in by_remainder[: total - sum(counts)]:
        counts[label] += 1
    return np.array(counts, dtype=np.int64)


def _fill(total: int, shares: Sequence[Fraction], room: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give each class its share of `total`, as far as it has room, until all is given."""
    counts = np.zeros_like(room)
    is_open = np.array([share > 0 for share in shares]) & (room > 0)
    while is_open.any():
        labels = np.flatnonzero(is_open)
        left = total - int(counts.sum())
        portions = _largest_remainder(left, [shares[label] for label in labels.tolist()])
        is_over = portions > room[labels]
        if not is_over.any():
            counts[labels] = portions
            break
        # What the others get only grows by this, so nobody is closed too early.
        full = labels[is_over]
        counts[full] = room[full]
        is_open[full] = False
    return counts
