"""Training runs: those that `gadc train` wrote, and those of an experiment, with their losses."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.training.journal import LOSSES_NAME, read_losses
from gadc.training.record import RunRecord

EXPERIMENT_NAME, EXPERIMENT_RUNS = "experiment.json", "runs"
EXPERIMENT_SCHEMA = 1
RATES = ("images_per_second", "flops_share")
"""Their mean over time is that of their inverses over steps."""
NO_CURVES = ("step", "n_steps")


def base_name(folder: Path) -> str:
    """Return what a report calls a run: the last part of its path."""
    return os.path.basename(os.path.abspath(folder))


@dataclass(frozen=True)
class TrainingRun:
    """A training, finished or not.

    Attributes:
        folder: Where it lies.
        name: What the report calls it.
        group: Runs of a group have one colour: a method's, over its seeds.
        setting: Runs of one setting are drawn together.
        record: Its `training.json`.
    """

    folder: Path
    name: str
    group: str
    setting: str
    record: RunRecord


@dataclass(frozen=True)
class Curves:
    """What `losses.jsonl` says.

    Attributes:
        steps: The step of each point.
        values: By name, the mean since the point before; None where that is no number.
        images_per_second: Over all steps; None without any.
    """

    steps: list[int]
    values: dict[str, list[float | None]]
    images_per_second: float | None


def read_trainings(folders: Sequence[Path]) -> list[TrainingRun]:
    """Open runs that `gadc train` wrote, each a group of its own.

    Raises:
        InputError: `bad_run`.
    """
    names = [base_name(folder) for folder in folders]
    return [
        TrainingRun(folder, shown, shown, "", RunRecord.load(folder))
        for folder, name in zip(folders, names, strict=True)
        for shown in [name if names.count(name) == 1 else os.fspath(folder)]
    ]


def read_experiment(folder: Path) -> tuple[list[TrainingRun], int]:
    """Open the training runs of an experiment; methods that select the same images share one.

    Args:
        folder: What `gadc experiment` wrote; what `gadc compare` wrote has no trainings.

    Returns:
        The runs, and the number of those that are gone.

    Raises:
        InputError: `bad_experiment`; `bad_run`.
    """
    path = folder / EXPERIMENT_NAME
    if not path.is_file():
        return [], 0
    try:
        stored = json.loads(path.read_bytes())
        if stored["schema"] != EXPERIMENT_SCHEMA:
            raise ValueError(f"schema {stored['schema']}, this gadc reads {EXPERIMENT_SCHEMA}")
        named = _named(stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "bad_experiment",
            f"{path} is not what `gadc experiment` writes ({error!r}); run it again",
        ) from error
    there = {place: name for place, name in named.items() if (folder / place).is_dir()}
    found = [
        TrainingRun(folder / place, name, group, setting, RunRecord.load(folder / place))
        for place, (name, group, setting) in there.items()
    ]
    return found, len(named) - len(found)


def _named(stored: dict[str, Any]) -> dict[Path, tuple[str, str, str]]:
    """Return name, group and setting of each run's folder."""
    titles = {row["method"]: str(row["title"]) for row in stored["table"]}
    cells: dict[Path, list[dict[str, Any]]] = {}
    for cell in stored["runs"]:
        place = Path(EXPERIMENT_RUNS) / Path(cell["run"]).name
        cells.setdefault(place, []).append(cell)
    varying = [
        name for name in ("model", "length") if len({cell[name] for cell in stored["runs"]}) > 1
    ]
    named = {}
    for place, (first, *others) in cells.items():
        methods = dict.fromkeys(titles[cell["method"]] for cell in [first, *others])
        group = " = ".join(methods)
        setting = " · ".join(
            [f"{first['n_per_class']} per class", *(str(first[name]) for name in varying)]
        )
        named[place] = (f"{group} · {setting} · seed {first['seed']}", group, setting)
    return named


def curves_of(folder: Path, *, n_points: int) -> Curves:
    """Read the losses of a run, and thin them: a point then is the mean of several lines.

    Args:
        folder: The run's.
        n_points: At most so many; each stands for equally many lines, but for one.
    """
    records = read_losses(folder / LOSSES_NAME)
    names = list(dict.fromkeys(name for record in records for name in record))
    names = sorted(name for name in names if name not in NO_CURVES)
    n_lines = len(records)
    if not n_lines or not names:
        return Curves([], {}, None)
    table = np.array([[_number(record.get(name)) for name in names] for record in records])
    n_steps = np.array([_number(record.get("n_steps", 1)) for record in records])
    ends = np.linspace(0, n_lines, min(n_lines, n_points) + 1).astype(np.int64)
    values = {}
    rate = None
    for name, column in zip(names, table.T, strict=True):
        means = _means(column, n_steps, ends[:-1], is_rate=name in RATES)
        values[name] = [float(f"{mean:.5g}") if np.isfinite(mean) else None for mean in means]
        if name == RATES[0]:
            (whole,) = _means(column, n_steps, ends[:1], is_rate=True)
            rate = float(whole) if np.isfinite(whole) else None
    return Curves([records[end - 1]["step"] for end in ends[1:].tolist()], values, rate)


def _means(
    column: NDArray[np.float64],
    n_steps: NDArray[np.float64],
    starts: NDArray[np.int64],
    *,
    is_rate: bool,
) -> NDArray[np.float64]:
    """Return the means over steps of the lines from each start to the next; NaN for none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = 1.0 / column if is_rate else column
        is_there = np.isfinite(terms) & np.isfinite(n_steps)
        sums = np.add.reduceat(np.where(is_there, terms * n_steps, 0.0), starts)
        means = sums / np.add.reduceat(np.where(is_there, n_steps, 0.0), starts)
        found: NDArray[np.float64] = 1.0 / means if is_rate else means
    return found


def _number(value: Any) -> float:
    """Return what a line has for a number; NaN for anything else."""
    if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        return float("nan")
    return float(value)
