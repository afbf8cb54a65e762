"""Feature vectors, checked once, that remember what measures compute of them alone."""

from collections.abc import Callable, Hashable, Iterator
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from gadc.errors import InputError

Estimator = Literal["unbiased", "empirical"]

BLOCK_VALUES = 1 << 24
"""Float64 numbers held in a block of vectors: 128 MB."""
FEATURE_TYPES = (torch.float32, torch.float64)
"""Kept as they are and widened block by block; everything else is widened at once."""

Known = TypeVar("Known")


class Sample:
    """Vectors [n, d] with a memory.

    The distances within `real`, its neighbourhoods and its covariance are the dearest parts of most
    measures and the same for everything judged by it: with a `Sample`, they are computed once.
    The vectors must not change while it lives.

    Attributes:
        name: What errors call it.
        rows: [n, d], float32 or float64, on the device where they were; measures work there.
    """

    def __init__(self, values: ArrayLike | torch.Tensor, name: str = "sample") -> None:
        self.name = name
        self.rows = _as_rows(values, name)
        self._known: dict[Hashable, Any] = {}

    @property
    def n_rows(self) -> int:
        """Return n."""
        return len(self.rows)

    @property
    def n_features(self) -> int:
        """Return d."""
        return self.rows.shape[1]

    @property
    def centre(self) -> torch.Tensor:
        """Return the mean, float64 [d]."""
        return self.once("centre", self._centre)

    def once(self, key: Hashable, compute: Callable[[], Known]) -> Known:
        """Return what `compute` returned when it was first asked for under `key`."""
        if key not in self._known:
            self._known[key] = compute()
        known: Known = self._known[key]
        return known

    def blocks(self, n_most: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the vectors in float64, at most `n_most` and `BLOCK_VALUES` numbers at a time."""
        n_rows = max(1, min(n_most, BLOCK_VALUES // self.n_features))
        for start in range(0, self.n_rows, n_rows):
            where = slice(start, min(start + n_rows, self.n_rows))
            yield where, self.rows[where].double()

    def drawn(self, n_drawn: int, generator: np.random.Generator) -> "Sample":
        """Return `n_drawn` of the vectors, without replacement."""
        chosen = generator.choice(self.n_rows, n_drawn, replace=False)
        return Sample(self.rows[torch.from_numpy(chosen).to(self.rows.device)], self.name)

    def _centre(self) -> torch.Tensor:
        # Block by block: a sum in float64 may widen all the vectors first.
        total = torch.zeros(self.n_features, dtype=torch.float64, device=self.rows.device)
        for _, rows in self.blocks(self.n_rows):
            total += rows.sum(0)
        return total / self.n_rows


Features = ArrayLike | torch.Tensor | Sample
"""What every measure takes: [n, d], n, d >= 1, all finite."""


def as_sample(values: Features, name: str) -> Sample:
    """Check vectors, unless that was done before.

    Args:
        values: [n, d].
        name: What errors call them.

    Raises:
        InputError: Not two-dimensional, empty, or not finite (the first ten rows are named).
    """
    return values if isinstance(values, Sample) else Sample(values, name)


def as_pair(
    generated: Features, real: Features, names: tuple[str, str] = ("generated", "real")
) -> tuple[Sample, Sample]:
    """Check two sets of vectors that are to be compared.

    Raises:
        InputError: As `as_sample`, or they differ in width or device.
    """
    few, many = as_sample(generated, names[0]), as_sample(real, names[1])
    if few.n_features != many.n_features:
        raise InputError(
            "width_mismatch",
            f"{few.name} has {few.n_features} features, {many.name} {many.n_features}; "
            "use one encoder for both",
        )
    if few.rows.device != many.rows.device:
        raise InputError(
            "devices_differ",
            f"{few.name} is on {few.rows.device}, {many.name} on {many.rows.device}; "
            "move one of them",
        )
    return few, many


def require_rows(n_least: int, reason: str, *samples: Sample) -> None:
    """Raise `too_few_rows` unless all samples have `n_least` vectors."""
    for sample in samples:
        if sample.n_rows < n_least:
            raise InputError(
                "too_few_rows",
                f"{reason} needs at least {n_least} vectors; {sample.name} has {sample.n_rows}",
            )


def check_estimator(estimator: Estimator) -> None:
    """Raise `bad_choice` for an unknown estimator."""
    if estimator not in ("unbiased", "empirical"):
        raise InputError("bad_choice", f"estimator={estimator!r}; use 'unbiased' or 'empirical'")


def _as_rows(values: ArrayLike | torch.Tensor, name: str) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        rows = values.detach()
    else:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu" or array.dtype.itemsize > np.dtype(np.float64).itemsize:
            array = array.astype(np.float64)
        # A copy for negative strides and read-only maps, which torch does not take.
        native = array.dtype.newbyteorder("=")
        rows = torch.from_numpy(np.require(array, native, requirements=["C", "W"]))
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(
            "bad_shape", f"{name} must have the shape [n, d], n, d >= 1; not {tuple(rows.shape)}"
        )
    if rows.dtype not in FEATURE_TYPES:
        rows = rows.double()
    bad = torch.nonzero(~torch.isfinite(rows).all(1))[:10, 0].tolist()
    if bad:
        raise InputError("features_not_finite", f"{name}: NaN or infinity in rows {bad}")
    return rows
