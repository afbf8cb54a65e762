"""`gadc plan`: what a selection will need, before it runs."""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gadc.cli.composed import takes
from gadc.cli.console import AsJson, emit, table
from gadc.cli.selection import request_of

if TYPE_CHECKING:
    from gadc.runs.selection import Request

MINUTE, HOUR = 60, 3600


@dataclass(frozen=True)
class AskedProtocol:
    """A plan of an experiment, not of a selection."""

    name: str
    workers: int
    device: str


@functools.wraps(request_of)
def asked_of(**given: Any) -> "Request | AskedProtocol":
    """Return what DATA and the options ask for."""
    from gadc.experiment.protocol import is_protocol

    name = str(given["data"])
    if is_protocol(name):
        return AskedProtocol(name, given["workers"] or 1, given["device"])
    return request_of(**given)


@takes(asked_of, leave_out=frozenset(["wait", "null"]))
def plan(
    context: typer.Context,
    request: "Request | AskedProtocol",
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Where `gadc select` will write; its disk must have room. Nothing is written.",
        ),
    ] = Path("."),
    seconds: Annotated[
        float,
        typer.Option(
            metavar="S",
            help="About how long to measure; with more, more images and classes are.",
        ),
    ] = 20.0,
    as_json: AsJson = False,
) -> None:
    """Say how long `gadc select` will take, and how much memory and disk, before it runs.

    It takes the options of `gadc select`, and measures on this machine, as it is now: a sample of
    the images, and the selection from some classes.

        gadc plan photos --per-class 10

    It fails with the code `no_space` where the disk of DIR is too small.

    DATA may also be a protocol of `gadc experiment`, with --workers and --device: how many runs it
    has, and what they take: features, selections, training, sampling and judging, each measured on
    a small part.

        gadc plan digits
    """
    # What is measured is done in folders that are gone afterwards; nobody needs to hear of them.
    logging.getLogger("gadc").setLevel(logging.WARNING)
    if isinstance(request, AskedProtocol):
        from gadc.experiment.cost import plan_experiment
        from gadc.experiment.protocol import load_protocol

        planned = plan_experiment(
            load_protocol(request.name),
            n_workers=request.workers,
            device=request.device,
            seconds=seconds,
        )
        emit(planned, protocol_as_text(planned), as_json=as_json)
        return
    from gadc.runs.plan import plan_selection

    found = plan_selection(request, seconds=seconds)
    emit(found, as_text(found), as_json=as_json)


def as_text(found: dict[str, Any]) -> str:
    """Return a plan as people read it."""
    time, memory, disk = found["time"], found["memory"], found["disk"]
    measured = found["measured"]
    n_whole = sum(entry["whole"] for entry in measured["classes"])
    steps = [
        ["loading", duration(time["load_seconds"])],
        *([["features", duration(time["features_seconds"])]] if measured["images"] else []),
        ["checks and probe", duration(time["prepare_seconds"])],
        ["selection", f"{duration(time['select_seconds'])} in {found['workers']} processes"],
        ["all", duration(time["total_seconds"])],
    ]
    available = memory["available_bytes"]
    needs = [
        [
            "memory",
            f"{_size(memory['needed_bytes'])}"
            + ("" if available is None else f" of {_size(available)} available"),
        ],
        [
            "disk",
            f"{_size(disk['needed_bytes'])} of {_size(disk['free_bytes'])} free in {disk['where']}"
            + (f"; {_size(disk['features_bytes'])} stay" if disk["features_bytes"] else ""),
        ],
    ]
    basis = [f"{n_whole:,} of {found['n_classes']:,} classes"]
    if measured["images"]:
        basis.append(f"{measured['images']:,} of {found['n_images']:,} images")
    if measured["rows_prepared"] < found["n_images"]:
        basis.append(f"checks of {measured['rows_prepared']:,} rows")
    facts = [
        *needs,
        ["selects", f"{found['n_selected']:,} of {found['n_images']:,} images"],
        ["measured", f"{', '.join(basis)}, in {duration(found['plan_seconds'])}"],
        ["extrapolated", _extrapolation(found)],
        *[["note", remark] for remark in found["remarks"]],
    ]
    return f"{table(steps, headers=('step', 'about'))}\n\n{table(facts)}"


def protocol_as_text(found: dict[str, Any]) -> str:
    """Return the plan of an experiment as people read it."""

    def time_of(seconds: float | None) -> str:
        return "not known" if seconds is None else duration(seconds)

    rows = [
        [
            part["model"],
            part["length"],
            f"{part['n_per_class']:,}",
            f"{part['n_runs']:,}",
            "not known" if part["steps"] is None else f"{part['steps']:,}",
            f"{part['n_parameters'] / 1e6:,.1f} M",
            time_of(part["train_seconds_each"]),
            time_of(part["sample_seconds_each"]),
            time_of(part["judge_seconds_each"]),
        ]
        for part in found["parts"]
    ]
    headers = (
        *("model", "length", "per class", "runs", "steps", "weights"),
        *("train", "sample", "judge"),
    )
    stages = [
        [stage["stage"], time_of(stage["seconds"]), stage["basis"]] for stage in found["stages"]
    ]
    left_out = [stage["stage"] for stage in found["stages"] if stage["seconds"] is None]
    facts = [
        ["runs", f"{found['n_runs']:,} of {len(found['methods'])} methods at most"],
        [
            "time",
            f"{time_of(found['seconds'])} with {found['workers']} workers on {found['device']}"
            + (f", without {', '.join(left_out)}" if left_out else ""),
        ],
        ["disk", _size(found["bytes"])],
        *[["note", remark] for remark in found["remarks"]],
    ]
    parts = [
        table(rows, headers=headers),
        table(stages, headers=("stage", "about", "basis")),
        table(facts),
    ]
    return "\n\n".join(parts)


def _extrapolation(found: dict[str, Any]) -> str:
    if found["measured"]["everything"]:
        return "nothing of the selection"
    if found["model"] is None:
        return "a search in cells takes a time in proportion to the images"
    return (
        f"a class takes {duration(found['model']['fixed'])}, and more in proportion to "
        "selected x images x images to match"
    )


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds >= HOUR:
        return f"{seconds / HOUR:.1f} h"
    if seconds >= MINUTE:
        return f"{seconds / MINUTE:.1f} min"
    return f"{seconds:.1f} s"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.2f} MB"
