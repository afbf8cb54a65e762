"""Nested subsets: one order whose prefixes are good subsets themselves."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from gadc.errors import InputError
from gadc.objective.total import Objective
from gadc.search.candidates import Candidates
from gadc.search.multistart import DEFAULT_PATIENCE, DEFAULT_START, SearchResult, Start, search

Nested = tuple[int, ...] | Literal["halves"]

# Halving ends before a subset has fewer images than this: that few is soon chosen on its own.
LEAST_HALF = 10


def halves(n_selected: int) -> list[int]:
    """Return `n_selected` halved again and again, down to 10 at least, ascending, without itself.

    Each half is rounded down: 100 gives 12, 25, 50.
    """
    sizes: list[int] = []
    while (n_selected := n_selected // 2) >= LEAST_HALF:
        sizes.insert(0, n_selected)
    return sizes


def check_nested(nested: Nested | str | None, n_selected: int | None = None) -> None:
    """Raise unless there are sizes, they ascend, and they stay below the size of a subset.

    Args:
        nested: Sizes, `halves`, or None for none.
        n_selected: Size of the largest subset of a class; None if it is not known yet.

    Raises:
        InputError: `nested_sizes`.
    """
    if nested is None:
        return
    if nested == "halves":
        if n_selected is not None and not halves(n_selected):
            raise InputError(
                "nested_sizes",
                f"a subset of {n_selected} has no half of {LEAST_HALF} or more; name the sizes, "
                "or select more",
            )
        return
    if isinstance(nested, str):
        raise InputError("nested_sizes", f"nested={nested!r}; use 'halves' or sizes")
    sizes = list(nested)
    is_ascending = all(small < large for small, large in zip(sizes, sizes[1:], strict=False))
    if not sizes or sizes[0] < 1 or not is_ascending:
        raise InputError("nested_sizes", f"nested sizes {sizes} must ascend, from 1 or more")
    if n_selected is not None and sizes[-1] >= n_selected:
        raise InputError(
            "nested_sizes",
            f"nested sizes {sizes} must be below {n_selected}, the images selected of a class",
        )


def nested_sizes(nested: Nested | None, n_selected: int) -> list[int]:
    """Return the sizes of a class's subsets, ascending, the last one `n_selected`.

    A size that a small class does not reach is left out.
    """
    smaller = halves(n_selected) if nested == "halves" else [int(size) for size in nested or ()]
    return [*(size for size in smaller if size < n_selected), n_selected]


def search_nested(
    objective: Objective,
    sizes: Sequence[int],
    *,
    start: Start = DEFAULT_START,
    candidates: Candidates | None = None,
    max_swaps: int | None = None,
    patience: int = DEFAULT_PATIENCE,
    proof: bool = True,
    seed: int = 0,
) -> list[SearchResult]:
    """Choose one subset of each size, every one inside the next.

    The smallest is searched for freely. Each larger one keeps it, and searches for the images it
    adds, its ring, alone. (From the largest down, the small subsets would have to be found among
    its few images: up to 8 % worse than free ones, where rings cost the large ones up to 2 %.)

    Args:
        objective: One class's objective.
        sizes: Ascending.
        start: See `search`; so are `max_swaps`, `patience`, `proof` and `seed`, all of each size's
            search.
        candidates: Which images may and which must be chosen. Those that must come first: a subset
            smaller than their number is chosen among them.
        max_swaps: See there.
        patience: See there.
        proof: See there.
        seed: See there.

    Returns:
        One result for each size. Its order begins with that of the smaller one, and its
        `is_swap_optimal` speaks of its ring: exchanging one image of that lowers nothing.

    Raises:
        InputError: See `search`.
    """
    candidates = candidates or Candidates(objective.n_images)
    n_kept = len(candidates.keep)
    if n_kept > sizes[-1]:
        raise InputError(
            "n_selected_range", f"n_selected={sizes[-1]} must be at least {n_kept}, those to keep"
        )
    # Where kept images fill the smaller subsets, they are complete before others come.
    steps = {*sizes, n_kept} if sizes[0] < n_kept else {*sizes}
    results: dict[int, SearchResult] = {}
    inner: SearchResult | None = None
    for size in sorted(steps):
        is_filled = size > n_kept or (size == n_kept and inner is None)
        among = candidates if is_filled else _kept_alone(candidates)
        ring = search(
            objective,
            size,
            start=start,
            candidates=among if inner is None else among.keeping(inner.order.tolist()),
            max_swaps=max_swaps,
            patience=patience,
            proof=proof,
            seed=seed,
        )
        results[size] = inner = ring if inner is None else _joined(inner, ring)
    return [results[size] for size in sizes]


def _kept_alone(candidates: Candidates) -> Candidates:
    """Return candidates of which only those that must be chosen may be, and none must."""
    others = np.setdiff1d(np.arange(candidates.n_images), candidates.keep)
    return Candidates(candidates.n_images, exclude=others.tolist())


def _joined(inner: SearchResult, outer: SearchResult) -> SearchResult:
    """Put the smaller subset first, in its own order; `outer` has ordered it anew."""
    n_inner = len(inner.order)
    return replace(
        outer,
        order=np.concatenate([inner.order, outer.order[n_inner:]]),
        gains=np.concatenate([inner.gains, outer.gains[n_inner:]]),
    )
