"""What arrays must be before anything is computed from them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.features.rows import FeatureRows, release_rows

N_EXAMPLES = 10
"""How many bad rows an error names."""
ROWS_AT_A_TIME = 16_384
SUM_TOLERANCE = 1e-3
"""Rows of probabilities this close to 1 are renormalised: half-precision softmax is as good."""


def as_float_matrix(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Return `values` as float32 [n, d] in rows; a memory map that fits already stays one.

    Args:
        values: Any real number type, any memory order.
        name: What the error calls it.

    Raises:
        InputError: Not two-dimensional, empty, not numbers, or not finite as float32.
    """
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(
            "bad_shape", f"{name} must have the shape [n, d] with n, d >= 1, not {values.shape}"
        )
    if values.dtype.kind not in "fiub":
        raise InputError("not_numbers", f"{name} must be real numbers, not {values.dtype}")
    if values.dtype != np.float32 or not values.flags.c_contiguous or not values.flags.aligned:
        with np.errstate(over="ignore"):  # what overflows is found below, with its row
            values = np.ascontiguousarray(values, dtype=np.float32)
    check_finite(values, name)
    return values


def check_finite(values: FeatureRows, name: str) -> None:
    """Raise if a row holds NaN or infinity.

    Args:
        values: Float [n, d].
        name: What the error calls it.

    Raises:
        InputError: `features_not_finite`, with the first rows.
    """
    bad: list[int] = []
    for start in range(0, len(values), ROWS_AT_A_TIME):
        finite = np.isfinite(values[start : start + ROWS_AT_A_TIME]).all(axis=1)
        if not finite.all():
            bad += (start + np.flatnonzero(~finite)).tolist()
        release_rows(values)
    if bad:
        rows = ", ".join(str(row) for row in bad[:N_EXAMPLES])
        more = f" and {len(bad) - N_EXAMPLES} more" if len(bad) > N_EXAMPLES else ""
        raise InputError(
            "features_not_finite",
            f"{name}: NaN, infinity or a number beyond float32 in rows {rows}{more}; "
            "remove these rows or compute them again",
        )


def as_probabilities(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Return float32 [n, c] whose rows sum to 1.

    Rows within `SUM_TOLERANCE` of 1 are divided by their sum.

    Args:
        values: Real numbers [n, c].
        name: What the error calls it.

    Raises:
        InputError: Not finite, negative, or not summing to 1.
    """
    probabilities = as_float_matrix(values, name)
    bad: list[int] = []
    blocks = []
    for start in range(0, len(probabilities), ROWS_AT_A_TIME):
        block = probabilities[start : start + ROWS_AT_A_TIME].astype(np.float64)
        total = block.sum(axis=1)
        wrong = (np.abs(total - 1) > SUM_TOLERANCE) | (block < 0).any(axis=1)
        bad += (start + np.flatnonzero(wrong)).tolist()
        total[wrong] = 1
        blocks.append((np.abs(block) / total[:, None]).astype(np.float32))  # abs: -0 becomes 0
    if bad:
        rows = ", ".join(str(row) for row in bad[:N_EXAMPLES])
        raise InputError(
            "probabilities_not_normalised",
            f"{name}: {len(bad)} rows are negative or don't sum to 1 within {SUM_TOLERANCE}, "
            f"first {rows}; apply softmax to logits before saving them",
        )
    return np.concatenate(blocks)


def as_class_indices(
    labels: NDArray[Any], class_names: list[str] | None, name: str
) -> tuple[NDArray[np.int64], list[str]]:
    """Return labels as int64 indices of class names.

    Args:
        labels: Integers (or floats without a fraction) or strings [n].
        class_names: What integers index; None names each class by its integer as text, in
            ascending order. Strings are always sorted into their own names.
        name: What the error calls them.

    Raises:
        InputError: Not one-dimensional, fractions, or outside the names.
    """
    if labels.ndim != 1:
        raise InputError("bad_shape", f"{name} must have the shape [n], not {labels.shape}")
    if labels.dtype.kind in "US":
        names, indices = np.unique(labels.astype(np.str_), return_inverse=True)
        if class_names is not None and set(names.tolist()) <= set(class_names):
            position = {text: index for index, text in enumerate(class_names)}
            order = np.array([position[text] for text in names.tolist()], dtype=np.int64)
            return order[indices], class_names
        return indices.astype(np.int64), names.tolist()
    if labels.dtype.kind not in "fiub":
        raise InputError("bad_labels", f"{name} must be integers or strings, not {labels.dtype}")
    if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.rint(labels))).all():
        raise InputError("bad_labels", f"{name} must be whole numbers")
    integers = labels.astype(np.int64)
    if class_names is None:
        values, indices = np.unique(integers, return_inverse=True)
        if values.size and values[0] < 0:
            raise InputError(
                "label_out_of_range", f"{name}: {values[0]} is negative; labels start at 0"
            )
        return indices.astype(np.int64), [str(value) for value in values.tolist()]
    outside = np.flatnonzero((integers < 0) | (integers >= len(class_names)))
    if outside.size:
        raise InputError(
            "label_out_of_range",
            f"{name}: row {outside[0]} has {integers[outside[0]]}; "
            f"there are {len(class_names)} classes, 0 to {len(class_names) - 1}",
        )
    return integers, class_names


def check_lengths(path: Path | str, n_rows: int, **columns: NDArray[Any]) -> None:
    """Raise unless every column has one entry per row of the features.

    Raises:
        InputError: `length_mismatch`; nothing is ever cut to the shorter length.
    """
    for name, column in columns.items():
        if column.ndim == 0 or len(column) != n_rows:
            n_found = 0 if column.ndim == 0 else len(column)
            raise InputError(
                "length_mismatch",
                f"{path}: {n_rows} rows of features but {n_found} of {name}; "
                "they must describe the same images in the same order",
            )


def check_class_range(
    path: Path | str, class_names: list[str], probabilities: FeatureRows | None
) -> None:
    """Raise unless there is one column of probabilities per class.

    Raises:
        InputError: `class_mismatch`.
    """
    if probabilities is not None and probabilities.shape[1] != len(class_names):
        raise InputError(
            "class_mismatch",
            f"{path}: {probabilities.shape[1]} columns of probabilities but "
            f"{len(class_names)} classes",
        )
