"""From single numbers to a table: mean, spread over seeds, and the sign against random."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from gadc.comparison.judge import OF_COST, TITLES, UNBIASED, WHOLE_SET, Score
from gadc.comparison.methods import FULL, FULL_TITLE, GADC, RANDOM, Compared
from gadc.comparison.work import Unit

Place = tuple[str, str, str]
"""Space, split and measure."""


@dataclass(frozen=True)
class Run:
    """A run with its scores; that of the reference has the method `full`."""

    unit: Unit
    scores: list[Score]


def long_rows(runs: Sequence[Run], methods: Mapping[str, Compared]) -> Iterator[dict[str, Any]]:
    """Yield a row for each number, as `comparison.parquet` holds it."""
    for run in runs:
        title, kind = title_and_kind(run.unit.method, methods)
        for score in run.scores:
            measure = TITLES[score.measure]
            yield {
                "method": run.unit.method,
                "title": title,
                "kind": kind,
                "n_per_class": run.unit.n_per_class,
                "seed": run.unit.seed,
                "space": score.space,
                "split": score.split,
                "class_name": score.class_name,
                "measure": score.measure,
                "measure_title": measure.title,
                "better": measure.better,
                "value": score.value,
                "note": score.note,
            }


def title_and_kind(name: str, methods: Mapping[str, Compared]) -> tuple[str, str]:
    """Return what tables say of a method."""
    if name == FULL:
        return FULL_TITLE, "reference"
    return methods[name].title, methods[name].kind


def aggregated(runs: Sequence[Run], methods: Mapping[str, Compared]) -> list[dict[str, Any]]:
    """Return the table: a row per method, budget, space, split and measure.

    Each has the mean over seeds, the standard deviation (n - 1; None for a single value) and
    `against_random`: in how many seeds it is better, worse and equal, and the two-sided p of the
    sign test. A random method is paired with random selection of the same seed; one that runs once
    is compared with each.
    """
    numbers = _numbers(runs)
    rows = []
    for (name, n_per_class), places in numbers.items():
        title, kind = title_and_kind(name, methods)
        chance = numbers.get((RANDOM, n_per_class), {})
        for place, by_seed in places.items():
            space, split, measure = place
            values = [value for value, _ in by_seed.values()]
            defined = [value for value in values if value is not None]
            is_whole = len(defined) == len(values)
            rows.append(
                {
                    "method": name,
                    "title": title,
                    "kind": kind,
                    "n_per_class": n_per_class,
                    "space": space,
                    "split": split,
                    "measure": measure,
                    "measure_title": TITLES[measure].title,
                    "better": TITLES[measure].better,
                    "mean": float(np.mean(defined)) if is_whole else None,
                    "sd": float(np.std(defined, ddof=1)) if is_whole and len(values) > 1 else None,
                    "n_seeds": len(values),
                    "note": "; ".join(dict.fromkeys(note for _, note in by_seed.values() if note)),
                    "against_random": None
                    if name == RANDOM
                    else paired_signs(by_seed, chance.get(place, {}), TITLES[measure].better),
                }
            )
    return rows


BySeed = dict[int | None, tuple[float | None, str]]


def _numbers(runs: Sequence[Run]) -> dict[tuple[str, int], dict[Place, BySeed]]:
    numbers: dict[tuple[str, int], dict[Place, BySeed]] = {}
    for run in runs:
        places = numbers.setdefault((run.unit.method, run.unit.n_per_class), {})
        for score in run.scores:
            if score.class_name == WHOLE_SET:
                by_seed = places.setdefault((score.space, score.split, score.measure), {})
                by_seed[run.unit.seed] = (score.value, score.note)
    return numbers


def paired_signs(values: BySeed, chance: BySeed, better: str) -> dict[str, Any] | None:
    """Return how often a method is better than random selection, and the sign test's p.

    Args:
        values: By seed; the key None alone for a method that runs once.
        chance: Of random selection, by seed.
        better: `lower` or `higher`.

    Returns:
        `better`, `worse`, `equal` and `p`, of equal ones left out; None if there is no pair.
    """
    pairs = []
    for seed, (by_chance, _) in chance.items():
        own = values.get(seed, values.get(None, (None, "")))[0]
        if own is not None and by_chance is not None:
            pairs.append((own - by_chance) * (1.0 if better == "higher" else -1.0))
    if not pairs:
        return None
    n_better, n_worse = sum(gain > 0.0 for gain in pairs), sum(gain < 0.0 for gain in pairs)
    n_unequal = n_better + n_worse
    p = binomtest(n_better, n_unequal).pvalue if n_unequal else 1.0
    return {
        "better": n_better,
        "worse": n_worse,
        "equal": len(pairs) - n_unequal,
        "p": float(p),
    }


def beating(rows: Sequence[Mapping[str, Any]], name: str = GADC) -> list[dict[str, Any]]:
    """Return where other methods have a better mean than `name`.

    Costs of selecting are left out, and so are the reference and what has no number. Unbiased
    estimates below zero count as zero: they say that no difference was found.

    Returns:
        In the order of the table: `n_per_class`, `space`, `split`, `measure`, and `methods`, the
        names of those that are better, the best first.
    """
    found = []
    order = sorted(rows, key=_setting)
    for setting, group in itertools.groupby(order, key=_setting):
        cells = {row["method"]: row for row in group if row["mean"] is not None}
        n_per_class, space, split, _ = setting
        if name not in cells or cells[name]["measure"] in OF_COST:
            continue
        own = _counted(cells[name])
        sign = 1.0 if cells[name]["better"] == "higher" else -1.0
        gains = {
            other: sign * (_counted(row) - own)
            for other, row in cells.items()
            if row["kind"] != "reference"
        }
        ahead = [other for other, gain in gains.items() if gain > _rounding(own)]
        if ahead:
            found.append(
                {
                    "n_per_class": n_per_class,
                    "space": space,
                    "split": split,
                    "measure": cells[name]["measure"],
                    "methods": sorted(ahead, key=lambda other: -gains[other]),
                }
            )
    return found


def _counted(row: Mapping[str, Any]) -> float:
    mean = float(row["mean"])
    return max(mean, 0.0) if row["measure"] in UNBIASED else mean


def _rounding(value: float) -> float:
    return 1e-9 * max(abs(value), math.ulp(1.0))


def _setting(row: Mapping[str, Any]) -> tuple[int, str, str, int]:
    measures = list(TITLES)
    return row["n_per_class"], row["space"], row["split"], measures.index(row["measure"])
