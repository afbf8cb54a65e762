"""`gadc experiment`: methods x budgets x seeds, from the selection to the score of samples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gadc.cli import options
from gadc.cli.console import AsJson, emit, session_of, table


def experiment(
    context: typer.Context,
    protocol: Annotated[
        str,
        typer.Argument(
            metavar="PROTOCOL",
            help="A YAML file, or one that gadc ships: digits, digits-short, cifar10, imagenet256, "
            "imagenet512.",
        ),
    ],
    out: options.OutFolder,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Runs at the same time, in processes of one thread each; on a GPU use 1.",
        ),
    ] = 1,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto or cpu.")] = "auto",
    wait: options.Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Train the same model on what each method selects, and compare the images it makes.

    A protocol says which images, methods, budgets, seeds, models and lengths of training. Every
    method gets the same conditions, steps, sampler, judge and seeds; only the subset differs.

        gadc plan digits                     # what it will cost
        gadc experiment digits --out digits-result --workers 2

    Running the same command again goes on where it stopped. DIR gets:

    - `table.md`, `experiment.json`: mean and deviation over seeds, differences to random selection
    - `comparison.parquet`: every number, one a row; `gadc report DIR` draws it
    - `samples.png`: samples of every method, a row each in the order of the table
    - `subsets/`, `runs/`, `samples/`, `scores/`: every stage, named by a digest of its inputs
    """
    from gadc.experiment.protocol import load_protocol
    from gadc.experiment.runner import run_experiment

    result = run_experiment(
        load_protocol(protocol),
        out,
        n_workers=workers,
        device=device,
        wait_seconds=wait,
        show=session_of(context).progress,
    )
    emit(result, as_text(result), as_json=as_json)


def as_text(result: Mapping[str, Any]) -> str:
    """Return the tables of an experiment as people read them."""
    from gadc.experiment.table import shown_tables

    parts = []
    for shown in shown_tables(result["table"]):
        title = (
            f"{shown.n_per_class} per class, judged by {shown.space} against {shown.split} images"
        )
        parts.append(f"{title}\n{table(shown.lines, headers=shown.heads)}")
    parts.append(table(_facts(result)))
    return "\n\n".join(parts)


def _facts(result: Mapping[str, Any]) -> list[list[str]]:
    judge, counts = result["judge"], result["counts"]
    facts = [["runs", f"{counts['cells']}, {counts['run']} of them now"]]
    if judge.get("accuracy_held_out") is not None:
        facts.append(["judge's accuracy", f"{judge['accuracy_held_out']:.1%} of held-out images"])
    facts += [["left out", f"{name}: {why}"] for name, why in result["left_out"].items()]
    facts.append(["time", f"{result['seconds']} s"])
    return [*facts, ["written to", f"{Path(result['out']) / 'table.md'}, comparison.parquet"]]
