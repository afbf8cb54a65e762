"""One comparison: from what a user names to a folder with every number."""

import dataclasses
import hashlib
import logging
import os
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import gadc
from gadc.comparison.files import JSON_NAME, PARQUET_NAME, write_long, write_summary
from gadc.comparison.judge import Judge, Score, chosen_measures, own_scores
from gadc.comparison.methods import COMPARED, FULL, Compared, chosen_methods
from gadc.comparison.problem import Comparison, Problem, pose
from gadc.comparison.records import RunRecords
from gadc.comparison.spaces import Space
from gadc.comparison.table import Run, aggregated, beating, long_rows
from gadc.comparison.work import Cases, Selected, Unit, select_all
from gadc.errors import GadcError, InputError
from gadc.runtime import ProgressStyle, progress
from gadc.storage import digest, exclusive, prepare_output

logger = logging.getLogger(__name__)

RUNS_FOLDER = "runs"
WORK_FOLDER = "work"
LEFT_OUT_CODES = frozenset(["class_too_large"])
"""Errors of a method that say: not on this data. The others go on."""


def run_comparison(asked: Comparison, *, show: ProgressStyle = "silent") -> dict[str, Any]:
    """Select with every method, judge, and write `comparison.parquet` and `comparison.json`.

    Calling it again goes on where it stopped. The two files come last.

    Returns:
        The contents of `comparison.json`.

    Raises:
        InputError: Something that is asked for, or in the files it names, can't be used.
        RunError: Another process writes to the folder, a process was killed, and the like.
    """
    methods, measures = chosen_methods(asked.methods), chosen_measures(asked.measures)
    request = asked.request
    inputs = [
        *(request.data, request.features, asked.judge, asked.held_out, asked.judge_held_out),
        asked.scores,
    ]
    out = request.out
    prepare_output(out, *(path for path in inputs if path is not None))
    runs_folder, work = out / RUNS_FOLDER, out / WORK_FOLDER
    runs_folder.mkdir(exist_ok=True)
    with exclusive(runs_folder, wait_seconds=request.wait_seconds):
        began = time.monotonic()
        problem = pose(asked, show=show)
        methods, left_out = possible_methods(methods, problem, asked)
        cases = write_cases(problem, work)
        try:
            runs, counts = _run_all(
                asked, problem, cases, methods, measures, left_out, runs_folder, show
            )
        finally:
            shutil.rmtree(work, ignore_errors=True)
        about = _about(asked, problem, methods, measures)
        write_long(out / PARQUET_NAME, list(long_rows(runs, COMPARED)), about)
        table = aggregated(runs, COMPARED)
        result = {
            "schema": 1,
            "out": str(out),
            **about,
            "methods": [
                {
                    "name": method.name,
                    "title": method.title,
                    "kind": method.kind,
                    "source": method.source,
                    "n_seeds": asked.n_seeds if method.is_random else 1,
                }
                for method in methods
                if method.name not in left_out
            ],
            "left_out": left_out,
            "table": table,
            "ahead_of_gadc": beating(table),
            "runs": counts,
            "seconds": round(time.monotonic() - began, 1),
        }
        write_summary(out / JSON_NAME, result)
    return result


def possible_methods(
    methods: Sequence[Compared], problem: Problem, asked: Comparison
) -> tuple[list[Compared], dict[str, str]]:
    """Return the methods that the data allows, and why not the others.

    Raises:
        InputError: `method_needs`: a method that was asked for by name is not possible.
    """
    left_out = {}
    for method in methods:
        if missing := sorted(method.needs - problem.known):
            reason = problem.difficulty_source if "difficulty" in missing else "none"
            if "confidence_loss" in missing:
                reason = f"the confidence term is {problem.job.confidence}"
            left_out[method.name] = f"needs {', '.join(missing)}; {reason}"
    if by_name := sorted(set(left_out) & set(asked.methods)):
        raise InputError("method_needs", f"{by_name[0]} {left_out[by_name[0]]}")
    for name, reason in left_out.items():
        logger.warning("%s is left out: it %s", name, reason)
    return [method for method in methods if method.name not in left_out], left_out


def write_cases(problem: Problem, work: Path) -> Cases:
    """Write the classes where children find them."""
    shutil.rmtree(work, ignore_errors=True)  # of a killed run
    work.mkdir()
    division = problem.job.division
    cases = Cases(
        work,
        [division.names[label] for label in problem.labels],
        problem.job.config.class_settings,
        {
            n: [int(job.allocation.counts[label]) for label in problem.labels]
            for n, job in problem.jobs.items()
        },
        problem.difficulty_source,
    )
    for place, label in enumerate(problem.labels):
        cases.store(place, problem.case(label))
    return cases


