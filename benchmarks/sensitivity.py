"""Write docs/results/sensitivity.md: what moves when a weight of the objective is changed.

python benchmarks/sensitivity.py --work DIR [--cifar10 DIR] [--per-class 300] [--n-selected 10]

Each weight is taken times 1/4, 1/2, 2 and 4 with all others at their defaults, on digits' pixels,
CIFAR-10's ResNet-56 features and CIFAR-10's pixels. Of the capacity it is the excess over 1. What
is finished stands in DIR and is not done again.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from comparison_data import cifar10, digits
from gadc.comparison.judge import Judge
from gadc.comparison.problem import Comparison, Problem, pose
from gadc.forks import on_cores
from gadc.job.config import CondenseConfig
from gadc.objective.total import (
    DEFAULT_CONFIDENCE_WEIGHT,
    DEFAULT_MEAN_WEIGHT,
    DEFAULT_STD_WEIGHT,
)
from gadc.objective.transport import DEFAULT_CAPACITY, DEFAULT_RELATIVE_EPSILON
from gadc.per_class.selection import ClassSettings, select_class
from gadc.runs.selection import Request
from gadc.storage import digest

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
FACTORS = (0.25, 0.5, 2.0, 4.0)
DEFAULTS = {
    "epsilon": DEFAULT_RELATIVE_EPSILON,
    "capacity": DEFAULT_CAPACITY,
    "mean_weight": DEFAULT_MEAN_WEIGHT,
    "std_weight": DEFAULT_STD_WEIGHT,
    "confidence_weight": DEFAULT_CONFIDENCE_WEIGHT,
}
DATASETS = ("digits-pixels", "cifar10-resnet56", "cifar10-pixels")
OWN = ("transport", "mmd-set", "energy", "frechet", "recall", "coverage", "confidence")
JUDGED = ("transport", "mmd-set", "energy", "frechet", "frechet-all", "recall", "coverage")
HIGHER = frozenset(["recall", "coverage"])
Numbers = dict[str, dict[str, list[float]]]
"""By place (`own` or `judge`) and measure: the mean, then each class's number."""


def main() -> None:
    """Run what is not done yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path, default=Path("cifar10"))
    parser.add_argument("--per-class", type=int, default=300)
    parser.add_argument("--n-selected", type=int, nargs="+", default=[10])
    arguments = parser.parse_args()
    folder = arguments.work
    folder.mkdir(parents=True, exist_ok=True)
    digits(folder)
    cifar10(folder, arguments.cifar10, arguments.per_class)
    parts = []
    everything = []
    for name in DATASETS:
        problem = posed(name, folder, arguments.per_class)
        judge = judge_of(problem)
        for n_selected in arguments.n_selected:
            found = {
                label: numbers_of(problem, judge, settings, n_selected, folder / "runs")
                for label, settings in variants()
            }
            parts.append(f"## {name}, {n_selected} of each class\n\n{as_table(found)}")
            everything.append(found)
    RESULTS.mkdir(exist_ok=True)
    introduction = INTRODUCTION.format(per_class=arguments.per_class)
    page = [introduction, f"## All data sets together\n\n{as_summary(everything)}", *parts]
    (RESULTS / "sensitivity.md").write_text("\n\n".join(page) + "\n")


def variants() -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the default settings, then those with one weight changed."""
    yield "default", {}
    for name, default in DEFAULTS.items():
        for factor in FACTORS:
            value = 1.0 + (default - 1.0) * factor if name == "capacity" else default * factor
            yield f"{name} × {factor:g} ({value:.4g})", {name: value}


def posed(name: str, folder: Path, n_per_class: int) -> Problem:
    """Return a data set, its judge and its held-out images."""
    other = {
        "digits-pixels": "digits-network",
        "cifar10-resnet56": "cifar10-pixels",
        "cifar10-pixels": "cifar10-resnet56",
    }[name]
    is_digits = name.startswith("digits")
    files = [
        folder / f"{part}{'' if is_digits else f'-{n_per_class}'}.safetensors"
        for part in (name, other)
    ]
    config = CondenseConfig(per_class=1, proof=False)
    return pose(
        Comparison(
            Request(files[0], folder, config),
            judge=files[1],
            holdout=0.2 if is_digits else None,
            held_out=None if is_digits else folder / f"{name}-test.safetensors",
            judge_held_out=None if is_digits else folder / f"{other}-test.safetensors",
        )
    )


def numbers_of(
    problem: Problem,
    judge: Judge,
    changes: Mapping[str, float],
    n_selected: int,
    folder: Path,
) -> Numbers:
    """Select with changed settings, and judge; or read what was found before."""
    folder.mkdir(exist_ok=True)
    settings = dataclasses.replace(problem.job.config.class_settings, **changes)
    key = digest([problem.about, dataclasses.asdict(settings), n_selected])
    path = folder / f"{key[:16]}.json"
    if path.is_file():
        found: Numbers = json.loads(path.read_text())
        return found
    found = judged(problem, judge, selected(problem, settings, n_selected))
    path.write_text(json.dumps(found))
    sys.stderr.write(f"{problem.about['source']} {n_selected} {dict(changes)}\n")
    return found


