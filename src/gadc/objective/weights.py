"""How much each target image counts."""

import numpy as np
import torch

from gadc.errors import InputError

# The weighted median is found by the upper, then the lower half of the bits of float32.
HALF_BITS = 16
LOW_HALF = (1 << HALF_BITS) - 1
NO_SIGN = 0x7FFFFFFF  # -0 is 0
# Costs counted at a time.
BLOCK_ENTRIES = 1 << 22
# Sums of weights that should be half of all miss it by rounding.
ROUNDING = 1e-12


def as_weights(weights: np.ndarray | torch.Tensor, n: int, name: str) -> torch.Tensor:
    """Check weights and return them, float64 [n] on the CPU, summing to one.

    Args:
        weights: Numbers >= 0, not all zero [n].
        n: How many there must be.
        name: What errors call them.

    Raises:
        InputError: `weights_length` or `weights_range`.
    """
    given = torch.as_tensor(weights, dtype=torch.float64, device="cpu").detach()
    if given.shape != (n,):
        raise InputError(
            "weights_length",
            f"{name} must be {n} numbers, one for each column; got shape {list(given.shape)}",
        )
    bad = torch.nonzero(~(given.isfinite() & (given >= 0.0)))[:10, 0].tolist()
    if bad or not bool((given > 0.0).any()):
        found = f"entries {bad} are not (first ten shown)" if bad else "all weights are zero"
        raise InputError(
            "weights_range", f"{name} must be finite and >= 0, and one above 0; {found}"
        )
    given = given / given.max()  # the sum of large ones would overflow
    return given / given.sum()


def counting(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return which columns count at all, and their weights; None if these are equal.

    Args:
        weights: As `as_weights` returns them [n].
    """
    places = torch.nonzero(weights)[:, 0]
    found = weights[places]
    return places, None if bool((found == found[0]).all()) else found


def weighted_median(values: np.ndarray, weights: np.ndarray, *, zeros_left_out: float) -> float:
    """Return the lower median of non-negative numbers, each counted by its column's weight.

    Two passes of counting, since a sorted copy of a large matrix would not fit.

    Args:
        values: Float32 [r, n].
        weights: Of the columns [n].
        zeros_left_out: Summed weight of the zeros that don't count.
    """
    bits = values.view(np.int32)  # in the order of the numbers, as none is negative
    counted = len(values) * float(weights.sum()) - zeros_left_out
    half = (zeros_left_out + counted / 2) * (1.0 - ROUNDING)
    upper = np.cumsum(_counted(bits, weights))
    top = int(np.searchsorted(upper, half))
    lower = np.cumsum(_counted(bits, weights, top=top)) + (upper[top - 1] if top else 0.0)
    low = min(int(np.searchsorted(lower, half)), LOW_HALF)
    return float(np.array((top << HALF_BITS) + low, dtype=np.int32).view(np.float32))


def _counted(bits: np.ndarray, weights: np.ndarray, *, top: int | None = None) -> np.ndarray:
    """Return the summed weight by upper half of the bits, or by lower half of those in `top`."""
    counts = np.zeros(1 << HALF_BITS)
    n_rows = max(1, BLOCK_ENTRIES // bits.shape[1])
    for start in range(0, len(bits), n_rows):
        block = bits[start : start + n_rows] & NO_SIGN
        upper = block >> HALF_BITS
        rows, columns = np.nonzero(upper >= 0 if top is None else upper == top)
        keys = upper if top is None else block & LOW_HALF
        counts += np.bincount(keys[rows, columns], weights[columns], minlength=len(counts))
    return counts
