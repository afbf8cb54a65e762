"""From finished runs to one HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gadc
from gadc.errors import InputError
from gadc.report.comparison_view import comparison_context, comparison_data
from gadc.report.document import plotly_source, render
from gadc.report.reading import ComparisonRun, Opened, SelectionRun, TrainingFolder, read_run
from gadc.report.training import base_name, read_trainings
from gadc.report.training_view import TrainingView
from gadc.report.views import (
    SelectionView,
    as_context,
    as_data,
    look_at,
)
from gadc.runtime import ProgressStyle
from gadc.storage import write_text

MAX_BYTES = 15_000_000
"""What still travels by mail, and opens at once."""
TEXT_BYTES = 2_000_000
"""Of it for everything but images and plotly: names, numbers, tables of a thousand images."""
DEFAULT_SAMPLED = 2_000
NAMED = 0
"""Number of the group of trainings that were named; that of a comparison's is the comparison's."""
FIRST_LINES = "<!DOCTYPE html>\n<!-- gadc report -->"


def build_report(
    runs: Sequence[Path],
    out: Path,
    *,
    source: Path | None = None,
    n_sampled: int = DEFAULT_SAMPLED,
    show: ProgressStyle = "silent",
) -> dict[str, Any]:
    """Write a report about runs: selections, comparisons and trainings.

    Args:
        runs: Folders that `gadc select`, `gadc compare`, `gadc experiment` or `gadc train` wrote.
        out: The HTML file. An earlier report there is replaced, anything else is not.
        source: Where the images are now, if not where they were selected from.
        n_sampled: Images of the pool on each map, drawn at random from larger pools.
        show: See `gadc.runtime.progress`.

    Returns:
        What was written: `out`, `n_bytes`, and what of each run is in it.

    Raises:
        InputError: A folder that is no finished run, a file in the way, bad arguments, or no
            plotly.
        RunError: A file of a run is not what was written, or the disk is full.
    """
    if not runs:
        raise InputError("no_runs", "a report needs at least one run; name a folder")
    if n_sampled < 1:
        raise InputError("bad_argument", f"n_sampled={n_sampled} must be at least 1")
    _check_output(out)
    budget_bytes = MAX_BYTES - TEXT_BYTES - len(plotly_source().encode())
    opened = [read_run(run, source=source) for run in runs]
    selections = [run for run in opened if isinstance(run, SelectionRun)]
    comparisons = [run for run in opened if isinstance(run, ComparisonRun)]
    trainings = _look_at_trainings(opened)
    if source is not None and not selections:
        raise InputError("option_unused", f"source={source} is for the images of a selection")
    views = [
        look_at(
            run,
            number=number,
            n_sampled=n_sampled,
            budget_bytes=budget_bytes // len(selections),
            show=show,
        )
        for number, run in enumerate(selections, start=1)
    ]
    text = render(
        {
            "version": gadc.__version__,
            "selections": [as_context(view) for view in views],
            "comparisons": [
                comparison_context(run, number, trainings.get(number))
                for number, run in enumerate(comparisons, start=1)
            ],
            "training": trainings[NAMED].as_context() if NAMED in trainings else None,
        },
        {
            "selections": [as_data(view) for view in views],
            "comparisons": [
                {"number": number, **comparison_data(run.comparison)}
                for number, run in enumerate(comparisons, start=1)
            ],
            "trainings": [view.as_data() for view in trainings.values()],
        },
        title=f"{base_name(opened[0].folder)}: gadc report",
    )
    write_text(out, text)
    return {
        "out": str(out),
        "n_bytes": len(text.encode()),
        "selections": [
            {
                "run": str(view.run.folder),
                "n_chosen": view.run.subset.n_images,
                "n_shown": len(view.shown),
                "n_pictured": _n_pictured(view),
                "n_on_map": 0 if view.plane is None else view.plane.n_pool,
                "has_images": view.run.index is not None,
                "n_unmatched": sum(int(each.is_unmatched.sum()) for each in view.geometry.values()),
            }
            for view in views
        ],
        "comparisons": [
            {
                "run": str(run.folder),
                "n_methods": run.comparison.n_methods,
                "n_trainings": len(run.trainings),
            }
            for run in comparisons
        ],
        "trainings": [
            {"run": str(run.folder), "step": curves.steps[-1] if curves.steps else 0}
            for view in trainings.values()
            if view.number == NAMED
            for run, curves in zip(view.runs, view.curves, strict=True)
        ],
    }


def _look_at_trainings(opened: Sequence[Opened]) -> dict[int, TrainingView]:
    """Return the groups of runs that are drawn together by their number."""
    named = read_trainings([run.folder for run in opened if isinstance(run, TrainingFolder)])
    comparisons = [run for run in opened if isinstance(run, ComparisonRun)]
    groups = [named, *(run.trainings for run in comparisons)]
    n_runs = sum(map(len, groups))
    return {
        number: TrainingView(number, runs, n_runs_in_all=n_runs)
        for number, runs in enumerate(groups)
        if runs
    }


def _n_pictured(view: SelectionView) -> int:
    """Return how many of the chosen images are there as pictures, not by name alone."""
    if view.thumbnails is None:
        return 0
    paths = [view.run.subset.paths[place] for place in view.shown]
    return sum(view.thumbnails.made(path) is not None for path in paths)


def _check_output(out: Path) -> None:
    """Refuse what can't be written, or must not be overwritten, before any work is done."""
    if out.is_dir():
        raise InputError("output_is_folder", f"output {out} is a folder; name a file")
    if not out.parent.is_dir():
        raise InputError("output_not_writable", f"there is no folder {out.parent}; make it first")
    if not out.exists():
        return
    with out.open("rb") as file:
        if file.read(len(FIRST_LINES)) != FIRST_LINES.encode():
            raise InputError(
                "output_exists",
                f"{out} exists and is no report; remove it or name another file",
            )