def selected(problem: Problem, settings: ClassSettings, n_selected: int) -> list[np.ndarray]:
    """Return rows of the pool by class."""
    chosen = []
    with on_cores(1):
        for label in problem.labels:
            task = dataclasses.replace(
                problem.case(label).task, settings=settings, n_selected=n_selected
            )
            chosen.append(problem.job.division.rows[label][select_class(task).order])
    return chosen


def judge_of(problem: Problem) -> Judge:
    """Return the judge of a data set, which remembers what depends on the real images alone."""
    names = [problem.job.division.names[label] for label in problem.labels]
    rows = [problem.job.division.rows[label] for label in problem.labels]
    measures = list(dict.fromkeys([*OWN, *JUDGED]))
    return Judge(problem.spaces, names, problem.labels, rows, problem.losses, measures)


def judged(problem: Problem, judge: Judge, chosen: Sequence[np.ndarray]) -> Numbers:
    """Return the numbers of a subset: in its own space and pool, and by the held-out judge."""
    places = {
        "own": (problem.spaces[0].name, "pool", OWN),
        "judge": (problem.spaces[1].name, "held-out", JUDGED),
    }
    numbers: Numbers = {place: {} for place in places}
    for score in judge.scores(chosen):
        for place, (space, split, wanted) in places.items():
            if (score.space, score.split) == (space, split) and score.measure in wanted:
                values = numbers[place].setdefault(score.measure, [])
                value = np.nan if score.value is None else score.value
                values.insert(0 if score.class_name == "" else len(values), value)
    return numbers


def as_summary(everything: Sequence[Mapping[str, Numbers]]) -> str:
    """Return a Markdown table of mean changes over all data sets, in per cent."""
    columns = [("own", name) for name in ("transport", "mmd-set", "frechet", "coverage")]
    columns += [("judge", name) for name in ("transport", "mmd-set", "energy", "frechet")]
    headings = [heading(place, name) for place, name in columns]
    lines = [
        "| | " + " | ".join([*headings, "J: classes with lower energy"]) + " |",
        "|---|" + "--:|" * (len(columns) + 1),
    ]
    for label in list(everything[0])[1:]:
        cells = [
            f"{100.0 * np.mean([change(found, label, place, name) for found in everything]):+.1f} %"
            for place, name in columns
        ]
        counts = [classes_with_lower_energy(found, label) for found in everything]
        cells.append(f"{sum(n for n, _ in counts)} of {sum(n for _, n in counts)}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def heading(place: str, name: str) -> str:
    """Return what stands above a column."""
    return f"{'' if place == 'own' else 'J: '}{name} {'↑' if name in HIGHER else '↓'}"


def change(found: Mapping[str, Numbers], label: str, place: str, name: str) -> float:
    """Return the relative change of a mean against the default's."""
    return found[label][place][name][0] / found["default"][place][name][0] - 1.0


def classes_with_lower_energy(found: Mapping[str, Numbers], label: str) -> tuple[int, int]:
    """Return in how many classes the judge's energy distance is lower, and of how many."""
    energy = np.array(found[label]["judge"]["energy"][1:])
    usual = np.array(found["default"]["judge"]["energy"][1:])
    return int((energy < usual).sum()), len(energy)


def as_table(found: Mapping[str, Numbers]) -> str:
    """Return a Markdown table: the default's numbers, and how others differ from them."""
    columns = [("own", name) for name in OWN] + [("judge", name) for name in JUDGED]
    headings = [heading(place, name) for place, name in columns]
    lines = [
        "| | " + " | ".join([*headings, "J: classes with lower energy"]) + " |",
        "|---|" + "--:|" * (len(columns) + 1),
    ]
    for label, numbers in found.items():
        if label == "default":
            cells = [f"{numbers[place][name][0]:.4g}" for place, name in columns] + [""]
        else:
            cells = [f"{100.0 * change(found, label, *column):+.1f} %" for column in columns]
            n_lower, n_classes = classes_with_lower_energy(found, label)
            cells.append(f"{n_lower} of {n_classes}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


INTRODUCTION = """\
# How much the weights matter

One weight of the objective is changed at a time, all others stay at their defaults (epsilon \
0.025, capacity 1.05, mean 1,
std 1, confidence 0.03). The first row of each table has the default's numbers, the others their \
change in per cent. Of
the capacity the excess over 1 is scaled. Columns without a mark: in the space of the selection, \
against the pool.
Marked "J": in a space that no method saw (the hidden layer of a network for digits, pixels for \
ResNet-56 features,
ResNet-56 features for pixels), against held-out images. ↓ lower is better, ↑ higher. The last \
column counts the
classes in which the judge's energy distance is lower than with the defaults.

Digits: 1,438 images in ten classes; CIFAR-10: {per_class} training images of each of the ten \
classes, drawn with seed 0;
searches without the final proof. Written by `python benchmarks/sensitivity.py`."""


if __name__ == "__main__":
    main()
