"""How long many classes take, judged by a few that were measured."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Part of a class's time does not grow with it, because steps on small arrays cost what they cost
# whatever their size. Classes of one size differ in their time by a quarter or so, by the luck of
# the search, so a share is only believed as far as the sizes measured lie apart: this much spread
# (the sum of squared deviations of log work) counts as much as what is assumed without any.
PRIOR_SPREAD = 1.0
PRIOR_SHARE = 0.5
# Shares that are tried, of the time at the mean of the sizes measured: from next to nothing to next
# to all of it.
SHARES = 1.0 / (1.0 + np.logspace(4.0, -4.0, 161))


@dataclass(frozen=True)
class ClassSize:
    """What the time of a class depends on.

    Attributes:
        n_images: n, images to select from.
        n_target: t, images to match.
        n_selected: k.
    """

    n_images: int
    n_target: int
    n_selected: int

    @property
    def work(self) -> float:
        """One round of exchanges: for each of k places, n candidates and their t costs."""
        return float(self.n_selected) * self.n_images * self.n_target


@dataclass(frozen=True)
class TimeModel:
    """seconds = fixed + per_work * k n t."""

    fixed: float
    per_work: float

    def seconds(self, size: ClassSize) -> float:
        """Return the time of one class; none if nothing is selected."""
        return self.fixed + self.per_work * size.work if size.work else 0.0


@dataclass(frozen=True)
class MeasuredClass:
    """One selection that was made to be timed.

    Attributes:
        size: Of what was searched.
        seconds: How long it took.
        is_whole: Of a class as it is; false for a part of one, which tells only how time grows.
    """

    size: ClassSize
    seconds: float
    is_whole: bool = True


def fit_time_model(measured: Sequence[MeasuredClass]) -> TimeModel:
    """Fit the model: how time grows to all that was measured, its level to whole classes.

    The share of the fixed part has the least squared deviations of log seconds, together with its
    own from `PRIOR_SHARE`; the level makes the model's sum over the whole classes (over the largest
    parts, if there are none) what was measured.

    Args:
        measured: At least one, each with work.
    """
    work = np.array([entry.size.work for entry in measured])
    seconds = np.array([max(entry.seconds, 1e-9) for entry in measured])
    typical = float(np.exp(np.log(work).mean()))
    grown = SHARES[:, None] + (1.0 - SHARES[:, None]) * work / typical  # [shares, measured]
    deviations = np.log(seconds) - np.log(grown)
    deviations -= deviations.mean(1, keepdims=True)
    loss = (deviations**2).sum(1) + PRIOR_SPREAD * (SHARES - PRIOR_SHARE) ** 2
    best = int(loss.argmin())
    is_whole = np.array([entry.is_whole for entry in measured])
    if not is_whole.any():
        is_whole = work >= work.max() / 2
    level = float(seconds[is_whole].sum() / grown[best, is_whole].sum())
    share = float(SHARES[best])
    return TimeModel(level * share, level * (1.0 - share) / typical)


def makespan(seconds: Sequence[float], n_workers: int) -> float:
    """Return when the last class ends if each goes to the first worker that is free, in order."""
    free_at = [0.0] * n_workers
    for duration in seconds:
        heapq.heapreplace(free_at, free_at[0] + duration)
    return max(free_at)


def line_through(
    n_small: int, seconds_small: float, n_large: int, seconds_large: float, n: int
) -> float:
    """Return the time for `n` items on the line through two measurements.

    Neither the time per item nor the time for none is below 0.
    """
    per_item = max(0.0, (seconds_large - seconds_small) / (n_large - n_small))
    per_item = min(per_item, seconds_large / n_large)
    return seconds_large + per_item * (n - n_large)
