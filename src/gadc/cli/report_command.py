"""`gadc report`: what runs wrote, as one HTML file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gadc.cli.console import AsJson, emit, session_of, table

MEGABYTE = 1_000_000


def report(
    context: typer.Context,
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders that `gadc select`, `compare`, `experiment` or `train` wrote.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The HTML file; an earlier report there is replaced, anything else is not.",
        ),
    ] = Path("report.html"),
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            metavar="DATA",
            help="Where the images are now, if not where they were selected from.",
        ),
    ] = None,
    n_sampled: Annotated[
        int,
        typer.Option(
            "--n-sampled",
            metavar="N",
            help="Images of the pool on the map; of a larger pool, so many drawn at random.",
            min=1,
        ),
    ] = 2_000,
    as_json: AsJson = False,
) -> None:
    """Write one HTML file about selections, comparisons and trainings, to look at and to pass on.

    For example:

        gadc report selected compared --out report.html

    It holds the chosen images in order with their gains and neighbours, a map of the pool, the
    images that are left unmatched, the quality of every class, methods compared, what was left
    out, the losses of training runs by step, and all settings. The file needs no network and sends
    nothing; thumbnails of images are in it, so pass it on only where the images may go.
    """
    from gadc.report.build import build_report

    result = build_report(
        runs, out, source=source, n_sampled=n_sampled, show=session_of(context).progress
    )
    emit(result, _as_text(result), as_json=as_json)


def _as_text(result: dict[str, Any]) -> str:
    rows = [
        [
            entry["run"],
            f"pictures of {entry['n_pictured']:,} of {entry['n_chosen']:,} chosen images",
        ]
        for entry in result["selections"]
    ]
    rows += [
        [
            entry["run"],
            f"{entry['n_methods']} methods"
            + (f", losses of {entry['n_trainings']} trainings" if entry["n_trainings"] else ""),
        ]
        for entry in result["comparisons"]
    ]
    rows += [[entry["run"], f"losses of {entry['step']:,} steps"] for entry in result["trainings"]]
    rows.append(["written to", f"{result['out']} ({result['n_bytes'] / MEGABYTE:.1f} MB)"])
    return table(rows)