def _run_all(
    asked: Comparison,
    problem: Problem,
    cases: Cases,
    methods: Sequence[Compared],
    measures: Sequence[str],
    left_out: dict[str, str],
    folder: Path,
    show: ProgressStyle,
) -> tuple[list[Run], dict[str, int]]:
    """Run what has no record yet, judge it, and return every run in the order of the table."""
    class_rows = [problem.job.division.rows[label] for label in problem.labels]
    judge = Judge(problem.spaces, cases.names, problem.labels, class_rows, problem.losses, measures)
    selection_key, judgement_key = _keys(problem, cases, measures)
    records = RunRecords(folder, selection_key=selection_key, judgement_key=judgement_key)
    seeds = [asked.request.config.seed + number for number in range(asked.n_seeds)]
    units = [
        Unit(method.name, n, seed)
        for n in sorted(problem.jobs)
        for method in methods
        for seed in (seeds if method.is_random else [None])
    ]
    found: dict[Unit, list[Score]] = {}
    counts = {"computed": 0, "judged": 0, "reused": 0, "corrupt": 0}
    with progress("compare", len(units), style=show) as bar:

        def judged(unit: Unit, selected: Selected) -> None:
            rows = [
                class_row[np.array(order, dtype=np.int64)]
                for class_row, order in zip(class_rows, selected.orders, strict=True)
            ]
            costs = own_scores(selected.seconds, selected.peak_bytes, measures)
            scores = [*judge.scores(rows), *costs]
            records.store(unit, selected, scores)
            found[unit] = scores
            bar.advance()

        def finished(unit: Unit, selected: Selected | GadcError) -> None:
            if isinstance(selected, GadcError):
                if selected.code not in LEFT_OUT_CODES or unit.method in asked.methods:
                    raise selected
                left_out[unit.method] = selected.message
                bar.advance()
                return
            counts["computed"] += 1
            judged(unit, selected)

        waiting = []
        for unit in units:
            selected, scores = records.load(unit)
            if selected is None:
                waiting.append(unit)
            elif scores is None:
                counts["judged"] += 1
                judged(unit, selected)
            else:
                counts["reused"] += 1
                found[unit] = scores
                bar.advance()
        select_all(waiting, cases, finished, n_workers=asked.request.workers or 1)
    counts["corrupt"] = records.n_corrupt
    runs = [Run(unit, found[unit]) for unit in units if unit.method not in left_out]
    return runs + _reference_runs(problem, judge), counts


def _reference_runs(problem: Problem, judge: Judge) -> list[Run]:
    """Return all images as if a method had selected them, once for every budget."""
    if all(space.held_out is None for space in problem.spaces):
        return []
    scores = judge.reference()
    return [Run(Unit(FULL, n, None), scores) for n in sorted(problem.jobs)]


def _keys(problem: Problem, cases: Cases, measures: Sequence[str]) -> tuple[str, str]:
    """Return digests of all that selections, and judgements, depend on."""
    own, *others = problem.spaces
    selection = digest(
        {
            "versions": _versions(),
            "settings": dataclasses.asdict(cases.settings),
            "counts": cases.counts,
            "names": cases.names,
            "rows": [_sha256(problem.job.division.rows[label]) for label in problem.labels],
            "barred": _sha256(problem.job.eligibility.is_barred),
            "features": _sha256(own.features),
            "difficulty": _sha256(problem.difficulty),
            "losses": _sha256(problem.losses),
        }
    )
    judgement = digest([selection, list(measures), [_space_key(own)], *map(_space_key, others)])
    return selection, judgement


def _space_key(space: Space) -> list[Any]:
    held_out = space.held_out
    return [
        space.name,
        _sha256(space.features),
        None if held_out is None else [_sha256(held_out.features), _sha256(held_out.labels)],
    ]


def _sha256(array: NDArray[Any] | None) -> str | None:
    if array is None:
        return None
    found = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _about(
    asked: Comparison, problem: Problem, methods: Sequence[Compared], measures: Sequence[str]
) -> dict[str, Any]:
    request = asked.request

    def shown(path: Path | None) -> str | None:
        return None if path is None else os.fspath(path)

    return {
        "command": {
            "data": shown(request.data),
            "methods": [method.name for method in methods],
            "per_class": sorted(set(asked.per_class)),
            "seeds": asked.n_seeds,
            "measures": list(measures),
            "judge": shown(asked.judge),
            "held_out": shown(asked.held_out),
            "judge_held_out": shown(asked.judge_held_out),
            "holdout": asked.holdout,
            "scores": shown(asked.scores),
            "workers": request.workers or 1,
            "config": problem.job.config.model_dump(mode="json", exclude={"per_class"}),
        },
        "data": problem.about,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {
        "gadc": gadc.__version__,
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
