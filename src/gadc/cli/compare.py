"""`gadc compare`: every method on the same features, in honest numbers."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gadc.cli.composed import takes
from gadc.cli.console import AsJson, emit, session_of, table
from gadc.cli.many_values import as_numbers
from gadc.cli.selection import request_of
from gadc.cli.selection_options import HOW_MANY

if TYPE_CHECKING:
    from gadc.runs.selection import Request

JUDGED = "By what subsets are judged"
COMPARED = "What is compared"
NOT_OPTIONS = frozenset(
    [
        *("per_class", "fraction", "budget", "allocate", "allocation_file", "nested"),
        *("nested_sizes", "clusters", "target", "keep", "exclude", "units", "null"),
        *("engine", "address", "workers"),
    ]
)
"""Options of `gadc select` that not every method could follow."""
LEGEND = (
    "Means over classes and seeds, ± the standard deviation over seeds; methods without a\n"
    "deviation have no randomness. An empty cell is not defined: comparison.json says why.\n"
    "(*) biased: fewer images than dimensions; compare methods with each other only."
)


@takes(functools.partial(request_of, per_class=1), leave_out=NOT_OPTIONS)
def compare(
    context: typer.Context,
    request: "Request",
    per_class: Annotated[
        list[str],
        typer.Option(
            "--per-class",
            metavar="N...",
            help="Budgets: each method selects N images of each class.",
            rich_help_panel=HOW_MANY,
        ),
    ],
    methods: Annotated[
        list[str],
        typer.Option(
            "--methods",
            metavar="NAME...",
            help="Methods by name, or all; a name that isn't one lists them.",
            rich_help_panel=COMPARED,
        ),
    ] = ["all"],  # noqa: B006 - typer reads it, and nothing writes to it
    seeds: Annotated[
        int,
        typer.Option(
            metavar="K",
            help="Runs of a random method, with seeds from --seed on; others run once.",
            rich_help_panel=COMPARED,
        ),
    ] = 5,
    scores: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="How hard each image is, for CCS and D2C: .npy, .json, .csv or .parquet. By "
            "default the margin of the class probabilities, or of a linear probe.",
            rich_help_panel=COMPARED,
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            metavar="FEATURES",
            help="Judge in this feature space too, which no method sees: features of the same "
            "images by another encoder.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FEATURES",
            help="Judge by other images too, such as a test set: their features by the encoder of "
            "DATA's.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    judge_held_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FEATURES",
            help="The held-out images in the judge's space.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="Instead of --held-out: split this part of each class off before selection, and "
            "judge by it.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    measures: Annotated[
        list[str] | None,
        typer.Option(
            "--measures",
            metavar="NAME...",
            help="Measures by name; by default all.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Methods that run at the same time, each in a process of one thread. The "
            "selections are the same; with 1 the times are not disturbed.",
            rich_help_panel=COMPARED,
        ),
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Compare gadc with published methods: same features, same budgets, many measures.

    For example, every method with 10 and 50 images of each class, judged by a fifth of the images
    that none of them could select:

        gadc compare photos --methods all --per-class 10 50 --holdout 0.2 --out compared

    No home advantage: --judge names features of the same images by another encoder. Methods that
    match distributions, gadc foremost, look better in the space they selected in.

    DIR gets:

    - `comparison.parquet`: every number, one a row; `gadc report` draws it
    - `comparison.json`: the table: mean, deviation, and the sign against random selection
    - `runs/`: what each method selected; work that is not done again
    """
    import dataclasses

    from gadc.comparison.problem import Comparison
    from gadc.comparison.run import run_comparison

    asked = Comparison(
        request=dataclasses.replace(request, workers=workers),
        methods=tuple(methods),
        per_class=as_numbers(per_class, "per_class"),
        n_seeds=seeds,
        measures=tuple(measures or ()),
        judge=judge,
        held_out=held_out,
        judge_held_out=judge_held_out,
        holdout=holdout,
        scores=scores,
    )
    result = run_comparison(asked, show=session_of(context).progress)
    emit(result, as_text(result), as_json=as_json)


SHORT = {
    "transport": "transport",
    "frechet": "Fréchet",
    "frechet-all": "Fréchet, all",
    "mmd-set": "MMD²",
    "energy": "energy",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
    "confidence": "-log p",
    "seconds": "seconds",
    "peak-memory": "MB",
}
"""Measures on the terminal, of those that there are, by the heading of their column."""


def as_text(result: Mapping[str, Any]) -> str:
    """Return a comparison as people read it."""
    parts = []
    names = {space["name"]: space["is_selection"] for space in result["data"]["spaces"]}
    settings = dict.fromkeys(
        (row["n_per_class"], row["space"], row["split"]) for row in result["table"]
    )
    for n_per_class, space, split in sorted(
        settings, key=lambda found: (found[0], not names[found[1]], found[2] != "pool")
    ):
        rows = [
            row
            for row in result["table"]
            if (row["n_per_class"], row["space"], row["split"]) == (n_per_class, space, split)
        ]
        seen = "selected in it" if names[space] else "no method saw it"
        title = f"{n_per_class} per class, against {_split(split)}, in {space!r} ({seen})"
        ahead = _ahead(result, (n_per_class, space, split))
        parts.append(f"{title}\n{_as_table(rows)}{ahead}")
    parts.append(LEGEND)
    parts.append(table(_facts(result)))
    return "\n\n".join(parts)


def _split(split: str) -> str:
    return "the whole pool" if split == "pool" else "held-out images"


def _as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    measures = [name for name in SHORT if any(row["measure"] == name for row in rows)]
    cells = {(row["method"], row["measure"]): row for row in rows}
    titles = {row["method"]: row["title"] for row in rows}
    lines = [
        [title, *(_cell(cells.get((method, measure))) for measure in measures)]
        for method, title in titles.items()
    ]
    arrows = {row["measure"]: "↓" if row["better"] == "lower" else "↑" for row in rows}
    biased = {row["measure"] for row in rows if row["note"] == "biased"}
    headers = [f"{SHORT[name]} {arrows[name]}{'*' if name in biased else ''}" for name in measures]
    return table(lines, headers=["method", *headers])


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row["mean"] is None:
        return ""
    mean, sd = row["mean"], row["sd"]
    n_digits = 0 if abs(mean) >= 100 else 1 if abs(mean) >= 10 else 3
    text = f"{mean:.{n_digits}f}"
    return text if sd is None else f"{text} ± {sd:.{n_digits}f}"


def _facts(result: Mapping[str, Any]) -> list[list[str]]:
    facts = [["difficulty", result["data"]["difficulty"]]]
    facts += [["left out", f"{name}: {why}"] for name, why in result["left_out"].items()]
    facts.append(["time", f"{result['seconds']} s"])
    facts.append(["written to", f"{Path(result['out']) / 'comparison.parquet'}, comparison.json"])
    return facts


def _ahead(result: Mapping[str, Any], setting: tuple[int, str, str]) -> str:
    """Return a line that names what is better than gadc, measure by measure."""
    kinds = {method["name"]: method["kind"] for method in result["methods"]}
    if "gadc" not in kinds:
        return ""
    ahead = []
    for entry in result["ahead_of_gadc"]:
        peers = [name for name in entry["methods"] if kinds[name] in ("peer", "random")]
        if (entry["n_per_class"], entry["space"], entry["split"]) == setting and peers:
            more = f" +{len(peers) - 1}" if len(peers) > 1 else ""
            ahead.append(f"{entry['measure']} ({peers[0]}{more})")
    return "\npeers ahead of gadc: " + (", ".join(ahead) or "none, in any measure")
