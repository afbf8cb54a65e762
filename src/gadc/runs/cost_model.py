"""How long many classes take, judged by a few that were measured."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Classes of one size differ in their time by a quarter or so, by the luck of the search: a slope
# is only believed as far as the sizes measured lie apart. This much spread (the sum of squared
# deviations of log work) counts as much as what is assumed without any: a little less than time in
# proportion to work, as on CIFAR-10's classes and parts of them (0.83 to 0.89).
PRIOR_SPREAD = 1.0
PRIOR_EXPONENT = 0.9


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
    """seconds = coefficient * (k n t) ** exponent."""

    coefficient: float
    exponent: float

    def seconds(self, size: ClassSize) -> float:
        """Return the time of one class; none if nothing is selected."""
        return self.coefficient * size.work**self.exponent if size.work else 0.0


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
    """Fit the model: the exponent to all that was measured, the coefficient to whole classes.

    The exponent is a ridge regression of log seconds on log work towards `PRIOR_EXPONENT`; the
    coefficient makes the model's sum over the whole classes (over the largest parts, if there are
    none) what was measured.

    Args:
        measured: At least one, each with work.
    """
    logs = [(math.log(entry.size.work), math.log(max(entry.seconds, 1e-9))) for entry in measured]
    mean_work = sum(work for work, _ in logs) / len(logs)
    mean_seconds = sum(seconds for _, seconds in logs) / len(logs)
    spread = sum((work - mean_work) ** 2 for work, _ in logs)
    joint = sum((work - mean_work) * (seconds - mean_seconds) for work, seconds in logs)
    exponent = (joint + PRIOR_SPREAD * PRIOR_EXPONENT) / (spread + PRIOR_SPREAD)
    most_work = max(entry.size.work for entry in measured)
    whole = [entry for entry in measured if entry.is_whole] or [
        entry for entry in measured if entry.size.work >= most_work / 2
    ]
    coefficient = sum(entry.seconds for entry in whole) / sum(
        entry.size.work**exponent for entry in whole
    )
    return TimeModel(coefficient, exponent)


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
